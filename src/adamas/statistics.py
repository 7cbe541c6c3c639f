"""The sums taken on the way, with their order of addition.

A sum over a tensor is defined by its flattened (C-order) elements alone, so it does not depend
on processor, threads, or the order in which tensors are visited:

1. the elements are cut into tiles of 1,024;
2. a tile has 16 float64 lanes; element i goes to lane i mod 16, row after row;
3. the lanes are folded in halves (8 + 8, 4 + 4, 2 + 2, 1 + 1);
4. the sums of all tiles are added exactly and rounded once (Shewchuk's algorithm, `math.fsum`).

Squares of float32 are exact in float64. Squares of float64 may leave its range; `norm` then
takes them again after a multiplication by a power of two, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "LANES",
    "NONE_LEFT",
    "NOT_TAKEN",
    "TILE",
    "Outcome",
    "Statistics",
    "norm",
    "norm_from",
    "sum_of_squares",
    "tile_sums",
]

TILE = 1024
LANES = 16
#: Exact factors that bring squares back into the range of float64.
SHRINK, ENLARGE = 2.0**-600, 2.0**600
#: Below this a sum of squares may have lost digits to underflow.
SMALLEST_SUM = 2.0**-900


#: What who asks for statistics is told, where none were asked for, and where a step left none.
NOT_TAKEN = "No statistics were taken. Create the optimizer with statistics=True."
NONE_LEFT = "There are no statistics: the last step was left out, or none made."


@dataclass(frozen=True)
class Statistics:
    """What one step did to one tensor."""

    #: Euclidean norm of the gradient as given, before clipping.
    gradient_norm: float
    #: Euclidean norm of the parameter before the step.
    parameter_norm: float
    #: Euclidean norm of what was subtracted from the parameter.
    update_norm: float
    #: Largest |u/d|, in units of the learning rate: about 1 in a healthy run, NaN if any is.
    largest_update: float
    #: How many elements of the gradient are infinite or NaN.
    nonfinite: int
    #: Fraction of elements that kept their value; 0 for an empty tensor.
    unmoved: float


def tile_sums(array: NDArray[Any], scale: float = 1.0) -> NDArray[np.float64]:
    """Return the sum of squares of each tile of the flattened array times ``scale``."""
    flat = np.ascontiguousarray(array).reshape(-1).astype(np.float64)
    tiles = -(-flat.size // TILE)
    padded = np.zeros(tiles * TILE)
    padded[: flat.size] = flat
    rows = padded.reshape(tiles, TILE // LANES, LANES) * scale
    lanes = np.zeros((tiles, LANES))
    for row in range(TILE // LANES):
        lanes = lanes + rows[:, row] * rows[:, row]
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def sum_of_squares(arrays: Iterable[NDArray[Any]], scale: float = 1.0) -> float:
    """Return the sum of squares of all elements times ``scale``, all arrays together."""
    sums: list[float] = []
    with np.errstate(all="ignore"):
        for array in arrays:
            sums.extend(tile_sums(array, scale).tolist())
    try:
        return math.fsum(sums)
    except OverflowError:  # finite tiles, but their sum leaves float64
        return math.inf


def norm(arrays: Sequence[NDArray[Any]]) -> float:
    """Return the Euclidean norm of all elements of all arrays, taken as one vector."""
    return norm_from(lambda scale: sum_of_squares(arrays, scale))


def norm_from(sum_at: Callable[[float], float]) -> float:
    """Return the root of the sum of squares that ``sum_at(scale)`` takes of scaled elements.

    Where the plain sum overflows or may have lost digits to underflow (float64 only: squares of
    float32 always fit), it is taken again at another scale.
    """
    total = sum_at(1.0)
    if math.isnan(total) or SMALLEST_SUM <= total < math.inf:
        return math.sqrt(total)
    scale = SHRINK if total == math.inf else ENLARGE
    return math.sqrt(sum_at(scale)) / scale


@dataclass(frozen=True)
class Outcome:
    """What a step reports when the phase asked for more than the sweep."""

    #: False where the step was left out because a gradient was not finite.
    applied: bool
    #: Euclidean norm of all gradients as given; None where nothing needed it.
    norm: float | None
    #: Number of non-finite elements of each gradient; None where nothing needed it.
    nonfinite: tuple[int, ...] | None
    #: One entry for each parameter; None where they were not asked for, or no step was made.
    statistics: tuple[Statistics, ...] | None
