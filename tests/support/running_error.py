"""Numbers of 200 bits that know how far a rounded computation may be from them.

Running error analysis (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.3):
an operation of correctly rounded arithmetic with unit roundoff u gives x(1 + δ) + η, |δ| ≤ u, where
x is the operation's exact result on what it was given, and |η| is at most the smallest subnormal
number (for products, quotients and roots; sums are exact where they are subnormal). So if operands
are off by at most ea and eb, a sum is off by at most ea + eb + u·(|a + b| + ea + eb), and so on.
The rule itself runs on such numbers: each carries the exact value and the bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np

BITS = 200


@dataclass(frozen=True)
class Format:
    """A binary format: unit roundoff, smallest normal and smallest subnormal number."""

    u: Any
    smallest_normal: Any
    smallest_subnormal: Any

    @classmethod
    def of(cls, dtype: Any) -> Format:
        """Return the format of a NumPy dtype."""
        about = np.finfo(dtype)
        return cls(
            mpmath.mpf(float(about.eps)) / 2,
            mpmath.mpf(float(about.smallest_normal)),
            mpmath.mpf(float(about.smallest_subnormal)),
        )


@dataclass(frozen=True)
class Judgement:
    """A comparison: how exact values compare, and whether rounded ones may compare otherwise."""

    is_true: bool
    is_close: bool

    def __and__(self, other: Judgement) -> Judgement:
        return Judgement(self.is_true and other.is_true, self.is_close or other.is_close)

    def __or__(self, other: Judgement) -> Judgement:
        return Judgement(self.is_true or other.is_true, self.is_close or other.is_close)


class Number:
    """An exact value, and a bound on the distance of the rounded one."""

    def __init__(self, value: Any, error: Any, form: Format) -> None:
        self.value, self.error, self.form = mpmath.mpf(value), mpmath.mpf(error), form

    @property
    def dtype(self) -> Format:
        return self.form

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(
            where=where,
            abs=lambda x: Number(abs(x.value), x.error, x.form),
            sqrt=sqrt,
            zeros_like=lambda x: Number(0, 0, x.form),
            ones_like=lambda x: Number(1, 0, x.form),
            finfo=lambda form: form,
        )

    def rounded(self, value: Any, error: Any, *, underflows: bool) -> Number:
        """Return the result of an operation, with its own rounding added."""
        error = error + self.form.u * (abs(value) + error)
        return Number(value, error + underflows * self.form.smallest_subnormal, self.form)

    def __add__(self, other: Number) -> Number:
        value = self.value + other.value
        return self.rounded(value, self.error + other.error, underflows=False)

    def __sub__(self, other: Number) -> Number:
        value = self.value - other.value
        return self.rounded(value, self.error + other.error, underflows=False)

    def __mul__(self, other: Number) -> Number:
        error = (
            abs(self.value) * other.error + abs(other.value) * self.error + self.error * other.error
        )
        return self.rounded(self.value * other.value, error, underflows=True)

    def __truediv__(self, other: Number) -> Number:
        assert abs(other.value) > other.error, "a divisor that may be 0 bounds nothing"
        value = self.value / other.value
        error = (self.error + abs(value) * other.error) / (abs(other.value) - other.error)
        return self.rounded(value, error, underflows=True)

    def compared(self, other: Any, is_true: bool) -> Judgement:
        value, error = (other.value, other.error) if isinstance(other, Number) else (other, 0)
        is_itself = other is self
        return Judgement(is_true, not is_itself and abs(self.value - value) <= self.error + error)

    def __lt__(self, other: Any) -> Judgement:
        return self.compared(other, self.value < plain(other))

    def __gt__(self, other: Any) -> Judgement:
        return self.compared(other, self.value > plain(other))

    def __eq__(self, other: object) -> Judgement:  # type: ignore[override]
        return self.compared(other, self.value == plain(other))

    def __ne__(self, other: object) -> Judgement:  # type: ignore[override]
        return self.compared(other, self.value != plain(other))

    __hash__ = None  # type: ignore[assignment]


def plain(x: Any) -> Any:
    return x.value if isinstance(x, Number) else x


def where(judgement: Judgement, yes: Number, no: Number) -> Number:
    """Return what exact values choose; rounded ones may have chosen the other where it is close."""
    chosen, other = (yes, no) if judgement.is_true else (no, yes)
    error = chosen.error
    if judgement.is_close:
        error = max(error, abs(chosen.value - other.value) + other.error)
    return Number(chosen.value, error, chosen.form)


def sqrt(x: Number) -> Number:
    value = mpmath.sqrt(x.value)
    lowest = mpmath.sqrt(max(x.value - x.error, 0))
    return x.rounded(
        value, max(mpmath.sqrt(x.value + x.error) - value, value - lowest), underflows=True
    )
