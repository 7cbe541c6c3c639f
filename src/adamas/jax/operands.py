"""Operands: what the rule computes with in JAX, one rounding for each operator.

XLA compiles a product and the sum it goes into as one fused multiply-add, which rounds once where
the rule rounds twice; it moves constants from product to product, divides by roots with an
estimate, and drops roundings to narrow floats. It cannot do so through an integer operation. So
each product (and each number that comes from outside) is *pinned*: taken as an integer, the
greatest one is replaced by that below it, and it is a float again. Both of these patterns are
NaN; nothing else is changed. That costs one instruction, needs no number known at run time only,
and since it is no identity, no compiler may leave it out.

An operand is an array, or the two parts of a complex one, or a constant. Products with the
constant 1 and 0, and sums with 0, are left out: they would cost passes over memory. For finite
numbers that gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["Operand", "constant", "pinned", "real_dtype"]

Array = Any


@jax.custom_jvp
def pinned(x: Array) -> Array:
    """Return ``x``, which XLA then can neither fuse nor simplify away. Its derivative is 1."""
    integer = np.dtype(f"int{8 * x.dtype.itemsize}")
    bits = lax.bitcast_convert_type(x, integer)
    below = np.array(np.iinfo(integer).max - 1, integer)
    return lax.bitcast_convert_type(jnp.minimum(bits, below), x.dtype)


@pinned.defjvp
def _pinned_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return pinned(*primals), tangents[0]


@jax.custom_jvp
def _root(x: Array) -> Array:
    return pinned(jnp.sqrt(x))


@_root.defjvp
def _root_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The root of v at v = 0 is that of g = 0: |g| has the subgradient 0 there.
    root = _root(*primals)
    is_zero = root == 0
    return root, jnp.where(is_zero, 0, tangents[0] / jnp.where(is_zero, 1, 2 * root))


@jax.custom_jvp
def _cleared(x: Array, small: Array) -> Array:
    """Return ``x``, and 0 where it is ``small``. That is x but for rounding, so are derivatives."""
    return jnp.where(small, jnp.zeros_like(x), x)


@_cleared.defjvp
def _cleared_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    return _cleared(*primals), tangents[0]


class Operand:
    """A real or complex array, or a constant, that the rule computes with."""

    __slots__ = ("parts", "zeros_of")

    def __init__(self, *parts: Array) -> None:
        """Take one real array, or real and imaginary part; or a NumPy scalar as a constant."""
        self.parts = parts
        #: The operand that these zeros were made like.
        self.zeros_of: Operand | None = None

    @classmethod
    def of(cls, array: Array, dtype: Any) -> Operand:
        """Return an array from outside in the real dtype that is computed with."""
        if jnp.iscomplexobj(array):
            parts = jnp.real(array), jnp.imag(array)
        else:
            parts = (array,)
        return cls(*(pinned(part).astype(dtype) for part in parts))

    def array(self, like: Array, dtype: Any) -> Array:
        """Return the number as an array of the shape of ``like`` and of ``dtype``."""
        narrow = real_dtype(dtype)
        parts = [jnp.broadcast_to(part, like.shape) for part in self.parts]
        parts = [part if part.dtype == narrow else pinned(part.astype(narrow)) for part in parts]
        if not jnp.issubdtype(dtype, jnp.complexfloating):
            return parts[0]
        return lax.complex(parts[0], parts[1] if len(parts) > 1 else jnp.zeros_like(parts[0]))

    def __array_namespace__(self) -> type[_Namespace]:
        """Return the functions that the rule calls."""
        return _Namespace

    @property
    def dtype(self) -> Any:
        """The real dtype."""
        return self.parts[0].dtype

    def __mul__(self, other: Operand) -> Operand:
        """Return the pinned product; of two complex numbers the real part of a·b̄.

        So the square of a complex gradient is that of its absolute value.
        """
        if self.is_constant(1) or other.is_constant(0):
            return other
        if other.is_constant(1) or self.is_constant(0):
            return self
        if len(self.parts) == len(other.parts) == 2:
            real, imaginary = map(_product, self.parts, other.parts)
            return Operand(real + imaginary)
        return self._paired(_product, other)

    def __add__(self, other: Operand) -> Operand:
        if self.is_constant(0):
            return other
        return self if other.is_constant(0) else self._paired(jnp.add, other)

    def __sub__(self, other: Operand) -> Operand:
        return self if other.is_constant(0) else self._paired(jnp.subtract, other)

    def __neg__(self) -> Operand:
        return Operand(*(-part for part in self.parts))

    def __truediv__(self, other: Operand) -> Operand:
        return self._paired(jnp.divide, other)

    def __lt__(self, other: Any) -> Operand:
        return self._paired(jnp.less, _operand(other))

    def __gt__(self, other: Any) -> Operand:
        return self._paired(jnp.greater, _operand(other))

    def __eq__(self, other: object) -> Operand:  # type: ignore[override]
        return self._paired(jnp.equal, _operand(other))

    def __ne__(self, other: object) -> Operand:  # type: ignore[override]
        return self._paired(jnp.not_equal, _operand(other))

    def __and__(self, other: Operand) -> Operand:
        return self._paired(jnp.logical_and, other)

    def __or__(self, other: Operand) -> Operand:
        return self._paired(jnp.logical_or, other)

    __hash__ = None  # type: ignore[assignment]

    def is_constant(self, value: float) -> bool:
        """Return whether the number is known to be ``value`` when the program is made."""
        return isinstance(self.parts[0], np.generic) and bool(self.parts[0] == value)

    def _paired(self, operation: Callable[[Array, Array], Array], other: Operand) -> Operand:
        """Return the operation on each part; a real number goes with both parts of the other."""
        return Operand(*map(operation, *_alike(self, other)))


class _Namespace:
    """The functions of the array API standard that the rule calls."""

    finfo = staticmethod(jnp.finfo)

    @staticmethod
    def abs(x: Operand) -> Operand:
        return Operand(*map(jnp.abs, x.parts))

    @staticmethod
    def sqrt(x: Operand) -> Operand:
        return Operand(_root(x.parts[0]))

    @staticmethod
    def where(condition: Operand, a: Operand, b: Operand) -> Operand:
        if a.zeros_of is b:
            return Operand(*map(_cleared, b.parts, condition.parts))
        return Operand(*map(jnp.where, *_alike(condition, a, b)))

    @staticmethod
    def zeros_like(x: Operand) -> Operand:
        zeros = Operand(*map(jnp.zeros_like, x.parts))
        zeros.zeros_of = x
        return zeros

    @staticmethod
    def ones_like(x: Operand) -> Operand:
        return Operand(*map(jnp.ones_like, x.parts))


def constant(value: float, dtype: Any) -> Operand:
    """Return a number that is known when the program is made, rounded to ``dtype``."""
    return Operand(np.dtype(dtype).type(value))


def real_dtype(dtype: Any) -> Any:
    """Return the dtype of the parts of complex numbers, else the dtype itself."""
    return jnp.finfo(dtype).dtype


def _product(a: Array, b: Array) -> Array:
    return pinned(jnp.multiply(a, b))


def _operand(x: Any) -> Operand:
    return x if isinstance(x, Operand) else Operand(x)


def _alike(*operands: Operand) -> list[tuple[Array, ...]]:
    """Return the parts, of all as many as of those that have most."""
    most = max(len(each.parts) for each in operands)
    return [each.parts if len(each.parts) == most else each.parts * most for each in operands]
