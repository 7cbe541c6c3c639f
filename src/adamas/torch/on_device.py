"""From parameters on a device to what Triton launches for them, and back.

:mod:`adamas.engines.triton` knows arrays and tables; here is what an optimizer knows of them: which
entry of which state is which array, where rates and numbers of steps are kept, what has to be
copied because it is not contiguous, and whether all this still fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.coefficients import StepNumbers
from adamas.engines.native import TensorWatch
from adamas.engines.triton import devices
from adamas.engines.triton.jobs import Inputs, Job, form_name, signature_of
from adamas.engines.triton.launches import DeviceOutcome, Launches
from adamas.options import Options, Phase
from adamas.torch import arguments, distributed
from adamas.torch.members import Member, scalar

__all__ = ["OnDevice", "Stepped", "planned"]

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_RATES = (torch.float32, torch.float64)


class Stepped(NamedTuple):
    """A parameter to step, with its state and the options of its group."""

    member: Member
    state: dict[str, Any]
    #: None where its numbers are given with each step.
    options: Options | None
    copy: Tensor | None


class OnDevice(NamedTuple):
    """What steps the parameters on devices that Triton serves."""

    launches: Launches
    members: tuple[Member, ...]
    parameters: list[Tensor]
    devices: frozenset[torch.device]
    #: What the tables were made of: keeps contiguous copies while kernels read them.
    jobs: tuple[Job, ...]
    #: Their groups, and of each the learning rate where it is kept on the device.
    groups: tuple[dict[str, Any], ...]
    rates: tuple[Tensor | None, ...]
    #: Addresses of the gradients.
    gradients: NDArray[np.int64]
    #: Places and numbers of steps that are kept on the host.
    host_places: tuple[int, ...]
    host_steps: tuple[Tensor, ...]
    #: Those whose numbers are given with each step.
    given: tuple[Member, ...]
    #: What was not contiguous, and what is stepped in its place.
    replaced: tuple[tuple[Tensor, Tensor], ...]
    #: Places of gradients whose norm needs another order than theirs, and room for them in it.
    ordered: dict[int, Tensor]
    #: Tells whether the tensors still fit; None where each step has to look closely.
    watch: Any

    @property
    def takes_numbers_on_host(self) -> bool:
        """Whether what is given with each step depends on what is kept on the device."""
        return bool(self.given) and any(rate is not None for rate in self.rates)

    def fits(self, groups: list[dict[str, Any]], state: Any) -> bool:
        """Return whether it can make the next step; then the gradients' addresses are known."""
        return (
            self.watch is not None
            and all(map(_is_rate, self.groups, self.rates))
            and self.watch.gradients(groups, state, self.gradients)
        )

    def is_current(self, state: Any) -> bool:
        """Return whether what it steps is still what belongs to its parameters."""
        for member, job in zip(self.members, self.jobs, strict=True):
            kept, entries = state.get(member.parameter, {}), member.entries
            pairs = ((entries.mean, job.mean), (entries.square, job.square))
            if any(name is not None and kept.get(name) is not entry for name, entry in pairs):
                return False
        return True

    def launch(
        self, given: list[StepNumbers], skipped: dict[torch.device, Tensor], **inputs: Any
    ) -> DeviceOutcome | None:
        """Make one step; ``inputs`` are those of :class:`adamas.engines.triton.jobs.Inputs`."""
        steps = np.zeros(len(self.members), np.int64)
        for place, step in zip(self.host_places, self.host_steps, strict=True):
            steps[place] = int(step.item()) + 1
        rates = [
            scalar(group["lr"]) if rate is None else 0.0
            for group, rate in zip(self.groups, self.rates, strict=True)
        ]
        ordered = self.gradients.copy()
        for place, room in self.ordered.items():
            room.copy_(self.members[place].local_gradient.detach())
            ordered[place] = room.data_ptr()
        values = Inputs(self.gradients, ordered, steps, rates, given=given, **inputs)
        outcome = self.launches.step(values, skipped)
        for target, source in self.replaced:
            target.copy_(source)
        if self.host_steps and (outcome is None or outcome.applied):
            for counted in self.host_steps:
                counted.add_(1)
        torch.autograd.graph.increment_version(self.parameters)
        return outcome


def planned(
    stepped: Sequence[Stepped],
    groups: list[dict[str, Any]],
    idle: list[Tensor],
    phase: Phase,
    before: OnDevice | None,
) -> OnDevice:
    """Return how to step parameters, by the launches of ``before`` where they still fit.

    ``groups`` are all of the optimizer, ``idle`` its parameters without a gradient.
    """
    own_groups = list({id(each.member.group): each.member.group for each in stepped}.values())
    index = {id(group): i for i, group in enumerate(own_groups)}
    options = {index[id(each.member.group)]: each.options for each in stepped}
    rates = [_rate_on_device(group, stepped) for group in own_groups]
    jobs: list[Job] = []
    replaced: list[tuple[Tensor, Tensor]] = []
    host: dict[int, Tensor] = {}
    for each in stepped:
        name = each.member.entries.step
        step = None if name is None else each.state[name]
        if step is not None and not devices.is_beside(step, each.member.parameter):
            host[len(jobs)] = step
            step = None
        group = index[id(each.member.group)]
        jobs.append(_job(each, step, rates[group], group, phase, replaced))
    ordered_options = [options[i] for i in range(len(own_groups))]
    signature = signature_of(jobs, ordered_options, phase)
    if before is not None and before.launches.signature == signature:
        launches = before.launches
    else:
        launches = Launches(jobs, ordered_options, phase)
    watch = None
    if not replaced and all(type(each.member.parameter) in _PLAIN_TYPES for each in stepped):
        watched = [
            (each.member.parameter, each.state, [] if each.copy is None else [each.copy])
            for each in stepped
        ]
        watch = TensorWatch(Tensor, torch.nn.Parameter, groups, watched, idle)
    return OnDevice(
        launches=launches,
        members=tuple(each.member for each in stepped),
        parameters=[each.member.parameter for each in stepped],
        devices=frozenset(each.member.parameter.device for each in stepped),
        jobs=tuple(jobs),
        groups=tuple(own_groups),
        rates=tuple(rates),
        gradients=np.array([job.gradient.data_ptr() for job in jobs], np.int64),
        host_places=tuple(host),
        host_steps=tuple(host.values()),
        given=tuple(each.member for each in stepped if each.options is None),
        replaced=tuple(replaced),
        ordered={
            i: torch.empty_like(job.gradient, memory_format=torch.contiguous_format)
            for i, job in enumerate(jobs)
            if phase.reads_first and not job.gradient.is_contiguous()
        },
        watch=watch,
    )


def _job(
    stepped: Stepped,
    step: Tensor | None,
    rate: Tensor | None,
    group: int,
    phase: Phase,
    replaced: list[tuple[Tensor, Tensor]],
) -> Job:
    """Return what the kernels have to know of a parameter; add to what is ``replaced``."""
    member, state, options, copy = stepped
    entries, form = member.entries, member.form
    mean, square = ("float32", "float32") if form is None else form.forms
    names = (entries.mean, entries.square, entries.largest_square, entries.ema, entries.remainder)
    written = [
        None if each is None else distributed.local(each)
        for each in (
            member.parameter.detach(),
            *(None if name is None else state[name] for name in names),
            copy,
        )
    ]
    is_ordered = member.draws or "8bit" in (mean, square) or phase.statistics
    g, *laid = devices.laid_out([member.local_gradient, *written], is_ordered=is_ordered)
    replaced.extend(
        (target, source)
        for target, source in zip(written, laid, strict=True)
        if target is not None and source is not None and source is not target
    )
    p, m, v, w, ema, remainder, copied = laid
    assert p is not None
    assert g is not None
    return Job(
        parameter=p,
        gradient=g,
        mean=m,
        square=v,
        largest_square=w,
        ema=ema,
        copy=copied,
        header=None if entries.header is None else state[entries.header],
        remainder=remainder,
        step=step,
        lr=rate,
        forms=(form_name(mean, m), form_name(square, v)),
        rounding=(member.group.get("rounding") or "nearest") if member.is_half else "nearest",
        by_chance=member.rounds_means_by_chance,
        top=state.get("top", 0),
        place=member.place,
        first=distributed.first_element(member.parameter) or 0,
        group=group,
        is_given=options is None,
    )


def _rate_on_device(group: dict[str, Any], stepped: Sequence[Stepped]) -> Tensor | None:
    """Return the learning rate of a group where kernels can read it, on the device of them all."""
    lr = group["lr"]
    devices = {each.member.parameter.device for each in stepped if each.member.group is group}
    is_read = isinstance(lr, Tensor) and {lr.device} == devices and lr.dtype in _RATES
    return lr.detach() if is_read and lr.numel() == 1 else None


def _is_rate(group: dict[str, Any], known: Tensor | None) -> bool:
    """Return whether the learning rate of a group is still where it was."""
    lr = group.get("lr")
    if known is not None:
        if not isinstance(lr, Tensor):
            return False
        return lr.data_ptr() == known.data_ptr() and lr.dtype == known.dtype
    # What is not at least about 0 is for a close look, which says what is wrong.
    if isinstance(lr, Tensor):
        return (
            lr.is_cpu and not devices.takes(lr.device) and bool((lr >= -arguments.ROUNDING).all())
        )
    return isinstance(lr, (int, float, np.number)) and bool(lr >= -arguments.ROUNDING)
