"""What the last step did, and how many steps were left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adamas.checks import not_finite
from adamas.engines.triton.launches import DeviceOutcome
from adamas.options import Phase
from adamas.statistics import NONE_LEFT
from adamas.torch import gradients
from adamas.torch.grouping import names_of
from adamas.torch.members import Member
from adamas.torch.numbers import UNSCALED, Numbers, Scaling
from adamas.torch.plan import Nonfinite, Plan
from adamas.torch.routes import Groups, Made

__all__ = ["Record"]


class Record:
    """What steps report, taken down."""

    def __init__(self) -> None:
        self._made: Made | None = None
        #: The parameters that its statistics are of.
        self._reported: tuple[Member, ...] = ()
        #: Steps that were left out, but for those that devices count.
        self.skipped = 0

    @property
    def norm(self) -> float | None:
        """Norm of all gradients of the last step, unscaled; None where no option needed it."""
        return None if self._made is None else self._made.norm

    def take(
        self,
        plan: Plan,
        made: Made | None,
        scaling: Scaling,
        phase: Phase,
        numbers: Numbers,
        groups: Groups,
    ) -> bool:
        """Take down what a step reports, and bring up to date what depends on it.

        Returns whether the plan is of the first step alone. Raises FloatingPointError for gradients
        that are not finite, where ``phase`` says so.
        """
        self._made = made
        is_on_device = isinstance(made, DeviceOutcome)
        if scaling is not UNSCALED and scaling.grad_scale is not None:
            _leave_unscaled(plan, made, scaling, phase)
        self._reported = plan.members if phase.statistics else ()
        method = numbers.method
        waits = phase.on_nonfinite == "raise" or method.has_more_state or numbers.has_fresh
        if is_on_device and not waits:
            return False  # nothing here depends on whether the step was made
        if made is None or made.applied:
            if method.has_more_state:
                for member in plan.members:
                    method.stepped(member)
            if not numbers.has_fresh:
                return False
            numbers.begun(plan.members)  # from now on these go with the others
            return not plan.is_on_device
        if phase.on_nonfinite == "skip" and not is_on_device:
            self.skipped += 1
        if phase.on_nonfinite == "raise":
            raise _not_finite(plan.nonfinite(made), names_of(groups))
        return False

    def statistics(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the statistics of the last step, under names. Raises RuntimeError without any."""
        taken_of_all = None if self._made is None else self._made.statistics
        if taken_of_all is None:
            raise RuntimeError(NONE_LEFT)
        if any(member.place >= len(names) for member in self._reported):
            raise RuntimeError(
                "Parameters were taken out of param_groups since the last step, so its statistics "
                "have no names. Make a step first."
            )
        return {
            f"{names[member.place]}/{field}": torch.tensor(value, dtype=torch.float64)
            for member, taken in zip(self._reported, taken_of_all, strict=True)
            for field, value in vars(taken).items()
        }


def _leave_unscaled(plan: Plan, made: Made | None, scaling: Scaling, phase: Phase) -> None:
    """Divide gradients by the loss scale where a step was made, as torch's fused step does."""
    verdict = None
    if isinstance(made, DeviceOutcome) and phase.on_nonfinite != "raise":
        verdict = made.verdict
    elif made is not None and not made.applied:
        return
    gradients.unscale((m.parameter for m in plan.members), scaling.grad_scale, verdict)


def _not_finite(found: Sequence[Nonfinite], names: Sequence[str]) -> FloatingPointError:
    told = [
        f"{names[each.place]} ({each.found} of {each.size} elements"
        f"{'' if each.here else ', in other processes'})"
        for each in found
    ]
    return not_finite(told or ["those that only other processes have"])
