"""Binary64 arithmetic of numbers that are not negative, in 32-bit integers.

The numbers of a step are computed in float64 and rounded once (:mod:`adamas.coefficients`), but
JAX has no float64 unless it is switched on, some devices have none at all, and XLA rewrites what
it has. Integers it leaves alone. So here is what IEEE 754 says of ``+ − × ÷ √``, rounded to
nearest, ties to even, for a few numbers at each step. All functions work element-wise, on arrays
of one shape.

There is no limit to the exponent: nothing overflows and nothing is subnormal until a number is
turned into a float again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from adamas.jax import words

__all__ = [
    "Binary64",
    "add",
    "divide",
    "from_array",
    "from_float",
    "multiply",
    "one_minus",
    "one_minus_power",
    "select",
    "sqrt",
    "stack",
    "subtract",
    "to_array",
    "unstack",
]

Array = Any
Word = Any  # an array of uint32

_U = np.uint32
_TOP = _U(1 << 31)
_SPARE = _U(0x7FF)  # the bits of the low word that are below the 53 of a number
#: The exponent of zero: so small that adding zero to a number changes nothing.
_OF_ZERO = -(1 << 20)


class Binary64(NamedTuple):
    """Numbers (high·2^32 + low)·2^(exponent − 63); the top bit is set, or both words are 0."""

    exponent: Array  # int32
    high: Word
    low: Word


# -- from and to floats --------------------------------------------------------------------------


def from_float(x: float) -> Binary64:
    """Return a number known when the program is made. It is finite and at least 0."""
    if x == 0:
        return Binary64(np.int32(_OF_ZERO), _U(0), _U(0))
    numerator, denominator = float(x).as_integer_ratio()
    width = numerator.bit_length()
    mantissa = numerator << (64 - width)
    exponent = width - denominator.bit_length()
    return Binary64(np.int32(exponent), _U(mantissa >> 32), _U(mantissa & 0xFFFFFFFF))


def from_array(x: Array) -> Binary64:
    """Return the absolute values of finite floats, of 64 bits or fewer."""
    if x.dtype == jnp.float64:
        pair = lax.bitcast_convert_type(x, jnp.uint32)  # the low word first
        low, high = pair[..., 0], pair[..., 1] & _U(0x7FFFFFFF)
        field = high >> _U(20)
        mantissa = (high & _U(0xFFFFF)) << _U(11) | low >> _U(21), low << _U(11)
        bias = 1023
    else:
        bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) & _U(0x7FFFFFFF)
        field = bits >> _U(23)
        mantissa = bits << _U(8) & ~_TOP, jnp.zeros_like(bits)
        bias = 127
    high = jnp.where(field > 0, mantissa[0] | _TOP, mantissa[0] << _U(1) | mantissa[1] >> _U(31))
    low = jnp.where(field > 0, mantissa[1], mantissa[1] << _U(1))
    exponent = jnp.where(field > 0, field.astype(jnp.int32), 0) - bias
    return _normalised(exponent, high, low)


def to_array(x: Binary64, dtype: Any) -> Array:
    """Return float32 or float64, rounded once; what is subnormal in float64 is 0."""
    return _to_float64(x) if np.dtype(dtype) == np.float64 else _to_float32(x)


def _to_float32(x: Binary64) -> Array:
    # A number below the normal ones loses as many bits more as it is too small.
    lost = jnp.clip(-126 - x.exponent, 0, 40).astype(jnp.uint32)
    high, low, sticky = words.shifted_right(x.high, x.low, lost)
    kept, rest = high >> _U(8), (high << _U(24)) | (low >> _U(8))
    sticky = sticky | (low << _U(24))
    up = (rest > _TOP) | ((rest == _TOP) & ((sticky != 0) | (kept & _U(1) == 1)))
    kept = kept + up.astype(jnp.uint32)
    # The hidden bit adds one to the exponent, as does a carry of the rounding.
    biased = jnp.clip(x.exponent + 126, 0, 254).astype(jnp.uint32)
    bits = jnp.minimum((biased << _U(23)) + kept, _U(0x7F800000))
    bits = jnp.where(x.exponent > 127, _U(0x7F800000), bits)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _to_float64(x: Binary64) -> Array:
    high = x.high & ~_TOP
    biased = jnp.clip(x.exponent + 1023, 0, 2047).astype(jnp.uint32)
    low_word = high << _U(21) | x.low >> _U(11)
    high_word = biased << _U(20) | high >> _U(11)
    is_zero, is_infinite = biased == 0, biased == 2047
    low_word = jnp.where(is_zero | is_infinite, _U(0), low_word)
    high_word = jnp.where(is_zero, _U(0), jnp.where(is_infinite, _U(0x7FF00000), high_word))
    return lax.bitcast_convert_type(jnp.stack([low_word, high_word], -1), jnp.float64)


# -- arithmetic ----------------------------------------------------------------------------------


def add(a: Binary64, b: Binary64) -> Binary64:
    """Return a + b."""
    a, b = _ordered(a, b)
    high, low, sticky = words.shifted_right(b.high, b.low, _distance(a, b))
    low = a.low + low
    carry = (low < a.low).astype(jnp.uint32)
    total = a.high + high
    out = (total < a.high) | ((total + carry) < total)
    total = total + carry
    # A carry out of the top becomes the top bit.
    sticky = jnp.where(out, sticky | (low & _U(1)), sticky)
    low = jnp.where(out, low >> _U(1) | total << _U(31), low)
    total = jnp.where(out, total >> _U(1) | _TOP, total)
    return _rounded(a.exponent + out.astype(jnp.int32), total, low, sticky)


def subtract(a: Binary64, b: Binary64) -> Binary64:
    """Return a − b, which must not be negative."""
    high, low, sticky = words.shifted_right(b.high, b.low, _distance(a, b))
    # What was shifted out is taken away from the last bit, and stands for itself below it.
    borrowed = (sticky != 0).astype(jnp.uint32)
    high, low = words.less(*words.less(a.high, a.low, high, low), _U(0), borrowed)
    exponent, high, low = _normalised(a.exponent, high, low)
    return _rounded(exponent, high, low, borrowed)


def one_minus(x: Binary64) -> Binary64:
    """Return 1 − x for x up to 1."""
    return subtract(_like(1.0, x), x)


def multiply(a: Binary64, b: Binary64) -> Binary64:
    """Return a · b."""
    low_high, lowest = words.product_of(a.low, b.low)
    cross_high, cross_low = words.product_of(a.high, b.low)
    other_high, other_low = words.product_of(a.low, b.high)
    high, middle = words.product_of(a.high, b.high)
    third, carry1 = words.sum_of(low_high, cross_low)
    third, carry2 = words.sum_of(third, other_low)
    middle, carry3 = words.sum_of(middle, cross_high)
    middle, carry4 = words.sum_of(middle, other_high)
    middle, carry5 = words.sum_of(middle, carry1 + carry2)
    high = high + carry3 + carry4 + carry5
    # The product of two numbers in [1, 2) is in [1, 4): its top bit is set from 2 on.
    small = high < _TOP
    exponent = a.exponent + b.exponent + jnp.where(small, 0, 1)
    one = small.astype(jnp.uint32)
    high = jnp.where(small, high << _U(1) | middle >> _U(31), high)
    middle = jnp.where(small, middle << _U(1) | third >> _U(31), middle)
    return _rounded(exponent, high, middle, third << one | lowest)


def divide(a: Binary64, b: Binary64) -> Binary64:
    """Return a / b for b above 0, digit by digit."""
    rest = a.high >> _U(11), a.high << _U(21) | a.low >> _U(11)
    by = b.high >> _U(11), b.high << _U(21) | b.low >> _U(11)
    small = words.is_less(*rest, *by)
    rest = words.twice_where(small, *rest)

    def digit(_: Any, carried: tuple[Word, ...]) -> tuple[Word, ...]:
        quotient_high, quotient_low, high, low = carried
        fits = ~words.is_less(high, low, *by)
        less = words.less(high, low, *by)
        high, low = jnp.where(fits, less[0], high), jnp.where(fits, less[1], low)
        quotient = words.shifted_left(quotient_high, quotient_low)
        return (quotient[0], quotient[1] | fits.astype(jnp.uint32), *words.shifted_left(high, low))

    zero = jnp.zeros_like(rest[0])
    high, low, *rest = lax.fori_loop(0, 54, digit, (zero, zero, *rest))
    exponent = a.exponent - b.exponent - small.astype(jnp.int32)
    return _rounded(exponent, high << _U(10) | low >> _U(22), low << _U(10), rest[0] | rest[1])


def sqrt(x: Binary64) -> Binary64:
    """Return √x, digit by digit."""
    odd = (x.exponent & 1) == 1
    # Two digits of the radicand for each of the root: first those of [1, 4), from the top.
    radicand = (
        jnp.where(odd, x.high, x.high >> _U(1)),
        jnp.where(odd, x.low, x.low >> _U(1) | x.high << _U(31)),
    )

    def digit(_: Any, carried: tuple[Word, ...]) -> tuple[Word, ...]:
        root_high, root_low, high, low, given_high, given_low = carried
        high, low = high << _U(2) | low >> _U(30), low << _U(2) | given_high >> _U(30)
        given = given_high << _U(2) | given_low >> _U(30), given_low << _U(2)
        trial = root_high << _U(2) | root_low >> _U(30), root_low << _U(2) | _U(1)
        fits = ~words.is_less(high, low, *trial)
        less = words.less(high, low, *trial)
        high, low = jnp.where(fits, less[0], high), jnp.where(fits, less[1], low)
        root = words.shifted_left(root_high, root_low)
        return (root[0], root[1] | fits.astype(jnp.uint32), high, low, *given)

    zero = jnp.zeros_like(radicand[0])
    found = lax.fori_loop(0, 54, digit, (zero, zero, zero, zero, *radicand))
    high, low, rest = found[0], found[1], found[2] | found[3]
    return _rounded(x.exponent >> 1, high << _U(10) | low >> _U(22), low << _U(10), rest)


def one_minus_power(complement: Binary64, exponent: Array) -> Binary64:
    """Return 1 − β^exponent as :func:`adamas.coefficients.one_minus_power` does, bit for bit.

    ``complement`` is 1 − β, ``exponent`` uint32 and at least 1.
    """
    one_and_two = _joined(_like(1.0, complement), _like(2.0, complement))

    def more(carried: tuple[Array, Binary64, Binary64]) -> Array:
        return jnp.any(carried[0] != 0)

    def bit(carried: tuple[Array, Binary64, Binary64]) -> tuple[Array, Binary64, Binary64]:
        left, total, q = carried
        # Side by side, since programs for integers are long: q·(1 − total) and q·(2 − q).
        factors = subtract(one_and_two, _joined(total, q))
        added, doubled = _halves(multiply(_joined(q, q), factors))
        total = select(left & _U(1) == 1, add(total, added), total)
        return left >> _U(1), total, doubled

    start = exponent, _like(0.0, complement), complement
    return lax.while_loop(more, bit, start)[1]


def select(where: Array, a: Binary64, b: Binary64) -> Binary64:
    """Return a where ``where``, else b."""
    return Binary64(*(jnp.where(where, x, y) for x, y in zip(a, b, strict=True)))


def stack(numbers: Sequence[Binary64]) -> Binary64:
    """Return numbers in one array, along a first axis."""
    parts = zip(*numbers, strict=True)
    return Binary64(*(jnp.stack([jnp.asarray(word) for word in part]) for part in parts))


def unstack(numbers: Binary64) -> list[Binary64]:
    """Return what :func:`stack` took."""
    return [Binary64(*each) for each in zip(*numbers, strict=True)]


# -- parts ---------------------------------------------------------------------------------------


def _joined(a: Binary64, b: Binary64) -> Binary64:
    return Binary64(*(jnp.concatenate(pair) for pair in zip(a, b, strict=True)))


def _halves(both: Binary64) -> tuple[Binary64, Binary64]:
    half = both.high.shape[0] // 2
    return Binary64(*(part[:half] for part in both)), Binary64(*(part[half:] for part in both))


def _like(value: float, like: Binary64) -> Binary64:
    filled = zip(from_float(value), like, strict=True)
    return Binary64(*(jnp.full_like(jnp.asarray(part), number) for number, part in filled))


def _rounded(exponent: Array, high: Word, low: Word, sticky: Word) -> Binary64:
    """Return 64 bits with the top one set (or all 0), and what is below them, in 53 bits."""
    dropped = low & _SPARE
    half = _U(0x400)
    odd = low & _U(0x800)
    up = (dropped > half) | ((dropped == half) & ((sticky != 0) | (odd != 0)))
    low = (low & ~_SPARE) + jnp.where(up, _U(0x800), _U(0))
    carry = (up & (low == 0)).astype(jnp.uint32)
    high = high + carry
    out = (carry == 1) & (high == 0)
    exponent = exponent + out.astype(jnp.int32)
    high = jnp.where(out, _TOP, high)
    return Binary64(jnp.where(high == 0, _OF_ZERO, exponent).astype(jnp.int32), high, low)


def _normalised(exponent: Array, high: Word, low: Word) -> Binary64:
    """Return a number with its top bit in place."""
    by = jnp.where(high != 0, lax.clz(high), lax.clz(low) + _U(32))
    far = by >= 32
    high, low = jnp.where(far, low, high), jnp.where(far, _U(0), low)
    rest = by & _U(31)
    high = high << rest | jnp.where(rest > 0, low >> (_U(32) - rest & _U(31)), _U(0))
    exponent = jnp.where(high == 0, _OF_ZERO, exponent - by.astype(jnp.int32))
    return Binary64(exponent.astype(jnp.int32), high, low << rest)


def _ordered(a: Binary64, b: Binary64) -> tuple[Binary64, Binary64]:
    larger = a.exponent >= b.exponent
    return select(larger, a, b), select(larger, b, a)


def _distance(a: Binary64, b: Binary64) -> Word:
    return jnp.clip(a.exponent - b.exponent, 0, 64).astype(jnp.uint32)
