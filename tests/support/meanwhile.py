"""Work of another thread: for as long as a context is open, or in the midst of a pickle."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

__all__ = ["Stepping", "repeated"]


@contextmanager
def repeated(work: Callable[[], object]) -> Generator[None]:
    """Do ``work`` in another thread, over and over; threads take turns as often as can be.

    The context begins when the work was done once. What it raises fails the test at the end.
    """
    over, begun = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def go_on() -> None:
        try:
            while not over.is_set():
                work()
                begun.set()
        except BaseException as error:
            errors.append(error)
            begun.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(interval)
        assert errors == []


class Stepping:
    """Something in a pickle, at which another thread makes a call."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, ...]:
        thread = threading.Thread(target=self.call)
        thread.start()
        thread.join()
        return int, ()
