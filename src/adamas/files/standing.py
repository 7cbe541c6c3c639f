"""Where the tensors that changes are put into stand: at which step of which run.

It is remembered by the memory of a tensor, since a ``state_dict()`` gives another tensor each time,
and forgotten with it.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from functools import partial
from operator import setitem
from typing import Any, NamedTuple

from adamas.assignments import Assignment

__all__ = ["Memory", "Standing", "known", "remembering"]


class Standing(NamedTuple):
    """Where a tensor stands."""

    #: Of the last step whose changes it has.
    step: int
    #: What it follows on (``adamas.changes.Chain``), by the rank of the process that told it.
    places: Mapping[int, str]


class Memory(NamedTuple):
    """What a tensor is remembered by."""

    #: The array or the storage that owns the memory.
    owner: Any
    #: Where the tensor lies in it.
    place: Hashable
    version: int


class _Known(NamedTuple):
    standing: Standing
    #: Of the tensor when changes had been put in. With another one others wrote to it, or it is
    #: another tensor of the same memory, whose writes are counted apart.
    version: int


_Standings = dict[Hashable, _Known]
#: By the id of the owner, which is in use as long as the reference lives.
_standings: dict[int, tuple[weakref.ref[Any], _Standings]] = {}


def known(memory: Memory) -> Standing | None:
    """Return where a tensor stands; None where nobody has put changes in, or others wrote since."""
    of_owner = _of(memory.owner)
    found = None if of_owner is None else of_owner.get(memory.place)
    return None if found is None or memory.version != found.version else found.standing


def remembering(memory: Memory, standing: Standing | None) -> Assignment:
    """Return the assignment that remembers where a tensor stands, or forgets it."""
    of_owner = _of(memory.owner)
    if of_owner is None:
        of_owner = {}
        number = id(memory.owner)
        _standings[number] = weakref.ref(memory.owner, partial(_forget, number)), of_owner
    if standing is None:
        return partial(of_owner.pop, memory.place, None)
    return partial(setitem, of_owner, memory.place, _Known(standing, memory.version))


def _of(owner: Any) -> _Standings | None:
    reference, of_owner = _standings.get(id(owner), (None, None))
    return of_owner if reference is not None and reference() is owner else None


def _forget(number: int, reference: weakref.ref[Any]) -> None:
    if _standings.get(number, (None,))[0] is reference:
        del _standings[number]
