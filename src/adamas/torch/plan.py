"""Which route steps which parameter, and one step over all of them.

A plan for one route is used again as long as that finds all as it was. One for several is made anew
for each step: norm and guard are taken over all of them first, and every route says what it would
refuse before any of them steps.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas import digits
from adamas.coefficients import clip_factor
from adamas.engines.triton import devices
from adamas.options import Phase, observed
from adamas.statistics import Outcome, Statistics
from adamas.torch import clip_groups, distributed, sharding, statistics, storage, sums
from adamas.torch.arguments import Engine
from adamas.torch.grouping import parameters_of, places_of
from adamas.torch.keeping import Group, Keeping, State
from adamas.torch.members import Member
from adamas.torch.memory import Memory
from adamas.torch.numbers import UNSCALED, Numbers, Scaling
from adamas.torch.routes import (
    Groups,
    Made,
    Owned,
    Route,
    Setup,
    States,
    device,
    native,
    offload,
    plain,
    recorded,
)
from adamas.torch.routes.device import Lasting, OnDevice
from adamas.torch.routes.native import Native
from adamas.torch.routes.offload import Offload, Offloaded
from adamas.torch.routes.plain import Plain
from adamas.torch.spikes import Spikes
from adamas.turns import CHANGED

__all__ = ["OVERFLOWED", "Nonfinite", "Plan", "Planner"]

#: The first that takes a parameter steps it.
ROUTES = (device, offload, native, plain)
_OF_ENGINES = {"native": (offload, native), "triton": (device,), "torch": (plain,)}
#: What is said of them.
_TAKEN = {
    native: "real, contiguous tensors on the CPU, as their gradients, state and copies",
    device: "real tensors on CUDA devices, beside their gradients and copies, by Triton",
}
#: Those that step all of theirs at once.
_AT_ONCE = (device, native)

#: Plans for devices that are kept for the next time.
_MOST_EARLIER = 8

#: What a step says that a GradScaler has asked to be left out.
OVERFLOWED = Outcome(applied=False, norm=None, nonfinite=None, statistics=None)


class Nonfinite(NamedTuple):
    """A gradient that is not finite."""

    place: int  # of its parameter
    found: int  # of such elements, in the whole tensor
    here: int  # of those that this process has
    size: int  # of the whole tensor


class Plan:
    """How to make a step, and further ones as long as nothing changes."""

    def __init__(
        self,
        routes: Sequence[Route],
        phase: Phase,
        setup: Setup,
        parts: distributed.Exchange | None = None,
        *,
        apart: bool,
    ) -> None:
        """Take the routes in the order in which outcomes report what they step.

        ``setup`` is what they are made of, and ``parts`` adds up what processes have of each
        parameter. ``apart``: norm and guard are taken here, before any of the routes.
        """
        self._routes = tuple(routes)
        self._phase = phase
        self._setup = setup
        self._parts = parts
        #: Whether it was made knowing which processes have parts of what.
        self._is_shared = _is_shared(phase)
        self._clip_groups = clip_groups.given_in(setup.owned.groups)
        #: The route that takes all there is, norm and guard included, or None.
        self._whole: Native | OnDevice | None = None
        if len(self._routes) == 1 and not apart and isinstance(self._routes[0], (Native, OnDevice)):
            self._whole = self._routes[0]
        self._native = self._whole if isinstance(self._whole, Native) else None
        #: The plan of the native engine where it takes all there is, or None.
        self.native = None if self._native is None else self._native.plan
        #: What launches steps on devices, all of it or a part, or None.
        self.device = next((each for each in self._routes if isinstance(each, OnDevice)), None)

    @property
    def phase(self) -> Phase:
        """What it steps by."""
        return self._phase

    @property
    def direct(self) -> Callable[[Groups, States], Any] | None:
        """The native step, where it is all there is to do; it gives what that reports, or None."""
        return None if self._native is None else self._native.direct

    @property
    def members(self) -> tuple[Member, ...]:
        """All parameters that have gradients now, in the order in which outcomes report them."""
        if self._whole is not None:
            return self._whole.members
        return tuple(member for route in self._routes for member in route.members)

    @property
    def routes(self) -> dict[int, str]:
        """The name of the route of each parameter that was stepped last, by place."""
        return {member.place: route.name for route in self._routes for member in route.stepped}

    @property
    def is_idle(self) -> bool:
        """Whether the last step found no gradient at all."""
        return self.native is not None and not self.native.stepped

    @property
    def is_for_once(self) -> bool:
        """Whether the next step is planned anew, and nothing of this one is of use to it."""
        return self._whole is None and self.device is None

    @property
    def is_on_device(self) -> bool:
        """Whether all of it is launched, and nothing waits for it."""
        return self._whole is not None and self._whole is self.device

    def goes_by(self, phase: Phase) -> bool:
        """Go on by another phase, as a run may adapt clip_norm at each step; False if it cannot."""
        if self._native is None or _looks(phase) != _looks(self._phase):
            return False
        if _is_shared(phase) and not self._is_shared and distributed.is_initialized():
            return False  # who else has parts was not asked
        self._native.go_by(phase)
        self._phase = phase
        return True

    def fits(self, groups: Groups, states: States) -> bool:
        """Return whether it may be asked for another step."""
        return (
            self._whole is not None
            and self._whole.fits(groups, states)
            and clip_groups.given_in(groups) == self._clip_groups
        )

    def ready(self) -> None:
        """Raise what would be raised in the midst of a step; nothing is touched."""
        for route in self._routes:
            route.ready()

    def step(self, scaling: Scaling) -> Made | None:
        """Make one step, where it is new or fits.

        Returns NotImplemented, having done nothing, where something has changed. Nothing is done
        either where ``scaling`` says so: then the answer is OVERFLOWED.
        """
        if scaling is not UNSCALED:
            is_waited_for = not self.is_on_device or self._phase.on_nonfinite == "raise"
            if is_waited_for or not isinstance(scaling.found_inf, Tensor):
                if scaling.has_overflowed:  # a scaler's own doing, and no reason to raise
                    return OVERFLOWED
                scale = scaling.grad_scale
                scaling = UNSCALED if scale is None else Scaling(scale)
        if self._whole is not None:
            made = self._whole.step(scaling)
        else:
            made = self._step_apart(Scaling(scaling.loss_scale))
        if self._parts is None or not self._phase.statistics or made is NotImplemented:
            return made
        return self._of_wholes(made)

    def _of_wholes(self, made: Made | None) -> Made | None:
        """Return what a step reports, with the statistics of whole tensors."""
        if made is None or self._parts is None or not made.applied:
            return made
        parameters = parameters_of(self._setup.owned.groups)
        own = {m.place: part for m, part in zip(self.members, recorded(made), strict=True)}
        wholes = statistics.of_wholes(parameters, own, self._parts)
        return Outcome(True, made.norm, made.nonfinite, tuple(wholes))

    def _step_apart(self, scaling: Scaling) -> Outcome | None:
        """Make one step of tensors of several kinds: norm and guard first, then kind by kind."""
        phase, spikes = self._phase, self._setup.spikes
        norm = nonfinite = None
        factor = 1.0
        if phase.reads_first:
            row, nonfinite = sums.read(self.members, self._setup)
            norm = digits.norm(row) / scaling.loss_scale
            if digits.nonfinite(row) and phase.on_nonfinite != "propagate":
                sums.measure_nothing(self._setup)
                return Outcome(applied=False, norm=norm, nonfinite=nonfinite, statistics=None)
            if spikes is not None and spikes.leaves_out(norm, phase):
                sums.measure_nothing(self._setup)
                return Outcome(False, norm, nonfinite, statistics=None, spike=True)
            if phase.clip_norm is not None:
                factor = clip_factor(phase.clip_norm, norm)
        self.ready()
        updates = sums.measured(self._routes, self._setup, scaling, factor)
        records: list[Statistics] = []
        for route in self._routes:
            made = route.step(scaling, factor, updates)
            if made is NotImplemented:
                raise RuntimeError(CHANGED)
            if made is not None:
                records.extend(recorded(made))
        if norm is not None and spikes is not None:
            spikes.enter(norm, phase)
        if not phase.reads_first and not phase.statistics:
            return None
        taken = tuple(records) if phase.statistics else None
        return Outcome(applied=True, norm=norm, nonfinite=nonfinite, statistics=taken)

    def nonfinite(self, made: Made) -> list[Nonfinite]:
        """Return which gradients are not finite, after a step that found some.

        All processes that have parts of a parameter call this together: the verdict is theirs in
        common.
        """
        members = self.members
        counts = dict(zip((m.place for m in members), made.nonfinite or (), strict=True))
        everywhere = torch.zeros(len(self._setup.owned.names), dtype=torch.int64)
        for place, count in counts.items():
            everywhere[place] = count
        if self._parts is not None:
            self._parts.each(everywhere)
        parameters = parameters_of(self._setup.owned.groups)
        return [
            Nonfinite(place, count, counts.get(place, 0), parameters[place].numel())
            for place, count in enumerate(everywhere.tolist())
            if count
        ]


class Planner:
    """Makes plans, and keeps what outlives them."""

    def __init__(self, keeping: Keeping, engine: Engine | None) -> None:
        self.keeping = keeping
        self._engine = engine
        self.numbers = Numbers(keeping.method, keeping.phase.ema)
        self.devices = Lasting()
        self.spikes = Spikes.begun(keeping.phase.skip_window)
        self._pipeline = Offload(keeping.phase)
        #: Plans for devices whose gradients may come back.
        self._earlier: list[Plan] = []
        #: How many steps there were without any gradient.
        self._idle_steps = 0
        #: The sums of parameters, with these and the groups that they were made of.
        self._summed: tuple[list[Tensor], list[Any], distributed.Sets] = (
            [],
            [],
            distributed.Sets(),
        )

    def go_by(self, keeping: Keeping) -> None:
        """Make plans for another phase from now on; those of before are not for it.

        They are kept where it differs in statistics alone, which come and go.
        """
        before = self.keeping
        self.go_on_by(keeping)
        if observed(before.phase) != observed(keeping.phase):
            self.forget_earlier()

    def forget_earlier(self) -> None:
        """Let go of all plans of before, as where parameters have other marks now."""
        self._earlier.clear()

    def go_on_by(self, keeping: Keeping) -> None:
        """Do so for a phase that differs in statistics alone."""
        self.keeping = keeping
        self._pipeline.go_by(keeping.phase)

    def agreed(self, scaling: Scaling, groups: Groups) -> Scaling:
        """Return what a GradScaler says to all processes that take norm and guard together."""
        found, phase = scaling.found_inf, self.keeping.phase
        if found is None or not _is_shared(phase):
            return scaling
        if not distributed.is_initialized():
            return scaling
        sets = self._sets(groups)
        exchange = sets.exchange if phase.reads_first else sets.parts
        if exchange is None:
            return scaling
        found = found if isinstance(found, Tensor) else torch.tensor(float(found))
        return scaling._replace(found_inf=exchange.largest(found))

    def _sets(self, groups: Groups, *, anew: bool = False) -> distributed.Sets:
        """Return the sums that parameters are counted in, those of before if they are for these."""
        parameters = parameters_of(groups)
        clips, others = clip_groups.of_all(groups, self.keeping.clip_group)
        before, clips_before, sets = self._summed
        is_known = (
            not anew
            and len(parameters) == len(before)
            and all(map(operator.is_, parameters, before))
            and [*clips, *others] == clips_before
        )
        if not is_known:
            sets = distributed.sets_of(parameters, clips, others)
            self._summed = (parameters, [*clips, *others], sets)
        return sets

    def leave(self, plan: Plan | None) -> None:
        """Let go of a plan, but for what may be asked for again."""
        if plan is not None and plan.device is not None:
            self.devices.leave(plan.device)
            if plan.is_on_device:
                self._earlier.append(plan)

    def earlier(self, groups: Groups, states: States) -> Plan | None:
        """Return a plan of before that finds all as it was, or None."""
        for i, plan in enumerate(self._earlier):
            if plan.phase == self.keeping.phase and plan.fits(groups, states):
                return self._earlier.pop(i)
        return None

    def forget(self, states: States) -> None:
        """Let go of plans of before that cannot fit any more, and of the oldest."""
        self._earlier = [
            plan
            for plan in self._earlier[-_MOST_EARLIER:]
            if plan.device is not None and plan.device.is_current(states)
        ]

    def read_and_written(self, owned: Owned) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parameters that have gradients, and all that a step along them may write.

        A plan for the processor is for parameters without a gradient, too. Raises TypeError where
        a state is no dict.
        """
        read: list[Tensor] = []
        written: list[Tensor] = list(owned.copies)
        for group, p, place in places_of(owned.groups):
            state = owned.states.get(p, {})
            storage.check_kind(owned.names[place], state)
            if p.grad is not None:
                read.append(p)
            elif not (native.is_plain(p, (p.dtype,)) and self._may_return(group, p, owned.states)):
                continue
            entries = (x for x in state.values() if isinstance(x, Tensor))
            written += (x for x in (p, *entries) if x.layout == torch.strided)
        return read, written

    def planned(self, owned: Owned, before: Plan | None) -> Plan:
        """Return a plan for the gradients that there are now, and create what states lack.

        Raises before anything is touched where a parameter, a gradient or a state is refused.
        """
        phase = self.keeping.phase
        sets = self._sets(owned.groups, anew=True) if _is_shared(phase) else distributed.Sets()
        if phase.clip_update is not None:
            sharding.refuse_parts_of_several(parameters_of(owned.groups), owned.names)
        if phase.reads_first:
            clips, _ = clip_groups.of_all(owned.groups, self.keeping.clip_group)
            for refuse in (sharding.refuse_flat_parts, sharding.refuse_absent_parts):
                refuse(parameters_of(owned.groups), owned.names, clips)
        # Whether an engine that is asked for takes a parameter is known when its state is there.
        with nullcontext() if self._engine is None else storage.restoring(owned.states):
            members = list(self._members(owned))
            self.refuse_strays(owned.groups, owned.names, is_idle=not members)
            for member in members:
                self.keeping.refuse(member, owned.names[member.place])
            if self._bring_into_form(members, owned.names):
                members = list(self._members(owned))  # forms may be told by the state
            members = [self._completed(member, owned.states) for member in members]
            chosen: dict[Any, list[Member]] = {native: [], device: [], offload: [], plain: []}
            taken = Memory()
            for member in members:
                chosen[self._route(member, taken, owned.names[member.place])].append(member)
            if chosen[native] and sum(map(bool, chosen.values())) == 1:
                # Whether they have gradients is no part of a plan for the processor.
                chosen[native].extend(m for m in self._absent(owned) if taken.add(m.parts()))
            # Plans walk the state in its own order, which is that of the first gradients.
            order = {id(p): i for i, p in enumerate(owned.states)}
            for each in (native, device):
                chosen[each].sort(key=lambda member: order.get(id(member.parameter), -1))
            return self._plan(owned, chosen, sets, before)

    def refuse_strays(self, groups: Groups, names: Sequence[str], *, is_idle: bool) -> None:
        """Raise RuntimeError where sharding has put others in place of an optimizer's parameters.

        ``is_idle``: none of them has a gradient.
        """
        self._idle_steps += is_idle
        # To look around takes as long as many steps: after 1, 2, 4, 8 of them.
        looks_around = is_idle and self._idle_steps.bit_count() == 1
        sharding.refuse_strays(parameters_of(groups), names, looks_around=looks_around)

    def _route(self, member: Member, taken: Memory, name: str) -> Any:
        """Return what steps a member: the first that takes it, of those that ``engine`` leaves.

        Raises ValueError where that is none.
        """
        allowed, p = ROUTES if self._engine is None else _OF_ENGINES[self._engine], member.parameter
        for route in allowed:
            # What shares memory is stepped one after another, as torch does.
            if route.takes(member) and (route not in _AT_ONCE or taken.add(member.parts())):
                return route
        laid = f"strides {p.stride()}" if p.layout == torch.strided else p.layout
        raise ValueError(
            f'engine is "{self._engine}", but {name} has dtype {p.dtype}, {laid} and device '
            f"{p.device}, and that engine steps {_TAKEN[allowed[-1]]}, if they share no memory; "
            "and not RMSprop with momentum or centered. Leave engine out, so that each parameter "
            "is stepped by the fastest that can; routes() says which that is."
        )

    def _plan(
        self,
        owned: Owned,
        chosen: dict[Any, list[Member]],
        sets: distributed.Sets,
        before: Plan | None,
    ) -> Plan:
        phase = self.keeping.phase
        parameters = parameters_of(owned.groups)
        stepped = {id(member.parameter) for members in chosen.values() for member in members}
        idle = [p for p in parameters if id(p) not in stepped]
        exchange = sets.exchange if phase.reads_first else None
        setup = Setup(owned, phase, self.numbers, idle, sets.rows, sets.row_count, exchange)
        is_several = bool(sum(map(bool, chosen.values())) > 1 or chosen[plain] or chosen[offload])
        is_cut = phase.clip_update is not None and sets.parts is not None
        setup = setup._replace(
            spikes=self.spikes, parts=sets.parts, is_given_updates=is_cut and is_several
        )
        apart = phase.reads_first and is_several
        if apart:
            phase = replace(phase, clip_norm=None, on_nonfinite="propagate", skip_above=None)
        own = setup._replace(phase=phase, exchange=None if apart else setup.exchange)
        on_device = chosen[device]
        routes: list[Route] = []
        if chosen[native]:
            routes.append(Native(chosen[native], own))
        # Who has no gradient takes part all the same, and waits for no device either.
        is_idle = (setup.exchange is not None or is_cut) and not stepped and bool(idle)
        if on_device or (is_idle and devices.takes(idle[0].device)):
            known = None if before is None else before.device
            routes.append(OnDevice(on_device, own, self.devices, known))
        if chosen[plain]:
            routes.append(Plain(chosen[plain], own))
        if chosen[offload]:
            routes.append(Offloaded(chosen[offload], own, self._pipeline))
        return Plan(routes, self.keeping.phase, setup, sets.parts, apart=apart)

    # -- members and their states --------------------------------------------------------------

    def _members(self, owned: Owned, *, present: bool = True) -> Iterator[Member]:
        """Yield the parameters that have gradients, or those that have none."""
        for group, parameter, place in places_of(owned.groups):
            if (parameter.grad is not None) is present:
                copy = owned.copies[place] if owned.copies else None
                marks = owned.marks[place] if owned.marks else None
                state = owned.states.get(parameter)
                state = {} if state is None else state
                yield self.keeping.member(group, parameter, place, state, copy, marks)

    def _absent(self, owned: Owned) -> Iterator[Member]:
        """Yield parameters without a gradient that could be stepped at once if they had one."""
        for member in self._members(owned, present=False):
            may_return = self._may_return(member.group, member.parameter, owned.states)
            if may_return and self._is_complete(member) and native.takes(member):
                yield member

    def _may_return(self, group: Group, parameter: Tensor, states: States) -> bool:
        """Whether a gradient would find all that the parameter keeps, if it keeps anything."""
        step, names = self.keeping.method.names(group)
        return parameter in states or not any((step, *names))

    def _is_complete(self, member: Member) -> bool:
        """Return whether nothing is to be created, converted or refused for a parameter."""
        wanted = member.wanted
        if not wanted <= member.state.keys():
            return False
        try:
            self.keeping.refuse_parameter(member, "")
            return not wanted or self.keeping.going_on(member, "") is member.state
        except (TypeError, ValueError):
            return False  # and who gives it a gradient is told why

    def _bring_into_form(self, members: Sequence[Member], names: Sequence[str]) -> bool:
        """Bring states into the form that their groups store now; return whether one had another.

        Raises ValueError or TypeError, having changed nothing, where a state is none of its
        parameter.
        """
        changed: list[tuple[State, State]] = []
        for member in members:
            if not member.state:
                continue
            fitted = self.keeping.going_on(member, names[member.place])
            step = fitted.get("step")
            if isinstance(step, Tensor) and devices.takes(member.parameter.device):
                counted = self.devices.counts.counting(step)
                fitted = fitted if counted is step else {**fitted, "step": counted}
            if fitted is not member.state:
                changed.append((member.state, fitted))
        for state, fitted in changed:
            state.update(fitted)
            for name in state.keys() - fitted.keys():
                del state[name]
        return bool(changed)

    def _completed(self, member: Member, states: States) -> Member:
        """Create what the state of a member lacks; return it with its state."""
        if member.step_name is None and not any(member.names):
            return member._replace(state={})
        if member.parameter not in states:
            states[member.parameter] = {}
        if member.state is not states[member.parameter]:
            member = member._replace(state=states[member.parameter])
        is_new = member.is_new
        if is_new and member.step_name is None:
            self.numbers.begins(member.parameter)  # first: to make a state may fail half way
        self.keeping.complete(member)
        if is_new and member.step is not None and devices.takes(member.parameter.device):
            self.devices.counts.created(member.step)
        return member


def _is_shared(phase: Phase) -> bool:
    """Return whether steps need to know which processes have parts of what."""
    return phase.reads_first or phase.statistics or phase.clip_update is not None


def _looks(phase: Phase) -> tuple[bool, ...]:
    """Return what a step looks at first: gradients, norms of before, and updates."""
    return phase.reads_first, phase.skip_above is not None, phase.clip_update is not None
