"""Small states of large tensors, in huge pages of memory.

A processor looks up where each page of memory lies: 512 times less often with pages of 2 MiB than
with those of 4 KiB. Linux has these for memory that asks for them ("transparent huge pages"; where
the system says ``madvise``, as is usual). Codes gain from that, float32 states do not. NumPy asks
for its arrays. PyTorch does so only in processes that were started with
``THP_MEM_ALLOC_ENABLE=1``, for all its tensors. Where there are no huge pages, memory is as ever.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adamas.engines.native import ask_for_huge_pages
from adamas.torch import distributed

__all__ = ["copied", "zeros_like"]

#: Smaller tensors do not ask: bytes, as in NumPy.
_LEAST = 1 << 22


def zeros_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros of the shape and layout of a tensor, on its device."""
    if not _is_large(tensor, dtype):
        return torch.zeros_like(tensor, dtype=dtype, memory_format=torch.preserve_format)
    return _empty_like(tensor, dtype).zero_()


def copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy of a tensor that is not part of its graph, in its layout, on its device."""
    own = tensor.detach()
    if not _is_large(own, dtype):
        return own.to(dtype=dtype, copy=True, memory_format=torch.preserve_format)
    return _empty_like(own, dtype).copy_(own)


def _is_large(tensor: Tensor, dtype: torch.dtype) -> bool:
    part = distributed.local(tensor)
    is_plain = type(part) in (Tensor, torch.nn.Parameter) and part.is_cpu
    is_dense = part.layout == torch.strided
    return is_plain and is_dense and part.numel() * dtype.itemsize >= _LEAST


def _empty_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    made = torch.empty_like(tensor, dtype=dtype, memory_format=torch.preserve_format)
    part = distributed.local(made)
    if type(part) is Tensor:  # within FakeTensorMode it has no memory
        storage = part.untyped_storage()
        ask_for_huge_pages(storage.data_ptr(), storage.nbytes())
    return made
