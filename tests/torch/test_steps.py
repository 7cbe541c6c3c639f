"""What may stand in gradients, states and a scaler's hands when a step of torch's begins."""

from __future__ import annotations

import copy

import pytest
import torch

import adamas.torch as ours
from adamas import coefficients
from adamas.options import Options
from adamas.torch import gradients
from tests.support.copied import left_by_steps
from tests.support.planned import plans_made
from tests.support.torch_steps import METHODS, ROUTES, everything, made, same


@pytest.fixture(params=sorted(ROUTES))
def route(request):
    return request.param


# ── gradients that do not fit ──────────────────────────────────────────────────────────────────


def test_a_parameter_that_took_another_shape_is_refused_until_its_gradient_has_it(route):
    parameters = made(route)
    optimizer = ours.SGD(parameters, lr=1.0)
    optimizer.step()
    before = parameters[0].detach().clone().view(6, 4)
    parameters[0].data = before.clone()
    with pytest.raises(ValueError, match=r"0\.0 has shape \(4, 6\), but .* has shape \(6, 4\)"):
        optimizer.step()
    assert torch.equal(parameters[0].detach(), before)
    parameters[0].grad = torch.ones(6, 4)
    optimizer.step()
    assert torch.equal(parameters[0].detach(), before - 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64])
def test_a_gradient_of_another_dtype_is_refused(route, dtype):
    parameters = made(route)
    optimizer = ours.AdamW(parameters)
    optimizer.step()
    before = everything(optimizer)
    parameters[1].grad = None
    parameters[1].grad_dtype = None  # torch takes any
    parameters[1].grad = torch.ones(5, dtype=dtype)
    with pytest.raises(TypeError, match=f"The gradient of 0.1 has dtype {dtype}, but .*float32"):
        optimizer.step()
    assert same(everything(optimizer), before)


@pytest.mark.parametrize(
    ("gradient", "error", "text"),
    [
        (torch.ones(5, device="meta"), ValueError, "is on meta, but the parameter is on cpu"),
        (torch.ones(5).to_mkldnn(), TypeError, "has layout torch._mkldnn"),
    ],
)
def test_a_gradient_elsewhere_or_in_another_layout_is_refused(gradient, error, text):
    with pytest.raises(error, match=f"The gradient of w {text}"):
        gradients.refuse("w", torch.ones(5), gradient)


def test_a_gradient_in_half_precision_counts_for_what_it_says(route):
    one, other = made(route), made(route)
    optimizers = ours.AdamW(one), ours.AdamW(other)
    one[1].grad = None
    one[1].grad_dtype = torch.bfloat16
    one[1].grad = torch.full((5,), 0.1, dtype=torch.bfloat16)
    other[1].grad = one[1].grad.to(torch.float32)
    for optimizer in optimizers:
        optimizer.step()
    assert same(everything(optimizers[0]), everything(optimizers[1]))


# ── numbers of steps ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", [-5.0, -1.0, float("nan"), 0.5, float("inf"), 2.0**53])
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "RMSprop"])
def test_a_number_of_steps_that_none_can_have_is_refused(route, name, number):
    parameters = made(route)
    optimizer = getattr(ours, name)(
        [("a", p) if i == 0 else (f"b{i}", p) for i, p in enumerate(parameters)]
    )
    optimizer.step()
    optimizer.state[parameters[1]]["step"].fill_(number)
    before = everything(optimizer)
    with pytest.raises(ValueError, match="number of steps") as error:
        optimizer.step()
    assert str(error.value) == (
        f"The number of steps of b1 is {number}, but it must be a whole number from 0 to "
        '2**53 - 1. Load a state that was saved, or set state["step"] of this parameter to what '
        "it was."
    )
    assert repr(everything(optimizer)) == repr(before)


@pytest.mark.parametrize("step", [0, -1, -5, 2**53 + 1])
def test_the_numbers_of_no_step_are_refused(step):
    with pytest.raises(ValueError, match=r"at least 1 and at most 2\^53"):
        coefficients.at_step(Options(), step, 0.1)


def test_a_power_below_zero_is_refused():
    with pytest.raises(ValueError, match="exponent is -1"):
        coefficients.one_minus_power(0.9, -1)


# ── a GradScaler ───────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{"fused": True}, {"clip_norm": 1.0}])
def test_a_scaler_may_step_where_nothing_has_a_gradient(route, options):
    parameters = made(route)
    optimizer = ours.AdamW(parameters, **options)
    optimizer.step()
    before = everything(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    scaler.step(optimizer)
    assert same(everything(optimizer), before)
    for p, gradient in zip(parameters, kept, strict=True):
        p.grad = gradient
    optimizer.step()
    assert float(optimizer.state[parameters[0]]["step"]) == 2


@pytest.mark.parametrize("form", [int, float, bool, torch.tensor])
def test_a_scaler_may_speak_in_numbers_or_tensors(route, form):
    one, other = made(route), made(route)
    optimizer, plain = ours.AdamW(one, fused=True), ours.AdamW(other, fused=True)
    plain.step()
    scale = 1 if form is bool else 4
    for found in (1, 0):
        optimizer.grad_scale = None if form is bool else form(scale)
        optimizer.found_inf = form(found)
        for p, q in zip(one, other, strict=True):
            p.grad = q.grad * scale
        optimizer.step()
    assert same(everything(optimizer), everything(plain))


def test_a_step_that_a_scaler_leaves_out_is_not_counted_and_one_that_we_leave_out_is(route):
    parameters = made(route)
    optimizer = ours.AdamW(parameters, clip_norm=1.0, on_nonfinite="skip")
    optimizer.step()
    before = everything(optimizer)
    parameters[0].grad.fill_(float("inf"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
    assert optimizer.skipped == 0
    optimizer.step()
    assert optimizer.skipped == 1
    assert same(everything(optimizer), before)


def test_a_step_that_raises_leaves_no_scale_behind(route):
    one, other = made(route), made(route)
    options = {"fused": True, "on_nonfinite": "raise"}
    optimizer, plain = ours.AdamW(one, **options), ours.AdamW(other, **options)
    good, one[0].grad = one[0].grad, torch.full((4, 6), float("nan"))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    with pytest.raises(FloatingPointError):
        optimizer.step()
    one[0].grad = good
    optimizer.step()
    plain.step()
    assert same(everything(optimizer), everything(plain))


def test_a_gradient_of_another_shape_with_as_many_elements_is_refused(route):
    parameters = made(route)
    optimizer = ours.AdamW(parameters)
    optimizer.step()
    before = everything(optimizer)
    for p in parameters:
        p.grad = torch.ones_like(p)
    parameters[2].grad.data = torch.ones(2, 3)
    with pytest.raises(ValueError, match="shape") as error:
        optimizer.step()
    assert str(error.value) == (
        "The gradient of 0.2 has shape (2, 3), but the parameter has shape (3, 2). "
        "Compute the gradient anew, or set it to None."
    )
    assert same(everything(optimizer), before)


# ── gradients that come and go ─────────────────────────────────────────────────────────────────

#: Which of three parameters have gradients, step by step.
TURNS = [(0, 1), (0, 2), (0, 1), (0, 2), (2,), (), (1,), (0, 1, 2), (1, 2), (0, 2), (0, 1, 2)]


def give_some(parameters, step, turn):
    generator = torch.Generator().manual_seed(step)
    for i, p in enumerate(parameters):
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = gradient if i in turn else None


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_gradients_that_come_and_go_give_the_bits_of_steps_that_are_looked_at(name, options):
    planned, close = (getattr(ours, name)(made("native"), **options) for _ in range(2))
    for step, turn in enumerate(TURNS):
        close = copy.deepcopy(close)  # which has no plan yet
        for optimizer in (planned, close):
            give_some(optimizer.param_groups[0]["params"], step, turn)
        planned.step()
        with plans_made() as plans:
            close.step()
        assert len(plans) == 1
        assert same(everything(planned), everything(close)), step
        assert same(left_by_steps(planned), left_by_steps(close))
        assert planned.gradient_norm == close.gradient_norm
        if options.get("statistics"):
            assert planned.statistics() == close.statistics()
            assert {tag.split("/")[0] for tag in planned.statistics()} == {f"0.{i}" for i in turn}
    parameters = planned.param_groups[0]["params"]
    assert all(planned.state[p] for p in parameters) or name == "SGD"


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_parameters_without_a_gradient_are_left_as_they_are(name, options):
    parameters = made("native")
    optimizer = getattr(ours, name)(parameters, **options)
    for step, turn in enumerate(TURNS):
        give_some(parameters, step, turn)
        before = everything(optimizer)
        versions = [p._version for p in parameters]
        optimizer.step()
        after = everything(optimizer)
        for i, p in enumerate(parameters):
            is_left = all(same(a[i], b[i]) for a, b in zip(before, after, strict=True))
            assert is_left == (i not in turn)
            assert p._version - versions[i] == (i in turn)


def test_a_parameter_has_no_state_before_its_first_gradient():
    parameters = made("native")
    optimizer = ours.AdamW(parameters)
    for step in range(3):
        give_some(parameters, step, (0, 1))
        optimizer.step()
        assert parameters[2] not in optimizer.state
    give_some(parameters, 3, (2,))
    optimizer.step()
    assert [float(optimizer.state[p]["step"]) for p in parameters] == [3, 3, 1]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"state": "compact"}])
@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
def test_whether_a_parameter_has_a_gradient_is_no_part_of_a_plan(name, options):
    parameters = made("native")
    optimizer = getattr(ours, name)(parameters, lr=0.1, **options)
    for step, turn in enumerate(TURNS):
        give_some(parameters, step, turn)
        optimizer.step()
    with plans_made() as plans:
        for step, turn in enumerate(TURNS * 2):
            give_some(parameters, step, turn)
            optimizer.step()
    assert plans == []


def test_a_message_names_those_whose_gradients_are_not_finite():
    parameters = made("native")
    optimizer = ours.AdamW(parameters, on_nonfinite="raise")
    optimizer.step()
    give_some(parameters, 1, (0, 2))
    parameters[2].grad[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match=r": 0\.2 \(1 of 6 elements\)\."):
        optimizer.step()


def test_a_step_where_none_has_a_gradient_changes_nothing():
    parameters = made("native")
    optimizer = ours.AdamW(parameters)
    optimizer.step()
    before, versions = everything(optimizer), [p._version for p in parameters]
    for p in parameters:
        p.grad = None
    optimizer.step()
    assert same(everything(optimizer), before)
    assert [p._version for p in parameters] == versions
