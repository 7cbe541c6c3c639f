"""What a step of the Triton engine is given besides gradients, and the copies that it writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adamas import state as states
from adamas.coefficients import StepNumbers, at_step, clip_factor, ema_weights
from adamas.engines import Group, Slot
from adamas.options import Options, Phase
from adamas.rule import rule
from adamas.statistics import norm
from tests.support.cases import ordinary
from tests.support.triton_cases import CHUNK, DTYPES, FEW, HALVES, copied, copy_of, drawn, same
from tests.support.triton_plans import DEVICE, plan_with, step_with, with_copy

# ── copies ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("copy", ["bfloat16", "float16"])
@pytest.mark.parametrize(("dtype", "rounding"), [*DTYPES, HALVES[2]])
def test_copies_are_parameters_rounded_to_nearest(dtype, rounding, copy):
    options = Options(lr=1e-3, rounding=rounding)
    parameters, (gradients,) = drawn(dtype, [*FEW, (ordinary, CHUNK)], steps=1)
    slots = tuple(Slot(p, states.create(p, options)) for p in parameters)
    plan = with_copy(copy).Plan([Group(options, slots)], Phase())
    plan.step(gradients, 1, [1e-3])
    for i, slot in enumerate(slots):
        assert same(copied(slot.parameter, slot.state.remainder, copy), copy_of(plan, i))


# ── what a step is given ───────────────────────────────────────────────────────────────────────


def on_device(number, dtype=torch.float32, shape=()):
    return torch.full(shape, number, dtype=dtype, device=DEVICE)


class Given:
    """One tensor that both the rule itself and the engine step."""

    options = Options(lr=0.1, weight_decay=0.01)

    def __init__(self, phase=None, **replaced):
        phase = phase or Phase()
        (p,), self.gradients = drawn(np.float32, [(ordinary, 50)], steps=3)
        self.expected = (p, np.zeros_like(p), np.zeros_like(p))
        self.found = p.copy()
        self.state = states.create(p, self.options, ema=phase.ema is not None)
        slot = Slot(self.found, self.state)
        self.plan = plan_with(
            [Group(self.options, (slot,))], phase, lambda job: job._replace(**replaced)
        )
        #: Steps, steps left out, last outcome.
        self.record = [0, 0, None]

    def expect(self, step, lr=0.1, grad_scale=1.0):
        """Step by the rule."""
        c = at_step(self.options, step, lr, grad_scale).rounded(np.dtype(np.float32))
        p, m, v = self.expected
        self.expected = rule(c, p, self.gradients[step - 1][0], m, v)[:3]

    def step(self, step, lr=0.1, **extra):
        """Step by the engine, and compare."""
        outcome = step_with(self.plan, self.gradients[step - 1], step, [lr], self.record, **extra)
        for a, b in zip(self.expected, (self.found, *self.state.means()), strict=True):
            assert same(a, b), step
        return outcome


def test_gradients_are_divided_by_the_loss_scale_and_multiplied_by_a_factor():
    case = Given()
    # Of the last pair float32 sees whether it is divided first: a half of a unit lies between.
    pairs = [(3.0, 1.0), (65536.0, 0.3), (59.311223540272614, 63.406763343496706)]
    for step, (scale, factor) in enumerate(pairs, 1):
        case.expect(step, grad_scale=1.0 / scale * factor)
        assert case.step(step, loss_scale=scale, factor=factor) is None
    assert np.float32(1.0 / scale * factor) != np.float32(factor / scale)


def test_norms_are_of_gradients_divided_by_the_loss_scale():
    case = Given(Phase(clip_norm=0.5))
    for step, (scale, factor) in enumerate([(3.0, 0.9), (1e3, 1.0), (7.0, 1.0)], 1):
        total = norm(case.gradients[step - 1]) / scale
        case.expect(step, grad_scale=1.0 / scale * (factor * clip_factor(0.5, total)))
        assert case.step(step, loss_scale=scale, factor=factor).norm == total
    assert clip_factor(0.5, norm(case.gradients[1]) / 1e3) == 1.0


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_loss_scale_may_be_on_the_device(shape):
    case = Given()
    for step, scale in enumerate([3.0, 1024.0, 0.5], 1):
        case.expect(step, grad_scale=1.0 / scale)
        case.step(step, scale_on_device=on_device(scale, shape=shape))


@pytest.mark.parametrize("phase", [Phase(), Phase(on_nonfinite="skip", clip_norm=1e9)])
def test_nothing_changes_where_a_scaler_has_found_infinity(phase):
    case = Given(phase)
    for step, found in enumerate([0.0, 1.0, 0.0], 1):
        if not found:
            case.expect(step)
        outcome = case.step(step, found_inf=on_device(found))
        assert outcome is None or outcome.applied == (not found)
    # Counted are steps that the engine itself has left out.
    assert case.record[:2] == [3, 0]


def test_skipped_steps_are_counted():
    case = Given(Phase(on_nonfinite="skip"))
    case.gradients[1][0][7] = np.inf
    for step in (1, 2, 3):
        if step != 2:
            case.expect(step)
        case.step(step)
    assert case.record[:2] == [3, 1]


@pytest.mark.parametrize("first", [1, 2**24 - 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_may_be_counted_on_the_device(dtype, first):
    steps = on_device(first - 1, dtype)
    case = Given(step=steps)
    for step in (1, 2, 3):
        at = first + step - 1
        c = at_step(case.options, at, 0.1).rounded(np.dtype(np.float32))
        p, m, v = case.expected
        case.expected = rule(c, p, case.gradients[step - 1][0], m, v)[:3]
        case.step(step)
        assert float(steps) == at


def test_steps_that_are_left_out_are_not_counted_on_the_device():
    steps = on_device(0)
    case = Given(Phase(on_nonfinite="skip"), step=steps)
    case.gradients[0][0][7] = np.nan
    case.step(1)
    assert float(steps) == 0.0
    case.gradients[0] = case.gradients[1]
    case.expect(1)
    case.step(1)
    assert float(steps) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_learning_rate_may_be_on_the_device(dtype):
    rate = on_device(0.0, dtype)
    case = Given(lr=rate)
    for step, lr in enumerate([0.1, 0.03, 0.7], 1):
        rate.fill_(lr)
        case.expect(step, lr=float(rate))
        case.step(step, lr=1e9)


def test_numbers_may_be_given():
    case = Given(Phase(ema=0.75), is_given=True)
    average = np.zeros_like(case.found)
    for step, (lr, scale, factor) in enumerate(
        [(0.1, 3.0, 1.0), (0.5, 1.0, 0.3), (0.2, 7.0, 0.9)], 1
    ):
        numbers = at_step(case.options, step, lr)
        keep, take = ema_weights(0.75, step)
        case.expect(step, lr, grad_scale=1.0 / scale * factor)
        other = numbers._replace(step=99.0)  # the learning rate is that of the step
        given = [StepNumbers(other, keep, take, step)]
        case.step(step, lr, loss_scale=scale, factor=factor, given=given)
        keep, take = np.float32(keep), np.float32(take)
        average = keep * average + take * case.found
        assert same(average, case.state.ema)
