"""Parts of distributed tensors on devices that Triton serves, and offloaded from there."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

import adamas.torch as ours
from tests.support.device_trainings import NO_GPU
from tests.support.processes import run_together
from tests.support.triton_plans import DEVICE


@pytest.mark.slow
@pytest.mark.skipif(DEVICE.type != "cpu", reason="needs a process group of CPU tensors")
@pytest.mark.parametrize("count", [1, 2])
def test_parts_have_the_bits_of_whole_tensors_without_an_operation_of_dtensors(count, tmp_path):
    program = ["-m", "tests.support.parts_program"]
    assert run_together(program, count, tmp_path, str(count)) == [0] * count


@pytest.mark.gpu
@NO_GPU
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (
            torch.float32,
            {"clip_norm": 0.05, "on_nonfinite": "skip", "ema": 0.9, "clip_update": 0.5},
        ),
        (torch.bfloat16, {"rounding": "stochastic", "state": "8bit", "clip_update": 0.5}),
        (torch.bfloat16, {"rounding": "remainder", "offload": True, "clip_update": 0.5}),
    ],
)
def test_fsdp2_with_one_process_steps_on_the_card_and_waits_for_nothing(dtype, options, tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.cuda.set_device(0)
    store = f"file://{tmp_path}/meet"
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    try:
        results = []
        for is_sharded in (False, True):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Tanh(), nn.Linear(96, 64)).to(
                "cuda", dtype
            )
            if is_sharded:
                fully_shard(net, mesh=init_device_mesh("cuda", (1,)))
            options["track_changes"] = True
            optimizer = ours.AdamW(net.parameters(), lr=0.01, fused=True, **options)
            for step in range(4):
                generator = torch.Generator().manual_seed(step)
                x = torch.randn(16, 64, generator=generator).to("cuda", dtype)
                optimizer.zero_grad()
                net(x).square().mean().backward()
                may_wait = step == 0 or options.get("offload")
                torch.cuda.set_sync_debug_mode("default" if may_wait else "error")
                optimizer.step()
                torch.cuda.set_sync_debug_mode("default")
            route = "offload" if options.get("offload") else "triton"
            assert set(optimizer.routes().values()) == {route}
            results.append(
                [getattr(p, "_local_tensor", p).detach().cpu() for p in net.parameters()]
            )
        assert all(map(torch.equal, *results))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()
