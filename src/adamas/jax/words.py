"""Integers of 64 bits in two words of 32, the high one first: JAX has no others by default."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = [
    "Word",
    "is_less",
    "less",
    "product_of",
    "shifted_left",
    "shifted_right",
    "sum_of",
    "twice_where",
]

Word = Any  # an array of uint32

_U = np.uint32


def shifted_right(high: Word, low: Word, by: Word) -> tuple[Word, Word, Word]:
    """Return two words shifted by 0 to 64 bits, and a word that is 0 if nothing was lost."""
    far, rest = by >= 32, by & _U(31)
    lost = jnp.where(far, low, _U(0))
    low, high = jnp.where(far, high, low), jnp.where(far, _U(0), high)
    left = _U(32) - rest & _U(31)
    kept = jnp.where(rest > 0, low << left, _U(0))
    new_low = low >> rest | jnp.where(rest > 0, high << left, _U(0))
    gone = by >= 64
    lost = lost | jnp.where(gone, low, kept)
    return high >> rest, jnp.where(gone, _U(0), new_low), lost


def shifted_left(high: Word, low: Word) -> tuple[Word, Word]:
    """Return two words shifted by one bit."""
    return high << _U(1) | low >> _U(31), low << _U(1)


def twice_where(condition: Any, high: Word, low: Word) -> tuple[Word, Word]:
    """Return two words, shifted by one bit where ``condition``."""
    twice = shifted_left(high, low)
    return jnp.where(condition, twice[0], high), jnp.where(condition, twice[1], low)


def is_less(high: Word, low: Word, than_high: Word, than_low: Word) -> Any:
    """Return whether the first number is less than the second."""
    return (high < than_high) | ((high == than_high) & (low < than_low))


def less(high: Word, low: Word, by_high: Word, by_low: Word) -> tuple[Word, Word]:
    """Return the difference of two numbers, modulo 2^64."""
    return high - by_high - (low < by_low).astype(jnp.uint32), low - by_low


def sum_of(a: Word, b: Word) -> tuple[Word, Word]:
    """Return the sum of two words, and its carry."""
    total = a + b
    return total, (total < a).astype(jnp.uint32)


def product_of(a: Word, b: Word) -> tuple[Word, Word]:
    """Return the product of two words, the high one first."""
    half = _U(0xFFFF)
    a_high, a_low, b_high, b_low = a >> _U(16), a & half, b >> _U(16), b & half
    low, cross1, cross2, high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    middle = (low >> _U(16)) + (cross1 & half) + (cross2 & half)
    return (
        high + (cross1 >> _U(16)) + (cross2 >> _U(16)) + (middle >> _U(16)),
        middle << _U(16) | low & half,
    )
