"""What other processes read joins the native engine's sums, between reading and stepping."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from adamas import digits
from adamas.coefficients import at_step
from adamas.engines.native import Cohort, TensorPlan, TensorSlot, outcome_of
from adamas.options import Options, Phase
from adamas.rule import unsmoothed
from adamas.state import Entries
from adamas.storage import Storage

SGD = Options(betas=(None, None), eps=0.0)


def planned(parameters, phase, rows, exchange):
    groups = [{"params": parameters, "lr": 0.5}]
    state = {}
    slots = [
        TensorSlot(p, {}, None, Entries(), Storage(), 0, i, None, 0, row)
        for i, (p, row) in enumerate(zip(parameters, rows, strict=True))
    ]
    plan = TensorPlan(
        torch.Tensor,
        torch.nn.Parameter,
        groups,
        slots,
        [Cohort(0, SGD)],
        [],
        phase,
        lambda _: None,
        rows=max(rows) + 1,
        exchange=exchange,
    )
    return lambda: outcome_of(plan.step(groups, state))


def with_gradients(*gradients):
    found = []
    for each in gradients:
        p = torch.nn.Parameter(torch.zeros(len(each)))
        p.grad = torch.tensor(each)
        found.append(p)
    return found


def test_rows_are_exchanged_between_reading_and_stepping():
    parameters = with_gradients([3.0], [4.0, 0.0])
    seen = []

    def others(rows):
        seen.append(rows.copy())
        assert not any(p.detach().any() for p in parameters)
        rows[1] += digits.of_squares(np.array([12.0]))

    step = planned(parameters, Phase(clip_norm=1.0), [0, 1], others)
    assert step().norm == 13.0
    assert [digits.norm(row) for row in seen[0]] == [3.0, 4.0]
    assert parameters[0].tolist() == [-0.5 * np.float32(3.0 * np.float32(1 / 13))]
    assert len(seen) == 1


def test_what_is_not_finite_elsewhere_leaves_the_step_out():
    parameters = with_gradients([3.0])
    before = copy.deepcopy(parameters)

    def others(rows):
        rows[0, digits.NAN] += 1

    outcome = planned(parameters, Phase(on_nonfinite="skip"), [0], others)()
    assert not outcome.applied
    assert outcome.nonfinite == (0,)
    assert torch.equal(parameters[0], before[0])


def test_rows_are_exchanged_where_nothing_has_a_gradient():
    parameters = with_gradients([3.0])
    parameters[0].grad = None
    seen = []
    outcome = planned(parameters, Phase(clip_norm=1.0), [0], lambda rows: seen.append(rows.sum()))()
    assert seen == [0]
    assert outcome.norm == 0.0


def test_an_error_of_the_exchange_ends_the_step_before_anything_is_touched():
    parameters = with_gradients([3.0])

    def fails(_rows):
        raise TimeoutError("no answer")

    step = planned(parameters, Phase(clip_norm=1.0), [0], fails)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="no answer"):
            step()
    assert parameters[0].tolist() == [0.0]


def test_nothing_is_exchanged_where_nothing_is_read():
    parameters = with_gradients([3.0])
    planned(parameters, Phase(), [0], lambda _: pytest.fail("asked"))()
    assert parameters[0].tolist() == [-1.5]


# ── updates ────────────────────────────────────────────────────────────────────────────────────

RMSPROP = Options(betas=(None, 0.9), bias_correction="none", eps=1e-3)


def squared(parameter, exchange, *, whole=None, row=None, rows=1):
    """A plan of one parameter, whose updates are clipped, and its state."""
    groups = [{"params": [parameter], "lr": 0.5}]
    state = {"v": torch.full_like(parameter, 0.25), "step": torch.tensor(0.0)}
    slot = TensorSlot(
        parameter, state, "step", Entries(square="v"), Storage(), 0, 0, None, 0,
        whole=whole, update_row=row,
    )  # fmt: skip
    plan = TensorPlan(
        torch.Tensor, torch.nn.Parameter, groups, [slot], [Cohort(0, RMSPROP)], [],
        Phase(clip_update=0.5), lambda _: None, update_rows=rows, exchange_updates=exchange,
    )  # fmt: skip
    return (lambda: outcome_of(plan.step(groups, {parameter: state}))), state


def test_a_part_is_clipped_by_the_sums_of_the_whole_tensor():
    (whole,) = with_gradients([3.0, -4.0, 0.5, 7.0, 1.0])
    step, _ = squared(whole, None)
    step()
    (part,) = with_gradients([3.0, -4.0, 0.5])
    elsewhere = np.array([7.0, 1.0], np.float32)
    numbers = at_step(RMSPROP, 1, 0.5).rounded(np.dtype(np.float32))
    others = unsmoothed(numbers, None, elsewhere, np.full(2, 0.25, np.float32))
    seen = []

    def add(rows):
        seen.append(rows.copy())
        assert not part.detach().any()
        rows[1] += digits.of_squares(others)

    step, state = squared(part, add, whole=5, row=1, rows=3)
    assert step() is None
    assert part.tolist() == whole.tolist()[:3]
    assert state["step"] == 1
    (rows,) = seen
    assert rows.shape == (3, digits.WIDTH)
    assert not rows[0].any()
    assert not rows[2].any()


def test_an_error_of_an_exchange_of_updates_leaves_the_step_undone():
    (part,) = with_gradients([3.0])

    def fails(_rows):
        raise TimeoutError("no answer")

    step, state = squared(part, fails, whole=2, row=0)
    for _ in range(2):
        with pytest.raises(TimeoutError, match="no answer"):
            step()
    assert (part.tolist(), state["v"].tolist(), state["step"]) == ([0.0], [0.25], 0.0)


def test_a_row_that_is_not_exchanged_is_refused():
    (part,) = with_gradients([3.0])
    with pytest.raises(ValueError, match="update_row is 1, but it must be from 0 to 0"):
        squared(part, lambda rows: None, whole=2, row=1)
