"""One process of a run that goes on with other numbers of processes, over checkpoints.

``resharding_program.py rank store shape folder before after``: ``shape`` is that of the mesh, "2x2"
or "1", which has plain tensors. It loads what ran before it (``before``, "-" for nothing), makes
five steps, saves under ``after``, and compares everything with a run that was never interrupted, of
plain tensors, which it makes by itself. Gradients follow from step, parameter and element alone.
The first of all, and one of "2x2", look at what else there is for state dicts, too.
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import adamas.torch as ours
from tests.support import state_dicts

#: Longer than all of it takes: where processes wait for one another in vain, they fail.
LIMIT = timedelta(seconds=300)
#: Steps in each part of the run.
STEPS = 5
#: Fewer rows than processes, uneven ones, none, no dimension; no multiples of 32 or 1,024.
SHAPES = ((1, 5), (3, 37), (5, 11), (7,), (1,), (0, 4), (), (33, 70))
#: The same with rows of whole blocks, and what has no rows and is never cut.
BLOCKS = ((1, 64), (3, 32), (5, 96), (7, 32), (0, 32), (), (33, 64))

_HALF = torch.bfloat16
#: How groups store state and parameters: dtype, shapes and options. Together they have every
#: state, every rounding, and amsgrad.
GROUPS = [
    (torch.float32, SHAPES, {"state": "float32", "amsgrad": True}),
    (torch.float32, SHAPES, {"state": "compact", "rounding": "nearest", "weight_decay": 0.1}),
    (_HALF, SHAPES, {"state": "bfloat16", "rounding": "stochastic"}),
    (_HALF, SHAPES, {"state": ("compact", "float32"), "rounding": "remainder", "amsgrad": True}),
    (_HALF, BLOCKS, {"state": "8bit", "rounding": "remainder8"}),
    (torch.float16, BLOCKS, {"state": ("8bit", "bfloat16"), "rounding": "stochastic"}),
    (torch.float32, BLOCKS, {"state": "8bit"}),
]


class Rows(nn.Module):
    """Parameters that are no layer's."""

    def __init__(self, shapes, dtype, seed):
        super().__init__()
        for i, shape in enumerate(shapes):
            value = drawn(shape, seed + i, dtype)
            self.register_parameter(f"p{i}", nn.Parameter(value))


class Model(nn.Module):
    """A part for each group, and one that FSDP2 and tensor parallelism cut both."""

    def __init__(self):
        super().__init__()
        self.groups = nn.ModuleList(
            Rows(shapes, dtype, 100 * i) for i, (dtype, shapes, _) in enumerate(GROUPS)
        )
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64, bias=False)
        with torch.no_grad():
            for i, p in enumerate((*self.up.parameters(), *self.down.parameters())):
                p.copy_(drawn(p.shape, 2000 + i))


def drawn(shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cut(whole, like):
    """Return what all processes have laid out as ``like`` is, by torch's own cutting."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def here(tensor):
    return tensor.detach().to_local() if isinstance(tensor, DTensor) else tensor


def made_model(mesh):
    model = Model()
    if mesh is None:
        return model
    if mesh.ndim == 2:
        parallelize_module(model, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model.up, mesh=mesh["dp"])
    fully_shard(model.down, mesh=mesh["dp"])
    other = Shard(1) if mesh.ndim == 2 else None
    for rows in model.groups:
        for name, p in list(rows.named_parameters()):
            placements = [Shard(0) if p.ndim else Replicate()]
            if other is not None:
                is_wide = p.ndim > 1 and (p.shape[1] % 64 == 0 or rows.p0.shape == (1, 5))
                placements.append(other if is_wide else Replicate())
            spread = distribute_tensor(p.detach(), mesh, placements, src_data_rank=None)
            setattr(rows, name, nn.Parameter(spread))
    return model


def made_optimizer(model, **options):
    groups = [
        {"params": list(rows.parameters()), **own}
        for rows, (_, _, own) in zip(model.groups, GROUPS, strict=True)
    ]
    groups.append({"params": [model.up.weight, model.down.weight], "state": "8bit"})
    groups.append({"params": [model.up.bias], "state": "compact"})  # blocks of it would be cut
    return ours.AdamW(groups, **{"lr": 0.01, "ema": 0.9, "clip_norm": 0.5, **options})


def made(mesh):
    model = made_model(mesh)
    return model, made_optimizer(model)


def step(model, optimizer, number):
    for i, p in enumerate(model.parameters()):
        p.grad = cut(drawn(p.shape, 10_000 * number + i, p.dtype), p)
    optimizer.step()


def run(model, optimizer, steps):
    for number in steps:
        step(model, optimizer, number)


def assert_same(one, other, about, without=()):
    """Compare two runs, one of plain tensors and one that may be of parts of them, bit by bit.

    The states of the parameters ``without`` are not looked at.
    """
    (plain, whole), (parts, optimizer) = one, other
    for (name, p), q in zip(plain.named_parameters(), parts.parameters(), strict=True):
        assert torch.equal(here(q), here(cut(p.detach(), q))), (about, name)
    pairs = zip(plain.named_parameters(), parts.parameters(), strict=True)
    dense = [each.state_dict()["state"] for each in (whole, optimizer)]
    places = [
        {id(p): i for i, p in enumerate(p for g in each.param_groups for p in g["params"])}
        for each in (whole, optimizer)
    ]
    for (name, p), q in pairs:
        if name in without:
            continue
        a, b = (found[place[id(x)]] for found, place, x in zip(dense, places, (p, q), strict=True))
        assert a.keys() == b.keys(), (about, name)
        for entry, value in a.items():
            wanted = value if entry == "step" else here(cut(value, b[entry]))
            is_wide = value.dtype == torch.int16 and isinstance(b[entry], DTensor)
            dtype = torch.int32 if is_wide else value.dtype  # neither gloo nor NCCL has the former
            assert b[entry].dtype == dtype, (about, name, entry)
            assert torch.equal(here(b[entry]), wanted), (about, name, entry)


def view(optimizer, form):
    return ours.Packed(optimizer) if form == "packed" else optimizer


def state_of(model, optimizer, form, options=None):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, view(optimizer, form), options=options),
    }


def save(model, optimizer, folder, form):
    dcp.save(state_of(model, optimizer, form), checkpoint_id=folder / form)


def load(model, optimizer, folder, form):
    found = state_of(model, optimizer, form)
    dcp.load(found, checkpoint_id=folder / form)
    set_model_state_dict(model, found["model"])
    set_optimizer_state_dict(model, view(optimizer, form), optim_state_dict=found["optimizer"])


def uninterrupted(steps):
    model, optimizer = made(None)
    run(model, optimizer, range(steps))
    return model, optimizer


def main():
    rank, store, shape = int(sys.argv[1]), sys.argv[2], tuple(map(int, sys.argv[3].split("x")))
    folder, before, after = Path(sys.argv[4]), int(sys.argv[5]), sys.argv[6]
    torch.set_num_threads(1)
    world = torch.Size(shape).numel()
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=LIMIT
    )
    warnings.simplefilter("ignore", UserWarning)
    mesh = None
    if world > 1:
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "tp")[: len(shape)])
    start = before * STEPS
    twin = uninterrupted(start)
    for form in ("dense", "packed"):
        own = made(mesh)
        if before:
            load(*own, folder / str(before), form)
            assert_same(twin, own, (shape, form, "loaded"))
        if form == "dense":
            going_on = copy.deepcopy(twin)
            run(*going_on, range(start, start + STEPS))
        run(*own, range(start, start + STEPS))
        assert_same(going_on, own, (shape, form, "five steps on"))
        save(*own, folder / after, form)
    if shape == (2, 2) or not before:
        state_dicts.check_all(sys.modules[__name__], mesh, folder / f"state dicts {sys.argv[3]}")
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
