"""Sparse gradients, as nn.Embedding(sparse=True) has them: SGD takes them, as torch's does."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import adamas.torch as ours
from tests.support.copied import left_by_steps

ROWS, WIDTH = 50, 7


def embedding(*, sparse, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, WIDTH, generator=generator).to(dtype)
    return nn.Embedding(ROWS, WIDTH, sparse=sparse, _weight=weight)


def backward(net, step, scale=1.0):
    """Look up rows, one of them twice; the gradients have few digits, so that sums are exact."""
    index = torch.tensor([3, 41, 3, 7 + step])
    factors = torch.arange(1.0, 5.0)[:, None] * scale
    net.weight.grad = None
    (net(index) * factors.to(net.weight.dtype)).sum().backward()
    assert net.weight.grad.is_sparse == net.sparse


OPTIONS = [
    {},
    {"maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "dampening": 0.5, "maximize": True},
    {"foreach": True},
    {"clip_norm": 1.0},
    {"clip_norm": 1.0, "momentum": 0.9},
    {"on_nonfinite": "skip"},
    {"ema": 0.9},
    {"copy_to": torch.bfloat16},
    {"statistics": True},
    {"state": "bfloat16", "momentum": 0.9},
]


CASES = [
    (options, dtype)
    for options in OPTIONS
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if "state" not in options or dtype != torch.float64  # small forms are for the narrower ones
]


@pytest.mark.parametrize(("options", "dtype"), CASES)
def test_a_sparse_gradient_gives_the_bits_of_the_dense_one(options, dtype):
    nets = [embedding(sparse=sparse, dtype=dtype) for sparse in (True, False)]
    optimizers = [ours.SGD(net.parameters(), lr=0.1, **options) for net in nets]
    for step in range(4):
        for net, optimizer in zip(nets, optimizers, strict=True):
            backward(net, step)
            optimizer.step()
        one, other = (net.weight for net in nets)
        assert torch.equal(one, other)
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
        states = [
            optimizer.state[net.weight] for net, optimizer in zip(nets, optimizers, strict=True)
        ]
        assert states[0].keys() == states[1].keys()
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name]), name
        for pair in zip(*map(left_by_steps, optimizers), strict=True):
            assert torch.equal(*pair)
        if "statistics" in options:
            statistics = [optimizer.statistics() for optimizer in optimizers]
            assert statistics[0] == statistics[1]


@pytest.mark.parametrize("options", OPTIONS[:6])
def test_it_is_near_to_what_torchs_does(options):
    nets = [embedding(sparse=True) for _ in range(2)]
    optimizers = [
        of.SGD(net.parameters(), lr=0.1, **options)
        for of, net in zip((ours, torch.optim), nets, strict=True)
    ]
    for step in range(4):
        for net, optimizer in zip(nets, optimizers, strict=True):
            backward(net, step)
            optimizer.step()
    torch.testing.assert_close(nets[0].weight, nets[1].weight)


def test_rows_without_a_gradient_are_neither_read_nor_written():
    net = embedding(sparse=True)
    with torch.no_grad():
        net.weight[20:30] = float("inf")  # 0 times it would be NaN
    before = net.weight.detach().clone()
    optimizer = ours.SGD(net.parameters(), lr=0.1)
    backward(net, 0)
    optimizer.step()
    moved = (net.weight != before).any(dim=1).nonzero().flatten()
    assert moved.tolist() == [3, 7, 41]


def test_a_gradient_that_is_not_finite_is_skipped_or_named():
    net = embedding(sparse=True)
    before = net.weight.detach().clone()
    backward(net, 0, scale=float("inf"))
    optimizer = ours.SGD(net.parameters(), lr=0.1, on_nonfinite="skip")
    optimizer.step()
    assert optimizer.skipped == 1
    with pytest.raises(
        FloatingPointError, match=rf"0\.0 \({3 * WIDTH} of {ROWS * WIDTH} elements\)"
    ):
        ours.SGD(net.parameters(), lr=0.1, on_nonfinite="raise").step()
    assert torch.equal(net.weight, before)


def test_weight_decay_is_refused_by_name_before_anything_is_touched():
    net, dense = embedding(sparse=True), nn.Parameter(torch.ones(3))
    optimizer = ours.SGD([dense, net.weight], lr=0.1, weight_decay=0.1, momentum=0.9)
    before = copy.deepcopy((dense, net.weight))
    dense.grad = torch.ones(3)
    backward(net, 0)
    with pytest.raises(RuntimeError) as raised:
        optimizer.step()
    assert str(raised.value) == (
        "The gradient of 0.1 is sparse, but weight_decay is 0.1, which shrinks all elements. "
        "Give the parameter a group of its own with weight_decay=0."
    )
    assert torch.equal(dense, before[0])
    assert torch.equal(net.weight, before[1])
    assert not optimizer.state


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RMSprop"])
def test_other_methods_refuse_as_torchs_do(name):
    net = embedding(sparse=True)
    backward(net, 0)
    with pytest.raises(RuntimeError, match="sparse"):
        getattr(torch.optim, name)(net.parameters()).step()
    with pytest.raises(RuntimeError, match=f"^{name} does not support sparse gradients"):
        getattr(ours, name)(net.parameters()).step()


def test_a_state_of_torchs_sparse_momentum_goes_on_and_back():
    theirs, own = embedding(sparse=True), embedding(sparse=True)
    options = {"lr": 0.1, "momentum": 0.5}
    other, optimizer = (
        of.SGD(net.parameters(), **options) for of, net in ((torch.optim, theirs), (ours, own))
    )
    for step in range(2):
        backward(theirs, step)
        other.step()
    assert other.state[theirs.weight]["momentum_buffer"].is_sparse
    own.load_state_dict(theirs.state_dict())
    optimizer.load_state_dict(other.state_dict())
    for step in range(2, 4):
        for net, each in ((theirs, other), (own, optimizer)):
            backward(net, step)
            each.step()
    torch.testing.assert_close(own.weight, theirs.weight)
    torch.optim.SGD(theirs.parameters(), **options).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_sparse_and_dense_gradients_are_stepped_together(momentum):
    models = [
        nn.Sequential(embedding(sparse=sparse), nn.Flatten(), nn.Linear(WIDTH * 2, 3))
        for sparse in (True, False)
    ]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [ours.SGD(each.parameters(), lr=0.1, momentum=momentum) for each in models]
    for step in range(4):
        index = torch.tensor([[step, 3], [7, 9], [3, 30]])[: 3 * (step != 2)]  # none at all, once
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(index).square().sum().backward()
            optimizer.step()
        for one, other in zip(*(each.parameters() for each in models), strict=True):
            assert torch.equal(one, other)


def test_a_scaler_unscales_sparse_gradients():
    net, plain = embedding(sparse=True), embedding(sparse=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, other = (ours.SGD(each.parameters(), lr=0.1) for each in (net, plain))
    backward(plain, 0)
    other.step()
    scaler.scale(torch.ones(()))
    backward(net, 0, scale=1024.0)
    scaler.step(optimizer)
    assert torch.equal(net.weight, plain.weight)
