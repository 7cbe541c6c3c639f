"""One process of three that train as engines have it: ``engines_program.py rank store``.

Each case trains a second model beside the engine's, with plain parameters, an optimizer of its own
and the gradients that the engine has come to; both end with the same bits, on all processes.
"""

from __future__ import annotations

import math
import os
import sys
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import adamas.torch as ours
from adamas.torch import functional, lists

#: Longer than all of it takes: where processes wait for one another in vain, they fail.
LIMIT = timedelta(seconds=300)
WORLD = 3
PHASE = {"clip_norm": 0.05, "on_nonfinite": "skip", "ema": 0.9}


def network(seed=0):
    torch.manual_seed(seed)
    # Dimensions that three processes do not share evenly: 7 as 3, 3 and 1; 2 as 1, 1 and none.
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))


def backward(net, step, rank):
    """Leave gradients of this process's own examples."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    loss = net(torch.randn(4, 5, generator=generator)).square().mean()
    loss.backward()


def whole(tensor):
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def whole_equal(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(whole(one), whole(two))
    return one == two


def give_gradients(twin, net):
    """Give a model the gradients of another, whole, and those that are missing, too."""
    for one, other in zip(twin.parameters(), net.parameters(), strict=True):
        one.grad = None if other.grad is None else whole(other.grad)


def check_same(net, twin, about):
    for (name, one), other in zip(twin.named_parameters(), net.parameters(), strict=True):
        assert torch.equal(one, whole(other)), (about, name)


def check_same_state(optimizer, net, other, twin):
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        one, two = optimizer.state[p], other.state[q]
        assert one.keys() == two.keys()
        for name in one:
            assert whole_equal(one[name], two[name]), name


# ── ZeRO ───────────────────────────────────────────────────────────────────────────────────────


def check_one_norm(rank, phase):
    """With ``clip_group`` the norm is that of all parameters; what one process has, all skip."""
    net, twin = network(), network()
    parallel = DistributedDataParallel(net)
    options = {"lr": 0.01, "clip_norm": 0.05, "on_nonfinite": "skip", **phase}
    optimizer, other = zero(net, ours.AdamW, options), plain(twin, ours.AdamW, options)
    # Set so, since ZeRO saves its arguments, and no process group can be pickled.
    optimizer.optim.clip_group = dist.group.WORLD

    def step(number):
        for each in (optimizer, other):
            each.zero_grad()
        backward(parallel, number, rank)
        if number == 2:  # of a parameter that one process steps
            net[0].weight.grad[0, 0] = math.nan
        give_gradients(twin, net)
        for each in (optimizer, other):
            each.step()
        check_same(net, twin, (options, number))
        if number != 2:
            assert optimizer.optim.gradient_norm == other.gradient_norm > 0.05

    for number in range(4):
        step(number)
    assert optimizer.optim.skipped == other.skipped == 1
    saved = consolidated(optimizer, rank)
    optimizer = zero(net, ours.AdamW, options)
    optimizer.optim.clip_group = dist.group.WORLD
    optimizer.load_state_dict(saved)
    for number in range(4, 6):
        step(number)


def zero(net, kind, options, **engine):
    """Return an optimizer over a model in two groups, the second of which is added."""
    optimizer = ZeroRedundancyOptimizer(net[0].parameters(), kind, **engine, **options)
    optimizer.add_param_group({"params": list(net[2].parameters()), "lr": 0.03})
    return optimizer


def plain(net, kind, options):
    groups = [{"params": list(net[0].parameters())}, {"params": list(net[2].parameters())}]
    groups[1]["lr"] = 0.03
    return kind(groups, **options)


def check_zero(rank, kind, options, judge=plain, **engine):
    """Each process has a part of the state; all of it goes to one, and from there to others."""
    net, twin = network(), network()
    parallel = DistributedDataParallel(net)
    optimizer, other = zero(net, kind, options, **engine), judge(twin, kind, options)

    def step(number):
        for each in (optimizer, other):
            each.zero_grad()
        backward(parallel, number, rank)
        give_gradients(twin, net)
        for each in (optimizer, other):
            each.step()
        check_same(net, twin, (kind, options, engine, number))

    for number in range(3):
        step(number)
    assert 0 < sum(map(bool, optimizer.optim.state.values())) < 4  # of four parameters: a part
    saved = consolidated(optimizer, rank)
    expected = consolidated(other, rank) if judge is zero else other.state_dict()
    assert saved["state"].keys() == expected["state"].keys()
    for i, entries in expected["state"].items():
        for name, entry in entries.items():
            assert torch.equal(saved["state"][i][name], entry), (i, name)
    optimizer = zero(net, kind, options, **engine)
    optimizer.load_state_dict(saved)
    for number in range(3, 6):
        step(number)


def consolidated(optimizer, rank):
    optimizer.consolidate_state_dict(to=1)
    saved = [optimizer.state_dict() if rank == 1 else None]
    dist.broadcast_object_list(saved, src=1)
    return saved[0]


def check_overlap_is_refused():
    """What torch has of its own optimizers only."""
    with pytest.raises(ValueError, match="no supported functional optimizer equivalent"):
        ZeroRedundancyOptimizer(network().parameters(), ours.AdamW, overlap_with_ddp=True)


# ── DDP ────────────────────────────────────────────────────────────────────────────────────────


def check_ddp(rank):
    """All processes have all parameters: the norm is that of one, and all skip alike."""
    net, twin = network(), network()
    parallel = DistributedDataParallel(net)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, **PHASE)
    other = ours.AdamW(twin.parameters(), lr=0.01, **PHASE)
    for step in range(5):
        optimizer.zero_grad()
        with parallel.no_sync():
            backward(parallel, 2 * step, rank)
        backward(parallel, 2 * step + 1, rank)
        if step == 3 and rank == 2:
            net[0].weight.grad[0, 0] = math.nan
        if step == 3:  # what one process has goes to all with the next sum
            dist.all_reduce(net[0].weight.grad)
        give_gradients(twin, net)
        optimizer.step()
        other.step()
        assert optimizer.gradient_norm == other.gradient_norm or step == 3
        check_same(net, twin, step)
    assert optimizer.skipped == other.skipped == 1
    norms = [None] * WORLD
    dist.all_gather_object(norms, optimizer.gradient_norm)
    assert norms == [other.gradient_norm] * WORLD


# ── FSDP2 ──────────────────────────────────────────────────────────────────────────────────────


def check_steps_after_accumulation(rank, mesh):
    """A step of each parameter when its gradient is there, which is then let go."""
    net, twin = network(), network()
    fully_shard(net, mesh=mesh)
    fully_shard(twin, mesh=mesh)
    options = {"lr": 0.01, "weight_decay": 0.1}
    optimizers = {p: ours.AdamW([p], **options) for p in net.parameters()}

    def step_one(p):
        optimizers[p].step()
        p.grad = None

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(step_one)
    other = ours.AdamW(twin.parameters(), **options)
    for step in range(3):
        other.zero_grad()
        for each in (net, twin):
            backward(each, step, rank)
        other.step()
        assert all(p.grad is None for p in net.parameters())
        check_same(net, nn.ParameterList(map(whole, twin.parameters())), step)


def check_state_that_moves(rank, mesh, options):
    """State is moved away and back between phases, as it is for inference on the same devices."""
    net, twin = network(), network()
    for each in (net, twin):
        fully_shard(each, mesh=mesh)
    optimizer, other = (ours.AdamW(each.parameters(), lr=0.01, **options) for each in (net, twin))

    def moved(entry, way):
        if way == 0:  # to a device, where it is another tensor
            return entry.clone()
        if way == 1:  # its memory elsewhere, the tensor as it was
            local = entry.to_local() if isinstance(entry, DTensor) else entry
            local.data = local.data.clone()
            return entry
        return entry.to("cpu", non_blocking=True)

    for step in range(7):
        for each, by in ((net, optimizer), (twin, other)):
            by.zero_grad()
            backward(each, step, rank)
            by.step()
        for state in optimizer.state.values():
            for name, entry in state.items():
                if isinstance(entry, torch.Tensor):
                    state[name] = moved(entry, step % 3)
        if step % 2:
            net.to("cpu")
        check_same(net, nn.ParameterList(map(whole, twin.parameters())), (options, step))
        check_same_state(optimizer, net, other, twin)


def check_waiting(rank, mesh):
    """Processes that wait for the norm of another sleep, and leave it the processors."""
    net = network()
    fully_shard(net, mesh=mesh)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, clip_norm=1.0)
    for step in range(2):
        backward(net, step, rank)
        dist.barrier()
        used, passed = time.process_time(), time.monotonic()
        if rank == 0 and step == 1:
            time.sleep(2.0)
        optimizer.step()
    # Who asked again and again would have used all of the time, or half of it beside three others.
    used, passed = time.process_time() - used, time.monotonic() - passed
    assert passed > 1.5
    assert used / passed < 0.25, (used, passed)


# ── accelerate ─────────────────────────────────────────────────────────────────────────────────


def accelerator(rank, **arguments):
    """Return an Accelerator of all processes, for FSDP2 where ``arguments`` say so.

    accelerate shards models on devices alone; what it does then needs none.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState

    for each in (AcceleratorState, GradientState, PartialState):
        each._shared_state.clear()
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # they have met already
    made = Accelerator(cpu=True, **arguments)
    assert made.num_processes == WORLD
    if "fsdp_plugin" in arguments:
        kind, plugin = DistributedType.FSDP, arguments["fsdp_plugin"]
        AcceleratorState._shared_state |= {"distributed_type": kind, "fsdp_plugin": plugin}
        PartialState._shared_state["distributed_type"] = kind
    return made


def check_accelerate(rank):
    """DDP with accumulated gradients, and a norm by accelerate or by the optimizer."""
    for by_optimizer in (False, True):
        phase = {"clip_norm": 0.05} if by_optimizer else {}
        net, twin = network(), network()
        other = ours.AdamW(twin.parameters(), lr=0.01, **phase)
        of_all = accelerator(rank, gradient_accumulation_steps=2)
        model, optimizer = of_all.prepare(net, ours.AdamW(net.parameters(), lr=0.01, **phase))
        for step in range(6):
            with of_all.accumulate(model):
                generator = torch.Generator().manual_seed(100 * step + rank)
                loss = model(torch.randn(4, 5, generator=generator)).square().mean()
                of_all.backward(loss)
                if of_all.sync_gradients and not by_optimizer:
                    of_all.clip_grad_norm_(model.parameters(), 0.05)
                give_gradients(twin, net)
                optimizer.step()
                optimizer.zero_grad()
            if of_all.sync_gradients:
                other.step()
            check_same(net, twin, (by_optimizer, step))
        assert other.state[twin[0].weight]["step"] == 3


def check_accelerates_fsdp2(rank):
    """``prepare`` puts parts into the groups of an optimizer that is there, new or stepped."""
    from accelerate import FullyShardedDataParallelPlugin

    for steps_before in (0, 2):
        net, twin = network(), network()
        other = ours.AdamW(twin.parameters(), lr=0.01, **PHASE)
        inner = ours.AdamW(net.parameters(), lr=0.01, **PHASE)
        for step in range(steps_before):
            backward(net, step, 0)
            inner.step()
            inner.zero_grad()
        before = list(net.parameters())
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=False
        )
        of_all = accelerator(rank, fsdp_plugin=plugin)
        model, optimizer = of_all.prepare(net, inner)
        twin.load_state_dict({name: whole(p) for name, p in model.named_parameters()})
        assert all(isinstance(p, DTensor) for p in inner.param_groups[0]["params"])
        for step in range(3):
            optimizer.zero_grad()
            backward(model, step, rank)
            if step == 1 and rank == 1:
                model[0].weight.grad.to_local().fill_(math.nan)
            give_gradients(twin, model)
            optimizer.step()
            other.step()
            check_same(model, twin, (steps_before, step))
        assert inner.skipped == other.skipped == 1
        if steps_before:  # accelerate leaves the state of what was taken out
            with pytest.raises(KeyError, match="but is in no group any more"):
                inner.state_dict()
            for p in before:
                del inner.state[p]
        assert inner.state_dict()["state"].keys() == {0, 1, 2, 3}


# ── functions ──────────────────────────────────────────────────────────────────────────────────

ADAM = {"lr": 0.01, "weight_decay": 0.1, "eps": 1e-8, "maximize": False}
BETAS = {"beta1": 0.9, "beta2": 0.999}
#: A function, its arguments, the class with its options, and the state in the order of arguments.
FUNCTIONS = (
    (
        *(functional.adamw, {**ADAM, **BETAS, "amsgrad": True}),
        *(ours.AdamW, {**ADAM, "amsgrad": True}),
        ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"),
    ),
    (
        *(functional.nadam, {**ADAM, **BETAS, "momentum_decay": 0.004}),
        *(ours.NAdam, {**ADAM, "momentum_decay": 0.004}),
        ("exp_avg", "exp_avg_sq", "mu_product", "step"),
    ),
    (
        functional.rmsprop,
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-8, "weight_decay": 0.1, "momentum": 0}
        | {"centered": False},
        *(ours.RMSprop, {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1}),
        ("square_avg", None, None, "step"),
    ),
    (
        functional.sgd,
        {"weight_decay": 0.1, "momentum": 0.9, "lr": 0.01, "dampening": 0, "nesterov": True}
        | {"maximize": False},
        *(ours.SGD, {"weight_decay": 0.1, "momentum": 0.9, "lr": 0.01, "nesterov": True}),
        ("momentum_buffer",),
    ),
)  # fmt: skip
LAYOUTS = ((Shard(0),), (Shard(1),), (Replicate(),), None)


def drawn(shape, seed, mesh, layout):
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return value if layout is None else distribute_tensor(value, mesh, layout, src_data_rank=None)


def check_functions(mesh):
    """Functions step parts as the classes do: in one native call, plain tensors beside them."""
    for function, arguments, kind, options, names in FUNCTIONS:
        lists.PREPARED.clear()
        shapes = [(5, 7), (2, 3), (1, 4), (3, 6)]
        cases = [(shape, layout) for shape in shapes for layout in LAYOUTS]
        params = [drawn(shape, i, mesh, layout) for i, (shape, layout) in enumerate(cases)]
        twins = [nn.Parameter(p.detach().clone()) for p in params]
        optimizer = kind(twins, **options)
        state = {name: [new_entry(name, p) for p in params] for name in names if name}
        versions = [p._version for p in params]
        is_scaled = function in (functional.adamw, functional.sgd)
        for step in range(4):
            grads = [
                drawn(
                    shape, 100 * step + i, mesh, (Replicate(),) if layout and step == 2 else layout
                )
                for i, (shape, layout) in enumerate(cases)
            ]
            for twin, gradient in zip(twins, grads, strict=True):
                twin.grad = gradient / 4 if is_scaled else gradient.clone()
            optimizer.step()
            scale = {"grad_scale": torch.tensor(4.0), "found_inf": torch.tensor(0.0)}
            kept = (state.get(name, []) for name in names)
            function(params, grads, *kept, **arguments, **(scale if is_scaled else {}))
            for i, (p, twin) in enumerate(zip(params, twins, strict=True)):
                assert torch.equal(whole(p), whole(twin)), (kind, step, cases[i])
                assert torch.equal(whole(grads[i]), whole(twin.grad))
                assert p._version > versions[i]
                for name, entries in state.items():
                    own = optimizer.state[twin][name]
                    assert type(entries[i]) is type(own)
                    assert torch.equal(whole(entries[i]), whole(own)), (kind, step, name)
        assert len(lists.PREPARED) == 1  # the plan of one native call, for the next


def new_entry(name, p):
    if name == "momentum_buffer":
        return None
    number = {"step": 0.0, "mu_product": 1.0}.get(name)
    return torch.zeros_like(p) if number is None else torch.tensor(number)


def check_functions_refuse(mesh):
    """What is laid out otherwise is refused in words, before anything is touched."""
    shape = (6, 6)
    flat = init_device_mesh("cpu", (WORLD,), mesh_dim_names=("other",))
    p, plain_one = (drawn(shape, 0, mesh, each) for each in ((Shard(0),), None))

    def step(**other):
        given = {"params": p, "grads": drawn(shape, 1, mesh, (Shard(0),))}
        given |= {name: torch.zeros_like(p) for name in ("exp_avgs", "exp_avg_sqs")} | other
        steps = torch.tensor(0.0)
        functional.adamw(
            *([each] for each in given.values()), [], [steps], **ADAM, **BETAS, amsgrad=False
        )

    before = whole(p)
    across = drawn(shape, 0, mesh, (Shard(1),))
    with pytest.raises(ValueError, match=r"^exp_avgs\[0\] is laid out as \(Shard\(dim=1\),\) over"):
        step(exp_avgs=across)
    elsewhere = drawn(shape, 0, flat, (Shard(0),))
    with pytest.raises(ValueError, match=r"^exp_avg_sqs\[0\] is laid out as .* over .*other"):
        step(exp_avg_sqs=elsewhere)
    with pytest.raises(
        ValueError, match=r"^The gradient of params\[0\] is sharded over .* same mesh"
    ):
        step(grads=elsewhere)
    for name in ("grads", "exp_avgs"):
        with pytest.raises(
            TypeError, match=r"is a Tensor, but .* DTensor. Distribute both or neither"
        ):
            step(**{name: plain_one})
    with pytest.raises(TypeError, match=r"is a DTensor, but .* Tensor. Distribute both or neither"):
        step(params=plain_one)
    assert torch.equal(whole(p), before)
    step()
    assert not torch.equal(whole(p), before)


def main():
    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD, timeout=LIMIT
    )
    mesh = init_device_mesh("cpu", (WORLD,))
    check_zero(rank, ours.AdamW, {"lr": 0.01, "weight_decay": 0.1})
    check_zero(rank, ours.AdamW, {"lr": 0.01, "ema": 0.9}, parameters_as_bucket_view=True)
    # Stochastic rounding goes by a parameter's place in the optimizer that steps it.
    check_zero(rank, ours.AdamW, {"lr": 0.01, "state": "8bit"}, judge=zero)
    check_zero(rank, ours.SGD, {"lr": 0.01, "momentum": 0.9})
    check_one_norm(rank, {})
    check_one_norm(rank, {"ema": 0.9, "statistics": True})
    check_overlap_is_refused()
    check_ddp(rank)
    check_steps_after_accumulation(rank, mesh)
    check_state_that_moves(rank, mesh, PHASE)
    check_state_that_moves(rank, mesh, {"state": "8bit"})
    check_waiting(rank, mesh)
    check_functions(mesh)
    check_functions_refuse(mesh)
    check_accelerate(rank)
    check_accelerates_fsdp2(rank)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
