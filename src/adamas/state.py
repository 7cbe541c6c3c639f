"""The state of one array: what an optimizer remembers between steps.

A state is created as zeros, measured in bytes, and turned to and from a plain mapping of arrays
(the piece from which ``state_dict`` and checkpoint files are made). Entries have words for names;
``docs/names.md`` gives the paper's letters and other libraries' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.options import Options

__all__ = ["ENTRIES", "State", "create", "from_arrays"]

Array = NDArray[Any]

#: Names of the entries, in the order of the rule's letters m, v, w, then the averaged parameter.
ENTRIES = ("mean", "square", "largest_square", "ema")


@dataclass
class State:
    """The running means that belong to one parameter; None where the method keeps none.

    All entries are C-contiguous and have the parameter's shape and dtype.
    """

    #: m, the running mean of gradients.
    mean: Array | None = None
    #: v, the running mean of squared gradients.
    square: Array | None = None
    #: w, the largest v so far (AMSGrad).
    largest_square: Array | None = None
    #: The running mean of the parameter itself.
    ema: Array | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the entries take."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, Array]:
        """Return the entries that exist, by name: the arrays themselves, not copies."""
        entries = ((name, getattr(self, name)) for name in ENTRIES)
        return {name: array for name, array in entries if array is not None}

    def assign(self, arrays: Mapping[str, Array]) -> None:
        """Copy the values of ``arrays`` (as :func:`from_arrays` returns them) into the entries."""
        for name, array in self.arrays().items():
            np.copyto(array, arrays[name])


def create(parameter: Array, options: Options, *, ema: bool = False) -> State:
    """Return the state before the first step: zeros, and the parameter as its own average."""

    def zeros(wanted: bool) -> Array | None:
        return np.zeros(parameter.shape, parameter.dtype) if wanted else None

    return State(
        mean=zeros(options.has_mean),
        square=zeros(options.has_square),
        largest_square=zeros(options.amsgrad),
        ema=np.array(parameter, order="C") if ema else None,
    )


def from_arrays(name: str, like: State, arrays: Mapping[str, Any]) -> dict[str, Array]:
    """Return ``arrays`` checked to be a whole state of the kind of ``like``, changing nothing.

    ``name`` is the parameter's, for the errors: KeyError where an entry is missing or unknown,
    ValueError where a shape or dtype differs.
    """
    wanted = like.arrays()
    if set(arrays) != set(wanted):
        raise KeyError(
            f"The state of {name} has the entries {_listed(arrays)}, but this optimizer keeps "
            f"{_listed(wanted)}. Load it into an optimizer with the options it was saved from."
        )
    checked = {entry: np.asarray(array) for entry, array in arrays.items()}
    for entry, array in checked.items():
        if array.shape != wanted[entry].shape or array.dtype != wanted[entry].dtype:
            raise ValueError(
                f"The state of {name} has {entry} of shape {array.shape} and dtype {array.dtype}, "
                f"but the parameter has shape {wanted[entry].shape} and dtype "
                f"{wanted[entry].dtype}. Load it into an optimizer over the same parameters."
            )
    return checked


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"
