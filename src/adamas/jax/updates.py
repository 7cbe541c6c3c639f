"""What updates are clipped by (``clip_update``): exact sums of squares, in integers of 32 bits.

A square is a whole number of units, whose bits are limbs of 16 at fixed places: ``adamas.digits``
with shorter digits. Elements are taken bin by bin, of 16 exponents each, since those of a bin have
few limbs; most arrays fill two or three bins. Whole numbers add up in any order, so a sum does not
depend on how an array is sharded over devices. The rest is binary64, as in ``adamas.coefficients``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from adamas.jax import binary64
from adamas.jax.binary64 import Binary64
from adamas.jax.operands import Operand
from adamas.jax.words import Word

__all__ = ["Factors", "Measured", "factors", "measured"]

Array = Any

_U = np.uint32
_LIMB = 16
_MASK = _U((1 << _LIMB) - 1)
#: Exponents that a bin has, as a power of two.
_BIN = 4
#: Limbs of which a total is rounded.
_KEPT = 6
#: Limbs that there is room for, of squares of float32 and of float64.
_ROOM_OF_32, _ROOM_OF_64 = 44, 272


class Measured(NamedTuple):
    """The squares of one array's update: their sum, and what has no square; the sum in floats."""

    digits: Word
    is_nan: Array
    is_infinite: Array
    mean: Array


class Factors(NamedTuple):
    """What the numbers of arrays are multiplied by: in binary64, unless it is NaN or 0."""

    size: Binary64
    is_nan: Array
    is_zero: Array
    #: The same in floats, for derivatives alone.
    formula: Array


class _Apart(NamedTuple):
    """Absolute values as whole numbers times 2^(place - what 0 stands for)."""

    limbs: list[Word]
    place: Word
    is_infinite: Array
    is_nan: Array


def measured(update: Operand) -> Measured:
    """Return what an array is clipped by; the square of a complex number counts as one."""
    apart = [_taken_apart(lax.stop_gradient(part)) for part in update.parts]
    is_nan, is_infinite = (
        functools.reduce(jnp.logical_or, (jnp.any(each) for each in found))
        for found in (
            [each.is_nan for each in apart],
            [each.is_infinite for each in apart],
        )
    )
    squares = functools.reduce(jnp.add, (part * part for part in update.parts))
    mean = jnp.sum(squares) / max(update.parts[0].size, 1)
    return Measured(_digits(apart), is_nan, is_infinite & ~is_nan, mean)


def factors(found: Sequence[Measured], counts: Sequence[int], bound: Any, root: Any) -> Factors:
    """Return ``adamas.coefficients.update_factor`` of arrays that are computed with alike.

    ``counts`` are their elements, ``bound`` is a float or an array without axes, ``root`` that of
    the rule.
    """
    digits, is_nan, is_infinite, mean = (jnp.stack(each) for each in zip(*found, strict=True))
    unit = 298 if digits.shape[1] < _ROOM_OF_64 else 2148
    norm = binary64.sqrt(_rounded(digits, unit))
    roots = binary64.stack(binary64.from_float(math.sqrt(max(each, 1))) for each in counts)
    is_known = isinstance(bound, float)
    limit = binary64.from_float(bound) if is_known else binary64.from_array(bound)
    limit, one = (
        Binary64(
            *(jnp.full_like(of, jnp.asarray(word)) for word, of in zip(each, roots, strict=True))
        )
        for each in (limit, binary64.from_float(1.0))
    )
    size = binary64.divide(norm, roots)
    is_clipped = (jnp.asarray(root) != 0) & (np.array(counts) > 0)
    is_long = is_clipped & ~binary64.at_least(limit, size)
    factor = binary64.select(is_long, binary64.divide(limit, size), one)
    formula = bound / jnp.sqrt(jnp.where(is_long, mean, 1))
    return Factors(
        factor,
        is_clipped & is_nan,
        is_clipped & is_infinite,
        jnp.where(is_long, formula, 1),
    )


# -- one element ---------------------------------------------------------------------------------


def _taken_apart(x: Array) -> _Apart:
    if x.dtype == np.float64:
        pair = lax.bitcast_convert_type(x, jnp.uint32)  # the low word first
        low, high = pair[..., 0], pair[..., 1] & _U(0x7FFFFFFF)
        field, last, width = high >> _U(20), _U(0x7FF), 20
    else:
        low, high = None, lax.bitcast_convert_type(x, jnp.uint32) & _U(0x7FFFFFFF)
        field, last, width = high >> _U(23), _U(0xFF), 23
    fraction = high & _U((1 << width) - 1)
    is_special = field == last
    has_fraction = fraction != 0 if low is None else (fraction | low) != 0
    top = jnp.where(field > 0, fraction | _U(1 << width), fraction)
    words = [top] if low is None else [low, top]
    words = [jnp.where(is_special, _U(0), word) for word in words]
    limbs = [limb for word in words for limb in (word & _MASK, word >> _U(_LIMB))]
    place = jnp.where(is_special, _U(0), jnp.maximum(field, _U(1)) - _U(1))
    return _Apart(limbs, place, is_special & ~has_fraction, is_special & has_fraction)


def _square(limbs: list[Word], by: Word) -> list[Word]:
    """Return the limbs of the square of a number that is shifted by 0 to 15 bits."""
    zero = jnp.zeros_like(limbs[0])
    pairs = zip([*limbs, zero], [zero, *limbs], strict=True)
    x = [(own << by | below >> (_U(_LIMB) - by)) & _MASK for own, below in pairs]
    columns: list[Any] = [_U(0)] * (2 * len(x))
    for i, one in enumerate(x):
        for j, other in enumerate(x[i:], i):
            product = one * other
            times = _U(1 if i == j else 2)
            columns[i + j] += times * (product & _MASK)
            columns[i + j + 1] += times * (product >> _U(_LIMB))
    return _carried(columns[: 2 * len(x) - 1])[:-1]  # the last one carries nothing


def _carried(columns: Sequence[Word]) -> list[Word]:
    """Return limbs below 2^16 of equal value, one more than there are columns."""
    found: list[Word] = []
    carry: Any = _U(0)
    for column in columns:
        total = column + carry
        found.append(total & _MASK)
        carry = total >> _U(_LIMB)
    return [*found, carry]


# -- all elements --------------------------------------------------------------------------------


def _digits(apart: Sequence[_Apart]) -> Word:
    """Return the limbs of the sum of all squares; they are to be carried."""
    room = _ROOM_OF_32 if len(apart[0].limbs) == 2 else _ROOM_OF_64
    return functools.reduce(_added_to, apart, jnp.zeros(room, jnp.uint32))


def _added_to(digits: Word, apart: _Apart) -> Word:
    """Return digits with all squares added to them."""
    limbs, place = apart.limbs, apart.place
    is_there = limbs[0] | limbs[1]
    for limb in limbs[2:]:
        is_there = is_there | limb
    bins = (place >> _U(_BIN)).astype(jnp.int32)
    first = jnp.min(jnp.where(is_there != 0, bins, 128), initial=128)
    last = jnp.max(jnp.where(is_there != 0, bins, -1), initial=-1)

    def more(carried: tuple[Array, Word]) -> Array:
        return carried[0] <= last

    def one_bin(carried: tuple[Array, Word]) -> tuple[Array, Word]:
        number, digits = carried
        own = [jnp.where(bins == number, limb, _U(0)) for limb in limbs]
        sums = jnp.stack(_summed(_square(own, place & _U((1 << _BIN) - 1))))
        at = 2 * number
        before = lax.dynamic_slice(digits, (at,), sums.shape)
        return number + 1, lax.dynamic_update_slice(digits, before + sums, (at,))

    digits = digits + (last - last).astype(jnp.uint32)  # on the mesh where the array is
    return lax.while_loop(more, one_bin, (first, digits))[1]


def _summed(limbs: list[Word]) -> list[Word]:
    """Return the limbs of the sum of all elements: as many as at most 2^48 elements take.

    Axes are left as they are, whoever has a part of them.
    """
    count = len(limbs) + 3
    while limbs[0].ndim:
        shape = limbs[0].shape
        axes = 1
        while axes < len(shape) and math.prod(shape[-axes - 1 :]) <= 1 << _LIMB:
            axes += 1
        # So many bits of a limb, of so many numbers, add up in 32 bits.
        width = min(_LIMB, 32 - (math.prod(shape[-axes:]) - 1).bit_length())
        shifts = range(0, _LIMB, width)
        pieces = [limb >> _U(shift) & _U((1 << width) - 1) for limb in limbs for shift in shifts]
        along = tuple(range(len(shape) - axes, len(shape)))
        sums = _sums(pieces, along)
        columns: list[Any] = [_U(0)] * (len(limbs) + 2)
        for k, total in enumerate(sums):
            i, shift = k // len(shifts), shifts[k % len(shifts)]
            columns[i] += total << _U(shift) & _MASK
            columns[i + 1] += total >> _U(_LIMB - shift) & _MASK
            if shift:
                columns[i + 2] += total >> _U(32 - shift)
        limbs = _carried(columns)[:count]
    return limbs + [jnp.zeros_like(limbs[0])] * (count - len(limbs))


def _sums(arrays: list[Word], along: tuple[int, ...]) -> Sequence[Word]:
    """Return the sums of arrays that are made of the same ones."""
    mesh = getattr(getattr(jax.typeof(arrays[0]), "sharding", None), "mesh", None)
    if mesh is not None and mesh.size > 1:  # whose axes a reduction of several does not know
        return [jnp.sum(each, along, dtype=jnp.uint32) for each in arrays]
    # At once: what they are made of would be computed anew for each.
    return lax.reduce(tuple(arrays), (_U(0),) * len(arrays), _added, along)


def _added(a: tuple[Word, ...], b: tuple[Word, ...]) -> tuple[Word, ...]:
    return tuple(map(jnp.add, a, b))


def _rounded(digits: Word, unit: int) -> Binary64:
    """Return rows of limbs in units of 2^-unit, each as one number of 53 bits."""

    def carried(carry: Word, digit: Word) -> tuple[Word, Word]:
        total = digit + carry
        return total >> _U(_LIMB), total & _MASK

    start = jnp.zeros(digits.shape[0], jnp.uint32)
    digits = lax.scan(carried, start, digits.T)[1].T
    index = jnp.arange(digits.shape[1])
    place = jnp.maximum(jnp.max(jnp.where(digits != 0, index, -1), axis=1, keepdims=True), 0)
    below = jnp.pad(digits, [(0, 0), (_KEPT - 1, 0)])
    kept = jnp.take_along_axis(below, place + np.arange(_KEPT), axis=1).T
    high, low, rest = (kept[i] << _U(_LIMB) | kept[i - 1] for i in (5, 3, 1))
    lost = jnp.any((digits != 0) & (index < place - (_KEPT - 1)), axis=1)
    exponent = (_LIMB * place[:, 0] + (_LIMB - 1) - unit).astype(jnp.int32)
    return binary64.from_bits(exponent, (high, low, rest), lost)
