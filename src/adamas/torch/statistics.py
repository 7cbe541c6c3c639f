"""Statistics of whole tensors, of which each process has a part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from adamas import digits
from adamas.statistics import OfPart
from adamas.torch import distributed

__all__ = ["elements_of", "of_wholes"]

#: Behind the rows of a tensor: elements of the gradient that are not finite, those of the parameter
#: that kept their value, and whether the largest update is NaN, which has no largest.
_COUNTS = 3


def of_wholes(
    parameters: Sequence[Tensor], own: Mapping[int, Any], parts: distributed.Exchange
) -> Iterator[OfPart]:
    """Yield the statistics of whole tensors, for those of this process's parts (``OfPart``).

    These are found by the places of parameters. All processes call this together: one all-reduce
    of about 2 KB for each tensor, and one of the largest updates.
    """
    sums = torch.zeros((len(parameters), 3 * digits.WIDTH + _COUNTS), dtype=torch.int64)
    largest = torch.zeros(len(parameters), dtype=torch.float64)
    for place, part in own.items():
        size = elements_of(distributed.local(parameters[place]))
        is_nan = math.isnan(part.largest_update)
        counts = (part.nonfinite, round(part.unmoved * size), int(is_nan))
        sums[place] = torch.from_numpy(np.concatenate([*part.sums, np.array(counts, np.int64)]))
        largest[place] = 0.0 if is_nan else part.largest_update
    parts.each(sums)
    parts.each(largest, dist.ReduceOp.MAX)
    for place in own:
        *rows, counts = np.split(sums[place].numpy(), digits.WIDTH * np.arange(1, 4))
        size = elements_of(parameters[place])
        yield OfPart(
            *map(digits.norm, rows),
            largest_update=math.nan if counts[2] else largest[place].item(),
            nonfinite=int(counts[0]),
            unmoved=int(counts[1]) / size if size else 0.0,
            sums=np.stack([*map(digits.carried, rows)]),
        )


def elements_of(tensor: Tensor) -> int:
    """Return how many numbers a tensor has."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)
