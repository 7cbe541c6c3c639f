"""How far the subject is from exact arithmetic, in units in the last place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adamas.checking.arithmetic import exact
from adamas.checking.observation import Observation
from adamas.checking.variants import Variant

__all__ = ["Distance", "distance"]


@dataclass(frozen=True)
class Distance:
    """The error of single steps, in units in the last place of the parameter.

    The unit is the distance of neighbouring floats at the largest of the parameter before, the
    parameter after, and the change. A step that is rounded once is at most 0.5 away.
    """

    #: The dtype of the parameters.
    dtype: str
    #: The run: "usual" (24 steps, parameters as small as their updates) or "long" (300 steps,
    #: parameters of size 1), at default settings.
    run: str
    steps: int
    worst: float
    #: Half of all steps are nearer than this.
    median: float
    #: The step (1 first) with the worst error.
    at_step: int


def distance(observation: Observation, variant: Variant) -> Distance:
    """Return how far ``observation`` is from what ``variant`` is in exact arithmetic."""
    arithmetic = exact()
    change = observation.predicted(arithmetic).change(variant)
    with np.errstate(all="ignore"):
        error = arithmetic.array(observation.before) - change - arithmetic.array(observation.after)
        found = np.abs(error.astype(np.float64)) / observation.ulps
    found = np.where(np.isfinite(found), found, 0.0)
    worst = np.unravel_index(int(np.argmax(found)), found.shape)
    return Distance(
        dtype=observation.dtype.name,
        run=observation.probe.name,
        steps=len(found),
        worst=float(found[worst]),
        median=float(np.median(found)),
        at_step=int(worst[0]) + 1,
    )
