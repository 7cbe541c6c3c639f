"""Second moments as they are stored, compared with a bound where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adamas import epsilon
from adamas.codecs import BLOCK
from adamas.torch import distributed
from adamas.torch.members import Member

__all__ = ["counts_below", "read"]

#: Elements that are compared at a time on a device; whole blocks.
_AT_ONCE = 1 << 24


def counts_below(members: Sequence[Member], bounds: Sequence[float | None]) -> list[Tensor | int]:
    """Return how many elements of each v are below its bound, in this process's parts.

    0 stands for those without a bound. On a device they are counted there, and nothing waits.
    """
    found: list[Tensor | int] = [0] * len(members)
    here: list[int] = []
    stored: list[epsilon.Stored] = []
    for place, (member, bound) in enumerate(zip(members, bounds, strict=True)):
        if bound is None:
            continue
        names, state = member.names, member.state
        v = state[names.square if names.largest_square is None else names.largest_square]
        if v.dtype is torch.float32 and type(v) is Tensor and v.is_cpu and v.is_contiguous():
            kept = epsilon.Stored(v.numpy(), "float32", None)  # as nearly all are
        else:
            v = _flat(v)
            header = None if v.dtype != torch.uint8 else _flat(state["header"])
            if not v.is_cpu:
                found[place] = _on_device(v, header, bound)
                continue
            kept = _stored(v, header)
        here.append(place)
        stored.append(kept)
    counts = epsilon.counts_below(stored, [cast(float, bounds[place]) for place in here])
    for place, count in zip(here, counts, strict=True):
        found[place] = count
    return found


def _stored(v: Tensor, header: Tensor | None) -> epsilon.Stored:
    """Return a v in this process's memory as it is stored."""
    if v.dtype == torch.bfloat16:
        return epsilon.Stored(v.view(torch.int16).numpy().view(np.uint16), "bfloat16", None)
    if v.dtype == torch.float16:
        v = v.float()
    if header is None:
        return epsilon.Stored(v.numpy(), "float32", None)
    return epsilon.Stored(v.numpy(), "8bit", header.numpy().view(np.uint16))


def read(values: Sequence[Tensor | float]) -> list[float]:
    """Return scalars as numbers, waiting once for each device."""
    places: dict[torch.device, list[int]] = {}
    found: list[float] = []
    for place, value in enumerate(values):
        if not isinstance(value, Tensor):
            found.append(float(value))
        elif value.is_cpu:
            found.append(float(value.item()))
        else:
            found.append(0.0)
            places.setdefault(value.device, []).append(place)
    for own in places.values():
        stacked = torch.stack([torch.as_tensor(values[place]).double() for place in own])
        for place, value in zip(own, stacked.tolist(), strict=True):
            found[place] = value
    return found


def _flat(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor as a row of numbers; those of codes in their order."""
    part = distributed.local(tensor.detach())
    part = torch.view_as_real(part) if part.is_complex() else part
    if part.is_floating_point() and not part.is_contiguous():
        # Their order tells nothing: turned so, they are contiguous more often than not.
        part = part.permute(sorted(range(part.ndim), key=part.stride, reverse=True))
    return part.reshape(-1)


def _on_device(v: Tensor, header: Tensor | None, bound: float) -> Tensor:
    count = torch.zeros((), dtype=torch.int64, device=v.device)
    if header is not None:
        own, places = torch.unique(header, return_inverse=True)
        bounds = epsilon.code_bounds(bound, own.cpu().numpy().view(np.uint16))
        limits = torch.from_numpy(bounds).to(v.device)[places]
        for first in range(0, v.numel(), _AT_ONCE):
            part = v[first : first + _AT_ONCE]
            of_blocks = limits[first // BLOCK : (first + _AT_ONCE) // BLOCK]
            count += (part < of_blocks.repeat_interleave(BLOCK)[: part.numel()]).sum()
        return count
    limit: Any = float(epsilon.least(bound, np.float64))
    if v.dtype != torch.float64:
        limit = float(epsilon.least(bound, np.float32))
    for part in v.split(_AT_ONCE):
        wide = part.float() if v.dtype in (torch.bfloat16, torch.float16) else part
        count += (wide < limit).sum()
    return count
