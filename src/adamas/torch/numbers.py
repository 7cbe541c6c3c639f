"""The numbers of the coming step: which step it is, and what it means for a parameter."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from adamas.coefficients import StepNumbers, at_step
from adamas.options import Options
from adamas.torch.members import Member, scalar
from adamas.torch.methods import Method

__all__ = ["UNSCALED", "Numbers", "Scaling"]


class Scaling(NamedTuple):
    """What a GradScaler says of the gradients: tensors or numbers."""

    #: What they were multiplied by; None where that is undone.
    grad_scale: Any = None
    #: Not 0 where there is an infinity among them.
    found_inf: Any = None

    @classmethod
    def left_in(cls, attributes: dict[str, Any]) -> Scaling:
        """Return what a GradScaler has left in the attributes of an optimizer."""
        if "found_inf" not in attributes and "grad_scale" not in attributes:
            return UNSCALED  # as in nearly every step
        return cls(attributes.get("grad_scale"), attributes.get("found_inf"))

    @property
    def has_overflowed(self) -> bool:
        """Whether an infinity was found; that waits for a device."""
        found = self.found_inf
        return bool(found.item() if isinstance(found, Tensor) else found)

    @property
    def loss_scale(self) -> float:
        """What gradients are to be divided by."""
        scale = self.grad_scale
        if scale is None:
            return 1.0
        return float(scale.item() if isinstance(scale, Tensor) else scale)


#: Of gradients that no GradScaler has to do with.
UNSCALED = Scaling()


class Numbers:
    """The numbers of coming steps."""

    def __init__(self, method: Method, ema: float | None) -> None:
        """Take the decay rate of the EMA of the weights, None where there is none."""
        self.method = method
        self._ema = ema
        #: Parameters (by identity) before their first step, where no step is kept.
        self._fresh: set[int] = set()

    @property
    def has_fresh(self) -> bool:
        """Whether a parameter of which no step is kept is before its first."""
        return bool(self._fresh)

    def begins(self, parameter: Tensor) -> None:
        """Take notice of a parameter before its first step."""
        self._fresh.add(id(parameter))

    def begun(self, members: Sequence[Member]) -> None:
        """Take notice of a step: the next one of ``members`` is not their first."""
        self._fresh.difference_update(id(member.parameter) for member in members)

    def step(self, member: Member) -> int:
        """Return the number of the coming step, 1 first; 2 for all others where none is kept."""
        counted = member.step
        if counted is not None:
            return int(counted.item()) + 1
        return 1 if id(member.parameter) in self._fresh else 2

    def cohort(self, member: Member) -> Hashable:
        """Return what parameters must have in common to be stepped with the same numbers."""
        return (id(member.group), self.step(member), self.method.cohort(member))

    def options(self, members: Iterable[Member]) -> dict[int, Options | None]:
        """Return the options of the groups of members, by identity."""
        groups = {id(member.group): member.group for member in members}
        return {key: self.method.options(group) for key, group in groups.items()}

    def of(self, member: Member, options: Options | None) -> StepNumbers:
        """Return the numbers of the coming step, from the options of the group or the method."""
        step = self.step(member)
        if options is None:
            rule = self.method.numbers(member, step)
        else:
            rule = at_step(options, step, scalar(member.group["lr"]))
        return StepNumbers.averaging(rule, self._ema, step)
