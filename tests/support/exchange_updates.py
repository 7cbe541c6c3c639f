"""Checks of processes that clip updates of whole tensors, for ``exchange_program.py``."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard

import adamas.torch as ours
from tests.support.torch_routes import standing_in

__all__ = ["check_updates", "check_updates_of_grids", "sent"]

#: Bytes of a row of digits.
ROW = 728
OPTIONS = {"lr": 0.01, "clip_update": 0.5, "weight_decay": 0.1}
SHAPES = ((1, 5), (3, 5), (7, 5), (64, 33), (), (0, 3), (6,), (8, 4))


def drawn(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cut(whole, mesh, *placements):
    return distribute_tensor(whole.clone(), mesh, placements, src_data_rank=None)


def here(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def laid_out(whole, like):
    """Return a tensor that all processes have, laid out as another."""
    if not isinstance(like, DTensor):
        return whole.detach().clone()
    return cut(whole.detach(), like.device_mesh, *like.placements)


@contextmanager
def sent():
    """Count the bytes of all-reduces, and refuse what pickles."""
    found = []
    all_reduce, gather = dist.all_reduce, dist.all_gather_object

    def counted(tensor, *args, **options):
        found.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *args, **options)

    def refused(*_args, **_options):
        raise AssertionError("A step has pickled something.")

    dist.all_reduce, dist.all_gather_object = counted, refused
    try:
        yield found
    finally:
        dist.all_reduce, dist.all_gather_object = all_reduce, gather


def gradient_of(p, step, seed):
    """Gradients that outgrow what is kept of them, of every second tensor."""
    return drawn(p.shape, 100 * step + seed, 8.0**step if seed % 2 else 1.0).to(p.dtype)


def pair_of(values, ways, mesh, **options):
    """The same optimizer of whole tensors and of parts."""
    whole = [nn.Parameter(each.clone()) for each in values]
    parts = [
        nn.Parameter(each.clone() if way is None else cut(each, mesh, *way))
        for each, way in zip(values, ways, strict=True)
    ]
    return ours.AdamW(whole, **OPTIONS, **options), ours.AdamW(parts, **OPTIONS, **options)


def parameters(optimizer):
    return optimizer.param_groups[0]["params"]


def step_both(pair, step):
    """Step both along the same gradients; all is as of whole tensors."""
    for i, (p, q) in enumerate(zip(*map(parameters, pair), strict=True)):
        p.grad = gradient_of(p, step, i)
        q.grad = laid_out(p.grad, q)
    for optimizer in pair:
        optimizer.step()
    for i, (p, q) in enumerate(zip(*map(parameters, pair), strict=True)):
        assert torch.equal(here(q), here(laid_out(p, q))), (i, step)


def check_routes(mesh, values, ways):
    """All routes, alone and side by side, with all else that goes on in a step."""
    more = {"clip_norm": 3.0, "on_nonfinite": "skip", "ema": 0.9, "statistics": True}
    for route, options in (
        ("native", {}),
        ("native", more),
        ("native", {"engine": "torch"}),
        ("native", {"engine": "torch", **more}),
        ("offload late", {"offload": True}),
        ("offload late", {"offload": True, "state": "compact", **more}),
    ):
        with standing_in(route):
            pair = pair_of(values, ways, mesh, **options)
            for step in range(3):
                step_both(pair, step)
                if "statistics" in options:
                    one, other = (optimizer.statistics() for optimizer in pair)
                    assert all(torch.equal(one[name], other[name]) for name in one)


def check_updates(mesh):
    """Parts of any size are clipped as whole tensors are, whoever has no gradient."""
    values = [drawn(shape, i) for i, shape in enumerate(SHAPES)]
    ways = [[Shard(0)] if each.ndim else [Replicate()] for each in values]
    ways[-1] = None  # a plain one
    check_routes(mesh, values, ways)
    check_several_routes(mesh)
    check_absent(mesh)
    check_gone(mesh)
    check_one_nan(mesh)
    check_messages(mesh)
    check_set_between_steps(mesh)
    check_scaler(mesh)


def check_several_routes(mesh):
    """One that is strided is stepped by torch's operations, beside others by the native engine.

    But for a process that has nothing of it.
    """
    values = [drawn((6, 5), i) for i in range(4)]
    for more in ({}, {"clip_norm": 3.0, "on_nonfinite": "skip"}):
        pair = pair_of(values, [[Shard(0)], [Shard(0)], None, [Shard(0)]], mesh, **more)
        turned = cut(values[1].t().contiguous(), mesh, Shard(1)).t()
        parameters(pair[1])[1] = nn.Parameter(turned)
        for step in range(3):
            step_both(pair, step)
        routes = {"native", "torch"} if here(turned).numel() else {"native"}
        assert set(pair[1].routes().values()) == routes


def check_absent(mesh):
    """A process without a gradient, of one or of all, takes part; its elements count as zeros."""
    rank, count = dist.get_rank(), dist.get_world_size()
    for options in ({}, {"engine": "torch"}, {"clip_norm": 1.0}):
        pair = pair_of([drawn((8, 3), i) for i in range(2)], [[Shard(0)]] * 2, mesh, **options)
        whole, parts = map(parameters, pair)
        lacking = 8 // count  # rows of the first process
        for step in range(3):
            for i, (p, q) in enumerate(zip(whole, parts, strict=True)):
                p.grad = gradient_of(p, step, i)
                p.grad[:lacking] = 0
                q.grad = None if rank == 0 else laid_out(p.grad, q)
            for optimizer in pair:
                optimizer.step()
            if rank > 0:
                for p, q in zip(whole, parts, strict=True):
                    assert torch.equal(here(q), here(laid_out(p, q))), (step, options)
        if rank == 0:
            assert not pair[1].state


def check_gone(mesh):
    """A process that has gradients at one step and none at the next takes part once in each."""
    rank, count = dist.get_rank(), dist.get_world_size()
    for options in ({}, {"engine": "torch"}, {"clip_norm": 1.0}):
        pair = pair_of([drawn((8, 3), i) for i in range(2)], [[Shard(0)]] * 2, mesh, **options)
        for step in range(2):
            for i, (p, q) in enumerate(zip(*map(parameters, pair), strict=True)):
                p.grad = gradient_of(p, step, i)
                p.grad[: 8 // count] *= 1 - step
                q.grad = None if rank == 0 and step == 1 else laid_out(p.grad, q)
            with sent() as messages:
                pair[1].step()
            assert messages == [ROW, 2 * ROW][0 if "clip_norm" in options else 1 :], options
            pair[0].step()
            if rank > 0 or step == 0:
                for p, q in zip(*map(parameters, pair), strict=True):
                    assert torch.equal(here(q), here(laid_out(p, q))), (step, options)


def check_one_nan(mesh):
    """What one process has is in the update of the whole tensor, and of no other."""
    pair = pair_of([drawn((8, 3), i) for i in range(2)], [[Shard(0)]] * 2, mesh)
    _, optimizer = pair
    first, second = parameters(optimizer)
    for p in (first, second):
        p.grad = laid_out(torch.ones(8, 3), p)
    if dist.get_rank() == dist.get_world_size() - 1:
        here(first.grad)[-1, -1] = math.nan
    optimizer.step()
    assert here(first).isnan().all()
    assert here(second).isfinite().all()


def check_messages(mesh):
    """One message for all tensors that are cut, a row for each; nothing where it is not asked."""
    ways = [[Shard(0)], None, [Replicate()], [Shard(0)]]
    for options, expected in (
        ({"clip_update": None}, []),
        ({}, [2 * ROW]),
        ({"engine": "torch"}, [2 * ROW]),
        ({"clip_norm": 1.0, "clip_update": None}, [ROW]),
        ({"clip_norm": 1.0}, [ROW, 2 * ROW]),
    ):
        values = [drawn((8, 3), i) for i in range(len(ways))]
        _, optimizer = pair_of(values, ways, mesh)
        optimizer = ours.AdamW(parameters(optimizer), **OPTIONS | options)
        for step in range(3):
            for i, p in enumerate(parameters(optimizer)):
                p.grad = laid_out(gradient_of(values[i], step, i), p)
            with sent() as messages:
                optimizer.step()
            assert messages == expected, (options, step)


def check_set_between_steps(mesh):
    """It may be set in a run in which nothing was shared before."""
    pair = pair_of([drawn((8, 3), i) for i in range(2)], [[Shard(0)]] * 2, mesh)
    for step, bound in enumerate((None, 0.5, None, 0.25, 0.5)):
        for optimizer in pair:
            optimizer.clip_update = bound
        step_both(pair, step)


def check_scaler(mesh):
    """What a GradScaler has found in one process alone leaves the step out in all of them."""
    pair = pair_of([drawn((8, 3), i) for i in range(2)], [[Shard(0)]] * 2, mesh)
    before = [here(p).clone() for p in parameters(pair[1])]
    for found in (1.0, 0.0):
        for i, (p, q) in enumerate(zip(*map(parameters, pair), strict=True)):
            p.grad = gradient_of(p, 1, i)
            q.grad = laid_out(4.0 * p.grad, q)
        pair[1].grad_scale = torch.tensor(4.0)
        pair[1].found_inf = torch.tensor(found) if dist.get_rank() == 0 else 0
        pair[1].step()
        if found:
            assert all(map(torch.equal, map(here, parameters(pair[1])), before))
    pair[0].step()
    for p, q in zip(*map(parameters, pair), strict=True):
        assert torch.equal(here(q), here(laid_out(p, q)))


def check_updates_of_grids(mesh):
    """Replicas are counted once, tensors cut twice are whole: a message for each group."""
    ways = [
        [Replicate(), Shard(0)],
        [Shard(0), Shard(1)],
        [Shard(0), Shard(0)],
        [_StridedShard(0, split_factor=2), Shard(0)],
        [Replicate(), Replicate()],
        None,
    ]
    values = [drawn((8, 6), i) for i in range(len(ways))]
    check_routes(mesh, values, ways)
    pair = pair_of(values, ways, mesh)
    for step in range(2):
        with sent() as messages:
            step_both(pair, step)
        assert messages == [3 * ROW, 4 * ROW], messages
    pair = pair_of(values[:1], ways[:1], mesh)  # HSDP
    with sent() as messages:
        step_both(pair, 0)
    assert messages == [ROW]
    share = DTensor.from_local(torch.ones(2), mesh, [Partial()] * 2, run_check=False)
    with pytest.raises(TypeError, match=r"^A parameter has the placement P"):
        ours.AdamW([nn.Parameter(share)], **OPTIONS)
