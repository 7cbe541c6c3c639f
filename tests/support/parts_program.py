"""Parts of distributed tensors, stepped as on a card: by the Triton engine, or offloaded.

Processes run it together: their tensors stand for those of cards, kernels run in Triton's
interpreter, and copies are made by queues, as late as they may be. Each step has the bits of the
whole tensor's on the CPU.
"""

from __future__ import annotations

import itertools
import os
import sys
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.utils._python_dispatch import TorchDispatchMode

import adamas.torch as ours
from adamas.engines.triton import devices
from tests.support.offloading import device_of_queues, same
from tests.support.tracked import check_parts

SHAPES = ((8, 64), (5, 32), (1, 96), (7,), (), (0, 3))
#: Those whose blocks of 32 are cut by no process, but for those of Shard(1).
IN_BLOCKS = ((8, 64), (5, 32), (1, 96), (), (0, 32))
KINDS = {
    "plain": (torch.float32, {}),
    "all": (torch.float32, {"clip_norm": 0.7, "on_nonfinite": "skip", "ema": 0.9}),
    "bits": (torch.bfloat16, {"rounding": "stochastic", "seed": 3, "clip_norm": 2.0}),
    "remainder": (torch.bfloat16, {"rounding": "remainder8", "state": "compact", "seed": 1}),
    "blocks": (torch.float32, {"state": "8bit", "rounding": "stochastic"}),
    "copied": (torch.bfloat16, {"rounding": "remainder", "copy_to": torch.bfloat16}),
}
#: As FSDP2 cuts rows that are cut already: each process has several blocks of them.
STRIDED = _StridedShard(0, split_factor=2)
#: What kernels step, which takes long in the interpreter.
ON_DEVICE = (
    (Shard(0), "all"),
    (Shard(0), "bits"),
    (Shard(0), "blocks"),
    (Shard(1), "bits"),
    (Shard(1), "remainder"),
    (Replicate(), "copied"),
    (STRIDED, "bits"),
)
OFFLOADED = tuple(
    each
    for each in itertools.product((Shard(0), Shard(1), Replicate()), KINDS)
    if each != (Shard(1), "blocks")
) + tuple((STRIDED, kind) for kind in ("all", "bits", "remainder"))
#: Those whose gradients are laid out otherwise than they are.
LAID_OTHERWISE = ((Shard(0), "all"), (STRIDED, "bits"))


class Operations(TorchDispatchMode):
    """Counts operations of distributed tensors."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(each, DTensor) for each in types):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def drawn(shape, seed, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def spread(whole, parameter, way):
    """Return a gradient: laid out as its parameter is, with replicas, or as a sum to be made."""
    mesh, (placement,) = parameter.device_mesh, parameter.placements
    if way < 2:
        return cut(whole.clone(), mesh, placement if way == 0 else Replicate())
    share = whole.clone() if dist.get_rank() == 0 else torch.zeros_like(whole)
    return DTensor.from_local(share, mesh, [Partial()], run_check=False)


def cut(whole, mesh, placement):
    dimension = getattr(placement, "dim", 0)
    if dimension >= whole.ndim:
        placement = Replicate() if whole.ndim == 0 else Shard(0)
    return distribute_tensor(whole, mesh, [placement], src_data_rank=None)


def here(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor.detach()


def own_part(whole, like):
    """What this process has of a whole tensor that is cut as another is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(
        whole.detach().clone(), like.device_mesh, like.placements, src_data_rank=None
    ).to_local()


def check(mesh, placement, dtype, options, *, offload, otherwise=False):
    """Step parts and whole tensors alike; everything has the same bits.

    ``otherwise``: gradients are laid out in other ways than their parameters, too.
    """
    shapes = IN_BLOCKS if options.get("state") == "8bit" else SHAPES
    wholes = [nn.Parameter(drawn(shape, i, dtype)) for i, shape in enumerate(shapes)]
    parts = [nn.Parameter(cut(p.detach().clone(), mesh, placement)) for p in wholes]
    options = {"lr": 0.01, "weight_decay": 0.1, "track_changes": True, **options}
    one = ours.AdamW(parts, offload=offload, **options)
    other = ours.AdamW(wholes, **options)
    for step in range(3):
        for i, (p, whole) in enumerate(zip(parts, wholes, strict=True)):
            gradient = drawn(whole.shape, 100 * step + i, dtype)
            whole.grad, p.grad = gradient, spread(gradient, p, (i + step) % 3 if otherwise else 0)
        with Operations() as counted:
            one.step()
        if step > 0 and not otherwise:
            assert not counted.found, (counted.found, offload, options)
        on_host(other.step)
        check_parts(one, other, own_part)
        if "clip_norm" in options:
            assert one.gradient_norm == other.gradient_norm
    route = "offload" if offload else "triton"
    assert set(one.routes().values()) == {route}, (one.routes(), options, placement)
    for p, whole in zip(parts, wholes, strict=True):
        assert same([here(p)], [own_part(whole, p)]), (whole.shape, placement, options, offload)
        state, judge = one.state[p], other.state[whole]
        assert state.keys() == judge.keys()
        for name in state.keys() - {"step", "top", "header"}:
            assert isinstance(state[name], DTensor)
            assert state[name].placements == p.placements
            found = own_part(judge[name], p)
            assert same([here(state[name])], [found]), (name, whole.shape, placement, options)


def on_host(step):
    """Step by the native engine, whatever stands for a card."""
    types, devices.DEVICE_TYPES = devices.DEVICE_TYPES, ()
    step()
    devices.DEVICE_TYPES = types


def main():
    rank, store, size = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    np.seterr(all="ignore")  # the interpreter computes with NumPy
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=300),
    )
    mesh = init_device_mesh("cpu", (size,))
    for placement, kind in ON_DEVICE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "DEVICE_TYPES", ("cpu",))
            check(mesh, placement, *KINDS[kind], offload=False)
    for placement, kind in OFFLOADED:
        with pytest.MonkeyPatch.context() as patch:
            device_of_queues("late", patch)
            check(mesh, placement, *KINDS[kind], offload=True)
    for placement, kind in LAID_OTHERWISE:
        with pytest.MonkeyPatch.context() as patch:
            device_of_queues("late", patch)
            check(mesh, placement, *KINDS[kind], offload=True, otherwise=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(devices, "DEVICE_TYPES", ("cpu",))
            check(mesh, placement, *KINDS[kind], offload=False, otherwise=True)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
