"""The bounds of x in a minimisation: read in both of SciPy's forms, and kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds

from adamas.checks import check_number

__all__ = ["Limits"]

Vector = NDArray[np.float64]


class Limits(NamedTuple):
    """The bounds of x, infinite where there is none."""

    lower: Vector
    upper: Vector

    @classmethod
    def of(cls, bounds: Any, size: int) -> Limits:
        """Return the limits that ``bounds`` (SciPy's Bounds, or a pair for each element) sets."""
        if bounds is None:
            lower, upper = np.full(size, -np.inf), np.full(size, np.inf)
        elif isinstance(bounds, Bounds):
            lower, upper = (_spread(edge, size) for edge in (bounds.lb, bounds.ub))
        else:
            lower, upper = _edges(bounds, size)
        wrong = np.flatnonzero(~(lower <= upper))
        if wrong.size:
            i = wrong[0]
            raise ValueError(
                f"bounds[{i}] is ({lower[i]}, {upper[i]}), but the lower bound must be a number "
                "that does not exceed the upper."
            )
        return cls(lower, upper)

    def project(self, x: Vector) -> None:
        """Move ``x`` to the nearest point inside, in place."""
        np.clip(x, self.lower, self.upper, out=x)

    def slope(self, x: Vector, gradient: Vector) -> float:
        """Return the largest component of the gradient along which ``x`` could go down."""
        blocked = ((x <= self.lower) & (gradient > 0)) | ((x >= self.upper) & (gradient < 0))
        return float(np.max(np.abs(np.where(blocked, 0.0, gradient))))


def _edges(bounds: Any, size: int) -> tuple[Vector, Vector]:
    if isinstance(bounds, str) or not isinstance(bounds, Iterable):
        raise TypeError(
            f"bounds is {bounds!r}, but it must be SciPy's Bounds, or one pair (lower, upper) for "
            "each element of x."
        )
    pairs = list(bounds)
    if len(pairs) != size:
        raise ValueError(
            f"bounds has {len(pairs)} entries, but x0 has {size} elements. Give one pair "
            "(lower, upper) for each, with None where there is no bound."
        )
    edges = np.empty((2, size))
    for i, pair in enumerate(pairs):
        if isinstance(pair, str) or np.ndim(pair) != 1 or len(pair) != 2:
            raise ValueError(f"bounds[{i}] is {pair!r}, but it must be a pair (lower, upper).")
        for row, (edge, none) in enumerate(zip(pair, (-np.inf, np.inf), strict=True)):
            edges[row, i] = none if edge is None else check_number(f"bounds[{i}]", edge)
    return edges[0], edges[1]


def _spread(edge: Any, size: int) -> Vector:
    if np.asarray(edge).dtype.kind not in "buif":
        raise TypeError(
            f"bounds has {edge!r}, but it must hold real numbers: infinite ones where there is no "
            "bound."
        )
    try:
        return np.array(np.broadcast_to(edge, size), dtype=np.float64)
    except ValueError:
        raise ValueError(
            f"bounds has {np.size(edge)} elements, but x0 has {size}. Give one bound for each "
            "element, or one for all."
        ) from None
