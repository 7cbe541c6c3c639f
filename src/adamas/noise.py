"""The noise of a function, found by looking at it; and steps of finite differences that allow it.

A quotient carries the noise of its values divided by its step, so a step that suits exact functions
drowns in noise. ``level`` tells the noise from a row of values (the difference tables of Moré &
Wild 2011, "Estimating computational noise"), and ``look`` how wide a step has to be for each
element of x (Moré & Wild 2012, "Estimating derivatives of noisy functions").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Look", "Record", "level", "look"]

Vector = NDArray[np.float64]
#: Gives the value at each of some points.
Values = Callable[[Sequence[Vector]], Sequence[float]]

#: Values of a row, how far they lie from each other in units of max(1, |x|), and how much further
#: in the next row where most are equal, as those of a staircase are.
_ROW, _SPACING, _WIDER = 25, 1e-3, 10.0
#: Standard deviations from which a difference is not due to noise, which goes so far once in a
#: million.
_CLEAR = 5.0
#: How often what is not seen is looked at again at the widest step, in one round; and how many
#: rounds a thorough look makes.
_AGAIN, _ROUNDS = 16, 4
#: The step that balances noise and curvature, 8^(1/4) √(noise / |f''|).
_BALANCE = 8.0**0.25
#: Of max(1, |x|): no step is narrower; and each is so many times as wide as the one before.
_NARROWEST, _FACTOR = 1e-8, 4.0


class Look(NamedTuple):
    """What was seen around a point."""

    #: Standard deviation of a single value.
    noise: float
    #: The step for each element, of the size where curvature begins to stand out of the noise.
    steps: Vector
    #: The size of the second derivative by each element; 0 where it does not stand out.
    curvature: Vector
    #: Whether anything that an element does to the value stands out of the noise.
    seen: NDArray[np.bool_]


def level(values: Vector) -> float:
    """Return the standard deviation of the noise in values at points at equal distances in a row.

    The differences of order k of a smooth function vanish as k grows, those of noise do not.
    """
    table, found = values, list[float]()
    for order in range(1, min(9, len(values) - 1)):
        table = np.diff(table)
        # (k!)² / (2k)! is what takes differences of independent values back to their variance.
        found.append(math.sqrt(float(np.mean(table**2)) / math.comb(2 * order, order)))
    found = found[2:] or found  # what slope and curvature add is gone from the third order on
    for some in zip(found, found[1:], found[2:], strict=False):
        if max(some) <= 2.0 * min(some):
            return some[0]
    return min(found, default=0.0)


def look(
    values_at: Values,
    x: Vector,
    lower: Vector,
    upper: Vector,
    last: Look | None = None,
    *,
    thorough: bool = False,
) -> Look:
    """Look around ``x``, inside the bounds; ``last`` is what was seen before, to begin with.

    Calls ``values_at`` for some 25 points in a row, and for some ten beside x in each element; for
    48 more, or 192 where the look is to be ``thorough``, in each that does not stand out.
    """
    unit = np.maximum(1.0, np.abs(x))
    noise = _noise(values_at, x, unit, lower, upper)
    widest = np.minimum(unit, (upper - lower) / 2.0)
    start = widest / _FACTOR**2 if last is None else np.minimum(2.0 * last.steps, widest)
    rounds = _ROUNDS if thorough else 1
    return _Search(values_at, x, lower, upper, noise, unit, widest).found(start, rounds)


def _noise(values_at: Values, x: Vector, unit: Vector, lower: Vector, upper: Vector) -> float:
    row: Vector = np.zeros(1)
    spacing = _SPACING / math.sqrt(x.size)
    for _ in range(3):
        stride = np.minimum(unit * spacing, (upper - lower) / _ROW)
        stride = np.where(x + _ROW * stride > upper, -stride, stride)
        points = [np.clip(x + k * stride, lower, upper) for k in range(_ROW)]
        row = np.asarray(values_at(points))
        row = row[np.isfinite(row)]
        if 2 * np.unique(row).size > row.size:
            break
        spacing *= _WIDER
    if row.size < 3:
        return math.nan
    # Rounding is noise, too.
    return max(level(row), float(np.spacing(np.max(np.abs(row)))))


class _Search:
    """The search for the narrowest step, by each element, at which curvature is no chance."""

    def __init__(
        self,
        values_at: Values,
        x: Vector,
        lower: Vector,
        upper: Vector,
        noise: float,
        unit: Vector,
        widest: Vector,
    ) -> None:
        self._values_at, self._x, self._lower, self._upper = values_at, x, lower, upper
        self._noise, self._narrowest, self._widest = noise, _NARROWEST * unit, widest
        self._curvature = np.zeros(x.size)
        self._seen = np.zeros(x.size, dtype=bool)

    def found(self, start: Vector, rounds: int) -> Look:
        """Return what is seen, beginning at the steps ``start``."""
        step = np.maximum(start, np.minimum(self._narrowest, self._widest))
        size = step.size
        ok, failed = np.full(size, np.inf), np.zeros(size)
        active = np.ones(size, dtype=bool)
        while active.any():
            index = np.flatnonzero(active)
            odd, even = self._differences(index, step[index])
            self._seen[index] |= np.abs(odd) > _CLEAR * math.sqrt(2.0) * self._noise
            bends = np.abs(even) > _CLEAR * math.sqrt(6.0) * self._noise
            for i, is_clear, difference in zip(index, bends, even, strict=True):
                if is_clear:
                    ok[i], self._curvature[i] = step[i], abs(difference) / step[i] ** 2
                    self._seen[i] = True
                    step[i] /= _FACTOR
                else:
                    failed[i] = step[i]
                    step[i] = min(_FACTOR * step[i], self._widest[i])
            active &= (step >= self._narrowest) & (step > failed) & (step < ok)
        self._look_again(np.flatnonzero(np.isinf(ok)), rounds)
        with np.errstate(divide="ignore"):
            balanced = _BALANCE * np.sqrt(self._noise / self._curvature)
        steps = np.clip(balanced, np.minimum(self._narrowest, self._widest), self._widest)
        return Look(self._noise, steps, self._curvature, self._seen)

    def _look_again(self, index: NDArray[Any], rounds: int) -> None:
        """Look at the elements of ``index`` at the widest step, until means are clear."""
        odd, even = np.zeros((2, self._x.size))
        # Never twice at one point, which is nothing new where noise is a function of x.
        shares = 1.0 - np.arange(_AGAIN * rounds) / (4.0 * _AGAIN * rounds)
        for count, share in enumerate(shares, start=1):
            if not index.size:
                return
            differences = self._differences(index, share * self._widest[index])
            odd[index] += differences[0]
            even[index] += differences[1]
            if count % _AGAIN:
                continue
            clear = _CLEAR * self._noise * math.sqrt(count)
            bends = np.abs(even[index]) > clear * math.sqrt(6.0)
            self._seen[index] |= bends | (np.abs(odd[index]) > clear * math.sqrt(2.0))
            squares = float(np.sum(shares[:count] ** 2)) * self._widest[index] ** 2
            self._curvature[index] = np.where(bends, np.abs(even[index]) / squares, 0.0)
            index = index[~bends]

    def _differences(self, index: NDArray[Any], step: Vector) -> tuple[Vector, Vector]:
        """Return f(x+h) - f(x-h) and f(x+h) - 2 f(x) + f(x-h), where these are finite, else 0."""
        points: list[Vector] = []
        for i, h in zip(index, step, strict=True):
            # Within the bounds, however near x is to them.
            centre = min(max(self._x[i], self._lower[i] + h), self._upper[i] - h)
            for place in (centre - h, centre, centre + h):
                point = self._x.copy()
                point[i] = min(max(place, self._lower[i]), self._upper[i])
                points.append(point)
        low, middle, high = np.reshape(self._values_at(points), (-1, 3)).T
        with np.errstate(invalid="ignore"):
            odd, even = high - low, high - 2.0 * middle + low
        finite = np.isfinite(even)
        return np.where(finite, odd, 0.0), np.where(finite, even, 0.0)


class Record:
    """The quotients of a run: what they show, and what their mean was in the last tenth."""

    def __init__(self, size: int, steps: int) -> None:
        """Begin a run of ``steps`` steps on ``size`` elements."""
        self._keep = max(0.0, 1.0 - 10.0 / max(1, steps))
        self._window = max(10, steps // 10)
        self._weight = 0.0
        self._mean = np.zeros(size)
        self._sums = np.zeros((2, size))
        self._count = 0
        #: Whether a quotient by each element stood out of its own noise for a tenth of the run.
        self.seen = np.zeros(size, dtype=bool)

    @property
    def mean(self) -> Vector:
        """The mean of the quotients over the last tenth of the run."""
        return self._mean / (self._weight or 1.0)

    def add(self, quotients: Vector) -> None:
        """Take in the quotients of one step."""
        self._mean = self._keep * self._mean + (1.0 - self._keep) * quotients
        self._weight = self._keep * self._weight + (1.0 - self._keep)
        self._sums += quotients, quotients**2
        self._count += 1
        if self._count == self._window:
            mean, square = self._sums / self._count
            error = np.sqrt(np.maximum(square - mean**2, 0.0) / self._count)
            self.seen |= np.abs(mean) > _CLEAR * error
            self._sums, self._count = np.zeros_like(self._sums), 0
