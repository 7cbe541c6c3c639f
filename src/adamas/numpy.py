"""Optimizers for NumPy arrays, in place: Adam, AdamW, RAdam, Momentum, RMSProp.

    >>> import numpy as np, adamas
    >>> weights = {"hidden": np.ones((3, 2)), "output": np.ones(2)}
    >>> optimizer = adamas.Adam(weights, lr=0.1)
    >>> optimizer.step({"hidden": np.ones((3, 2)), "output": np.zeros(2)})
    >>> weights["hidden"][0]
    array([0.9, 0.9])

``params`` is an array, or a list, tuple or dict of arrays, nested as you like, of float32,
float64, float16 or the bfloat16 of ml_dtypes; gradients come in the same form and dtypes. Arrays
that compute in a way of their own (masked ones, matrices, units) are refused. Groups
with options of their own are a list of dicts with the key ``"params"``:
``[{"params": weights}, {"params": biases, "weight_decay": 0.0}]``; their gradients are a list
with one entry for each group.

This is the pattern of a front-end. Options are checked once and become groups of slots
(``adamas.groups``); a plan of an engine (``adamas.engines``) is made from them when they are
known; a step hands gradients as they come to the plan, and looks closely only where it declines.
A method is a class that names its arguments and makes ``Options`` of them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

from numpy.typing import NDArray

from adamas import settings
from adamas.assignments import all_at_once, attribute
from adamas.checks import check_rate, is_listed, with_known_options
from adamas.dialects import Dialect, with_conventions
from adamas.engines import STEPS
from adamas.groups import ParameterGroup, check_option_names
from adamas.keywords import OptionArguments, Unpack
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
)
from adamas.reports import Reports
from adamas.runs import Engine, Run, Weights
from adamas.settings import Fixed, Setting
from adamas.trees import Tree
from adamas.turns import (
    IN_PLACE,
    NO_AVERAGE,
    WITHIN,
    WOULD_LOSE,
    averages_in_place,
    changed_while_pickled,
    check_turn,
    in_turn,
)

__all__ = [
    "Adam",
    "AdamW",
    "Momentum",
    "Optimizer",
    "ParameterGroup",
    "RAdam",
    "RMSProp",
    "Snapshot",
]

Array = NDArray[Any]

#: What is made anew where an optimizer is copied or pickled, or stored in another form.
_OWN = ("_averaged", "_busy", "_hooks", "_observers", "_run", "_turn")
_STILL = "_still"


class Snapshot(NamedTuple):
    """Parameters by name, and their state_dict: the optimizer's own arrays."""

    parameters: dict[str, Array]
    state_dict: dict[str, Any]


class Optimizer(Reports):
    """What all optimizers of NumPy arrays share; make an Adam, AdamW, RAdam, Momentum or RMSProp.

    Calls from several threads are carried out one after the other. A call within another of the
    same thread (by a schedule, or by a signal handler in the midst of a step) is refused with
    RuntimeError. Whatever interrupts a call leaves all of its work or none: a step that is
    interrupted by Ctrl-C is made and counted, or neither.

    Every ``engine`` gives the same bits; those beside "native" are slow and there to compare with:
    "reference" is the rule itself, "triton" the kernels for GPUs, where all arrays go there and
    back at each step. Without a GPU these run in Triton's interpreter (``TRITON_INTERPRET=1``).

    ``clip_norm``, ``clip_update``, ``on_nonfinite`` and ``skip_above`` may be set between steps,
    and count from the next one on.
    """

    clip_norm = Setting[float | None]()
    clip_update = Setting[float | None]()
    on_nonfinite = Setting[OnNonfinite]()
    ema = Fixed[float | None](lambda optimizer: optimizer._phase.ema)
    seed = Fixed[int](lambda optimizer: optimizer._phase.seed)
    track_changes = Fixed[bool](lambda optimizer: optimizer._phase.track_changes)
    skip_above = Setting[float | None]()
    skip_window = Fixed[int](lambda optimizer: optimizer._phase.skip_window)
    engine = Fixed[Engine](lambda optimizer: optimizer._run.engine)
    phase = settings.whole()

    def __init__(
        self, params: Tree, options: Options, phase: Phase, engine: Engine = "native"
    ) -> None:
        """Check ``params``, create the state. Errors: TypeError or ValueError, nothing kept."""
        self._begin(Run.of(params, options, phase, engine))

    def _begin(self, run: Run) -> None:
        self._turn = threading.RLock()
        self._busy = False
        self._averaged = False
        self._hooks = {}
        self._observers = set()
        self._run = run

    # -- the step ----------------------------------------------------------------------------

    def step(self, gradients: Tree) -> None:
        """Make one step in place.

        ``gradients`` is built like ``params``, each array of its parameter's shape and dtype;
        they are not changed. Errors, before anything is touched: ValueError or TypeError for
        gradients that do not fit and parameters that were replaced in ``params`` or changed shape
        or dtype; FloatingPointError where ``on_nonfinite="raise"``; RuntimeError within a call.
        """
        with self._turn:
            if self._busy:
                raise RuntimeError(WITHIN)
            self._busy = True
            try:
                if self._averaged:
                    raise averages_in_place("no step can be made")
                run = self._run
                record = run.record
                number = record[STEPS] + 1
                rates = run.fixed_rates or run.parameters.rates_at(number)
                outcome = run.plan.step_tree(gradients, run.tree, number, rates, record)
                if outcome is NotImplemented:
                    run = self._run = run.checked()
                    outcome = run.step_closely(gradients, number, rates)
                if outcome is not None and not outcome.applied:
                    run.refuse_nonfinite(outcome)
            finally:
                self._busy = False
            if self._hooks:
                for hook in (*self._hooks.values(),):  # which may take themselves away
                    hook(self, (self, gradients), {})

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """Options, parameters and states, group by group; ``set_options`` changes them."""
        return self._run.parameters.groups

    # -- options -----------------------------------------------------------------------------

    @property
    def lr(self) -> LearningRate:
        """The learning rate (or schedule) of the first group; setting it sets all groups."""
        return self.groups[0].options.lr

    @lr.setter
    def lr(self, lr: LearningRate) -> None:
        self.set_options(lr=lr)

    @in_turn()
    def set_options(self, group: int | None = None, **changes: Unpack[OptionArguments]) -> None:
        """Change options of one group (by index) or of all; checked as at creation.

        With other ``betas`` or ``state`` the moments are stored anew, as loading would do.
        What decides which of them are kept (``amsgrad``, None in ``betas``) cannot change.
        """
        at_once = f"{settings.SETTABLE} are set at the optimizer: optimizer.clip_norm = 1.0."
        check_option_names("set_options", changes, at_once)
        self._run = self._run.with_options(group, changes)

    @in_turn()
    def _change_phase(self, changes: Mapping[str, Any]) -> None:
        self._run = self._run.with_phase(changes)

    # -- EMA of the weights --------------------------------------------------------------------

    @contextmanager
    def ema_weights(self) -> Generator[None]:
        """Swap in the EMA of the weights while the context is open.

        The parameters come back when it closes, on errors too. Inside, steps, loading, saving and
        copying are refused with RuntimeError: they would take the averages for the weights in
        training. Raises RuntimeError where ``ema=`` was not given, or inside itself.
        """
        if self._phase.ema is None:
            raise RuntimeError(NO_AVERAGE)
        weights = Weights()
        try:
            self._put_averages(weights)
            yield
        finally:
            try:
                for put_back in weights.ways_back:
                    put_back()
            except ValueError:
                self._averaged = False
                weights.put_back_closely()

    @in_turn()
    def _put_averages(self, weights: Weights) -> None:
        if self._averaged:
            raise RuntimeError(IN_PLACE)
        parameters = self._run.parameters
        parameters.check_unchanged()
        put = weights.replaced(parameters, attribute(self, "_averaged", False))
        all_at_once([attribute(self, "_averaged", True), *put])

    # -- state -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the state takes (without the parameters)."""
        return sum(state.nbytes for _, state in self._run.parameters.states)

    @in_turn(WOULD_LOSE)
    def state_dict(self, *, packed: bool = False, copy: bool = True) -> dict[str, Any]:
        """Return everything a later run needs besides the parameters.

        Moments in a small form are given as float32, which loses nothing, or with
        ``packed=True`` as they are stored. The arrays are copies, or with ``copy=False`` the
        optimizer's own as far as they need no decoding, which change with the next step.

        ``step`` and ``skipped`` are counts; ``groups`` has the names and options of each group (a
        schedule is stored as None); ``state`` maps the name of each parameter to its arrays
        ``mean``, ``square``, ``largest_square``, ``ema`` and ``remainder``, as far as they are
        kept. Where ``clip_norm``, ``clip_update``, ``on_nonfinite`` or ``skip_above`` was set in
        the run, ``phase`` has what to. ``spikes`` has the norms that ``skip_above`` judges by, and
        how many steps it left out; ``skipped`` counts those of ``on_nonfinite``. Raises
        RuntimeError within ``ema_weights()``.
        """
        return self._run.state_dict(packed=packed, copy=copy)

    @contextmanager
    def snapshot(self, *, packed: bool = False) -> Generator[Snapshot]:
        """Hold the run still, and give parameters and state as they are, to be written down.

        Calls of other threads wait until the context closes; those of this thread are refused.
        Nothing is copied, but for what has to be decoded.
        """
        with self._turn:
            check_turn(self, WOULD_LOSE)
            self._busy = True
            try:
                self._run.parameters.check_unchanged()
                run = self._run.state_dict(packed=packed, copy=False)
                yield Snapshot(self.named_parameters(), run)
            finally:
                self._busy = False

    @in_turn("a state that is loaded now would be undone on leaving")
    def load_state_dict(
        self, state_dict: Mapping[str, Any], *, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """Take over a ``state_dict``: counts, options and state; the run goes on bit for bit.

        With ``parameters`` (arrays by name) their values are taken over together with it. Dense
        and packed states can be loaded, whatever form this optimizer stores. Schedules cannot be
        stored: where the saved run had one, this optimizer must have one, and keeps it. Averages
        are left out where this optimizer keeps none, and begin at the parameters where the state
        has none. Raises KeyError, TypeError or ValueError before anything is changed.
        """
        run, put = self._run.loaded(state_dict, parameters)
        all_at_once([*put, attribute(self, "_run", run)])

    def _kept(self) -> dict[str, Any]:
        """Return what a copy needs; parameters are those in the user's containers alone."""
        kept = {name: value for name, value in self.__dict__.items() if name not in _OWN}
        return {**kept, "_run": self._run.contents()}

    @in_turn(WOULD_LOSE)
    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made anew; refuse to be pickled together with steps between."""
        return {**self._kept(), _STILL: _Still(self)}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Make the rest anew."""
        own = {"_run", _STILL}
        self.__dict__.update({name: value for name, value in kept.items() if name not in own})
        self._begin(Run(*kept["_run"]))

    @in_turn(WOULD_LOSE)
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy with parameters, state and counts of its own."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._kept(), memo))
        return twin

    def __repr__(self) -> str:
        """Name the method, its size, its learning rate and what was chosen of the phase."""
        sizes = [p.size for p in self.named_parameters().values()]
        chosen = {"lr": self.lr, **settings.told(vars(self._phase))}
        chosen |= {} if self.engine == "native" else {"engine": self.engine}
        options = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        return (
            f"<adamas.{type(self).__name__}: {sum(sizes):,} parameters in {len(sizes)} arrays, "
            f"{options}, {self.steps} steps>"
        )


class _Still:
    """Stands last in a pickled optimizer, and refuses where the run went on meanwhile."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer, self._before = optimizer, self._now(optimizer)

    def __reduce__(self) -> tuple[Any, ...]:
        with self._optimizer._turn:
            check_turn(self._optimizer, None)
            if self._now(self._optimizer) != self._before:
                raise changed_while_pickled("its state_dict()")
        return bool, (True,)

    @staticmethod
    def _now(optimizer: Any) -> tuple[Any, ...]:
        return optimizer._run, optimizer.steps, optimizer.skipped


class Adam(Optimizer):
    """Adam: both moments of the gradient, with bias correction (Kingma & Ba 2015, algorithm 1).

    Options that are None have the defaults of ``dialect``; without one these are lr 0.001, betas
    0.9 and 0.999, eps 1e-8 added to the corrected root, weight_decay 0 as part of the gradient
    ("l2"), and bias corrected as in the paper.
    """

    _method = "Adam"

    @with_known_options
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
        track_changes: bool = False,
        skip_above: float | None = None,
        skip_window: int = 128,
        clip_update: float | None = None,
        engine: Engine = "native",
    ) -> None:
        """Create the state; ``adamas.Options`` and ``adamas.Phase`` tell the options."""
        _check_pair(betas)
        super().__init__(**_sorted(with_conventions(self._method, dialect, locals())))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    Without a ``dialect`` weight_decay is 0.01, and lr times it is what parameters shrink by.
    """

    _method = "AdamW"


class RAdam(Optimizer):
    """Rectified Adam (Liu et al. 2020, algorithm 2): steps by lr * r_t, which warms up by itself.

    r_t grows to 1 as the second moment becomes sure. While it cannot be told (ρ_t at most 5, as in
    the authors' code; the first five steps at beta2 = 0.999) a step is lr times the first moment.
    Options that are None have the defaults of ``dialect``; without one they are those of ``Adam``.
    """

    @with_known_options
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
        nesterov: bool = False,
        maximize: bool = False,
        eps_place: EpsPlace | None = None,
        eps_root: float = 0.0,
        clip_norm: float | None = None,
        on_nonfinite: OnNonfinite = "propagate",
        ema: float | None = None,
        statistics: bool = False,
        state: StateForm | tuple[StateForm, StateForm] = "float32",
        rounding: Rounding | None = None,
        seed: int = 0,
        track_changes: bool = False,
        skip_above: float | None = None,
        skip_window: int = 128,
        clip_update: float | None = None,
        engine: Engine = "native",
    ) -> None:
        """Create the state; ``adamas.Options`` and ``adamas.Phase`` tell the options."""
        _check_pair(betas)
        given = with_conventions("RAdam", dialect, locals())
        super().__init__(**_sorted({**given, "rectify": True}))


class Momentum(Optimizer):
    """Gradient descent along the moving average of the gradients: p - lr * m, m = β·m + (1-β)·g."""

    @with_known_options
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
        track_changes: bool = False,
        skip_above: float | None = None,
        skip_window: int = 128,
        engine: Engine = "native",
    ) -> None:
        """Create the state; ``adamas.Options`` and ``adamas.Phase`` tell the options."""
        given = {**locals(), "betas": (check_rate("beta", beta), None)}
        super().__init__(**_sorted(given))


class RMSProp(Optimizer):
    """Gradients over the root of their second moment (Tieleman & Hinton 2012).

    Options that are None have the defaults of ``dialect``; without one these are lr 0.001, beta
    0.9, eps 1e-8 added to the root, weight_decay 0 as part of the gradient, and no bias correction.
    """

    @with_known_options
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
        track_changes: bool = False,
        skip_above: float | None = None,
        skip_window: int = 128,
        clip_update: float | None = None,
        engine: Engine = "native",
    ) -> None:
        """Create the state; ``adamas.Options`` and ``adamas.Phase`` tell the options."""
        given = with_conventions("RMSProp", dialect, locals())
        given["betas"] = (None, check_rate("beta", given["beta"]))
        super().__init__(**_sorted(given))


def _sorted(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``Optimizer`` takes, of what the ``locals()`` of a constructor hold."""

    def of(kind: type[Options | Phase]) -> dict[str, Any]:
        return {each.name: given[each.name] for each in fields(kind) if each.name in given}

    made = {"phase": Phase(**of(Phase)), "options": Options(**of(Options))}
    return made | {"params": given["params"], "engine": given["engine"]}


def _check_pair(betas: object) -> None:
    if is_listed(betas) and None in betas:
        raise ValueError(
            f"betas is {betas!r}, but Adam keeps both moments. Give two decay rates, or use "
            "Momentum or RMSProp."
        )
