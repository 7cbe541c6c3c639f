"""Models that are sharded after their optimizers were made, and what PyTorch keeps gathered."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import adamas.torch as ours
from tests.support.sharded import WAYS, alone, model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def one_process():
    with alone():
        yield


def trained(net, optimizer):
    optimizer.zero_grad()
    net(torch.ones(3, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("way", [way for way, (_, replaces) in WAYS.items() if replaces])
def test_a_step_after_the_model_was_sharded_says_so_and_changes_nothing(way, steps):
    shard, _ = WAYS[way]
    net = model()
    optimizer = ours.AdamW(net.named_parameters(), clip_norm=1.0)
    for _ in range(steps):
        trained(net, optimizer)
    net = shard(net)
    before = [p.detach().clone() for p in net.parameters()]
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^(0\.weight is no p|No p)arameter of .* make the"):
            trained(net, optimizer)
    for one, other in zip(before, net.parameters(), strict=True):
        assert torch.equal(one, other)
    made_anew = ours.AdamW(net.parameters(), clip_norm=1.0)
    trained(net, made_anew)
    assert not all(map(torch.equal, before, net.parameters()))


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("way", [way for way, (_, replaces) in WAYS.items() if not replaces])
def test_where_sharding_keeps_the_parameters_steps_go_on(way, steps):
    shard, _ = WAYS[way]
    net = model()
    optimizer = ours.AdamW(net.named_parameters())
    for _ in range(steps):
        trained(net, optimizer)
    net = shard(net)
    before = [p.detach().clone() for p in net.parameters()]
    trained(net, optimizer)
    assert not any(map(torch.equal, before, net.parameters()))


def test_a_part_of_the_model_that_was_sharded_is_named():
    net = model()
    optimizer = ours.AdamW(net.named_parameters())
    WAYS["fully_shard"][0](net[2:])
    with pytest.raises(RuntimeError, match=r"^2\.weight is no parameter of the model any more"):
        trained(net, optimizer)


def test_an_optimizer_made_of_gathered_parameters_says_so():
    net = WAYS["fully_shard"][0](model())
    with torch.no_grad():
        net(torch.ones(3, 4))  # leaves the root gathered
    optimizer = ours.AdamW(net.named_parameters())
    with pytest.raises(RuntimeError, match=r"^2\.weight has no gradient.*Call model\.reshard"):
        trained(net, optimizer)
    net.reshard()
    trained(net, ours.AdamW(net.named_parameters()))


def test_a_step_without_gradients_is_nothing_where_no_model_was_sharded():
    net = model()
    optimizer = ours.AdamW(net.parameters())
    lone = ours.AdamW([nn.Parameter(torch.ones(3))])
    for _ in range(9):
        optimizer.step()
        lone.step()
    trained(net, optimizer)
    assert len(optimizer.state) == 4


def test_parameters_that_nobody_else_holds_are_not_taken_for_replaced_ones_of_other_shapes():
    net = WAYS["fully_shard"][0](model())
    lone = ours.AdamW([nn.Parameter(torch.ones(7, 3))])
    lone.step()
    assert lone.state == {}
    trained(net, ours.AdamW(net.parameters()))


def test_frozen_parameters_may_be_replaced():
    net = model()
    head = nn.Linear(2, 1)
    optimizer = ours.AdamW([*net.requires_grad_(False).parameters(), *head.parameters()])
    net = WAYS["fully_shard"][0](net)
    before = head.weight.detach().clone()
    head(net(torch.ones(3, 4))).sum().backward()
    optimizer.step()
    assert not torch.equal(before, head.weight)
