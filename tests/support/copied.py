"""The low-precision copies of an optimizer's parameters, as its steps left them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from adamas.torch.copies import Copies

__all__ = ["left_by_steps"]


def left_by_steps(optimizer: Any) -> list[torch.Tensor]:
    """Return what steps wrote; reading ``optimizer.copies`` would write all of it anew."""
    with mock.patch.object(Copies, "renew"):
        return optimizer.copies
