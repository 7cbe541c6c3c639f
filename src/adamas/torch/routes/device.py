"""Tensors on devices that Triton serves: a few launches step all of them, and nothing waits.

The engine knows arrays and tables; here is what an optimizer knows of them: which entry of which
state is which array, where rates and numbers of steps are kept, what has to be copied because it is
not contiguous, and whether all this still fits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas.digits import Row
from adamas.engines.native import TensorWatch
from adamas.engines.triton import devices as triton
from adamas.engines.triton.jobs import Inputs, Job, signature_of
from adamas.engines.triton.launches import Launches
from adamas.state import Entries
from adamas.torch import arguments, decays, gradients, operations, parts, small
from adamas.torch.counting import DeviceCounts
from adamas.torch.members import WIDE, Member, scalar
from adamas.torch.numbers import Scaling
from adamas.torch.routes import PLAIN_TYPES, Groups, Made, Route, Setup, States
from adamas.torch.statistics import elements_of
from adamas.torch.updates import Wholes

__all__ = ["Lasting", "OnDevice", "takes"]


def takes(member: Member) -> bool:
    """Whether Triton can step a parameter: on one of its devices, with all that belongs to it.

    Of a distributed tensor it steps this process's part, unless the bits to round with are those of
    elements that stand too irregularly in the whole one.
    """
    p = member.parameter
    if not triton.takes(p.device):
        return False
    stored = member.with_dtypes()
    if stored is None:
        return False
    local = [(parts.local(x), dtype) for x, dtype in stored]
    part = local[0][0]
    fits = all(
        x.device == part.device
        and x.dtype == dtype
        and x.layout == torch.strided
        and x.shape == part.shape
        and not gradients.is_lazy(x)
        for x, dtype in local
    )
    kept = [x for x, _ in stored if x is not p.grad]  # a gradient can be laid out anew
    if member.copy is not None:
        kept.append(member.copy)
    fits = fits and all(parts.is_alike(p, x) for x in kept)
    form, copy = member.form, member.copy
    return (
        fits
        and (form is None or form.is_read_on(part.device, member.state))
        and (copy is None or (copy.dtype in small.HALF and copy.device == part.device))
        and (not member.draws or parts.runs(p) is not None)
    )


class Lasting:
    """What outlives the plans for devices."""

    def __init__(self) -> None:
        self.counts = DeviceCounts()
        self._skipped: dict[torch.device, Tensor] = {}
        #: Launches that a CUDA graph has recorded, whose tables it reads at each replay.
        self._captured: dict[int, Launches] = {}

    @property
    def skipped(self) -> int:
        """How many steps devices left out; it waits for them."""
        return sum(int(each.item()) for each in self._skipped.values())

    def counters(self, devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
        """Return where devices count the steps that they leave out."""
        for device in devices:
            if device not in self._skipped:
                self._skipped[device] = torch.zeros((), dtype=torch.int64, device=device)
        return self._skipped

    def leave(self, route: OnDevice) -> None:
        """Keep what a CUDA graph may go on to read when a plan goes."""
        if route.launches.is_captured:
            self._captured[id(route.launches)] = route.launches


class OnDevice(Route):
    """Launches, and the parameters that they step."""

    name = "triton"

    def __init__(
        self, members: Sequence[Member], setup: Setup, devices: Lasting, before: OnDevice | None
    ) -> None:
        """Make the tables, or take those of ``before`` where they still fit.

        Without members nothing is stepped, but what other processes have is added up.
        """
        super().__init__(members, setup)
        phase, numbers = setup.phase, setup.numbers
        self._shared = devices
        steps = (member.step for member in members)
        self._last = devices.counts.planned(each for each in steps if each is not None)
        present = [member.parameter for member in members] or setup.idle
        self._devices = frozenset(parameter.device for parameter in present[: len(members) or 1])
        #: Their groups, and of each the learning rate where it is kept on the device.
        self._groups = list({id(m.group): m.group for m in members}.values())
        self._rates = [_rate_on_device(group, members) for group in self._groups]
        options = [numbers.method.options(group) for group in self._groups]
        index = {id(group): i for i, group in enumerate(self._groups)}
        #: What was not contiguous, and what is stepped in its place.
        self._replaced: list[tuple[Tensor, Tensor]] = []
        #: Marks, those of the same elements as they lie in memory, and what they are of.
        self._in_memory: list[tuple[Tensor, Tensor, Tensor]] = []
        #: By place: numbers of steps that are kept on the host.
        self._host_steps: dict[int, Tensor] = {}
        #: What the tables were made of.
        self._jobs: list[Job] = []
        #: Gradients of the first step: a contiguous copy is held until its kernels are launched.
        self._first: list[Tensor] = []
        for place, member in enumerate(members):
            step, group = member.step, index[id(member.group)]
            if step is not None and not triton.is_beside(step, member.parameter):
                self._host_steps[place] = step
                step = None
            job, gradient = _job(member, self._replaced)
            if member.marks is not None and job.marks is not None and job.marks is not member.marks:
                self._in_memory.append((member.marks, job.marks, job.parameter))
            self._first.append(gradient)
            self._jobs.append(
                job._replace(
                    step=step,
                    lr=self._rates[group],
                    group=group,
                    row=setup.row(member.place),
                    is_given=options[group] is None,
                    whole=elements_of(member.parameter),
                )
            )
        #: Those whose numbers are given with each step.
        self._given = [m for m in members if options[index[id(m.group)]] is None]
        self._lead = self._jobs[0].device if self._jobs else min(self._devices, key=str)
        window = None if self._spikes is None else self._spikes.room(self._lead)
        self.measures = not setup.is_given_updates
        wholes = None
        if phase.clip_update is not None and setup.parts is not None and self.measures:
            places = tuple(member.place for member in members)
            wholes = Wholes(setup.parts, len(setup.owned.names), places)
        signature = signature_of(self._jobs, options, phase, (setup.exchange, wholes), window)
        if before is not None and before.launches.signature == signature:
            self.launches = before.launches
        else:
            self.launches = Launches(
                self._jobs,
                options,
                phase,
                rows=setup.row_count,
                exchange=setup.exchange,
                device=self._lead,
                spikes=window,
                wholes=wholes,
            )
        #: Addresses of the gradients.
        self._gradients = np.array([each.data_ptr() for each in self._first], np.int64)
        #: Tells whether the tensors still fit; None where each step has to look closely.
        self._watch: Any = None
        if not self._replaced and all(map(_is_watched, members)):
            watched = [(m.parameter, m.state, [] if m.copy is None else [m.copy]) for m in members]
            self._watch = TensorWatch(
                Tensor,
                torch.nn.Parameter,
                setup.owned.groups,
                watched,
                setup.idle,
                parts.seen_in(member.parameter for member in members),
            )

    def fits(self, groups: Groups, states: States) -> bool:
        """Return whether it can make the next step; then the gradients' addresses are known."""
        return self._shared.counts.go_on(self._last) and self._finds(groups, states)

    def _finds(self, groups: Groups, states: States) -> bool:
        """Return whether all is there as it was."""
        return (
            self._watch is not None
            and all(map(_is_rate, self._groups, self._rates))
            and self._watch.gradients(groups, states, self._gradients)
        )

    def is_current(self, states: States) -> bool:
        """Return whether what it steps is still what belongs to its parameters."""
        for member, job in zip(self.members, self._jobs, strict=True):
            kept, names = states.get(member.parameter, {}), member.names
            pairs = ((names.mean, job.entries.mean), (names.square, job.entries.square))
            if any(name and parts.local(kept.get(name)) is not entry for name, entry in pairs):
                return False
        return True

    def ready(self) -> None:
        """Take the numbers that are given."""
        for member in self._given:
            self._numbers.of(member, None)

    def step(
        self, scaling: Scaling, factor: float = 1.0, updates: Mapping[int, Row] | None = None
    ) -> Made | None:
        """Launch one step, and wait for none of it."""
        found, scale = scaling.found_inf, scaling.grad_scale
        inputs: dict[str, Any] = {"factor": factor, "scale_on_device": scale}
        if updates and not self.measures:
            inputs["updates"] = np.stack([updates[member.place] for member in self.members])
        if not isinstance(scale, Tensor):
            inputs["loss_scale"], inputs["scale_on_device"] = scaling.loss_scale, None
        self._refuse_capture()
        if self._spikes is not None:
            self._spikes.goes_to(self._lead)
        self._shared.counts.step()
        given = [self._numbers.of(member, None) for member in self._given]
        steps = np.zeros(len(self.members), np.int64)
        for place, step in self._host_steps.items():
            steps[place] = int(step.item()) + 1
        rates = [
            scalar(group["lr"]) if rate is None else 0.0
            for group, rate in zip(self._groups, self._rates, strict=True)
        ]
        values = Inputs(self._gradients, steps, rates, given=given, found_inf=found, **inputs)
        # First, so that parameters of a step that is interrupted count as written to.
        torch.autograd.graph.increment_version([member.parameter for member in self.members])
        outcome = self.launches.step(values, self._shared.counters(self._devices))
        self._first.clear()
        for target, source in self._replaced:
            target.copy_(source)
        for marks, found, parameter in self._in_memory:
            operations.take_marks(marks, found, parameter)
        if self._host_steps and (outcome is None or outcome.applied):
            for counted in self._host_steps.values():
                counted.add_(1)
        return outcome

    def _refuse_capture(self) -> None:
        """Raise RuntimeError where a CUDA graph is recorded of a step that it could not repeat."""
        on_host = bool(self._given) and any(rate is not None for rate in self._rates)
        changes = bool(self._given) and self._numbers.method.has_more_state
        triton.refuse_capture(
            self._devices,
            host_steps=bool(self._host_steps),
            given=on_host or changes,
            fresh=self._numbers.has_fresh,
            waits=self._phase.on_nonfinite == "raise",
            moves=self._spikes is not None and not self._spikes.is_on(self._lead),
        )


def _job(member: Member, replaced: list[tuple[Tensor, Tensor]]) -> tuple[Job, Tensor]:
    """Return what kernels have to know of a parameter, numbers apart, and its gradient.

    Adds to ``replaced``.
    """
    entries = member.entries
    part = parts.local(member.parameter).detach()
    written = [
        None if each is None else parts.local(each)
        for each in (part, *entries._replace(header=None), member.copy)
    ]
    is_ordered = member.draws or bool(member.storage.codes.header)
    g, *laid = triton.laid_out([member.local_gradient, *written], is_ordered=is_ordered)
    replaced.extend(
        (target, source)
        for target, source in zip(written, laid, strict=True)
        if target is not None and source is not None and source is not target
    )
    p, *kept, copied = laid
    header = None if entries.header is None else parts.local(entries.header)
    assert p is not None
    assert g is not None
    marks = member.marks
    if marks is not None and not p.is_contiguous():
        marks = torch.zeros_like(marks)  # kernels number elements as they lie in memory
    job = Job(
        parameter=p,
        entries=Entries(*kept)._replace(header=header),
        copy=copied,
        storage=member.storage,
        top=member.top,
        place=member.place,
        runs=(parts.runs(member.parameter) or ()) if member.draws else (),
        marks=marks,
    )
    return job, g


def _is_watched(member: Member) -> bool:
    """Return whether a look tells that a parameter and its gradient are as they were."""
    p = member.parameter
    return type(parts.local(p)) in PLAIN_TYPES and parts.is_alike(p, member.gradient)


def _rate_on_device(group: dict[str, Any], members: Sequence[Member]) -> Tensor | None:
    """Return the learning rate of a group where kernels can read it, on the device of them all."""
    lr = group["lr"]
    devices = {member.parameter.device for member in members if member.group is group}
    is_read = isinstance(lr, Tensor) and {lr.device} == devices and lr.dtype in WIDE
    return lr.detach() if is_read and lr.numel() == 1 else None


def _is_rate(group: dict[str, Any], known: Tensor | None) -> bool:
    """Return whether the learning rate of a group is still where it was."""
    lr = group.get("lr")
    if known is not None:
        if not isinstance(lr, Tensor):
            return False
        return lr.data_ptr() == known.data_ptr() and lr.dtype == known.dtype
    # What is not at least about 0, or is above its greatest, is for a close look, which says what
    # is wrong.
    if not decays.is_at_most(group):
        return False
    if isinstance(lr, Tensor):
        return lr.is_cpu and not triton.takes(lr.device) and bool((lr >= -arguments.ROUNDING).all())
    return isinstance(lr, (int, float, np.number)) and bool(lr >= -arguments.ROUNDING)
