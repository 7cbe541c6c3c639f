"""What changes are put into: NumPy arrays here, PyTorch tensors in ``torch_targets``.

Values go over as their bits, as whole numbers of the same width: nothing is computed with them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from adamas.checks import check_plain, kind
from adamas.files.standing import Memory
from adamas.trees import leaves

__all__ = ["BITS", "ArrayTarget", "Piece", "Target", "check_apart", "targets_of"]

Array = NDArray[Any]

#: Whole numbers by their bytes. Signed, since torch knows few operations of unsigned ones.
BITS = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


class Piece(NamedTuple):
    """New elements of a tensor."""

    #: Where they stand in the flattened tensor, ascending; None for all of it.
    indices: Array | None
    #: Their bits, flat.
    values: Array


class Target(Protocol):
    """A tensor that changes are put into."""

    #: As NumPy and torch call it.
    dtype: str
    shape: tuple[int, ...]

    def check(self) -> None:
        """Raise TypeError or ValueError where nothing can be written to it."""

    def own(self, piece: Piece) -> Piece:
        """Return what of a piece of the whole tensor is here, as a piece of what is here."""
        ...

    def read(self, indices: Array | None) -> Array:
        """Return a copy of the bits of some elements."""
        ...

    def write(self, piece: Piece) -> None:
        """Write to some elements."""

    def memory(self) -> Memory:
        """Return what the tensor is remembered by."""
        ...


class ArrayTarget:
    """A NumPy array."""

    def __init__(self, name: str, array: Array) -> None:
        self._name = name
        self._array = array
        self.dtype = array.dtype.name
        self.shape = array.shape

    def check(self) -> None:
        """Raise an error where nothing can be written to it."""
        check_plain(self._name, self._array)
        if not self._array.flags.writeable:
            raise ValueError(
                f"{self._name} is read-only, but changes are written in place. Give an array that "
                "can be written to, such as a copy."
            )
        check_apart(self._name, self.shape, self._array.strides)
        if not self._array.dtype.isnative:
            raise ValueError(
                f"{self._name} has the byte order of another machine ({self._array.dtype}). Give "
                "an array in this machine's, such as array.astype(array.dtype.newbyteorder('='))."
            )

    def own(self, piece: Piece) -> Piece:
        """Return what of a piece is here."""
        return piece

    def read(self, indices: Array | None) -> Array:
        """Return a copy of the bits of some elements."""
        bits = self._bits()
        if indices is None:
            return bits.ravel().copy()
        return bits[self._places(bits, indices)]

    def write(self, piece: Piece) -> None:
        """Write to some elements."""
        bits = self._bits()
        if piece.indices is None:
            bits[...] = piece.values.reshape(bits.shape)
        else:
            bits[self._places(bits, piece.indices)] = piece.values

    def memory(self) -> Memory:
        """Return what it is remembered by."""
        owner = self._array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        array = self._array
        address = array.__array_interface__["data"][0]
        return Memory(owner, (address, array.shape, array.strides), 0)

    def _bits(self) -> Array:
        bits = np.asarray(self._array).view(BITS[self._array.itemsize])
        return bits.reshape(-1) if bits.flags.c_contiguous else bits

    def _places(self, bits: Array, indices: Array) -> Any:
        return indices if bits.ndim == 1 else np.unravel_index(indices, self.shape)


def check_apart(name: str, shape: Sequence[int], strides: Sequence[int]) -> None:
    """Raise ValueError where elements of a tensor share memory, as where it was broadcast."""
    # NumPy gives arrays without elements strides of 0.
    if all(shape) and any(
        step == 0 and length > 1 for step, length in zip(strides, shape, strict=True)
    ):
        raise ValueError(
            f"Elements of {name} share memory (it was broadcast), so they cannot be changed one by "
            "one. Give a copy of it."
        )


def targets_of(given: Any) -> dict[str, Target]:
    """Return the tensors that a model or a container of tensors has, by name.

    Leaves that are no tensors are left out, as a ``state_dict()`` may have some.
    """
    torch = sys.modules.get("torch")  # who has a model has imported it
    if torch is not None and isinstance(given, torch.nn.Module):
        # With all names of tied parameters: an optimizer may have been given any of them.
        named = given.named_parameters(remove_duplicate=False)
    elif isinstance(given, (dict, list, tuple, np.ndarray)) or _is_tensor(torch, given):
        named = leaves(given)
    else:
        raise TypeError(
            f"The first argument is {kind(given)}, but changes are put into a torch.nn.Module, or "
            f"a dict of tensors or arrays by the names of the parameters.{_way_out(given)}"
        )
    found: dict[str, Target] = {}
    for name, tensor in named:
        if isinstance(tensor, np.ndarray):
            found[name] = ArrayTarget(name, tensor)
        elif _is_tensor(torch, tensor):
            from adamas.files.torch_targets import TensorTarget

            found[name] = TensorTarget(name, tensor)
    return found


def _is_tensor(torch: Any, given: Any) -> bool:
    return torch is not None and isinstance(given, torch.Tensor)


def _way_out(given: Any) -> str:
    if isinstance(given, (str, bytes)) or hasattr(given, "__fspath__"):
        return " The path is the second one."
    if hasattr(given, "step") and hasattr(given, "load_state_dict"):
        return " Give the model whose parameters the optimizer has."
    return ""
