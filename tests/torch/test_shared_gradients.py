"""Gradients that share memory, are views or unscaled in place, and tensors that users swap."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import adamas.torch as ours
from tests.support.torch_steps import METHODS, ROUTES, everything, made, same


@pytest.fixture(params=sorted(ROUTES))
def route(request):
    return request.param


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
