"""Checks of processes that leave out the same steps, for ``exchange_program.py``."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import adamas.torch as ours

__all__ = ["check_spikes", "check_spikes_of_stages"]

OPTIONS = {"lr": 0.01, "skip_above": 3.0, "skip_window": 6}
SIZES = (1.0, 1.25, 0.75, 1.0, 64.0, 1.0, 0.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 512.0, 8.0)


def drawn(shape, seed):
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()


def cut_as(whole, like):
    """Return a tensor that all processes have, laid out as another."""
    if not isinstance(like, DTensor):
        return whole.clone()
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole(value):
    return value.full_tensor() if isinstance(value, DTensor) else value


def check_spikes(mesh):
    """FSDP2 leaves out the steps that one process does, and a run goes on with one process."""
    plain, sharded = (nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 7)) for _ in range(2))
    for i, (p, q) in enumerate(zip(plain.parameters(), sharded.parameters(), strict=True)):
        with torch.no_grad():
            p.copy_(drawn(p.shape, i) / 8)
            q.copy_(p)
    for each in (sharded[0], sharded[1], sharded):
        fully_shard(each, mesh=mesh)
    one, other = (ours.AdamW(net.parameters(), **OPTIONS) for net in (plain, sharded))
    for step, size in enumerate(SIZES):
        for i, (p, q) in enumerate(zip(plain.parameters(), sharded.parameters(), strict=True)):
            p.grad = size * drawn(p.shape, 100 * step + i)
            q.grad = cut_as(p.grad, q)
        one.step()
        other.step()
        about = (step, one.skipped, other.skipped)
        assert one.gradient_norm == other.gradient_norm, about
        assert repr(one.skipped) == repr(other.skipped), about
        for p, q in zip(plain.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(whole(q.detach()), p), about
        assert one.state_dict()["spikes"] == other.state_dict()["spikes"]
        if step == 7:  # on another number of processes, with what torch has gathered
            saved = other.state_dict()
            saved["state"] = {
                number: {name: whole(value) for name, value in state.items()}
                for number, state in saved["state"].items()
            }
            one = ours.AdamW(plain.parameters(), **OPTIONS)
            one.load_state_dict(saved)
    assert 2 <= one.skipped.spikes < 8


def check_spikes_of_stages(mesh):
    """Stages with a clip_group leave out the same steps, whoever has no gradient."""
    stage, shards = mesh["dp"].get_local_rank(), mesh["tp"]
    wholes = [nn.Parameter(drawn((7, 3), i) / 8) for i in range(2)]
    own = nn.Parameter(distribute_tensor(wholes[stage].detach().clone(), shards, [Shard(0)]))
    one = ours.AdamW(wholes, **OPTIONS)
    other = ours.AdamW([own], clip_group=mesh["dp"], **OPTIONS)
    for step, size in enumerate(SIZES):
        absent = {1: 0, 4: 1, 9: 0}.get(step)  # which stage has no gradient
        for i, p in enumerate(wholes):
            p.grad = None if i == absent else size * drawn(p.shape, 100 * step + i)
        own.grad = None if stage == absent else cut_as(wholes[stage].grad, own)
        one.step()
        other.step()
        assert one.gradient_norm == other.gradient_norm
        assert repr(one.skipped) == repr(other.skipped)
        assert torch.equal(whole(own.detach()), wholes[stage])
        assert one.state_dict()["spikes"] == other.state_dict()["spikes"]
    own.grad = None  # of all processes: judged by none
    before = other.state_dict()
    other.step()
    assert before["spikes"] == other.state_dict()["spikes"]
    assert 2 <= one.skipped.spikes < 8
