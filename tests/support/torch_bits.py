"""What an optimizer of adamas.torch is, in bits that are easily compared."""

from __future__ import annotations

import copy
from typing import Any

import torch

__all__ = ["bits", "everything", "trained_bits"]


def bits(value: Any) -> Any:
    """A tensor as dtype, shape and bytes; containers of such, and what is neither as it is."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous()
        return value.dtype, tuple(value.shape), bytes(value.reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    return [bits(each) for each in value] if isinstance(value, (list, tuple)) else value


def trained_bits(optimizer: torch.optim.Optimizer) -> Any:
    """Parameters and states; one that nobody has stepped is None."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy((bits(params), bits([optimizer.state.get(p) for p in params])))


def everything(optimizer: torch.optim.Optimizer) -> Any:
    """Parameters, states and groups."""
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    return (*trained_bits(optimizer), copy.deepcopy(bits(groups)))
