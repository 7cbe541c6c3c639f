"""The window of norms that ``skip_above`` judges by, where it is needed: host or device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from adamas import spikes
from adamas.options import Phase
from adamas.spikes import Window

__all__ = ["Spikes"]


class Spikes:
    """One window, in the memory that steps were last made by; it stays there from step to step."""

    def __init__(self, window: Window) -> None:
        """Begin with a window, on the host."""
        self._host = window
        #: Where devices have it, each in memory that CUDA graphs may write to.
        self._rooms: dict[torch.device, Tensor] = {}
        #: The device whose room has it; None: the host.
        self._at: torch.device | None = None

    @classmethod
    def begun(cls, size: int) -> Spikes:
        """Return a window that no norm has entered."""
        return cls(spikes.created(size))

    def here(self) -> Window:
        """Return the window on the host; that waits for a device where one has it."""
        if self._at is not None:
            self._host[:] = self._rooms[self._at].cpu().numpy()
            self._at = None
        return self._host

    def room(self, device: torch.device) -> Tensor:
        """Return where a device has the window once it ``goes_to`` that."""
        if device not in self._rooms:
            self._rooms[device] = torch.zeros(len(self._host), dtype=torch.float64, device=device)
        return self._rooms[device]

    def is_on(self, device: torch.device) -> bool:
        """Return whether a device has it."""
        return self._at == device

    def goes_to(self, device: torch.device) -> None:
        """Bring the window to a device."""
        if self._at != device:
            self.room(device).copy_(torch.from_numpy(self.here()))
            self._at = device

    def leaves_out(self, norm: float, phase: Phase) -> bool:
        """Return whether the host leaves a step out by its norm, which has entered then."""
        if phase.skip_above is None:
            return False
        window = self.here()
        leaps = spikes.is_spike(window, norm, phase.skip_above)
        if leaps:
            window[:] = spikes.entered(window, norm, is_left_out=True)
        return leaps

    def enter(self, norm: float, phase: Phase) -> None:
        """Let the norm of a step that was made enter, on the host."""
        if phase.skip_above is not None:
            window = self.here()
            window[:] = spikes.entered(window, norm, is_left_out=False)

    def read(self) -> Window:
        """Return a copy of the window; that waits for a device where one has it."""
        if self._at is None:
            return self._host.copy()
        return self._rooms[self._at].to("cpu", copy=True).numpy()

    @property
    def left_out(self) -> int:
        """How many steps were left out; that waits for a device where one has the window."""
        return spikes.left_out(self.read())

    def anew(self, window: Window | None) -> Spikes:
        """Return one with what was loaded, or, where that is None, none but the count."""
        if window is None:
            window = np.zeros_like(self._host)
            window[spikes.LEFT_OUT] = self.left_out
        found = Spikes(window)
        if self._at is not None:
            found.goes_to(self._at)
        return found
