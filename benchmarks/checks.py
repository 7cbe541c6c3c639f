"""What contenders are checked by before they are timed: bounds that are derived, not tried."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

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
    require_within(worst, bound, what)


def require_within(worst: float, bound: float, what: str) -> None:
    """Raise WrongResultError where the largest difference of results is above ``bound``, or NaN."""
    if not worst <= bound:
        raise WrongResultError(
            f"{what}: the results differ by {worst:.3g}, but at most {bound:.3g} is rounding."
        )


def require_close_tensors(ours: list[Any], theirs: list[Any], steps: int, what: str) -> None:
    """Raise WrongResultError where tensors differ by more than ``steps`` steps of Adam may."""
    for a, b in zip(ours, theirs, strict=True):
        # In parts, and where they are: the largest are as large as half a card's memory allows.
        parts = list(
            zip(*(each.detach().reshape(-1).split(1 << 26) for each in (a, b)), strict=True)
        )
        largest = max(float(x.abs().max()) for x, _ in parts)
        bound = steps * (LR * ROUNDINGS + 2 * float(np.finfo(np.float32).eps) * largest)
        for x, y in parts:
            require_within(float((x.double() - y.double()).abs().max()), bound, what)
