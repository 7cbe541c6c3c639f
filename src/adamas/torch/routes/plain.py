"""Whatever the engines do not take, one parameter after another, by torch's own operations.

Complex and strided tensors, other devices, parameters that share memory, and groups
that follow another rule. Codes are read and written by ``adamas.codecs``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from adamas.codecs import key_of, random_bits_at
from adamas.digits import Row
from adamas.state import Entries
from adamas.statistics import Statistics
from adamas.torch import distributed, operations, small
from adamas.torch.members import Member
from adamas.torch.numbers import Scaling
from adamas.torch.operations import Tensors
from adamas.torch.routes import Made, Route, Setup
from adamas.torch.updates import shortened

__all__ = ["Plain", "takes"]


def takes(member: Member) -> bool:  # noqa: ARG001
    """Take all that there may be."""
    return True


class Plain(Route):
    """Steps parameters one by one."""

    name = "torch"

    def __init__(self, members: Sequence[Member], setup: Setup) -> None:
        super().__init__(members, setup)
        self._options = setup.numbers.options(m for m in members if m.own_step is None)

    def ready(self) -> None:
        """Take the numbers."""
        for member in self.members:
            if member.own_step is None:
                self._numbers.of(member, self._options[id(member.group)])

    @torch.no_grad()
    def step(
        self, scaling: Scaling, factor: float = 1.0, updates: Mapping[int, Row] | None = None
    ) -> Made | None:
        """Make one step of each."""
        factor, updates = factor / scaling.loss_scale, updates or {}
        return self._reported(
            [self._step(member, factor, updates.get(member.place)) for member in self.members]
        )

    def _step(self, member: Member, factor: float, row: Row | None) -> Statistics | None:
        if member.own_step is not None:
            parts = {name: distributed.local(each) for name, each in member.state.items()}
            member.own_step(self._tensors(member), parts, factor)
            return None
        numbers = self._numbers.of(member, self._options[id(member.group)])
        rule = numbers.rule._replace(grad_scale=numbers.rule.grad_scale * factor)
        if row is not None:
            rule = shortened(rule, member, row, self._phase.clip_update)
        if member.gradient.is_sparse and self._steps_rows(member):
            p = member.parameter.detach()
            operations.step_rows(p, member.gradient, rule, member.marks)
            return None
        tensors = self._tensors(member)
        form, names, state = member.form, member.names, member.state
        random = self._random_bits(member, numbers.step)
        if form is not None:
            mean, square = form.decoded(state, names)
            means = Entries(mean, square).map(distributed.local)
            tensors.entries = tensors.entries._replace(mean=means.mean, square=means.square)
        if member.rounds_parameter:
            self._round(member, tensors, random)
        average, recorded = (numbers.keep, numbers.take), self._phase.statistics
        record = operations.step_tensor(tensors, rule, average, recorded=recorded)
        if form is not None:
            means = (tensors.entries.mean, tensors.entries.square)
            form.store(state, names, means, random)
        if member.step is not None:
            member.step.add_(1)
        return record

    def _tensors(self, member: Member) -> Tensors:
        """Return this process's parts."""
        return Tensors(
            parameter=distributed.local(member.parameter.detach()),
            gradient=member.local_gradient,
            entries=member.entries.map(distributed.local),
            copy=None if member.copy is None else distributed.local(member.copy),
            marks=member.marks,
        )

    def _random_bits(self, member: Member, step: int) -> np.ndarray:
        """Return the random bits of this process's elements; none where nothing asks for them."""
        if member.form is None and not member.rounds_parameter:
            return np.zeros(0, np.uint32)
        key = key_of(self._phase.seed, step, member.place)
        return random_bits_at(key, distributed.element_indices(member.parameter))

    def _round(self, member: Member, tensors: Tensors, random: np.ndarray) -> None:
        """Let a parameter in half precision be stored otherwise than to nearest."""
        p, rounding = tensors.parameter, member.storage.parameter_rounding
        remainder = tensors.entries.remainder
        tensors.value = small.decoded_parameter(p, remainder)
        tensors.put = lambda value: small.put_parameter(p, remainder, value, rounding, random)

    def _steps_rows(self, member: Member) -> bool:
        """Whether a sparse gradient moves nothing but the rows that it has."""
        is_bare = member.copy is None and not self._phase.statistics
        return is_bare and not member.wanted and not member.draws
