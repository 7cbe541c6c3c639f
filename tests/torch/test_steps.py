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
from tests.support.copied import left_by_steps
from tests.support.planned import plans_made

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

METHODS = [
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "ema": 0.9, "statistics": True}),
    ("AdamW", {"clip_norm": 0.5, "copy_to": torch.bfloat16}),
    ("AdamW", {"state": "8bit", "seed": 3}),
    ("AdamW", {"on_nonfinite": "skip"}),
    ("NAdam", {}),
    ("RMSprop", {}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "ema": 0.9}),
]


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


# ── tensors that are swapped ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_nobody_holds_a_tensor_after_a_step(route, name, options):
    parameters = made(route)
    optimizer = getattr(ours, name)(parameters, **options)
    for _ in range(2):
        optimizer.step()
    everyone = [x for state in optimizer.state.values() for x in state.values()]
    everyone += [*parameters, *(p.grad for p in parameters), *optimizer.copies]
    counts = {p.grad: 2 for p in parameters}  # that of its parameter, too
    for x in everyone:
        if isinstance(x, torch.Tensor):
            assert x._use_count() == counts.get(x, 1)


def test_parameters_may_be_swapped_between_steps(route):
    one, other = made(route), made(route)
    swapped, plain = ours.AdamW(one), ours.AdamW(other)
    for optimizer in (swapped, plain):
        optimizer.step()
    for p, q in zip(one, other, strict=True):
        generator = torch.Generator().manual_seed(1)
        value = nn.Parameter(torch.randn(p.shape, generator=generator))
        gradient = torch.randn(p.shape, generator=generator)
        q.data = value.detach().clone()
        p.grad, q.grad = None, gradient
        torch.utils.swap_tensors(p, value)
        p.grad = gradient
    for optimizer in (swapped, plain):
        optimizer.step()
    assert same(everything(swapped), everything(plain))


def test_a_model_may_be_converted_by_swapping_after_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    twin = copy.deepcopy(model)
    x = torch.randn(8, 3)

    def train(net, optimizer, dtype):
        optimizer.zero_grad()
        net(x.to(dtype)).square().mean().backward()
        optimizer.step()

    optimizer, other = ours.SGD(model.parameters()), ours.SGD(twin.parameters())
    for _ in range(2):
        train(model, optimizer, torch.float32)
        train(twin, other, torch.float32)
    model(x).square().mean().backward()  # also between a backward pass and its step
    twin(x).square().mean().backward()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    twin.double()
    for _ in range(2):
        optimizer.step()
        other.step()
        train(model, optimizer, torch.float64)
        train(twin, other, torch.float64)
    assert same([*model.parameters()], [*twin.parameters()])
    assert {p.dtype for p in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("options", [{}, {"clip_norm": 1.0}, {"statistics": True}])
def test_a_gradient_that_is_a_conjugate_to_be_is_stepped_as_what_it_says(options):
    """autograd leaves it so."""
    kept = torch.randn(2, 4, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    found = []
    for resolve in (False, True):
        p, q = nn.Parameter(torch.ones(3)), nn.Parameter(kept[0].clone())
        optimizer = ours.AdamW([p, q], **options)
        for _ in range(2):
            p.grad, q.grad = torch.ones(3), None
            (q.conj() * kept[1]).real.sum().backward()
            assert q.grad.is_conj()
            q.grad = q.grad.resolve_conj() if resolve else q.grad
            optimizer.step()
        found.append((everything(optimizer), optimizer.gradient_norm))
    assert same(*found)


# ── gradients that share memory ────────────────────────────────────────────────────────────────


def alias_its_parameter(parameters, optimizer):
    for p in parameters:
        p.grad = p.detach()


def overlap_its_parameter(parameters, optimizer):
    room = torch.arange(40.0)
    parameters[0].data = room[:24].view(4, 6)
    parameters[0].grad = room[7:31].view(4, 6)


def overlap_another_parameter(parameters, optimizer):
    parameters[2].grad = parameters[0].detach().as_strided((3, 2), (2, 1))


def overlap_the_state_of_another(parameters, optimizer):
    entry = next(iter(optimizer.state[parameters[0]].values()))
    for name in ("exp_avg", "exp_avg_sq"):
        entry = optimizer.state[parameters[0]].get(name, entry)
    parameters[2].grad = entry.detach().as_strided((3, 2), (2, 1))


def overlap_a_copy(parameters, optimizer):
    if optimizer.copies:
        parameters[2].grad = optimizer.copies[0].view(-1)[:12].view(torch.float32).view(3, 2)


def share_one_gradient(parameters, optimizer):
    room = torch.arange(30.0)
    parameters[0].grad, parameters[2].grad = room[:24].view(4, 6), room[20:26].view(3, 2)


def expand_a_number(parameters, optimizer):
    for p in parameters:
        p.grad = torch.full((), 0.3).expand(p.shape)


def expand_an_element_of_its_parameter(parameters, optimizer):
    for p in parameters:
        p.grad = p.detach().view(-1)[1].expand(p.shape) if p.is_contiguous() else p.detach()


SHARED = [
    *(alias_its_parameter, overlap_its_parameter, overlap_another_parameter),
    *(overlap_the_state_of_another, overlap_a_copy, share_one_gradient, expand_a_number),
    expand_an_element_of_its_parameter,
]


@pytest.mark.parametrize("share", SHARED, ids=lambda share: share.__name__)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("AdamW", {}),
        ("Adam", {"clip_norm": 0.5, "copy_to": torch.bfloat16, "ema": 0.9}),
        ("SGD", {"lr": 0.5, "momentum": 0.9}),
    ],
)
def test_a_gradient_is_what_it_was_before_the_step_whatever_it_shares(route, share, name, options):
    one, other = made(route), made(route)
    optimizer, plain = (getattr(ours, name)(each, **options) for each in (one, other))
    for each in (optimizer, plain):
        each.step()
    share(one, optimizer)
    for _ in range(3):
        for p, q in zip(one, other, strict=True):
            with torch.no_grad():
                q.copy_(p)
            q.grad = p.grad.clone()
        kept = [p.grad for p in one]
        for each in (optimizer, plain):
            each.step()
        assert same(everything(optimizer)[0], everything(plain)[0])
        assert optimizer.gradient_norm == plain.gradient_norm
        assert all(p.grad is gradient for p, gradient in zip(one, kept, strict=True))
        for p, q in zip(one, other, strict=True):  # states may have been shared, too
            for x, y in zip(optimizer.state[p].values(), plain.state[q].values(), strict=True):
                if isinstance(x, torch.Tensor):
                    y.copy_(x)


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "SGD"])
@pytest.mark.parametrize("shared", ["the parameter", "its state"])
def test_a_gradient_may_share_with_a_parameter_that_has_none_now(route, shared, name):
    options = {"lr": 0.5, "momentum": 0.9} if name == "SGD" else {}
    one, other = made(route), made(route)
    optimizer, plain = (getattr(ours, name)(each, **options) for each in (one, other))
    for each in (optimizer, plain):
        each.step()
    source = one[0].detach()
    if shared == "its state":
        source = optimizer.state[one[0]]["momentum_buffer" if options else "exp_avg"]
    one[0].grad = other[0].grad = None
    one[2].grad = source.as_strided((3, 2), (2, 1))
    other[2].grad = one[2].grad.clone()
    for _ in range(2):
        for each in (optimizer, plain):
            each.step()
        assert same(everything(optimizer), everything(plain))


def test_the_gradient_of_half_the_sum_of_squares_may_be_the_parameter(route):
    parameters = made(route)
    before = [p.detach().clone() for p in parameters]
    optimizer = ours.SGD(parameters, lr=0.25)
    for p in parameters:
        p.grad = p.detach()
    for _ in range(3):
        optimizer.step()
    for p, value in zip(parameters, before, strict=True):
        for _ in range(3):
            value.sub_(value * 0.25)
        assert torch.equal(p.detach(), value)


# ── what a scaler leaves in gradients ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("options", [{"fused": True}, {"clip_norm": 1e-3}])
@pytest.mark.parametrize("on_nonfinite", ["propagate", "skip", "raise"])
def test_gradients_are_left_unscaled_as_by_the_fused_step_of_torch(route, options, on_nonfinite):
    one, other = made(route), made(route)
    optimizer = ours.AdamW(one, on_nonfinite=on_nonfinite, **options)
    theirs = torch.optim.AdamW(other, fused=True)
    for found in (0.0, 1.0, 0.0):
        for p, q in zip(one, other, strict=True):
            p.grad, q.grad = (torch.full(p.shape, 0.1) * 3.0 for _ in range(2))
        objects = [p.grad for p in one]
        for each in (optimizer, theirs):
            each.grad_scale, each.found_inf = torch.tensor(3.0), torch.tensor(found)
            each.step()
        assert same([p.grad for p in one], [q.grad for q in other])
        assert all(p.grad is kept for p, kept in zip(one, objects, strict=True))


def test_gradients_of_a_step_that_is_left_out_stay_scaled(route):
    parameters = made(route)
    optimizer = ours.AdamW(parameters, fused=True, on_nonfinite="skip")
    parameters[0].grad[0, 0] = float("inf")
    before = [p.grad.clone() for p in parameters]
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    optimizer.step()
    assert optimizer.skipped == 1
    assert same([p.grad for p in parameters], before)


@pytest.mark.parametrize("share", SHARED, ids=lambda share: share.__name__)
def test_unscaling_writes_into_nothing_that_gradients_share(route, share):
    one, other = made(route), made(route)
    optimizers = [ours.AdamW(each, fused=True, copy_to=torch.bfloat16) for each in (one, other)]
    for optimizer in optimizers:
        optimizer.step()
    share(one, optimizers[0])
    wanted = [p.grad / 4.0 for p in one]
    for p, q in zip(one, other, strict=True):
        with torch.no_grad():
            q.copy_(p)
        q.grad = p.grad / 4.0
    optimizers[0].grad_scale, optimizers[0].found_inf = torch.tensor(4.0), torch.tensor(0.0)
    for optimizer in optimizers:
        optimizer.step()
    assert same(everything(optimizers[0])[0], everything(optimizers[1])[0])
    assert same([p.grad for p in one], wanted)


def test_gradients_are_not_written_without_a_scaler(route):
    parameters = made(route)
    before = [p.grad.clone() for p in parameters]
    versions = [p.grad._version for p in parameters]
    ours.AdamW(parameters, fused=True, clip_norm=1e-3).step()
    assert same([p.grad for p in parameters], before)
    assert [p.grad._version for p in parameters] == versions


# -- memory that says something else ---------------------------------------------------------------


def of_a_conjugate(p):
    """Let autograd leave a gradient that is a negated view: that of a part of conj(1 + ip)."""
    z = torch.complex(torch.ones_like(p), p)
    z.conj().backward(torch.full_like(z, 1j))
    assert p.grad.is_neg() == (p.numel() == 1)


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,)])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"ema": 0.9}, {"state": "8bit"}])
def test_a_gradient_that_is_a_negated_view_is_stepped_by_its_values(shape, options, warm):
    results = []
    for is_resolved in (False, True):
        p = nn.Parameter(torch.full(shape, 0.5))
        optimizer = ours.AdamW([p], lr=0.1, **options)
        for step in range(4):
            p.grad = None
            if step < warm:
                p.grad = torch.ones(shape)
            else:
                of_a_conjugate(p)
                p.grad = p.grad.resolve_neg().clone() if is_resolved else p.grad
            optimizer.step()
            assert torch.equal(p.grad, torch.full(shape, 1.0 if step < warm else -1.0))
        results.append(everything(optimizer))
    assert same(*results)


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "RMSprop"])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}])
def test_a_gradient_that_is_a_conjugated_view_is_stepped_by_its_values(name, options):
    results = []
    for is_resolved in (False, True):
        p = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        optimizer = getattr(ours, name)([p], lr=0.1, **options)
        for _ in range(3):
            p.grad = None
            (p.conj() * torch.tensor([1 - 1j, 2 + 1j])).sum().abs().backward()
            assert p.grad.is_conj()
            p.grad = p.grad.resolve_conj() if is_resolved else p.grad
            optimizer.step()
        results.append(everything(optimizer))
    assert same(*results)


def test_a_negated_parameter_is_stepped_by_its_values():
    p = nn.Parameter(torch._neg_view(torch.tensor([1.0, 2.0])))
    usual = nn.Parameter(torch.tensor([-1.0, -2.0]))
    for each in (p, usual):
        each.grad = torch.ones(2)
        ours.AdamW([each], lr=0.1).step()
    assert torch.equal(p, usual)


def test_a_conjugated_parameter_is_refused():
    p = nn.Parameter(torch.tensor([1 + 2j]).conj())
    p.grad = torch.ones(1, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"shape \(1,\) is a conjugated view.*resolve_conj"):
        ours.AdamW([p]).step()


@pytest.mark.parametrize("what", ["parameter", "gradient", "exp_avg"])
@pytest.mark.parametrize("is_warm", [False, True])
def test_memory_that_was_freed_is_refused_and_nothing_is_changed(what, is_warm):
    p, other = made("native", ((40,), (5,)))
    optimizer = ours.AdamW([other, p], lr=0.1)
    optimizer.step()
    if not is_warm:
        optimizer.load_state_dict(optimizer.state_dict())
    found = {"parameter": p, "gradient": p.grad, **optimizer.state[p]}
    before = copy.deepcopy(([other.detach()], dict(optimizer.state[other])))
    found[what].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=rf"{what} of 0\.1 has shape \(40,\), .* freed"):
        optimizer.step()
    assert same(before, ([other.detach()], dict(optimizer.state[other])))


def test_copies_of_complex_parameters_are_refused_before_the_first_step():
    real, p = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match=r"parameter 1 has dtype torch\.complex64"):
        ours.AdamW([real, p], copy_to=torch.bfloat16)
    optimizer = ours.AdamW([real], copy_to=torch.bfloat16)
    with pytest.raises(TypeError, match=r"parameter 1 has dtype torch\.complex64"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == len(optimizer.copies) == 1


@pytest.mark.parametrize("what", ["parameter", "exp_avg"])
def test_what_is_expanded_is_refused_and_nothing_is_changed(what):
    other, p = made("native", ((5,), (4, 3)))
    optimizer = ours.AdamW([other, p], lr=0.1)
    optimizer.step()
    if what == "parameter":
        p.data = torch.ones(()).expand(4, 3)
    else:
        optimizer.state[p]["exp_avg"] = torch.zeros(()).expand(4, 3)
    before = everything(optimizer)
    with pytest.raises(ValueError, match=rf"The {what} of 0\.1 is expanded.*clone"):
        optimizer.step()
    assert same(before, everything(optimizer))
