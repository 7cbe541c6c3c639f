"""What updates are clipped by (``clip_update``): sums of squares, over whole tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamas import digits
from adamas.coefficients import Coefficients, update_factor
from adamas.state import Entries
from adamas.torch import distributed, operations, small
from adamas.torch.members import Member
from adamas.torch.operations import Tensors
from adamas.torch.statistics import elements_of

__all__ = ["Wholes", "row_of", "shortened"]


def row_of(member: Member, numbers: Coefficients) -> Tensor:
    """Return the row of ``adamas.digits`` of this process's part of a member, where that is."""
    entries = member.entries.map(distributed.local)
    if member.form is not None:
        _, square = member.form.decoded(member.state, member.names._replace(mean=None))
        entries = entries._replace(square=None if square is None else distributed.local(square))
    tensors = Tensors(
        parameter=distributed.local(member.parameter.detach()),
        gradient=member.local_gradient,
        entries=Entries(square=entries.square, largest_square=entries.largest_square),
    )
    if member.rounds_parameter:
        tensors.value = small.decoded_parameter(tensors.parameter, entries.remainder)
    return operations.update_row(tensors, numbers)


def shortened(
    numbers: Coefficients, member: Member, row: digits.Row, bound: float | None
) -> Coefficients:
    """Return the numbers of a member whose update is clipped by the row of the whole tensor."""
    if bound is None:
        return numbers
    count = elements_of(member.parameter)
    return numbers.shortened(update_factor(bound, digits.norm(row), count, numbers.root))


class Wholes:
    """Makes rows of whole tensors of those of this process's parts, in place.

    All processes call it together at each step, also those whose parts have no gradient.
    """

    def __init__(self, parts: distributed.Exchange, count: int, places: tuple[int, ...]) -> None:
        """Take what adds up the rows of all ``count`` parameters; rows of ``places`` are given."""
        self._made_of = (parts, count, places)
        #: By device; sent there once.
        self._where: dict[torch.device, Tensor] = {}

    def __eq__(self, other: object) -> bool:
        """Return whether the same is added up, so that a plan may be used again."""
        return isinstance(other, Wholes) and self._made_of == other._made_of

    __hash__ = None  # type: ignore[assignment]

    def __call__(self, rows: Any) -> None:
        """Add up: int64[places, digits.WIDTH], carried, a tensor on any device or an array."""
        parts, count, places = self._made_of
        tensor: Tensor = torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows
        device = tensor.device
        if device not in self._where:
            self._where[device] = torch.tensor(places, dtype=torch.int64, device=device)
        where = self._where[device]
        everywhere = torch.zeros((count, digits.WIDTH), dtype=torch.int64, device=device)
        everywhere.index_copy_(0, where, tensor)
        parts.each(everywhere)
        tensor.copy_(everywhere.index_select(0, where))
