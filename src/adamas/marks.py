"""Marks of what steps change: one bit for each element of a tensor.

An element is marked where the bits that are stored of it differ after a step from those before:
-0.0 is another than 0.0, and the same NaN is not. What is compared is the parameter as it is
stored, or its low-precision copy where it has one. Steps add marks and take none away.

Words are int32 and of 32 elements each: element i has bit i % 32, from the lowest on, of word
i // 32. Bits behind the last element are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["IN_WORD", "LARGEST", "between", "every", "none", "word_count"]

Words = NDArray[np.int32]

#: The elements of one word.
IN_WORD = 32

#: The most elements that indices in int32 can tell apart.
LARGEST = 2**31 - 1


def word_count(count: int) -> int:
    """Return how many words ``count`` elements take."""
    return -(-count // IN_WORD)


def none(count: int) -> Words:
    """Return marks of ``count`` elements, none of which is marked."""
    return np.zeros(word_count(count), np.int32)


def every(count: int) -> Words:
    """Return marks of ``count`` elements, all of which are marked."""
    words = np.full(word_count(count), -1, np.int32)
    if count % IN_WORD:
        words[-1] = 2 ** (count % IN_WORD) - 1
    return words


def between(before: NDArray[Any], after: NDArray[Any]) -> Words:
    """Return marks of the elements whose bits differ, in arrays of one shape and dtype."""
    old, new = (np.ascontiguousarray(each).reshape(-1) for each in (before, after))
    bits = np.dtype(f"u{old.itemsize}")
    packed = np.packbits(old.view(bits) != new.view(bits), bitorder="little")
    words = np.zeros(word_count(old.size), "<i4")
    words.view(np.uint8)[: packed.size] = packed
    return words.astype(np.int32)
