"""One call at a time: calls of other threads wait, calls within a call are refused.

An optimizer that takes turns has a lock ``_turn`` that its thread may take again, and says by
``_busy`` whether a call is under way, by ``_averaged`` whether averages stand in place of weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "CHANGED",
    "NO_AVERAGE",
    "WITHIN",
    "WOULD_LOSE",
    "averages_in_place",
    "changed_while_pickled",
    "check_turn",
    "in_turn",
    "within",
    "would_lose",
]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def within(calls: str) -> str:
    """Return what is said within another call; ``calls`` are those that it may be."""
    return (
        f"This optimizer is in the midst of another call of this thread: {calls}. Call it when "
        "that has ended."
    )


def would_lose(copy: str) -> str:
    """Return why a ``copy`` cannot be made while averages stand in place of weights."""
    return f"{copy} would hold them twice and lose the weights in training"


WITHIN = within("a step that asks a schedule, a snapshot, or what a signal handler interrupted")
WOULD_LOSE = would_lose("a copy made now")
NO_AVERAGE = "No EMA of the weights is kept. Create the optimizer with ema=0.999, for example."
IN_PLACE = "The EMA weights are swapped in already."
CHANGED = "The parameters changed while the step was being prepared."


def in_turn(while_averaged: str | None = None) -> Callable[[_Method], _Method]:
    """Return a decorator for methods that wait for the calls of other threads, and are waited for.

    ``while_averaged`` says what is wrong with the call where the EMA weights are swapped in. This
    is no context manager: an interrupt between one's ``__enter__`` and the block would leave the
    optimizer locked as long as anybody holds the traceback, as notebooks do.
    """

    def decorated(method: _Method) -> _Method:
        @functools.wraps(method)
        def alone(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self._turn:
                check_turn(self, while_averaged)
                self._busy = True
                try:
                    return method(self, *args, **kwargs)
                finally:
                    self._busy = False

        return alone  # type: ignore[return-value]

    return decorated


def check_turn(optimizer: Any, while_averaged: str | None) -> None:
    """Raise RuntimeError within another call, and where averages are in place if that is wrong."""
    if optimizer._busy:
        raise RuntimeError(WITHIN)
    if optimizer._averaged and while_averaged is not None:
        raise averages_in_place(while_averaged)


def changed_while_pickled(instead: str) -> RuntimeError:
    """Return the error of an optimizer that was stepped meanwhile."""
    return RuntimeError(
        "This optimizer was stepped or changed in another thread while it was being pickled. "
        f"Pickle it between steps, or pickle {instead}."
    )


def averages_in_place(so: str) -> RuntimeError:
    """Return the error of what cannot be done while averages stand in place of weights."""
    return RuntimeError(
        f"The EMA weights are swapped in, so {so}. Leave the ema_weights() context first."
    )
