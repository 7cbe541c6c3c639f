"""What the last step did, and how many steps were left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from adamas.checks import not_finite
from adamas.coefficients import clip_factor
from adamas.engines.native import outcome_of
from adamas.engines.triton.launches import DeviceOutcome
from adamas.options import Phase
from adamas.statistics import NONE_LEFT, OfPart, Statistics, values_of
from adamas.summary import norms_of, total
from adamas.torch import gradients
from adamas.torch.grouping import names_of
from adamas.torch.members import Member
from adamas.torch.numbers import UNSCALED, Numbers, Scaling
from adamas.torch.plan import Nonfinite, Plan
from adamas.torch.routes import Groups, Made, recorded
from adamas.torch.statistics import elements_of

__all__ = ["Record"]


class Record:
    """What steps report, taken down."""

    def __init__(self) -> None:
        #: What the last step reports, or the parts of that.
        self._last: Made | tuple[Any, ...] | None = None
        #: How many steps have reported, those that were left out included.
        self.count = 0
        #: The parameters that its statistics are of.
        self.reported: tuple[Member, ...] = ()
        #: Of the last step; the scale is what its gradients were multiplied by.
        self._clip_norm: float | None = None
        self._loss_scale: Any = None
        #: Steps that were left out, but for those that devices count.
        self.skipped = 0

    @property
    def _made(self) -> Made | None:
        if type(self._last) is tuple:
            self._last = outcome_of(self._last)
        return cast("Made | None", self._last)

    @property
    def norm(self) -> float | None:
        """Norm of all gradients of the last step, unscaled; None where no option needed it."""
        return None if self._made is None else self._made.norm

    @property
    def is_on_device(self) -> bool:
        """Whether reading what the last step reports waits for a device."""
        return isinstance(self._made, DeviceOutcome)

    @property
    def is_applied(self) -> bool:
        """Whether the last step was made."""
        return self._made is None or self._made.applied

    @property
    def clip_factor(self) -> float | None:
        """What the gradients of the last step were multiplied by, where it was clipped."""
        limit, norm = self._clip_norm, self.norm
        if limit is None or norm is None or not self.is_applied:
            return None
        return clip_factor(limit, norm)

    @property
    def parts(self) -> Sequence[OfPart]:
        """The statistics of ``reported``, with sums; nothing where there are none."""
        return () if self._made is None else recorded(self._made)

    @property
    def loss_scale(self) -> float:
        """What the gradients that statistics are of were multiplied by."""
        return 1.0 if self._loss_scale is None else float(self._loss_scale)

    @property
    def is_clipped(self) -> bool | None:
        """Whether the last step clipped; None where a device would be waited for."""
        made, limit = self._made, self._clip_norm
        if limit is None or made is None:
            return False
        if isinstance(made, DeviceOutcome):
            return None
        return made.norm is not None and made.applied and made.norm > limit

    def gradient_norm(self) -> float | None:
        """Return the norm of all gradients, from statistics where no option asked for it."""
        norm = self.norm
        if norm is None and self.parts:
            norm = norms_of(self.parts, gradients_only=True)[0] / self.loss_scale
        return norm

    def total(self) -> Statistics | None:
        """Return the statistics of all tensors as one, unscaled; None where there are none."""
        taken = self.parts
        if not taken:
            return None
        found = total(taken, [elements_of(member.parameter) for member in self.reported])
        return replace(found, gradient_norm=found.gradient_norm / self.loss_scale)

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
        self._last = made
        self.count += 1
        self._clip_norm = phase.clip_norm
        is_on_device = isinstance(made, DeviceOutcome)
        if scaling is not UNSCALED and scaling.grad_scale is not None:
            _leave_unscaled(plan, made, scaling, phase)
        self.reported = plan.members if phase.statistics else ()
        self._loss_scale = _kept(scaling.grad_scale) if phase.statistics else None
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
        if made.spike:
            return False  # counted where norms are kept
        if phase.on_nonfinite == "skip" and not is_on_device:
            self.skipped += 1
        if phase.on_nonfinite == "raise":
            raise _not_finite(plan.nonfinite(made), names_of(groups))
        return False

    def take_parts(self, parts: tuple[Any, ...], clip_norm: float | None) -> None:
        """Take down the parts of an outcome of a native step that was made, without statistics.

        Nothing else depends on it, and its gradients are not scaled.
        """
        self._last = parts
        self.count += 1
        self._clip_norm = clip_norm
        self._loss_scale = None
        self.reported = ()

    def statistics(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the statistics of the last step, under names. Raises RuntimeError without any."""
        if self._made is None or self._made.statistics is None:
            raise RuntimeError(NONE_LEFT)
        return {
            f"{name}/{field}": torch.tensor(value, dtype=torch.float64)
            for name, taken in self.named(names)
            for field, value in taken.items()
        }

    def named(self, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the statistics of the last step, by names of tensors, and by those of fields."""
        if any(member.place >= len(names) for member in self.reported):
            raise RuntimeError(
                "Parameters were taken out of param_groups since the last step, so its statistics "
                "have no names. Make a step first."
            )
        for member, values in zip(self.reported, values_of(self.parts), strict=True):
            yield names[member.place], values


def _kept(scale: Any) -> Any:
    """Return a loss scale as it is now: a GradScaler changes it in place, and nothing waits."""
    return scale.detach().clone() if isinstance(scale, Tensor) else scale


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
