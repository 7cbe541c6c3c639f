"""What optimizers say has changed: equal to a snapshot and a bitwise diff, whatever happens."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.support.torch_routes import standing_in  # noqa: E402
from tests.support.tracked import ACTIONS, drawn, look, step, take  # noqa: E402

#: Cases of each of the tests with drawn ones.
_EACH = 100


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("block", range(100))
def test_what_has_changed_is_what_a_diff_finds_whatever_happens(block):
    for seed in range(block * _EACH, (block + 1) * _EACH):
        run = drawn(seed)
        names = np.random.default_rng(seed).choice([*ACTIONS], 6)
        for name in names:
            ACTIONS[name](run)
        take(run)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("route", ["offload late", "offload early", "triton"])
def test_every_route_marks_what_a_diff_finds(route, seed):
    if route == "triton":
        pytest.importorskip("triton")
    with standing_in(route):
        run = drawn(seed, engine=None, offload=route.startswith("offload"))
        for _ in range(2 if route == "triton" else 4):
            step(run)
            look(run)
        take(run)
        step(run)
        take(run)
