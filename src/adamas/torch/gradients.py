"""Gradients that a step is given: whether each fits, what they share, what a GradScaler says."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from adamas.digits import Row
from adamas.engines import native
from adamas.engines.triton import devices
from adamas.torch import distributed, operations, parts
from adamas.torch.memory import Memory, meeting

__all__ = [
    "is_freed",
    "is_lazy",
    "is_sealed",
    "kept_apart",
    "laid_out",
    "refuse",
    "refuse_expanded",
    "refuse_freed",
    "refuse_sparse",
    "refuse_undivided",
    "row_of",
    "unscale",
]

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)

_NARROW = (torch.float32, torch.bfloat16, torch.float16)


def refuse(name: str, parameter: Tensor, gradient: Tensor) -> None:
    """Raise where a gradient cannot be meant for its parameter.

    torch sees to that where ``grad`` is assigned, but ``p.data = …`` and ``p.grad.data = …`` get
    around it, and memory of another shape would be read as if it were of this one.
    """

    def unlike(has: str, own: object, wanted: object, way_out: str) -> str:
        return f"The gradient of {name} {has} {own}, but the parameter {has} {wanted}. {way_out}"

    anew = "Convert the gradient, or compute it anew."
    if gradient.shape != parameter.shape:
        shapes = tuple(gradient.shape), tuple(parameter.shape)
        way_out = "Compute the gradient anew, or set it to None."
        raise ValueError(unlike("has shape", *shapes, way_out))
    if gradient.device != parameter.device:
        way_out = "Move the one or the other, or compute the gradient anew."
        raise ValueError(unlike("is on", gradient.device, parameter.device, way_out))
    if gradient.layout != parameter.layout and not gradient.is_sparse:  # see refuse_sparse
        raise TypeError(unlike("has layout", gradient.layout, parameter.layout, anew))
    if not _is_read_as(parameter.dtype, gradient.dtype):
        raise TypeError(unlike("has dtype", gradient.dtype, parameter.dtype, anew))
    if hasattr(gradient, "device_mesh") != hasattr(parameter, "device_mesh"):
        raise TypeError(
            f"The gradient of {name} is a {type(gradient).__name__}, but the parameter is a "
            f"{type(parameter).__name__}. Distribute both or neither."
        )
    meshes = (getattr(gradient, "device_mesh", None), getattr(parameter, "device_mesh", None))
    if meshes[0] != meshes[1]:
        raise ValueError(
            f"The gradient of {name} is sharded over {meshes[0]}, but the parameter over "
            f"{meshes[1]}. Shard both over the same mesh."
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


@contextmanager
def kept_apart(parameters: Sequence[Tensor], written: Iterable[Tensor]) -> Generator[None]:
    """Put copies in place of gradients that share memory with what is ``written``.

    So a step along them reads what they were when it began, and likewise of those whose memory has
    other values than they do: negated, conjugated and empty views. Afterwards they are in their
    place again, but for those that were unscaled meanwhile: writing into what they share would be
    wrong.
    """
    usual = [p for p in parameters if _can_be_copied(p)]
    found = meeting(
        [distributed.local(_gradient(p)) for p in usual], map(distributed.local, written)
    )
    shared = [p for p, meets in zip(usual, found, strict=True) if meets or is_lazy(_gradient(p))]
    with _replaced([(p, _gradient(p).detach().clone()) for p in shared]):
        yield


@contextmanager
def laid_out(parameters: Sequence[Tensor]) -> Generator[list[Tensor]]:
    """Put gradients laid out over processes as their parameters in place of those that are not.

    Sums that are not made yet are made, and what is still on its way is waited for: all processes
    call this together. Gives the parameters concerned; see ``kept_apart`` for what is left after.
    """
    found = [p for p in parameters if _can_be_copied(p) and _is_laid_otherwise(p)]
    anew = [parts.settled(distributed.laid_out_as(p, _gradient(p).detach())) for p in found]
    with _replaced(list(zip(found, anew, strict=True))):
        yield found


def _is_laid_otherwise(parameter: Tensor) -> bool:
    gradient = _gradient(parameter)
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or getattr(gradient, "device_mesh", None) != mesh:
        return False
    return not parts.is_alike(parameter, gradient) or parts.is_awaited(gradient)


@contextmanager
def _replaced(gradients: Sequence[tuple[Tensor, Tensor]]) -> Generator[None]:
    """Put gradients in place of those that parameters have; see ``kept_apart``."""
    originals = [_gradient(p) for p, _ in gradients]
    for p, each in gradients:
        p.grad = each
    versions = [parts.local(each)._version for _, each in gradients]
    try:
        yield
    finally:
        for (p, each), original, version in zip(gradients, originals, versions, strict=True):
            if p.grad is each and parts.local(each)._version == version:
                p.grad = original


def is_lazy(tensor: Tensor) -> bool:
    """Whether the values of a tensor are not those in its memory, as of ``z.conj().imag``."""
    part = distributed.local(tensor)
    return part.is_neg() or part.is_conj() or part._is_zerotensor()


def refuse_freed(name: str, tensors: Mapping[str, Any]) -> None:
    """Raise ValueError where memory that a step would read was freed (``storage.resize_(0)``)."""
    for what, tensor in tensors.items():
        if isinstance(tensor, Tensor) and is_freed(distributed.local(tensor)):
            raise ValueError(
                f"The {what} of {name} has shape {tuple(tensor.shape)}, but its memory was freed. "
                "Give it memory again before the step."
            )


def refuse_expanded(name: str, written: Mapping[str, Tensor]) -> None:
    """Raise ValueError where several elements that a step would write are one in memory."""
    for what, tensor in written.items():
        part = distributed.local(tensor)
        if part.layout == torch.strided and any(
            size > 1 and stride == 0 for size, stride in zip(part.shape, part.stride(), strict=True)
        ):
            raise ValueError(
                f"The {what} of {name} is expanded: several of its elements are one in memory, so "
                "they cannot be stepped in place. Give it memory of its own, by clone()."
            )


def refuse_undivided(argument: str, given: Sequence[Tensor], written: Iterable[Tensor]) -> None:
    """Raise ValueError for gradients that a step cannot leave divided by a loss scale."""
    dense = [i for i, each in enumerate(given) if each.layout == torch.strided]
    parts = [distributed.local(given[i]) for i in dense]
    for i, is_shared in zip(dense, meeting(parts, map(distributed.local, written)), strict=True):
        refuse_expanded(f"params[{i}]", {"gradient": given[i]})
        if is_shared or is_sealed(given[i]):
            what = "shares memory with what is stepped" if is_shared else "is an inference tensor"
            raise ValueError(
                f"{argument}[{i}] {what}, so it cannot be left divided by grad_scale. Give its "
                "clone(), or unscale gradients before the step."
            )


def is_sealed(tensor: Tensor) -> bool:
    """Whether torch refuses to write: a tensor of inference mode, outside of it."""
    return tensor.is_inference() and not torch.is_inference_mode_enabled()


def is_freed(tensor: Tensor) -> bool:
    """Whether the memory of a tensor was freed, as by ``untyped_storage().resize_(0)``."""
    is_plain = type(tensor) in _PLAIN_TYPES and tensor.layout == torch.strided
    return is_plain and tensor.numel() > 0 and not tensor.is_meta and tensor.data_ptr() == 0


def _can_be_copied(parameter: Tensor) -> bool:
    """Whether a gradient is there, and one that torch would take; others are refused."""
    gradient = parameter.grad
    return (
        gradient is not None
        and gradient.layout == torch.strided
        and gradient.shape == parameter.shape
        and gradient.device == parameter.device
    )


def _gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    assert gradient is not None
    return gradient


@torch.no_grad()
def unscale(parameters: Iterable[Tensor], grad_scale: Any, is_made: Tensor | None = None) -> None:
    """Divide gradients by a loss scale, as torch's fused step leaves them.

    ``is_made`` is not 0 where the step was made, for a device to find out: else they stay.
    Gradients that share memory with each other, or with themselves, are replaced.
    """
    free = Memory()
    alone: dict[torch.device, list[Tensor]] = {}
    replaced: list[tuple[Tensor, Tensor]] = []
    for p in parameters:
        gradient = _gradient(p)
        part = distributed.local(gradient)
        if part.layout == torch.strided and devices.is_dense(part) and free.add((part,)):
            alone.setdefault(part.device, []).append(part)
        else:
            replaced.append((p, gradient / _divisor(grad_scale, part.device, is_made)))
    for device, own in alone.items():
        cast(Any, torch)._foreach_div_(own, _divisor(grad_scale, device, is_made))
    for p, gradient in replaced:
        p.grad = gradient


def _divisor(grad_scale: Any, device: torch.device, is_made: Tensor | None) -> Any:
    if isinstance(grad_scale, Tensor):
        grad_scale = grad_scale.detach().reshape(()).to(device, non_blocking=True)
    if is_made is None:
        return grad_scale
    return torch.where(is_made.to(device, non_blocking=True) != 0, grad_scale, 1.0)


def row_of(gradient: Tensor) -> Row | Tensor:
    """Return the row of digits of a gradient, beside it; nothing waits for a device."""
    if not gradient.is_cpu:
        return operations.row_of(gradient)
    values = gradient.detach().resolve_conj().resolve_neg()
    values = torch.view_as_real(values) if values.is_complex() else values
    if values.dtype == torch.bfloat16:
        return native.row_of([values.view(torch.int16).numpy().view(np.uint16)])
    return native.row_of([values.numpy()])
