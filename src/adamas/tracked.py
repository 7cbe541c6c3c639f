"""Which elements of NumPy's arrays steps have changed: marks, and since when."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from operator import setitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import marks
from adamas.assignments import Assignment, values
from adamas.changes import Chain, Change
from adamas.engines import native

__all__ = ["Tracked"]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Tracked:
    """Marks of all parameters of a run; another takes their place where arrays become others."""

    #: Of each parameter, in the order of the groups: ``adamas.marks``.
    marks: tuple[NDArray[np.int32], ...]
    #: How many steps there were when marks were last cleared, alone in a list: it changes in place.
    cleared_at: list[int]
    #: Where those stand who follow the changes.
    chain: Chain = field(default_factory=Chain)

    @classmethod
    def of(cls, parameters: Sequence[Array]) -> Tracked:
        """Return marks of parameters of which nothing has changed."""
        return cls(tuple(marks.none(p.size) for p in parameters), [0])

    def copied(self) -> Tracked:
        """Return the same marks in memory of their own."""
        return Tracked(
            tuple(each.copy() for each in self.marks), [*self.cleared_at], copy(self.chain)
        )

    def loaded(self, parameters: Sequence[Array], steps: int) -> Tracked:
        """Return marks after a load of a run of so many steps: everything has changed."""
        whole = tuple(marks.every(p.size) for p in parameters)
        return replace(self, marks=whole, cleared_at=[steps])

    def moved(self, parameters: Sequence[Array], places: Collection[int]) -> Tracked:
        """Return marks where the parameters at ``places`` are in other memory: all has changed."""
        pairs = enumerate(zip(self.marks, parameters, strict=True))
        return replace(
            self,
            marks=tuple(marks.every(p.size) if i in places else own for i, (own, p) in pairs),
        )

    def first_step(self, steps: int) -> int:
        """Return the number of the first step whose changes are marked, after so many."""
        return min(self.cleared_at[0], steps) + 1

    def is_whole(self, parameters: Sequence[Array]) -> bool:
        """Whether all elements of all parameters are marked."""
        pairs = zip(self.marks, parameters, strict=True)
        return all(native.marked_count(own, p.size) == p.size for own, p in pairs)

    def change(self, place: int, name: str, parameter: Array) -> Change | None:
        """Return what has changed of a parameter; None where nothing has."""
        found = native.marked(self.marks[place], parameter.size)
        if not found.size:
            return None
        return Change(name, found, parameter.reshape(-1)[found], parameter.shape)

    def clearing(self, steps: int) -> list[Assignment]:
        """Return what starts anew after so many steps."""
        return [
            *(values(own, np.zeros_like(own)) for own in self.marks),
            partial(setitem, self.cleared_at, 0, steps),
        ]
