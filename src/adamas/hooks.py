"""Functions that are called after each step, as torch's optimizers call theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

__all__ = ["Handle", "Hook", "Hooks"]

#: Called with the optimizer, and the positional and keyword arguments of its method ``step``, the
#: optimizer first among them; what it returns is not looked at.
Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], None]
#: By numbers, in the order in which they are called.
Hooks = dict[int, Hook]

_numbers = itertools.count()


class Handle:
    """Takes a hook away again: by ``remove()``, or at the end of a ``with`` block."""

    def __init__(self, hooks: Hooks, hook: Hook) -> None:
        """Put ``hook`` among ``hooks``."""
        self._hooks, self._number = hooks, next(_numbers)
        hooks[self._number] = hook

    def remove(self) -> None:
        """Take the hook away, where it is still there."""
        self._hooks.pop(self._number, None)

    def __enter__(self) -> Handle:
        """Return the handle."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the hook away."""
        self.remove()
