"""Arrays that can be parameters or gradients, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checks import check_plain, kind

__all__ = [
    "Layout",
    "as_bits",
    "check_parameters",
    "check_same_layout",
    "checked_gradient",
    "layout_of",
]

Array = NDArray[Any]

_DTYPES = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64))


def check_parameters(named: Sequence[tuple[str, Any]]) -> None:
    """Refuse what cannot be stepped in place, and what would be stepped twice."""
    if not named:
        raise ValueError("params holds no array. Give at least one array to optimize.")
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        raise ValueError(
            f"Two parameters have the name {twice[0]}. Rename a key: names are the way to an "
            "array, joined by dots."
        )
    for name, p in named:
        if not isinstance(p, np.ndarray):
            raise TypeError(
                f"Parameter {name} is {kind(p)}, but it must be a NumPy array, "
                "so that it can be changed in place."
            )
        check_plain(f"Parameter {name}", p)
        if p.dtype not in _DTYPES and not _is_bfloat16(p):
            raise TypeError(
                f"Parameter {name} has dtype {p.dtype}, but it must be float32, float64, float16 "
                "or ml_dtypes' bfloat16, in native byte order. Convert it first, for example with "
                ".astype(numpy.float32)."
            )
        if not p.flags.writeable:
            raise ValueError(f"Parameter {name} is read-only. Give a writeable array, or a copy.")
        if not p.flags.aligned:
            raise ValueError(f"Parameter {name} is not aligned in memory. Give a copy of it.")
        if _may_overlap_itself(p):
            raise ValueError(
                f"Parameter {name} has elements that share memory (a broadcast or sliding view). "
                "Give a copy of it."
            )
    _check_disjoint(named)


class Layout(NamedTuple):
    """What may change about an array in place, without its values."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    #: Its address, and whether it is read-only.
    memory: tuple[int, bool]


def layout_of(array: Array) -> Layout:
    """Return how an array lies in memory now."""
    return Layout(array.dtype, array.shape, array.strides, array.__array_interface__["data"])


def check_same_layout(name: str, parameter: Array, old: Layout) -> None:
    """Refuse a parameter whose shape or dtype is no longer that of its state."""
    if parameter.dtype != old.dtype:
        raise TypeError(
            f"Parameter {name} has dtype {parameter.dtype} by now, but it had {old.dtype} when the "
            "optimizer was created. Give it back that dtype, or create another optimizer."
        )
    if parameter.shape != old.shape:
        raise ValueError(
            f"Parameter {name} has shape {parameter.shape} by now, but it had {old.shape} when the "
            "optimizer was created, as its state has. Give it back that shape, or create another "
            "optimizer."
        )


def checked_gradient(name: str, parameter: Array, gradient: Any) -> Array:
    """Return a C-contiguous copy of a gradient, or say what is wrong with it."""
    if isinstance(gradient, np.generic):
        gradient = np.asarray(gradient)
    if not isinstance(gradient, np.ndarray):
        raise TypeError(
            f"The gradient of {name} is {kind(gradient)}, but it must be a NumPy array "
            f"of shape {parameter.shape} and dtype {parameter.dtype}."
        )
    check_plain(f"The gradient of {name}", gradient)
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"The gradient of {name} has shape {gradient.shape}, but the parameter has shape "
            f"{parameter.shape}. Give a gradient of the parameter's shape."
        )
    if gradient.dtype != parameter.dtype:
        raise TypeError(
            f"The gradient of {name} has dtype {gradient.dtype}, but the parameter has dtype "
            f"{parameter.dtype}. Convert it with .astype({parameter.dtype.name!r})."
        )
    return np.array(gradient, order="C", subok=False)


def _is_bfloat16(array: Array) -> bool:
    """Return whether the dtype is that of ml_dtypes, which NumPy itself lacks."""
    return array.dtype.itemsize == 2 and array.dtype.name == "bfloat16"  # the name takes long


def as_bits(array: Array) -> Array:
    """Return the array as the engines take it: bfloat16 as its bits."""
    return array.view(np.uint16) if _is_bfloat16(array) else array


def _may_overlap_itself(array: Array) -> bool:
    """Return whether two elements may share memory, judged from strides alone."""
    if array.size == 0:  # NumPy gives such arrays strides of 0
        return False
    reach = array.itemsize
    for stride, length in sorted(zip(map(abs, array.strides), array.shape, strict=True)):
        if length > 1:
            if stride < reach:
                return True
            reach += stride * (length - 1)
    return False


def _check_disjoint(named: Sequence[tuple[str, Array]]) -> None:
    """Refuse parameters that share memory: a step would move shared elements twice."""
    spans = sorted(
        (*np.lib.array_utils.byte_bounds(p), i) for i, (_, p) in enumerate(named) if p.size
    )
    open_spans: list[tuple[int, int]] = []
    for low, high, i in spans:
        open_spans = [(end, j) for end, j in open_spans if end > low]
        for _, j in open_spans:
            if np.shares_memory(named[i][1], named[j][1]):
                first, second = sorted((i, j))
                raise ValueError(
                    f"Parameters {named[first][0]} and {named[second][0]} share memory, so a step "
                    "would change the shared elements twice. Give each array once."
                )
        open_spans.append((high, i))
