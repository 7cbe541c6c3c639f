"""Integers of 64 bits in two words of 32: JAX has no others by default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Wide", "Word", "product_of", "where"]

Word = Any  # an array of uint32

_U = np.uint32


@dataclass(frozen=True)
class Wide:
    """Numbers high·2^32 + low, modulo 2^64, with the operators of whole numbers."""

    high: Word
    low: Word

    @classmethod
    def of(cls, number: int) -> Wide:
        """Return a number known when the program is made."""
        return cls(_U(number >> 32), _U(number & 0xFFFFFFFF))

    def __add__(self, other: Wide | int) -> Wide:
        other = _wide(other)
        low = self.low + other.low
        # A sum that wrapped around is less than either part.
        return Wide(self.high + other.high + _word(low < other.low), low)

    def __sub__(self, other: Wide) -> Wide:
        borrowed = _word(self.low < other.low)
        return Wide(self.high - other.high - borrowed, self.low - other.low)

    def __mul__(self, other: Wide | int) -> Wide:
        other = _wide(other)
        low = product_of(self.low, other.low)
        return Wide(low.high + self.high * other.low + self.low * other.high, low.low)

    def __and__(self, other: Wide | int) -> Wide:
        other = _wide(other)
        return Wide(self.high & other.high, self.low & other.low)

    def __or__(self, other: Wide | int) -> Wide:
        other = _wide(other)
        return Wide(self.high | other.high, self.low | other.low)

    def __xor__(self, other: Wide) -> Wide:
        return Wide(self.high ^ other.high, self.low ^ other.low)

    def __lshift__(self, by: int) -> Wide:
        """Return the number shifted by 1 to 31 bits."""
        return Wide(self.high << _U(by) | self.low >> _U(32 - by), self.low << _U(by))

    def __rshift__(self, by: int) -> Wide:
        """Return the number shifted by 1 to 31 bits."""
        return Wide(self.high >> _U(by), self.low >> _U(by) | self.high << _U(32 - by))

    def __lt__(self, other: Wide) -> Any:
        same = self.high == other.high
        return (self.high < other.high) | (same & (self.low < other.low))

    def shifted_left(self, by: Word) -> Wide:
        """Return the number shifted by 0 to 63 bits, as an array says."""
        far, rest = by >= 32, by & _U(31)
        high, low = jnp.where(far, self.low, self.high), jnp.where(far, _U(0), self.low)
        return Wide(high << rest | _carried(low, rest, jnp.right_shift), low << rest)

    def shifted_right(self, by: Word) -> tuple[Wide, Word]:
        """Return the number shifted by 0 to 64 bits, and a word that is 0 if nothing was lost."""
        far, rest = by >= 32, by & _U(31)
        high, low = jnp.where(far, _U(0), self.high), jnp.where(far, self.high, self.low)
        lost = jnp.where(far, self.low, _U(0))
        gone = by >= 64
        lost = lost | jnp.where(gone, low, _carried(low, rest, jnp.left_shift))
        shifted = low >> rest | _carried(high, rest, jnp.left_shift)
        return Wide(high >> rest, jnp.where(gone, _U(0), shifted)), lost


jax.tree_util.register_dataclass(Wide, data_fields=["high", "low"], meta_fields=[])


def where(condition: Any, a: Wide, b: Wide) -> Wide:
    """Return a where ``condition``, else b."""
    return Wide(jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low))


def product_of(a: Word, b: Word) -> Wide:
    """Return the whole product of two words."""
    half = _U(0xFFFF)
    a_high, a_low, b_high, b_low = a >> _U(16), a & half, b >> _U(16), b & half
    low, cross1, cross2, high = a_low * b_low, a_high * b_low, a_low * b_high, a_high * b_high
    # Three halves, so that the carries fit.
    middle = (low >> _U(16)) + (cross1 & half) + (cross2 & half)
    return Wide(
        high + (cross1 >> _U(16)) + (cross2 >> _U(16)) + (middle >> _U(16)),
        middle << _U(16) | low & half,
    )


def _carried(word: Word, by: Word, shift: Any) -> Word:
    """Return the bits that a shift by 0 to 31 moves into the other word, ``shift`` back there.

    A shift by 32 is not defined, so that by 0, which moves none, is told apart.
    """
    return jnp.where(by > 0, shift(word, _U(32) - by & _U(31)), _U(0))


def _wide(number: Wide | int) -> Wide:
    return Wide.of(number) if isinstance(number, int) else number


def _word(condition: Any) -> Word:
    return condition.astype(np.uint32)
