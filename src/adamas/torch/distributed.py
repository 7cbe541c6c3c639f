"""Tensors spread over processes (FSDP2's DTensor): this process's part, and what the others have.

A step is element-wise, so each process steps its own part. Norms and counts belong to the whole
tensor: the parts of all processes are gathered, and each process adds them up in the same order.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "element_indices",
    "first_element",
    "gathered",
    "joined",
    "laid_out_as",
    "local",
    "shard_groups",
]

T = TypeVar("T")


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a distributed tensor, or the tensor itself."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def joined(like: Tensor, part: Tensor) -> Tensor:
    """Return a part that is flat and on the CPU in the shape, place and layout of ``like``."""
    part = part.view(local(like).shape).to(like.device)
    mesh = getattr(like, "device_mesh", None)
    if mesh is None:
        return part
    return type(like).from_local(  # type: ignore[attr-defined]
        part,
        mesh,
        like.placements,  # type: ignore[attr-defined]
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def element_indices(parameter: Tensor) -> NDArray[np.uint64]:
    """Return where the elements of this process's part stand in the whole tensor, flattened."""
    if getattr(parameter, "device_mesh", None) is None:
        return np.arange(parameter.numel(), dtype=np.uint64)
    lengths, offsets = _part(parameter)
    indices = np.zeros((), np.uint64)
    for whole, length, offset in zip(parameter.shape, lengths, offsets, strict=True):
        along = np.arange(offset, offset + length, dtype=np.uint64)
        indices = indices[..., None] * np.uint64(whole) + along
    return indices.ravel()


def first_element(parameter: Tensor) -> int | None:
    """Return where this process's part begins in the whole tensor, flattened.

    None where its elements are not consecutive there.
    """
    if getattr(parameter, "device_mesh", None) is None:
        return 0
    lengths, offsets = _part(parameter)
    if 0 in lengths:
        return 0
    first = last = 0
    for whole, length, offset in zip(parameter.shape, lengths, offsets, strict=True):
        first = first * whole + offset
        last = last * whole + offset + length - 1
    return first if last - first + 1 == math.prod(lengths) else None


def _part(parameter: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shape of this process's part of a distributed tensor, and where it begins."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    return compute_local_shape_and_global_offset(parameter.shape, mesh, placements)


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient redistributed as its parameter is, where it is not already."""
    placements = getattr(parameter, "placements", None)
    if placements is None or getattr(gradient, "placements", placements) == placements:
        return gradient
    return gradient.redistribute(placements=placements)  # type: ignore[attr-defined]


def shard_groups(parameter: Tensor) -> tuple[Any, ...]:
    """Return the process groups that a tensor's parts are spread over; none for a plain tensor."""
    placements = getattr(parameter, "placements", ())
    mesh = getattr(parameter, "device_mesh", None)
    return tuple(
        mesh.get_group(dimension)
        for dimension, placement in enumerate(placements)
        if mesh is not None and placement.is_shard()
    )


def gathered(parts: list[list[T]], groups: list[tuple[Any, ...]]) -> list[list[T]]:
    """Return what all processes have of each tensor, for what this one has.

    ``parts`` has a list for each tensor and ``groups`` its process groups. All processes of a
    group call this together, once for each group, so that as little as possible is sent.
    """
    parts = list(parts)
    depth = max(map(len, groups), default=0)
    for level in range(depth):
        by_group: dict[Any, list[int]] = {}
        for index, own in enumerate(groups):
            if level < len(own):
                by_group.setdefault(own[level], []).append(index)
        for group, indices in by_group.items():
            received: list[Any] = [None] * dist.get_world_size(group)
            dist.all_gather_object(received, [parts[i] for i in indices], group)
            for place, index in enumerate(indices):
                parts[index] = [value for each in received for value in each[place]]
    return parts
