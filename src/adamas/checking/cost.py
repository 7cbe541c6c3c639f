"""What a step costs, small and large."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from adamas.checking.trials import Convention

__all__ = ["Cost", "cost"]

_SMALL, _LARGE = 128, 1 << 20
#: Seconds that the large steps may take together.
_PATIENCE = 1.0


@dataclass(frozen=True)
class Cost:
    """The quickest of a few steps on float32 parameters: an impression, not a benchmark."""

    #: Seconds for a step of 128 parameters, and of ``elements``.
    small: float
    large: float
    elements: int

    @property
    def per_element(self) -> float:
        """Seconds for each parameter of a large step."""
        return self.large / self.elements


def cost(convention: Convention) -> Cost | None:
    """Time steps of one array, as the subject is called by this package.

    None where it cannot step one of 128 parameters; larger ones that it cannot step are left out.
    """
    found: Cost | None = None
    elements, count = _SMALL, 30
    with suppress(Exception):
        while found is None or (elements < _LARGE and found.large * 64 * 4 < _PATIENCE):
            if found is not None:
                elements, count = min(elements * 64, _LARGE), 5
            seconds = _timed(convention, elements, count)
            found = Cost(seconds if found is None else found.small, seconds, elements)
    return found


def _timed(convention: Convention, elements: int, count: int) -> float:
    start = [np.zeros(elements, dtype=np.float32)]
    if convention.arrays > 1 and not convention.mixes_shapes:
        start = [start[0][: elements // 2]] * 2
    trial = convention.start(start, convention.default)
    times: list[float] = []
    gradients: list[Any] = [np.linspace(-1, 1, a.size, dtype=np.float32) for a in start]
    for _ in range(count):
        trial.step(gradients)
        times.append(trial.seconds)
    return min(times)
