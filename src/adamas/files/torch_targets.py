"""PyTorch tensors that changes are put into: on any device, whole or this process's part."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parameter import is_lazy

from adamas.files.standing import Memory
from adamas.files.targets import BITS, Piece, check_apart
from adamas.torch import distributed, parts

__all__ = ["TensorTarget"]

Array = NDArray[Any]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: So many elements go to a device at a time.
_CHUNK = 1 << 24


class TensorTarget:
    """A tensor, or a DTensor of which each process writes its own elements."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        if is_lazy(tensor):
            raise TypeError(
                f"{name} has no shape yet. Run a batch through the model first: its lazy layers "
                "make their parameters then."
            )
        self._name = name
        self._tensor = tensor
        self._part = parts.here(tensor).detach()
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)

    def check(self) -> None:
        """Raise an error where nothing can be written to it."""
        part = self._part
        if type(part) is not Tensor or part.layout != torch.strided or part.is_meta:
            raise TypeError(
                f"{self._name} is a {type(part).__name__} on {part.device} with layout "
                f"{part.layout}, but changes are written to plain tensors that have values. "
                "Materialize the model first; of converted weights keep the originals, and convert "
                "them again after each change."
            )
        if part.is_conj() or part.is_neg():
            raise TypeError(
                f"{self._name} is a view that gives conjugate or negative values of its memory, so "
                "bits cannot be written to it. Give the tensor that it is a view of."
            )
        check_apart(self._name, part.shape, part.stride())
        if distributed.is_distributed(self._tensor):
            distributed.cuts(self._tensor)  # refuses placements without elements of one's own

    def own(self, piece: Piece) -> Piece:
        """Return what of a piece is here."""
        if not distributed.is_distributed(self._tensor) or not self.shape:
            return piece
        alongs = [distributed.listed(each) for each in distributed.own_blocks(self._tensor)]
        if [*map(len, alongs)] == [*self.shape]:
            return piece
        if piece.indices is None:
            return Piece(None, piece.values.reshape(self.shape)[np.ix_(*alongs)].ravel())
        rest, pitch = piece.indices, 1
        places, is_here = np.zeros(len(rest), np.int64), np.ones(len(rest), np.bool_)
        for along, length in zip(reversed(alongs), reversed(self.shape), strict=True):
            rest, coordinates = np.divmod(rest, length)
            if len(along) < length:
                whole, coordinates = coordinates, np.searchsorted(along, coordinates)
                is_here &= np.append(along, -1)[coordinates] == whole
            places += coordinates * pitch
            pitch *= len(along)
        return Piece(places[is_here], piece.values[is_here])

    def read(self, indices: Array | None) -> Array:
        """Return a copy of the bits of some elements."""
        with _writing(self._part):
            bits = self._bits()
            if indices is None:
                return _on_host(bits.reshape(-1), copy=True)
            found = [_on_host(bits[self._places(bits, each)]) for each in _chunks(indices)]
        return np.concatenate([np.empty(0, BITS[bits.itemsize]), *found])

    def write(self, piece: Piece) -> None:
        """Write to some elements."""
        with _writing(self._part):
            bits = self._bits()
            if piece.indices is None:
                bits.copy_(torch.from_numpy(piece.values).view(bits.shape))
            else:
                for indices, values in zip(
                    _chunks(piece.indices), _chunks(piece.values), strict=True
                ):
                    given = torch.from_numpy(values).to(bits.device)
                    places = self._places(bits, indices)
                    if bits.ndim == 1:
                        bits.index_copy_(0, places[0], given)
                    else:
                        bits.index_put_(places, given)
        if distributed.is_distributed(self._tensor) and not self._tensor.is_inference():
            # The local tensor has a version of its own.
            torch.autograd.graph.increment_version(self._tensor)

    def memory(self) -> Memory:
        """Return what it is remembered by."""
        part = self._part
        version = 0 if part.is_inference() else part._version
        place = (part.storage_offset(), tuple(part.shape), part.stride())
        return Memory(part.untyped_storage(), place, version)

    def _bits(self) -> Tensor:
        bits = self._part.view(_INTEGERS[self._part.itemsize])
        return bits.view(-1) if bits.is_contiguous() else bits

    def _places(self, bits: Tensor, indices: Array) -> tuple[Tensor, ...]:
        whole = [indices] if bits.ndim == 1 else np.unravel_index(indices, tuple(bits.shape))
        return tuple(torch.from_numpy(np.asarray(each, np.int64)).to(bits.device) for each in whole)


def _writing(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return the mode in which a detached tensor may be written to.

    No other is entered: an interrupt on the way into ``no_grad()`` would leave it on.
    """
    return torch.inference_mode() if tensor.is_inference() else nullcontext()


def _on_host(bits: Tensor, *, copy: bool = False) -> Array:
    return cast(Any, bits.to("cpu", copy=copy).contiguous()).numpy()


def _chunks(array: Array) -> list[Array]:
    return [array[begin : begin + _CHUNK] for begin in range(0, len(array), _CHUNK)]
