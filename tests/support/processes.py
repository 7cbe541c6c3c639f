"""Code that processes run together, and what runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.cases import PATIENCE, ROOT

TWO_PROCESSES = """
import os
import sys
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
import adamas.torch as ours

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))

def made():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 32, bias=False), torch.nn.Tanh(), torch.nn.Linear(32, 64, bias=False)
    )

plain, sharded = made(), made()
fully_shard(sharded, mesh=mesh)
options = dict(lr=0.01, clip_norm=0.05, on_nonfinite="skip", ema=0.9)
pairs = [(net, ours.AdamW(net.parameters(), **options)) for net in (plain, sharded)]
norms = []
for step in range(5):
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
    for net, optimizer in pairs:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        if step == 3:  # in the part of one process alone
            gradient = net[0].weight.grad
            here = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            if net is plain or rank == 1:
                here[-1, -1] = float("nan")
        optimizer.step()
        norms.append(optimizer.gradient_norm)
assert [optimizer.skipped for _, optimizer in pairs] == [1, 1]
assert norms[0::2][:3] == norms[1::2][:3] and norms[0] > 0.05
for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
    assert b.to_local().numel() == a.numel() // 2
    assert torch.equal(a, b.full_tensor())
    assert torch.equal(pairs[0][1].state[a]["ema"], pairs[1][1].state[b]["ema"].full_tensor())

# A gradient in another layout than its parameter's is redistributed.
values, gradient = torch.arange(1.0, 9.0).view(4, 2), torch.linspace(-1, 1, 8).view(4, 2)
whole = torch.nn.Parameter(values.clone())
whole.grad = gradient.clone()
parts = torch.nn.Parameter(distribute_tensor(values.clone(), mesh, [Shard(0)]))
parts.grad = distribute_tensor(gradient.clone(), mesh, [Replicate()])
uneven = torch.nn.Parameter(distribute_tensor(values[:1].clone(), mesh, [Shard(0)]))
uneven.grad = distribute_tensor(gradient[:1].clone(), mesh, [Shard(0)])
optimizer = ours.Adam([whole, parts, uneven], lr=0.1)
optimizer.step()
assert torch.equal(whole, parts.full_tensor())
assert torch.equal(whole[:1], uneven.full_tensor())
assert "exp_avg" in optimizer.state[uneven]

# Small states and random rounding: random bits are those of the elements of the whole tensor.
def drawn(seed, dtype):
    return torch.randn(32, 96, generator=torch.Generator().manual_seed(seed)).to(dtype)

for dtype, rounding in ((torch.float32, None), (torch.bfloat16, "stochastic"),
                        (torch.bfloat16, "remainder8")):
    for state in ("bfloat16", "compact", "8bit"):
        for placement in (Shard(0), Shard(1), Replicate()):
            if state == "8bit" and placement == Shard(1):
                continue  # blocks are of a process's own part
            whole = torch.nn.Parameter(drawn(0, dtype))
            parts = torch.nn.Parameter(distribute_tensor(drawn(0, dtype), mesh, [placement]))
            optimizers = [
                ours.AdamW([p], lr=0.01, state=state, rounding=rounding, clip_norm=1.0)
                for p in (whole, parts)
            ]
            for step in range(1, 4):
                whole.grad = drawn(step, dtype)
                parts.grad = distribute_tensor(drawn(step, dtype), mesh, [placement])
                for optimizer in optimizers:
                    optimizer.step()
                if step == 2:  # a dense state goes to another process layout and back
                    saved = optimizers[1].state_dict()
                    assert saved["state"][0]["exp_avg"].placements == (placement,)
                    optimizers[1].load_state_dict(saved)
            assert torch.equal(whole, parts.full_tensor()), (dtype, state, placement)
            one, two = (each.state_dict()["state"][0] for each in optimizers)
            for name in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(one[name], two[name].full_tensor()), (dtype, state, placement)
dist.barrier()
os._exit(0)  # gloo's own threads sometimes abort an orderly end
"""


def run_alone(
    *program: str | Path, limit: float = PATIENCE, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a Python program; return what it wrote, and its exit code.

    One that has not ended after ``limit`` seconds is interrupted first, since it may have started
    others, which it alone knows to end; then it is killed.
    """
    with subprocess.Popen(
        [sys.executable, *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    ) as process:
        try:
            output, errors = process.communicate(timeout=limit)
        except BaseException:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=30)
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_in_two(code: str, folder: Path) -> list[int]:
    """Run ``code`` in two processes, with rank and a file to meet at; return their exit codes."""
    return run_together(["-c", code], 2, folder)


def run_together(
    program: list[str], count: int, folder: Path, *arguments: str, limit: float = 600
) -> list[int]:
    """Run a program in processes that are given rank, a file to meet at and ``arguments``.

    Returns their exit codes. What they wrote to stderr is printed, so that a failed test shows it;
    those that have not ended after ``limit`` seconds are killed, and what they waited for shown.
    """
    path = os.pathsep.join([str(ROOT), *sys.path[1:]])
    outputs = [folder / f"stderr of {rank}" for rank in range(count)]
    processes = []
    for rank, output in enumerate(outputs):
        with output.open("w") as stderr:
            command = [sys.executable, *program, str(rank), str(folder / "store"), *arguments]
            environment = {**os.environ, "PYTHONPATH": path}
            processes.append(subprocess.Popen(command, env=environment, stderr=stderr))
    try:
        end = time.monotonic() + limit
        for process in processes:
            process.wait(timeout=max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
        sys.stdout.write("\n".join(output.read_text() for output in outputs))
    return [process.returncode for process in processes]
