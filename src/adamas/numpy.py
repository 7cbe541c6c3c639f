"""Optimizers for NumPy arrays, in place: Adam, AdamW, Momentum, RMSProp.

    >>> import numpy as np, adamas
    >>> weights = {"hidden": np.ones((3, 2)), "output": np.ones(2)}
    >>> optimizer = adamas.Adam(weights, lr=0.1)
    >>> optimizer.step({"hidden": np.ones((3, 2)), "output": np.zeros(2)})
    >>> weights["hidden"][0]
    array([0.9, 0.9])

``params`` is an array, or a list, tuple or dict of arrays, nested as you like, of float32,
float64, float16 or the bfloat16 of ml_dtypes; gradients come in the same form and dtypes. Groups
with options of their own are a list of dicts with the key ``"params"``:
``[{"params": weights}, {"params": biases, "weight_decay": 0.0}]``; their gradients are a list
with one entry for each group.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adamas import state as states
from adamas.dialects import Dialect, with_conventions
from adamas.engines import Group, Slot, native, reference
from adamas.options import (
    BiasCorrection,
    Decay,
    EpsPlace,
    LearningRate,
    OnNonfinite,
    Options,
    Phase,
    Rounding,
    StateForm,
    learning_rate_at,
)
from adamas.state import State
from adamas.statistics import Outcome, Statistics
from adamas.trees import Tree, leaves, matching_leaves

__all__ = ["Adam", "AdamW", "Momentum", "Optimizer", "ParameterGroup", "RMSProp"]

Array = NDArray[Any]
Engine = Literal["native", "reference"]

_ENGINES = {"native": native.Plan, "reference": reference.Plan}
_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


class ParameterGroup:
    """Parameters that share one set of options: their names, arrays and state."""

    def __init__(self, options: Options, params: Tree, names: Sequence[str]) -> None:
        """Take the arrays of ``params`` under ``names``, checked already."""
        #: The options in force, frozen; the optimizer's ``set_options`` replaces them.
        self.options = options
        self.tree = params
        self.names = tuple(names)
        self.parameters: tuple[Array, ...] = tuple(leaf for _, leaf in leaves(params))
        self.states: tuple[State, ...] = ()


class Optimizer:
    """What all optimizers of NumPy arrays share; make an Adam, AdamW, Momentum or RMSProp."""

    def __init__(
        self, params: Tree, options: Options, phase: Phase, engine: Engine = "native"
    ) -> None:
        """Check ``params``, create the state. Errors: TypeError or ValueError, nothing kept."""
        if engine not in _ENGINES:
            raise ValueError(f'engine is {engine!r}, but it must be "native" or "reference".')
        self._engine: Engine = engine
        self._phase = phase
        self._tree, self.groups = _groups(params, options)
        _check_parameters(self._named())
        for group in self.groups:
            group.states = tuple(
                states.create(_bits(p), group.options, ema=phase.ema is not None)
                for p in group.parameters
            )
        self._names = tuple(name for group in self.groups for name in group.names)
        #: How many steps were made; the next has the number ``steps + 1``.
        self.steps = 0
        #: How many steps were left out because a gradient was not finite (``on_nonfinite="skip"``).
        self.skipped = 0
        self._outcome: Outcome | None = None
        self._averaged = False
        self._plan_steps()

    # -- the step ----------------------------------------------------------------------------

    def step(self, gradients: Tree) -> None:
        """Make one step in place.

        ``gradients`` is built like ``params``, each array of its parameter's shape and dtype;
        they are not changed. Errors, all before anything is touched: ValueError or TypeError for
        gradients that do not fit, FloatingPointError for ones that are not finite where
        ``on_nonfinite="raise"``, RuntimeError where another thread is in the midst of a step.
        """
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("This optimizer is making a step in another thread.")
        try:
            self._step(gradients)
        finally:
            self._turn.release()

    def _step(self, gradients: Tree) -> None:
        number = self.steps + 1
        rates = self._fixed_rates or self._rates(number)
        outcome = NotImplemented
        if not self._staged and not self._averaged:
            outcome = self._plan.step(self._at_once(gradients), number, rates)
        if outcome is NotImplemented:
            outcome = self._plan.step(self._checked(gradients), number, rates)
        self._outcome = outcome
        if outcome is None or outcome.applied:
            self.steps = number
            for parameter, twin in self._staged:
                np.copyto(parameter, twin)
        else:
            self._leave_out(outcome)

    def statistics(self) -> dict[str, Statistics]:
        """Return what the last step did to each parameter, by name.

        Raises RuntimeError where ``statistics=True`` was not given or no step was made yet.
        """
        if not self._phase.statistics:
            raise RuntimeError(
                "No statistics were taken. Create the optimizer with statistics=True."
            )
        if self._outcome is None or self._outcome.statistics is None:
            raise RuntimeError("There are no statistics: the last step was left out, or none made.")
        return dict(zip(self._names, self._outcome.statistics, strict=True))

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step as given; None where no option needed it."""
        return None if self._outcome is None else self._outcome.norm

    # -- options -----------------------------------------------------------------------------

    @property
    def lr(self) -> LearningRate:
        """The learning rate (or schedule) of the first group; setting it sets all groups."""
        return self.groups[0].options.lr

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self.set_options(lr=lr)

    def set_options(self, group: int | None = None, **changes: Any) -> None:
        """Change options of one group (by index) or of all; checked as at creation.

        What decides which state is kept (``amsgrad``, None in ``betas``) cannot change.
        """
        chosen = self.groups if group is None else (self.groups[group],)
        _check_names(changes, "set_options")
        changed = [each.options.replace(**changes) for each in chosen]
        for each, options in zip(chosen, changed, strict=True):
            _check_same_state(each.options, options)
        for each, options in zip(chosen, changed, strict=True):
            each.options = options
        self._plan_steps()

    # -- averaged weights --------------------------------------------------------------------

    @contextmanager
    def ema_weights(self) -> Generator[None]:
        """Put the averaged parameters in place of the parameters while the context is open.

        The parameters come back when it closes, on errors too. A step inside is refused. Raises
        RuntimeError where ``ema=`` was not given, or inside itself.
        """
        if self._phase.ema is None:
            raise RuntimeError("No average of the weights is kept. Create the optimizer with ema=.")
        if self._averaged:
            raise RuntimeError("The averaged weights are in place already.")
        kept = [p.copy() for _, p in self._named()]
        averages = [state.ema for group in self.groups for state in group.states]
        self._averaged = True
        try:
            self._put(averages)
            yield
        finally:
            self._put(kept)
            self._averaged = False

    # -- state -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the state takes (without the parameters)."""
        return sum(state.nbytes for group in self.groups for state in group.states)

    def state_dict(self, *, packed: bool = False, copy: bool = True) -> dict[str, Any]:
        """Return everything a later run needs besides the parameters.

        Running means in a small form are given as float32, which loses nothing, or with
        ``packed=True`` as they are stored. The arrays are copies, or with ``copy=False`` the
        optimizer's own as far as they need no decoding, which change with the next step.

        ``step`` and ``skipped`` are counts; ``groups`` has the names and options of each group (a
        schedule is stored as None); ``state`` maps the name of each parameter to its arrays
        ``mean``, ``square``, ``largest_square``, ``ema`` and ``remainder``, as far as they are
        kept.
        """
        return {
            "step": self.steps,
            "skipped": self.skipped,
            "groups": [
                {"params": list(group.names), **_plain_options(group.options)}
                for group in self.groups
            ],
            "state": {
                name: {
                    entry: array.copy() if copy else array
                    for entry, array in (state.packed() if packed else state.dense()).items()
                }
                for name, state in self._named_states()
            },
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a :meth:`state_dict`: counts, options and state; the run goes on bit for bit.

        Schedules cannot be stored: where the saved run had one, this optimizer must have one, and
        keeps it. Raises KeyError, TypeError or ValueError before anything is changed.
        """
        _check_entries("The state_dict", state_dict, ("step", "skipped", "groups", "state"))
        counts = [_checked_count(name, state_dict[name]) for name in ("step", "skipped")]
        options = _loaded_options(self.groups, state_dict["groups"])
        stored = state_dict["state"]
        _check_entries("The state", stored, self._names)
        arrays = {
            name: states.from_arrays(name, state, stored[name])
            for name, state in self._named_states()
        }
        for name, state in self._named_states():
            state.assign(arrays[name])
        for group, loaded in zip(self.groups, options, strict=True):
            group.options = loaded
        self.steps, self.skipped = counts
        self._outcome = None
        self._plan_steps()

    def named_parameters(self) -> dict[str, Array]:
        """Return the parameters by name: the arrays themselves."""
        return dict(self._named())

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what holds pointers; it is made anew."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_plan", "_staged", "_turn")}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Make the pointers anew."""
        self.__dict__.update(kept)
        self._plan_steps()

    def __repr__(self) -> str:
        """Name the method, its size and its learning rate."""
        count = sum(p.size for _, p in self._named())
        return (
            f"<adamas.{type(self).__name__}: {count:,} parameters in {len(self._names)} arrays, "
            f"lr={self.lr!r}, {self.steps} steps>"
        )

    # -- inside ------------------------------------------------------------------------------

    def _plan_steps(self) -> None:
        """Prepare what stays the same from step to step."""
        self._turn = threading.Lock()
        self._staged: list[tuple[Array, Array]] = []
        planned: list[Group] = []
        for group in self.groups:
            slots = [
                Slot(_bits(self._stage(p)), state)
                for p, state in zip(group.parameters, group.states, strict=True)
            ]
            planned.append(Group(group.options, tuple(slots)))
        self._has_bits = any(_is_bfloat16(p) for _, p in self._named())
        self._plan: Any = _ENGINES[self._engine](planned, self._phase)
        branches = self._tree.values() if isinstance(self._tree, Mapping) else self._tree
        self._is_flat = all(isinstance(branch, np.ndarray) for branch in branches)
        scheduled = any(callable(group.options.lr) for group in self.groups)
        self._fixed_rates = None if scheduled else self._rates(1)

    def _stage(self, parameter: Array) -> Array:
        """Return the array itself, or a contiguous twin where the engines cannot step it."""
        if parameter.flags.c_contiguous:
            return parameter
        twin = np.empty(parameter.shape, parameter.dtype)
        self._staged.append((parameter, twin))
        return twin

    def _rates(self, number: int) -> tuple[float, ...]:
        return tuple(learning_rate_at(group.options.lr, number) for group in self.groups)

    def _at_once(self, gradients: Tree) -> Sequence[Any]:
        """Return one gradient for each parameter; quickly, so not checked, where trees are flat.

        What does not fit is found by the engine, which then changes nothing.
        """
        if self._has_bits:
            flat = matching_leaves(gradients, self._tree, "gradients")
            return [_gradient_bits(*pair) for pair in zip(self._named(), flat, strict=True)]
        like = self._tree
        if isinstance(like, np.ndarray):
            return (gradients,)
        if not self._is_flat:
            return tuple(matching_leaves(gradients, like, "gradients"))
        if type(like) is not dict:
            return gradients
        if type(gradients) is not dict or len(gradients) != len(like):
            return ()
        return [gradients.get(key) for key in like]

    def _checked(self, gradients: Tree) -> list[Array]:
        """Return gradients the engine can read, or say what is wrong with them."""
        if self._averaged:
            raise RuntimeError(
                "The averaged weights are in place, so no step can be made. "
                "Leave the ema_weights() context first."
            )
        flat = matching_leaves(gradients, self._tree, "gradients")
        checked = [
            _bits(_checked_gradient(name, parameter, gradient))
            for (name, parameter), gradient in zip(self._named(), flat, strict=True)
        ]
        for parameter, twin in self._staged:
            np.copyto(twin, parameter)
        return checked

    def _leave_out(self, outcome: Outcome) -> None:
        if self._phase.on_nonfinite == "skip":
            self.skipped += 1
            return
        assert outcome.nonfinite is not None
        found = [
            f"{name} ({count} of {p.size} elements)"
            for (name, p), count in zip(self._named(), outcome.nonfinite, strict=True)
            if count
        ]
        raise FloatingPointError(
            f"Gradients are not finite: {', '.join(found)}. Nothing was changed. Look for a "
            'division or overflow in the loss, or leave such steps out with on_nonfinite="skip".'
        )

    def _named(self) -> list[tuple[str, Array]]:
        return [
            pair
            for group in self.groups
            for pair in zip(group.names, group.parameters, strict=True)
        ]

    def _named_states(self) -> list[tuple[str, State]]:
        return [
            pair for group in self.groups for pair in zip(group.names, group.states, strict=True)
        ]

    def _put(self, values: Sequence[Array | None]) -> None:
        for (_, parameter), value in zip(self._named(), values, strict=True):
            assert value is not None
            parameter[...] = value  # rounded to nearest where the parameter has half precision


class Adam(Optimizer):
    """Adam: momentum over RMSProp, without start-up bias (Kingma & Ba 2015, algorithm 1).

    What is None is as ``dialect`` says (:mod:`adamas.dialects`); without one: lr 0.001, betas 0.9
    and 0.999, eps 1e-8 beside the corrected root, weight_decay 0 as part of the gradient ("l2"),
    bias corrected as in the paper.
    """

    _method = "Adam"

    def __init__(
        self,
        params: Tree,
        lr: LearningRate | None = None,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        *,
        dialect: Dialect | None = None,
        decay: Decay | None = None,
        lr_max: float | None = None,
        amsgrad: bool = False,
        nesterov: bool = False,
        maximize: bool = False,
        eps_place: EpsPlace | None = None,
        eps_root: float = 0.0,
        bias_correction: BiasCorrection | None = None,
        clip_norm: float | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        ema: float | None = None,
        statistics: bool = False,
        state: StateForm | tuple[StateForm, StateForm] = "float32",
        rounding: Rounding | None = None,
        seed: int = 0,
        engine: Engine = "native",
    ) -> None:
        """Create the state; :class:`adamas.Options` and :class:`adamas.Phase` tell the options."""
        _check_pair(betas)
        given = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "lr_max": lr_max,
            "amsgrad": amsgrad,
            "nesterov": nesterov,
            "maximize": maximize,
            "eps_place": eps_place,
            "eps_root": eps_root,
            "bias_correction": bias_correction,
            "state": state,
            "rounding": rounding,
        }
        phase = Phase(
            clip_norm=clip_norm,
            on_nonfinite=on_nonfinite,
            ema=ema,
            statistics=statistics,
            seed=seed,
        )
        options = Options(**with_conventions(self._method, dialect, given))
        super().__init__(params, options, phase, engine)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Without a ``dialect`` weight_decay is 0.01, and lr times it is what parameters shrink by.
    """

    _method = "AdamW"


class Momentum(Optimizer):
    """Gradient descent along a running mean of gradients: p - lr * m, m = β·m + (1-β)·g."""

    def __init__(
        self,
        params: Tree,
        lr: LearningRate = 1e-2,
        beta: float = 0.9,
        weight_decay: float = 0.0,
        *,
        decay: Decay = "l2",
        lr_max: float | None = None,
        nesterov: bool = False,
        maximize: bool = False,
        bias_correction: BiasCorrection = "none",
        clip_norm: float | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        ema: float | None = None,
        statistics: bool = False,
        state: StateForm | tuple[StateForm, StateForm] = "float32",
        rounding: Rounding | None = None,
        seed: int = 0,
        engine: Engine = "native",
    ) -> None:
        """Create the state; :class:`adamas.Options` and :class:`adamas.Phase` tell the options."""
        options = Options(
            lr=lr,
            betas=(_required("beta", beta), None),
            weight_decay=weight_decay,
            decay=decay,
            lr_max=lr_max,
            nesterov=nesterov,
            maximize=maximize,
            bias_correction=bias_correction,
            state=state,
            rounding=rounding,
        )
        phase = Phase(
            clip_norm=clip_norm,
            on_nonfinite=on_nonfinite,
            ema=ema,
            statistics=statistics,
            seed=seed,
        )
        super().__init__(params, options, phase, engine)


class RMSProp(Optimizer):
    """Gradients over the root of their running mean square (Tieleman & Hinton 2012).

    What is None is as ``dialect`` says (:mod:`adamas.dialects`); without one: lr 0.001, beta 0.9,
    eps 1e-8 beside the root, weight_decay 0 as part of the gradient, no bias correction.
    """

    def __init__(
        self,
        params: Tree,
        lr: LearningRate | None = None,
        beta: float | None = None,
        eps: float | None = None,
        weight_decay: float | None = None,
        *,
        dialect: Dialect | None = None,
        decay: Decay | None = None,
        lr_max: float | None = None,
        amsgrad: bool = False,
        maximize: bool = False,
        eps_place: EpsPlace | None = None,
        eps_root: float = 0.0,
        bias_correction: BiasCorrection | None = None,
        clip_norm: float | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        ema: float | None = None,
        statistics: bool = False,
        state: StateForm | tuple[StateForm, StateForm] = "float32",
        rounding: Rounding | None = None,
        seed: int = 0,
        engine: Engine = "native",
    ) -> None:
        """Create the state; :class:`adamas.Options` and :class:`adamas.Phase` tell the options."""
        given = {
            "lr": lr,
            "beta": beta,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "lr_max": lr_max,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "eps_place": eps_place,
            "eps_root": eps_root,
            "bias_correction": bias_correction,
            "state": state,
            "rounding": rounding,
        }
        phase = Phase(
            clip_norm=clip_norm,
            on_nonfinite=on_nonfinite,
            ema=ema,
            statistics=statistics,
            seed=seed,
        )
        chosen = with_conventions("RMSProp", dialect, given)
        betas = (None, chosen.pop("beta"))
        super().__init__(params, Options(betas=betas, **chosen), phase, engine)


# -- checks of what the user gives ---------------------------------------------------------------


def _groups(params: Tree, options: Options) -> tuple[Tree, tuple[ParameterGroup, ...]]:
    """Return the tree gradients must match, and the groups."""
    if not _is_list_of_groups(params):
        found = list(leaves(params))
        return params, (ParameterGroup(options, params, [name for name, _ in found]),)
    groups: list[ParameterGroup] = []
    for i, given in enumerate(params):
        changes = {key: value for key, value in given.items() if key != "params"}
        _check_names(changes, f"params[{i}]")
        own = options.replace(**changes)
        _check_same_method(options, own)
        names = [name for name, _ in leaves(given["params"], str(i))]
        groups.append(ParameterGroup(own, given["params"], names))
    return [group.tree for group in groups], tuple(groups)


def _is_list_of_groups(params: Tree) -> bool:
    return (
        isinstance(params, (list, tuple))
        and len(params) > 0
        and all(isinstance(each, Mapping) and "params" in each for each in params)
    )


def _check_parameters(named: Sequence[tuple[str, Any]]) -> None:
    if not named:
        raise ValueError("params holds no array. Give at least one array to optimize.")
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        raise ValueError(
            f"Two parameters have the name {twice[0]}. Rename a key: names are the way to an "
            "array, joined by dots."
        )
    for name, p in named:
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"Parameter {name} is a {type(p).__name__}, but it must be a NumPy array, "
                "so that it can be changed in place."
            )
        if p.dtype not in _DTYPES and not _is_bfloat16(p):
            raise TypeError(
                f"Parameter {name} has dtype {p.dtype}, but it must be float32, float64, float16 "
                "or ml_dtypes' bfloat16, in native byte order. Convert it first, for example with "
                ".astype(numpy.float32)."
            )
        if not p.flags.writeable:
            raise ValueError(f"Parameter {name} is read-only. Give a writeable array, or a copy.")
        if not p.flags.aligned:
            raise ValueError(f"Parameter {name} is not aligned in memory. Give a copy of it.")
        if _may_overlap_itself(p):
            raise ValueError(
                f"Parameter {name} has elements that share memory (a broadcast or sliding view). "
                "Give a copy of it."
            )
    _check_disjoint(named)


def _is_bfloat16(array: Array) -> bool:
    """Return whether the dtype is that of ml_dtypes, which NumPy itself lacks."""
    return array.dtype.name == "bfloat16" and array.dtype.itemsize == 2


def _bits(array: Array) -> Array:
    """Return the array as the engines take it: bfloat16 as its bits."""
    return array.view(np.uint16) if _is_bfloat16(array) else array


def _gradient_bits(named: tuple[str, Array], gradient: Any) -> Any:
    """Return the gradient as the engines take it, None where the dtypes differ."""
    fits = isinstance(gradient, np.ndarray) and gradient.dtype == named[1].dtype
    return _bits(gradient) if fits else None


def _may_overlap_itself(array: Array) -> bool:
    """Return whether two elements may share memory, judged from strides alone."""
    if array.size == 0:  # NumPy gives such arrays strides of 0
        return False
    reach = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return False


def _check_disjoint(named: Sequence[tuple[str, Array]]) -> None:
    """Refuse parameters that share memory: a step would move shared elements twice."""
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(p), i) for i, (_, p) in enumerate(named) if p.size
    )
    open_spans: list[tuple[int, int]] = []
    for low, high, i in spans:
        open_spans = [(end, j) for end, j in open_spans if end > low]
        for _, j in open_spans:
            if np.shares_memory(named[i][1], named[j][1]):
                first, second = sorted((i, j))
                raise ValueError(
                    f"Parameters {named[first][0]} and {named[second][0]} share memory, so a step "
                    "would change the shared elements twice. Give each array once."
                )
        open_spans.append((high, i))


def _checked_gradient(name: str, parameter: Array, gradient: Any) -> Array:
    if isinstance(gradient, np.generic):
        gradient = np.asarray(gradient)
    if not isinstance(gradient, np.ndarray):
        raise TypeError(
            f"The gradient of {name} is {_described(gradient)}, but it must be a NumPy array "
            f"of shape {parameter.shape} and dtype {parameter.dtype}."
        )
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"The gradient of {name} has shape {gradient.shape}, but the parameter has shape "
            f"{parameter.shape}. Give a gradient of the parameter's shape."
        )
    if gradient.dtype != parameter.dtype:
        raise TypeError(
            f"The gradient of {name} has dtype {gradient.dtype}, but the parameter has dtype "
            f"{parameter.dtype}. Convert it with .astype({parameter.dtype.name!r})."
        )
    return np.array(gradient, order="C", subok=False)


def _described(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _check_pair(betas: object) -> None:
    if isinstance(betas, (tuple, list)) and None in betas:
        raise ValueError(
            f"betas is {betas!r}, but Adam keeps both running means. "
            "Give two decay rates, or use Momentum or RMSProp."
        )


def _required(name: str, value: float | None) -> float:
    if value is None:
        raise TypeError(f"{name} is None, but it must be a number.")
    return value


_OPTION_NAMES = frozenset(field.name for field in dataclasses.fields(Options))


def _check_names(changes: Mapping[str, Any], where: str) -> None:
    unknown = sorted(set(changes) - _OPTION_NAMES)
    if unknown:
        raise TypeError(
            f"{where} has the unknown option {unknown[0]!r}. "
            f"Possible are {', '.join(sorted(_OPTION_NAMES))}."
        )


def _check_same_method(base: Options, own: Options) -> None:
    if (base.has_mean, base.has_square) != (own.has_mean, own.has_square):
        raise ValueError(
            f"betas is {own.betas!r}, but every group of one optimizer keeps the same running "
            f"means, here {base.betas!r}. Use one optimizer for each method."
        )


def _check_same_state(old: Options, new: Options) -> None:
    _check_same_method(old, new)
    if old.amsgrad != new.amsgrad:
        raise ValueError(
            f"amsgrad is {new.amsgrad}, but this optimizer was created with {old.amsgrad} and "
            "keeps its state accordingly. Create another optimizer."
        )
    if (
        old.parameter_rounding != new.parameter_rounding
        and old.keeps_remainder | new.keeps_remainder
    ):
        raise ValueError(
            f'rounding is "{new.rounding}", but this optimizer was created with "{old.rounding}" '
            "and keeps its remainders accordingly. Create another optimizer."
        )
    if old.forms != new.forms:
        raise ValueError(
            f"state is {new.forms!r}, but this optimizer was created with {old.forms!r} and "
            "stores its state accordingly. Create another optimizer and load its state_dict."
        )


def _plain_options(options: Options) -> dict[str, Any]:
    plain = dataclasses.asdict(options)
    plain["betas"] = list(options.betas)
    plain["state"] = list(options.forms)
    if callable(options.lr):
        plain["lr"] = None
    return plain


def _loaded_options(groups: Sequence[ParameterGroup], stored: Any) -> list[Options]:
    if len(stored) != len(groups):
        raise ValueError(
            f"The state_dict has {len(stored)} groups, but this optimizer has {len(groups)}."
        )
    loaded: list[Options] = []
    for i, (group, given) in enumerate(zip(groups, stored, strict=True)):
        _check_entries(f"groups[{i}]", given, (*_OPTION_NAMES, "params"))
        if list(given["params"]) != list(group.names):
            raise ValueError(
                f"groups[{i}] of the state_dict has the parameters {list(given['params'])}, but "
                f"this optimizer has {list(group.names)} there."
            )
        changes = {key: value for key, value in given.items() if key != "params"}
        changes["betas"] = tuple(changes["betas"])
        for name in ("state", "rounding"):  # how it is stored is this optimizer's affair
            changes[name] = getattr(group.options, name)
        if changes["lr"] is None:
            if not callable(group.options.lr):
                raise ValueError(
                    f"groups[{i}] was saved with a schedule for lr, which cannot be stored, but "
                    f"this optimizer has lr={group.options.lr!r}. Create it with the schedule."
                )
            changes["lr"] = group.options.lr
        options = group.options.replace(**changes)
        _check_same_state(group.options, options)
        loaded.append(options)
    return loaded


def _check_entries(what: str, mapping: Any, wanted: Sequence[str]) -> None:
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{what} is {_described(mapping)}, but it must be a dict.")
    missing = sorted(set(wanted) - set(mapping))
    extra = sorted(map(str, set(mapping) - set(wanted)))
    if missing or extra:
        raise KeyError(
            f"{what} lacks {missing} and has the unknown {extra}; it must have exactly "
            f"{sorted(wanted)}. Load what an optimizer over the same parameters saved."
        )


def _checked_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} is {value!r}, but it must be a whole number, at least 0.")
    return int(value)
