"""What a checkpoint of NumPy arrays holds, and how it is put back."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import spikes
from adamas.files.contents import check_parameters, check_structure, fitting, sorted_out
from adamas.files.tensors import DTYPES, Source, Stored
from adamas.numpy import Optimizer
from adamas.settings import KEY
from adamas.turns import averages_in_place

__all__ = ["KIND", "check_weights", "contents", "little", "put_back", "source"]

#: Of a file.
KIND = "numpy"

Array = NDArray[Any]

#: NumPy's names of the dtypes that states have, by safetensors'. ml_dtypes brings bfloat16.
_KEPT = ("F16", "BF16", "F32", "F64", "I8", "I16", "I64", "U8", "U16")
_DTYPES = {code: name for code, (name, _) in DTYPES.items() if code in _KEPT}
_CODES = {name: code for code, (name, _) in DTYPES.items()}


def check_weights(optimizer: Optimizer, why: str) -> None:
    """Raise RuntimeError, saying ``why``, while averages stand in place of the weights."""
    if optimizer._averaged:  # pyright: ignore[reportPrivateUsage]
        raise averages_in_place(why)


@contextmanager
def contents(optimizer: Optimizer) -> Generator[tuple[dict[str, Source], dict[str, Any]]]:
    """Give the arrays and all else that a file is to hold; no step is made meanwhile."""
    with optimizer.snapshot() as (parameters, about):
        arrays = {f"parameters/{name}": p for name, p in parameters.items()}
        for name, entries in about.pop("state").items():
            arrays |= {f"state/{name}/{entry}": array for entry, array in entries.items()}
        sources = {name: source(array) for name, array in arrays.items()}
        yield sources, {"kind": KIND, "method": type(optimizer).__name__, **about}


def put_back(
    path: str, about: Mapping[str, Any], tensors: Mapping[str, Stored], optimizer: Optimizer
) -> None:
    """Check that a file fits, and put it into the optimizer and its parameters."""
    told = ("step", "skipped", "groups", *({KEY, spikes.KEY} & about.keys()))
    check_structure(path, about, told)
    stored = {name: _array(path, each) for name, each in tensors.items()}
    parameters, state = sorted_out(path, stored)
    own = optimizer.named_parameters()
    check_parameters(path, parameters, own)
    state_dict = {
        **{name: about[name] for name in told},
        "state": {**{name: {} for name in parameters}, **state},
    }
    with fitting(path):
        optimizer.load_state_dict(state_dict, parameters=parameters)


def source(array: Array) -> Source:
    """Return an array as it is to be written; KeyError where a file cannot have its dtype."""
    return Source(
        _CODES[array.dtype.name],
        array.shape,
        lambda: little(np.ascontiguousarray(array).reshape(-1)).view(np.uint8),
    )


def _array(path: str, stored: Stored) -> Array:
    if stored.dtype not in _DTYPES:
        raise ValueError(
            f"{path} has tensors of dtype {stored.dtype}, which NumPy states have not."
        )
    if stored.dtype == "BF16":
        _import_bfloat16(path)
    return little(stored.data.view(_DTYPES[stored.dtype])).reshape(stored.shape)


def _import_bfloat16(path: str) -> None:
    """Let NumPy know the name "bfloat16"."""
    try:
        import_module("ml_dtypes")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path} has parameters in bfloat16, for which NumPy needs ml_dtypes. "
            "Install it with: pip install ml_dtypes"
        ) from None


def little(flat: Array) -> Array:
    """Turn the bytes of elements from this machine's order to the file's, or back."""
    return flat if sys.byteorder == "little" else flat.byteswap()
