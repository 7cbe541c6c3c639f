"""One process of several that record a training: ``recorder_program.py rank store folder``."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.parallel import DistributedDataParallel

import adamas
from adamas import records
from adamas.torch import Adam, recording

LIMIT = timedelta(seconds=300)
COUNT = 2


def model():
    """Rows that are cut unevenly, a row that one process has, and one that is whole blocks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 1))


def backward(net, number, scale=1.0):
    for i, p in enumerate(net.parameters()):
        generator = torch.Generator().manual_seed(100 * number + i)
        gradient = scale * torch.randn(p.shape, generator=generator)
        p.grad = gradient if not hasattr(p, "device_mesh") else distributed(p, gradient)


def distributed(p, gradient):
    return torch.distributed.tensor.distribute_tensor(gradient, p.device_mesh, p.placements)


def recorded(path, net, steps=6, every=2, **options):
    optimizer = Adam(net.named_parameters(), betas=(0.5, 0.5), eps=0.25, **options)
    recorder = adamas.Recorder(optimizer, path, every=every)
    for number in range(steps):
        backward(net, number, float("nan") if number == 3 and "on_nonfinite" in options else 1.0)
        optimizer.step()
    recorder.close()


def lines(path):
    found = [line for opening in records.read(path) for line in opening.steps]
    return [{key: value for key, value in line.items() if key != "time"} for line in found]


def check_shards(rank, mesh, folder, options):
    """A record of shards is, bit for bit, that of whole tensors; the process of rank 0 has it."""
    sharded = model()
    fully_shard(sharded, mesh=mesh)
    path = folder / ("-".join(["sharded", *map(str, options.values())]) + ".jsonl")
    recorded(path, sharded, **options)
    dist.barrier()
    written = lines(path)
    net = model()
    alone = Adam(net.named_parameters(), betas=(0.5, 0.5), eps=0.25, statistics=True, **options)
    expected = {}
    for number in range(6):
        backward(net, number, float("nan") if number == 3 and "on_nonfinite" in options else 1.0)
        before = alone.skipped
        alone.step()
        if alone.skipped == before:
            told = alone.statistics(summary=True), alone.statistics(), shares(alone, net)
            expected[len(expected) + 1] = told
    is_made = ["tensors" in line for line in written]
    assert is_made == ([True, True, False, True] if "on_nonfinite" in options else [True] * 4)
    for line in (line for line in written if "tensors" in line):
        summary, each, below = expected[line["step"]]
        assert line["gradient_norm"] == summary["gradient_norm"]
        assert line.get("clip_factor") == summary.get("clip_factor")
        found = {name: told.pop("below_eps") for name, told in line["tensors"].items()}
        if options.get("state") == "8bit":  # where blocks are cut codes have other bits
            assert found["0.weight"] == below["0.weight"], (line["step"], found, below)
            continue
        assert found == below, (options, found, below)
        told = {f"{name}/{k}": v for name, own in line["tensors"].items() for k, v in own.items()}
        assert told == {key: value.item() for key, value in each.items()}


def shares(optimizer, net):
    found = {}
    state = optimizer.state_dict()["state"]
    for (name, _), own in zip(net.named_parameters(), state.values(), strict=True):
        bound = 0.25**2 * (1 - 0.5 ** int(own["step"]))
        found[name] = (own["exp_avg_sq"] < bound).double().mean().item()
    return found


def check_one_without(rank, mesh, folder):
    """A process without a recorder is named before anything is touched, and nobody hangs."""
    net = model()
    fully_shard(net, mesh=mesh)
    optimizer = Adam(net.parameters())
    backward(net, 1)
    if rank == 0:
        recording.WAITS = 2.0
        adamas.Recorder(optimizer, folder / "alone.jsonl")
        before = [p.to_local().clone() for p in net.parameters()]
        with pytest.raises(RuntimeError, match=r"Process 1 has parts .* no Recorder .* 2 seconds"):
            optimizer.step()
        now = [p.to_local() for p in net.parameters()]
        assert all(map(torch.equal, before, now))
        assert not optimizer.state
        recording.WAITS = 300.0
    dist.barrier()


def check_other_steps(rank, mesh, folder):
    """Processes that would record other steps are told, both of them."""
    net = model()
    fully_shard(net, mesh=mesh)
    optimizer = Adam(net.parameters())
    adamas.Recorder(optimizer, folder / "other.jsonl", every=50 + rank)
    backward(net, 1)
    with pytest.raises(ValueError, match=rf"Process {1 - rank} records every {51 - rank} steps"):
        optimizer.step()
    assert not optimizer.state
    dist.barrier()


def check_replicas(rank, folder):
    """Where every process has whole tensors one of them records, and the others take no part."""
    path = folder / "replicas.jsonl"
    net = DistributedDataParallel(model())
    optimizer = Adam(net.parameters())
    recorder = adamas.Recorder(optimizer, path, every=2, rank=1)
    for number in range(4):
        backward(net, number)
        optimizer.step()
    dist.barrier()
    assert [line["step"] for line in lines(path)] == [1, 2, 4]
    assert len(records.read(path)) == 1
    recorder.note(loss=1.0)
    own = Adam(model().parameters())
    if rank == 1:  # alone
        adamas.Recorder(own, folder / "one.jsonl", rank=1)
        own.param_groups[0]["params"][0].grad = torch.ones(5, 64)
        own.step()
        assert len(lines(folder / "one.jsonl")) == 1
    dist.barrier()


def check_notes(rank, mesh, folder):
    """A note that the writer could not read alone is refused, and all that it can read is taken."""
    path = folder / "notes.jsonl"
    optimizer = Adam(model().parameters())
    optimizer.param_groups[0]["params"][0].grad = torch.ones(5, 64)
    recorder = adamas.Recorder(optimizer, path)
    loss = DTensor.from_local(torch.tensor(1.0 + rank), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"loss is a DTensor .* Note loss\.full_tensor\(\)"):
        recorder.note(loss=loss)
    recorder.note(whole=loss.full_tensor(), alike=loss.redistribute(placements=[Replicate()]))
    if rank == 0:  # alone
        optimizer.step()
        assert [line["notes"] for line in lines(path)] == [{"whole": 3.0, "alike": 3.0}]
    dist.barrier()


def main(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=COUNT, timeout=LIMIT
    )
    mesh = init_device_mesh("cpu", (COUNT,))
    for options in (
        {},
        {"clip_norm": 0.5},
        {"clip_norm": 0.5, "on_nonfinite": "skip"},
        {"state": "8bit"},
        {"state": "compact"},
        {"engine": "torch"},
    ):
        check_shards(rank, mesh, folder, options)
    check_replicas(rank, folder)
    check_notes(rank, mesh, folder)
    check_other_steps(rank, mesh, folder)
    check_one_without(rank, mesh, folder)
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
