"""Binary64 arithmetic of numbers that are not negative, in 32-bit integers.

The numbers of a step are computed in float64 and rounded once (``adamas.coefficients``), but
JAX has no float64 unless it is switched on, some devices have none at all, and XLA rewrites what
it has. Integers it leaves alone. So here is what IEEE 754 says of ``+ − × ÷ √``, rounded to
nearest, ties to even, for a few numbers at each step. All functions work element-wise, on arrays
of one shape.

There is no limit to the exponent: nothing overflows and nothing is subnormal until a number is
turned into a float again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from adamas.jax import words
from adamas.jax.words import Wide, Word, product_of

__all__ = [
    "Binary64",
    "add",
    "at_least",
    "divide",
    "doubled",
    "from_array",
    "from_bits",
    "from_float",
    "from_words",
    "multiply",
    "one_minus",
    "one_minus_power",
    "rectification",
    "select",
    "side_by_side",
    "sqrt",
    "stack",
    "subtract",
    "to_array",
    "unstack",
]

Array = Any

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

    @property
    def digits(self) -> Wide:
        """Both words."""
        return Wide(self.high, self.low)


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
        return from_words(pair[..., 1], pair[..., 0])
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) & _U(0x7FFFFFFF)
    digits = Wide(bits << _U(8) & ~_TOP, jnp.zeros_like(bits))
    return _of_field(bits >> _U(23), digits, 127)


def from_words(high: Word, low: Word) -> Binary64:
    """Return the absolute values of finite float64 numbers, given as words of their bits."""
    high = high & _U(0x7FFFFFFF)
    return _of_field(high >> _U(20), Wide(high & _U(0xFFFFF), low) << 11, 1023)


def _of_field(field: Word, digits: Wide, bias: int) -> Binary64:
    # A normal number has a top bit besides; one that is subnormal has the exponent of field 1.
    is_normal = field > 0
    digits = words.where(is_normal, digits | (1 << 63), digits << 1)
    exponent = jnp.where(is_normal, field.astype(jnp.int32), 0) - bias
    return _normalised(exponent, digits)


def from_bits(exponent: Array, words: tuple[Word, Word, Word], lost: Array) -> Binary64:
    """Return a number below 2^(exponent + 1), whose first 16 bits are not 0, or all; rounded.

    Its bits follow one another in three words; ``lost`` says whether there are more below them.
    """
    high, low, rest = words
    by = jnp.minimum(lax.clz(high), _U(15))
    digits = Wide(*(Wide(*each).shifted_left(by).high for each in ((high, low), (low, rest))))
    sticky = rest << by | lost.astype(jnp.uint32)
    return _rounded(exponent - by.astype(jnp.int32), digits, sticky)


def to_array(x: Binary64, dtype: Any) -> Array:
    """Return float32 or float64, rounded once; what is subnormal in float64 is 0."""
    return _to_float64(x) if np.dtype(dtype) == np.float64 else _to_float32(x)


def _to_float32(x: Binary64) -> Array:
    # A number below the normal ones loses as many bits more as it is too small.
    lost = jnp.clip(-126 - x.exponent, 0, 40).astype(jnp.uint32)
    digits, sticky = x.digits.shifted_right(lost)
    kept, rest = digits.high >> _U(8), (digits >> 8).low
    sticky = sticky | (digits.low << _U(24))
    up = (rest > _TOP) | ((rest == _TOP) & ((sticky != 0) | (kept & _U(1) == 1)))
    kept = kept + up.astype(jnp.uint32)
    # The hidden bit adds one to the exponent, as does a carry of the rounding.
    biased = jnp.clip(x.exponent + 126, 0, 254).astype(jnp.uint32)
    bits = jnp.minimum((biased << _U(23)) + kept, _U(0x7F800000))
    bits = jnp.where(x.exponent > 127, _U(0x7F800000), bits)
    return lax.bitcast_convert_type(bits, jnp.float32)


def _to_float64(x: Binary64) -> Array:
    digits = Wide(x.high & ~_TOP, x.low) >> 11
    biased = jnp.clip(x.exponent + 1023, 0, 2047).astype(jnp.uint32)
    is_zero, is_infinite = biased == 0, biased == 2047
    low = jnp.where(is_zero | is_infinite, _U(0), digits.low)
    high = biased << _U(20) | digits.high
    high = jnp.where(is_zero, _U(0), jnp.where(is_infinite, _U(0x7FF00000), high))
    return lax.bitcast_convert_type(jnp.stack([low, high], -1), jnp.float64)


# -- arithmetic ----------------------------------------------------------------------------------


def add(a: Binary64, b: Binary64) -> Binary64:
    """Return a + b."""
    larger = a.exponent >= b.exponent
    a, b = select(larger, a, b), select(larger, b, a)
    added, sticky = b.digits.shifted_right(_distance(a, b))
    total = a.digits + added
    # A carry out of the top becomes the top bit.
    out = total < added
    sticky = jnp.where(out, sticky | (total.low & _U(1)), sticky)
    total = words.where(out, total >> 1 | (1 << 63), total)
    return _rounded(a.exponent + out.astype(jnp.int32), total, sticky)


def subtract(a: Binary64, b: Binary64) -> Binary64:
    """Return a − b, which must not be negative."""
    taken, sticky = b.digits.shifted_right(_distance(a, b))
    # What was shifted out is taken away from the last bit, and stands for itself below it.
    borrowed = (sticky != 0).astype(jnp.uint32)
    rest = a.digits - taken - Wide(_U(0), borrowed)
    exponent, high, low = _normalised(a.exponent, rest)
    return _rounded(exponent, Wide(high, low), borrowed)


def one_minus(x: Binary64) -> Binary64:
    """Return 1 − x for x up to 1."""
    return subtract(_like(1.0, x), x)


def multiply(a: Binary64, b: Binary64) -> Binary64:
    """Return a · b."""
    lowest, highest = product_of(a.low, b.low), product_of(a.high, b.high)
    middle = Wide(_U(0), lowest.high)
    for cross in (product_of(a.high, b.low), product_of(a.low, b.high)):
        # Of the two words, each goes where sums have room for their carries.
        highest = highest + Wide(_U(0), cross.high)
        middle = middle + Wide(_U(0), cross.low)
    product = highest + Wide(_U(0), middle.high)
    # The product of two numbers in [1, 2) is in [1, 4): its top bit is set from 2 on.
    small = product.high < _TOP
    exponent = a.exponent + b.exponent + jnp.where(small, 0, 1)
    twice = product << 1 | Wide(_U(0), middle.low >> _U(31))
    below = middle.low << small.astype(jnp.uint32) | lowest.low
    return _rounded(exponent, words.where(small, twice, product), below)


def divide(a: Binary64, b: Binary64) -> Binary64:
    """Return a / b for b above 0, digit by digit."""
    rest, by = a.digits >> 11, b.digits >> 11
    small = rest < by
    rest = words.where(small, rest << 1, rest)

    def digit(_: Any, carried: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
        quotient, rest = carried
        fits = ~(rest < by)
        rest = words.where(fits, rest - by, rest)
        return quotient << 1 | Wide(_U(0), fits.astype(jnp.uint32)), rest << 1

    zero = jnp.zeros_like(rest.high)
    quotient, rest = lax.fori_loop(0, 54, digit, (Wide(zero, zero), rest))
    exponent = a.exponent - b.exponent - small.astype(jnp.int32)
    return _rounded(exponent, quotient << 10, rest.high | rest.low)


def sqrt(x: Binary64) -> Binary64:
    """Return √x, digit by digit."""
    odd = (x.exponent & 1) == 1
    # Two digits of the radicand for each of the root: first those of [1, 4), from the top.
    radicand = words.where(odd, x.digits, x.digits >> 1)

    def digit(_: Any, carried: tuple[Wide, Wide, Wide]) -> tuple[Wide, Wide, Wide]:
        root, rest, given = carried
        rest = rest << 2 | Wide(_U(0), given.high >> _U(30))
        trial = root << 2 | 1
        fits = ~(rest < trial)
        rest = words.where(fits, rest - trial, rest)
        return root << 1 | Wide(_U(0), fits.astype(jnp.uint32)), rest, given << 2

    zero = jnp.zeros_like(x.high)
    start = (Wide(zero, zero), Wide(zero, zero), radicand)
    root, rest, _ = lax.fori_loop(0, 54, digit, start)
    return _rounded(x.exponent >> 1, root << 10, rest.high | rest.low)


def one_minus_power(complement: Binary64, exponent: Array) -> Binary64:
    """Return 1 − β^exponent as ``adamas.coefficients.one_minus_power`` does, bit for bit.

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


def rectification(beta: Binary64, exponent: Array, threshold: Binary64) -> Binary64:
    """Return r_t as ``adamas.coefficients.rectification`` does, bit for bit, and 0 where it is off.

    It is on where ρ_t is above ``threshold``, which is at least 4. ``exponent`` is t: uint32, and
    at least 1.
    """
    zero, half, one, two, four, any_length = (
        _like(number, beta) for number in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
    )
    complement = subtract(one, beta)

    def more(carried: tuple[Any, ...]) -> Array:
        return jnp.any(carried[0] != 0)

    def bit(carried: tuple[Any, ...]) -> tuple[Any, ...]:
        left, weights, numbers, q, of_numbers, power, terms = carried
        moved, of_moved = side_by_side(multiply, (terms, weights), (terms, q))
        moved, of_moved = side_by_side(add, (moved, numbers), (of_moved, of_numbers))
        factors = weights, moved, q, of_moved, power
        *products, square = side_by_side(multiply, *((power, each) for each in factors))
        terms_before = q, of_numbers, q, of_numbers
        sums = side_by_side(add, *zip(terms_before, products, strict=True))
        is_set = left & _U(1) == 1
        weights, numbers = (
            select(is_set, each, old)
            for each, old in zip(sums[:2], (weights, numbers), strict=True)
        )
        q, of_numbers = sums[2:]
        # What is as small as this counts for nothing, and an exponent can still be doubled.
        square = square._replace(exponent=jnp.maximum(square.exponent, _OF_ZERO // 4))
        power = select(at_least(half, q), subtract(one, q), square)
        return left >> _U(1), weights, numbers, q, of_numbers, power, doubled(terms)

    start = exponent, zero, zero, complement, complement, beta, one
    _, weights, numbers, *_ = lax.while_loop(more, bit, start)
    mean, reciprocal = side_by_side(divide, (numbers, weights), (one, complement))
    lengths = side_by_side(subtract, (doubled(mean), one), (doubled(reciprocal), one))
    is_on = ~at_least(threshold, lengths[0])
    # Where it is off differences would be negative, and are left out.
    length, longest = (select(is_on, each, any_length) for each in lengths)
    pairs = itertools.product((length, longest), (four, two))
    a, b, c, d = side_by_side(subtract, *pairs)
    now, last = side_by_side(multiply, (a, b), (c, d))
    over, under = side_by_side(multiply, (now, longest), (last, length))
    return select(is_on, sqrt(divide(over, under)), zero)


def side_by_side(
    operation: Callable[[Binary64, Binary64], Binary64], *pairs: tuple[Binary64, Binary64]
) -> list[Binary64]:
    """Return what an operation makes of pairs, of which it is compiled once for all."""
    first, second = zip(*pairs, strict=True)
    return unstack(operation(stack(first), stack(second)))


def at_least(a: Binary64, b: Binary64) -> Array:
    """Return whether a ≥ b."""
    same = a.exponent == b.exponent
    return (a.exponent > b.exponent) | (same & ~(a.digits < b.digits))


def doubled(x: Binary64) -> Binary64:
    """Return 2·x."""
    return x._replace(exponent=jnp.where(x.high == 0, x.exponent, x.exponent + 1))


def select(where: Array, a: Binary64, b: Binary64) -> Binary64:
    """Return a where ``where``, else b."""
    return Binary64(*(jnp.where(where, x, y) for x, y in zip(a, b, strict=True)))


def stack(numbers: Iterable[Binary64]) -> Binary64:
    """Return numbers in one array, along a first axis."""
    parts = zip(*numbers, strict=True)
    return Binary64(*(jnp.stack([jnp.asarray(word) for word in part]) for part in parts))


def unstack(numbers: Binary64) -> list[Binary64]:
    """Return what ``stack`` took."""
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


def _rounded(exponent: Array, digits: Wide, sticky: Word) -> Binary64:
    """Return 64 bits with the top one set (or all 0), and what is below them, in 53 bits."""
    dropped = digits.low & _SPARE
    half = _U(0x400)
    odd = digits.low & _U(0x800)
    up = (dropped > half) | ((dropped == half) & ((sticky != 0) | (odd != 0)))
    kept = Wide(digits.high, digits.low & ~_SPARE) + Wide(_U(0), jnp.where(up, _U(0x800), _U(0)))
    # A carry out of the top leaves 0, and is the top bit of the next exponent.
    out = up & (kept.high == 0)
    exponent = exponent + out.astype(jnp.int32)
    high = jnp.where(out, _TOP, kept.high)
    return Binary64(jnp.where(high == 0, _OF_ZERO, exponent).astype(jnp.int32), high, kept.low)


def _normalised(exponent: Array, digits: Wide) -> Binary64:
    """Return a number with its top bit in place."""
    by = jnp.where(digits.high != 0, lax.clz(digits.high), lax.clz(digits.low) + _U(32))
    digits = digits.shifted_left(by)
    exponent = jnp.where(digits.high == 0, _OF_ZERO, exponent - by.astype(jnp.int32))
    return Binary64(exponent.astype(jnp.int32), digits.high, digits.low)


def _distance(a: Binary64, b: Binary64) -> Word:
    return jnp.clip(a.exponent - b.exponent, 0, 64).astype(jnp.uint32)
