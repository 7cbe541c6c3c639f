"""Two arithmetics that predictions are made in: float64 for the search, 200 bits for the judgement.

Both work on arrays. The exact one's hold numbers of mpmath.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamas.codecs import decode_bfloat16, encode_bfloat16
from adamas.extras import require

__all__ = ["DOUBLE", "Arithmetic", "exact"]

Array = Any

#: Bits of the mantissa of the exact arithmetic.
_BITS = 200


@dataclass(frozen=True)
class Arithmetic:
    """What predictions need of numbers, beyond + - * on arrays."""

    #: Values, exactly, as an array or as a scalar of this arithmetic.
    array: Callable[[Any], Array]
    number: Callable[[float], Any]
    #: The root of each element, NaN of negative ones.
    sqrt: Callable[[Array], Array]
    #: A division by 0 gives infinity or NaN.
    divide: Callable[[Array, Array], Array]

    def narrow(self, x: Array, kind: str | None) -> Array:
        """Return ``x`` rounded to "float32", "float16" or "bfloat16"; as it is for None."""
        if kind is None:
            return x
        values = np.asarray(x, dtype=np.float64)
        if kind == "bfloat16":
            return self.array(decode_bfloat16(encode_bfloat16(values.astype(np.float32), None)))
        return self.array(values.astype(kind))


#: float64, as NumPy has it.
DOUBLE = Arithmetic(lambda x: np.asarray(x, dtype=np.float64), float, np.sqrt, np.divide)


def exact() -> Arithmetic:
    """Return numbers of 200 bits: the rule, for the purpose of any float."""
    mpmath = require("mpmath", "adamas.check", "cli", "mpmath")
    # A context of its own, so that nobody else's precision changes.
    context = mpmath.mp.clone()
    context.prec = _BITS

    def sqrt(x: Any) -> Any:
        return context.sqrt(x) if x >= 0 else context.nan

    def divide(a: Any, b: Any) -> Any:
        if b != 0:
            return a / b
        return context.nan if a == 0 or a != a else context.inf * context.sign(a)

    def elementwise(function: Any, count: int) -> Callable[..., Array]:
        """Return a function of arrays; one of 0-dimensional ones gives an array, too."""
        over = np.frompyfunc(function, count, 1)
        return lambda *arrays: np.asarray(over(*arrays), dtype=object)

    made = elementwise(context.mpf, 1)
    return Arithmetic(
        # As objects, values are Python floats, which are taken exactly.
        lambda values: made(np.asarray(values).astype(object)),
        context.mpf,
        elementwise(sqrt, 1),
        elementwise(divide, 2),
    )
