"""One process of several that step tensors cut in every way: ``mesh_program.py rank store shape``.

``shape`` is that of the mesh, "2x2". All processes run the same optimizer over plain tensors, too;
gradients are small whole numbers, so that sums are exact however tensors are cut, and everything is
compared with ``==``.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import adamas
import adamas.torch as ours
from adamas.torch import distributed
from adamas.torch.parts import runs
from tests.support import exchange_program
from tests.support.copied import left_by_steps
from tests.support.tracked import check_parts

#: Longer than all of it takes: where processes wait for one another in vain, they fail.
LIMIT = timedelta(seconds=300)
ROWS = (Shard(0), Replicate(), _StridedShard(0, split_factor=2))
ALL = (*ROWS, Shard(1))
#: Even, uneven, fewer rows than processes, empty; one, two and three dimensions.
SHAPES = ((8, 6), (5, 3), (1, 4), (16,), (7,), (2,), (0, 3), (3, 4, 2), ())
#: However rows are cut, parts are of whole blocks of "8bit".
WIDE_SHAPES = ((8, 64), (5, 32), (1, 96))


def cases(mesh, shapes=SHAPES, placements=ALL):
    """Return shapes with all ways to cut them along their first two dimensions over ``mesh``."""
    for shape in shapes if mesh.ndim < 3 else shapes[1:2]:
        for each in itertools.product(placements, repeat=mesh.ndim):
            along = {placement.dim for placement in each if not is_replicate(placement)}
            if all(dimension < len(shape) for dimension in along):
                yield shape, each


def is_replicate(placement):
    return placement.is_replicate()


def drawn(shape, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).to(dtype)


def cut(whole, mesh, placements):
    """Return a tensor that all processes have, as a distributed one, by torch's own cutting."""
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def here(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def own_part(whole, like):
    """Return what a process has of ``whole``, laid out as ``like`` is: by torch's own cutting."""
    return cut(whole.detach().clone(), like.device_mesh, like.placements).to_local()


def check_indices(mesh):
    for shape, placements in cases(mesh):
        count = torch.Size(shape).numel()
        whole = torch.arange(count).view(shape)
        tensor = cut(whole, mesh, placements)
        expected = tensor.to_local().flatten().tolist()
        assert distributed.element_indices(tensor).tolist() == expected, (shape, placements)
        assert of_runs(runs(tensor), len(expected)) == expected, (shape, placements)


def of_runs(found, count):
    """Return where elements of a part stand in the whole tensor, by what ``runs`` says."""
    if not found:
        return list(range(count))
    ends = [each.first for each in found[1:]] + [count]
    return [
        each.start + (i - each.first) // each.length * each.pitch + (i - each.first) % each.length
        for each, end in zip(found, ends, strict=True)
        for i in range(each.first, end)
    ]


def check_steps(mesh, dtype, chosen, **options):
    """Step tensors cut in every way, with gradients cut in every way; compare copies, too."""
    whole, parts = [], []
    for i, (shape, placements) in enumerate(chosen):
        value = drawn(shape, i, dtype) / 8
        whole.append(nn.Parameter(value.clone()))
        parts.append(nn.Parameter(cut(value, mesh, placements)))
    optimizers = [ours.AdamW(each, lr=0.01, clip_norm=3.0, **options) for each in (whole, parts)]
    for step in range(3):
        for i, (one, other) in enumerate(zip(whole, parts, strict=True)):
            one.grad = drawn(one.shape, 1000 * (step + 1) + i, dtype)
            other.grad = spread(one.grad, other, (i + step) % 3)
        for optimizer in optimizers:
            optimizer.step()
        assert {*optimizers[1].routes().values()} == {"native"}
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
        for one, other in zip(whole, parts, strict=True):
            about = (tuple(one.shape), other.placements, dtype, options, step)
            assert torch.equal(here(other), own_part(one, other)), about
        for one, other in zip(*map(left_by_steps, optimizers), strict=True):
            assert torch.equal(here(other), own_part(one, other)), options


def spread(whole, parameter, way):
    """Return a gradient: laid out as the parameter is, with replicas, or as a sum to be made."""
    mesh = parameter.device_mesh
    if way == 0:
        return cut(whole.clone(), mesh, parameter.placements)
    if way == 1:
        return cut(whole.clone(), mesh, [Replicate()] * mesh.ndim)
    index, count = dist.get_rank(), mesh.size()
    share = drawn(whole.shape, index, whole.dtype)
    if index == count - 1:
        others = sum(drawn(whole.shape, i, whole.dtype) for i in range(count - 1))
        share = whole - others
    return DTensor.from_local(share, mesh, [Partial()] * mesh.ndim, run_check=False)


def check_headers(mesh):
    """Headers are those of the parameter's blocks, cut as torch cuts a tensor of their shape.

    They are DTensors where all processes have whole blocks only.
    """
    ways, uncut = {}, {}
    for shape, placements in cases(mesh, ((8, 256), (3, 128), (5, 32), (1, 96), (4, 2, 128))):
        p = nn.Parameter(cut(drawn(shape, 0).float(), mesh, placements))
        p.grad = cut(drawn(shape, 1).float(), mesh, placements)
        optimizer = ours.AdamW([p], state="8bit")
        optimizer.step()
        header = optimizer.state[p]["header"]
        blocks = cut(torch.arange(p.numel()).view(shape) // 32, mesh, placements).to_local()
        ways[shape, placements] = isinstance(header, DTensor)
        uncut[shape, placements] = {*blocks.flatten().bincount().tolist()} <= {0, 32}
        if isinstance(header, DTensor):
            whole = torch.arange(p.numel() // 32).view(*shape[:-1], -1)
            own = cut(whole, mesh, placements).to_local()
            assert header.shape == whole.shape, (shape, placements)
            assert header.to_local().shape == own.shape, (shape, placements)
            assert blocks.flatten()[::32].tolist() == own.flatten().tolist(), (shape, placements)
    everywhere = [None] * mesh.size()
    dist.all_gather_object(everywhere, (ways, uncut))
    for each, _ in everywhere:
        assert each == {case: all(own[case] for _, own in everywhere) for case in ways}
    assert {*ways.values()} == {False, True}  # or else it does not test what it says


def check_changes(mesh):
    """Each process tells what has changed of its part, with indices in the whole tensor."""
    count = 0
    ways = ({}, {"engine": "torch"}, {"copy_to": torch.bfloat16})
    for way, options in enumerate(ways):
        dtype = torch.float32 if "copy_to" in options else torch.bfloat16
        whole, parts = [], []
        for i, (shape, placements) in enumerate([*cases(mesh)][way :: len(ways)]):
            value = drawn(shape, i, dtype) / 8
            whole.append(nn.Parameter(value.clone()))
            parts.append(nn.Parameter(cut(value, mesh, placements)))
        one, other = (
            ours.AdamW(each, lr=1e-3, track_changes=True, **options) for each in (parts, whole)
        )
        changes = one.changes(clear=False)
        assert (changes.part, changes.parts) == (dist.get_rank(), (*range(mesh.size()),))
        for step in range(2):
            for i, (p, judge) in enumerate(zip(parts, whole, strict=True)):
                judge.grad = drawn(judge.shape, 1000 * (step + 1) + i, dtype)
                p.grad = spread(judge.grad, p, 0)
            other.step()
            one.step()
            count += check_parts(one, other, own_part)
        with torch.no_grad():
            for p, judge in zip(parts[::2], whole[::2], strict=True):
                p.mul_(2)
                judge.mul_(2)
        check_parts(one, other, own_part)
    assert count  # or else it does not test what it says


def check_files_of_changes(mesh, path):
    """What all processes save goes into whole tensors, and into parts that are cut otherwise."""
    of_shapes = {}
    for shape, placements in cases(mesh):
        of_shapes.setdefault(shape, []).append(placements)
    whole, parts, followers = {}, {}, {}
    for shape, ways in of_shapes.items():
        for i, (placements, others) in enumerate(zip(ways, ways[1:] + ways[:1], strict=True)):
            value, name = drawn(shape, i, torch.bfloat16) / 8, f"{shape} {i}"
            whole[name] = nn.Parameter(value.clone())
            parts[name] = nn.Parameter(cut(value, mesh, placements))
            followers[name] = cut(value, mesh, others)
    copies = {name: value.detach().clone() for name, value in whole.items()}
    options = {"lr": 1e-3, "rounding": "remainder"}
    one = ours.AdamW(parts.items(), track_changes=True, **options)
    other = ours.AdamW(whole.values(), **options)
    for step in (1, 2, 3):
        for i, (name, judge) in enumerate(whole.items()):
            judge.grad = drawn(judge.shape, 1000 * step + i, torch.bfloat16)
            parts[name].grad = spread(judge.grad, parts[name], 0)
        other.step()
        one.step()
        adamas.save_changes(f"{path}.{step}.{dist.get_rank()}", one.changes())
        dist.barrier()
        paths = [f"{path}.{step}.{rank}" for rank in range(mesh.size())]
        for target in (copies, followers):
            after = 0 if step == 1 else None
            assert adamas.apply_changes(target, paths, after=after) == step
            with pytest.raises(ValueError, match=f"no file of rank {mesh.size() - 1}"):
                adamas.apply_changes(target, paths[:-1])
        for name, judge in whole.items():
            assert torch.equal(copies[name], judge), (step, name)
            follower = followers[name]
            own = cut(judge.detach(), mesh, follower.placements).to_local()
            assert torch.equal(follower.to_local(), own), (step, name, follower.placements)


def check_missing_gradients(mesh):
    """Of some parameters only some processes have a gradient; all have the same norm."""
    ways = [way for way in itertools.product(ALL, repeat=mesh.ndim) if set(way) != {Replicate()}]
    parts = [nn.Parameter(cut(drawn((8, 8), 0), mesh, placements)) for placements in ways]
    optimizer = ours.AdamW(parts, lr=0.01, clip_norm=1.0, on_nonfinite="skip")
    rank = dist.get_rank()
    for step in range(3):
        squares = torch.zeros(1, dtype=torch.float64)
        for i, parameter in enumerate(parts):
            parameter.grad = None
            if (i + step + rank) % 3 == 0 and not (step == 1 and rank == 0):
                gradient = cut(drawn((8, 8), i), mesh, parameter.placements)
                if step == 2 and rank == dist.get_world_size() - 1:
                    gradient.to_local().fill_(float("nan"))
                parameter.grad = gradient
                if not any(map(is_replicate, parameter.placements)):
                    squares += gradient.to_local().double().square().sum()
        if step == 2:
            optimizer.step()
            assert optimizer.skipped == 1  # in all processes, whoever has the NaN
            continue
        for parameter in parts:  # replicas count once: left out here
            if any(map(is_replicate, parameter.placements)):
                parameter.grad = None
        optimizer.step()
        dist.all_reduce(squares)
        assert optimizer.gradient_norm == math.sqrt(squares.item())


def check_refusal(mesh):
    """A parameter that is a sum to be made is refused, and no group is added."""
    optimizer = ours.AdamW([nn.Parameter(torch.ones(2))])
    share = DTensor.from_local(torch.ones(2), mesh, [Partial()] * mesh.ndim, run_check=False)
    text = r"^A parameter has the placement P.*Redistribute the parameter first\.$"
    with pytest.raises(TypeError, match=text):
        optimizer.add_param_group({"params": [nn.Parameter(share)]})
    assert len(optimizer.param_groups) == 1


def check_other_mesh(mesh):
    """A gradient that is sharded over other processes is refused before anything is touched."""
    flat = init_device_mesh("cpu", (mesh.size(),))
    parts = [nn.Parameter(cut(drawn((8,), i), mesh, [Replicate()] * mesh.ndim)) for i in range(2)]
    parts[0].grad = cut(drawn((8,), 2), mesh, [Replicate()] * mesh.ndim)
    parts[1].grad = cut(drawn((8,), 3), flat, [Replicate()])
    with pytest.raises(ValueError, match=r"^The gradient of 0\.1 is sharded over .* same mesh"):
        ours.AdamW(parts).step()
    assert torch.equal(here(parts[0]), drawn((8,), 0))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8, bias=False)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return self.down(self.up(x).relu()) * self.scale


def check_fsdp_over_tensor_parallel(mesh):
    """FSDP2 over tensor parallelism: whole numbers for weights and inputs make gradients exact."""
    plain, spread_out = Block(), Block()
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    parallelize_module(spread_out, mesh["tp"], plan)
    fully_shard(spread_out, mesh=mesh["dp"])
    kinds = {type(each) for p in spread_out.parameters() for each in p.placements}
    assert _StridedShard in kinds  # or else it does not test what it says
    pairs = [
        (net, ours.AdamW(net.parameters(), lr=0.25, clip_norm=5.0)) for net in (plain, spread_out)
    ]
    for step in range(4):
        for net, optimizer in pairs:
            with torch.no_grad():
                for i, p in enumerate(net.parameters()):
                    value = drawn(p.shape, 100 * step + i)
                    p.copy_(value if net is plain else cut(value, p.device_mesh, p.placements))
            optimizer.zero_grad()
            x = drawn((8, 8), step)
            if net is spread_out:  # each process of "dp" has its own examples
                x = x.chunk(mesh["dp"].size())[mesh["dp"].get_local_rank()]
            (net(x).sum() / len(x)).backward()
            optimizer.step()
        assert pairs[0][1].gradient_norm == pairs[1][1].gradient_norm
        assert pairs[0][1].gradient_norm > 5
        for (name, one), other in zip(
            plain.named_parameters(), spread_out.parameters(), strict=True
        ):
            assert torch.equal(here(other), own_part(one, other)), (name, step)


def check_plain_ones_alone(mesh):
    """Plain parameters are clipped where those beside them, which are cut, have no gradient."""
    plain, parted = torch.ones(4), cut(torch.ones(8), mesh, [Shard(0)] * mesh.ndim)
    params = [nn.Parameter(plain), nn.Parameter(parted)]
    optimizer = ours.SGD(params, lr=1.0, clip_norm=1.0, on_nonfinite="skip")
    params[0].grad = torch.full((4,), 8.0)
    optimizer.step()
    assert optimizer.gradient_norm == 16
    assert torch.equal(params[0], torch.full((4,), 0.5))
    params[0].grad[0] = math.nan
    optimizer.step()
    assert optimizer.skipped == 1
    assert torch.equal(params[0], torch.full((4,), 0.5))


def check_all(mesh, store):
    """Check all of this file; files of changes go to folders beside ``store``."""
    check_indices(mesh)
    if mesh.ndim < 3:
        check_steps(mesh, torch.float32, cases(mesh))
        check_steps(mesh, torch.bfloat16, cases(mesh, SHAPES[:3]))
        check_steps(mesh, torch.bfloat16, cases(mesh), rounding="remainder", copy_to=torch.float16)
        rows, small = cases(mesh, WIDE_SHAPES, ROWS), {"state": "8bit", "rounding": "stochastic"}
        check_steps(mesh, torch.bfloat16, rows, clip_update=0.5, **small)
    small = {"state": "compact", "rounding": "remainder8"}
    check_steps(mesh, torch.bfloat16, cases(mesh), clip_update=0.5, **small)
    check_headers(mesh)
    check_changes(mesh)
    check_files_of_changes(mesh, store)
    check_missing_gradients(mesh)
    check_plain_ones_alone(mesh)
    check_refusal(mesh)
    if mesh.ndim > 1:
        check_other_mesh(mesh)
    if mesh.shape == (2, 2):
        check_fsdp_over_tensor_parallel(mesh)


def main():
    rank, store, shape = int(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3].split("x")))
    torch.set_num_threads(1)
    world = torch.Size(shape).numel()
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=LIMIT
    )
    names = ("dp", "tp", "pp")[: len(shape)]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    check_all(mesh, store)
    if world == 2:  # starting two processes takes longer than that
        exchange_program.check_all(mesh)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
