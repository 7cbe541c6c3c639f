"""One run of the subject: what it was given, what it made of it, and how near a variant comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.arithmetic import DOUBLE, Arithmetic
from adamas.checking.prediction import Prediction, Settings
from adamas.checking.probes import Probe
from adamas.checking.trials import Convention
from adamas.checking.variants import Variant

__all__ = ["Observation", "misfit", "observe"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Observation:
    """Parameters before and after each step, (steps, arrays, elements), as float64."""

    probe: Probe
    #: The settings that stood: those of the probe where they can be set.
    settings: Settings
    #: The dtype that the parameters came back in.
    dtype: np.dtype[Any]
    before: Array
    after: Array
    #: Whether a gradient was written to.
    writes_gradients: bool
    #: Whether the learning rates of the probe are taken to have been in force.
    follows_rates: bool = True

    @cached_property
    def change(self) -> Array:
        """What each step subtracted."""
        with np.errstate(all="ignore"):
            return self.before - self.after

    def predicted(self, arithmetic: Arithmetic = DOUBLE) -> Prediction:
        """Return what variants make of the same."""
        rates = self.probe.rates if self.follows_rates else None
        return Prediction(self.settings, self.probe.gradients, self.before, rates, arithmetic)

    @cached_property
    def prediction(self) -> Prediction:
        """What variants make of the same, in float64."""
        return self.predicted()

    @cached_property
    def finite(self) -> Array:
        """Where each change is finite."""
        return np.isfinite(self.change)

    @cached_property
    def size(self) -> Array:
        """The largest finite change of each element."""
        return np.where(self.finite, np.abs(self.change), 0.0).max(axis=0)

    @cached_property
    def grain(self) -> Array:
        """What rounding the parameter may have done to each change."""
        return self._unit(0.0)

    @cached_property
    def ulps(self) -> Array:
        """The unit in the last place of each step: that of the largest number that takes part."""
        return self._unit(np.where(self.finite, np.abs(self.change), 0.0))

    def _unit(self, least: Any) -> Array:
        with np.errstate(all="ignore"):
            height = np.maximum(np.maximum(np.abs(self.before), np.abs(self.after)), least)
            height = np.where(np.isfinite(height), height, 0.0).astype(self.dtype)
            return np.spacing(height).astype(np.float64)

    # -- how near a variant comes --------------------------------------------------------------

    def errors(self, change: Array) -> Array:
        """Return the error of each predicted change, relative to the element's largest, up to 1."""
        size = np.abs(change)
        if self.finite.all() and np.isfinite(size).all():
            return self._relative(change, size)
        known = np.isfinite(change)
        errors = self._relative(change, np.where(known, size, 0.0))
        # NaN and infinity are right where both are; 0/0 is left open.
        strange = np.where(known == self.finite, 0.0, 1.0)
        strange = np.where(np.isnan(change) & (self.change == 0.0), 0.0, strange)
        return np.where(known & self.finite, errors, strange)

    def _relative(self, change: Array, size: Array) -> Array:
        largest = np.maximum(self.size, size.max(axis=-3, keepdims=True))
        off = np.maximum(np.abs(change - self.change) - self.grain, 0.0)
        return np.minimum(off / np.where(largest == 0.0, 1.0, largest), 1.0)

    def misfit(self, variant: Variant) -> float:
        """Return the mean error of ``variant``."""
        return float(self.errors(self.prediction.change(variant)).mean())

    def typical(self, variant: Variant) -> float:
        """Return its error in the middle element: blind to a few that are far off."""
        with np.errstate(all="ignore"):
            return float(np.median(self.errors(self.prediction.change(variant)).mean(axis=0)))

    def rate(self, variant: Variant) -> float:
        """Return the learning rate that explains the size of the changes best, given the rest."""
        ratio = self.change / self.prediction.change(variant.but(lr_fixed=1.0))
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        return float(np.median(ratio)) if ratio.size else 0.0

    def worst(self, variant: Variant) -> tuple[float, int]:
        """Return the largest error of a change, of the element's largest, and its step (1 first).

        NaN or infinity where ``variant`` has a number (or the reverse) counts as 1.
        """
        with np.errstate(all="ignore"):
            predicted = self.prediction.change(variant)
            known = np.isfinite(predicted)
            size = np.maximum(self.size, np.where(known, np.abs(predicted), 0.0).max(axis=0))
            off = np.maximum(np.abs(predicted - self.change) - self.ulps, 0.0)
            errors = np.where(off == 0.0, 0.0, off / size)
        errors = np.where(np.isfinite(errors), errors, np.where(self.finite == known, 0, 1))
        step = np.unravel_index(int(np.argmax(errors)), errors.shape)
        return float(errors[step]), int(step[0]) + 1


def misfit(observations: Sequence[Observation], variant: Variant) -> float:
    """Return the mean error of ``variant`` over several observations."""
    found = [each.misfit(variant) for each in observations]
    return sum(found) / len(found) if found else 0.0


def observe(
    convention: Convention, probe: Probe, dtype: Any, advance: Callable[[], object] = lambda: None
) -> Observation:
    """Let the subject run through ``probe`` with parameters of ``dtype``.

    ``advance`` is called after each step. A parameter that is no longer finite is put back to its
    last finite value, where the convention allows it, so that the steps after it can be seen.
    """
    trial = convention.start(
        [start.astype(dtype) for start in probe.start], probe.settings, probe.rates
    )
    before, after = np.empty(probe.gradients.shape), np.empty(probe.gradients.shape)
    last = probe.start.astype(np.float64).copy()
    writes = False
    found = np.dtype(dtype)
    for t, gradients in enumerate(probe.gradients.astype(dtype)):
        before[t] = last
        step = trial.step([g.copy() for g in gradients])
        writes = writes or any(
            not np.array_equal(g, given, equal_nan=True)
            for g, given in zip(step.gradients, gradients, strict=True)
        )
        found = step.parameters[0].dtype
        after[t] = step.parameters
        finite = np.isfinite(after[t])
        last = np.where(finite, after[t], last)
        if not finite.all() and not trial.put([each.astype(dtype) for each in last]):
            last = after[t].copy()
        advance()
    settings = convention.standing(probe.settings)
    return Observation(probe, settings, found, before, after, writes)
