"""Interrupts at every place where Python handles signals.

That is where a function of Python is entered (a generator: again), and before and after a function
of C; never where one of Python returns or yields: what is raised there by a profiler leaves a
frame without its ``finally``. Garbage is not collected meanwhile: others' callbacks would be
entered then, at other places each time.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any


def interrupted_at(place: int, work: Callable[[], Any], interrupt: type[BaseException]) -> bool:
    """Do ``work``, with ``interrupt`` raised at the place of number ``place``.

    Returns False where the work ended before.
    """
    seen, over = -1, False

    def look(_: Any, event: str, __: Any) -> None:
        nonlocal seen
        seen += not over and event != "return"
        if seen == place and not over and event != "return":
            sys.setprofile(None)
            raise interrupt

    with uncollected():
        sys.setprofile(look)
        try:
            work()
        except interrupt:
            return True
        finally:
            over = True
            sys.setprofile(None)
    return False


def places(work: Callable[[], Any]) -> int:
    """How many such places the work has."""
    count = 0

    def look(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event != "return"

    with uncollected():
        sys.setprofile(look)
        try:
            work()
        finally:
            sys.setprofile(None)
    return count


@contextmanager
def uncollected() -> Generator[None]:
    """Leave garbage where it is while the context is open."""
    is_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_enabled:
            gc.enable()


def whole_or_nothing(
    make: Callable[[], tuple[Callable[[], Any], Callable[[], Any]]],
    interrupt: type[BaseException] = KeyboardInterrupt,
    most: int = 400,
) -> set[str]:
    """Interrupt work at about ``most`` places, and say in which ways it was left.

    They are spread evenly, but for the last ones, at which things are changed: those are all taken.

    ``make`` returns the work, and what gives all that it may change, as values that compare.
    """
    work, look = make()
    before = look()
    work()
    after = look()
    found: set[str] = set()
    total = places(make()[0])
    spread = range(0, total, max(1, total // most))
    for place in sorted({*spread, *range(max(0, total - 50), total)}):
        work, look = make()
        if interrupted_at(place, work, interrupt):
            left = look()
            found.add("nothing" if left == before else "whole" if left == after else "half")
    return found
