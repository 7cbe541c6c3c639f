"""Four ways to step, behind one seam; each takes what it can, and :mod:`adamas.torch.plan` chooses.

======= ==========================================================================================
native  plain tensors on the CPU: one call of the native engine for all of them
device  tensors on devices that Triton serves: a few launches
offload tensors on a card whose state is in host memory, by the native engine
plain   whatever is left, one by one, by torch's own operations
======= ==========================================================================================

A route is a module with ``takes(member)``, which says whether it can step a parameter, and a class
that steps those it was made for.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from adamas.options import Phase
from adamas.statistics import Statistics
from adamas.torch.keeping import Keeping
from adamas.torch.members import Member
from adamas.torch.numbers import Numbers, Scaling

__all__ = ["PLAIN_TYPES", "Made", "Route", "Setup"]

#: Types of tensors that are nothing else besides.
PLAIN_TYPES = (Tensor, nn.Parameter)

Groups = list[dict[str, Any]]
States = MutableMapping[Tensor, dict[str, Any]]


class Made(Protocol):
    """What a step reports: an :class:`adamas.statistics.Outcome`, or one that waits to be read."""

    @property
    def applied(self) -> bool:
        """Whether the step was made."""
        ...

    @property
    def norm(self) -> float | None:
        """Norm of all gradients, unscaled; None where nothing needed it."""
        ...

    @property
    def nonfinite(self) -> tuple[int, ...] | None:
        """Number of non-finite elements of each gradient; None where nothing needed it."""
        ...

    @property
    def statistics(self) -> tuple[Statistics, ...] | None:
        """One entry for each member; None where none were taken."""
        ...


class Setup(NamedTuple):
    """What routes are made of, besides their members."""

    #: The optimizer's own.
    groups: Groups
    states: States
    keeping: Keeping
    #: What they see to themselves; without norm and guard where these were taken before.
    phase: Phase
    numbers: Numbers
    #: Parameters that must not have a gradient.
    idle: list[Tensor]


class Route(Protocol):
    """Steps the parameters that it was made for."""

    #: What :meth:`adamas.torch.Optimizer.routes` calls it.
    name: str

    @property
    def members(self) -> Sequence[Member]:
        """Those that have gradients now, in the order in which outcomes report them."""
        ...

    @property
    def stepped(self) -> Sequence[Member]:
        """Those that the last step was about."""
        ...

    def fits(self, groups: Groups, states: States) -> bool:
        """Return whether it may be asked for another step; it need not be made by one then."""
        ...

    def ready(self) -> None:
        """Raise what would be raised in the midst of a step; nothing is touched."""
        ...

    def step(
        self, groups: Groups, states: States, scaling: Scaling, factor: float = 1.0
    ) -> Made | None:
        """Make one step in place, of gradients multiplied by ``factor``.

        Returns None where there is nothing to report, and NotImplemented, having changed nothing,
        where something is no longer what it was.
        """
        ...
