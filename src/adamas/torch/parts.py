"""Parts of distributed tensors as plans see them: without a single operation of DTensors.

An operation of a DTensor takes longer than the step of a small tensor, so plans look at the local
tensor that a DTensor wraps, and at the spec that says how it is laid out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adamas.engines import Runs
from adamas.engines.native import Distributed
from adamas.marks import LARGEST
from adamas.torch import distributed

__all__ = [
    "MOST_RUNS",
    "are_alike",
    "here",
    "in_whole",
    "is_alike",
    "is_awaited",
    "local",
    "runs",
    "seen_in",
    "settled",
]

#: Where torch has had its DTensor, the newest place first.
_MODULES = ("torch.distributed.tensor", "torch.distributed._tensor")
_PLAIN = (Tensor, torch.nn.Parameter)
#: Runs of more kinds are left to torch's own operations.
MOST_RUNS = 64


def _kind() -> Any:
    """Return the class of distributed tensors; None where nobody has imported it."""
    found = (getattr(sys.modules.get(name), "DTensor", None) for name in _MODULES)
    return next(filter(None, found), None)


def local(tensor: Any) -> Any:
    """Return the local tensor of a DTensor as it stands there; anything else as it is.

    An operation that is in flight is not waited for, and those of derived classes are not known.
    """
    return tensor._local_tensor if _is_kind(tensor) else tensor


def _is_kind(tensor: Any) -> bool:
    return type(tensor) not in _PLAIN and type(tensor) is _kind()


def are_alike(spec: Any, other: Any) -> bool:
    """Return whether what has one spec is laid out over processes as what has the other."""
    return (
        spec.placements == other.placements
        and spec.mesh == other.mesh
        and getattr(spec, "shard_order", None) == getattr(other, "shard_order", None)
    )


def is_alike(tensor: Tensor, other: Tensor) -> bool:
    """Return whether both are plain, or DTensors that are laid out alike."""
    if not _is_kind(tensor) or not _is_kind(other):
        return _is_kind(tensor) == _is_kind(other)
    spec, others = tensor._spec, other._spec  # type: ignore[attr-defined]
    return spec is others or are_alike(spec, others)


def is_awaited(tensor: Any) -> bool:
    """Return whether a part is the result of an operation between processes, not waited for yet."""
    return hasattr(local(tensor), "trigger_wait")


def here(tensor: Any) -> Any:
    """Return the local tensor of a DTensor once it is here; anything else as it is."""
    return local(tensor).trigger_wait() if is_awaited(tensor) else local(tensor)


def settled(tensor: Tensor) -> Tensor:
    """Return a distributed tensor whose part is here, and contiguous: itself, or another."""
    part = here(tensor).contiguous()
    return tensor if part is local(tensor) else distributed.joined(tensor, part)


def seen_in(tensors: Iterable[Tensor]) -> Distributed | None:
    """Return how plans look at the parts of distributed tensors; None where there are none."""
    kind = _kind()
    if kind is None or not any(type(each) is kind for each in tensors):
        return None
    own = cast(Any, torch)._C
    return Distributed(kind, are_alike, getattr(own, "DisableTorchFunctionSubclass", None))


def runs(parameter: Tensor) -> tuple[Runs, ...] | None:
    """Return where the elements of this process's part stand in the whole tensor.

    Empty where all of it is here, or nothing; None where they stand too irregularly.
    """
    if not distributed.is_distributed(parameter):
        return ()
    shape = parameter.shape
    alongs = distributed.own_blocks(parameter)
    counts = [sum(map(len, along)) for along in alongs]
    is_cut = [count != whole for count, whole in zip(counts, shape, strict=True)]
    if not any(is_cut) or not all(counts):
        return ()
    last = max(dimension for dimension, cut in enumerate(is_cut) if cut)
    inner = math.prod(shape[last + 1 :])
    begins = np.array([block.start for block in alongs[last]])
    lengths = np.array([len(block) for block in alongs[last]]) * inner
    outer = np.zeros(1, np.int64)
    for whole, along in zip(shape[:last], alongs, strict=False):
        outer = (outer[:, None] * whole + distributed.listed(along)).ravel()
    starts = ((outer[:, None] * shape[last] + begins) * inner).ravel()
    return _joined(starts, np.tile(lengths, len(outer)))


def in_whole(parameter: Tensor, indices: Tensor) -> Tensor:
    """Return where elements of this process's part stand in the whole tensor, flattened.

    Of ascending indices they ascend. int32, or int64 where the whole tensor has more elements than
    that can count.
    """
    dtype = torch.int32 if parameter.numel() <= LARGEST else torch.int64
    if not _is_kind(parameter) or not len(indices):
        return indices if indices.dtype == dtype else indices.to(dtype)
    rest, found, pitch = indices.to(torch.int64), torch.zeros_like(indices, dtype=torch.int64), 1
    for length, blocks in reversed(_axes(parameter)):
        own = sum(map(len, blocks))
        along = rest % own
        rest = rest // own
        if own != length:
            along = torch.from_numpy(distributed.listed(blocks)).to(along.device)[along]
        found += along * pitch
        pitch *= length
    return found.to(dtype)


def _axes(parameter: Tensor) -> list[tuple[int, list[range]]]:
    """Return lengths of dimensions with what this process has along each; uncut ones as one."""
    found: list[tuple[int, list[range]]] = []
    for length, blocks in zip(parameter.shape, distributed.own_blocks(parameter), strict=True):
        if found and [range(found[-1][0])] == found[-1][1] and [range(length)] == blocks:
            joint = found.pop()[0] * length
            found.append((joint, [range(joint)]))
        else:
            found.append((length, blocks))
    return found


def _joined(starts: Any, lengths: Any) -> tuple[Runs, ...] | None:
    """Return runs of elements, those that are alike and equally far from each other in one."""
    firsts = np.cumsum(lengths) - lengths
    pitches = np.diff(starts)
    found: list[Runs] = []
    at = 0
    while at < len(starts):
        if len(found) == MOST_RUNS:
            return None
        pitch = int(pitches[at]) if at < len(pitches) else 0
        goes_on = (pitches[at:] == pitch) & (lengths[at + 1 :] == lengths[at])
        found.append(Runs(int(firsts[at]), int(starts[at]), int(lengths[at]), pitch))
        at += 1 + (len(goes_on) if goes_on.all() else int(goes_on.argmin()))
    return tuple(found)
