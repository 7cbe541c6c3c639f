"""What contenders are checked by before they are timed: bounds that are derived, not tried."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LR", "ROUNDINGS", "Array", "WrongResultError", "require_close", "require_close_tensors"]

Array = NDArray[Any]

#: The learning rate of all contenders.
LR = 1e-3

#: Two float32 implementations of one step differ by a few roundings of the update: this many units
#: of float32's precision, relative to the learning rate (updates are at most about 1 of those).
ROUNDINGS = 16 * float(np.finfo(np.float32).eps)


class WrongResultError(AssertionError):
    """Two contenders do not compute the same, so their times mean nothing."""


def require_close(ours: Array, other: Array, bound: float, what: str) -> None:
    """Raise WrongResultError where ``what`` differs by more than ``bound`` somewhere."""
    worst = float(np.max(np.abs(ours.astype(np.float64) - other), initial=0.0))
    if not worst <= bound:
        raise WrongResultError(
            f"{what}: the results differ by {worst:.3g}, but at most {bound:.3g} is rounding."
        )


def require_close_tensors(ours: list[Any], theirs: list[Any], steps: int, what: str) -> None:
    """Raise WrongResultError where CPU tensors differ by more than ``steps`` steps of Adam may."""
    for a, b in zip(ours, theirs, strict=True):
        x, y = a.detach().float().numpy(), b.detach().float().numpy()
        bound = steps * (LR * ROUNDINGS + 2 * float(np.finfo(np.float32).eps) * np.abs(x).max())
        require_close(x, y, bound, what)
