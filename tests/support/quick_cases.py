"""Which cases of a test are quick, where a test with many of them says how many may be."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["quick_cases"]


def quick_cases(cases: Sequence[frozenset[object]], count: int) -> list[int]:
    """Return the places of ``count`` cases, each of which is the set of its parameters' values.

    Each is the case that has most values which none before it has. Of cases that are alike in that,
    those come first that are spread evenly, the first and the last case among them.
    """
    last = len(cases) - 1
    spread = [round(i * last / max(1, count - 1)) for i in range(min(count, len(cases)))]
    left = dict.fromkeys([*spread, *range(len(cases))])
    seen: set[object] = set()
    chosen: list[int] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda place: len(cases[place] - seen))
        seen |= cases[best]
        chosen.append(best)
        del left[best]
    return sorted(chosen)
