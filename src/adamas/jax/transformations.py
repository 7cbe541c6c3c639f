"""The optimizers: optax's functions, with the rule inside.

Each returns what optax's function of the same name returns, with the same state: it is made by
optax's own ``init``, so that it has optax's types and checkpoints go both ways. ``update`` calls
``adamas.rule.rule`` for each array and returns what is to be added to the parameter: −change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import optax

from adamas.checks import check_choice
from adamas.codecs import mean_top
from adamas.jax import arguments, small, states, step, trees
from adamas.jax.arguments import known_by
from adamas.jax.numbers import Choices, DecoupledDecay, Number, varying
from adamas.jax.operands import pinned
from adamas.jax.small import CodedState
from adamas.jax.trees import Gradients
from adamas.options import Options, Phase, Rounding, StateForm, check_greatest

__all__ = ["adam", "adamw", "amsgrad", "momentum", "nadam", "nadamw", "radam", "rmsprop", "sgd"]

Array = Any
Tree = Any
#: A number that depends on the step: called with the count, which is 0 at the first.
Schedule = Callable[[Any], Any]
#: How m and v are stored: one form for both, or a pair.
Forms = StateForm | tuple[StateForm, StateForm]
#: What optax's functions return: ``init`` and ``update``.
Transformation = optax.GradientTransformationExtraArgs


@known_by("adam")
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
    clip_update: Number | None = None,
) -> Transformation:
    """Return Adam (Kingma & Ba 2015, algorithm 1), as optax.adam.

    ``state``, ``rounding`` and ``seed`` store m and v in fewer bytes; see
    ``adamas.Options``. ``clip_update`` shortens the update of an array whose gradient has outgrown
    v, as StableAdamW does; see ``adamas.Phase``.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov, clip_update)
    coding = _stored(choices, state, rounding, seed, mu_dtype=mu_dtype)
    moments = _Kept(optax.scale_by_adam(mu_dtype=mu_dtype), "mu", "nu", dtype=mu_dtype)
    return _Optimizer(choices, coding, moments, learning_rate).transformation()


@known_by("adamw")
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
    decay: DecoupledDecay = "decoupled",
    lr_max: Number | None = None,
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
    clip_update: Number | None = None,
) -> Transformation:
    """Return Adam with decoupled decay (Loshchilov & Hutter 2019, algorithm 2), as optax.adamw.

    ``mask`` is a tree of booleans (or a function that makes one of the gradients): where it is
    False, nothing decays. ``update`` needs the parameters. ``decay`` and ``lr_max`` are those of
    ``adamas.Options``. The rest is as in ``adam``.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov, clip_update)
    choices = _decaying(choices, decay, learning_rate, lr_max)
    coding = _stored(choices, state, rounding, seed, mu_dtype=mu_dtype)
    moments = _Kept(optax.scale_by_adam(mu_dtype=mu_dtype), "mu", "nu", dtype=mu_dtype)
    numbers = (learning_rate, b1, b2, eps, eps_root, weight_decay, lr_max)
    arguments.check_mask(mask, any(isinstance(each, jax.Array) for each in numbers))
    weights = _Decay(weight_decay, mask)
    return _Optimizer(choices, coding, moments, learning_rate, decay=weights).transformation()


@known_by("amsgrad")
def amsgrad(
    learning_rate: Number | Schedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
    *,
    clip_update: Number | None = None,
) -> Transformation:
    """Return AMSGrad (Reddi, Kale & Kumar 2018), as optax.amsgrad but for its order.

    The largest v is corrected for its bias, as in torch; optax corrects v and keeps the largest of
    that, so ``nu_max`` means the same only with ``bias_correction_nu=False``.
    """
    choices = replace(
        _adam_choices(b1, b2, eps, eps_root, False, clip_update),
        unbias1=bias_correction_mu,
        unbias2=bias_correction_nu,
    )
    amsgrad = optax.scale_by_amsgrad(mu_dtype=mu_dtype)
    moments = _Kept(amsgrad, "mu", "nu", "nu_max", dtype=mu_dtype)
    return _Optimizer(choices, None, moments, learning_rate).transformation()


@known_by("radam")
def radam(
    learning_rate: Number | Schedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    eps_root: Number = 0.0,
    threshold: Number = 5.0,
    *,
    nesterov: bool = False,
    state: Forms = "float32",
    rounding: Rounding | None = None,
    seed: int | Array = 0,
    clip_update: Number | None = None,
) -> Transformation:
    """Return Adam with a rectified learning rate (Liu et al. 2020, algorithm 2), as optax.radam.

    It is rectified where ρ_t is above ``threshold``, which is at least 4 (as in the paper); before,
    a step is the learning rate times the first moment. The rest is as in ``adam``.
    """
    choices = _adam_choices(b1, b2, eps, eps_root, nesterov, clip_update)
    choices = replace(choices, threshold=arguments.threshold("threshold", threshold))
    coding = _stored(choices, state, rounding, seed)
    moments = _Kept(optax.scale_by_radam(), "mu", "nu")
    return _Optimizer(choices, coding, moments, learning_rate).transformation()


@known_by("rmsprop")
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
    clip_update: Number | None = None,
) -> Transformation:
    """Return RMSProp (Tieleman & Hinton 2012), as optax.rmsprop.

    With ``eps_in_sqrt`` (optax's default) ε is added under the root. ``momentum`` sums up the
    updates, learning rate included. ``centered=True`` is refused: the rule keeps no variance.
    ``state``, ``rounding`` and ``seed`` store v in fewer bytes; see ``adamas.Options``.
    """
    if centered:
        raise ValueError(
            "centered is True, but the rule divides by the root of the mean square, not of the "
            "variance. Leave centered out, or use optax.rmsprop."
        )
    eps = arguments.amount("eps", eps)
    choices = Choices(
        b2=arguments.rate("decay", decay),
        eps=0.0 if eps_in_sqrt else eps,
        eps_root=eps if eps_in_sqrt else 0.0,
        unbias2=bias_correction,
        clip_update=arguments.bound("clip_update", clip_update),
    )
    coding = _stored(choices, state, rounding, seed)
    scale = arguments.amount("initial_scale", initial_scale)
    if coding is not None and not (isinstance(scale, float) and scale == 0.0):
        raise ValueError(
            f"initial_scale is {initial_scale!r}, but a small state starts from 0. Leave "
            "initial_scale or state out."
        )
    more = {"bias_correction": True} if bias_correction else {}
    rms = optax.scale_by_rms(initial_scale=initial_scale, **more)
    moments = _Kept(rms, square="nu", counts=bias_correction, initial=scale)
    trace = None if momentum is None else _Trace(arguments.rate("momentum", momentum), nesterov)
    names = {"b2": "decay", "eps": "eps", "eps_root": "eps"}
    optimizer = _Optimizer(
        choices, coding, moments, learning_rate, trace=trace, has_trace=True, names=names
    )
    return optimizer.transformation()


@known_by("sgd")
def sgd(
    learning_rate: Number | Schedule,
    momentum: Number | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transformation:
    """Return gradient descent, along a sum of gradients if ``momentum`` is given, as optax.sgd."""
    if momentum is None:
        nothing = _Kept(optax.identity(), counts=False)
        return _Optimizer(Choices(), None, nothing, learning_rate).transformation()
    choices = Choices(b1=arguments.rate("momentum", momentum), is_sum=True, nesterov=nesterov)
    trace = optax.trace(momentum, accumulator_dtype=accumulator_dtype)
    moments = _Kept(trace, mean="trace", counts=False)
    names = {"b1": "momentum"}
    return _Optimizer(choices, None, moments, learning_rate, names=names).transformation()


@known_by("momentum")
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
    """Return descent along the first moment: ``adamas.Momentum`` for JAX.

    The state is that of optax.chain(optax.ema(decay, debias), optax.scale_by_learning_rate(…)).
    ``state`` (here "bfloat16"), ``rounding`` and ``seed`` store m in fewer bytes.
    """
    choices = Choices(b1=arguments.rate("decay", decay), nesterov=nesterov, unbias1=debias)
    coding = _stored(choices, state, rounding, seed, accumulator_dtype=accumulator_dtype)
    moments = _Kept(optax.ema(0.0, accumulator_dtype=accumulator_dtype), mean="ema")
    names = {"b1": "decay"}
    return _Optimizer(choices, coding, moments, learning_rate, names=names).transformation()


nadam = known_by("nadam", nesterov=True)(adam)
nadamw = known_by("nadamw", nesterov=True)(adamw)
nadam.__doc__ = "Return Adam that looks ahead (Dozat 2016), as optax.nadam; the rest is as in adam."
nadamw.__doc__ = "Return nadam with decoupled decay, as optax.nadamw; the rest is as in adamw."


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
class _Kept:
    """optax's transformation whose state keeps the moments, and the names that it has for them."""

    transformation: Any
    mean: str | None = None
    square: str | None = None
    largest: str | None = None
    #: Whether steps are counted.
    counts: bool = True
    #: Of the mean, if one was asked for.
    dtype: Any = None
    #: What the mean of squares begins at.
    initial: Number = 0.0

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all that the state has."""
        count = ("count",) if self.counts else ()
        return count + tuple(filter(None, (self.mean, self.square, self.largest)))

    def init(self, params: Tree) -> Any:
        """Return optax's state, in float32 where it would be in float16.

        There the squares of gradients below 0.005 are 0.
        """
        state = self.transformation.init(params)
        mean = self.mean if self.dtype is None else None
        names = [] if self.square is None else [mean, self.square, self.largest]
        wide = {name: jax.tree.map(_widened, getattr(state, name)) for name in names if name}
        return state._replace(**wide)


class _Optimizer:
    """A transformation of gradients whose state is laid out as that of optax's chain."""

    def __init__(
        self,
        choices: Choices,
        coding: tuple[step.Coding, Array | None] | None,
        moments: _Kept,
        learning_rate: Number | Schedule,
        *,
        decay: _Decay | None = None,
        trace: _Trace | None = None,
        has_trace: bool = False,
        names: Mapping[str, str] = {},
    ) -> None:
        """Take the numbers and what is kept; ``names`` are those that users have for numbers."""
        self._choices = choices
        self._coding, self._seed = coding or (None, None)
        self._rate = arguments.number_or_schedule("learning_rate", learning_rate)
        self._decay = decay
        self._amount = arguments.number_or_schedule("weight_decay", decay.amount if decay else 0.0)
        self._trace = trace
        self._names = names
        # Only their init is ever called.
        first = optax.GradientTransformation(moments.init, moments.transformation.update)
        parts = [first, optax.scale_by_learning_rate(learning_rate)]
        self._fields = moments.fields
        self._initial = moments.initial
        self._kept = step.Moments(moments.mean, moments.square, moments.largest)
        if self._coding is not None:
            parts[0] = optax.GradientTransformation(self._init_coded, parts[0].update)
            self._fields = CodedState._fields
            self._kept = self._coding.kept(choices)
        if decay is not None:
            # With a mask that fits everything: that of the user is looked at here.
            mask = None if decay.mask is None else True
            parts.insert(1, optax.add_decayed_weights(decay.amount, mask))
        if has_trace:
            parts.append(optax.identity() if trace is None else optax.trace(trace.decay))
        self._parts = len(parts)
        self._init = optax.chain(*parts).init

    def transformation(self) -> Transformation:
        """Return the pair of functions."""
        return Transformation(self._init_checked, self._update)

    def _init_checked(self, params: Tree) -> Any:
        given = {
            **self._choices.arrays(),
            "learning_rate": self._rate,
            "weight_decay": self._amount,
        }
        if self._trace is not None:
            given["momentum"] = self._trace.decay
        given["initial_scale"] = self._initial
        arrays = {name: each for name, each in given.items() if isinstance(each, jax.Array)}
        arguments.check_values(arrays, self._names)
        if self._fields:
            trees.check_parameters(params)
        # optax.tree.map_params calls init with something that has no leaves.
        if self._decay is not None and self._decay.mask is not None and jax.tree.leaves(params):
            trees.decaying(self._decay.mask, params)
        return states.on_devices_of(params, self._init(params))

    def _init_coded(self, params: Tree) -> CodedState:
        assert self._coding is not None
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            dtype = jnp.result_type(leaf)
            if jnp.issubdtype(dtype, jnp.complexfloating) or dtype == jnp.float64:
                whose = f"the parameter at {trees.place(path)} has"
                raise ValueError(self._coding.storage.refusal_of_dtype(whose, dtype))
        return small.zeros(
            self._coding.storage,
            params,
            mean=self._kept.mean is not None,
            square=self._kept.square is not None,
            top=self._coding.top,
        )

    def _update(
        self, updates: Tree, state: Any, params: Tree = None, **extra_args: Any
    ) -> tuple[Tree, Any]:
        del extra_args  # they are for other transformations of a chain
        gradients = trees.flattened(updates)
        moments, *others = states.parts(state, self._parts)
        before, count, top = self._read(gradients, moments)
        choices, decays = self._choices_now(gradients, params, others)
        arrays = choices.arrays()
        stepped, after = step.stepped(
            replace(choices, **dict.fromkeys(arrays)),
            self._coding,
            decays,
            arrays,
            self._seed,
            count,
            top,
            gradients.leaves,
            self._parameters(gradients, params, before.mean),
            step.Moments(*(None if each is None else gradients.only(each) for each in before)),
        )
        changed: dict[str, Any] = {} if count is None else {"count": states.following(count)}
        for name, old, new in zip(self._kept, before, after, strict=True):
            if name is not None:
                changed[name] = gradients.kept(old, new)
        if top is not None:
            assert self._coding is not None
            assert self._coding.top is not None
            changed["top"] = jnp.full_like(top, self._coding.top)
        if self._trace is not None:
            states.check_fields(f"state[{len(others)}]", others[-1], ("trace",))
            old = gradients.beside("the state's trace", others[-1].trace)
            states.check_dtypes(gradients, ("trace",), (old,), None)
            stepped, new = step.traced(
                self._trace.nesterov, self._trace.decay, stepped, gradients.only(old)
            )
            others[-1] = others[-1]._replace(trace=gradients.kept(old, new))
        return gradients.updated(_as_parameters(stepped, gradients, params)), (
            moments._replace(**changed),
            *others,
        )

    def _read(self, gradients: Gradients, moments: Any) -> tuple[step.Moments, Any, Any]:
        """Return moments beside the gradients, the count and the exponent of codes, all checked."""
        states.check_fields("state[0]", moments, self._fields)
        count = top = None
        if "count" in self._fields:
            states.check_scalar("The state's count", moments.count)
            count = moments.count
        if self._coding is not None:
            top = self._coding.checked_top(moments)
            if gradients.leaves:
                for name in ("mu", "nu", "header"):
                    states.check_kept(name, getattr(moments, name), name in self._kept)
        flat = []
        for name in self._kept:
            shape = small.header_shape if name == "header" else jnp.shape
            flat.append(
                None
                if name is None
                else gradients.beside(f"the state's {name}", getattr(moments, name), shape)
            )
        codes = None
        if self._coding is not None:
            stored = small.dtypes(self._coding.storage)
            codes = step.Moments(stored.mean, stored.square, None, stored.header)
        states.check_dtypes(gradients, self._kept, flat, codes)
        return step.Moments(*flat), count, top

    def _parameters(
        self, gradients: Gradients, params: Tree, means: list[Array] | None
    ) -> list[Array] | None:
        """Return the parameters beside the gradients, if any decays."""
        if self._decay is None:
            return None
        found = gradients.beside("the tree of parameters", params)
        states.check_decaying(gradients, found, means)
        return gradients.only(found)

    def _choices_now(
        self, gradients: Gradients, params: Tree, others: list[Any]
    ) -> tuple[Choices, tuple[bool, ...]]:
        """Return the numbers at this count, and for each gradient whether its parameter decays.

        The states of schedules among ``others`` are replaced by those after the step.
        """
        amount: Number = 0.0
        decays = (False,) * len(gradients.leaves)
        if self._decay is not None:
            if params is None:
                raise ValueError(
                    "Weight decay needs the parameters, but params is None. "
                    "Call update(gradients, state, params)."
                )
            if self._decay.mask is None:
                decays = (True,) * len(gradients.leaves)
                amount, others[0] = _now("weight_decay", self._amount, others[0], 1)
            else:
                decays = tuple(trees.decaying(self._decay.mask, gradients.tree))
                amount, others[0] = _now_masked("weight_decay", self._amount, others[0], 1)
        place = 0 if self._decay is None else 1
        rate, others[place] = _now("learning_rate", self._rate, others[place], place + 1)
        choices = replace(self._choices, lr=rate, weight_decay=amount)
        if gradients.are_values:
            asked = {"lr": self._rate, "weight_decay": self._amount}
            choices = varying(choices, [name for name, each in asked.items() if callable(each)])
        return choices, decays


def _widened(array: Array) -> Array:
    return array.astype(jnp.float32) if _is_float16(array) else array


def _as_parameters(
    updates: list[Array | None], gradients: Gradients, params: Tree
) -> list[Array | None]:
    """Return updates in float16 where parameter and gradient are, though the state is wider."""
    if not any(_is_float16(each) for each in gradients.leaves):
        return updates
    try:
        beside = gradients.structure.flatten_up_to(params)
    except (TypeError, ValueError):  # a method that does not read them takes anything
        return updates
    rows = zip(updates, gradients.leaves, beside, strict=True)
    return [
        pinned(u.astype(jnp.float16)) if u is not None and _is_float16(g) and _is_float16(p) else u
        for u, g, p in rows
    ]


def _is_float16(array: Any) -> bool:
    return getattr(array, "dtype", None) == jnp.float16


def _adam_choices(
    b1: Number,
    b2: Number,
    eps: Number,
    eps_root: Number,
    nesterov: bool,
    clip_update: Number | None,
) -> Choices:
    return Choices(
        b1=arguments.rate("b1", b1),
        b2=arguments.rate("b2", b2),
        eps=arguments.amount("eps", eps),
        eps_root=arguments.amount("eps_root", eps_root),
        nesterov=nesterov,
        unbias1=True,
        unbias2=True,
        clip_update=arguments.bound("clip_update", clip_update),
    )


def _decaying(
    choices: Choices,
    decay: DecoupledDecay,
    learning_rate: Number | Schedule,
    lr_max: Number | None,
) -> Choices:
    """Return the numbers with the kind of decay; a fixed learning rate is its own greatest."""
    check_choice("decay", decay, get_args(DecoupledDecay))
    if decay in ("decoupled", "cautious"):
        if lr_max is not None:
            Options(decay=decay, lr_max=lr_max)  # which says that it has no meaning
        return replace(choices, kind=decay)
    if lr_max is None:
        if callable(learning_rate):
            raise ValueError(
                f"decay is {decay!r}, but with a schedule for learning_rate its greatest value "
                "cannot be known. Give lr_max."
            )
        lr_max = learning_rate
    greatest = arguments.greatest("lr_max", lr_max)
    if not (callable(learning_rate) or isinstance(learning_rate, jax.Array)) and isinstance(
        greatest, float
    ):
        check_greatest("learning_rate", float(learning_rate), greatest, decay)
    return replace(choices, kind=decay, lr_max=greatest)


def _stored(
    choices: Choices, state: Forms, rounding: Rounding | None, seed: int | Array, **dtypes: Any
) -> tuple[step.Coding, Array | None] | None:
    """Return how m and v are stored, with the seed if it is an array; None for plain floats."""
    betas = (choices.b1, choices.b2)
    mean, square = (0.5 if isinstance(beta, jax.Array) else beta for beta in betas)
    storage = Options(betas=(mean, square), state=state, rounding=rounding).storage
    if rounding not in (None, "nearest", "stochastic"):
        raise ValueError(
            f"rounding is {rounding!r}, but with JAX it is optax that adds updates to parameters. "
            'Use "nearest" or "stochastic", which round m and v.'
        )
    if isinstance(seed, jax.Array):
        arguments.check_seed(seed)
    else:
        seed = Phase(seed=seed).seed
    if not storage.is_small:
        return None
    for name, dtype in dtypes.items():
        if dtype is not None:
            raise ValueError(
                f"{name} is {dtype!r} and state is {state!r}, but both say how m is stored. "
                f"Leave {name} out."
            )
    top = None
    if choices.b1 is not None and storage.is_relative:
        if any(isinstance(beta, jax.Array) for beta in betas):
            raise ValueError(
                f'state is "{storage.mean}", which needs decay rates that are known when the '
                "program is made, but one is an array. Give floats; with optax.inject_hyperparams "
                'name them in static_args: ("b1", "b2").'
            )
        top = mean_top(choices.b1, choices.b2)
    is_array = isinstance(seed, jax.Array)
    coding = step.Coding(storage, top, None if is_array else seed)
    return coding, seed if is_array else None


# -- numbers that depend on the count ------------------------------------------------------------


def _now(name: str, value: Number | Schedule, state: Any, i: int) -> tuple[Number, Any]:
    """Return a number, of a schedule that for the count in ``state``, and the state after it."""
    if not callable(value):
        return value, state
    states.check_fields(f"state[{i}] (of the schedule of {name})", state, ("count",))
    states.check_scalar(f"The count in state[{i}]", state.count)
    number = arguments.number(f"{name}(count)", value(state.count))
    return number, state._replace(count=states.following(state.count))


def _now_masked(name: str, value: Number | Schedule, state: Any, i: int) -> tuple[Number, Any]:
    """Return ``_now`` for a state within that of optax.masked."""
    if not callable(value):
        return value, state
    states.check_fields(f"state[{i}] (of the mask)", state, ("inner_state",))
    number, inner = _now(name, value, state.inner_state, i)
    return number, state._replace(inner_state=inner)
