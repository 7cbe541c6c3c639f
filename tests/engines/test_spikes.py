"""Every engine leaves out the same steps, and keeps the same window, bit for bit."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from adamas import spikes
from adamas import state as states
from adamas.engines import Group, Slot, native, reference, triton
from adamas.engines.native import outcome_of, set_target, target, targets
from adamas.options import MOST_NORMS, Options, Phase

NEEDS_TRITON = pytest.mark.skipif(not find_spec("triton"), reason="Triton is not installed")
if find_spec("triton"):
    import tests.support.triton_plans  # noqa: F401  its interpreter is faster

OPTIONS = Options(lr=0.1)
TARGETS = [name for name, is_here in targets().items() if is_here]


def norm_of(random):
    """A norm of any kind: such as trainings have, equal ones, huge, tiny, 0, or none."""
    usual = float(np.exp(random.normal()))
    kinds = [usual] * 8 + [1.0, 1.0, 0.0, 1e300, 1e-300, 5e-324, np.inf, np.nan]
    return float(random.choice(kinds))


def window_of(random, size):
    """A window as some run leaves it, on the way or rolled over; of one kind, or of all."""
    count = int(random.integers(0, 3 * size))
    all_kinds = np.array([norm_of(random) for _ in range(size)])
    norms = np.where(spikes.is_judged(1.0) & (all_kinds > 0) & np.isfinite(all_kinds), all_kinds, 1)
    scale = 10.0 ** random.integers(-150, 150)
    norms = norms if random.integers(2) else scale * np.exp(random.normal(size=size) / 8)
    window = spikes.created(size)
    window[:size] = np.where(np.arange(size) < count, norms, 0)
    window[spikes.COUNT], window[spikes.LEFT_OUT] = count, count // 3
    largest = norms.max(initial=1e-300)
    return window, float(norm_of(random) if random.integers(2) else largest * random.uniform(0, 4))


class Case:
    """One parameter, whose gradient is its norm, with a window."""

    def __init__(self, engine, window, phase):
        self.p, self.window = np.ones(1), window.copy()
        self.slot = Slot(self.p, states.create(self.p, OPTIONS))
        self.plan = engine.Plan([Group(OPTIONS, (self.slot,))], phase, self.window)
        self.record = [0, 0, None]

    def step(self, norm):
        with np.errstate(all="ignore"):
            made = self.plan.step([np.array([-norm])], self.record[0] + 1, [0.1], self.record)
        steps, skipped, outcome = self.record
        arrays = [each.tobytes() for each in (self.p, self.slot.state.square, self.window)]
        return repr(made), arrays, steps, skipped, repr(outcome_of(outcome)), made.spike


def compare(engine, seed, cases, sizes):
    random = np.random.default_rng(seed)
    found = []
    for case in range(cases):
        size = int(random.choice(sizes))
        window, norm = window_of(random, size)
        policy = str(random.choice(["propagate", "skip", "raise"]))
        phase = Phase(skip_above=2.0, skip_window=size, on_nonfinite=policy)
        one, other = (Case(each, window, phase).step(norm) for each in (engine, reference))
        assert one == other, (case, size, window, norm, policy)
        found.append(one[-1])
    return sum(found)


@pytest.mark.parametrize("name", TARGETS)
def test_the_native_engine_judges_with_the_bits_of_the_reference(name):
    before = target()
    set_target(name)
    try:
        assert 10 < compare(native, 0, 100, [4, 5, 7, 64, 127, 128, 129, 300, 1024]) < 75
    finally:
        set_target(before)


@NEEDS_TRITON
def test_triton_judges_with_the_bits_of_the_reference():
    assert compare(triton, 1, 6, [4, 7, 128, 129]) > 0


@NEEDS_TRITON
@pytest.mark.slow
def test_triton_judges_by_windows_of_all_sizes_with_the_bits_of_the_reference():
    assert compare(triton, 2, 60, [4, 5, 7, 64, 127, 128, 129, 300, 1024]) > 8
    compare(triton, 3, 2, [MOST_NORMS])


@pytest.mark.parametrize(
    "engine",
    [reference, native, pytest.param(triton, marks=[NEEDS_TRITON, pytest.mark.slow])],
)
def test_a_run_has_one_window_that_rolls_over(engine):
    one, judge = (
        Case(each, spikes.created(5), Phase(skip_above=2.0, skip_window=5, clip_norm=1.0))
        for each in (engine, reference)
    )
    random = np.random.default_rng(3)
    norms = [float(np.exp(random.normal()) * (30 if step % 7 == 6 else 1)) for step in range(25)]
    assert [one.step(norm) for norm in norms] == [judge.step(norm) for norm in norms]
    assert 2 < spikes.left_out(one.window) < 12
    assert one.record[0] == 25 - spikes.left_out(one.window)
    assert one.record[1] == 0


@pytest.mark.parametrize("engine", [reference, native, pytest.param(triton, marks=NEEDS_TRITON)])
def test_a_plan_without_a_window_has_one_of_its_own(engine):
    p = np.ones(1)
    phase = Phase(skip_above=3.0, skip_window=4)
    plan = engine.Plan([Group(OPTIONS, (Slot(p, states.create(p, OPTIONS)),))], phase)
    with np.errstate(all="ignore"):
        made = [plan.step([np.array([each])], 1, [0.1]).spike for each in (1.0, 1.1, 9.0)]
    assert made == [False, False, True]


@pytest.mark.parametrize("window", [np.zeros(2), np.zeros((3, 4)), np.zeros(9, np.float32), "x"])
def test_the_native_engine_refuses_what_is_no_window(window):
    p = np.ones(1)
    groups = [Group(OPTIONS, (Slot(p, states.create(p, OPTIONS)),))]
    with pytest.raises(ValueError, match="A window of norms is a writeable array of float64"):
        native.Plan(groups, Phase(skip_above=3.0), window)
