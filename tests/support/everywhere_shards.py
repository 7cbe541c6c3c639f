"""Cases of `everywhere_program`: parameters that are sharded, over one mesh or several."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.distributed.tensor.placement_types import _StridedShard

import adamas.torch as ours
from tests.support.twins import Language, Twins, assert_same, here, whole_numbers

#: Options that look at all processes, and that keep something beside each parameter.
PHASE = {"clip_norm": 5.0, "on_nonfinite": "skip", "ema": 0.75, "copy_to": torch.bfloat16}
PHASE |= {"clip_update": 0.5}
#: Of parts that do not tell of which tensors they are.
OF_FLAT_PARTS = PHASE | {"clip_update": None}


def mesh_of(*shape, names=("dp", "tp")):
    return init_device_mesh("cpu", shape, mesh_dim_names=names[: len(shape)])


def parallel(net, mesh, *, sequence=True):
    """Return a model under tensor parallelism, as torchtitan lays one out."""
    apart = Shard(1) if sequence else Replicate()
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=apart),
        "up": ColwiseParallel(input_layouts=apart),
        "down": RowwiseParallel(output_layouts=apart),
        "head": ColwiseParallel(input_layouts=apart, output_layouts=Replicate()),
    }
    if sequence:
        plan["norm"] = SequenceParallel()
    return parallelize_module(net, mesh, plan)


def placements(net):
    return {type(each) for p in net.parameters() for each in getattr(p, "placements", ())}


def fsdp2_has_the_bits_of_one_process():
    mesh = mesh_of(4)
    spread = Language()
    for part in (spread.up, spread.down, spread):
        fully_shard(part, mesh=mesh)
    twins = Twins(Language(), spread, share=(mesh.get_local_rank(), 4), **PHASE)
    twins.train()
    assert twins.optimizers[0].gradient_norm > 5


def tensor_parallel_with_partial_gradients_has_the_bits_of_one_process():
    spread = parallel(Language(), mesh_of(4, names=("tp",)))
    twins = Twins(Language(), spread, **PHASE)
    twins.set_weights(0)
    twins.backward(0)
    kinds = {type(each) for each in spread.norm.weight.grad.placements}
    assert Partial in kinds  # or else it does not test what it says
    twins.train()


def fsdp2_over_tensor_parallel_has_the_bits_of_one_process():
    mesh = mesh_of(2, 2)
    spread = parallel(Language(), mesh["tp"])
    for part in (spread.up, spread):
        fully_shard(part, mesh=mesh["dp"])
    assert _StridedShard in placements(spread)
    Twins(Language(), spread, share=(mesh["dp"].get_local_rank(), 2), **PHASE).train()


def fsdp2_over_tensor_parallel_takes_tied_weights():
    mesh = mesh_of(2, 2)
    plain, spread = Language(), parallel(Language(), mesh["tp"])
    for net in (plain, spread):
        net.head.weight = net.embed.weight
    fully_shard(spread, mesh=mesh["dp"])
    assert spread.head.weight is spread.embed.weight
    Twins(plain, spread, share=(mesh["dp"].get_local_rank(), 2), **PHASE).train()


def small_states_over_tensor_parallel_have_the_bits_of_one_process():
    mesh = mesh_of(2, 2)
    for state, rounding in (("compact", "stochastic"), ("bfloat16", "remainder")):
        plain, spread = Language().bfloat16(), parallel(Language().bfloat16(), mesh["tp"])
        fully_shard(spread, mesh=mesh["dp"])
        share = (mesh["dp"].get_local_rank(), 2)
        twins = Twins(plain, spread, share=share, state=state, rounding=rounding, clip_norm=5.0)
        twins.set_weights(0)
        for step in range(3):
            for a, b in zip(plain.parameters(), spread.parameters(), strict=True):
                gradient = whole_numbers(a.shape, 50 * step + a.numel()).bfloat16()
                a.grad = gradient
                b.grad = distribute_tensor(
                    gradient, b.device_mesh, b.placements, src_data_rank=None
                )
            twins.step()
            twins.compare((state, step))


def hsdp_counts_no_replica_twice():
    mesh = mesh_of(2, 2, names=("replicate", "shard"))
    spread = fully_shard(Language(), mesh=mesh)
    assert placements(spread) == {Replicate, Shard}
    Twins(Language(), spread, share=(dist.get_rank(), 4), **PHASE).train()


def hsdp_replicas_are_equal_after_fifty_stochastic_steps():
    mesh = mesh_of(2, 2, names=("replicate", "shard"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)).bfloat16()
    fully_shard(net, mesh=mesh)
    options = {"clip_norm": 0.1, "on_nonfinite": "skip", "ema": 0.9}
    optimizer = ours.AdamW(
        net.parameters(), lr=0.01, state="8bit", rounding="stochastic", **options
    )
    for step in range(50):
        seed = 100 * step + dist.get_rank()  # each process has examples of its own
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)).bfloat16()
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    own = [here(p) for p in net.parameters()]
    kept = (value for state in optimizer.state.values() for value in state.values())
    own += [here(value).float() for value in kept if isinstance(value, torch.Tensor)]
    group = mesh["replicate"].get_group()
    for each in own:
        others = [torch.empty_like(each) for _ in range(2)]
        dist.all_gather(others, each.contiguous(), group=group)
        assert torch.equal(*others)
    assert optimizer.skipped == 0
    assert any(not torch.equal(here(p), torch.zeros_like(here(p))) for p in net.parameters())


def two_meshes_and_plain_tensors(groups):
    """Yield parameters on two meshes and plain ones, as one process has them and as this one."""
    flat, square = mesh_of(4), mesh_of(2, 2)
    ways = [
        (flat, [Shard(0)]),
        (square, [Replicate(), Shard(0)]),
        (square, [Shard(0), Replicate()]),
        (square["tp"], [Shard(1)]),
        (square, [_StridedShard(0, split_factor=2), Shard(0)]),
        (flat, [Replicate()]),
        None,
        None,
    ]
    values = [whole_numbers((8, 6), i) for i in range(len(ways))]
    plain = [nn.Parameter(value.clone()) for value in values]
    spread = [
        nn.Parameter(
            value.clone()
            if way is None
            else distribute_tensor(value.clone(), *way, src_data_rank=None)
        )
        for value, way in zip(values, ways, strict=True)
    ]
    order = (6, 0, 1, 2, 7, 3, 4, 5)
    halves = [order] if groups == 1 else [order[:3], order[3:]]

    def optimizer(tensors):
        params = [{"params": [tensors[i] for i in half]} for half in halves]
        return ours.AdamW(params, lr=0.25, **PHASE)

    optimizers = [optimizer(plain), optimizer(spread)]
    for step in range(4):
        for i, (a, b) in enumerate(zip(plain, spread, strict=True)):
            a.grad = b.grad = None
            if (i + step) % 3 == 0:
                continue
            a.grad = whole_numbers(a.shape, 10 * step + i)
            b.grad = a.grad.clone()
            if isinstance(b, DTensor):
                b.grad = distribute_tensor(b.grad, b.device_mesh, b.placements, src_data_rank=None)
        if step == 2:  # a NaN that one process alone has
            a, b = plain[0], spread[0]
            a.grad, b.grad = torch.zeros_like(a), torch.zeros_like(b)
            a.grad[-1] = math.nan
            if dist.get_rank() == 3:
                b.grad.to_local()[-1] = math.nan
        for each in optimizers:
            each.step()
        if step != 2:
            assert optimizers[0].gradient_norm == optimizers[1].gradient_norm, step
        assert [each.skipped for each in optimizers] == [int(step >= 2)] * 2
        for i, (a, b) in enumerate(zip(plain, spread, strict=True)):
            assert_same(a, b, (i, step))


def one_optimizer_takes_two_meshes_and_plain_tensors():
    two_meshes_and_plain_tensors(groups=2)


def one_group_takes_two_meshes_and_plain_tensors():
    two_meshes_and_plain_tensors(groups=1)


def a_mesh_of_some_processes_is_clipped_with_a_clip_group():
    some, flat = DeviceMesh("cpu", [0, 1]), mesh_of(4)
    values, gradients = whole_numbers((6, 4), 0), whole_numbers((6, 4), 1)
    whole = [nn.Parameter(values.clone()) for _ in range(2)]

    def on(mesh, tensor):
        return distribute_tensor(tensor.clone(), mesh, [Shard(0)])

    parts = [nn.Parameter(on(mesh, values)) for mesh in (some, flat)]
    for a, b in zip(whole, parts, strict=True):
        a.grad, b.grad = gradients.clone(), on(b.device_mesh, gradients)
    if dist.get_rank() > 1:
        optimizer = ours.AdamW(parts, lr=0.25, **PHASE)
        with pytest.raises(ValueError, match=r"0\.0 lies on the processes \[0, 1\], not on"):
            optimizer.step()
        assert not optimizer.state
    groups = [{"params": parts[:1], "clip_group": dist.group.WORLD}, {"params": parts[1:]}]
    optimizers = [ours.AdamW(each, lr=0.25, **PHASE) for each in (whole, groups)]
    for _ in range(2):
        for each in optimizers:
            each.step()
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
    assert_same(whole[1], parts[1], "the mesh of all")
    if dist.get_rank() < 2:
        assert_same(whole[0], parts[0], "the mesh of some")
    parts[0].grad.to_local()[:1] = math.nan  # of no element where this process has none
    optimizers[1].step()
    assert optimizers[1].skipped == 1


def statistics_are_of_whole_tensors():
    mesh = mesh_of(2, 2)
    spread = parallel(Language(), mesh["tp"])
    for part in (spread.up, spread):
        fully_shard(part, mesh=mesh["dp"])
    share = (mesh["dp"].get_local_rank(), 2)
    twins = Twins(Language(), spread, share=share, statistics=True, **PHASE)
    for step in range(2):
        twins.set_weights(step)
        twins.backward(step)
        twins.step()
        one, other = (optimizer.statistics() for optimizer in twins.optimizers)
        assert one == other, step
        assert len(one) >= 6 * 7


def fsdp1(net, **options):
    for name in ("up", "down"):
        setattr(net, name, FullyShardedDataParallel(getattr(net, name), **options))
    return FullyShardedDataParallel(net, **options)


def fsdp1_is_clipped_as_one_model_by_its_process_group():
    """Parts of flat parameters are plain tensors, of which each process has other ones."""
    rank = dist.get_rank()
    for use_orig_params in (False, True):
        plain = Language()
        spread = fsdp1(Language(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
        alone = ours.AdamW(spread.parameters(), **OF_FLAT_PARTS)
        for p in spread.parameters():
            p.grad = torch.ones_like(p)
        with pytest.raises(ValueError, match=r"clip_group=model\.process_group"):
            alone.step()
        text = r"^0\.0 is a part of a flat parameter .* leave clip_update out\.$"
        with pytest.raises(ValueError, match=text):
            ours.AdamW(spread.parameters(), clip_group=spread.process_group, **PHASE).step()
        one = ours.AdamW(plain.parameters(), lr=0.25, **OF_FLAT_PARTS)
        other = ours.AdamW(
            spread.parameters(), lr=0.25, clip_group=spread.process_group, **OF_FLAT_PARTS
        )
        pair = Twins(plain, spread, share=(rank, 4))
        pair.optimizers = [one, other]
        summon = FullyShardedDataParallel.summon_full_params
        for step in range(3):
            with summon(spread):
                pair.set_weights(step)
            pair.backward(step)
            pair.step()
            assert one.gradient_norm == other.gradient_norm, step
            assert one.gradient_norm > 5
            with summon(spread, writeback=False):
                for a, b in zip(plain.parameters(), spread.parameters(), strict=True):
                    assert torch.equal(a, b), (use_orig_params, step)
        saved = FullyShardedDataParallel.optim_state_dict(spread, other)
        if rank or use_orig_params:  # for which torch 2.13 takes one entry for another, on CPUs
            continue
        for name, p in plain.named_parameters():
            for entry, value in one.state[p].items():
                assert torch.equal(saved["state"][name][entry], value), (name, entry)


def fsdp1_without_shards_needs_no_group():
    for use_orig_params in (False, True):
        spread = fsdp1(
            Language(),
            device_id=torch.device("cpu"),
            use_orig_params=use_orig_params,
            sharding_strategy=ShardingStrategy.NO_SHARD,
        )
        optimizer = ours.AdamW(spread.parameters(), lr=0.25, **OF_FLAT_PARTS)
        spread(torch.arange(4).view(1, 4)).sum().backward()
        squares = sum(p.grad.double().square().sum().item() for p in spread.parameters())
        optimizer.step()
        assert math.isclose(optimizer.gradient_norm, math.sqrt(squares), rel_tol=1e-12)


CASES = (
    fsdp2_has_the_bits_of_one_process,
    tensor_parallel_with_partial_gradients_has_the_bits_of_one_process,
    fsdp2_over_tensor_parallel_has_the_bits_of_one_process,
    fsdp2_over_tensor_parallel_takes_tied_weights,
    small_states_over_tensor_parallel_have_the_bits_of_one_process,
    hsdp_counts_no_replica_twice,
    hsdp_replicas_are_equal_after_fifty_stochastic_steps,
    one_optimizer_takes_two_meshes_and_plain_tensors,
    one_group_takes_two_meshes_and_plain_tensors,
    a_mesh_of_some_processes_is_clipped_with_a_clip_group,
    statistics_are_of_whole_tensors,
    fsdp1_is_clipped_as_one_model_by_its_process_group,
    fsdp1_without_shards_needs_no_group,
)
