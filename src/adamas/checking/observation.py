"""One run of the subject: what it was given, and what it made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.prediction import Prediction, Settings
from adamas.checking.probes import Probe
from adamas.checking.trials import Convention

__all__ = ["Observation", "observe"]

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

    @property
    def change(self) -> Array:
        """What each step subtracted."""
        with np.errstate(all="ignore"):
            return self.before - self.after

    def prediction(self, **more: Any) -> Prediction:
        """Return what forms make of the same."""
        rates = self.probe.rates if self.follows_rates else None
        return Prediction(self.settings, self.probe.gradients, self.before, rates, **more)


def observe(convention: Convention, probe: Probe, dtype: Any) -> Observation:
    """Let the subject run through ``probe`` with parameters of ``dtype``.

    A parameter that is no longer finite is put back to its last finite value, where the convention
    allows it, so that the steps after it can be seen.
    """
    arrays = [start.astype(dtype) for start in probe.start]
    trial = convention.start(arrays, probe.settings, probe.rates)
    shape = probe.gradients.shape
    before, after = np.empty(shape), np.empty(shape)
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
        if finite.all():
            last = after[t].copy()
        else:
            last = np.where(finite, after[t], last)
            if not trial.put([each.astype(dtype) for each in last]):
                last = after[t].copy()
    settings = convention.standing(probe.settings)
    return Observation(probe, settings, found, before, after, writes)
