"""Steps of DTensors on the CPU, as FSDP2 has them, beside those of plain tensors and torch's own.

One process is all of the mesh, so that nothing but the time of the host is measured: a step without
a norm sends nothing however many there are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

from benchmarks.checks import LR, WrongResultError, require_close_tensors
from benchmarks.ratios import Pair
from benchmarks.tables import Row

_COUNTS = (10, 100, 1000)
_SIZE = 256


def rows() -> list[Row]:
    """Return the rows: beside plain tensors, at most 1.2 times their time."""
    found: list[Row] = []
    for count in _COUNTS:
        work = f"step of {count:,} DTensors of {_SIZE}"
        found += [
            Row(work, "plain tensors", 0.83, _beside_plain(count), ("torch",)),
            Row(work, "torch fused", None, _beside_torch(count, fused=True), ("torch",)),
            Row(work, "torch foreach", None, _beside_torch(count, foreach=True), ("torch",)),
        ]
    work = f"clipped step of 100 DTensors of {_SIZE}, its all-reduce included"
    found.append(Row(work, "plain tensors", None, _beside_plain(100, clip_norm=1.0), ("torch",)))
    return found


@functools.cache
def _mesh() -> Any:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=cast(Any, dist).HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))


def _parameters(count: int, *, spread: bool) -> list[Any]:
    """Return parameters with gradients, the same for the same ``count``."""
    import torch
    from torch.distributed.tensor import DTensor, Shard

    generator = torch.Generator().manual_seed(0)

    def made() -> Any:
        value = torch.randn(_SIZE, generator=generator)
        return DTensor.from_local(value, _mesh(), [Shard(0)], run_check=False) if spread else value

    found: list[Any] = []
    for _ in range(count):
        found.append(torch.nn.Parameter(made()))
        found[-1].grad = made()
    return found


def _parts(parameters: list[Any]) -> list[Any]:
    return [getattr(p.detach(), "_local_tensor", p.detach()) for p in parameters]


def _beside_plain(count: int, **options: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        number = min(count, 20) if quick else count
        spread, plain = (_parameters(number, spread=each) for each in (True, False))
        ours, other = (AdamW(each, lr=LR, **options) for each in (spread, plain))

        def check() -> None:
            for _ in range(3):
                ours.step()
                other.step()
            if not all(map(torch.equal, _parts(spread), plain)):
                raise WrongResultError("DTensors and plain tensors have other bits.")

        return Pair(ours.step, other.step, check)

    return make


def _beside_torch(count: int, **options: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import torch

        from adamas.torch import AdamW

        number = min(count, 20) if quick else count
        mine, theirs = (_parameters(number, spread=True) for _ in range(2))
        ours = AdamW(mine, lr=LR)
        other = cast(Any, torch.optim.AdamW)(theirs, lr=LR, **options)

        def check() -> None:
            for _ in range(3):
                ours.step()
                other.step()
            require_close_tensors(_parts(mine), _parts(theirs), 3, "three steps of AdamW")

        return Pair(ours.step, other.step, check)

    return make
