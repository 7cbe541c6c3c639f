"""How far the subject is from exact arithmetic, in units in the last place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.arithmetic import Exact
from adamas.checking.forms import Form
from adamas.checking.observation import Observation

__all__ = ["Distance", "distance", "relative_error", "ulps"]

Array = NDArray[Any]


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


def distance(observation: Observation, form: Form) -> Distance:
    """Return how far ``observation`` is from what ``form`` is in :class:`Exact` arithmetic."""
    exact = Exact()
    change = observation.prediction(arithmetic=exact).change(form)
    with np.errstate(all="ignore"):
        error = exact.array(observation.before) - change - exact.array(observation.after)
        found = np.abs(error.astype(np.float64)) / ulps(observation)
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


def ulps(observation: Observation) -> Array:
    """Return the unit of each step: that of the largest number that takes part."""
    change = np.abs(observation.change)
    height = np.maximum(np.abs(observation.before), np.abs(observation.after))
    height = np.maximum(height, np.where(np.isfinite(change), change, 0.0))
    height = np.where(np.isfinite(height), height, 0.0).astype(observation.dtype)
    return np.spacing(height).astype(np.float64)


def relative_error(observation: Observation, form: Form) -> tuple[float, int]:
    """Return the largest error of a change, of the element's largest, and its step (1 first).

    NaN or infinity where ``form`` has a number (or the reverse) counts as 1.
    """
    with np.errstate(all="ignore"):
        predicted = observation.prediction().change(form)
        change = observation.change
        finite = np.isfinite(change)
        size = np.where(finite, np.abs(change), 0.0).max(axis=0)
        size = np.maximum(
            size, np.where(np.isfinite(predicted), np.abs(predicted), 0.0).max(axis=0)
        )
        off = np.maximum(np.abs(predicted - change) - ulps(observation), 0.0)
        errors = np.where(off == 0.0, 0.0, off / size)
    errors = np.where(np.isfinite(errors), errors, np.where(finite == np.isfinite(predicted), 0, 1))
    worst = np.unravel_index(int(np.argmax(errors)), errors.shape)
    return float(errors[worst]), int(worst[0]) + 1
