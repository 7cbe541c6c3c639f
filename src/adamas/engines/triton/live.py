"""Values of the host that the device reads at each step, sent where they have changed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from adamas.engines.triton.jobs import Int64

__all__ = ["Live"]


class Live:
    """Named runs of int64, in one piece of memory on the host and one on the device.

    Inside a CUDA graph each replay sends what was sent when it was recorded.
    """

    def __init__(self, lengths: Mapping[str, int], device: torch.device) -> None:
        """Make room for ``lengths`` values of each name: zeros."""
        self._host = np.zeros(sum(lengths.values()), np.int64)
        self._on_device = torch.zeros(len(self._host), dtype=torch.int64, device=device)
        ends = np.cumsum(list(lengths.values())).tolist()
        #: The values by name, to be written.
        self.host = dict(zip(lengths, np.split(self._host, ends), strict=False))
        #: Where kernels find them.
        self.on_device = {
            name: self._on_device[end - length :]
            for (name, length), end in zip(lengths.items(), ends, strict=True)
        }
        self._is_cuda = device.type == "cuda"
        #: In pinned memory for the next graph, which allocates none while it records.
        self._spare = self._pinned()
        #: What graphs read at each replay.
        self.recorded: list[Tensor] = []
        self._known: Int64 | None = None

    def send(self, *, is_captured: bool) -> bool:
        """Bring the device up to date; return whether anything had to be sent."""
        if is_captured:  # each replay sends what is sent now
            source, self._spare = self._spare, None
            source = self._pinned() if source is None else source
            self.recorded.append(source)
        elif self._known is not None and np.array_equal(self._known, self._host):
            return False
        else:
            source = self._pinned()
            self._spare = self._pinned() if self._spare is None else self._spare
        source.numpy()[:] = self._host
        self._on_device.copy_(source, non_blocking=True)
        # A replay may send other values at any time, so what is there is not known from then on.
        self._known = None if self.recorded else self._host.copy()
        return True

    def _pinned(self) -> Tensor:
        return torch.empty(len(self._host), dtype=torch.int64, pin_memory=self._is_cuda)
