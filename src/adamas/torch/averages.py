"""The averaged weights in place of those in training, for as long as somebody looks at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.torch import host_memory
from adamas.torch.keeping import Keeping
from adamas.turns import IN_PLACE, averages_in_place

__all__ = ["Averages", "Weights"]


class Weights(NamedTuple):
    """A parameter, its average, and what it is in training."""

    parameter: Tensor
    average: Tensor
    in_training: Tensor


class Averages:
    """Whether the averages are in place."""

    def __init__(self) -> None:
        """Begin with the weights in training."""
        self.are_in_place = False

    def refuse(self, why: str) -> None:
        """Raise RuntimeError while the averages are in place."""
        if self.are_in_place:
            raise averages_in_place(why)

    def refuse_twice(self) -> None:
        """Raise RuntimeError where averages would be put in place of themselves."""
        if self.are_in_place:
            raise RuntimeError(IN_PLACE)

    def kept(self, states: Mapping[Any, Any], keeping: Keeping) -> list[Weights]:
        """Return a copy of the weights in training, of those that have averages."""
        return [
            Weights(
                p,
                state["ema"],
                host_memory.in_host(p) if keeping.is_offloaded(p) else p.detach().clone(),
            )
            for p, state in states.items()
            if isinstance(p, Tensor) and "ema" in state
        ]

    @torch.no_grad()
    def put(self, kept: Sequence[Weights]) -> None:
        """Put the averages in place."""
        self.are_in_place = True
        for each in kept:
            each.parameter.copy_(each.average)

    @torch.no_grad()
    def take_back(self, kept: Sequence[Weights]) -> None:
        """Put the weights in training in their place again."""
        for each in kept:
            each.parameter.copy_(each.in_training)
        self.are_in_place = False
