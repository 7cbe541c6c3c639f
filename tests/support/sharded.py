"""Sharding models in one process, after their optimizers were made: PyTorch's four ways."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

__all__ = ["WAYS", "alone", "model"]


@contextmanager
def alone() -> Generator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def _mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def _fsdp2(net: nn.Module) -> nn.Module:
    fully_shard(net[0], mesh=_mesh())  # type: ignore[index]
    return fully_shard(net, mesh=_mesh())


def _tensor_parallel(net: nn.Module) -> nn.Module:
    plan = {name: ColwiseParallel(output_layouts=Replicate()) for name in ("0", "2")}
    return parallelize_module(net, _mesh(), plan)


def _fsdp1(net: nn.Module, **options: bool) -> nn.Module:
    return FullyShardedDataParallel(net, device_id=torch.device("cpu"), **options)


#: Each with whether it puts other parameters in place of those that there were.
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "fully_shard": (_fsdp2, True),
    "parallelize_module": (_tensor_parallel, True),
    "FullyShardedDataParallel": (_fsdp1, True),
    "FullyShardedDataParallel, use_orig_params": (
        lambda net: _fsdp1(net, use_orig_params=True),
        False,
    ),
    "DistributedDataParallel": (DistributedDataParallel, False),
}
