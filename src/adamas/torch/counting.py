"""Counts of steps where float32 ends: from 2^24 on they are kept in float64.

A count in float32, which is what torch keeps, stands still at 2^24, and with it the random bits
that depend on it. One on the CPU is looked at whenever a plan is made, and a plan ends where it
comes so far. One on a device is not waited for: ``DeviceCounts`` knows how far it can have
come.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DeviceCounts", "counting", "step_tensor"]

#: The first count that float32 does not go beyond.
_WIDE_FROM = 2**24


def step_tensor(
    number: float, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a count of steps as torch keeps it, or in float64 where float32 cannot count on."""
    if dtype is None:
        is_wide = torch.get_default_dtype() == torch.float64
        dtype = torch.float64 if is_wide else torch.float32
    dtype = torch.float64 if number >= _WIDE_FROM else dtype
    return torch.full((), number, dtype=dtype, device=device or torch.device("cpu"))


def counting(step: Any) -> Tensor:
    """Return a count of steps as a tensor that counts on, ``step`` itself where it does.

    One in float32 that is not on the CPU is left as it is.
    """
    if not isinstance(step, Tensor):
        return step_tensor(float(step))
    if step.dtype == torch.float64 or (step.dtype == torch.float32 and not step.is_cpu):
        return step
    dtype = torch.float64 if float(step) >= _WIDE_FROM else torch.float32
    return step if step.dtype == dtype else step.detach().to(dtype)


class DeviceCounts:
    """How far counts of steps on devices can have come, without asking the device each time.

    A count is read once, when it is first seen; from then on it grows by one with each step that is
    made, or less. Steps that a CUDA graph replays are not seen.
    """

    def __init__(self) -> None:
        self._made = 0
        self._most: dict[int, tuple[Tensor, int]] = {}  # less the steps made until it was seen

    def go_on(self, last: float) -> bool:
        """Return whether fewer steps were made than ``planned`` has said."""
        return self._made < last

    def step(self) -> None:
        """Take notice of a step."""
        self._made += 1

    def created(self, step: Tensor) -> None:
        """Take notice of a count that begins now, at 0."""
        self._most[id(step)] = (step, -self._made)

    def counting(self, step: Tensor) -> Tensor:
        """Return a count that counts on, ``step`` itself where it does."""
        if step.dtype != torch.float32:
            return step
        known = self._most.get(id(step))
        if known is None or known[0] is not step or known[1] + self._made >= _WIDE_FROM:
            number = int(step.detach().item())
            if number >= _WIDE_FROM:
                return step.detach().to(torch.float64)
            self._most[id(step)] = (step, number - self._made)
        return step

    def planned(self, steps: Iterable[Tensor]) -> float:
        """Take notice of all counts that are planned with, and forget others.

        Returns how many steps may have been made when one of them may be at the end of float32.
        """
        self._most = {id(s): self._most[id(s)] for s in steps if id(s) in self._most}
        most = max((each for _, each in self._most.values()), default=-math.inf)
        return _WIDE_FROM - most
