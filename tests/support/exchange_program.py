"""One process of several that take norm and guard together: ``exchange_program.py rank store n``.

Stages, experts, replicas, gradients that some processes lack, and NaN that one of them has. Norms
are compared with those of ``adamas.digits``, parameters with those of one process.
"""

from __future__ import annotations

import copy
import io
import math
import os
import pickle
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import adamas.torch as ours
from adamas import digits
from tests.support.exchange_spikes import check_spikes, check_spikes_of_stages
from tests.support.exchange_updates import check_updates, check_updates_of_grids, sent

LIMIT = timedelta(seconds=300)
UNEVEN = ((1, 5), (3, 5), (5, 5), (7, 5), (101, 37), (), (1,), (0, 3), (6,))


def drawn(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(whole, mesh, *placements):
    return distribute_tensor(whole.clone(), mesh, placements, src_data_rank=None)


def here(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def norm_of(tensors):
    """Return the norm of tensors as it is defined, without any engine."""
    rows = [digits.of_squares(each.detach().numpy()) for each in tensors]
    return digits.norm(sum(rows, digits.of_squares(drawn((0,), 0).numpy())))


def set_gradients(parameters, gradients):
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def check_uneven(mesh):
    """Parts of any size, none included, have the norm and the parameters of whole tensors."""
    values = [drawn(shape, i) for i, shape in enumerate(UNEVEN)]
    gradients = [drawn(shape, 50 + i, 10.0 ** (i - 4)) for i, shape in enumerate(UNEVEN)]
    whole = [nn.Parameter(each.clone()) for each in values]
    parts = [
        nn.Parameter(cut(each, mesh, Shard(0) if each.ndim else Replicate())) for each in values
    ]
    optimizers = [ours.AdamW(each, lr=0.01, clip_norm=1.0) for each in (whole, parts)]
    for step in range(3):
        if step == 1:  # another cut, for torch to lay out
            gradients = [each.flip(0) if each.ndim else each for each in gradients]
        set_gradients(whole, [each.clone() for each in gradients])
        set_gradients(
            parts,
            [
                cut(
                    each, mesh, Shard(each.ndim - 1) if step == 2 and each.ndim else p.placements[0]
                )
                for each, p in zip(gradients, parts, strict=True)
            ],
        )
        for optimizer in optimizers:
            optimizer.step()
        assert optimizers[1].gradient_norm == norm_of(gradients) == optimizers[0].gradient_norm
        for one, other in zip(whole, parts, strict=True):
            assert torch.equal(here(other), here(cut(one.detach(), mesh, *other.placements)))


def check_statistics(mesh):
    """Statistics of a tensor that is cut are those of all of it, whoever lacks a gradient."""
    shapes = [shape for shape in UNEVEN if shape]
    values = [drawn(shape, i).bfloat16() for i, shape in enumerate(shapes)]
    whole = [(f"{i}", nn.Parameter(each.clone())) for i, each in enumerate(values)]
    parts = [(f"{i}", nn.Parameter(cut(each, mesh, Shard(0)))) for i, each in enumerate(values)]
    options = {"lr": 1e-3, "statistics": True, "rounding": "stochastic"}
    optimizers = [ours.AdamW(each, **options) for each in (whole, parts)]
    for step in range(2):
        for i, ((_, one), (_, other)) in enumerate(zip(whole, parts, strict=True)):
            one.grad = drawn(one.shape, 60 + i, 10.0 ** (3 * step)).bfloat16()
            if i == 3:
                one.grad[-1, -1] = math.nan
            other.grad = cut(one.grad, mesh, Shard(0))
        for optimizer in optimizers:
            optimizer.step()
        one, other = (optimizer.statistics() for optimizer in optimizers)
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value.nan_to_num(-1), other[name].nan_to_num(-1)), name
    _, first = parts[0]
    rank = dist.get_rank()
    for _, each in parts:
        each.grad = None
    first.grad = cut(torch.ones_like(values[0]), mesh, Shard(0)) if rank == 0 else None
    optimizers[1].step()
    found = optimizers[1].statistics()
    assert len(found) == (6 if rank == 0 else 0)
    if rank == 0:
        assert found["0/gradient_norm"] == math.sqrt(5)


def check_size_of_messages(mesh):
    """A norm costs no more than 1 KB for each process and set of groups, whatever is stepped."""
    plain = nn.Parameter(drawn((3,), 0))
    for count, shape in ((1, (4,)), (1, (512, 300)), (40, (16, 8))):
        sharded = [nn.Parameter(cut(drawn(shape, i), mesh, Shard(0))) for i in range(count)]
        replicas = nn.Parameter(cut(drawn((4,), 5), mesh, Replicate()))
        optimizer = ours.SGD([plain, replicas, *sharded], lr=0.1, clip_norm=1.0)
        for parameter in (plain, replicas, *sharded):
            parameter.grad = torch.ones_like(parameter)
        for _ in range(2):
            with sent() as messages:
                optimizer.step()
            assert len(messages) == 1, messages
            assert messages[0] <= 1024


def check_absent_from_the_first_step(mesh):
    """Processes that never have a gradient of a parameter, or of any, take part all the same."""
    rank, count = dist.get_rank(), dist.get_world_size()
    parts = [nn.Parameter(cut(drawn((8, 3), i), mesh, Shard(0))) for i in range(3)]
    optimizer = ours.AdamW(parts, lr=0.01, clip_norm=1.0, on_nonfinite="skip")
    wholes = [drawn((8, 3), 10 + i) for i in range(3)]
    for step in range(3):
        # The first is never there for the last process, the second for the first one alone; in
        # the second step the last one has none at all.
        has = (rank < count - 1, rank == 0, not (step == 1 and rank == count - 1))
        for parameter, whole, is_there in zip(parts, wholes, has, strict=True):
            parameter.grad = cut(whole, mesh, Shard(0)) if is_there else None
        optimizer.step()
        own = [here(p.grad) for p in parts if p.grad is not None]
        found = [None] * count
        dist.all_gather_object(found, own)
        assert optimizer.gradient_norm == norm_of([each for every in found for each in every])


def check_one_nan(mesh):
    """NaN that one process has is skipped, or raised, by all; in a plain tensor of it, too."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    named = [("plain", nn.Parameter(torch.ones(2))), ("bias", nn.Parameter(torch.ones(3)))]
    named += [("weight", nn.Parameter(cut(torch.ones(8, 3), mesh, Shard(0))))]
    parameters = [p for _, p in named]

    def gradients(of, value=math.inf):
        set_gradients(parameters, [torch.ones_like(p) for p in parameters])
        if rank == last:
            here(parameters[of].grad).view(-1)[0] = value

    optimizer = ours.AdamW(named, on_nonfinite="skip", clip_norm=1.0)
    for of in (0, 2):
        gradients(of)
        optimizer.step()
    assert optimizer.skipped == 2
    assert optimizer.gradient_norm == math.inf
    optimizer.on_nonfinite = "raise"
    gradients(2)
    own = "" if rank == last else ", in other processes"
    with sent() as messages, pytest.raises(FloatingPointError) as raised:
        optimizer.step()
    assert f"infinite: weight (1 of 24 elements{own}). Nothing" in str(raised.value)
    assert messages[1:] == [8]  # bytes: how many of the one parameter that is cut
    gradients(0)
    told = "plain (1 of 2 elements)" if rank == last else "those that only other processes have"
    with pytest.raises(FloatingPointError) as raised:
        optimizer.step()
    assert f"infinite: {told}. Nothing" in str(raised.value)
    assert all(torch.equal(here(p), torch.ones_like(here(p))) for p in parameters)
    optimizer.on_nonfinite = "propagate"
    gradients(2, math.nan)
    optimizer.step()
    assert all(torch.isnan(here(p)).all() for p in parameters if here(p).numel())


def check_scaler(mesh):
    """What a GradScaler has found in one process alone leaves the step out in all of them."""
    parameter = nn.Parameter(cut(torch.ones(8), mesh, Shard(0)))
    optimizer = ours.SGD([parameter], lr=1.0, clip_norm=100.0)
    for found in (1.0, 0.0):
        parameter.grad = cut(torch.full((8,), 2.0), mesh, Shard(0))
        optimizer.grad_scale = torch.tensor(2.0)
        optimizer.found_inf = torch.tensor(found) if dist.get_rank() == 0 else 0
        optimizer.step()
    assert torch.equal(here(parameter), torch.zeros_like(here(parameter)))
    assert optimizer.gradient_norm == math.sqrt(8)


def check_stages(mesh):
    """Stages of a pipeline, each sharded, have the norm of the whole model."""
    stage, shards = mesh["dp"].get_local_rank(), mesh["tp"]
    shapes = (((8, 6), (5,), (3, 2)), ((7, 3), (4,)))  # of parameters in the two stages
    values = [[drawn(s, 10 * i + j) for j, s in enumerate(own)] for i, own in enumerate(shapes)]
    whole = [nn.Parameter(each.clone()) for own in values for each in own]
    # The second is a plain one, and stages have theirs in another order.
    own = [
        nn.Parameter(each.clone() if j == 1 else cut(each, shards, Shard(0)))
        for j, each in enumerate(values[stage])
    ]
    if stage == 1:
        own.reverse()
    options = {"lr": 0.01, "clip_norm": 1.0, "on_nonfinite": "skip"}
    optimizer, reference = (
        ours.AdamW(own, clip_group=mesh["dp"], **options),
        ours.AdamW(whole, **options),
    )

    def step(seed, *, nan=False):
        found = [
            [drawn(s, seed + 10 * i + j) for j, s in enumerate(each)]
            for i, each in enumerate(shapes)
        ]
        if nan:
            found[1][0][-1, -1] = math.nan
        set_gradients(whole, [each.clone() for every in found for each in every])
        mine = [
            each if j == 1 else cut(each, shards, Shard(0)) for j, each in enumerate(found[stage])
        ]
        set_gradients(own, mine[::-1] if stage == 1 else mine)
        optimizer.step()
        return found

    for i in range(3):
        gradients = step(100 * i)
        reference.step()
        assert optimizer.gradient_norm == norm_of([each for every in gradients for each in every])
        start = 0 if stage == 0 else len(shapes[0])
        theirs = whole[start : start + len(own)]
        for one, other in zip(theirs[::-1] if stage == 1 else theirs, own, strict=True):
            expected = cut(one.detach(), shards, Shard(0)) if isinstance(other, DTensor) else one
            assert torch.equal(here(other), here(expected))
    with sent() as messages:
        step(400, nan=True)
    assert optimizer.skipped == 1
    assert sorted(messages) == [728, 728]  # stages and shards, whatever their sets
    optimizer.on_nonfinite = "raise"
    text = "weight|2 elements|21 elements|only other processes"
    with pytest.raises(FloatingPointError, match=text):
        step(400, nan=True)
    optimizer.on_nonfinite = "propagate"
    # All of a mesh is a group, too: parts are distinct over it, and plain ones are not.
    plain = [p for p in own if not isinstance(p, DTensor)]
    sharded = [p for p in own if isinstance(p, DTensor)]
    optimizer = ours.SGD(
        [
            {"params": sharded, "clip_group": dist.group.WORLD},
            {"params": plain, "clip_group": mesh["dp"]},
        ],
        lr=0.0,
        clip_norm=1.0,
    )
    set_gradients(own, [each.detach().clone() for each in own])
    optimizer.step()
    full = [each.full_tensor() if isinstance(each, DTensor) else each.detach() for each in own]
    found = [None] * 4
    dist.all_gather_object(found, full)
    assert optimizer.gradient_norm == norm_of(found[0] + found[2])
    if stage == 1:  # the order of groups does not matter
        optimizer.param_groups.reverse()
        optimizer.step()
        optimizer.param_groups.reverse()
    else:
        optimizer.step()
    assert optimizer.gradient_norm == norm_of(found[0] + found[2])
    optimizer.param_groups[0]["clip_group"] = None  # from the next step on
    optimizer.param_groups[1]["clip_group"] = None
    optimizer.step()
    assert optimizer.gradient_norm == norm_of(full)


def check_replicas(mesh):
    """HSDP's replicas are counted once, and are no group of distinct parameters."""
    whole = drawn((6, 5), 3)
    parameter = nn.Parameter(cut(whole, mesh, Replicate(), Shard(0)))
    optimizer = ours.SGD([parameter], lr=0.0, clip_norm=1.0)
    parameter.grad = cut(whole, mesh, Replicate(), Shard(0))
    with sent() as messages:
        optimizer.step()
    assert messages == [728]
    assert optimizer.gradient_norm == norm_of([whole])
    optimizer.clip_group = mesh["tp"].get_group()  # which it is cut over already
    optimizer.step()
    assert optimizer.gradient_norm == norm_of([whole])
    optimizer.clip_group = dist.group.WORLD
    before = here(parameter).clone()
    with pytest.raises(
        ValueError, match=r"^clip_group has the processes \[0, 1, 2, 3\], but several"
    ):
        optimizer.step()
    assert torch.equal(here(parameter), before)


def check_two_dimensions(mesh):
    """Sums of several sets of process groups take a message for each group, and no more."""
    ways = ((Shard(0), Replicate()), (Shard(0), Shard(1)), (Shard(0), Shard(0)))
    wholes = [drawn((5, 6), i) for i in range(len(ways))]
    parts = [nn.Parameter(cut(each, mesh, *way)) for each, way in zip(wholes, ways, strict=True)]
    optimizer = ours.SGD(parts, lr=0.1, clip_norm=1.0)
    set_gradients(parts, [cut(each, mesh, *way) for each, way in zip(wholes, ways, strict=True)])
    with sent() as messages:
        optimizer.step()
    assert messages == [728, 728]
    assert optimizer.gradient_norm == norm_of(wholes)


def check_device_of_messages(mesh):
    """Sums are sent from the device of the parameters, wherever those with gradients are."""
    elsewhere = nn.Parameter(torch.ones(2, device="meta"))
    part = nn.Parameter(cut(torch.ones(8), mesh, Shard(0)))
    if dist.get_rank() == 0:
        part.grad = cut(torch.ones(8), mesh, Shard(0))
    optimizer = ours.SGD([part, elsewhere], lr=0.1, clip_norm=1.0)
    devices = []

    def seen(tensor, **_options):
        devices.append(tensor.device.type)
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dist, "get_backend_config", lambda _: "cpu:gloo,meta:gloo")
        patched.setattr(dist, "all_reduce", seen)
        with pytest.raises(InterruptedError):
            optimizer.step()
    assert devices == ["meta"]


def check_experts(mesh):
    """Experts that some processes hold are counted by all, beside parameters that all have."""
    rank, count = dist.get_rank(), dist.get_world_size()
    pair = DeviceMesh("cpu", [0, 1])
    shared, expert = nn.Parameter(torch.ones(3)), drawn((5, 2), 7)
    parameter = nn.Parameter(cut(expert, pair, Shard(0)))
    own = nn.Parameter(drawn((4,), rank))  # of this process alone
    world = dist.group.WORLD
    groups = [
        {"params": [shared]},
        {"params": [parameter], "clip_group": world},
        {"params": [own], "clip_group": mesh},
    ]
    optimizer = ours.SGD(groups, lr=0.0, clip_norm=1.0)
    shared.grad = drawn((3,), 20)
    parameter.grad = cut(expert, pair, Shard(0))
    own.grad = drawn((4,), 30 + rank)
    with sent() as messages:
        optimizer.step()
    assert messages == [728]
    owns = [drawn((4,), 30 + i) for i in range(count)]
    assert optimizer.gradient_norm == norm_of([shared.grad, expert, *owns])
    # One without parameters takes part.
    groups = [{"params": [shared, own] if rank == 0 else []}]
    optimizer = ours.SGD(groups, lr=0.0, clip_norm=1.0, clip_group=world)
    optimizer.step()
    assert optimizer.gradient_norm == norm_of([shared.grad, owns[0]])


def check_zero(mesh):
    """ZeRO, where each process steps parameters of its own, clips by the norm of all of them."""
    shapes = ((7, 5), (5,), (4, 5), (3,))
    nets = [[nn.Parameter(drawn(shape, i)) for i, shape in enumerate(shapes)] for _ in range(2)]
    options = {"lr": 0.1, "clip_norm": 0.5}
    zero = ZeroRedundancyOptimizer(
        nets[0], optimizer_class=ours.AdamW, clip_group=mesh.get_group(), **options
    )
    whole = ours.AdamW(nets[1], **options)
    for step in range(2):
        gradients = [drawn(shape, 10 * step + i) for i, shape in enumerate(shapes)]
        for net in nets:
            set_gradients(net, [each.clone() for each in gradients])
        zero.step()
        whole.step()
        assert zero.optim.gradient_norm == whole.gradient_norm
    assert all(map(torch.equal, *nets))


def check_option(mesh):
    """A process group is readable, settable, and no part of what is saved."""
    group, name = mesh.get_group(), "clip_group"
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ours.Adam([p], clip_group=group)
    optimizer.add_param_group({"params": [q], name: mesh})
    assert optimizer.clip_group is group
    assert name not in optimizer.param_groups[0]
    assert optimizer.param_groups[1][name] is mesh
    processes = ", ".join(map(str, range(dist.get_world_size())))
    assert f"clip_group: processes {processes}\n" in repr(optimizer)
    p.grad = q.grad = torch.ones(2)
    optimizer.step()
    state = optimizer.state_dict()
    torch.save(state, buffer := io.BytesIO())
    buffer.seek(0)
    read = torch.load(buffer, weights_only=True)
    assert [each.get(name, 0) for each in read["param_groups"]] == [0, None]
    optimizer.load_state_dict(read)
    assert [each.get(name) for each in optimizer.param_groups] == [None, mesh]
    assert optimizer.clip_group is group
    twin = copy.deepcopy(optimizer)
    assert twin.clip_group is group
    assert twin.param_groups[1][name] is mesh
    other = pickle.loads(pickle.dumps(optimizer))
    assert other.clip_group is other.param_groups[1][name] is None
    optimizer.clip_group = gone = dist.new_group()
    dist.destroy_process_group(gone)
    assert "clip_group: a process group that was destroyed" in repr(optimizer)
    optimizer.clip_group = None
    assert optimizer.clip_group is None
    assert "clip_group: processes" not in repr(optimizer)
    flat = init_device_mesh("cpu", (1, dist.get_world_size()))
    for wrong, error, text in (
        ("pp", TypeError, "clip_group is a str, but it must be a torch.distributed.ProcessGroup"),
        (flat, ValueError, "clip_group is a DeviceMesh of 2 dimensions, but it must have one"),
    ):
        with pytest.raises(error, match=f"^{text}"):
            optimizer.clip_group = wrong
        with pytest.raises(error, match=f"^{text}"):
            ours.Adam([p], clip_group=wrong)
        with pytest.raises(error, match=rf"^param_groups\[2\]: {text}"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], name: wrong})
    alone = dist.new_group([0])
    if dist.get_rank() > 0:
        text = rf"^clip_group is a process group without this process, .* rank {dist.get_rank()}"
        with pytest.raises(ValueError, match=text):
            optimizer.clip_group = alone


def check_all(mesh):
    """Check all of this file."""
    if mesh.ndim == 2:
        checks = [check_stages, check_replicas, check_two_dimensions, check_spikes_of_stages]
        checks.append(check_updates_of_grids)
    else:
        checks = [
            check_uneven,
            check_statistics,
            check_size_of_messages,
            check_absent_from_the_first_step,
            check_one_nan,
            check_scaler,
            check_spikes,
            check_updates,
            check_device_of_messages,
            check_experts,
            check_zero,
            check_option,
        ]
    for check in checks:
        check(mesh)


def main():
    rank, store, shape = int(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3].split("x")))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=math.prod(shape),
        timeout=LIMIT,
    )
    names = ("dp", "tp")[: len(shape)]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    check_all(mesh)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
