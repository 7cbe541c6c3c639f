"""Two arithmetics that predictions are made in: float64 for the search, 200 bits for the judgement.

Both work on arrays. The exact one's hold numbers of mpmath.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from adamas.extras import require

__all__ = ["BITS", "Arithmetic", "Double", "Exact", "rounded"]

Array = Any

#: Bits of the mantissa of the exact arithmetic.
BITS = 200


class Arithmetic:
    """What predictions need of numbers, beyond + - * on arrays."""

    def array(self, values: Any) -> Array:
        """Return ``values``, exactly, as an array of this arithmetic."""
        raise NotImplementedError

    def number(self, value: float) -> Any:
        """Return ``value`` as a scalar."""
        raise NotImplementedError

    def sqrt(self, x: Array) -> Array:
        """Return the root of each element, NaN of negative ones."""
        raise NotImplementedError

    def divide(self, a: Array, b: Array) -> Array:
        """Return a / b; a division by 0 gives infinity or NaN."""
        raise NotImplementedError

    def narrow(self, x: Array, kind: str) -> Array:
        """Return ``x`` rounded to "float32", "float16" or "bfloat16"."""
        values = rounded(np.asarray(x, dtype=np.float64), kind)
        return self.array(values)


class Double(Arithmetic):
    """float64, as NumPy has it."""

    def array(self, values: Any) -> Array:
        """Return a float64 array."""
        return np.asarray(values, dtype=np.float64)

    def number(self, value: float) -> Any:
        """Return a float."""
        return float(value)

    def sqrt(self, x: Array) -> Array:
        """Return the correctly rounded root."""
        return np.sqrt(x)

    def divide(self, a: Array, b: Array) -> Array:
        """Return the correctly rounded quotient."""
        return a / b


class Exact(Arithmetic):
    """Numbers of :data:`BITS` bits: the rule, for the purpose of any float."""

    def __init__(self) -> None:
        """Make a context of its own, so that nobody else's precision changes."""
        mpmath = require("mpmath", "adamas.check", "cli", "mpmath")
        context = mpmath.mp.clone()
        context.prec = BITS
        nan = context.nan

        def sqrt(x: Any) -> Any:
            return context.sqrt(x) if x >= 0 else nan

        def divide(a: Any, b: Any) -> Any:
            if b != 0:
                return a / b
            return nan if a == 0 or a != a else context.inf * context.sign(a)

        self._number = context.mpf
        self._array = np.frompyfunc(context.mpf, 1, 1)
        self._sqrt = np.frompyfunc(sqrt, 1, 1)
        self._divide = np.frompyfunc(divide, 2, 1)

    def array(self, values: Any) -> Array:
        """Return an array of objects."""
        # .astype(object) makes Python floats, which are taken exactly.
        found = self._array(np.asarray(values).astype(object))
        return np.asarray(found, dtype=object)

    def number(self, value: float) -> Any:
        """Return the number, exactly."""
        return self._number(value)

    def sqrt(self, x: Array) -> Array:
        """Return the root to 200 bits."""
        return np.asarray(self._sqrt(x), dtype=object)

    def divide(self, a: Array, b: Array) -> Array:
        """Return the quotient to 200 bits."""
        return np.asarray(self._divide(a, b), dtype=object)


def rounded(x: Any, kind: str) -> Any:
    """Return float64 values rounded to the nearest of "float32", "float16" or "bfloat16"."""
    if kind == "bfloat16":
        single = np.asarray(x, dtype=np.float32)
        bits = single.view(np.uint32)
        nearest = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        cut = (nearest & np.uint32(0xFFFF0000)).view(np.float32)
        return np.where(np.isnan(single), single, cut).astype(np.float64)
    return np.asarray(x, dtype=np.float64).astype(kind).astype(np.float64)
