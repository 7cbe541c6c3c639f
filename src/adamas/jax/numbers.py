"""The numbers of a step whose count is known only when the program runs.

They are those of :mod:`adamas.coefficients`, to the bit: float64 throughout, rounded once. What is
known when the program is made is computed there and then. Of the rest,

* the bias corrections of fixed decay rates stand in a table, as far as they change: from some step
  on, 1 − β^t is 1 for float32 (after 17,000 steps at β = 0.999);
* everything else (decay rates that are arrays, as ``optax.inject_hyperparams`` makes them, float64,
  and β so near to 1 that the table were large) is computed by :mod:`adamas.jax.binary64`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from adamas.coefficients import Coefficients
from adamas.jax import binary64
from adamas.jax.binary64 import Binary64
from adamas.jax.operands import Operand, constant

__all__ = ["Choices", "coefficients"]

Array = Any
Float64 = NDArray[np.float64]
#: A number: a float where it is known when the program is made, else an array without axes.
Number = Any

#: The longest table of corrections: 256 KiB of float32.
_LONGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the numbers of a step depend on, besides the step."""

    lr: Number = 0.0
    #: Decay rates of the running means; None where the method keeps no such mean.
    b1: Number = None
    b2: Number = None
    #: Whether the first mean is a sum, which takes the whole gradient.
    is_sum: bool = False
    eps: Number = 0.0
    eps_root: Number = 0.0
    weight_decay: Number = 0.0
    nesterov: bool = False
    #: Whether the bias is taken out of the running means.
    unbias1: bool = False
    unbias2: bool = False

    def arrays(self) -> dict[str, Array]:
        """Return the numbers that are arrays, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, jax.Array)}


def coefficients(choices: Choices, count: Array, dtype: Any) -> Coefficients:
    """Return the numbers of the step after ``count`` steps as operands of ``dtype``.

    Derivatives with respect to the arrays in ``choices`` are those of the formulas.
    """
    dtype = np.dtype(dtype)
    arrays = choices.arrays()
    constants = {name: lax.stop_gradient(array) for name, array in arrays.items()}
    exact = _exactly(replace(choices, **constants), count, dtype)
    formulas = _formulas(choices, count, dtype) if arrays else exact
    return Coefficients(*(_operand(*pair, dtype) for pair in zip(exact, formulas, strict=True)))


def _exactly(choices: Choices, count: Array, dtype: np.dtype[Any]) -> Coefficients:
    """Return the numbers: floats where they are known, arrays of ``dtype`` elsewhere."""
    b1, b2 = choices.b1, choices.b2
    take1 = 1.0 if b1 is None or choices.is_sum else _one_minus(b1)
    mean, square = _corrections(choices, count, dtype)
    numbers = Coefficients(
        grad_scale=1.0,
        l2=0.0,
        decay=_product(choices.lr, choices.weight_decay),
        keep1=0.0 if b1 is None else b1,
        take1=take1,
        keep2=0.0 if b2 is None else b2,
        take2=1.0 if b2 is None else _one_minus(b2),
        from_m=mean.from_m,
        from_g=mean.from_g,
        root=square.root,
        inner=square.inner,
        eps=choices.eps,
        step=choices.lr,
    )
    return Coefficients(*(_rounded(number, dtype) for number in numbers))


def _operand(exact: Any, formula: Any, dtype: np.dtype[Any]) -> Operand:
    if isinstance(exact, float):
        return constant(exact, dtype)
    return Operand(_with_derivative(exact, formula))


def _rounded(number: Any, dtype: np.dtype[Any]) -> Any:
    if isinstance(number, _Product):
        return number.rounded(dtype)
    if isinstance(number, Binary64):
        return binary64.to_array(number, dtype)
    return number.astype(dtype) if isinstance(number, jax.Array) else float(number)


def _one_minus(beta: Number) -> Any:
    return 1.0 - beta if isinstance(beta, float) else binary64.one_minus(_magnitude(beta))


def _magnitude(x: Number) -> Binary64:
    return binary64.from_float(abs(x)) if isinstance(x, float) else binary64.from_array(x)


@dataclass(frozen=True)
class _Product:
    """A product of two numbers of either sign, of which one is an array."""

    a: Number
    b: Number

    def rounded(self, dtype: np.dtype[Any]) -> Array:
        size = binary64.multiply(_magnitude(self.a), _magnitude(self.b))
        plain = jnp.asarray(self.a, dtype) * jnp.asarray(self.b, dtype)
        exact = jnp.copysign(binary64.to_array(size, dtype), plain)
        return jnp.where(jnp.isfinite(self.a) & jnp.isfinite(self.b), exact, plain)


def _product(a: Number, b: Number) -> Any:
    if isinstance(a, float) and isinstance(b, float):
        return a * b
    known_zero = any(isinstance(x, float) and x == 0 for x in (a, b))
    return 0.0 if known_zero else _Product(a, b)


# -- bias corrections ----------------------------------------------------------------------------


class _Mean(NamedTuple):
    """What the update takes from the running mean of gradients and from the gradient."""

    from_m: Any
    from_g: Any = 0.0


class _Square(NamedTuple):
    """What the running mean of squares is scaled by, and what is added to it."""

    root: Any
    inner: Any = 0.0


def _corrections(
    choices: Choices, count: Array, dtype: np.dtype[Any]
) -> tuple[_Mean, _Square]:
    mean, square = _uncorrected(choices)
    of_mean = choices.b1 is not None and choices.unbias1
    of_square = choices.b2 is not None and choices.unbias2
    if dtype == np.float32:
        if of_mean and (rows := _mean_table(choices.b1, choices.nesterov)) is not None:
            mean, of_mean = _Mean(*_looked_up(rows, count)), False
        if of_square and (rows := _square_table(choices.b2, choices.eps_root)) is not None:
            square, of_square = _Square(*_looked_up(rows, count)), False
    if of_mean or of_square:
        found = _computed(choices, count, of_mean, of_square)
        mean, square = found[0] or mean, found[1] or square
    return mean, square


def _uncorrected(choices: Choices) -> tuple[_Mean, _Square]:
    b1, nesterov = choices.b1, choices.nesterov
    square = _Square(1.0, choices.eps_root)
    if b1 is None or not nesterov:
        return _Mean(1.0), square
    return _Mean(b1, 1.0 if choices.is_sum else _one_minus(b1)), square


def _looked_up(rows: NDArray[np.float32], count: Array) -> list[Array]:
    row = jnp.take(jnp.asarray(rows), jnp.asarray(count), axis=0, mode="clip")
    return [row[..., i] for i in range(rows.shape[1])]


def _mean_table(beta: Number, nesterov: bool) -> NDArray[np.float32] | None:
    """Return :class:`_Mean` for each count, where a table is possible."""
    return _table(_mean_rows, beta, nesterov) if isinstance(beta, float) else None


def _square_table(beta: Number, eps_root: Number) -> NDArray[np.float32] | None:
    """Return :class:`_Square` for each count, where a table is possible."""
    known = isinstance(beta, float) and isinstance(eps_root, float)
    return _table(_square_rows, beta, eps_root) if known else None


def _mean_rows(beta: float, nesterov: bool, q: Float64, following: Float64) -> list[Float64]:
    return [beta / following, (1.0 - beta) / q] if nesterov else [1.0 / q]


def _square_rows(beta: float, eps_root: float, q: Float64, following: Float64) -> list[Float64]:  # noqa: ARG001
    return [1.0 / np.sqrt(q), eps_root * q] if eps_root else [1.0 / np.sqrt(q)]


@functools.lru_cache(maxsize=64)
def _table(rows: Any, beta: float, choice: Any) -> NDArray[np.float32] | None:
    """Return a table whose last row is that of all greater counts, or None.

    None where the table were long, or where it is not certain that nothing changes any more.
    """
    # From here on β^t is below 2^-57: q is 1, but for the last bits of its rounding.
    enough = 1 if beta == 0 else math.ceil(57 / -math.log2(beta))
    if enough > 4 * _LONGEST:
        return None
    steps = np.arange(1, enough + 2, dtype=np.uint64)
    q = _one_minus_powers(beta, steps)
    nearly_one = 1.0 - np.arange(8) * 2.0**-53
    with np.errstate(over="ignore", under="ignore"):
        table = np.stack(rows(beta, choice, q[:-1], q[1:]), -1).astype(np.float32)
        ends = np.stack(rows(beta, choice, nearly_one, nearly_one), -1).astype(np.float32)
    differs = np.flatnonzero((table != ends[0]).any(1))
    length = differs[-1] + 2 if differs.size else 1
    return table[:length] if length <= _LONGEST and (ends == ends[0]).all() else None


def _one_minus_powers(beta: float, steps: NDArray[np.uint64]) -> Float64:
    """Return :func:`adamas.coefficients.one_minus_power` of many steps at once."""
    total, q, left = np.zeros(len(steps)), 1.0 - beta, steps.copy()
    while left.any():
        total = np.where(left & np.uint64(1) == 1, total + q * (1.0 - total), total)
        left >>= np.uint64(1)
        q = q * (2.0 - q)
    return total


def _computed(
    choices: Choices, count: Array, of_mean: bool, of_square: bool
) -> tuple[_Mean | None, _Square | None]:
    """Return the corrections that are asked for in binary64, all computed side by side."""
    step = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
    b1, b2, eps_root = (
        None if number is None else _broadcast(_magnitude(number), step)
        for number in (choices.b1, choices.b2, choices.eps_root)
    )
    powers = [(b1, step), (b1, step + np.uint32(1))][: 1 + choices.nesterov] if of_mean else []
    powers += [(b2, step)] if of_square else []
    betas, exponents = zip(*powers, strict=True)
    q = _separate(binary64.one_minus_power(binary64.stack(betas), jnp.stack(exponents)))
    one = _broadcast(binary64.from_float(1.0), step)
    quotients: list[tuple[Binary64, Binary64]] = []
    if of_mean and choices.nesterov:
        quotients += [(b1, q[1]), (binary64.one_minus(b1), q[0])]
    elif of_mean:
        quotients.append((one, q[0]))
    if of_square:
        quotients.append((one, binary64.sqrt(q[-1])))
    found = _separate(binary64.divide(*map(binary64.stack, zip(*quotients, strict=True))))
    mean = _Mean(*found[: len(found) - of_square]) if of_mean else None
    if not of_square:
        return mean, None
    is_zero = isinstance(choices.eps_root, float) and choices.eps_root == 0
    return mean, _Square(found[-1], 0.0 if is_zero else binary64.multiply(eps_root, q[-1]))


def _separate(numbers: Binary64) -> list[Binary64]:
    return [Binary64(*each) for each in zip(*numbers, strict=True)]


def _broadcast(number: Binary64, like: Array) -> Binary64:
    return Binary64(*(jnp.broadcast_to(part, like.shape) for part in number))


# -- derivatives ---------------------------------------------------------------------------------


@jax.custom_jvp
def _with_derivative(exact: Array, formula: Array) -> Array:  # noqa: ARG001
    """Return ``exact``, with the derivatives of ``formula``."""
    return exact


@_with_derivative.defjvp
def _with_derivative_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> Any:
    return primals[0], tangents[1]


def _formulas(choices: Choices, count: Array, dtype: np.dtype[Any]) -> Coefficients:
    """Return the numbers in plain arithmetic: for their derivatives alone."""
    step = (jnp.asarray(count) + 1).astype(dtype)

    def unbias(beta: Number, exponent: Array) -> Array:
        safe = jnp.where(beta > 0, beta, 0.5)
        power = -jnp.expm1(exponent * jnp.log1p(safe - 1))
        return jnp.where(exponent == 1, 1 - beta, jnp.where(beta > 0, power, 1))

    b1, b2 = (None if b is None else jnp.asarray(b, dtype) for b in (choices.b1, choices.b2))
    q1 = 1.0 if b1 is None or not choices.unbias1 else unbias(b1, step)
    following = 1.0 if b1 is None or not choices.unbias1 else unbias(b1, step + 1)
    q2 = 1.0 if b2 is None or not choices.unbias2 else unbias(b2, step)
    from_m, from_g = 1 / q1, 0.0
    take1 = 1.0 if b1 is None else 1 - b1
    if b1 is not None and choices.is_sum:
        take1, from_m, from_g = 1.0, b1 if choices.nesterov else 1.0, float(choices.nesterov)
    elif b1 is not None and choices.nesterov:
        from_m, from_g = b1 / following, take1 / q1
    numbers = Coefficients(
        grad_scale=1.0,
        l2=0.0,
        decay=choices.lr * choices.weight_decay,
        keep1=0.0 if b1 is None else b1,
        take1=take1,
        keep2=0.0 if b2 is None else b2,
        take2=1.0 if b2 is None else 1 - b2,
        from_m=from_m,
        from_g=from_g,
        root=1 / jnp.sqrt(q2),
        inner=choices.eps_root * q2,
        eps=choices.eps,
        step=choices.lr,
    )
    return Coefficients(*(jnp.asarray(number, dtype) for number in numbers))
