"""State in host memory, for parameters on a card: the state of an optimizer with ``offload=True``.

It is pinned, so that copies from and to the card go on by themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adamas.torch import distributed, parts, small

__all__ = [
    "host_like",
    "in_host",
    "is_offloaded",
    "pins",
    "refuse",
    "refuse_scattered",
    "settle",
]

_DTYPES = (torch.float32, torch.float64, *small.HALF)


def is_offloaded(parameter: Tensor) -> bool:
    """Whether a parameter of an optimizer with ``offload=True`` keeps its state elsewhere."""
    return parameter.is_cuda


def in_host(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous copy in host memory: pinned, where there is a card to pin it for."""
    wanted = _empty_like(tensor, dtype, pinned=True)
    distributed.local(wanted).copy_(distributed.local(tensor.detach()))
    return wanted


def host_like(parameter: Tensor) -> Tensor:
    """Return a tensor as a parameter is, but in host memory, with no values."""
    return _empty_like(parameter, None, pinned=False)


def settle(state: dict[str, Any], *, pinned: bool = False) -> None:
    """Bring the tensors of a state into host memory, contiguous; with ``pinned``, pin them too."""
    for name, value in state.items():
        if isinstance(value, Tensor) and not _is_settled(distributed.local(value), pinned):
            state[name] = in_host(value)


def _is_settled(part: Tensor, pinned: bool) -> bool:
    is_here = part.is_cpu and part.is_contiguous()
    return is_here and (not pinned or not pins(part.shape) or part.is_pinned())


def _empty_like(tensor: Tensor, dtype: torch.dtype | None, *, pinned: bool) -> Tensor:
    """Return a contiguous tensor in host memory; of a distributed one, this process's part is."""
    shape = distributed.local(tensor.detach()).shape
    part = torch.empty(
        shape, dtype=dtype or tensor.dtype, device="cpu", pin_memory=pinned and pins(shape)
    )
    return distributed.with_part(tensor, part)


def pins(shape: torch.Size) -> bool:
    """Whether memory of a shape is pinned: there is a card, and more than a number."""
    return shape.numel() > 1 and torch.cuda.is_available()


def refuse(parameter: Tensor, is_special: bool, gradient: Tensor | None = None) -> None:
    """Raise TypeError or ValueError for a parameter whose state cannot stay in host memory."""
    if hasattr(parameter, "__tensor_flatten__") and not distributed.is_distributed(parameter):
        raise TypeError(
            f"offload is True, but a parameter is a {type(parameter).__name__}, and plain tensors "
            "and DTensors alone are offloaded. Give it an optimizer of its own, without offload."
        )
    if parameter.dtype not in _DTYPES or parameter.layout != torch.strided:
        raise TypeError(
            f"offload is True, but a parameter has dtype {parameter.dtype} and layout "
            f"{parameter.layout}. Offloaded parameters are dense, and float32, float64, bfloat16 "
            "or float16. Give the others an optimizer of their own."
        )
    if is_special:
        raise ValueError(
            "offload is True, but RMSprop with momentum or centered follows another rule than "
            "the engine of the processor has. Leave out the one or the other."
        )
    if gradient is not None and gradient.dtype != parameter.dtype:
        raise TypeError(
            f"offload is True, but a gradient has dtype {gradient.dtype} and its parameter "
            f"{parameter.dtype}. Convert the gradient."
        )


def refuse_scattered(parameter: Tensor) -> None:
    """Raise ValueError for a part whose elements stand so that no random bits are drawn for it."""
    if parts.runs(parameter) is None:
        placements = ", ".join(map(str, parameter.placements))  # type: ignore[attr-defined]
        raise ValueError(
            f"offload is True, but a parameter has shape {tuple(parameter.shape)} and placements "
            f"({placements}), and this process's elements stand in more than {parts.MOST_RUNS} "
            "kinds of runs in the whole tensor: random bits to round with are not drawn for so "
            'many. Use rounding="nearest", or leave offload out.'
        )
