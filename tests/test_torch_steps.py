"""What may stand in gradients, states and a scaler's hands when a step of torch's begins."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas import coefficients
from adamas.options import Options
from adamas.torch import gradients

#: Parameters that take one way or another, and what sends them there.
ROUTES = {
    "native": {},
    "plain": {"strided": True},
    "mixed": {"strided": "last"},
}


def made(route="native", shapes=((4, 6), (5,), (3, 2)), seed=0):
    """Return parameters with gradients."""
    strided = ROUTES[route].get("strided")
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for i, shape in enumerate(shapes):
        is_strided = strided is True or (strided == "last" and i == len(shapes) - 1)
        value = torch.randn(*shape, 2 if is_strided else 1, generator=generator)[..., 0]
        p = nn.Parameter(value if is_strided else value.contiguous())
        assert p.is_contiguous() == (not is_strided)
        p.grad = torch.randn(shape, generator=generator)
        parameters.append(p)
    return parameters


def everything(optimizer):
    """Return copies of parameters and state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy(
        ([p.detach() for p in parameters], [dict(optimizer.state.get(p, {})) for p in parameters])
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


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
    with pytest.raises(ValueError, match="from 1 to 2"):
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
