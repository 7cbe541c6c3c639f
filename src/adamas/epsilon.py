"""How far ε reaches: elements whose √v̂ is below it.

There the step is no longer that of Adam: it shrinks with the gradient, as that of momentum does.
Where ε stands inside the root (``eps_place="inside"``, ``eps_root``), v̂ itself is compared with it.
Either is a bound on v as it is stored, so that nothing is decoded but the bound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.codecs import BLOCK, Codes, decode
from adamas.coefficients import Coefficients
from adamas.engines import native
from adamas.state import State

__all__ = ["AT_ONCE", "Stored", "code_bounds", "counts_below", "least", "shares_below", "v_bound"]

#: Elements that are compared at a time; whole blocks.
AT_ONCE = 1 << 16

#: The root in the numbers is rounded: with this what is at ε exactly is not below it. It is less
#: than from one number of float32 to the next.
_NEXT = 1 - 2.0**-50

#: The bits of a header that belong to v.
_OF_SQUARES = np.uint16(0x0FFF)


def v_bound(numbers: Coefficients) -> float:
    """Return what v is below where √v̂ < ε, with the numbers of the last step.

    It is 0 at a step that divides by nothing (``rectify``).
    """
    if numbers.root == 0.0:
        return 0.0
    outside = numbers.eps / numbers.root
    return max(outside * outside * _NEXT, numbers.inner)


@functools.lru_cache(maxsize=256)
def least(bound: float, dtype: Any) -> Any:
    """Return the smallest number of ``dtype`` that is not below ``bound``, in that dtype."""
    with np.errstate(over="ignore"):
        found = np.dtype(dtype).type(bound)
    return found if float(found) >= bound else np.nextafter(found, found.dtype.type(math.inf))


def code_bounds(bound: float, headers: NDArray[np.uint16]) -> NDArray[np.int16]:
    """Return for each header of "8bit" how many codes of v stand for numbers below ``bound``."""
    own, places = np.unique(headers & _OF_SQUARES, return_inverse=True)
    codes = np.tile(np.arange(256, dtype=np.uint8), len(own))
    _, v = decode(("float32", "8bit"), Codes(None, codes, np.repeat(own, 256 // BLOCK)), 0)
    counts = np.count_nonzero(v.reshape(-1, 256) < least(bound, np.float32), axis=1)
    return counts.astype(np.int16)[places.reshape(headers.shape)]


class Stored(NamedTuple):
    """A v as it is stored."""

    #: C-contiguous; None where none is kept.
    square: NDArray[Any] | None
    form: str
    #: Of codes.
    header: NDArray[np.uint16] | None


def _count_below(
    square: NDArray[Any], form: str, header: NDArray[np.uint16] | None, bound: float
) -> int:
    flat = square.reshape(-1)
    if form != "8bit":  # bits of bfloat16: the upper half of those of float32
        limit = -(-int(least(bound, np.float32).view(np.uint32)) >> 16)
        return sum(int(np.count_nonzero(part < limit)) for part in _parts(flat))
    assert header is not None
    limits = code_bounds(bound, header)
    found = 0
    for first, part in zip(range(0, flat.size, AT_ONCE), _parts(flat), strict=True):
        own = limits[first // BLOCK : (first + AT_ONCE) // BLOCK]
        found += int(np.count_nonzero(part < np.repeat(own, BLOCK)[: part.size]))
    return found


def shares_below(states: Sequence[State], bounds: Sequence[float]) -> list[float | None]:
    """Return the fraction of elements of each v that are below its bound; None where none is kept.

    Those that are numbers are looked through in one call.
    """
    stored = [
        Stored(state.square, state.forms[1], state.header)
        if state.largest_square is None
        else Stored(state.largest_square, "float32", None)
        for state in states
    ]
    counts = counts_below(stored, bounds)
    return [
        None if each.square is None else count / each.square.size if each.square.size else 0.0
        for each, count in zip(stored, counts, strict=True)
    ]


def counts_below(stored: Sequence[Stored], bounds: Sequence[float]) -> list[int]:
    """Return how many elements of each v are below its bound; 0 where none is kept."""
    numbers = [each.square for each in stored if each.square is not None if each.form == "float32"]
    if len(numbers) == len(stored):  # as nearly always
        return native.counts_below(numbers, [*bounds])
    found = [0] * len(stored)
    for place, (each, bound) in enumerate(zip(stored, bounds, strict=True)):
        if each.square is not None and each.form == "float32":
            (found[place],) = native.counts_below([each.square], [bound])
        elif each.square is not None:
            found[place] = _count_below(each.square, each.form, each.header, bound)
    return found


def _parts(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for first in range(0, flat.size, AT_ONCE):
        yield flat[first : first + AT_ONCE]
