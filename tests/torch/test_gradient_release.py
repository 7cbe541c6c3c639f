"""Steps within the backward pass, each parameter as soon as its gradient is there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adamas.torch as ours
from tests.support.processes import run_in_two
from tests.support.torch_bits import everything

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"state": "bfloat16"},
    "compact": {"state": "compact"},
    "8bit": {"state": "8bit"},
    "average": {"ema": 0.9, "weight_decay": 0.1},
    "copies": {"copy_to": torch.bfloat16},
    "amsgrad": {"amsgrad": True},
    "clipped updates": {"clip_update": 0.5},
    "remainder": {"state": "8bit", "rounding": "remainder"},
    "torch's operations": {"state": "8bit", "engine": "torch"},
}


class Net(nn.Module):
    """A chain of layers, of which the first and the last share their weight."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(40, 40, dtype=dtype) for _ in range(3))
        self.layers[2].weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def released(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    def step_and_free(parameter: Tensor) -> None:
        optimizer.step()
        parameter.grad = None

    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(step_and_free)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_steps_within_the_backward_pass_have_the_bits_of_steps_after_it(options):
    dtype = torch.bfloat16 if options.get("rounding") == "remainder" else torch.float32
    after = []
    for is_released in (False, True):
        net = Net(dtype)
        optimizer = ours.AdamW(net.parameters(), lr=0.01, **options)
        if is_released:
            released(net, optimizer)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        for step in range(3):
            net(torch.full((4, 40), 0.5 + step, dtype=dtype)).backward()
            if not is_released:
                optimizer.step()
                optimizer.zero_grad()
            schedule.step()
        after.append((everything(optimizer), [copy.tolist() for copy in optimizer.copies]))
    assert after[0] == after[1]


def test_within_the_backward_pass_a_gradient_that_is_not_finite_leaves_out_its_tensor_alone():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    start = [p.detach().clone() for p in net.parameters()]
    net[1].bias.register_hook(lambda gradient: gradient * torch.nan)
    optimizer = ours.AdamW(net.parameters(), lr=0.01, on_nonfinite="skip")
    released(net, optimizer)
    net(torch.ones(2, 3)).sum().backward()
    moved = [not torch.equal(p, s) for p, s in zip(net.parameters(), start, strict=True)]
    assert moved == [True, True, True, False]
    assert optimizer.skipped == 1


#: FSDP2 runs the hooks when it has reduced a gradient.
SHARDED = """
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adamas.torch as ours

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))


def trained(is_released, options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    for module in (net[0], net[2], net):
        fully_shard(module, mesh=mesh)
    optimizer = ours.AdamW(net.parameters(), lr=0.1, **options)

    def step_and_free(parameter):
        optimizer.step()
        parameter.grad = None

    if is_released:
        for parameter in net.parameters():
            parameter.register_post_accumulate_grad_hook(step_and_free)
    for step in range(3):
        net(torch.full((4, 6), 1.0 + step + rank)).square().mean().backward()
        if not is_released:
            optimizer.step()
            optimizer.zero_grad()
    assert {int(each["step"]) for each in optimizer.state.values()} == {3}
    return [p.full_tensor() for p in net.parameters()]


for options in ({}, {"clip_update": 0.5}):
    assert all(map(torch.equal, trained(False, options), trained(True, options)))
dist.barrier()
os._exit(0)  # gloo's own threads sometimes abort an orderly end
"""


@pytest.mark.slow
def test_sharded_parameters_that_step_in_the_backward_pass_have_the_bits_of_steps_after_it(
    tmp_path,
):
    assert run_in_two(SHARDED, tmp_path) == [0, 0]
