"""Steps of DTensors on the CPU: what is stepped natively, and what is seen between two steps."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._functional_collectives import all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import adamas.torch as ours
from adamas.torch import parts
from adamas.torch.routes import native

SHAPES = ((6, 4), (5,), (0, 3), ())


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def drawn(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cut(value, mesh, placement=None):
    placement = placement or (Shard(0) if value.ndim else Replicate())
    return DTensor.from_local(value, mesh, [placement], run_check=False)


class Pair:
    """Parameters as plain tensors and as DTensors, which are stepped alike."""

    def __init__(self, mesh, dtype=torch.float32, shapes=SHAPES, **options):
        self.mesh, self.dtype = mesh, dtype
        values = [drawn(shape, i, dtype) for i, shape in enumerate(shapes)]
        self.plain = [nn.Parameter(value.clone()) for value in values]
        self.spread = [nn.Parameter(cut(value.clone(), mesh)) for value in values]
        self.optimizers = [
            ours.AdamW(each, lr=0.1, **options) for each in (self.plain, self.spread)
        ]
        self.steps = 0

    def give(self):
        self.steps += 1
        for i, (p, q) in enumerate(zip(self.plain, self.spread, strict=True)):
            p.grad = drawn(p.shape, 100 * self.steps + i, self.dtype)
            q.grad = cut(p.grad.clone(), self.mesh)

    def step(self, route="native"):
        for optimizer in self.optimizers:
            optimizer.step()
        assert {*self.optimizers[1].routes().values()} == {route}
        self.compare()

    def compare(self):
        for p, q in zip(self.plain, self.spread, strict=True):
            assert torch.equal(p, q.to_local())
            kept, others = (
                optimizer.state[each]
                for optimizer, each in zip(self.optimizers, (p, q), strict=True)
            )
            assert kept.keys() == others.keys()
            for name, entry in kept.items():
                if isinstance(entry, torch.Tensor):
                    assert torch.equal(entry, parts.local(others[name])), name
        assert self.optimizers[0].gradient_norm == self.optimizers[1].gradient_norm


OPTIONS = {
    "float32": {},
    "the phase": {"clip_norm": 0.5, "on_nonfinite": "skip", "ema": 0.9, "statistics": True},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
    "bfloat16": {"dtype": torch.bfloat16},
    "stochastic": {"dtype": torch.bfloat16, "rounding": "stochastic", "state": "8bit"},
    "remainder": {"dtype": torch.bfloat16, "rounding": "remainder", "copy_to": torch.float16},
    "float64": {"dtype": torch.float64, "ema": 0.5},
    "compact": {"state": "compact", "clip_norm": 1.0},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_dtensors_are_stepped_natively_with_the_bits_of_plain_tensors(mesh, options):
    pair = Pair(mesh, **options)
    for _ in range(3):
        pair.give()
        pair.step()


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.5}, {"statistics": True}])
def test_a_plan_for_dtensors_serves_step_after_step(mesh, options, monkeypatch):
    made = []

    def plan(*given, **named):
        made.append(1)
        return made_plan(*given, **named)

    made_plan = native.TensorPlan
    monkeypatch.setattr(native, "TensorPlan", plan)
    p = nn.Parameter(cut(torch.ones(3), mesh))
    optimizer = ours.AdamW([p, nn.Parameter(torch.ones(2))], **options)
    for i in range(5):
        p.grad = cut(torch.full((3,), float(i)), mesh)
        optimizer.step()
    assert len(made) == 1


# ── what changes between two steps ─────────────────────────────────────────────────────────────


def swap_a_part(p, state):
    p._local_tensor = p._local_tensor.clone()


def put_another_spec(p, state):
    p._spec = cut(torch.zeros(p.shape), p.device_mesh)._spec


def swap_the_part_of_an_entry(p, state):
    state["exp_avg"]._local_tensor = state["exp_avg"]._local_tensor.clone()


def replace_an_entry(p, state):
    state["exp_avg_sq"] = state["exp_avg_sq"].clone()


def swap_wrappers(p, state):
    other = nn.Parameter(p.detach().clone())
    other.grad = p.grad
    state_before, p.grad = p.grad, None
    other.grad = None
    torch.utils.swap_tensors(p, other)
    p.grad = state_before


def give_a_gradient_without_a_wrapper_of_its_own(p, state):
    p.grad = DTensor(p.grad._local_tensor, p._spec, requires_grad=False)


def give_replicas_as_gradient(p, state):
    p.grad = cut(p.grad.to_local(), p.device_mesh, Replicate())


def give_a_sum_to_be_made(p, state):
    p.grad = cut(p.grad.to_local(), p.device_mesh, Partial())


def give_a_gradient_that_is_on_its_way(p, state):
    p.grad._local_tensor = all_reduce(p.grad.to_local(), "sum", p.device_mesh)


def give_a_gradient_that_steps_over_memory(p, state):
    part = torch.empty(4, 6).T.copy_(p.grad.to_local())
    p.grad._local_tensor = part


CHANGES = [
    swap_a_part,
    put_another_spec,
    swap_the_part_of_an_entry,
    replace_an_entry,
    swap_wrappers,
    give_a_gradient_without_a_wrapper_of_its_own,
    give_replicas_as_gradient,
    give_a_sum_to_be_made,
    give_a_gradient_that_is_on_its_way,
]


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}], ids=["bare", "clipped"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_step_sees_what_was_changed_before_it(mesh, change, options):
    pair = Pair(mesh, shapes=[(6, 4), (5,)], **options)
    for step in range(5):
        pair.give()
        if step in (2, 3):
            p = pair.spread[0]
            change(p, pair.optimizers[1].state[p])
        pair.step()


def test_a_part_that_is_not_contiguous_is_stepped_by_torchs_operations(mesh):
    pair = Pair(mesh, shapes=[(6, 4)])
    for step in range(4):
        pair.give()
        if step == 2:
            give_a_gradient_that_steps_over_memory(pair.spread[0], None)
        pair.step("torch" if step == 2 else "native")


def test_a_gradient_laid_out_otherwise_stays_in_its_place(mesh):
    pair = Pair(mesh, shapes=[(6, 4)])
    for _ in range(3):
        pair.give()
        give_a_sum_to_be_made(pair.spread[0], None)
        given = pair.spread[0].grad
        pair.step()
        assert pair.spread[0].grad is given


def test_gradients_in_turn_and_groups_of_both_kinds_go_on_by_one_plan(mesh):
    pair = Pair(mesh, shapes=[(6, 4), (5,), (3,)])
    for turn in ((0, 1, 2), (0,), (1, 2), (), (0, 1, 2)):
        pair.give()
        for i in {0, 1, 2}.difference(turn):
            pair.plain[i].grad = pair.spread[i].grad = None
        for optimizer in pair.optimizers:
            optimizer.step()
        assert [*pair.optimizers[1].routes()] == [f"0.{i}" for i in turn]
        pair.compare()


def test_a_step_between_forward_and_backward_is_told_as_torch_tells_it(mesh):
    for made in (ours.AdamW, torch.optim.AdamW):
        p = nn.Parameter(cut(drawn((3, 2), 0), mesh))
        p.grad = cut(drawn((3, 2), 1), mesh)
        optimizer = made([p])
        for _ in range(2):
            loss = (p * p).sum()
            version = p._version
            optimizer.step()
            assert p._version > version
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.to_local().backward()


# ── models ─────────────────────────────────────────────────────────────────────────────────────


def made_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for half in drawn((8, 8), step).chunk(2):  # gradients add up
            model(half).square().mean().backward()
        optimizer.step()


def same(model, sharded):
    for p, q in zip(model.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(p, q.to_local())


@pytest.mark.parametrize("policy", [{}, {"offload_policy": CPUOffloadPolicy(pin_memory=False)}])
def test_fsdp2_is_stepped_natively_with_and_without_its_offload_to_the_cpu(mesh, policy):
    plain, sharded = made_model(), fully_shard(made_model(), mesh=mesh, **policy)
    options = {"lr": 0.1, "clip_norm": 0.05}
    pairs = [(net, ours.AdamW(net.parameters(), **options)) for net in (plain, sharded)]
    for net, optimizer in pairs:
        train(net, optimizer, 4)
    assert {*pairs[1][1].routes().values()} == {"native"}
    same(plain, sharded)


def give_memory_anew(net):
    values = [p.to_local().clone() for p in net.parameters()]
    net.to_empty(device="cpu")
    for p, value in zip(net.parameters(), values, strict=True):
        with torch.no_grad():
            p.to_local().copy_(value)


def load_by_assigning(net):
    net.load_state_dict({k: v.detach().clone() for k, v in net.state_dict().items()}, assign=True)


@pytest.mark.parametrize("change", [give_memory_anew, load_by_assigning])
def test_a_sharded_model_with_other_memory_goes_on(mesh, change):
    nets = [made_model(), fully_shard(made_model(), mesh=mesh)]
    optimizers = [ours.AdamW(net.parameters(), lr=0.1) for net in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 2)
    change(nets[1])
    if change is load_by_assigning:  # whose parameters are others: as accelerate gives them
        pairs = zip(optimizers[1].param_groups[0]["params"], nets[1].parameters(), strict=True)
        for old, new in list(pairs):
            if old is not new:
                optimizers[1].state[new] = optimizers[1].state.pop(old)
        optimizers[1].param_groups[0]["params"] = list(nets[1].parameters())
    for net, optimizer in zip(nets, optimizers, strict=True):
        train(net, optimizer, 2, first=2)
    assert {*optimizers[1].routes().values()} == {"native"}
    same(*nets)


def test_optimizers_in_hooks_step_dtensors_while_gradients_are_made(mesh):
    nets = [made_model(), fully_shard(made_model(), mesh=mesh)]
    for net in nets:
        for p in net.parameters():
            optimizer = ours.AdamW([p], lr=0.1)

            def step(p, optimizer=optimizer):
                optimizer.step()
                p.grad = None

            p.register_post_accumulate_grad_hook(step)
        for i in range(3):
            net(drawn((8, 8), i)).square().mean().backward()
        assert all(p.grad is None for p in net.parameters())
    same(*nets)


def resident():
    """Return how many bytes of memory the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    "placement", [Shard(0), pytest.param(Replicate(), marks=pytest.mark.slow)], ids=str
)
def test_a_thousand_steps_leave_no_objects_and_no_memory_behind(mesh, placement):
    params = [nn.Parameter(cut(drawn((6, 4), i), mesh)) for i in range(4)]
    optimizers = [ours.AdamW(params, lr=0.01), ours.AdamW(params, lr=0.01, clip_norm=1.0)]
    value = drawn((6, 4), 9)

    def steps(count):
        for _ in range(count):
            for i, p in enumerate(params):
                p.grad = cut(value, mesh, Shard(0) if i else placement)
            for optimizer in optimizers:
                optimizer.step()
            for p in params:
                p.grad = None

    steps(100)
    gc.collect()
    objects, before = len(gc.get_objects()), resident()
    steps(1000)
    gc.collect()
    assert len(gc.get_objects()) - objects < 50
    assert resident() - before < 2**21
