"""Which tensors share memory: parameters that do are stepped one after another, as torch does."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence

from torch import Tensor

__all__ = ["Memory", "meeting", "sharing"]


class Memory:
    """Pieces of memory that do not overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, tensors: Iterable[Tensor]) -> bool:
        """Take in the memory of tensors; False, having taken none, where one meets another.

        That of a tensor reaches from its first element to its last, whatever lies between.
        """
        spans = sorted(_span(each) for each in tensors if each.numel())
        if any(end > start for (_, end), (start, _) in itertools.pairwise(spans)):
            return False
        places = [bisect.bisect_left(self._starts, start) for start, _ in spans]
        for place, (start, end) in zip(places, spans, strict=True):
            meets_last = place > 0 and self._ends[place - 1] > start
            if meets_last or (place < len(self._starts) and self._starts[place] < end):
                return False
        for place, (start, end) in zip(reversed(places), reversed(spans), strict=True):
            self._starts.insert(place, start)
            self._ends.insert(place, end)
        return True


def meeting(tensors: Sequence[Tensor], others: Iterable[Tensor]) -> list[bool]:
    """Return of each of ``tensors`` whether its memory meets that of any of ``others``."""
    spans = sorted(_span(each) for each in others if each.numel())
    starts = [start for start, _ in spans]
    #: The furthest end of all that begin no later.
    reached = list(itertools.accumulate((end for _, end in spans), max))
    found: list[bool] = []
    for start, end in map(_span, tensors):
        before = bisect.bisect_left(starts, end)
        found.append(before > 0 and reached[before - 1] > start)
    return found


def sharing(tensors: Iterable[Tensor | None]) -> set[int]:
    """Return the places of tensors whose memory meets that of another; None stands for no memory.

    As in ``Memory``, that of a tensor reaches from its first element to its last.
    """
    given = [(*_span(each), i) for i, each in enumerate(tensors) if each is not None]
    found: set[int] = set()
    end, last = 0, -1
    for start, stop, place in sorted(each for each in given if each[0] < each[1]):
        if start < end:
            found |= {last, place}
        if stop > end:
            end, last = stop, place
    return found


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor's first element begins and its last ends."""
    start, count = tensor.data_ptr(), tensor.numel()
    if count and not tensor.is_contiguous():
        count = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + count * tensor.itemsize
