"""The optimizers: optax's functions, with the rule inside.

Each returns what optax's function of the same name returns, with the same state: it is made by
optax's own ``init``, so that it has optax's types and checkpoints go both ways. ``update`` calls
:func:`adamas.rule.rule` for each array and returns what is to be added to the parameter: −change.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamas.coefficients import Coefficients
from adamas.jax.numbers import Choices, Number, coefficients
from adamas.jax.operands import Operand, constant, real_dtype
from adamas.options import check_rate
from adamas.rule import rule, smooth

__all__ = ["adam", "adamw", "amsgrad", "momentum", "nadam", "nadamw", "rmsprop", "sgd"]

Array = Any
Tree = Any
Schedule = Callable[[Any], Any]
Transformation = optax.GradientTransformationExtraArgs


def adam(
    learning_rate: Number | Schedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Return Adam (Kingma & Ba 2015, algorithm 1), as optax.adam."""
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov)
    twin = optax.adam(learning_rate, mu_dtype=mu_dtype)
    return _Optimizer(twin, choices, learning_rate).transformation()


def adamw(
    learning_rate: Number | Schedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: Any = None,
    weight_decay: Number | Schedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Return Adam with decoupled decay (Loshchilov & Hutter 2019, algorithm 2), as optax.adamw.

    ``mask`` is a tree of booleans (or a function that makes one of the gradients): where it is
    False, nothing decays. ``update`` needs the parameters.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov)
    twin = optax.adamw(learning_rate, mu_dtype=mu_dtype, weight_decay=weight_decay, mask=mask)
    decay = _Decay(weight_decay, mask, place=1)
    return _Optimizer(twin, choices, learning_rate, rate_place=2, decay=decay).transformation()


def amsgrad(
    learning_rate: Number | Schedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Transformation:
    """Return AMSGrad (Reddi, Kale & Kumar 2018), as optax.amsgrad but for its order.

    The largest v is corrected for its bias, as in torch; optax corrects v and keeps the largest of
    that, so ``nu_max`` means the same only with ``bias_correction_nu=False``.
    """
    choices = replace(
        _adam_choices(b1, b2, eps, eps_root, nesterov=False),
        unbias1=bias_correction_mu,
        unbias2=bias_correction_nu,
    )
    twin = optax.amsgrad(learning_rate, mu_dtype=mu_dtype)
    return _Optimizer(twin, choices, learning_rate).transformation()


def rmsprop(
    learning_rate: Number | Schedule,
    decay: Number = 0.9,
    eps: Number = 1e-8,
    initial_scale: Number = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Number | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Transformation:
    """Return RMSProp (Tieleman & Hinton 2012), as optax.rmsprop.

    With ``eps_in_sqrt`` (optax's default) ε is added under the root. ``momentum`` sums up the
    updates, learning rate included. ``centered=True`` is refused: the rule keeps no variance.
    """
    if centered:
        raise ValueError(
            "centered is True, but the rule divides by the root of the mean square, not of the "
            "variance. Leave centered out, or use optax.rmsprop."
        )
    eps = _amount("eps", eps)
    choices = Choices(
        b2=_rate("decay", decay),
        eps=0.0 if eps_in_sqrt else eps,
        eps_root=eps if eps_in_sqrt else 0.0,
        unbias2=bias_correction,
    )
    more = {"bias_correction": True} if bias_correction else {}
    twin = optax.rmsprop(learning_rate, initial_scale=initial_scale, momentum=momentum, **more)
    trace = None if momentum is None else _Trace(_rate("momentum", momentum), nesterov, place=2)
    return _Optimizer(twin, choices, learning_rate, trace=trace).transformation()


def sgd(
    learning_rate: Number | Schedule,
    momentum: Number | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transformation:
    """Return gradient descent, along a sum of gradients if ``momentum`` is given, as optax.sgd."""
    rate = None if momentum is None else _rate("momentum", momentum)
    choices = Choices(b1=rate, is_sum=True, nesterov=nesterov and rate is not None)
    twin = optax.sgd(learning_rate, momentum, accumulator_dtype=accumulator_dtype)
    return _Optimizer(twin, choices, learning_rate).transformation()


def momentum(
    learning_rate: Number | Schedule,
    decay: Number = 0.9,
    debias: bool = False,
    accumulator_dtype: Any = None,
    *,
    nesterov: bool = False,
) -> Transformation:
    """Return descent along a running mean of gradients: :class:`adamas.Momentum` for JAX.

    The state is that of optax.chain(optax.ema(decay, debias), optax.scale_by_learning_rate(…)).
    """
    choices = Choices(b1=_rate("decay", decay), nesterov=nesterov, unbias1=debias)
    twin = optax.chain(
        optax.ema(decay, debias, accumulator_dtype), optax.scale_by_learning_rate(learning_rate)
    )
    return _Optimizer(twin, choices, learning_rate).transformation()


nadam = functools.partial(adam, nesterov=True)
nadamw = functools.partial(adamw, nesterov=True)


# -- what the functions are made of --------------------------------------------------------------


@dataclass(frozen=True)
class _Decay:
    """Decoupled weight decay, and the place of its state."""

    amount: Number | Schedule
    mask: Any
    place: int


@dataclass(frozen=True)
class _Trace:
    """A sum of updates, and the place of its state."""

    decay: Number
    nesterov: bool
    place: int


class _Moments(NamedTuple):
    """m, v and w of all parameters; None where the method keeps no such state."""

    mean: Any
    square: Any
    largest: Any


#: The names that optax's states have for m, v and w.
_NAMES = _Moments(("mu", "trace", "ema"), ("nu",), ("nu_max",))


class _Optimizer:
    """A transformation of gradients whose state is laid out as optax's is."""

    def __init__(
        self,
        twin: Any,
        choices: Choices,
        learning_rate: Number | Schedule,
        *,
        rate_place: int = 1,
        decay: _Decay | None = None,
        trace: _Trace | None = None,
    ) -> None:
        """Take optax's transformation, whose states are at the given places of a tuple."""
        self._twin = twin
        self._choices = choices
        self._rate = _number_or_schedule("learning_rate", learning_rate)
        self._rate_place = rate_place
        self._decay = decay
        self._amount = _number_or_schedule("weight_decay", decay.amount if decay else 0.0)
        self._trace = trace

    def transformation(self) -> Transformation:
        """Return the pair of functions."""
        return Transformation(self._twin.init, self._update)

    def _update(
        self, updates: Tree, state: Any, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        del extra_args  # they are for other transformations of a chain
        states = list(state)
        choices = replace(self._choices, lr=self._rate_now(states), weight_decay=0.0)
        decays: Tree = False
        if self._decay is not None:
            if params is None:
                raise ValueError(
                    "Weight decay needs the parameters, but params is None. "
                    "Call update(gradients, state, params)."
                )
            choices = replace(choices, weight_decay=self._amount_now(states, self._decay))
            decays = _called(self._decay.mask, updates)
        leaves, structure = _flattened(updates)
        moments = states[0]
        named = _Moments(*(_first(names, moments) for names in _NAMES))
        flat = _Moments(*(
            None if name is None else structure.flatten_up_to(getattr(moments, name))
            for name in named
        ))  # fmt: skip
        arrays = choices.arrays()
        constants = replace(choices, **dict.fromkeys(arrays))
        count = moments.count if "count" in moments._fields else None
        stepped, flat = _step(
            constants,
            tuple(_prefixed(decays, updates, structure)),
            arrays,
            count,
            leaves,
            None if params is None else structure.flatten_up_to(params),
            flat,
        )
        changed = {
            name: structure.unflatten(each)
            for name, each in zip(named, flat, strict=True)
            if name is not None
        }
        if count is not None:
            changed["count"] = _next(count)
        states[0] = moments._replace(**changed)
        if self._trace is not None:
            place = self._trace.place
            trace = structure.flatten_up_to(states[place].trace)
            stepped, trace = _traced(self._trace.nesterov, self._trace.decay, stepped, trace)
            states[place] = states[place]._replace(trace=structure.unflatten(trace))
        return structure.unflatten(stepped), tuple(states)

    def _rate_now(self, states: list[Any]) -> Number:
        return _now("learning_rate", self._rate, states, self._rate_place)

    def _amount_now(self, states: list[Any], decay: _Decay) -> Number:
        if decay.mask is None:
            return _now("weight_decay", self._amount, states, decay.place)
        inner = [states[decay.place].inner_state]
        amount = _now("weight_decay", self._amount, inner, 0)
        states[decay.place] = states[decay.place]._replace(inner_state=inner[0])
        return amount


def _adam_choices(b1: Number, b2: Number, eps: Number, eps_root: Number, nesterov: bool) -> Choices:
    return Choices(
        b1=_rate("b1", b1),
        b2=_rate("b2", b2),
        eps=_amount("eps", eps),
        eps_root=_amount("eps_root", eps_root),
        nesterov=nesterov,
        unbias1=True,
        unbias2=True,
    )


# -- the step ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _step(
    constants: Choices,
    decays: tuple[bool, ...],
    arrays: dict[str, Array],
    count: Array | None,
    gradients: list[Array | None],
    params: list[Array] | None,
    moments: _Moments,
) -> tuple[list[Array | None], _Moments]:
    """Return updates and moments after one step of all arrays."""
    choices = replace(constants, **arrays)
    numbers: dict[Any, Coefficients] = {}
    stepped: list[Array | None] = []
    after: list[tuple[Array, ...]] = []
    for i, gradient in enumerate(gradients):
        before = tuple(None if each is None else each[i] for each in moments)
        if gradient is None:
            stepped.append(None)
            after.append(before)
            continue
        kept = next((each for each in (before[1], before[0]) if each is not None), gradient)
        wide = jnp.result_type(gradient, kept)
        dtype = np.dtype(np.float64 if real_dtype(wide) == np.float64 else np.float32)
        if dtype not in numbers:
            numbers[dtype] = coefficients(choices, 0 if count is None else count, dtype)
        c = numbers[dtype]
        if not decays[i]:
            c = c._replace(decay=constant(0.0, dtype))
        param = None if params is None else params[i]
        update, state = _step_one(c, dtype, gradient, param, _Moments(*before), wide)
        stepped.append(update)
        after.append(state)
    columns = zip(*after, strict=True) if after else ((), (), ())
    kept = (None if b is None else list(a) for a, b in zip(columns, moments, strict=True))
    return stepped, _Moments(*kept)


def _step_one(
    c: Coefficients, dtype: Any, gradient: Array, param: Array | None, before: _Moments, wide: Any
) -> tuple[Array, _Moments]:
    g = Operand.of(gradient, dtype)
    # The parameter itself is needed where it decays.
    needed = param is not None and not c.decay.is_constant(0)
    p = Operand.of(param, dtype) if needed else constant(0.0, dtype)
    m = None if before.mean is None else Operand.of(before.mean, dtype)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype)
        for each in (before.square, before.largest)
    )
    after = rule(c, p, g, m, v, w)
    state = _Moments(*(
        None if old is None else new.array(old, old.dtype)
        for new, old in zip((after.m, after.v, after.w), before, strict=True)
    ))  # fmt: skip
    return (-after.change).array(gradient, wide), state


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _traced(
    nesterov: bool, decay: Number, updates: list[Array | None], trace: list[Array]
) -> tuple[list[Array | None], list[Array]]:
    """Return sums of updates: what is added to the parameters, and what is kept."""
    moved: list[Array | None] = []
    kept: list[Array] = []
    for update, old in zip(updates, trace, strict=True):
        if update is None:
            moved.append(None)
            kept.append(old)
            continue
        wide = jnp.result_type(update, old)
        dtype = np.dtype(np.float64 if real_dtype(wide) == np.float64 else np.float32)
        keep, take = Operand(jnp.asarray(decay, dtype)), constant(1.0, dtype)
        u = Operand.of(update, dtype)
        total = smooth(keep, take, Operand.of(old, dtype), u)
        moved.append((smooth(keep, take, total, u) if nesterov else total).array(update, wide))
        kept.append(total.array(old, old.dtype))
    return moved, kept


# -- trees ---------------------------------------------------------------------------------------


def _flattened(gradients: Tree) -> tuple[list[Array | None], Any]:
    """Return the gradients, of which some may be None, and the structure of their tree."""
    found, structure = jax.tree_util.tree_flatten_with_path(gradients, is_leaf=lambda x: x is None)
    for path, leaf in found:
        if leaf is not None and not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"The gradient at {jax.tree_util.keystr(path) or 'the root'} has dtype "
                f"{jnp.result_type(leaf)}, but it must be floating or complex."
            )
    return [leaf for _, leaf in found], structure


def _called(mask: Any, gradients: Tree) -> Tree:
    if mask is None:
        return True
    leaves = jax.tree.leaves(mask, is_leaf=callable)
    return mask(gradients) if leaves and all(map(callable, leaves)) else mask


def _prefixed(decays: Tree, gradients: Tree, structure: Any) -> list[bool]:
    """Return the leaf of ``decays``, whose tree is a prefix, for each gradient."""
    spread = jax.tree.map(
        lambda decay, part: jax.tree.map(lambda _: bool(decay), part, is_leaf=lambda x: x is None),
        decays,
        gradients,
    )
    return structure.flatten_up_to(spread)


def _first(names: Sequence[str], state: Any) -> str | None:
    return next((name for name in names if name in state._fields), None)


def _now(name: str, value: Number | Schedule, states: list[Any], place: int) -> Number:
    """Return a number, of a schedule that for the count at ``place``, which goes up."""
    if not callable(value):
        return value
    count = states[place].count
    states[place] = states[place]._replace(count=_next(count))
    return _number(name, value(count))


def _next(count: Array) -> Array:
    """Return count + 1, as far as its dtype goes."""
    count = jnp.asarray(count)
    most = np.array(np.iinfo(count.dtype).max - 1, count.dtype)
    return jnp.minimum(count, most) + np.array(1, count.dtype)


# -- numbers -------------------------------------------------------------------------------------


def _number(name: str, value: Any) -> Number:
    """Return a float, or a floating array without axes."""
    if isinstance(value, jax.Array):
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.number):
            raise TypeError(f"{name} is {value!r}, but it must be a number.")
        return value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.float32)
    if isinstance(value, (bool, str)) or value is None:
        raise TypeError(f"{name} is {value!r}, but it must be a number.")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, but it must be a number.") from None


def _number_or_schedule(name: str, value: Any) -> Number | Schedule:
    return value if callable(value) else _number(name, value)


def _rate(name: str, value: Any) -> Number:
    return _number(name, value) if isinstance(value, jax.Array) else check_rate(name, value)


def _amount(name: str, value: Any) -> Number:
    number = _number(name, value)
    if isinstance(number, float) and not 0 <= number < float("inf"):
        raise ValueError(f"{name} is {number!r}, but it must be finite and at least 0.")
    return number
