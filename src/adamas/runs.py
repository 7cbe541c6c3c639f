"""A run of an optimizer of NumPy arrays: what is stepped, how, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import repeat
from typing import Any, Literal

from numpy.typing import NDArray

from adamas import assignments, settings, spikes
from adamas.assignments import Assignment
from adamas.checks import check_count
from adamas.coefficients import clip_factor
from adamas.engines import OUTCOME, SKIPPED, STEPS, native, reference, triton
from adamas.groups import Parameters, check_entries
from adamas.options import Options, Phase, check_together, observed
from adamas.spikes import Skipped, Window
from adamas.statistics import OfPart, Outcome
from adamas.tracked import Tracked
from adamas.trees import Tree
from adamas.turns import CHANGED

__all__ = ["Engine", "Run", "Weights"]

Array = NDArray[Any]
#: What makes the steps: the compiled engine, the rule itself, or Triton's kernels.
Engine = Literal["native", "reference", "triton"]

_ENGINES: dict[str, Any] = {"native": native, "reference": reference, "triton": triton}


@dataclass(frozen=True, eq=False, slots=True)
class Run:
    """What an optimizer steps, and how; another takes its place where any of that changes.

    So a change is one assignment, which no interrupt can halve.
    """

    parameters: Parameters
    phase: Phase
    engine: Engine
    #: Steps, steps left out, last outcome: engines bring it up to date with the arrays.
    record: list[Any]
    #: The names of the options of the phase that were set in the run.
    phase_set: frozenset[str] = frozenset()
    #: What ``skip_above`` judges by, where it was given or set: ``adamas.spikes``.
    spikes: Window | None = None
    #: What steps have changed, where that is tracked.
    tracked: Tracked | None = None
    #: Whether steps take statistics, whether or not the phase says so.
    is_observed: bool = False
    #: The last outcome and its clip_norm, where another one was set since.
    clipped: tuple[Any, float | None] = (None, None)
    # What a step asks for.
    tree: Tree = field(init=False)
    plan: Any = field(init=False)
    fixed_rates: tuple[float, ...] | None = field(init=False)
    #: Plans of the same arrays, by whether their steps take statistics.
    plans: dict[bool, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Plan the steps."""
        for group in self.parameters.groups:
            has_square = group.options.has_square
            others = "Adam, AdamW, RAdam or RMSProp"
            check_together(self.phase, has_square=has_square, others=others)
        is_fixed = not any(callable(group.options.lr) for group in self.parameters.groups)
        fixed = self.parameters.rates_at(1) if is_fixed else None
        marks = repeat(None) if self.tracked is None else iter(self.tracked.marks)
        groups = tuple(group.planned(marks) for group in self.parameters.groups)
        if self.spikes is None:
            object.__setattr__(self, "spikes", spikes.kept(self.phase, None))
        phase = observed(self.phase) if self.is_observed else self.phase
        plan = _ENGINES[self.engine].Plan(groups, phase, self.spikes, keep_sums=phase.statistics)
        object.__setattr__(self, "tree", self.parameters.tree)
        object.__setattr__(self, "plan", plan)
        object.__setattr__(self, "plans", {phase.statistics: plan})
        object.__setattr__(self, "fixed_rates", fixed)

    @classmethod
    def of(cls, params: Tree, options: Options, phase: Phase, engine: Engine) -> Run:
        """Return a run before its first step; checks ``params`` and ``engine``."""
        if engine not in _ENGINES:
            raise ValueError(
                f'engine is {engine!r}, but it must be "native", "reference" or "triton".'
            )
        parameters = Parameters.of(params, options, ema=phase.ema is not None)
        tracked = Tracked.of(parameters.arrays) if phase.track_changes else None
        return cls(parameters, phase, engine, [0, 0, None], tracked=tracked)

    def contents(self) -> tuple[Any, ...]:
        """Return what makes a run over the same arrays that counts for itself: its arguments."""
        self.parameters.check_unchanged()
        window = None if self.spikes is None else self.spikes.copy()
        tracked = None if self.tracked is None else self.tracked.copied()
        record = [*self.record]
        return self.parameters, self.phase, self.engine, record, self.phase_set, window, tracked

    @property
    def steps(self) -> int:
        """How many steps were made."""
        return self.record[STEPS]

    @property
    def skipped(self) -> Skipped:
        """How many steps were left out."""
        return Skipped(self.record[SKIPPED], spikes.left_out(self.spikes))

    @property
    def outcome(self) -> Outcome | None:
        """What the last step reported, if it was asked for anything."""
        return native.outcome_of(self.record[OUTCOME])

    @property
    def statistics(self) -> Sequence[OfPart] | None:
        """Those of the last step, of each parameter; None where it took none or was left out."""
        return getattr(self.outcome, "statistics", None)

    def is_clipped(self) -> bool:
        """Return whether the step that was just made clipped."""
        limit = self.phase.clip_norm
        if limit is None:
            return False
        last = self.record[OUTCOME]
        if last is None:
            return False
        applied, norm = last[:2] if isinstance(last, tuple) else (last.applied, last.norm)
        return applied and norm is not None and norm > limit

    @property
    def clip_factor(self) -> float | None:
        """What the gradients of the last step were multiplied by, where it was clipped."""
        return None if self._clip_norm is None else self.clip_factor_of(self.outcome)

    def clip_factor_of(self, outcome: Outcome | None) -> float | None:
        """Return the same; ``outcome`` is that of the last step."""
        limit = self._clip_norm
        if limit is None or outcome is None or outcome.norm is None or not outcome.applied:
            return None
        return clip_factor(limit, outcome.norm)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each group, in the last step."""
        return self.fixed_rates or self.parameters.rates_at(max(self.steps, 1))

    @property
    def _clip_norm(self) -> float | None:
        """Clip_norm of the last step."""
        last = self.record[OUTCOME]
        outcome, limit = self.clipped
        return limit if last is not None and last is outcome else self.phase.clip_norm

    def observed(self, is_observed: bool) -> Run:
        """Return the run with steps that take statistics, or take them as the phase says.

        A plan for either is made once for the two.
        """
        if is_observed == self.is_observed:
            return self
        plan = self.plans.get(is_observed or self.phase.statistics)
        if plan is None:
            found = replace(self, is_observed=is_observed)
            self.plans.update(found.plans)
            plan = found.plan
        found = object.__new__(Run)
        for name in _PARTS:
            object.__setattr__(found, name, getattr(self, name))
        object.__setattr__(found, "is_observed", is_observed)
        object.__setattr__(found, "plan", plan)
        return found

    def checked(self) -> Run:
        """Return the run with the parameters where they are by now, which may have moved."""
        if self.parameters.check_unchanged():
            return self
        found, tracked = self.parameters.found(), self.tracked
        if tracked is not None:
            pairs = enumerate(zip(self.parameters.layouts, found.layouts, strict=True))
            tracked = tracked.moved(found.arrays, {i for i, (old, new) in pairs if old != new})
        return replace(self, parameters=found, tracked=tracked)

    def step_closely(self, gradients: Tree, number: int, rates: tuple[float, ...]) -> Any:
        """Make a step the engine could not make at once, or say what is wrong with it."""
        given = self.parameters.in_order(gradients)
        outcome = self.plan.step(given, number, rates, self.record)
        if outcome is NotImplemented:
            given = self.parameters.checked(given)
            outcome = self.plan.step(given, number, rates, self.record)
        if outcome is NotImplemented:
            raise RuntimeError(CHANGED)
        return outcome

    def refuse_nonfinite(self, outcome: Any) -> None:
        """Raise FloatingPointError where a step that was left out is an error."""
        if self.phase.on_nonfinite == "raise" and not outcome.spike:
            raise self.parameters.not_finite(outcome.nonfinite)

    def with_phase(self, changes: Mapping[str, Any]) -> Run:
        """Return the run with options of the phase that are set."""
        phase = replace(self.phase, **changes)
        clipped = (self.record[OUTCOME], self._clip_norm)
        phase_set = self.phase_set.union(changes)
        return replace(self, phase=phase, phase_set=phase_set, clipped=clipped)

    def with_options(self, group: int | None, changes: Mapping[str, Any]) -> Run:
        """Return the run with other options of one group, or of all."""
        return replace(self, parameters=self.parameters.with_options(group, changes))

    def state_dict(self, *, packed: bool, copy: bool) -> dict[str, Any]:
        """Return counts, groups, states and what was set; arrays are copies or as they are."""
        counts = {"step": self.steps, "skipped": self.skipped.nonfinite}
        stored = self.parameters.plain(packed=packed, copy=copy)
        others = settings.saved(self.phase, self.phase_set) | spikes.saved(self.spikes)
        return counts | stored | others

    def loaded(
        self, state_dict: Mapping[str, Any], parameters: Mapping[str, Any] | None
    ) -> tuple[Run, list[Assignment]]:
        """Return the run that a state_dict tells of, and what gives ``parameters`` their values."""
        entries = ("step", "skipped", "groups", "state")
        optional = {settings.KEY, spikes.KEY}
        check_entries("The state_dict", state_dict, entries, optional=optional)
        counts = [check_count(name, state_dict[name]) for name in ("step", "skipped")]
        self.parameters.check_unchanged()
        values = self.parameters.checked_values(parameters)
        loaded, chosen = self.parameters.loaded(state_dict, values), settings.loaded(state_dict)
        window = spikes.loaded(state_dict, self.phase.skip_window)
        tracked = self.tracked
        if tracked is not None:
            tracked = tracked.loaded(loaded.arrays, counts[0])
        run = replace(
            self,
            parameters=loaded,
            phase=replace(self.phase, **chosen),
            phase_set=self.phase_set.union(chosen),
            record=[*counts, None],
            spikes=window,
            tracked=tracked,
        )
        put = [assignments.values(p, values[name]) for name, p in self.parameters.named]
        return run, [] if parameters is None else put


_PARTS = tuple(each.name for each in fields(Run))


class Weights:
    """The weights in training, while averages stand in their place."""

    def __init__(self) -> None:
        """Keep nothing yet."""
        #: What puts them back when it is called, in C; empty as long as nothing is to be put back.
        self.ways_back: list[Callable[[], object]] = []
        self._kept: list[tuple[str, Array, Array, Array]] = []

    def replaced(self, parameters: Parameters, after: Assignment) -> list[Assignment]:
        """Keep the weights, and return what puts the averages in their place.

        The way back ends with ``after``.
        """
        self._kept = [(name, p, p.view(), p.copy()) for name, p in parameters.named]
        back = [assignments.values(p, values) for _, p, _, values in self._kept]
        pairs = zip(self._kept, parameters.states, strict=True)
        put = [assignments.values(p, state.ema) for (_, p, _, _), (_, state) in pairs]
        self.ways_back.append(assignments.prepared([*back, after]))
        return put

    def put_back_closely(self) -> None:
        """Write them into the memory that parameters had, read-only or reshaped by now.

        Raises ValueError with the names of those whose memory is another.
        """
        lost: list[str] = []
        for name, p, place, values in self._kept:
            if p.nbytes == place.nbytes and p.ctypes.data == place.ctypes.data:
                place[...] = values
            else:  # what the view shows was given back
                lost.append(name)
        if lost:
            raise ValueError(
                f"Inside ema_weights() {', '.join(lost)} was resized, so the weights in training "
                "could not be put back there. Go on from a checkpoint, with another optimizer."
            )
