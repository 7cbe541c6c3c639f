"""The sums of other processes join those of the Triton engine before its verdict."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from adamas import digits
from adamas import state as states
from adamas.coefficients import at_step, clip_factor
from adamas.engines import Group, Slot
from adamas.engines.triton.jobs import Inputs
from adamas.engines.triton.launches import Launches
from adamas.options import Options, Phase
from adamas.rule import rule
from tests.support.cases import ordinary
from tests.support.triton_cases import drawn, same
from tests.support.triton_plans import DEVICE, plan_with

OPTIONS = Options(lr=0.1)


class Others:
    """Stands for other processes: adds rows of theirs, and notes what it was given."""

    def __init__(self, *rows):
        self.rows = np.stack(rows)
        self.given = []

    def __call__(self, rows):
        assert (rows.dtype, rows.device) == (torch.int64, DEVICE)
        assert rows.is_contiguous()
        self.given.append(rows.cpu().numpy().copy())
        rows += torch.from_numpy(self.rows).to(DEVICE)


def stepped(arrays, gradients, sets, phase, others):
    """What a step leaves of arrays that are counted in ``sets``, and its outcome."""
    values = [each.copy() for each in arrays]
    slots = tuple(Slot(p, states.create(p, OPTIONS)) for p in values)
    numbers = iter(sets)
    plan = plan_with(
        [Group(OPTIONS, slots)],
        phase,
        lambda job: job._replace(row=next(numbers)),
        rows=max(sets) + 1,
        exchange=others,
    )
    return values, plan.step(gradients, 1, [0.1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norm_and_factor_are_of_the_sums_of_all_processes(dtype):
    arrays, (gradients,) = drawn(dtype, [(ordinary, 33), (ordinary, 0), (ordinary, 70)], steps=1)
    theirs = np.random.default_rng(5).standard_normal((2, 50))
    others = Others(*map(digits.of_squares, theirs))
    values, outcome = stepped(arrays, gradients, [1, 0, 0], Phase(clip_norm=0.5), others)
    (given,) = others.given
    np.testing.assert_array_equal(given[0], digits.of_squares(gradients[2]))
    np.testing.assert_array_equal(given[1], digits.of_squares(gradients[0]))
    assert outcome.norm == digits.norm(digits.carried((given + others.rows).sum(0)))
    factor = clip_factor(0.5, outcome.norm)
    numbers = at_step(OPTIONS, 1, 0.1, factor).rounded(np.dtype(dtype))
    for before, gradient, value in zip(arrays, gradients, values, strict=True):
        none = np.zeros_like(before)
        assert same(value, rule(numbers, before, gradient, none, none, None)[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("policy", ["skip", "raise", "propagate"])
def test_a_step_is_left_out_where_another_process_has_what_is_not_finite(policy, bad):
    arrays, (gradients,) = drawn(np.float32, [(ordinary, 33)], steps=1)
    others = Others(digits.of_squares(np.array([1.0, bad])))
    phase = Phase(on_nonfinite=policy, clip_norm=1.0)
    values, outcome = stepped(arrays, gradients, [0], phase, others)
    assert outcome.applied == (policy == "propagate")
    assert outcome.applied or same(values[0], arrays[0])
    assert outcome.nonfinite == (0,)
    assert not math.isfinite(outcome.norm)


def test_sums_are_exchanged_where_this_process_has_nothing_to_step():
    others = Others(digits.of_squares(np.array([3.0])), digits.of_squares(np.array([4.0])))
    launches = Launches([], [OPTIONS], Phase(clip_norm=1.0), rows=2, exchange=others, device=DEVICE)
    skipped = {DEVICE: torch.zeros((), dtype=torch.int64, device=DEVICE)}
    nothing = np.zeros(0, np.int64)
    outcome = launches.step(Inputs(nothing, nothing, [0.1]), skipped)
    assert not others.given[0].any()
    assert outcome.fetched().norm == 5.0
    assert outcome.nonfinite == ()
