"""Runs of adamas.jax beside those of the reference engine, for the tests of the JAX front-end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamas.jax as ours
from adamas import rule as rules
from adamas.coefficients import at_step
from adamas.engines import reference
from adamas.options import Options, Phase
from tests.support.cases import bits, run

LR = 0.01


class Case(NamedTuple):
    """An optimizer of adamas.jax, and the options that mean the same."""

    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    options: Options

    def transformation(self, **arguments: Any) -> Any:
        return self.make(LR, **{**self.arguments, **arguments})


def _adam(make: Callable[..., Any], decay: Mapping[str, Any] = {}, **arguments: Any) -> Case:
    names = {"eps", "eps_root", "nesterov"}
    same = {name: value for name, value in arguments.items() if name in names}
    betas = (arguments.get("b1", 0.9), arguments.get("b2", 0.999))
    return Case(make, arguments, Options(lr=LR, betas=betas, **same, **decay))


#: Every function, and the options that change its arithmetic.
CASES: dict[str, Case] = {
    "adam": _adam(ours.adam),
    "adam-eps0": _adam(ours.adam, eps=0.0),
    "adam-eps_root": _adam(ours.adam, eps=1e-6, eps_root=1e-5, b1=0.5, b2=0.9),
    "adam-b1=0": _adam(ours.adam, b1=0.0, b2=0.95),
    "nadam": _adam(ours.nadam, {"nesterov": True}),
    "adamw": _adam(ours.adamw, {"weight_decay": 0.1, "decay": "decoupled"}, weight_decay=0.1),
    "nadamw": _adam(
        ours.nadamw,
        {"weight_decay": 0.1, "decay": "decoupled", "nesterov": True},
        weight_decay=0.1,
    ),
    "radam": _adam(ours.radam, {"rectify": True}),
    "amsgrad": _adam(ours.amsgrad, {"amsgrad": True}),
    "amsgrad-uncorrected": _adam(
        ours.amsgrad,
        {"amsgrad": True, "bias_correction": "none"},
        bias_correction_mu=False,
        bias_correction_nu=False,
    ),
    "rmsprop": Case(
        ours.rmsprop,
        {},
        Options(lr=LR, betas=(None, 0.9), eps=0.0, eps_root=1e-8, bias_correction="none"),
    ),
    "rmsprop-torch": Case(
        ours.rmsprop,
        {"decay": 0.99, "eps_in_sqrt": False},
        Options(lr=LR, betas=(None, 0.99), bias_correction="none"),
    ),
    "rmsprop-corrected": Case(
        ours.rmsprop,
        {"eps": 1e-5, "bias_correction": True},
        Options(lr=LR, betas=(None, 0.9), eps=0.0, eps_root=1e-5),
    ),
    "momentum": Case(ours.momentum, {}, Options(lr=LR, betas=(0.9, None), bias_correction="none")),
    "momentum-nesterov": Case(
        ours.momentum,
        {"nesterov": True, "debias": True},
        Options(lr=LR, betas=(0.9, None), nesterov=True),
    ),
    "sgd": Case(ours.sgd, {}, Options(lr=LR, betas=(None, None))),
}

#: Names of m, v and w in optax's states.
ENTRIES = {"mean": ("mu", "ema", "trace"), "square": ("nu",), "largest_square": ("nu_max",)}


class Ended(NamedTuple):
    """Parameters and moments at the end of a run, by name."""

    arrays: dict[str, np.ndarray[Any, Any]]

    def differing(self, other: Ended) -> list[str]:
        """Names of the arrays that are not the same, bit for bit."""
        assert self.arrays.keys() == other.arrays.keys()
        return [
            name
            for name, array in self.arrays.items()
            if array.dtype != other.arrays[name].dtype
            or not np.array_equal(bits(array), bits(other.arrays[name]))
        ]


def expected(
    options: Options | Case,
    parameters: Sequence[Any],
    gradients: Sequence[Sequence[Any]],
    *,
    first: int = 1,
    starts: Sequence[Mapping[str, Any]] = (),
    phase: Phase | None = None,
) -> Ended:
    """What the reference engine ends with."""
    options = options.options if isinstance(options, Case) else options
    return Ended(
        run(
            reference, options, phase or Phase(), parameters, gradients, first=first, starts=starts
        ).arrays
    )


def ended(params: Sequence[Any], state: Any) -> Ended:
    """What a run of a transformation ends with, under the names of the reference engine."""
    arrays = {f"{i}": np.asarray(p) for i, p in enumerate(params)}
    for entry, names in ENTRIES.items():
        for name in set(names) & set(state[0]._fields):
            for i, each in enumerate(getattr(state[0], name)):
                arrays[f"{i}.{entry}"] = np.asarray(each)
    return Ended(arrays)


def stepper(transformation: Any) -> Callable[..., Any]:
    """One step: parameters, state and gradients to parameters and state."""

    def step(params: Any, state: Any, gradients: Any) -> tuple[Any, Any]:
        updates, state = transformation.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def stepped(
    transformation: Any,
    parameters: Sequence[Any],
    gradients: Sequence[Sequence[Any]],
    wrapped: Callable[..., Any] = jax.jit,
    state: Any = None,
) -> Ended:
    """What steps end with, each a call of what ``wrapped`` makes of a step."""
    params = [jnp.asarray(p) for p in parameters]
    state = transformation.init(params) if state is None else state
    step = wrapped(stepper(transformation))
    for each in gradients:
        params, state = step(params, state, [jnp.asarray(g) for g in each])
    return ended(params, state)


def eager(step: Callable[..., Any]) -> Callable[..., Any]:
    return step


def one_by_one(step: Callable[..., Any]) -> Callable[..., Any]:
    """Every operation compiled alone, so that none can be fused with another."""

    @functools.wraps(step)
    def alone(*arguments: Any) -> Any:
        with jax.disable_jit():
            return step(*arguments)

    return alone


# ── trees ──────────────────────────────────────────────────────────────────────────────────────

PARAMS = {"a": np.array([1.0, -2.0], np.float32), "b": {"c": np.ones((2, 3), np.float32)}}
GRADIENTS = {"a": np.array([0.5, 0.25], np.float32), "b": {"c": -np.ones((2, 3), np.float32)}}


def tree(value: Any = PARAMS) -> Any:
    """The same tree with arrays of JAX."""
    return jax.tree.map(jnp.asarray, value)


@functools.cache
def _compiled(optimizer: Any) -> Callable[..., Any]:
    return jax.jit(stepper(optimizer))


def trained(
    optimizer: Any,
    steps: int = 3,
    params: Any = PARAMS,
    gradients: Any = GRADIENTS,
    state: Any = None,
) -> tuple[Any, Any]:
    """Parameters and state after steps under jit, all along the same gradients."""
    params = tree(params)
    state = optimizer.init(params) if state is None else state
    step = _compiled(optimizer)
    for _ in range(steps):
        params, state = step(params, state, tree(gradients))
    return params, state


def same(a: Any, b: Any) -> None:
    """Assert that two trees have the same nodes, and leaves of the same bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(bits(x), bits(y))


# ── what XLA makes of subnormal numbers on a CPU, and constants 0 ──────────────────────────────


class Flushed:
    """A NumPy array whose operators take subnormal numbers for 0, and give 0 for them.

    Terms with a constant 0 are left out. What adamas.jax promises on a CPU, in other words.
    """

    __slots__ = ("x",)

    def __init__(self, x: Any) -> None:
        self.x = _flush(np.asarray(x))

    @property
    def dtype(self) -> Any:
        return self.x.dtype

    def __array_namespace__(self) -> Any:
        return _Namespace

    def __mul__(self, other: Any) -> Any:
        return 0 if _is_zero(other) else Flushed(self.x * other.x)

    def __rmul__(self, other: Any) -> Any:
        assert _is_zero(other)
        return 0

    def __add__(self, other: Any) -> Any:
        return self if _is_zero(other) else Flushed(self.x + other.x)

    def __radd__(self, other: Any) -> Any:
        assert _is_zero(other)
        return self

    def __sub__(self, other: Any) -> Any:
        return self if _is_zero(other) else Flushed(self.x - other.x)

    def __truediv__(self, other: Any) -> Any:
        return Flushed(self.x / other.x)

    def __lt__(self, other: Any) -> Any:
        return _Truth(self.x < _plain(other))

    def __gt__(self, other: Any) -> Any:
        return _Truth(self.x > _plain(other))

    def __eq__(self, other: Any) -> Any:
        return _Truth(self.x == _plain(other))

    def __ne__(self, other: Any) -> Any:
        return _Truth(self.x != _plain(other))

    __hash__ = None


class _Truth(NamedTuple):
    x: Any

    def __and__(self, other: Any) -> Any:
        return _Truth(self.x & other.x)

    def __or__(self, other: Any) -> Any:
        return _Truth(self.x | other.x)


class _Namespace:
    finfo = np.finfo

    @staticmethod
    def abs(a: Flushed) -> Flushed:
        return Flushed(np.abs(a.x))

    @staticmethod
    def sqrt(a: Flushed) -> Flushed:
        return Flushed(np.sqrt(a.x))

    @staticmethod
    def where(condition: Any, a: Flushed, b: Flushed) -> Flushed:
        return Flushed(np.where(condition.x, a.x, b.x))

    @staticmethod
    def zeros_like(a: Flushed) -> Flushed:
        return Flushed(np.zeros_like(a.x))

    @staticmethod
    def ones_like(a: Flushed) -> Flushed:
        return Flushed(np.ones_like(a.x))


def _flush(x: Any) -> Any:
    if x.dtype.kind != "f":
        return x
    return np.where(
        np.abs(x) < np.finfo(x.dtype).smallest_normal, np.copysign(x.dtype.type(0), x), x
    )


def _is_zero(x: Any) -> bool:
    return isinstance(x, int) and x == 0


def _plain(x: Any) -> Any:
    return x.x if isinstance(x, Flushed) else x


def flushed_steps(options: Options, parameter: Any, gradients: Sequence[Any]) -> Ended:
    """What ``Flushed`` operators end with."""
    p, dtype = Flushed(parameter), parameter.dtype
    state: list[Any] = [
        Flushed(np.zeros_like(parameter)) if kept else None
        for kept in (options.has_mean, options.has_square, options.amsgrad)
    ]
    with np.errstate(all="ignore"):
        for number, g in enumerate(gradients, 1):
            rounded = at_step(options, number, options.lr).rounded(dtype)
            c = type(rounded)(*(0 if x == 0 else Flushed(x) for x in rounded))
            p, *state = rules.rule(c, p, Flushed(g), *state)[:4]
    names = ("mean", "square", "largest_square")
    kept = {f"0.{n}": s.x for n, s in zip(names, state, strict=True) if s is not None}
    return Ended({"0": p.x, **kept})
