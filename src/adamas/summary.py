"""What a step did as a whole, in a dozen numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adamas.digits import WIDTH, carried, norm
from adamas.spikes import Skipped
from adamas.statistics import OfPart, OfParts, Statistics

__all__ = ["by_reason", "norms_of", "summary", "total"]

#: Carried rows of digits that can be added in int64 (``adamas.digits``).
_ADDED = 2**14


def norms_of(parts: Sequence[OfPart], *, gradients_only: bool = False) -> list[float]:
    """Return the norms of gradients, parameters and updates of several tensors taken as one."""
    which = slice(1 if gradients_only else 3)
    if isinstance(parts, OfParts) and len(parts) <= _ADDED:
        return [norm(row) for row in parts.sums[:, which].sum(axis=0)]
    sums = np.zeros((which.stop, WIDTH), np.int64)
    for first in range(0, len(parts), _ADDED):
        sums += np.sum([part.sums[which] for part in parts[first : first + _ADDED]], axis=0)
        if len(parts) > _ADDED:
            sums = np.stack([*map(carried, sums)])
    return [norm(row) for row in sums]


def total(parts: Sequence[OfPart], sizes: Sequence[int]) -> Statistics:
    """Return the statistics of several tensors taken as one; ``sizes`` has their elements."""
    size = sum(sizes)
    unmoved = sum(round(part.unmoved * own) for part, own in zip(parts, sizes, strict=True))
    largest = np.array([part.largest_update for part in parts])
    return Statistics(
        *norms_of(parts),
        largest_update=float(np.max(largest, initial=0.0)),  # NaN where any is
        nonfinite=sum(part.nonfinite for part in parts),
        unmoved=unmoved / size if size else 0.0,
    )


def summary(
    of_all: Statistics | None,
    *,
    lr: float,
    gradient_norm: float | None,
    clip_factor: float | None,
    skipped: int,
) -> dict[str, float]:
    """Return what a step did as a flat dict of plain numbers, as far as there are any.

    ``of_all`` is None where the step was left out. ``gradient_norm`` counts before its own.
    """
    found = {} if of_all is None else {key: float(value) for key, value in vars(of_all).items()}
    if of_all is not None:
        size = of_all.parameter_norm
        found["update_ratio"] = of_all.update_norm / size if size else 0.0
    if gradient_norm is not None:
        found["gradient_norm"] = gradient_norm
    if clip_factor is not None:
        found["clip_factor"] = clip_factor
    found |= {"lr": lr, "skipped": float(skipped)}
    return found | {f"skipped_{why}": float(count) for why, count in by_reason(skipped).items()}


def by_reason(skipped: int) -> dict[str, int]:
    """Return how many steps were left out for which reason."""
    counted = skipped if isinstance(skipped, Skipped) else Skipped(skipped)
    return {"nonfinite": counted.nonfinite, "spikes": counted.spikes}
