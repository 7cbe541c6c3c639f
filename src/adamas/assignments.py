"""Several assignments as one: whatever interrupts them comes before all of them, or after.

Python handles signals (Ctrl-C, and so KeyboardInterrupt) between its own instructions, never
within a function that is written in C. So assignments that a C function makes one after the other
are not interrupted, as long as each of them is C as well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from operator import setitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Assignment", "all_at_once", "attribute", "prepared", "values"]

Assignment = partial[Any]


def all_at_once(assignments: Iterable[Assignment]) -> None:
    """Make all assignments, with nothing between them."""
    prepared(assignments)()


def prepared(assignments: Iterable[Assignment]) -> Callable[[], object]:
    """Return what makes all assignments when it is called, once; to call it is in C, too."""
    return partial(deque, map(partial.__call__, list(assignments)), 0)


def attribute(owner: object, name: str, value: object) -> Assignment:
    """Return the assignment ``owner.name = value``."""
    return partial(setattr, owner, name, value)


def values(array: NDArray[Any], given: Any) -> Assignment:
    """Return the assignment ``array[...] = given``, of values that are converted already."""
    ready = np.asarray(given, array.dtype).reshape(array.shape)
    into: Any = np.asarray(array)
    return partial(setitem, into, Ellipsis, ready)
