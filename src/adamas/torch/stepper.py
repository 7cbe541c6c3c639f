"""One step after another: by the plan of before, or by a new one."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from adamas.engines.native import outcome_of
from adamas.engines.triton.launches import DeviceOutcome
from adamas.options import observed
from adamas.spikes import Skipped, Window
from adamas.torch import arguments, distributed, gradients
from adamas.torch.arguments import Engine
from adamas.torch.averages import Averages, Weights
from adamas.torch.copies import Copies
from adamas.torch.grouping import check_parameters, check_state, names_of, parameters_of
from adamas.torch.keeping import Group, Keeping
from adamas.torch.numbers import UNSCALED, Numbers, Scaling
from adamas.torch.plan import OVERFLOWED, Plan, Planner
from adamas.torch.record import Record
from adamas.torch.routes import Groups, Made, Owned, States
from adamas.torch.spikes import Spikes
from adamas.torch.tracking import Tracking
from adamas.torch.turns import Turn
from adamas.turns import CHANGED, IN_PLACE, NO_AVERAGE

__all__ = ["Stepper"]


class Stepper:
    """What goes on from step to step; groups and states are the optimizer's, as they are then."""

    def __init__(
        self,
        keeping: Keeping,
        engine: Engine | None,
        copies: Copies,
        tracking: Tracking,
        before: Stepper | None,
    ) -> None:
        """Begin without a plan; keep turn and counts of ``before``, where there is one."""
        self.turn = Turn() if before is None else before.turn
        self.record = Record()
        self.averages = Averages()
        self._planner = Planner(keeping, engine)
        self._copies = copies
        copies.doubt()
        self._tracking = tracking
        self._plan: Plan | None = None
        #: By which the last step was made; the routes by place alone where it was for once.
        self._last: Plan | dict[int, str] = {}
        #: What the user asks for, and who asks for statistics besides.
        self._asked = keeping
        self._observers: set[object] = set() if before is None else before._observers
        if before is not None:
            before._planner.leave(before._plan)
            self._planner.devices = before._planner.devices
            self._planner.spikes = before._planner.spikes
            self.record.skipped = before.record.skipped
        #: Parameters whose gradients were laid out over processes otherwise than they are.
        self._laid_otherwise: list[Tensor] = []
        #: The native step where it is all there is to do, None after it; else None.
        self.direct: Callable[[Groups, States], Any] | None = None
        self.go_by(keeping)
        self.resume()

    @property
    def keeping(self) -> Keeping:
        """What is kept for parameters, as the phase is now."""
        return self._planner.keeping

    @property
    def skipped(self) -> Skipped:
        """How many steps were left out; that waits for devices."""
        nonfinite = self.record.skipped + self._planner.devices.skipped
        return Skipped(nonfinite, self.spikes.left_out)

    @property
    def spikes(self) -> Spikes:
        """The norms that ``skip_above`` judges by."""
        return self._planner.spikes

    def go_on_from(self, window: Window | None) -> None:
        """Judge by a window that was loaded, or begin another where there is none."""
        self._planner.spikes = self.spikes.anew(window)

    @contextmanager
    def held(self, why: str | None = None) -> Generator[None]:
        """Take the turn; with ``why``, raise RuntimeError while the averages are in place."""
        with self.turn.held():
            if why is not None:
                self.averages.refuse(why)
            yield

    def routes(self, groups: Groups) -> dict[str, str]:
        """Return the route of each parameter that was stepped last, by name."""
        found = self._last.routes if isinstance(self._last, Plan) else self._last
        return {name: found[i] for i, name in enumerate(names_of(groups)) if i in found}

    def observe(self, who: object, *, wanted: bool) -> None:
        """Let further steps take statistics for somebody, or not; the turn is taken."""
        was_wanted = bool(self._observers)
        if wanted:
            self._observers.add(who)
        else:
            self._observers.discard(who)
        if bool(self._observers) == was_wanted or self._asked.phase.statistics:
            return
        keeping = self._asked
        if self._observers:
            keeping = keeping._replace(phase=observed(keeping.phase))
        if self._plan is None or not self._plan.goes_by(keeping.phase):
            self._install(None)
        self._planner.go_on_by(keeping)
        self.resume()

    def go_by(self, keeping: Keeping) -> None:
        """Go on with another phase, by the plan that there is if it can."""
        self._asked = keeping
        if self._observers and not keeping.phase.statistics:
            keeping = keeping._replace(phase=observed(keeping.phase))
        if self.keeping != keeping:
            is_alike = self.keeping.clip_group is keeping.clip_group
            if self._plan is None or not is_alike or not self._plan.goes_by(keeping.phase):
                self._install(None)
            self._planner.go_by(keeping)
            self.resume()

    # -- the step ------------------------------------------------------------------------------

    def step(self, groups: Groups, states: States, defaults: Group, scaling: Scaling) -> None:
        """Make one step; the turn is taken."""
        self.averages.refuse("no step can be made")  # which no plan looks at
        if self.turn.plan is not None:
            self.turn.close()
        scaling = self._planner.agreed(scaling, groups)
        with self._laid_out() if self._laid_otherwise else nullcontext():
            if not self._step_again(groups, states, scaling):
                self._step_closely(groups, states, defaults, scaling)
            elif self._plan is not None and self._plan.is_idle:
                self._planner.refuse_strays(groups, names_of(groups), is_idle=True)
        if self._copies.tensors:
            self._renew_copies(groups, states)

    @contextmanager
    def _laid_out(self) -> Generator[None]:
        """Lay gradients out that had to be in the last step, which all processes do at once."""
        with torch.no_grad(), gradients.laid_out(self._laid_otherwise) as found:
            self._laid_otherwise = found
            yield

    def _step_again(self, groups: Groups, states: States, scaling: Scaling) -> bool:
        """Make one step by the last plan, or one before it; False where none of them fits."""
        plan = self._plan
        if plan is not None and plan.fits(groups, states) and self._step_by(plan, groups, scaling):
            return True
        plan = self._planner.earlier(groups, states)
        if plan is None:
            return False
        self._install(plan)
        return self._step_by(plan, groups, scaling)

    def _step_by(self, plan: Plan, groups: Groups, scaling: Scaling) -> bool:
        """Make one step by a plan that is new or fits; False, having done nothing, if it cannot."""
        made = self._tracked(plan, scaling) if self._tracking.is_on else plan.step(scaling)
        if made is NotImplemented:
            return False
        if made is not OVERFLOWED:
            self._last = plan.routes if plan.is_for_once else plan
            phase, numbers = self.keeping.phase, self._planner.numbers
            is_done = self.record.take(plan, made, scaling, phase, numbers, groups)
            if is_done or plan.is_for_once:
                self._install(None)
        return True

    def _tracked(self, plan: Plan, scaling: Scaling) -> Made | None:
        """Make one step by a plan, which marks what it changes, and see to the rest.

        A plan of the native engine alone looks itself whether something else has written to its
        parameters.
        """
        tracking, count = self._tracking, self._tracking.steps
        together, stepped = tracking.together, plan.members if plan.native is None else ()
        if together or plan.native is None:
            tracking.look()
        with tracking.comparing(tracking.shared) if tracking.shared else nullcontext():
            made = plan.step(scaling)
        if made is not NotImplemented and made is not OVERFLOWED:
            tracking.saw(together.union(member.place for member in stepped))
            is_made = made is None or isinstance(made, DeviceOutcome) or made.applied
            tracking.steps = count + is_made  # which native plans have counted
        return made

    def fit(self, groups: Groups) -> None:
        """Let copies and marks be those of the parameters that there are."""
        if not self._copies.tensors and not self._tracking.is_on:
            return
        parameters = parameters_of(groups)
        if self._copies.tensors:
            self._copies.fit(parameters)
        if self._tracking.fit(parameters, self._copies.tensors):
            self._install(None)
            self._planner.forget_earlier()

    @torch.no_grad()
    def _step_closely(
        self, groups: Groups, states: States, defaults: Group, scaling: Scaling
    ) -> None:
        """Make one step after a close look at every parameter, with a plan for the next."""
        names = names_of(groups)
        self.fit(groups)
        arguments.check_groups(groups, defaults)
        planner = self._planner
        is_for_state = not states and distributed.is_asked_for_state()
        tracking = self._tracking
        versions = tracking.versions if tracking.is_on else None
        owned = Owned(groups, states, names, self._copies.tensors, tracking.marks, versions)
        read, written = planner.read_and_written(owned)
        with gradients.laid_out(read) as found, gradients.kept_apart(read, written):
            self._laid_otherwise = [*self._laid_otherwise, *found]
            plan = planner.planned(owned, self._plan)
            self._install(plan)
            planner.forget(states)
            if is_for_state:  # it is there now, as it is before the first step
                return
            if not self._step_by(plan, groups, scaling):
                plan.ready()  # which says so where the numbers are wrong
                raise RuntimeError(CHANGED)

    def _install(self, plan: Plan | None) -> None:
        """Take over a plan for the next step."""
        if plan is not self._plan:
            self._planner.leave(self._plan)
        self._plan = plan
        self.resume()

    def resume(self) -> None:
        """Let further steps be made directly, where the plan can and no averages are in place."""
        plan = None if self.averages.are_in_place else self._plan
        direct = None if plan is None else plan.direct
        native = None if plan is None or direct is None else plan.native
        if plan is not None and direct is not None and plan.phase.reads_first:
            direct = _taken_down(direct, plan, self.turn, self.record, self._planner.numbers)
        if native is not None and direct is not None and self._copies.tensors:
            direct = _with_copies(
                direct, native, self.turn, self.averages, self._copies, self.keeping, self._tracking
            )
        if self._tracking.together:
            direct = native = None
        self.direct, self.turn.plan = direct, native

    def pause(self) -> None:
        """Let each step ask first whether it may be made."""
        self.direct = self.turn.plan = None

    # -- changes -------------------------------------------------------------------------------

    def settle(self, groups: Groups, states: States) -> None:
        """Have all that is marked stand in the marks, and what is told of it in the copies."""
        tracking = self._tracking
        if not tracking.is_on:
            return
        check_parameters(groups)
        self.fit(groups)
        tracking.look()
        stale = frozenset(tracking.stale)
        if self._copies.tensors and stale:
            self._copies.renew(groups, states, self.keeping, tracking, at_reading=stale)
        tracking.stale.clear()

    # -- copies and averages -------------------------------------------------------------------

    def _renew_copies(self, groups: Groups, states: States) -> None:
        """Bring copies up to date that the last step has not written."""
        native = None if self._plan is None else self._plan.native
        if native is None or native.stepped < len(self._copies.tensors):
            self._copies.renew(groups, states, self.keeping, self._tracking)

    def copies(self, groups: Groups, states: States) -> list[Tensor]:
        """Return copies of the weights in training, up to date."""
        if not self._copies.tensors:  # and a snapshot may be open
            return []
        with self.turn.held():
            if not self.averages.are_in_place:
                self._renew_all(groups, states)
            return list(self._copies.tensors)

    def _renew_all(self, groups: Groups, states: States) -> None:
        """Bring all copies up to date."""
        check_parameters(groups)
        self.fit(groups)
        self._tracking.look()
        everywhere = range(len(self._copies.tensors))
        self._copies.renew(groups, states, self.keeping, self._tracking, at_reading=everywhere)

    @contextmanager
    def averaged(self, groups: Groups, states: States) -> Generator[None]:
        """Swap in the EMA of the weights while the context is open."""
        check_state(states)
        if self.keeping.phase.ema is None:
            raise RuntimeError(NO_AVERAGE)
        kept: list[Weights] | None = None
        try:
            with self.turn.held():
                if self.averages.are_in_place:
                    raise RuntimeError(IN_PLACE)
                self.copies(groups, states)  # while the weights in training are there
                self.fit(groups)
                self._tracking.look()
                kept = self.averages.kept(states, self.keeping)
                self.pause()
                self.averages.put(kept)
            yield
        finally:
            if kept is not None:
                with self.turn.held():
                    self.averages.take_back(kept)
                    self._tracking.saw_again(parameter for parameter, _, _ in kept)
                    self.resume()


def _taken_down(
    direct: Callable[[Groups, States], Any],
    plan: Plan,
    turn: Turn,
    record: Record,
    numbers: Numbers,
) -> Callable[[Groups, States], Any]:
    """Return what makes a native step and takes down what it reports, in one turn."""
    lock, phase, take_parts = turn.lock, plan.phase, record.take_parts
    clip_norm = phase.clip_norm

    def step(groups: Groups, states: States) -> Any:
        with lock:
            parts = direct(groups, states)
            if type(parts) is not tuple:
                return parts
            if parts[0]:
                take_parts(parts, clip_norm)
            else:
                record.take(plan, outcome_of(parts), UNSCALED, phase, numbers, groups)
            return None

    return step


def _with_copies(
    direct: Callable[[Groups, States], Any],
    plan: Any,
    turn: Turn,
    averages: Averages,
    copies: Copies,
    keeping: Keeping,
    tracking: Tracking,
) -> Callable[[Groups, States], Any]:
    """Return what makes a native step that is all there is to do, but for copies left out by it.

    It holds no stepper: that would hold itself, and with it parameters and states.
    """

    def step(groups: Groups, states: States) -> Any:
        outcome = direct(groups, states)
        if outcome is None and plan.stepped < len(copies.tensors):
            with turn.held():
                if not averages.are_in_place:
                    copies.renew(groups, states, keeping, tracking)
        return outcome

    return step
