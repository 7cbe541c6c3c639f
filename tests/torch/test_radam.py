"""RAdam of PyTorch tensors: across the switch at ρ = 5, on each route."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import adamas
import adamas.torch as ours
from adamas.torch import methods
from tests.support.settings import ROUTES, take_route

#: Of what torch's RAdam has as arguments; with each the sixth step is the first that divides.
CASES = [
    {},
    {"weight_decay": 0.1, "eps": 1e-3},
    {"weight_decay": 0.1, "decoupled_weight_decay": True, "betas": (0.5, 0.99)},
    {"maximize": True, "betas": (0.0, 0.9999)},
]


def drawn(seed, dtype=torch.float32, size=33):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def stepped(kind, steps, dtype=torch.float32, start=0, **options):
    p = drawn(99, dtype).requires_grad_()
    optimizer = kind([p], **options)
    for t in range(start, start + steps):
        p.grad = drawn(t, dtype)
        optimizer.step()
    return p, optimizer


@pytest.mark.parametrize("options", CASES)
def test_every_step_is_torchs_but_for_rounding(options):
    """In float64, where torch's own r_t loses the most: at β2 = 0.9999 ρ_∞/ρ_t is 4,000.

    Its ρ_t is a difference of numbers of size ρ_∞, off by 4·2^-53 of them; r_t has at most four
    times the error of ρ_t relative to it. All else is some 30 roundings of an update of at most
    3 learning rates (|m̂| before the switch) and of parameters of size 4.
    """
    lr = 0.01
    for steps in range(1, 10):
        p, _ = stepped(ours.RAdam, steps, torch.float64, lr=lr, **options)
        q, _ = stepped(torch.optim.RAdam, steps, torch.float64, lr=lr, **options)
        bound = steps * 2.0**-53 * ((16 * 4000 + 30) * 3 * lr + 30 * 4)
        assert (p - q).abs().max() <= bound


@pytest.mark.parametrize("name", [each for each in ROUTES if ROUTES[each][0] != torch.bfloat16])
def test_each_route_makes_the_steps_of_the_definition(name, monkeypatch):
    take_route(name, monkeypatch)
    dtype, strided, phase = ROUTES[name]
    wide = torch.zeros(40, 2, dtype=dtype)
    wide[:, 0] = drawn(99, dtype, 40)
    p = (wide[:, 0] if strided else wide[:, 0].clone()).requires_grad_()
    twin = p.detach().numpy().copy()
    options = {"lr": 0.01, "weight_decay": 0.1}
    ema = {"ema": phase["ema"]} if "ema" in phase else {}
    optimizer = ours.RAdam([p], **options, **phase)
    judge = adamas.RAdam(twin, dialect="torch", engine="reference", **options, **ema)
    for t in range(9):
        gradient = drawn(t, dtype, 40)
        p.grad = gradient.clone()
        optimizer.step()
        judge.step(gradient.numpy())
        assert p.detach().numpy().tobytes() == twin.tobytes(), t


@pytest.mark.parametrize("cut", [4, 5, 6])
@pytest.mark.parametrize("origin", [ours.RAdam, torch.optim.RAdam])
def test_a_run_goes_on_across_the_switch(origin, cut):
    """With our own state to the bit; with torch's as far as its rounding goes."""
    whole, _ = stepped(ours.RAdam, 9, lr=0.01)
    p, before = stepped(origin, cut, lr=0.01)
    optimizer = ours.RAdam([p], lr=0.01)
    optimizer.load_state_dict(copy.deepcopy(before.state_dict()))
    for t in range(cut, 9):
        p.grad = drawn(t)
        optimizer.step()
    if origin is ours.RAdam:
        assert torch.equal(p, whole)
    assert (p - whole).abs().max() <= 100 * torch.finfo(torch.float32).eps


def test_tensor_rates_and_capturable_steps_change_no_bit():
    p, _ = stepped(ours.RAdam, 9, lr=0.01, weight_decay=0.1)
    lr = torch.tensor(0.01, dtype=torch.float64)
    for options in ({"lr": lr}, {"lr": lr, "capturable": True}):
        q, _ = stepped(ours.RAdam, 9, weight_decay=0.1, **options)
        assert torch.equal(p, q)


def test_a_step_that_is_put_back_is_not_rectified_again():
    """As a schedule that restarts moments does: the count alone decides."""
    p, optimizer = stepped(ours.RAdam, 8, lr=0.5)
    optimizer.state[p]["step"].fill_(2)
    before, gradient = p.detach().clone(), drawn(1)
    p.grad = gradient
    m = optimizer.state[p]["exp_avg"].clone()
    optimizer.step()
    m = m.numpy() * np.float32(0.9) + np.float32(1 - 0.9) * gradient.numpy()
    mean = np.float32(1 / (1 - 0.9**3)) * m
    assert np.abs((before - p.detach()).numpy() - 0.5 * mean).max() <= 1e-6


def test_no_element_is_below_epsilon_where_nothing_is_divided():
    group = {"eps": 0.5, "betas": (0.9, 0.999)}
    method = methods.RAdam("RAdam")
    assert [method.square_at_eps(group, t) for t in (1, 5, 6)] == [0.0, 0.0, 0.25]


def test_parts_of_a_phase_go_along():
    """Clipping, EMA and a scaled loss, against NumPy's front-end."""
    p, optimizer = stepped(ours.RAdam, 8, lr=0.01, clip_norm=2.0, ema=0.9)
    q = drawn(99).numpy().copy()
    twin = adamas.RAdam(q, lr=0.01, dialect="torch", clip_norm=2.0, ema=0.9)
    for t in range(8):
        twin.step(drawn(t).numpy())
    assert p.detach().numpy().tobytes() == q.tobytes()
    with optimizer.ema_weights(), twin.ema_weights():
        assert p.detach().numpy().tobytes() == q.tobytes()
