"""Work for several threads of the native engine."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from adamas.engines import native
from adamas.options import Options
from tests.support.cases import LARGE, PHASES, Run, ordinary, run

__all__ = ["large_run", "linux"]

linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the threads of a process are listed in /proc, on Linux only"
)


def large_run(seed: int = 0, size: int = LARGE, steps: int = 3, phase: str = "all") -> Run:
    """Steps of the native engine, the same at each call, large enough for several threads."""
    random = np.random.default_rng(seed)
    parameters = [ordinary(random, size, np.float32)]
    gradients = [[ordinary(random, size, np.float32)] for _ in range(steps)]
    return run(native, Options(lr=0.1), PHASES[phase], parameters, gradients)
