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

import jax.numpy as jnp
import numpy as np
from jax import lax

from adamas.jax import binary64
from adamas.jax.binary64 import Binary64
from adamas.jax.calls import has_mesh, held, together
from adamas.jax.operands import Operand
from adamas.jax.words import Word

__all__ = ["Factors", "Measured", "factors", "measured"]

Array = Any

_U = np.uint32
_LIMB = 16
_WORD = 0xFFFFFFFF
_MASK = _U((1 << _LIMB) - 1)
#: Exponents that a bin has, as a power of two.
_BIN = 4
#: Bits of a column of limbs that are not carried.
_COLUMN = 21
#: Elements whose columns add up in 32 bits.
_MOST_AT_ONCE = 1 << (32 - _COLUMN)
#: Elements of a row that long axes are parted into, at most.
_ROW = 1 << 10
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


def measured(update: Operand) -> Measured:
    """Return what an array is clipped by; the square of a complex number counts as one."""
    parts = held(update.parts)  # each of the sums would compute it anew
    words = [_words(lax.stop_gradient(part)) for part in parts]
    limits = [_limits([_in_rows(word) for word in each]) for each in words]
    is_nan, is_infinite = (
        functools.reduce(jnp.logical_or, found)
        for found in (
            [each.is_nan for each in limits],
            [each.is_infinite for each in limits],
        )
    )
    squares = functools.reduce(jnp.add, (part * part for part in parts))
    mean = jnp.sum(squares) / max(parts[0].size, 1)
    room = _ROOM_OF_32 if len(words[0]) == 1 else _ROOM_OF_64
    digits = jnp.zeros(room, jnp.uint32)
    for each, own in zip(words, limits, strict=True):
        digits = _added_to(digits, each, own)
    return Measured(digits, is_nan, is_infinite & ~is_nan, mean)


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


class _Apart(NamedTuple):
    """Absolute values as whole numbers times 2^(place - what 0 stands for); 0 for special ones."""

    limbs: list[Word]
    place: Word


def _words(x: Array) -> tuple[Word, ...]:
    """Return the bits of absolute values, the high word last."""
    if x.dtype == np.float64:
        pair = lax.bitcast_convert_type(x, jnp.uint32)  # the low word first
        return pair[..., 0], pair[..., 1] & _U(0x7FFFFFFF)
    return (lax.bitcast_convert_type(x, jnp.uint32) & _U(0x7FFFFFFF),)


def _taken_apart(words: Sequence[Word]) -> _Apart:
    *low, high = words
    width, last = (20, 0x7FF) if low else (23, 0xFF)
    field = high >> _U(width)
    fraction = high & _U((1 << width) - 1)
    top = jnp.where(field > 0, fraction | _U(1 << width), fraction)
    is_special = field == _U(last)
    kept = [jnp.where(is_special, _U(0), word) for word in (*low, top)]
    limbs = [limb for word in kept for limb in (word & _MASK, word >> _U(_LIMB))]
    return _Apart(limbs, jnp.where(is_special, _U(0), _place(field)))


def _place(field: Word) -> Word:
    """Return how far left of the smallest numbers those with this field of an exponent are."""
    return jnp.maximum(field, _U(1)) - _U(1)


def _square(limbs: list[Word], by: Word) -> list[Word]:
    """Return columns of limbs, to be carried, of the square of a number shifted by 0 to 15 bits.

    A column is below 2^20: it has at most ten halves of products.
    """
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
    return columns[: 2 * len(x) - 1]  # the last one is 0


# -- all elements --------------------------------------------------------------------------------


class _Limits(NamedTuple):
    """The least high word that is not 0, the greatest one, and whether there are special ones."""

    least: Array
    most: Array
    is_nan: Array
    is_infinite: Array


def _limits(words: Sequence[Word]) -> _Limits:
    """Return the limits of all elements."""
    *low, high = words
    infinite = _U(0x7FF00000 if low else 0x7F800000)
    is_there, has_more = high != 0, jnp.zeros_like(high, dtype=bool)
    if low:
        is_there, has_more = is_there | (low[0] != 0), low[0] != 0
    found = [
        jnp.where(is_there, high, _U(_WORD)),
        high,
        (high > infinite) | (high == infinite) & has_more,
        (high == infinite) & ~has_more,
    ]
    if has_mesh(high):  # whose axes a reduction of several does not know
        least, most, *special = found
        return _Limits(
            jnp.min(least, initial=_U(_WORD)),
            jnp.max(most, initial=_U(0)),
            *(jnp.any(each) for each in special),
        )
    starts = _U(_WORD), _U(0), np.False_, np.False_
    while (ndim := found[0].ndim) > 0:  # rows first
        found = lax.reduce(tuple(found), starts, _farther, (ndim - 1,))
    return _Limits(*found)


def _farther(a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
    return jnp.minimum(a[0], b[0]), jnp.maximum(a[1], b[1]), a[2] | b[2], a[3] | b[3]


def _added_to(digits: Word, words: Sequence[Word], limits: _Limits) -> Word:
    """Return digits with all squares added to them."""
    words = [_in_rows(word) for word in words]
    width = 20 if len(words) > 1 else 23
    first, last = (_place(each >> _U(width)) >> _U(_BIN) for each in limits[:2])

    def more(carried: tuple[Array, Word]) -> Array:
        return carried[0] <= last

    def one_bin(carried: tuple[Array, Word]) -> tuple[Array, Word]:
        number, digits = carried
        # Together, or what is made of the words would be kept in arrays of their size.
        number, own = together((number, words))
        limbs, place = _taken_apart(own)
        is_own = place >> _U(_BIN) == number
        own = [jnp.where(is_own, limb, _U(0)) for limb in limbs]
        sums = _summed(_square(own, place & _U((1 << _BIN) - 1)))
        at = (2 * number).astype(jnp.int32)
        before = lax.dynamic_slice(digits, (at,), sums.shape)
        return number + _U(1), lax.dynamic_update_slice(digits, before + sums, (at,))

    digits = digits + (last - last)  # on the mesh where the array is
    return lax.while_loop(more, one_bin, (first, digits))[1]


def _in_rows(x: Array) -> Array:
    """Return an array with a long last axis in rows, if that is easy."""
    length = x.shape[-1] if x.ndim else 1
    row = math.gcd(length, _ROW)
    if length <= _MOST_AT_ONCE or row < 32 or has_mesh(x):
        return x
    return x.reshape(*x.shape[:-1], length // row, row)


def _summed(columns: list[Word]) -> Word:
    """Return columns of limbs, below 2^21, of the sum of all elements: of at most 2^48.

    Axes are left as they are, whoever has a part of them.
    """
    most = len(columns) + 3
    found, shape = columns, columns[0].shape
    is_one = False  # array with the columns as its first axis
    while shape:
        axes = 1
        while axes < len(shape) and math.prod(shape[-axes - 1 :]) <= _MOST_AT_ONCE:
            axes += 1
        # So many bits of a column, of so many numbers, add up in 32 bits.
        width = 32 - (math.prod(shape[-axes:]) - 1).bit_length()
        shifts = range(0, _COLUMN, width)
        shape = shape[:-axes]
        if is_one:
            along = tuple(range(len(shape) + 1, len(shape) + 1 + axes))
            sums = [jnp.sum(each, along, dtype=jnp.uint32) for each in _pieces(found, shifts)]
        else:
            along = tuple(range(len(shape), len(shape) + axes))
            pieces = [_pieces(each, shifts) for each in found]
            flat = _sums([piece for each in pieces for piece in each], along)
            sums = [jnp.stack(flat[k :: len(shifts)]) for k in range(len(shifts))]
        found, is_one = _spread(sums, shifts, most), True
    return found if is_one else jnp.pad(jnp.stack(found), (0, 3))


def _pieces(x: Word, shifts: range) -> list[Word]:
    """Return numbers of so few bits each that they add up in 32."""
    if len(shifts) == 1:
        return [x]
    return [x >> _U(shift) & _U((1 << shifts.step) - 1) for shift in shifts]


def _spread(sums: list[Word], shifts: range, most: int) -> Word:
    """Return columns of small numbers, of equal value, for sums of pieces of columns."""
    columns: Any = _U(0)
    for total, shift in zip(sums, shifts, strict=True):
        at, by = divmod(shift, _LIMB)
        limbs = [total << _U(by) & _MASK, total >> _U(_LIMB - by) & _MASK]
        if by:
            limbs.append(total >> _U(2 * _LIMB - by))
        for k, limb in enumerate(limbs, at):
            columns = columns + jnp.pad(limb, [(k, 3 - k)] + [(0, 0)] * (limb.ndim - 1))
    return columns[:most]  # more are 0, as the value has no more bits


def _sums(arrays: list[Word], along: tuple[int, ...]) -> Sequence[Word]:
    """Return the sums of arrays that are made of the same ones."""
    if has_mesh(arrays[0]):  # whose axes a reduction of several does not know
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

    start = digits[:, 0] - digits[:, 0]  # where digits are, within shard_map
    digits = lax.scan(carried, start, digits.T)[1].T
    index = jnp.arange(digits.shape[1])[None]
    place = jnp.maximum(jnp.max(jnp.where(digits != 0, index, -1), axis=1, keepdims=True), 0)
    below = jnp.pad(digits, [(0, 0), (_KEPT - 1, 0)])
    kept = jnp.take_along_axis(below, place + np.arange(_KEPT)[None], axis=1).T
    high, low, rest = (kept[i] << _U(_LIMB) | kept[i - 1] for i in (5, 3, 1))
    lost = jnp.any((digits != 0) & (index < place - (_KEPT - 1)), axis=1)
    exponent = (_LIMB * place[:, 0] + (_LIMB - 1) - unit).astype(jnp.int32)
    return binary64.from_bits(exponent, (high, low, rest), lost)
