"""The numbers of a step whose count is known only when the program runs.

They are those of ``adamas.coefficients``, to the bit: float64 throughout, rounded once. What is
known when the program is made is computed there and then. Of the rest,

* the bias corrections of fixed decay rates stand in a table, as far as they change: from some step
  on, 1 − β^t is 1 for float32 (after 17,000 steps at β = 0.999);
* everything else (decay rates that are arrays, as ``optax.inject_hyperparams`` makes them, float64,
  and β so near to 1 that the table were large) is computed by ``adamas.jax.binary64``.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from adamas.coefficients import Coefficients
from adamas.jax import binary64
from adamas.jax.binary64 import Binary64
from adamas.jax.operands import Operand, constant
from adamas.jax.updates import Factors

__all__ = [
    "Choices",
    "DecoupledDecay",
    "Number",
    "coefficients",
    "mean_columns",
    "shortened",
    "square_columns",
    "table_of",
    "varying",
]

Array = Any
Float64 = NDArray[np.float64]
#: How parameters decay, beside the gradient.
DecoupledDecay = Literal["decoupled", "fully-decoupled", "cautious", "corrected"]
#: A number: a float where it is known when the program is made, else an array without axes.
Number = Any

#: The longest table of corrections: 256 KiB of float32.
_LONGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the numbers of a step depend on, besides the step."""

    lr: Number = 0.0
    #: Decay rates of the moments; None where the method keeps no such mean.
    b1: Number = None
    b2: Number = None
    #: Whether the first mean is a sum, which takes the whole gradient.
    is_sum: bool = False
    eps: Number = 0.0
    eps_root: Number = 0.0
    weight_decay: Number = 0.0
    #: How parameters decay, and the greatest learning rate where that needs it.
    kind: DecoupledDecay = "decoupled"
    lr_max: Number = None
    #: What parameters shrink by, where it is known better than its factors.
    decay: Number = None
    nesterov: bool = False
    #: Above which ρ_t the learning rate is rectified; None: it is not.
    threshold: Number = None
    #: What the root mean square of an update is clipped at; None: it is not.
    clip_update: Number = None
    #: Whether the bias is taken out of the moments.
    unbias1: bool = False
    unbias2: bool = False

    @property
    def corrects_mean(self) -> bool:
        """Whether the bias is taken out of the first moment."""
        return self.unbias1 and self.b1 is not None

    @property
    def corrects_square(self) -> bool:
        """Whether the bias is taken out of the second moment."""
        return self.unbias2 and self.b2 is not None

    @property
    def factors(self) -> tuple[Number, ...]:
        """Return what ``decay`` is a product and quotient of."""
        others = () if self.lr_max is None else (self.lr_max,)
        return (self.lr, self.weight_decay, *others)

    def arrays(self) -> dict[str, Array]:
        """Return the numbers that are arrays, by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, jax.Array)}


def varying(choices: Choices, names: Collection[str]) -> Choices:
    """Return choices in which what changes from step to step is an array, with the same bits.

    A float is part of the program, which would be compiled anew for each.
    """
    dtype = jnp.result_type(float)
    given = {name: getattr(choices, name) for name in names}
    changes = {name: jnp.asarray(x, dtype) for name, x in given.items() if isinstance(x, float)}
    if not changes:
        return choices
    has_decay = "weight_decay" in names or not _is_known_zero(choices.weight_decay)
    if has_decay and all(isinstance(x, float) for x in choices.factors):
        changes["decay"] = jnp.asarray(_shrunk_by(choices), dtype)
    return replace(choices, **changes)


def coefficients(choices: Choices, count: Array, dtype: Any) -> Coefficients:
    """Return the numbers of the step after ``count`` steps as operands of ``dtype``.

    Derivatives with respect to the arrays in ``choices`` are those of the formulas.
    """
    dtype = np.dtype(dtype)
    arrays = choices.arrays()
    constants = {name: lax.stop_gradient(array) for name, array in arrays.items()}
    exact = _exactly(replace(choices, **constants), count, dtype)
    formulas = _formulas(choices, count, dtype) if arrays else exact
    numbers = Coefficients(*(_operand(*pair, dtype) for pair in zip(exact, formulas, strict=True)))
    # One object where they are one number, by which the rule knows that it compares no signs.
    return numbers._replace(opposed=numbers.decay) if exact.opposed is exact.decay else numbers


def _operand(exact: Any, formula: Any, dtype: np.dtype[Any]) -> Operand:
    if isinstance(exact, float):
        return constant(exact, dtype)
    return Operand(_with_derivative(exact.astype(dtype), formula))


def _exactly(choices: Choices, count: Array, dtype: np.dtype[Any]) -> Coefficients:
    """Return the numbers: floats where they are known, else arrays."""
    numbers = _known(choices)
    if dtype == np.float32:
        numbers |= _looked_up(choices, count)
    wanted = [name for name, number in numbers.items() if number is None]
    if wanted:
        numbers |= _computed(choices, count, wanted, dtype)
    if choices.threshold is not None:
        numbers |= _rectified(choices, numbers, count, dtype)
    is_one = choices.kind != "cautious" or _is_known_zero(numbers["decay"])
    return Coefficients(**numbers, opposed=numbers["decay"] if is_one else 0.0)


def _known(choices: Choices) -> dict[str, Number | None]:
    """Return the numbers that are floats or arrays already, and None for all others.

    All but ``opposed``, which follows from ``decay``.
    """
    b1, b2, eps_root = choices.b1, choices.b2, choices.eps_root
    take1 = 1.0 if b1 is None or choices.is_sum else _one_minus(b1)
    take2 = 1.0 if b2 is None else _one_minus(b2)
    from_m, from_g = (b1, take1) if choices.nesterov else (1.0, 0.0)
    root, inner = 1.0, eps_root
    if choices.corrects_mean:
        from_m, from_g = None, None if choices.nesterov else 0.0
    if choices.corrects_square:
        root, inner = None, 0.0 if _is_known_zero(eps_root) else None
    return {
        "grad_scale": 1.0,
        "l2": 0.0,
        "decay": _known_decay(choices) if choices.decay is None else choices.decay,
        "keep1": 0.0 if b1 is None else b1,
        "take1": take1,
        "keep2": 0.0 if b2 is None else b2,
        "take2": take2,
        "from_m": from_m,
        "from_g": from_g,
        "root": root,
        "inner": inner,
        "eps": choices.eps,
        "step": choices.lr,
    }


def _one_minus(beta: Number) -> float | None:
    return 1.0 - beta if isinstance(beta, float) else None


def _known_decay(choices: Choices) -> float | None:
    if all(isinstance(number, float) for number in choices.factors):
        return _shrunk_by(choices)
    is_zero = _is_known_zero(choices.lr) or _is_known_zero(choices.weight_decay)
    return 0.0 if is_zero else None


def _shrunk_by(choices: Choices) -> Any:
    """Return what parameters shrink by, as ``adamas.coefficients`` has it."""
    if choices.kind in ("decoupled", "cautious"):
        return choices.lr * choices.weight_decay
    decay = choices.weight_decay * (choices.lr / choices.lr_max)
    return choices.lr * decay if choices.kind == "corrected" else decay


def _is_known_zero(number: Number) -> bool:
    return isinstance(number, float) and number == 0.0


# -- clipped updates -----------------------------------------------------------------------------


def shortened(choices: Choices, count: Array, c: Coefficients, by: Factors) -> dict[str, Array]:
    """Return the numbers that move arrays, multiplied by the factor of each array, by name.

    They are not rounded before, and once after. ``c`` has what they are without the factors.
    """
    arrays = choices.arrays()
    held = replace(choices, **{name: lax.stop_gradient(array) for name, array in arrays.items()})
    shape, dtype = by.is_nan.shape, np.dtype(c.step.dtype)
    found: dict[str, Array] = {}
    for name, exactly in (("step", _rate(held, count)), ("decay", _decay(held))):
        plain = jnp.asarray(getattr(c, name).parts[0])
        size = Binary64(*(jnp.broadcast_to(jnp.asarray(word), shape) for word in exactly))
        exact = binary64.to_array(binary64.multiply(size, by.size), dtype)
        exact = jnp.where(by.is_zero | (plain == 0), 0, jnp.where(plain < 0, -exact, exact))
        exact = jnp.where(jnp.isfinite(plain), exact, plain)
        exact = jnp.where(by.is_nan, jnp.nan, exact).astype(dtype)
        found[name] = _with_derivative(exact, plain * by.formula.astype(dtype))
    return found


def _rate(choices: Choices, count: Array) -> Binary64:
    """Return the size of what the update is multiplied by."""
    rate = _magnitude(choices.lr, ())
    if choices.threshold is None:
        return rate
    r = _rectification(choices, count)
    return binary64.select(r.high != 0, binary64.multiply(r, rate), rate)


def _decay(choices: Choices) -> Binary64:
    """Return the size of what parameters shrink by."""
    known = _known_decay(choices) if choices.decay is None else choices.decay
    if known is not None:
        return _magnitude(known, ())
    rate, amount = _magnitude(choices.lr, ()), _magnitude(choices.weight_decay, ())
    if choices.kind in ("decoupled", "cautious"):
        return binary64.multiply(rate, amount)
    decay = binary64.multiply(amount, binary64.divide(rate, _magnitude(choices.lr_max, ())))
    return binary64.multiply(rate, decay) if choices.kind == "corrected" else decay


# -- tables --------------------------------------------------------------------------------------


def _looked_up(choices: Choices, count: Array) -> dict[str, Array]:
    """Return the corrections for which there is a table."""
    found: dict[str, Array] = {}
    tables: list[tuple[tuple[str, ...], NDArray[np.float32] | None]] = []
    if choices.corrects_mean and isinstance(choices.b1, float):
        names = ("from_m", "from_g") if choices.nesterov else ("from_m",)
        tables.append((names, table_of(mean_columns, choices.b1, choices.nesterov)))
    both = (choices.b2, choices.eps_root)
    if choices.corrects_square and all(isinstance(number, float) for number in both):
        names = ("root", "inner") if choices.eps_root else ("root",)
        tables.append((names, table_of(square_columns, *both)))
    for names, rows in tables:
        if rows is not None:
            row = jnp.take(jnp.asarray(rows), jnp.asarray(count), axis=0, mode="clip")
            found |= {name: row[..., i] for i, name in enumerate(names)}
    return found


def mean_columns(beta: float, nesterov: bool, q: Float64, following: Float64) -> list[Float64]:
    """Return the corrections of m: ``q`` is 1 − β^t of each step, ``following`` of the next."""
    return [beta / following, (1.0 - beta) / q] if nesterov else [1.0 / q]


def square_columns(beta: float, eps_root: float, q: Float64, following: Float64) -> list[Float64]:  # noqa: ARG001
    """Return the corrections of v: ``q`` is 1 − β^t of each step."""
    return [1.0 / np.sqrt(q), eps_root * q] if eps_root else [1.0 / np.sqrt(q)]


@functools.lru_cache(maxsize=64)
def table_of(
    columns: Callable[..., list[Float64]], beta: float, choice: Any
) -> NDArray[np.float32] | None:
    """Return a row for each count, the last of them for all greater counts too.

    None where the table were long, or where it is not certain that nothing changes any more.
    """
    # From here on β^t is below 2^-57, and 1 − β^t is 1 but for the last bits of its rounding.
    enough = 1 if beta == 0 else math.ceil(57 / -math.log2(beta))
    if enough > 4 * _LONGEST:
        return None
    q = _one_minus_powers(beta, np.arange(1, enough + 2, dtype=np.uint64))
    nearly_one = 1.0 - np.arange(8) * 2.0**-53
    with np.errstate(over="ignore", under="ignore"):
        table = np.stack(columns(beta, choice, q[:-1], q[1:]), -1).astype(np.float32)
        ends = np.stack(columns(beta, choice, nearly_one, nearly_one), -1).astype(np.float32)
    changing = np.flatnonzero((table != ends[0]).any(axis=1))
    length = changing[-1] + 2 if changing.size else 1
    return table[:length] if length <= _LONGEST and (ends == ends[0]).all() else None


def _one_minus_powers(beta: float, steps: NDArray[np.uint64]) -> Float64:
    """Return ``adamas.coefficients.one_minus_power`` of many steps at once."""
    total, q, left = np.zeros(len(steps)), 1.0 - beta, steps.copy()
    while left.any():
        total = np.where(left & np.uint64(1) == 1, total + q * (1.0 - total), total)
        left >>= np.uint64(1)
        q = q * (2.0 - q)
    return total


@functools.lru_cache(maxsize=64)
def rectifications(beta: float, threshold: float) -> NDArray[np.uint32] | None:
    """Return r_t for each count as the words of a float64, high ones first; 0 where it is off.

    The last row is for all greater counts too. None where there were more rows than in a table.
    """
    # Of so many terms the weights of all that follow are below 2^-92 of theirs: nothing changes any
    # more, since counts are put together from powers of two of terms.
    enough = 1 << max(math.ceil(math.log2(64.0 / (1.0 - beta))), 0)
    if enough > _LONGEST:
        return None
    r = _rectifications(beta, np.arange(1, enough + 1, dtype=np.uint64), threshold)
    changing = np.flatnonzero(r != r[-1])
    r = r[: changing[-1] + 2 if changing.size else 1]
    bits = r.view(np.uint64)
    return np.stack([bits >> np.uint64(32), bits & np.uint64(0xFFFFFFFF)], -1).astype(np.uint32)


def _rectifications(beta: float, steps: NDArray[np.uint64], threshold: float) -> Float64:
    """Return ``adamas.coefficients.rectification`` of many steps at once."""
    weights = numbers = np.zeros(len(steps))
    q, of_numbers, power, terms, left = 1.0 - beta, 1.0 - beta, beta, 1.0, steps.copy()
    while left.any():
        is_set = left & np.uint64(1) == 1
        longer = of_numbers + power * (terms * weights + numbers)
        numbers = np.where(is_set, longer, numbers)
        weights = np.where(is_set, q + power * weights, weights)
        left >>= np.uint64(1)
        of_numbers = of_numbers + power * (terms * q + of_numbers)
        q = q + power * q
        power = 1.0 - q if q <= 0.5 else power * power
        terms = terms + terms
    length = 2.0 * (numbers / weights) - 1.0
    longest = 2.0 / (1.0 - beta) - 1.0
    is_on = length > threshold
    length = np.where(is_on, length, 8.0)
    last = (longest - 4.0) * (longest - 2.0) if is_on.any() else 1.0
    squares = (length - 4.0) * (length - 2.0) * longest / (last * length)
    return np.where(is_on, np.sqrt(np.where(is_on, squares, 0.0)), 0.0)


# -- binary64 ------------------------------------------------------------------------------------


def _computed(
    choices: Choices, count: Array, wanted: Sequence[str], dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Return the numbers that are wanted, computed in binary64, side by side where they can be."""
    step = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
    names = ("b1", "b2", "eps_root", "lr", "weight_decay", "lr_max")
    known = {"one": 1.0, **{name: getattr(choices, name) for name in names}}
    given = {name: _magnitude(x, step.shape) for name, x in known.items() if x is not None}
    found: dict[str, Binary64] = {}
    of_mean, of_square = "from_m" in wanted, "root" in wanted
    betas = {name: given[name] for name in ("b1", "b2") if name in given}
    rests = binary64.unstack(binary64.one_minus(binary64.stack(betas.values()))) if betas else []
    rest = dict(zip(betas, rests, strict=True))
    if "take1" in wanted:
        found["take1"] = rest["b1"]
    if "take2" in wanted:
        found["take2"] = rest["b2"]
    if "from_g" in wanted and not of_mean:
        found["from_g"] = rest["b1"]
    powers = [("b1", step), ("b1", step + np.uint32(1))][: 1 + choices.nesterov] if of_mean else []
    powers += [("b2", step)] if of_square else []
    products: list[tuple[str, Binary64, Binary64]] = []
    if powers:
        complements = binary64.stack([rest[name] for name, _ in powers])
        exponents = jnp.stack([exponent for _, exponent in powers])
        q = binary64.unstack(binary64.one_minus_power(complements, exponents))
        quotients: list[tuple[str, Binary64, Binary64]] = []
        if of_mean and choices.nesterov:
            quotients += [("from_m", given["b1"], q[1]), ("from_g", rest["b1"], q[0])]
        elif of_mean:
            quotients.append(("from_m", given["one"], q[0]))
        if of_square:
            quotients.append(("root", given["one"], binary64.sqrt(q[-1])))
            products.append(("inner", given["eps_root"], q[-1]))
        found |= _side_by_side(binary64.divide, quotients)
    if "decay" in wanted:
        decay = given["lr"]
        if choices.kind in ("fully-decoupled", "corrected"):
            decay = binary64.divide(decay, given["lr_max"])
        if choices.kind == "corrected":
            found["decay"] = binary64.multiply(
                given["lr"], binary64.multiply(given["weight_decay"], decay)
            )
        else:
            products.append(("decay", decay, given["weight_decay"]))
    products = [each for each in products if each[0] in wanted]
    if products:
        found |= _side_by_side(binary64.multiply, products)
    arrays = binary64.to_array(binary64.stack(list(found.values())), dtype)
    numbers = {name: arrays[i] for i, name in enumerate(found)}
    if "decay" in numbers:
        numbers["decay"] = _signed(numbers["decay"], choices, dtype)
    return {name: numbers[name] for name in wanted}


def _rectified(
    choices: Choices, numbers: dict[str, Number], count: Array, dtype: np.dtype[Any]
) -> dict[str, Array]:
    """Return root, ε and learning rate with r_t, or without a root where that is off."""
    r = _rectification(choices, count)
    is_on = r.high != 0
    lr = choices.lr
    size = binary64.multiply(r, _magnitude(lr, is_on.shape))
    # With an axis before those of the bits, without which vmap fails at turning words to floats.
    rate = binary64.to_array(binary64.stack([size]), dtype)[0]
    rate = jnp.where(lr < 0, -rate, rate)
    plain = jnp.asarray(lr, dtype)
    return {
        "root": jnp.where(is_on, jnp.asarray(numbers["root"], dtype), 0),
        "eps": jnp.where(is_on, jnp.asarray(numbers["eps"], dtype), 1),
        "step": jnp.where(is_on & jnp.isfinite(plain), rate, plain),
    }


def _rectification(choices: Choices, count: Array) -> Binary64:
    beta, threshold = choices.b2, choices.threshold
    if isinstance(beta, float) and isinstance(threshold, float):
        rows = rectifications(beta, threshold)
        if rows is not None:
            row = jnp.take(jnp.asarray(rows), jnp.asarray(count), axis=0, mode="clip")
            return binary64.from_words(row[..., 0], row[..., 1])
    step = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
    given = (_magnitude(each, step.shape) for each in (beta, threshold))
    return binary64.rectification(next(given), step, next(given))


def _signed(size: Array, choices: Choices, dtype: np.dtype[Any]) -> Array:
    """Return the decay with its sign, and in plain arithmetic where a factor is no usual number."""
    signs = [*choices.factors, *([choices.lr] if choices.kind == "corrected" else [])]
    negative = functools.reduce(operator.ne, [factor < 0 for factor in signs])
    usual = [jnp.isfinite(factor) for factor in choices.factors if not isinstance(factor, float)]
    if isinstance(choices.lr_max, jax.Array):
        usual.append(choices.lr_max != 0)
    plain = _shrunk_by(_as_arrays(choices, dtype))
    exact = jnp.where(negative, -size, size)
    return jnp.where(functools.reduce(jnp.logical_and, usual), exact, plain)


def _as_arrays(choices: Choices, dtype: np.dtype[Any]) -> Choices:
    names = ("lr", "weight_decay", "lr_max")
    numbers = {name: getattr(choices, name) for name in names}
    return replace(
        choices, **{name: jnp.asarray(x, dtype) for name, x in numbers.items() if x is not None}
    )


def _side_by_side(
    operation: Callable[[Binary64, Binary64], Binary64],
    pairs: Sequence[tuple[str, Binary64, Binary64]],
) -> dict[str, Binary64]:
    found = binary64.side_by_side(operation, *((a, b) for _, a, b in pairs))
    return {name: each for (name, _, _), each in zip(pairs, found, strict=True)}


def _magnitude(number: Number, shape: tuple[int, ...]) -> Binary64:
    is_known = isinstance(number, float)
    size = binary64.from_float(abs(number)) if is_known else binary64.from_array(number)
    return Binary64(*(jnp.broadcast_to(part, shape) for part in size))


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
    step = jnp.asarray(count).astype(dtype) + 1

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
    root, eps, rate = 1 / jnp.sqrt(q2), choices.eps, choices.lr
    if choices.threshold is not None:
        r = _rectification_formula(choices, b2, count, dtype)
        root, eps = jnp.where(r > 0, root, 0), jnp.where(r > 0, eps, 1)
        rate = rate * jnp.where(r > 0, r, 1)
    decay = _shrunk_by(choices)
    numbers = Coefficients(
        grad_scale=1.0,
        l2=0.0,
        decay=decay,
        opposed=0.0 if choices.kind == "cautious" else decay,
        keep1=0.0 if b1 is None else b1,
        take1=take1,
        keep2=0.0 if b2 is None else b2,
        take2=1.0 if b2 is None else 1 - b2,
        from_m=from_m,
        from_g=from_g,
        root=root,
        inner=choices.eps_root * q2,
        eps=eps,
        step=rate,
    )
    return Coefficients(*(jnp.asarray(number, dtype) for number in numbers))


def _rectification_formula(
    choices: Choices, beta: Array, count: Array, dtype: np.dtype[Any]
) -> Array:
    """Return r_t of Liu et al. (2020), or 0 where it is off; see ``adamas.coefficients``."""

    def bit(_: int, carried: tuple[Array, ...]) -> tuple[Array, ...]:
        left, weights, numbers, q, of_numbers, power, terms = carried
        is_set = left & 1 == 1
        numbers = jnp.where(is_set, of_numbers + power * (terms * weights + numbers), numbers)
        weights = jnp.where(is_set, q + power * weights, weights)
        of_numbers = of_numbers + power * (terms * q + of_numbers)
        q = q + power * q
        power = jnp.where(q <= 0.5, 1 - q, power * power)
        return left >> 1, weights, numbers, q, of_numbers, power, terms + terms

    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    start = jnp.asarray(count) + 1, zero, zero, 1 - beta, 1 - beta, beta, one
    # As many times whatever the count is, so that it has a derivative backwards, too.
    _, weights, numbers, *_ = lax.fori_loop(0, 32, bit, start)
    length, longest = 2 * (numbers / weights) - 1, 2 / (1 - beta) - 1
    is_on = length > choices.threshold
    length, longest = jnp.where(is_on, length, 8), jnp.where(is_on, longest, 8)
    square = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return jnp.where(is_on, jnp.sqrt(square), 0)
