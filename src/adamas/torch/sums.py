"""Sums that are taken over all routes before any of them steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas import digits
from adamas.engines.triton import devices
from adamas.torch import gradients
from adamas.torch.grouping import parameters_of
from adamas.torch.members import Member
from adamas.torch.numbers import Scaling
from adamas.torch.routes import Route, Setup

__all__ = ["measure_nothing", "measured", "read"]

#: Rows of digits that are added before they are carried.
_ADDED = 2**14


def read(members: Sequence[Member], setup: Setup) -> tuple[digits.Row, tuple[int, ...]]:
    """Return the digits of all gradients, and numbers of non-finite elements of those here."""
    found = _here([gradients.row_of(member.local_gradient) for member in members])
    rows = np.zeros((setup.row_count, digits.WIDTH), np.int64)
    for i, (member, own) in enumerate(zip(members, found, strict=True)):
        rows[setup.row(member.place)] += own
        if (i + 1) % _ADDED == 0 or i == len(members) - 1:
            rows = np.stack([*map(digits.carried, rows)])
    counts = tuple(map(digits.nonfinite, found))
    if setup.exchange is not None:
        setup.exchange(rows)
    return rows.sum(0), counts


def measured(
    routes: Sequence[Route], setup: Setup, scaling: Scaling, factor: float
) -> dict[int, digits.Row]:
    """Return what updates are clipped by, of whole tensors, where routes do not measure it.

    By the places of parameters; nothing where the phase does not ask for it.
    """
    if setup.phase.clip_update is None:
        return {}
    apart = [route for route in routes if not route.measures]
    members = [member for route in apart for member in route.members]
    found = _here([row for route in apart for row in route.measured(scaling, factor)])
    if setup.parts is None:
        return {member.place: row for member, row in zip(members, found, strict=True)}
    rows = np.zeros((len(setup.owned.names), digits.WIDTH), np.int64)
    for member, row in zip(members, found, strict=True):
        rows[member.place] = digits.carried(row)
    setup.parts.each(torch.from_numpy(rows))
    return {member.place: rows[member.place] for member in members}


def measure_nothing(setup: Setup) -> None:
    """Take part, in a step that is left out, where devices measure before they know that."""
    phase, owned = setup.phase, setup.owned
    if phase.clip_update is None or setup.parts is None or phase.on_nonfinite == "raise":
        return
    if any(devices.takes(parameter.device) for parameter in parameters_of(owned.groups)):
        setup.parts.each(torch.zeros((len(owned.names), digits.WIDTH), dtype=torch.int64))


def _here(rows: Sequence[Any]) -> list[digits.Row]:
    """Return rows on the host; all are asked of their devices before any is waited for."""
    return [each.cpu().numpy() if isinstance(each, Tensor) else each for each in rows]
