"""Tensors sharded over processes (FSDP2's DTensor): this process's part, and what the others have.

A step is element-wise, so each process steps its own part. Norms and counts belong to the whole
tensor: the parts of all processes are gathered, and each process adds them up in the same order.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Cut",
    "cuts",
    "element_indices",
    "first_element",
    "gathered",
    "is_distributed",
    "joined",
    "laid_out_as",
    "local",
    "part",
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


def is_distributed(tensor: Tensor) -> bool:
    """Return whether a tensor is one of which each process may have a part of its own."""
    return getattr(tensor, "device_mesh", None) is not None


class Cut(NamedTuple):
    """How one dimension of the mesh cuts a tensor: a block, or several blocks, for each process."""

    dimension: int  # of the tensor
    #: Blocks that are there before this cut, each of which it cuts: 1 for a plain shard.
    blocks: int


def cuts(parameter: Tensor) -> list[Cut | None]:
    """Return how each dimension of the mesh cuts a tensor; None where it holds replicas.

    All that asks a placement asks here. Raises TypeError for placements of which no process has
    elements of its own: sums that are not added up yet (Partial), and unknown ones.
    """
    return [_cut(placement, parameter.ndim) for placement in getattr(parameter, "placements", ())]


def _cut(placement: Any, ndim: int) -> Cut | None:
    if placement.is_replicate():
        return None
    # `is_shard()` is False of what FSDP2 makes of tensors that are cut along a dimension already.
    dimension = getattr(placement, "dim", None)
    if dimension is None or placement.is_partial():
        raise TypeError(
            f"A parameter has the placement {placement}, but each process must have elements of "
            "its own, or all of them: Shard or Replicate. Redistribute the parameter first."
        )
    return Cut(dimension % max(ndim, 1), int(getattr(placement, "split_factor", 1)))


def element_indices(parameter: Tensor) -> NDArray[np.uint64]:
    """Return where the elements of this process's part stand in the whole tensor, flattened."""
    if not is_distributed(parameter):
        return np.arange(parameter.numel(), dtype=np.uint64)
    indices = np.zeros((), np.uint64)
    for whole, along in zip(parameter.shape, part(parameter), strict=True):
        indices = indices[..., None] * np.uint64(whole) + along.numpy().astype(np.uint64)
    return indices.ravel()


def first_element(parameter: Tensor) -> int | None:
    """Return where this process's part begins in the whole tensor, flattened.

    None where its elements are not consecutive there.
    """
    if not is_distributed(parameter):
        return 0
    alongs = part(parameter)
    count = math.prod(map(len, alongs))
    if count == 0:
        return 0
    first = last = 0
    for whole, along in zip(parameter.shape, alongs, strict=True):
        first = first * whole + int(along[0])
        last = last * whole + int(along[-1])
    return first if last - first + 1 == count else None


def part(parameter: Tensor) -> list[Tensor]:
    """Return which indices along each dimension this process has of a distributed tensor.

    They ascend, and are not always consecutive: where FSDP2 cuts what is cut along the same
    dimension already, a process has several blocks.
    """
    mesh = parameter.device_mesh  # type: ignore[attr-defined]
    alongs = [torch.arange(length) for length in parameter.shape]
    coordinate = mesh.get_coordinate()
    if coordinate is None:  # this process is not of the mesh, and has nothing
        return [along[:0] for along in alongs]
    for cut, length, own in zip(cuts(parameter), mesh.shape, coordinate, strict=True):
        if cut is not None:
            blocks = alongs[cut.dimension].chunk(cut.blocks)
            pieces = [block.chunk(length)[own : own + 1] for block in blocks]
            alongs[cut.dimension] = torch.cat([alongs[cut.dimension][:0], *sum(pieces, ())])
    return alongs


def laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return a gradient redistributed as its parameter is, where it is not already.

    Sums over processes that are not added up yet are added up.
    """
    placements = getattr(parameter, "placements", None)
    if placements is None or getattr(gradient, "placements", placements) == placements:
        return gradient
    if all(cut is None or cut.blocks == 1 for cut in cuts(parameter)):
        return gradient.redistribute(placements=placements)  # type: ignore[attr-defined]
    own = gradient.full_tensor()  # type: ignore[attr-defined]
    for dimension, along in enumerate(part(parameter)):
        own = own.index_select(dimension, along.to(own.device))
    return joined(parameter, own)


def shard_groups(parameter: Tensor) -> tuple[Any, ...]:
    """Return the process groups that a tensor's parts are spread over; none for a plain tensor."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or mesh.get_coordinate() is None:
        return ()
    return tuple(
        mesh.get_group(dimension)
        for dimension, cut in enumerate(cuts(parameter))
        if cut is not None
    )


def gathered(parts: list[list[T]], groups: list[tuple[Any, ...]]) -> list[list[T]]:
    """Return what all processes have of each tensor, for what this one has.

    ``parts`` has a list for each tensor, in the same order in all processes, and ``groups`` its
    process groups; the list is empty where this process has nothing to say of a tensor. All
    processes of a group call this together, once for each group, so that as little as possible is
    sent.
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
