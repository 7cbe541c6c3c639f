"""Four ways to step, behind one seam; each takes what it can, and ``adamas.torch.plan`` chooses.

======= ==========================================================================================
native  tensors on the CPU, and parts of DTensors: one call of the native engine for all of them
device  tensors on devices that Triton serves: a few launches
offload tensors on a card whose state is in host memory, by the native engine
plain   whatever is left, one by one, by torch's own operations
======= ==========================================================================================

A route is a module with ``takes(member)``, which says whether it can step a parameter, and a class
that steps those it was made for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from adamas.digits import Row
from adamas.engines.triton.launches import DeviceOutcome
from adamas.options import Phase
from adamas.statistics import OfPart, Outcome, Statistics
from adamas.torch import updates
from adamas.torch.distributed import Exchange
from adamas.torch.members import Member
from adamas.torch.numbers import Numbers, Scaling
from adamas.torch.spikes import Spikes

__all__ = ["PLAIN_TYPES", "Made", "Owned", "Route", "Setup", "recorded"]

#: Types of tensors that are nothing else besides.
PLAIN_TYPES = (Tensor, nn.Parameter)

#: What a step reports; that of a device waits to be read.
Made = Outcome | DeviceOutcome
Groups = list[dict[str, Any]]
States = MutableMapping[Tensor, dict[str, Any]]


class Owned(NamedTuple):
    """What an optimizer has at a step: its own groups, states and copies."""

    groups: Groups
    states: States
    #: Of all parameters, in their order.
    names: Sequence[str]
    #: Of all parameters; none where there are none.
    copies: Sequence[Tensor]
    #: Of all parameters, of this process's parts: what has changed (``adamas.torch.tracking``);
    #: none where that is not tracked.
    marks: Sequence[Tensor] = ()
    #: Of all parameters, their versions after the last step, and then the number of steps, where
    #: changes are tracked.
    versions: NDArray[np.int64] | None = None


class Setup(NamedTuple):
    """What routes are made of, besides their members."""

    owned: Owned
    #: What they see to themselves; without norm and guard where these were taken before.
    phase: Phase
    numbers: Numbers
    #: Parameters that must not have a gradient.
    idle: list[Tensor]
    #: Of each parameter, by its place, the sum that it is counted in; nothing: there is one sum.
    rows: Sequence[int] = ()
    #: How many sums there are.
    row_count: int = 1
    #: Adds up, in place, what all processes have in these: int64[row_count, digits.WIDTH], a tensor
    #: on any device or an array. None where this process has all there is.
    exchange: Callable[[Any], None] | None = None
    #: What norms are judged by, where the phase asks for it.
    spikes: Spikes | None = None
    #: Makes sums of whole tensors of those of this process's parts, where updates are clipped and
    #: any is cut: of all parameters, by place. None where this process has all there is.
    parts: Exchange | None = None
    #: Whether each step is given what updates are clipped by, of all routes together.
    is_given_updates: bool = False

    def row(self, place: int) -> int:
        """Return the sum that the parameter at a place is counted in."""
        return self.rows[place] if self.rows else 0


class Route:
    """Steps the parameters that it was made for: once, unless it says that it ``fits``."""

    #: What ``adamas.torch.Optimizer.routes`` calls it.
    name: str
    #: Whether a step sees itself to what updates are clipped by.
    measures = False

    def __init__(self, members: Sequence[Member], setup: Setup) -> None:
        self._all = tuple(members)
        self._phase = setup.phase
        self._numbers = setup.numbers
        self._spikes = None if setup.phase.skip_above is None else setup.spikes

    @property
    def members(self) -> tuple[Member, ...]:
        """Those that have gradients now, in the order in which outcomes report them."""
        return self._all

    @property
    def stepped(self) -> tuple[Member, ...]:
        """Those that the last step was about."""
        return self._all

    def fits(self, groups: Groups, states: States) -> bool:  # noqa: ARG002
        """Return whether it may be asked for another step; it need not be made by one then."""
        return False

    def ready(self) -> None:
        """Raise what would be raised in the midst of a step; nothing is touched."""
        raise NotImplementedError

    def measured(self, scaling: Scaling, factor: float) -> Sequence[Any]:
        """Return, of each member, the row of what its update is clipped by, of its part here."""
        options = self._numbers.options(self.members)
        rules = (self._numbers.of(each, options[id(each.group)]).rule for each in self.members)
        factor = factor / scaling.loss_scale
        return [
            updates.row_of(member, rule._replace(grad_scale=rule.grad_scale * factor))
            for member, rule in zip(self.members, rules, strict=True)
        ]

    def step(
        self, scaling: Scaling, factor: float = 1.0, updates: Mapping[int, Row] | None = None
    ) -> Made | None:
        """Make one step in place, of gradients multiplied by ``factor``.

        ``updates`` has the rows that updates are clipped by, of whole tensors, by place; none for a
        route that ``measures`` them. Returns None where there is nothing to report, and
        NotImplemented, having changed nothing, where something is no longer what it was.
        """
        raise NotImplementedError

    def _reported(self, records: Sequence[Statistics | None]) -> Outcome:
        """Return the outcome of a step that was made, with the records of those that have one."""
        taken = tuple(each for each in records if each is not None)
        found = taken if self._phase.statistics else None
        return Outcome(applied=True, norm=None, nonfinite=None, statistics=found)


def recorded(made: Made) -> Sequence[OfPart]:
    """Return what a step has taken of each tensor, with its sums; nothing where it took none."""
    found: Any = made.recorded if isinstance(made, DeviceOutcome) else made.statistics
    return found or ()
