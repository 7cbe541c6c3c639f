"""The EMA of the weights in place of those in training, while ``ema_weights()`` is open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adamas.torch import host_memory, sharding, storage
from adamas.torch.keeping import Keeping
from adamas.turns import averages_in_place

__all__ = ["Averages", "Weights"]


#: A parameter, its average, and what it is in training.
Weights = tuple[Tensor, Tensor, Tensor]


class Averages:
    """Whether the averages are in place."""

    def __init__(self) -> None:
        self.are_in_place = False

    def refuse(self, why: str) -> None:
        """Raise RuntimeError while the averages are in place."""
        if self.are_in_place:
            raise averages_in_place(why)

    def kept(self, states: Mapping[Any, Any], keeping: Keeping) -> list[Weights]:
        """Return a copy of the weights in training, of those that have averages."""
        for p, state in states.items():
            if isinstance(p, Tensor):
                storage.check_kind(f"a parameter of shape {tuple(p.shape)}", state)
        return [
            (
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
        for parameter, average, _ in kept:
            parameter.copy_(average)
        sharding.gather_anew(parameter for parameter, _, _ in kept)

    @torch.no_grad()
    def take_back(self, kept: Sequence[Weights]) -> None:
        """Put the weights in training in their place again."""
        for parameter, _, in_training in kept:
            parameter.copy_(in_training)
        self.are_in_place = False
        sharding.gather_anew(parameter for parameter, _, _ in kept)
