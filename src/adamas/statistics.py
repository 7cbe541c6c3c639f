"""The sums taken on the way: exact, and rounded once.

Every element is squared exactly, all squares are added exactly, and the total is rounded once, to
53 bits: to what ``math.fsum`` returns of exact squares, whatever its exponent. A norm is the root
of that. So it depends on the values alone: not on processor, threads or device, nor on the order,
layout or cuts of tensors. ``adamas.digits`` has the form in which such sums are kept and sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from adamas.digits import WIDTH, Row, carried, of_squares
from adamas.digits import norm as norm_of_row

__all__ = [
    "NONE_LEFT",
    "NOT_TAKEN",
    "TILE",
    "OfPart",
    "OfParts",
    "Outcome",
    "Statistics",
    "norm",
    "row_of",
    "values_of",
]

#: Elements that the native engine steps together.
TILE = 1024

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


def row_of(arrays: Iterable[NDArray[Any]]) -> Row:
    """Return the row of the squares of all elements of all arrays."""
    row = np.zeros(WIDTH, np.int64)
    for array in arrays:
        row = carried(row + of_squares(array))
    return row


def norm(arrays: Iterable[NDArray[Any]]) -> float:
    """Return the Euclidean norm of all elements of all arrays, taken as one vector."""
    return norm_of_row(row_of(arrays))


_FIELDS = tuple(field.name for field in fields(Statistics))


@dataclass(frozen=True)
class OfPart(Statistics):
    """The statistics of a part of a tensor, with what is needed to make those of the whole."""

    #: Of gradient, parameter and update, rows of digits: int64[3, WIDTH].
    sums: Any = field(compare=False, repr=False)

    @property
    def alone(self) -> Statistics:
        """The statistics of this part."""
        return Statistics(**self.values)

    @property
    def values(self) -> dict[str, Any]:
        """The same by name."""
        return {name: value for name, value in vars(self).items() if name != "sums"}


class OfParts(Sequence[OfPart]):
    """The statistics of several parts as an engine reports them: made when they are looked at."""

    __slots__ = ("_digits", "_rows")

    def __init__(self, rows: Sequence[tuple[Any, ...]], digits: bytes) -> None:
        """Keep the fields of ``Statistics`` of each part, and its rows as bytes."""
        self._rows, self._digits = rows, digits

    @property
    def values(self) -> list[dict[str, Any]]:
        """Those of each part by name, without sums."""
        return [dict(zip(_FIELDS, own, strict=True)) for own in self._rows]

    @property
    def sums(self) -> NDArray[np.int64]:
        """The sums of all: int64[len, 3, WIDTH]."""
        return np.frombuffer(self._digits, np.int64).reshape(-1, 3, WIDTH)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> OfPart: ...
    @overload
    def __getitem__(self, index: slice) -> list[OfPart]: ...
    def __getitem__(self, index: int | slice) -> OfPart | list[OfPart]:
        """Return one of them, or some."""
        if isinstance(index, slice):
            return [*self][index]
        return OfPart(*self._rows[index], sums=self.sums[index])

    def __iter__(self) -> Iterator[OfPart]:
        """Yield them."""
        for own, sums in zip(self._rows, self.sums, strict=True):
            yield OfPart(*own, sums=sums)

    def __eq__(self, other: object) -> bool:
        """Return whether statistics are the same, one by one."""
        return [*self] == [*other] if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


def values_of(parts: Sequence[OfPart]) -> list[dict[str, Any]]:
    """Return statistics by name, without sums."""
    return parts.values if isinstance(parts, OfParts) else [part.values for part in parts]


@dataclass(frozen=True)
class Outcome:
    """What a step reports when the phase asked for more than the sweep."""

    #: False where the step was left out because a gradient was not finite, or as a ``spike``.
    applied: bool
    #: Euclidean norm of all gradients as given; None where nothing needed it.
    norm: float | None
    #: Number of non-finite elements of each gradient; None where nothing needed it.
    nonfinite: tuple[int, ...] | None
    #: One entry for each parameter; None where they were not asked for, or no step was made.
    statistics: Sequence[Statistics] | None
    #: Whether it was left out because the norm leaps: ``adamas.spikes``.
    spike: bool = False
