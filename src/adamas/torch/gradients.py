"""Gradients that a step is given: whether each fits, and what a GradScaler says of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["has_overflowed", "refuse", "refuse_sparse", "scale_of"]

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def refuse(name: str, parameter: Tensor, gradient: Tensor) -> None:
    """Raise where a gradient cannot be meant for its parameter.

    torch sees to that where ``grad`` is assigned, but ``p.data = …`` and ``p.grad.data = …`` get
    around it, and memory of another shape would be read as if it were of this one.
    """
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"The gradient of {name} has shape {tuple(gradient.shape)}, but the parameter has "
            f"shape {tuple(parameter.shape)}. Compute the gradient anew, or set it to None."
        )
    if gradient.device != parameter.device:
        raise ValueError(
            f"The gradient of {name} is on {gradient.device}, but the parameter is on "
            f"{parameter.device}. Move the one or the other, or compute the gradient anew."
        )
    if gradient.layout != parameter.layout and not gradient.is_sparse:  # see refuse_sparse
        raise TypeError(
            f"The gradient of {name} has layout {gradient.layout}, but the parameter has layout "
            f"{parameter.layout}. Convert the gradient, or compute it anew."
        )
    if not _is_read_as(parameter.dtype, gradient.dtype):
        raise TypeError(
            f"The gradient of {name} has dtype {gradient.dtype}, but the parameter has dtype "
            f"{parameter.dtype}. Convert the gradient, or compute it anew."
        )
    if hasattr(gradient, "device_mesh") != hasattr(parameter, "device_mesh"):
        raise TypeError(
            f"The gradient of {name} is a {type(gradient).__name__}, but the parameter is a "
            f"{type(parameter).__name__}. Distribute both or neither."
        )
    meshes = (getattr(gradient, "device_mesh", None), getattr(parameter, "device_mesh", None))
    if meshes[0] != meshes[1]:
        raise ValueError(
            f"The gradient of {name} is spread over {meshes[0]}, but the parameter over "
            f"{meshes[1]}. Spread both over the same processes."
        )


def refuse_sparse(name: str, group: dict[str, Any], *, is_offloaded: bool) -> None:
    """Raise RuntimeError where a sparse gradient cannot be stepped by SGD."""
    if group["weight_decay"] != 0:
        raise RuntimeError(
            f"The gradient of {name} is sparse, but weight_decay is {group['weight_decay']}, which "
            "shrinks all elements. Give the parameter a group of its own with weight_decay=0."
        )
    if is_offloaded:
        raise RuntimeError(
            f"The gradient of {name} is sparse, but offload is True, and dense gradients alone are "
            "offloaded. Give the parameter an optimizer of its own."
        )


def _is_read_as(parameter: torch.dtype, gradient: torch.dtype) -> bool:
    """Whether the arithmetic of a parameter holds all that gradients of a dtype can say."""
    if parameter == gradient:
        return True
    narrow = gradient in _NARROW
    return narrow and parameter in (*_NARROW, torch.float64)


def has_overflowed(found_inf: Any) -> bool:
    """Return whether a GradScaler has found an infinity: it says so by a tensor or a number."""
    return bool(found_inf.item() if isinstance(found_inf, Tensor) else found_inf)


def scale_of(grad_scale: Any) -> float:
    """Return what a GradScaler has multiplied gradients by; 1 where it has unscaled them."""
    if grad_scale is None:
        return 1.0
    return float(grad_scale.item() if isinstance(grad_scale, Tensor) else grad_scale)
