"""The optimizers: optax's functions, with the rule inside.

Each returns what optax's function of the same name returns, with the same state: it is made by
optax's own ``init``, so that it has optax's types and checkpoints go both ways. ``update`` calls
:func:`adamas.rule.rule` for each array and returns what is to be added to the parameter: −change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adamas.checks import check_rate
from adamas.codecs import mean_top
from adamas.coefficients import Coefficients
from adamas.jax import small
from adamas.jax.numbers import Choices, Number, coefficients
from adamas.jax.operands import Operand, constant, real_dtype
from adamas.jax.small import CodedState
from adamas.options import Options, Phase, Rounding, StateForm
from adamas.rule import Result, rule, smooth

__all__ = ["adam", "adamw", "amsgrad", "momentum", "nadam", "nadamw", "rmsprop", "sgd"]

Array = Any
Tree = Any
Schedule = Callable[[Any], Any]
Forms = StateForm | tuple[StateForm, StateForm]
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
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
) -> Transformation:
    """Return Adam (Kingma & Ba 2015, algorithm 1), as optax.adam.

    ``state``, ``rounding`` and ``seed`` store m and v in fewer bytes; see
    :class:`adamas.Options`.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov)
    storage = _stored(choices, state, rounding, seed, mu_dtype=mu_dtype)
    moments = optax.scale_by_adam(mu_dtype=mu_dtype)
    return _Optimizer(choices, storage, moments, learning_rate).transformation()


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
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
) -> Transformation:
    """Return Adam with decoupled decay (Loshchilov & Hutter 2019, algorithm 2), as optax.adamw.

    ``mask`` is a tree of booleans (or a function that makes one of the gradients): where it is
    False, nothing decays. ``update`` needs the parameters. The rest is as in :func:`adam`.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov)
    storage = _stored(choices, state, rounding, seed, mu_dtype=mu_dtype)
    moments = optax.scale_by_adam(mu_dtype=mu_dtype)
    decay = _Decay(weight_decay, mask)
    return _Optimizer(choices, storage, moments, learning_rate, decay=decay).transformation()


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
    moments = optax.scale_by_amsgrad(mu_dtype=mu_dtype)
    return _Optimizer(choices, None, moments, learning_rate).transformation()


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
    *,
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
) -> Transformation:
    """Return RMSProp (Tieleman & Hinton 2012), as optax.rmsprop.

    With ``eps_in_sqrt`` (optax's default) ε is added under the root. ``momentum`` sums up the
    updates, learning rate included. ``centered=True`` is refused: the rule keeps no variance.
    ``state``, ``rounding`` and ``seed`` store v in fewer bytes; see :class:`adamas.Options`.
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
    storage = _stored(choices, state, rounding, seed)
    scale = _number("initial_scale", initial_scale)
    if storage is not None and not (isinstance(scale, float) and scale == 0.0):
        raise ValueError(
            f"initial_scale is {initial_scale!r}, but a small state starts from 0. Leave "
            "initial_scale or state out."
        )
    more = {"bias_correction": True} if bias_correction else {}
    moments = optax.scale_by_rms(initial_scale=initial_scale, **more)
    trace = None if momentum is None else _Trace(_rate("momentum", momentum), nesterov)
    optimizer = _Optimizer(choices, storage, moments, learning_rate, trace=trace, has_trace=True)
    return optimizer.transformation()


def sgd(
    learning_rate: Number | Schedule,
    momentum: Number | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transformation:
    """Return gradient descent, along a sum of gradients if ``momentum`` is given, as optax.sgd."""
    if momentum is None:
        return _Optimizer(Choices(), None, optax.identity(), learning_rate).transformation()
    choices = Choices(b1=_rate("momentum", momentum), is_sum=True, nesterov=nesterov)
    moments = optax.trace(momentum, accumulator_dtype=accumulator_dtype)
    return _Optimizer(choices, None, moments, learning_rate).transformation()


def momentum(
    learning_rate: Number | Schedule,
    decay: Number = 0.9,
    debias: bool = False,
    accumulator_dtype: Any = None,
    *,
    nesterov: bool = False,
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
) -> Transformation:
    """Return descent along a running mean of gradients: :class:`adamas.Momentum` for JAX.

    The state is that of optax.chain(optax.ema(decay, debias), optax.scale_by_learning_rate(…)).
    ``state`` (here "bfloat16"), ``rounding`` and ``seed`` store m in fewer bytes.
    """
    choices = Choices(b1=_rate("decay", decay), nesterov=nesterov, unbias1=debias)
    storage = _stored(choices, state, rounding, seed, accumulator_dtype=accumulator_dtype)
    moments = optax.ema(0.0, accumulator_dtype=accumulator_dtype)
    return _Optimizer(choices, storage, moments, learning_rate).transformation()


nadam = functools.partial(adam, nesterov=True)
nadamw = functools.partial(adamw, nesterov=True)


# -- what the functions are made of --------------------------------------------------------------


@dataclass(frozen=True)
class _Decay:
    """Decoupled weight decay, and what it is for."""

    amount: Number | Schedule
    mask: Any


@dataclass(frozen=True)
class _Trace:
    """A sum of updates."""

    decay: Number
    nesterov: bool


@dataclass(frozen=True)
class _Storage:
    """How m and v are stored in few bytes."""

    forms: tuple[StateForm, StateForm]
    is_stochastic: bool
    #: The exponent that codes of m are counted from.
    top: int
    #: Of the random bits; None where it is an array, which travels with other arrays.
    seed: int | None


class _Moments(NamedTuple):
    """m, v, w and headers of all parameters, or of one; None where there are none."""

    mean: Any = None
    square: Any = None
    largest: Any = None
    header: Any = None


#: The names that states have for them.
_NAMES = _Moments(("mu", "trace", "ema"), ("nu",), ("nu_max",), ("header",))


class _Optimizer:
    """A transformation of gradients whose state is laid out as that of optax's chain."""

    def __init__(
        self,
        choices: Choices,
        storage: tuple[_Storage, Array | None] | None,
        moments: Any,
        learning_rate: Number | Schedule,
        *,
        decay: _Decay | None = None,
        trace: _Trace | None = None,
        has_trace: bool = False,
    ) -> None:
        """Take the numbers, and optax's transformation whose state keeps the moments."""
        self._choices = choices
        self._storage, self._seed = storage or (None, None)
        self._rate = _number_or_schedule("learning_rate", learning_rate)
        self._decay = decay
        self._amount = _number_or_schedule("weight_decay", decay.amount if decay else 0.0)
        self._trace = trace
        # Only their init is ever called.
        parts = [moments, optax.scale_by_learning_rate(learning_rate)]
        if self._storage is not None:
            parts[0] = optax.GradientTransformation(self._init_coded, moments.update)
        if decay is not None:
            parts.insert(1, optax.add_decayed_weights(decay.amount, decay.mask))
        if has_trace:
            parts.append(optax.identity() if trace is None else optax.trace(trace.decay))
        self._init = optax.chain(*parts).init

    def transformation(self) -> Transformation:
        """Return the pair of functions."""
        return Transformation(self._init, self._update)

    def _init_coded(self, params: Tree) -> CodedState:
        assert self._storage is not None
        for leaf in jax.tree.leaves(params):
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64:
                raise ValueError(
                    f"state is {self._storage.forms!r}, but a parameter has dtype {dtype}: "
                    "small forms are for float32 and half precision. Convert the parameter, or use "
                    'state="float32", which keeps its dtype.'
                )
        kept = (self._choices.b1 is not None, self._choices.b2 is not None)
        return small.zeros(self._storage.forms, params, mean=kept[0], square=kept[1])

    def _update(
        self, updates: Tree, state: Any, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        del extra_args  # they are for other transformations of a chain
        moments, *others = state
        leaves, structure = _flattened(updates)
        choices, decays = self._choices_now(updates, params, others)
        names = _Moments(*(_kept_under(each, moments) for each in _NAMES))
        flat = _Moments(*(
            None if name is None else structure.flatten_up_to(getattr(moments, name))
            for name in names
        ))  # fmt: skip
        count = moments.count if "count" in moments._fields else None
        arrays = choices.arrays()
        stepped, flat = _step(
            replace(choices, **dict.fromkeys(arrays)),
            self._storage,
            tuple(structure.flatten_up_to(decays)),
            arrays,
            self._seed,
            count,
            leaves,
            None if params is None else structure.flatten_up_to(params),
            flat,
        )
        changed: dict[str, Any] = {} if count is None else {"count": _next(count)}
        for name, each in zip(names, flat, strict=True):
            if name is not None:
                changed[name] = structure.unflatten(each)
        if self._trace is not None:
            trace = structure.flatten_up_to(others[-1].trace)
            stepped, trace = _traced(self._trace.nesterov, self._trace.decay, stepped, trace)
            others[-1] = others[-1]._replace(trace=structure.unflatten(trace))
        return structure.unflatten(stepped), (moments._replace(**changed), *others)

    def _choices_now(self, updates: Tree, params: Tree, others: list[Any]) -> tuple[Choices, Tree]:
        """Return the numbers at this count, and for each gradient whether its parameter decays.

        The states of schedules among ``others`` are replaced by those after the step.
        """
        amount, mask = 0.0, False
        if self._decay is not None:
            if params is None:
                raise ValueError(
                    "Weight decay needs the parameters, but params is None. "
                    "Call update(gradients, state, params)."
                )
            mask = True if self._decay.mask is None else _called(self._decay.mask, updates)
            if self._decay.mask is None:
                amount, others[0] = _now("weight_decay", self._amount, others[0])
            else:
                amount, inner = _now("weight_decay", self._amount, others[0].inner_state)
                others[0] = others[0]._replace(inner_state=inner)
        place = 0 if self._decay is None else 1
        rate, others[place] = _now("learning_rate", self._rate, others[place])
        return replace(self._choices, lr=rate, weight_decay=amount), _spread(mask, updates)


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


def _stored(
    choices: Choices, state: Forms, rounding: Rounding | None, seed: int | Array, **dtypes: Any
) -> tuple[_Storage, Array | None] | None:
    """Return how m and v are stored, with the seed if it is an array; None for plain floats."""
    betas = (choices.b1, choices.b2)
    mean, square = (0.5 if isinstance(beta, jax.Array) else beta for beta in betas)
    options = Options(betas=(mean, square), state=state, rounding=rounding)
    if rounding not in (None, "nearest", "stochastic"):
        raise ValueError(
            f"rounding is {rounding!r}, but with JAX it is optax that adds updates to parameters. "
            'Use "nearest" or "stochastic", which round m and v.'
        )
    if not isinstance(seed, jax.Array):
        Phase(seed=seed)  # checks it
    if options.forms == ("float32", "float32"):
        return None
    for name, dtype in dtypes.items():
        if dtype is not None:
            raise ValueError(
                f"{name} is {dtype!r} and state is {state!r}, but both say how m is stored. "
                f"Leave {name} out."
            )
    top = 0
    if choices.b1 is not None and options.forms[0] in ("compact", "8bit"):
        if any(isinstance(beta, jax.Array) for beta in betas):
            raise ValueError(
                f'state is "{options.forms[0]}", which needs decay rates that are known when the '
                "program is made, but one is an array. Give floats; with optax.inject_hyperparams "
                'name them in static_args: ("b1", "b2").'
            )
        top = mean_top(choices.b1, choices.b2)
    is_array = isinstance(seed, jax.Array)
    storage = _Storage(options.forms, options.is_stochastic, top, None if is_array else seed)
    return storage, seed if is_array else None


# -- the step ------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _step(
    constants: Choices,
    storage: _Storage | None,
    decays: tuple[bool, ...],
    arrays: dict[str, Array],
    seed: Array | None,
    count: Array | None,
    gradients: list[Array | None],
    params: list[Array] | None,
    moments: _Moments,
) -> tuple[list[Array | None], _Moments]:
    """Return updates and moments after one step of all arrays."""
    choices = replace(constants, **arrays)
    bits: list[Any] = [None] * len(gradients)
    if storage is not None and storage.is_stochastic:
        step = jnp.asarray(count).astype(jnp.uint32) + np.uint32(1)
        chosen = storage.seed if seed is None else seed
        bits = list(zip(*small.keys(chosen, step, len(gradients)), strict=True))
    numbers: dict[Any, Coefficients] = {}
    stepped: list[Array | None] = []
    after: list[_Moments] = []
    for i, gradient in enumerate(gradients):
        before = _Moments(*(None if each is None else each[i] for each in moments))
        if gradient is None:
            stepped.append(None)
            after.append(before)
            continue
        wide, dtype = _dtypes(gradient, before)
        if storage is not None:
            wide, dtype = jnp.result_type(gradient), np.dtype(np.float32)
        if dtype not in numbers:
            numbers[dtype] = coefficients(choices, 0 if count is None else count, dtype)
        c = numbers[dtype]
        if not decays[i]:
            c = c._replace(decay=constant(0.0, dtype))
        operands = (Operand.of(gradient, dtype), _parameter(c, params, i, dtype))
        if storage is None:
            result, kept = _step_plain(c, *operands, before, dtype)
        else:
            result, kept = _step_coded(c, *operands, before, storage, bits[i])
        stepped.append((-result.change).array(gradient, wide))
        after.append(kept)
    columns = zip(*after, strict=True) if after else ((),) * len(moments)
    lists = (None if b is None else list(a) for a, b in zip(columns, moments, strict=True))
    return stepped, _Moments(*lists)


def _step_plain(
    c: Coefficients, g: Operand, p: Operand, before: _Moments, dtype: Any
) -> tuple[Result, _Moments]:
    """Return the rule's result, and moments of the dtypes they had."""
    if before.mean is not None and len(g.parts) == 2 and not jnp.iscomplexobj(before.mean):
        raise TypeError(
            f"A gradient is complex, but its running mean has dtype {before.mean.dtype}, which "
            "would lose the imaginary part. Leave mu_dtype out."
        )
    m = None if before.mean is None else Operand.of(before.mean, dtype)
    v, w = (
        None if each is None else Operand.of(jnp.real(each), dtype)
        for each in (before.square, before.largest)
    )
    result = rule(c, p, g, m, v, w)
    kept = (
        None if old is None or new is None else new.array(old, old.dtype)
        for new, old in zip((result.m, result.v, result.w), before[:3], strict=True)
    )
    return result, _Moments(*kept)


def _step_coded(
    c: Coefficients, g: Operand, p: Operand, before: _Moments, storage: _Storage, key: Any
) -> tuple[Result, _Moments]:
    """Return the rule's result, and moments as codes."""
    codes = small.Codes(before.mean, before.square, before.header)
    m, v = small.decode(storage.forms, codes, storage.top)
    result = rule(
        c, p, g, *(None if each is None else Operand.of(each, np.float32) for each in (m, v))
    )
    m, v = (None if each is None else each.parts[0] for each in (result.m, result.v))
    bits = None if key is None else small.random_bits(key, g.parts[0].shape)
    mean, square, header = small.encode(storage.forms, m, v, bits, storage.top)
    return result, _Moments(mean, square, None, header)


def _parameter(c: Coefficients, params: list[Array] | None, i: int, dtype: Any) -> Operand:
    """Return the parameter where it decays; where not, the rule needs only its change."""
    if params is None or c.decay.is_constant(0):
        return constant(0.0, dtype)
    return Operand.of(params[i], dtype)


def _dtypes(gradient: Array, kept: _Moments) -> tuple[Any, Any]:
    """Return the dtype of the update, and that which is computed with."""
    state = kept.square if kept.square is not None else kept.mean
    wide = jnp.result_type(gradient) if state is None else jnp.result_type(gradient, state)
    return wide, np.dtype(np.float64 if real_dtype(wide) == np.float64 else np.float32)


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
        wide, dtype = _dtypes(update, _Moments(old))
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
    """Return the mask, made of the gradients if it is a function, as optax.masked does."""
    leaves = jax.tree.leaves(mask, is_leaf=callable)
    return mask(gradients) if leaves and all(map(callable, leaves)) else mask


def _spread(mask: Tree, gradients: Tree) -> Tree:
    """Return a tree like ``gradients`` with the flag of ``mask``, whose tree is a prefix."""

    def over(flag: Any, part: Tree) -> Tree:
        return jax.tree.map(lambda _: bool(flag), part, is_leaf=lambda x: x is None)

    return jax.tree.map(over, mask, gradients)


def _kept_under(names: Sequence[str], state: Any) -> str | None:
    """Return which of ``names`` the state has something under."""
    kept = {name: value for name, value in state._asdict().items() if not _is_empty(value)}
    return next((name for name in names if name in kept), None)


def _is_empty(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 0


def _now(name: str, value: Number | Schedule, state: Any) -> tuple[Number, Any]:
    """Return a number, of a schedule that for the count in ``state``, and the state after it."""
    if not callable(value):
        return value, state
    return _number(name, value(state.count)), state._replace(count=_next(state.count))


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
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}, but it must be a number.") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number!r}, but it must be finite.")
    return number


def _number_or_schedule(name: str, value: Any) -> Number | Schedule:
    return value if callable(value) else _number(name, value)


def _rate(name: str, value: Any) -> Number:
    return _number(name, value) if isinstance(value, jax.Array) else check_rate(name, value)


def _amount(name: str, value: Any) -> Number:
    number = _number(name, value)
    if isinstance(number, float) and number < 0:
        raise ValueError(f"{name} is {number!r}, but it must be at least 0.")
    return number
