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

This is the pattern of a front-end. Options are checked once and become groups of slots
(:mod:`adamas.groups`); a plan of an engine (:mod:`adamas.engines`) is made from them when they are
known; a step hands gradients as they come to the plan, and looks closely only where it declines.
A method is a class that names its arguments and makes :class:`~adamas.options.Options` of them.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from adamas import assignments, settings
from adamas.arrays import checked_gradient
from adamas.assignments import Assignment, all_at_once, attribute
from adamas.checks import check_count, check_rate, with_known_options
from adamas.dialects import Dialect, with_conventions
from adamas.engines import native, reference, triton
from adamas.groups import (
    ParameterGroup,
    check_entries,
    check_option_names,
    check_unchanged,
    checked_values,
    chosen_groups,
    grouped,
    loaded_groups,
    named_parameters,
    named_states,
    planned,
    put_back_closely,
    rates_at,
    refuse_nonfinite,
    state_of_run,
    with_options,
    with_parameters,
)
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
from adamas.settings import Fixed, Setting, fixed_method
from adamas.statistics import NONE_LEFT, NOT_TAKEN, Statistics
from adamas.trees import Tree, leaves, matching_leaves
from adamas.turns import (
    CHANGED,
    IN_PLACE,
    NO_AVERAGE,
    WITHIN,
    WOULD_LOSE,
    averages_in_place,
    changed_while_pickled,
    check_turn,
    in_turn,
)

__all__ = ["Adam", "AdamW", "Momentum", "Optimizer", "ParameterGroup", "RMSProp", "Snapshot"]

Array = NDArray[Any]
Engine = Literal["native", "reference", "triton"]

_ENGINES: dict[str, Any] = {"native": native, "reference": reference, "triton": triton}

#: What is made anew where an optimizer is copied or pickled, or stored in another form.
_OWN = ("_averaged", "_busy", "_fixed_rates", "_groups", "_plan", "_record", "_tree", "_turn")


class Snapshot(NamedTuple):
    """Parameters by name, and their state_dict: the optimizer's own arrays."""

    parameters: dict[str, Array]
    state_dict: dict[str, Any]


class Optimizer:
    """What all optimizers of NumPy arrays share; make an Adam, AdamW, Momentum or RMSProp.

    Calls from several threads are carried out one after the other. A call within another of the
    same thread (by a schedule, or by a signal handler in the midst of a step) is refused with
    RuntimeError. Whatever interrupts a call leaves all of its work or none: a step that is
    interrupted by Ctrl-C is made and counted, or neither.

    Every ``engine`` gives the same bits; those beside "native" are slow and there to compare with:
    "reference" is the rule itself, "triton" the kernels for GPUs, where all arrays go there and
    back at each step. Without a GPU these run in Triton's interpreter (``TRITON_INTERPRET=1``).

    ``clip_norm`` and ``on_nonfinite`` may be set between steps, and count from the next one on.
    """

    clip_norm = Setting[float | None]()
    on_nonfinite = Setting[OnNonfinite]()
    ema = Fixed[float | None](lambda optimizer: optimizer._phase.ema)
    seed = Fixed[int](lambda optimizer: optimizer._phase.seed)
    engine = Fixed[Engine](lambda optimizer: optimizer._engine)
    phase = settings.whole()
    #: The names of what was set.
    _phase_set: frozenset[str] = frozenset()
    _groups: tuple[ParameterGroup, ...]
    _plan: Any
    _fixed_rates: tuple[float, ...] | None
    #: Steps, steps left out, last outcome: engines bring it up to date with the arrays.
    _record: list[Any]

    def __init__(
        self, params: Tree, options: Options, phase: Phase, engine: Engine = "native"
    ) -> None:
        """Check ``params``, create the state. Errors: TypeError or ValueError, nothing kept."""
        if engine not in _ENGINES:
            raise ValueError(
                f'engine is {engine!r}, but it must be "native", "reference" or "triton".'
            )
        self._engine: Engine = engine
        self._phase = phase
        self._begin(*grouped(params, options, ema=phase.ema is not None), [0, 0, None])

    def _begin(self, tree: Tree, groups: tuple[ParameterGroup, ...], record: list[Any]) -> None:
        self._turn = threading.RLock()
        self._busy = False
        self._averaged = False
        self._tree = tree
        self._install(groups, record)

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
                record = self._record
                number = record[0] + 1
                rates = self._fixed_rates or rates_at(self._groups, number)
                outcome = self._plan.step_tree(gradients, self._tree, number, rates, record)
                if outcome is NotImplemented:
                    outcome = _step_closely(self, gradients, number, rates)
                if outcome is not None and not outcome.applied:
                    refuse_nonfinite(self._groups, self._phase, outcome)
            finally:
                self._busy = False

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """Options, parameters and states, group by group; ``set_options`` changes them."""
        return self._groups

    @property
    def steps(self) -> int:
        """How many steps were made; the next has the number ``steps + 1``."""
        return self._record[0]

    @property
    def skipped(self) -> int:
        """How many steps were left out since gradients were not finite ("skip")."""
        return self._record[1]

    @fixed_method
    def statistics(self) -> dict[str, Statistics]:
        """Return what the last step did to each parameter, by name.

        Raises RuntimeError where ``statistics=True`` was not given or no step was made yet.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        outcome = native.outcome_of(self._record[2])
        if outcome is None or outcome.statistics is None:
            raise RuntimeError(NONE_LEFT)
        names = [name for name, _ in named_parameters(self.groups)]
        return dict(zip(names, outcome.statistics, strict=True))

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step as given; None where no option needed it."""
        return getattr(native.outcome_of(self._record[2]), "norm", None)

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

        With other ``betas`` or ``state`` the running means are stored anew, as loading would do.
        What decides which of them are kept (``amsgrad``, None in ``betas``) cannot change.
        """
        at_once = "clip_norm and on_nonfinite are set at the optimizer: optimizer.clip_norm = 1.0."
        check_option_names("set_options", changes, at_once)
        chosen = chosen_groups(group, len(self.groups))
        self._install(
            tuple(
                with_options(each, changes) if i in chosen else each
                for i, each in enumerate(self.groups)
            )
        )

    @in_turn()
    def _change_phase(self, changes: Mapping[str, Any]) -> None:
        self._install(self.groups, chosen=changes)

    # -- averaged weights --------------------------------------------------------------------

    @contextmanager
    def ema_weights(self) -> Generator[None]:
        """Put the averaged parameters in place of the parameters while the context is open.

        The parameters come back when it closes, on errors too. Inside, steps, loading, saving and
        copying are refused with RuntimeError: they would take the averages for the weights in
        training. Raises RuntimeError where ``ema=`` was not given, or inside itself.
        """
        if self._phase.ema is None:
            raise RuntimeError(NO_AVERAGE)
        ways_back: list[Callable[[], object]] = []
        kept: list[tuple[str, Array, Array, Array]] = []
        try:
            self._put_averages(ways_back, kept)
            yield
        finally:
            try:
                for put_back in ways_back:
                    put_back()
            except ValueError:
                self._averaged = False
                put_back_closely(kept)

    @in_turn()
    def _put_averages(
        self, ways_back: list[Callable[[], object]], kept: list[tuple[str, Array, Array, Array]]
    ) -> None:
        """Put the averages in place, when what puts the weights back is in ``ways_back``."""
        if self._averaged:
            raise RuntimeError(IN_PLACE)
        check_unchanged(self._tree, self.groups)
        kept += [(name, p, p.view(), p.copy()) for name, p in named_parameters(self.groups)]
        pairs = zip(kept, named_states(self.groups), strict=True)
        put = [assignments.values(p, state.ema) for (_, p, *_), (_, state) in pairs]
        back = [assignments.values(p, before) for _, p, _, before in kept]
        ways_back.append(assignments.prepared([*back, attribute(self, "_averaged", False)]))
        all_at_once([attribute(self, "_averaged", True), *put])

    # -- state -------------------------------------------------------------------------------

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the state takes (without the parameters)."""
        return sum(state.nbytes for _, state in named_states(self.groups))

    @in_turn(WOULD_LOSE)
    def state_dict(self, *, packed: bool = False, copy: bool = True) -> dict[str, Any]:
        """Return everything a later run needs besides the parameters.

        Running means in a small form are given as float32, which loses nothing, or with
        ``packed=True`` as they are stored. The arrays are copies, or with ``copy=False`` the
        optimizer's own as far as they need no decoding, which change with the next step.

        ``step`` and ``skipped`` are counts; ``groups`` has the names and options of each group (a
        schedule is stored as None); ``state`` maps the name of each parameter to its arrays
        ``mean``, ``square``, ``largest_square``, ``ema`` and ``remainder``, as far as they are
        kept. Where ``clip_norm`` or ``on_nonfinite`` was set in the run, ``phase`` has what to.
        Raises RuntimeError within ``ema_weights()``.
        """
        return _run_of(self, packed=packed, copy=copy)

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
                check_unchanged(self._tree, self.groups)
                run = _run_of(self, packed=packed, copy=False)
                yield Snapshot(self.named_parameters(), run)
            finally:
                self._busy = False

    @in_turn("a state that is loaded now would be undone on leaving")
    def load_state_dict(
        self, state_dict: Mapping[str, Any], *, parameters: Mapping[str, Any] | None = None
    ) -> None:
        """Take over a :meth:`state_dict`: counts, options and state; the run goes on bit for bit.

        With ``parameters`` (arrays by name) their values are taken over together with it. Dense
        and packed states can be loaded, whatever form this optimizer stores. Schedules cannot be
        stored: where the saved run had one, this optimizer must have one, and keeps it. Averages
        are left out where this optimizer keeps none, and begin at the parameters where the state
        has none. Raises KeyError, TypeError or ValueError before anything is changed.
        """
        entries = ("step", "skipped", "groups", "state")
        check_entries("The state_dict", state_dict, entries, optional={settings.KEY})
        counts = [check_count(name, state_dict[name]) for name in ("step", "skipped")]
        check_unchanged(self._tree, self.groups)
        values = checked_values(self.groups, parameters)
        groups, chosen = loaded_groups(self.groups, state_dict, values), settings.loaded(state_dict)
        put = [assignments.values(p, values[name]) for name, p in named_parameters(self.groups)]
        self._install(groups, [*counts, None], [] if parameters is None else put, chosen)

    def named_parameters(self) -> dict[str, Array]:
        """Return the parameters by name: the arrays themselves."""
        return dict(named_parameters(self.groups))

    @in_turn(WOULD_LOSE)
    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made anew; refuse to be pickled together with steps between."""
        return {**_contents(self), "still": _Still(self)}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        """Make the rest anew."""
        own = {"lone", "groups", "record", "still"}
        self.__dict__.update({name: value for name, value in kept.items() if name not in own})
        trees = [group.tree for group in kept["groups"]]
        tree = trees[0] if kept["lone"] else trees
        self._begin(tree, with_parameters(tree, kept["groups"]), kept["record"])

    @in_turn(WOULD_LOSE)
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy with parameters, state and counts of its own."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(_contents(self), memo))
        return twin

    def __repr__(self) -> str:
        """Name the method, its size, its learning rate and what was chosen of the phase."""
        chosen = {"lr": self.lr, **settings.told(vars(self._phase))}
        chosen |= {} if self._engine == "native" else {"engine": self._engine}
        return f"<adamas.{type(self).__name__}: {_described(self, chosen)}>"

    # -- inside ------------------------------------------------------------------------------

    def _install(
        self,
        groups: tuple[ParameterGroup, ...],
        record: list[Any] | None = None,
        others: Sequence[Assignment] = (),
        chosen: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Step these groups from now on; all is prepared first, then changed at once.

        ``chosen`` are options of the phase that are set.
        """
        slots = tuple(planned(group) for group in groups)
        phase = replace(self._phase, **chosen)
        scheduled = any(callable(group.options.lr) for group in groups)
        changes: dict[str, Any] = {
            "_groups": groups,
            "_phase": phase,
            "_phase_set": self._phase_set.union(chosen),
            "_plan": _ENGINES[self._engine].Plan(slots, phase),
            "_fixed_rates": None if scheduled else tuple(group.options.lr for group in groups),
        }
        if record is not None:
            changes["_record"] = record
        all_at_once([*others, *(attribute(self, *change) for change in changes.items())])


def _step_closely(optimizer: Any, gradients: Tree, number: int, rates: tuple[float, ...]) -> Any:
    """Make a step the engine could not make at once, or say what is wrong."""
    if not check_unchanged(optimizer._tree, optimizer.groups):
        optimizer._install(with_parameters(optimizer._tree, optimizer.groups))
    given = matching_leaves(gradients, optimizer._tree, "gradients")
    by_name = dict(zip((name for name, _ in leaves(optimizer._tree)), given, strict=True))
    named = named_parameters(optimizer.groups)
    flat = [by_name[name] for name, _ in named]
    outcome = optimizer._plan.step(flat, number, rates, optimizer._record)
    if outcome is NotImplemented:
        flat = [checked_gradient(*pair, g) for pair, g in zip(named, flat, strict=True)]
        outcome = optimizer._plan.step(flat, number, rates, optimizer._record)
    if outcome is NotImplemented:
        raise RuntimeError(CHANGED)
    return outcome


def _run_of(optimizer: Any, *, packed: bool, copy: bool) -> dict[str, Any]:
    """Return a state_dict."""
    chosen = settings.saved(optimizer)
    return state_of_run(optimizer.groups, optimizer._record, chosen, packed=packed, copy=copy)


def _contents(optimizer: Any) -> dict[str, Any]:
    """Return what a copy needs; parameters are those in the user's containers alone."""
    check_unchanged(optimizer._tree, optimizer.groups)
    kept = {name: value for name, value in optimizer.__dict__.items() if name not in _OWN}
    groups = [replace(group, parameters=(), layouts=()) for group in optimizer.groups]
    lone = optimizer._tree is optimizer.groups[0].tree
    return {**kept, "lone": lone, "groups": groups, "record": list(optimizer._record)}


def _described(optimizer: Optimizer, chosen: Mapping[str, Any]) -> str:
    """Return what is stepped, what was ``chosen``, and how far the run is."""
    sizes = [p.size for p in optimizer.named_parameters().values()]
    options = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
    return f"{sum(sizes):,} parameters in {len(sizes)} arrays, {options}, {optimizer.steps} steps"


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
    def _now(optimizer: Any) -> list[int]:
        return [optimizer.steps, optimizer.skipped, *map(id, optimizer.groups)]


class Adam(Optimizer):
    """Adam: momentum over RMSProp, without start-up bias (Kingma & Ba 2015, algorithm 1).

    What is None is as ``dialect`` says (:mod:`adamas.dialects`); without one: lr 0.001, betas 0.9
    and 0.999, eps 1e-8 beside the corrected root, weight_decay 0 as part of the gradient ("l2"),
    bias corrected as in the paper.
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
        engine: Engine = "native",
    ) -> None:
        """Create the state; :class:`adamas.Options` and :class:`adamas.Phase` tell the options."""
        options = Options(
            lr=lr,
            betas=(check_rate("beta", beta), None),
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
        betas = (None, check_rate("beta", chosen.pop("beta")))
        super().__init__(params, Options(betas=betas, **chosen), phase, engine)


def _check_pair(betas: object) -> None:
    if isinstance(betas, (tuple, list)) and None in betas:
        raise ValueError(
            f"betas is {betas!r}, but Adam keeps both running means. "
            "Give two decay rates, or use Momentum or RMSProp."
        )
