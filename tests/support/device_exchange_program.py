"""One process of several that share a norm on devices: ``device_exchange_program.py rank store n``.

Where there is no GPU, Triton's kernels run in its interpreter.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from datetime import timedelta

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import adamas.torch as ours
from tests.support.growth_program import objects
from tests.support.torch_routes import standing_in

#: Steps between two counts of objects: the interpreter takes long for each.
STEPS = 6


def cut(whole, mesh):
    return distribute_tensor(whole.clone(), mesh, [Shard(0)], src_data_rank=None)


def check(mesh, device):
    """Sharded tensors have the norm and the parameters of whole ones; some lack gradients."""
    rank, generator = dist.get_rank(), torch.Generator().manual_seed(0)
    values, gradients = (
        [torch.randn(shape, generator=generator).to(device) for shape in ((5, 3), (1, 4), (6,))]
        for _ in range(2)
    )
    whole = [nn.Parameter(each.clone()) for each in values]
    parts = [nn.Parameter(cut(each, mesh)) for each in values[:2]]
    parts.append(nn.Parameter(values[2].clone()))  # all processes have it
    options = {"lr": 0.1, "clip_norm": 1.0, "on_nonfinite": "skip", "statistics": True}
    options |= {"skip_above": 3.0, "skip_window": 4, "clip_update": 0.5}
    optimizers = [ours.AdamW(each, **options) for each in (whole, parts)]
    for _ in range(3):
        for p, q, gradient in zip(whole, parts, gradients, strict=True):
            p.grad = gradient.clone()
            q.grad = cut(gradient, mesh) if q is not parts[2] else gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert set(optimizers[1].routes().values()) == {"triton"}
        assert optimizers[0].gradient_norm == optimizers[1].gradient_norm
        taken, of_parts = (optimizer.statistics() for optimizer in optimizers)
        assert taken
        assert taken.keys() == of_parts.keys()
        assert all(torch.equal(taken[name], of_parts[name]) for name in taken)
    for p, q in zip(whole[:2], parts[:2], strict=True):
        assert torch.equal(cut(p.detach(), mesh).to_local(), q.detach().to_local())
    # A leap, which all leave out.
    kept = [p.detach().clone() for p in whole]
    for p, q, gradient in zip(whole, parts, gradients, strict=True):
        p.grad = 100.0 * gradient
        q.grad = cut(p.grad, mesh) if q is not parts[2] else p.grad.clone()
    for optimizer in optimizers:
        optimizer.step()
        assert repr(optimizer.skipped) == "Skipped(nonfinite=0, spikes=1)"
    assert all(torch.equal(p.detach(), before) for p, before in zip(whole, kept, strict=True))
    assert optimizers[0].state_dict()["spikes"] == optimizers[1].state_dict()["spikes"]
    # NaN that the last process has, while the first has no gradient at all.
    for p, q in zip(whole, parts, strict=True):
        p.grad = q.grad = None
    if rank == dist.get_world_size() - 1:
        parts[0].grad = cut(gradients[0], mesh)
        parts[0].grad.to_local()[-1, -1] = math.nan
    optimizers[1].step()
    assert repr(optimizers[1].skipped) == "Skipped(nonfinite=1, spikes=1)"
    assert math.isnan(optimizers[1].gradient_norm)


def check_growth(mesh, device):
    """Steps leave nothing behind, neither along the gradients of before nor along new ones."""
    parts = [nn.Parameter(cut(torch.ones(4, 3, device=device), mesh)) for _ in range(2)]
    optimizer = ours.AdamW(parts, lr=0.1, clip_norm=1.0, on_nonfinite="skip", ema=0.9)
    for renews in (False, True):
        found = []
        for _ in range(5):
            for step in range(STEPS):
                for p in parts:
                    if renews or p.grad is None:
                        p.grad = cut(torch.full((4, 3), 1.0 + step, device=device), mesh)
                optimizer.step()
            found.append(objects())
        assert set(optimizer.routes().values()) == {"triton"}
        # What is left behind grows each time; what is made once, as caches are, does not.
        counts = [after - before for before, after in itertools.pairwise(found)]
        lasting = {kind: min(each[kind] for each in counts) for kind in counts[0]}
        assert max(lasting.values(), default=0) < STEPS, (renews, lasting)


def main():
    rank, store, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=300),
    )
    with standing_in("triton") as device:
        mesh = init_device_mesh(device.type, (count,))
        check(mesh, device)
        check_growth(mesh, device)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
