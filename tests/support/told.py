"""Tensors that change as a training's do, and tell it: by a snapshot and a comparison."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from adamas import Change, Changes
from adamas.assignments import Assignment, all_at_once
from adamas.changes import Chain

WIDTHS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits_of(tensor: Any) -> np.ndarray:
    """Return the bits of an array, or of a tensor on the CPU, as they lie there."""
    if isinstance(tensor, np.ndarray):
        return tensor.view(WIDTHS[tensor.itemsize])
    import torch

    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = tensor.detach().view(integers[tensor.element_size()]).numpy()
    return bits.view(WIDTHS[bits.itemsize])


def all_bits(tensors: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return everything about tensors that a comparison can look at."""
    return {
        name: (str(each.dtype), tuple(each.shape), bits_of(each).tobytes())
        for name, each in tensors.items()
    }


class Told:
    """Named tensors, random elements of which get random bits at each step."""

    def __init__(
        self,
        tensors: dict[str, Any],
        *,
        seed: int = 0,
        part: int = 0,
        parts: tuple[int, ...] = (0,),
        start: int = 0,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.tensors = tensors
        self.step = 0
        self.is_whole = False
        self.random = np.random.default_rng(seed)
        self._chain = Chain()
        self.part, self.parts = part, parts
        # Of parts: the place of the first element in the whole, and the shape of that.
        self._start, self._shape = start, shape
        self._start_anew()

    def _start_anew(self) -> None:
        self._first = self.step + 1
        self.before = {name: bits_of(each).copy() for name, each in self.tensors.items()}

    def advance(self, steps: int = 1, fraction: float = 0.2) -> None:
        """Make steps: NaN, infinity and both zeros are among what elements become."""
        for _ in range(steps):
            self.step += 1
            for tensor in self.tensors.values():
                bits = bits_of(tensor)
                where = self.random.random(bits.shape) < fraction
                most = int(np.iinfo(bits.dtype).max)
                drawn = self.random.integers(0, most, bits.shape, bits.dtype, endpoint=True)
                bits[...] = np.where(where, drawn, bits)

    def go_back_to(self, step: int, tensors: dict[str, Any]) -> None:
        """Load an earlier state: everything has changed."""
        for name, each in tensors.items():
            bits_of(self.tensors[name])[...] = bits_of(each)
        self.step, self._first, self.is_whole = step, step + 1, True

    def changes(self, *, clear: bool = True) -> Changes:
        """Return what has changed, as optimizers do."""

        def start_anew(assignments: list[Assignment]) -> None:
            self._start_anew()
            self.is_whole = False
            all_at_once(assignments)

        return Changes(
            self._each, start_anew if clear else None, self._first, self.step, self.is_whole,
            chain=self._chain, part=self.part, parts=self.parts,
        )  # fmt: skip

    def _each(self) -> Iterator[Change]:
        for name, tensor in self.tensors.items():
            bits = bits_of(tensor)
            where = np.ones(bits.shape, bool) if self.is_whole else bits != self.before[name]
            indices = np.flatnonzero(where).astype(np.int32)
            if len(indices):
                indices, values = _taken(tensor, indices)
                yield Change(name, indices + self._start, values, self._shape or tensor.shape)


def _taken(tensor: Any, indices: np.ndarray) -> tuple[Any, Any]:
    if isinstance(tensor, np.ndarray):
        return indices, tensor.reshape(-1)[indices]
    import torch

    places = torch.from_numpy(indices)
    return places, tensor.detach().reshape(-1)[places.long()]
