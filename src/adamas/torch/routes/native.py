"""Tensors on the CPU, plain or this process's parts: one native call steps all of them.

A plan that was made once says what is read and written (``native/tensor_plan.cpp``). Each step sees
whether all of it is as it was, and takes the gradients that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.coefficients import StepNumbers
from adamas.digits import Row
from adamas.engines.native import Cohort, TensorPlan, TensorSlot, outcome_of
from adamas.options import Options, Phase
from adamas.torch import distributed, gradients, parts, small
from adamas.torch.distributed import Exchange
from adamas.torch.members import WIDE, Member
from adamas.torch.numbers import UNSCALED, Scaling
from adamas.torch.routes import PLAIN_TYPES, Groups, Made, Route, Setup, States
from adamas.torch.updates import shortened

__all__ = ["Native", "is_plain", "takes"]

#: What a wrong option or count raises when it is read; a plan made anew says which it is.
_WRONG = (LookupError, AttributeError, TypeError, ValueError, ArithmeticError, RuntimeError)


def takes(member: Member) -> bool:
    """Whether the native engine can step a parameter: on the CPU, contiguous, laid out alike."""
    stored = member.with_dtypes()
    p, step, form = member.parameter, member.step, member.form
    if stored is None or not all(is_plain(x, (dtype,)) for x, dtype in stored):
        return False
    if form is not None and not form.is_read_on(p.device, member.state):
        return False
    if step is not None and not (type(step) is Tensor and step.is_cpu and step.dtype in WIDE):
        return False
    written = [x for x, _ in stored]
    if member.copy is not None:
        if not is_plain(member.copy, small.HALF):
            return False
        written.append(member.copy)
    shape = parts.local(p).shape
    if not all(parts.is_alike(p, x) and parts.local(x).shape == shape for x in written):
        return False
    return not member.draws or parts.runs(p) is not None


def is_plain(tensor: Any, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether an array can stand for a tensor, or its part here: contiguous, with its values."""
    part = parts.local(tensor)
    return (
        type(part) in PLAIN_TYPES
        and part.dtype in dtypes
        and part.is_cpu
        and part.layout == torch.strided
        and part.is_contiguous()
        and not gradients.is_lazy(part)
    )


class Native(Route):
    """A plan of the native engine, and the parameters that it steps."""

    name = "native"

    def __init__(self, members: Sequence[Member], setup: Setup) -> None:
        """Make the plan; those of ``members`` without a gradient are left out of a step."""
        super().__init__(members, setup)
        self._groups, self._states = setup.owned.groups, setup.owned.states
        #: Of their groups, by identity.
        self._options = setup.numbers.options(members)
        self._is_given_updates = setup.is_given_updates
        self._is_shared = setup.parts is not None or setup.exchange is not None
        phase = setup.phase
        if setup.is_given_updates:
            phase = replace(phase, clip_update=None)
        cohorts, places = _cohorts(members, setup, self._options)
        #: One member of each cohort whose numbers are given with each step.
        self._given = tuple(member for member, cohort in cohorts if cohort.options is None)
        self.plan = TensorPlan(
            Tensor,
            torch.nn.Parameter,
            setup.owned.groups,
            [_slot(member, cohort, setup) for member, cohort in zip(members, places, strict=True)],
            [cohort for _, cohort in cohorts],
            setup.idle,
            phase,
            torch.autograd.graph.increment_version,
            setup.row_count,
            setup.exchange,
            distributed=parts.seen_in(member.parameter for member in members),
            keep_sums=True,
            spikes=None if self._spikes is None else self._spikes.here(),
            versions=setup.owned.versions,
            update_rows=0 if setup.parts is None else len(setup.owned.names),
            exchange_updates=None if setup.parts is None else _added_up(setup.parts),
        )

    @property
    def measures(self) -> bool:  # type: ignore[override]
        """Whether a step sees itself to what updates are clipped by."""
        return not self._is_given_updates

    @property
    def direct(self) -> Callable[[Groups, States], Any] | None:
        """Makes a step where that is all there is to do, and gives what it reports: norm and guard.

        None where there are numbers to give, and where a step reports more.
        """
        phase = self._phase
        # Without a gradient it would ask others for their sums, and then somebody for a look.
        asks = self._is_shared and (phase.reads_first or phase.clip_update is not None)
        reports_more = phase.statistics or phase.skip_above is not None
        return None if self._given or asks or reports_more else self.plan.step_if_open

    def go_by(self, phase: Phase) -> None:
        """Step by another phase that keeps the same and reads the same first."""
        self.plan.set_phase(phase)
        self._phase = phase

    @property
    def members(self) -> tuple[Member, ...]:
        """Those that have gradients now."""
        return tuple(member for member in self._all if member.parameter.grad is not None)

    @property
    def stepped(self) -> tuple[Member, ...]:
        """Those that the last step was about."""
        found = set(map(id, self.plan.parameters))
        return tuple(member for member in self._all if id(member.parameter) in found)

    def fits(self, groups: Groups, states: States) -> bool:
        """Leave all but these two to the plan, which looks on its way."""
        return groups is self._groups and states is self._states

    def ready(self) -> None:
        """Take the numbers."""
        self._numbers_given(None)

    def step(
        self, scaling: Scaling, factor: float = 1.0, updates: Mapping[int, Row] | None = None
    ) -> Made | None:
        """Make one step in one call."""
        given = None
        if self._given:
            try:
                given = self._numbers_given(updates)
            except _WRONG:
                return NotImplemented
        if self._spikes is not None:
            self._spikes.here()  # where the plan has it
        scale = 1.0 if scaling is UNSCALED else scaling.loss_scale
        return outcome_of(self.plan.step(self._groups, self._states, scale, factor, given))

    def _numbers_given(self, updates: Mapping[int, Row] | None) -> list[StepNumbers]:
        """Return the numbers of the coming step that the plan does not make itself."""
        for member in self._given:
            for name in self._numbers.method.counts(member):
                _ = member.state[name]  # which may have been taken out
        if not self._is_given_updates:
            return [self._numbers.of(member, None) for member in self._given]
        found: list[StepNumbers] = []
        for member in self._given:
            numbers = self._numbers.of(member, self._options[id(member.group)])
            row, bound = (updates or {}).get(member.place), self._phase.clip_update
            if row is not None:
                numbers = numbers._replace(rule=shortened(numbers.rule, member, row, bound))
            found.append(numbers)
        return found


def _cohorts(
    members: Sequence[Member], setup: Setup, options: Mapping[int, Options | None]
) -> tuple[list[tuple[Member, Cohort]], list[int]]:
    """Return cohorts, each with one of its members, and of each member which it is of."""
    index = {id(group): i for i, group in enumerate(setup.owned.groups)}
    known: dict[Hashable, int] = {}
    cohorts: list[tuple[Member, Cohort]] = []
    places: list[int] = []
    for member in members:
        group = id(member.group)
        own = options[group]
        key = setup.numbers.cohort(member) if own is None else group
        if setup.is_given_updates:  # each is clipped by its own factor
            own, key = None, member.place
        if key not in known:
            known[key] = len(cohorts)
            cohorts.append((member, Cohort(index[group], own)))
        places.append(known[key])
    return cohorts, places


def _slot(member: Member, cohort: int, setup: Setup) -> TensorSlot:
    """Return what the plan has to know of a parameter."""
    is_cut = setup.parts is not None and distributed.is_cut(member.parameter)
    return TensorSlot(
        parameter=member.parameter,
        state=member.state,
        step=member.step_name,
        names=member.names,
        storage=member.storage,
        top=member.top,
        number=member.place,
        copy=member.copy,
        cohort=cohort,
        row=setup.row(member.place),
        runs=(parts.runs(member.parameter) or ()) if member.draws else (),
        marks=member.marks,
        whole=member.parameter.numel() if is_cut else None,
        update_row=member.place if is_cut else None,
    )


def _added_up(parts: Exchange) -> Callable[[NDArray[np.int64]], None]:
    """Return what makes rows of all parameters, by place, those of whole tensors."""
    return lambda rows: parts.each(torch.from_numpy(rows))
