"""Cases of `everywhere_program`: pipeline stages, each with parameters of its own, and experts."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.tensor import Shard, distribute_tensor

import adamas.torch as ours
from tests.support.everywhere_shards import PHASE, mesh_of
from tests.support.twins import assert_same, cut, here, whole_numbers


def layer():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU())


def set_weights(net, names, step):
    """Give whole numbers to those parameters of the whole model that a stage has."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            seed = 100 * step + 2 * int(names[name].split(".")[0]) + ("bias" in name)
            p.copy_(cut(whole_numbers(p.shape, seed, 1), p))


def pipelined(schedule, layers, *, shards):
    """Train a model in stages, which FSDP2 shards, or not; compare with one process."""
    count = dist.get_world_size() // (2 if shards else 1)
    mesh = mesh_of(count, 4 // count, names=("pp", "dp"))
    index = mesh["pp"].get_local_rank()
    plain = nn.Sequential(*(layer() for _ in range(layers)))
    each = layers // count
    own = range(index * each, (index + 1) * each)
    net = nn.Sequential(*(layer() for _ in own))
    names = {
        f"{i}.0.{kind}": f"{j}.0.{kind}" for i, j in enumerate(own) for kind in ("weight", "bias")
    }
    if shards:
        fully_shard(net, mesh=mesh["dp"], reshard_after_forward=False)
    stage = PipelineStage(net, index, count, torch.device("cpu"), group=mesh["pp"].get_group())

    def loss(output, weights):
        return (output * weights).sum() / 8

    run = schedule(stage, n_microbatches=4, loss_fn=loss, scale_grads=False)
    one = ours.AdamW(plain.named_parameters(), lr=0.25, **PHASE)
    other = ours.AdamW(net.named_parameters(), lr=0.25, clip_group=mesh["pp"].get_group(), **PHASE)
    share = mesh["dp"].get_local_rank(), mesh["dp"].size()
    for step in range(4):
        for each, found in ((plain, {k: k for k, _ in plain.named_parameters()}), (net, names)):
            set_weights(each, found, step)
        x, weights = whole_numbers((16, 8), step), whole_numbers((16, 8), step + 50)
        one.zero_grad()
        other.zero_grad()
        (loss(plain(x), weights) / share[1]).backward()
        x, weights = (value.chunk(share[1])[share[0]] for value in (x, weights))
        said = {"target": weights} if index == count - 1 else {}
        run.step(*([x] if index == 0 else []), **said)
        if step == 2 and index == count - 1:  # a NaN that the last stage alone has
            with torch.no_grad():
                here(net[-1][0].bias.grad)[:1] = math.nan
        if step == 2:
            plain[-1][0].bias.grad[0] = math.nan
        one.step()
        other.step()
        assert [one.skipped, other.skipped] == [int(step >= 2)] * 2
        if step != 2:
            assert one.gradient_norm == other.gradient_norm, step
            assert one.gradient_norm > 5
        wholes = dict(plain.named_parameters())
        for name, p in net.named_parameters():
            assert_same(wholes[names[name]], p, (name, step))


def pipeline_stages_are_clipped_as_one_model():
    for schedule in (ScheduleGPipe, Schedule1F1B):
        pipelined(schedule, 4, shards=False)


def pipeline_stages_under_fsdp2_are_clipped_as_one_model():
    for schedule in (ScheduleGPipe, Schedule1F1B):
        pipelined(schedule, 4, shards=True)


def experts_are_clipped_as_one_model():
    """Each process has experts of its own, of which some have no gradient, beside shared ones."""
    mesh = mesh_of(4)
    rank = dist.get_rank()
    experts = [nn.Parameter(whole_numbers((4, 4), i)) for i in range(8)]
    trunk = nn.Parameter(whole_numbers((8, 4), 20))
    own = [nn.Parameter(experts[i].detach().clone()) for i in (2 * rank, 2 * rank + 1)]
    sharded = nn.Parameter(distribute_tensor(trunk.detach().clone(), mesh, [Shard(0)]))
    one = ours.AdamW([trunk, *experts], lr=0.25, **PHASE)
    groups = [{"params": [sharded]}, {"params": own, "clip_group": dist.group.WORLD}]
    other = ours.AdamW(groups, lr=0.25, **PHASE)
    for step in range(3):
        for i, p in enumerate(experts):
            p.grad = None if (i + step) % 3 == 0 else whole_numbers(p.shape, 10 * step + i)
        trunk.grad = whole_numbers(trunk.shape, 30 + step)
        for p, i in zip(own, (2 * rank, 2 * rank + 1), strict=True):
            p.grad = None if experts[i].grad is None else experts[i].grad.clone()
        sharded.grad = distribute_tensor(trunk.grad.clone(), mesh, [Shard(0)])
        one.step()
        other.step()
        assert one.gradient_norm == other.gradient_norm, step
        assert_same(trunk, sharded, step)
        for p, i in zip(own, (2 * rank, 2 * rank + 1), strict=True):
            assert torch.equal(p, experts[i]), (i, step)


CASES = (
    pipeline_stages_are_clipped_as_one_model,
    pipeline_stages_under_fsdp2_are_clipped_as_one_model,
    experts_are_clipped_as_one_model,
)
