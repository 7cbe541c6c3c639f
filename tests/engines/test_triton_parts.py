"""Parts of tensors draw the random bits of their elements' places in the whole tensor."""

from __future__ import annotations

import numpy as np
import pytest

from adamas import state as states
from adamas.engines import Group, Runs, Slot, native, reference, triton
from adamas.options import Options, Phase
from tests.support import triton_plans  # noqa: F401  (the interpreter at more speed)
from tests.support.cases import ordinary
from tests.support.triton_cases import BFLOAT16, CHUNK, as_stored, same

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


ENGINES = {"reference": reference, "native": native, "triton": triton}


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BFLOAT16, Options(lr=0.1, rounding="stochastic")),
        (np.dtype(np.float32), Options(lr=0.1, state="compact", rounding="stochastic")),
    ],
    ids=["parameters", "state"],
)
def test_a_part_has_the_bits_of_the_whole_tensor(name, engine, dtype, options):
    """Also where the part is stepped in two slices."""
    shape, alongs, runs = PARTS[name]
    random, cut = np.random.default_rng(0), np.ix_(*alongs)
    size = int(np.prod(shape))
    whole, *gradients = (
        as_stored(ordinary(random, size, np.float32), dtype).reshape(shape) for _ in range(3)
    )
    part = whole[cut].copy().ravel()
    own = [np.ascontiguousarray(g[cut]).ravel() for g in gradients]
    slot = Slot(whole, states.create(whole, options), number=3)
    plan = reference.Plan([Group(options, (slot,))], Phase(seed=7))
    for number, gradient in enumerate(gradients, 1):
        plan.step([gradient], number, [0.1])
    assert part.size > 256
    slots = tuple(
        Slot(p, states.create(p, options), number=3, first=first, runs=own_runs)
        for first, p, own_runs in (
            (0, part[:224], [run for run in runs if run.first < 224]),
            (224, part[224:], runs),
        )
    )
    plan = ENGINES[engine].Plan([Group(options, slots)], Phase(seed=7))
    for number, gradient in enumerate(own, 1):
        plan.step([gradient[:224], gradient[224:]], number, [0.1])
    assert same(part, whole[cut].ravel())
    assert not same(part, np.zeros_like(part))


def test_runs_reach_over_the_chunks_of_a_kernel():
    shape, options = (3 * CHUNK // 16, 24), Options(lr=0.1, rounding="stochastic")
    random = np.random.default_rng(1)
    whole, gradient = (
        as_stored(ordinary(random, shape[0] * 24, np.float32), BFLOAT16).reshape(shape)
        for _ in range(2)
    )
    part = whole[:, 5:21].copy()
    slot = Slot(whole, states.create(whole, options))
    reference.Plan([Group(options, (slot,))], Phase()).step([gradient], 1, [0.1])
    slot = Slot(part, states.create(part, options), runs=[Runs(0, 5, 16, 24)])
    triton.Plan([Group(options, (slot,))], Phase()).step([gradient[:, 5:21].copy()], 1, [0.1])
    assert same(part, np.ascontiguousarray(whole[:, 5:21]))
