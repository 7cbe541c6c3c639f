"""The averaged weights in place of those in training, for as long as somebody looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adamas.torch import host_memory
from adamas.torch.keeping import Keeping
from adamas.turns import NO_AVERAGE, averages_in_place

__all__ = ["Averages"]


class Averages:
    """Whether the averages are in place, and what is there else."""

    def __init__(self) -> None:
        """Begin with the weights in training."""
        self.are_in_place = False
        #: Parameters with their averages, and what they are in training.
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def refuse(self, why: str) -> None:
        """Raise RuntimeError while the averages are in place."""
        if self.are_in_place:
            raise averages_in_place(why)

    def keep(self, states: Mapping[Any, Any], keeping: Keeping) -> None:
        """Keep a copy of the weights in training; nothing is changed."""
        if keeping.phase.ema is None:
            raise RuntimeError(NO_AVERAGE)
        if self.are_in_place:
            raise RuntimeError("The averaged weights are in place already.")
        pairs = [
            (p, state["ema"])
            for p, state in states.items()
            if isinstance(p, Tensor) and "ema" in state
        ]
        self._kept = [
            (
                p,
                average,
                host_memory.in_host(p) if keeping.is_offloaded(p) else p.detach().clone(),
            )
            for p, average in pairs
        ]

    @torch.no_grad()
    def put(self) -> None:
        """Put the averages in place."""
        self.are_in_place = True
        for p, average, _ in self._kept:
            p.copy_(average)

    @torch.no_grad()
    def take_back(self) -> None:
        """Put the weights in training in their place again."""
        for p, _, value in self._kept:
            p.copy_(value)
        self._kept = []
        self.are_in_place = False
