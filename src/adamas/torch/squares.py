"""Second moments as they are stored, compared with a bound where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas import epsilon
from adamas.codecs import BLOCK
from adamas.torch import distributed
from adamas.torch.members import Member

__all__ = ["count_below", "read"]

_FORMS = {torch.bfloat16: "bfloat16", torch.uint8: "8bit"}
#: Elements that are compared at a time on a device; whole blocks.
_AT_ONCE = 1 << 24


def count_below(member: Member, bound: float) -> Tensor | int:
    """Return how many elements of a member's v are below ``bound``, in this process's part.

    On a device it is counted there, and nothing waits.
    """
    names, state = member.names, member.state
    name = names.square if names.largest_square is None else names.largest_square
    v = state[name]
    if v.dtype == torch.float32 and v.is_cpu and type(v) is Tensor and v.is_contiguous():
        return epsilon.count_below(v.numpy(), "float32", None, bound)  # as nearly all are
    v = _flat(v)
    header = None if v.dtype != torch.uint8 else _flat(state["header"])
    if not v.is_cpu:
        return _on_device(v, header, bound)
    if v.dtype == torch.float16:
        v = v.float()
    form = _FORMS.get(v.dtype, "float32")
    codes = v.view(torch.int16).numpy().view(np.uint16) if form == "bfloat16" else v.numpy()
    of_blocks = None if header is None else header.numpy().view(np.uint16)
    return epsilon.count_below(codes, form, of_blocks, bound)


def read(values: Sequence[Tensor | float]) -> list[float]:
    """Return scalars as numbers, waiting once for each device."""
    places: dict[torch.device, list[int]] = {}
    found: list[float] = []
    for place, value in enumerate(values):
        is_here = not isinstance(value, Tensor) or value.is_cpu
        found.append(float(value) if is_here else 0.0)
        if isinstance(value, Tensor) and not is_here:
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
