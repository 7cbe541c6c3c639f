"""Parts of tensors draw the random bits of their elements' places in the whole tensor."""

from __future__ import annotations

import numpy as np
import pytest

from adamas import state as states
from adamas.engines import Group, Runs, Slot, reference
from adamas.options import Options, Phase
from tests.support.cases import ordinary
from tests.support.triton_cases import BFLOAT16, CHUNK, as_stored, same
from tests.support.triton_plans import plan_with


def stepped(engine_plan, p, gradients, options):
    for number, gradient in enumerate(gradients, 1):
        engine_plan.step([gradient], number, [options.lr])
    return p


#: A whole tensor's shape, and of a part its indices along each dimension, with its runs.
PARTS = {
    "columns": (
        (700, 40),
        (range(700), range(13, 40)),
        [Runs(0, 13, 27, 40)],
    ),
    "blocks of rows, the last of them shorter": (
        (40, 50),
        ([*range(5, 10), *range(25, 30), *range(38, 40)], range(50)),
        [Runs(0, 250, 250, 1000), Runs(500, 1900, 100, 0)],
    ),
    "columns of rows": (
        (9, 8, 33),
        (range(3, 9), range(2, 5), range(33)),
        [Runs(0, 858, 99, 264)],
    ),
    "single elements": ((300, 3), (range(300), range(1, 2)), [Runs(0, 1, 1, 3)]),
    "what is consecutive": ((20, 500), (range(4, 20), range(500)), [Runs(0, 2000, 8000, 0)]),
}


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BFLOAT16, Options(lr=0.1, rounding="stochastic")),
        (np.dtype(np.float32), Options(lr=0.1, state="compact", rounding="stochastic")),
    ],
)
def test_a_part_has_the_bits_of_the_whole_tensor(name, dtype, options):
    shape, alongs, runs = PARTS[name]
    random, cut = np.random.default_rng(0), np.ix_(*alongs)
    size = int(np.prod(shape))
    whole, *gradients = (
        as_stored(ordinary(random, size, np.float32), dtype).reshape(shape) for _ in range(3)
    )
    part = whole[cut].copy()
    slot = Slot(whole, states.create(whole, options), number=3)
    plan = reference.Plan([Group(options, (slot,))], Phase(seed=7))
    expected = stepped(plan, whole, gradients, options)[cut]
    slot = Slot(part, states.create(part, options), number=3)
    plan = plan_with(
        [Group(options, (slot,))],
        Phase(seed=7),
        lambda job: job._replace(runs=tuple(runs)),
    )
    found = stepped(plan, part, [np.ascontiguousarray(g[cut]) for g in gradients], options)
    assert same(found, expected)
    assert found.size > 0


def test_runs_reach_over_chunks():
    shape, options = (3 * CHUNK // 16, 24), Options(lr=0.1, rounding="stochastic")
    random = np.random.default_rng(1)
    whole, gradient = (
        as_stored(ordinary(random, shape[0] * 24, np.float32), BFLOAT16).reshape(shape)
        for _ in range(2)
    )
    part = whole[:, 5:21].copy()
    slot = Slot(whole, states.create(whole, options))
    plan = reference.Plan([Group(options, (slot,))], Phase())
    expected = stepped(plan, whole, [gradient], options)[:, 5:21]
    slot = Slot(part, states.create(part, options))
    runs = (Runs(0, 5, 16, 24),)
    plan = plan_with([Group(options, (slot,))], Phase(), lambda job: job._replace(runs=runs))
    assert same(stepped(plan, part, [gradient[:, 5:21].copy()], options), expected)
