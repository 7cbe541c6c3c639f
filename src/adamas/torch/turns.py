"""One call of an optimizer at a time, whichever thread makes it.

Calls of other threads wait. Within a call of the same thread others go ahead where torch runs code
of the user (hooks), and are refused in the midst of a step and while a snapshot is open.

The step that nearly all steps are asks for no lock: it is one native call, and the plan that makes
it is open to everybody as long as nobody has the turn. Who takes the turn closes it and waits for
a step that is under way; those that begin meanwhile find it closed, and wait for their turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adamas.torch.grouping import check_parameters, check_state, names_of, parameters_of
from adamas.turns import changed_while_pickled, within

__all__ = ["Snapshot", "Still", "Turn"]


class Turn:
    """Whose turn it is with an optimizer."""

    __slots__ = ("is_busy", "is_held", "lock", "plan")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        #: Of the thread that has the lock: whether it lets no call of its own go ahead.
        self.is_busy = False
        #: Whether it is in a call other than a step.
        self.is_held = False
        #: The native plan that is open to everybody between turns, or None.
        self.plan: Any = None

    @contextmanager
    def held(self) -> Generator[None]:
        """Wait for the calls of other threads, and let them wait."""
        self.refuse_within()
        with self.lock:
            is_outer = not self.is_held
            self.is_held = True
            try:
                self.close()
                yield
            finally:
                if is_outer:
                    self.is_held = False
                    if self.plan is not None:
                        self.plan.open()

    @contextmanager
    def busy(self) -> Generator[None]:
        """Let no call of this thread go ahead meanwhile; the turn is held."""
        self.is_busy = True
        try:
            yield
        finally:
            self.is_busy = False

    def refuse_within(self) -> None:
        """Raise RuntimeError where a step or snapshot of this thread would be waited for."""
        plan = self.plan
        is_owned = self.lock._is_owned()  # type: ignore[attr-defined]  # as threading.Condition asks
        if (self.is_busy and is_owned) or (plan is not None and plan.is_called_here):
            raise RuntimeError(WITHIN)

    def close(self) -> None:
        """Let nobody make a step by the plan, and wait for one that is under way."""
        pause = 1e-5
        while self.plan is not None and not self.plan.close():
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)


class Snapshot(NamedTuple):
    """Parameters by name, and their state_dict: the optimizer's own tensors."""

    parameters: dict[str, Tensor]
    state_dict: dict[str, Any]

    @classmethod
    def of(cls, groups: Sequence[dict[str, Any]], state_dict: dict[str, Any]) -> Snapshot:
        """Return that of the parameters of ``groups``."""
        named = dict(zip(names_of(groups), parameters_of(groups), strict=True))
        return cls(named, state_dict)


class Still:
    """Stands last in a pickled optimizer, and refuses where the run went on meanwhile."""

    def __init__(self, optimizer: torch.optim.Optimizer, turn: Turn) -> None:
        self._optimizer = optimizer
        self._turn = turn
        check_state(optimizer.state)
        check_parameters(optimizer.param_groups)
        self._before = self._now()

    def __reduce__(self) -> tuple[Any, ...]:
        """Be nothing in the pickle."""
        with self._turn.held():
            now = self._now()
        same = len(now) == len(self._before) and all(
            a is b and version == before
            for (a, version), (b, before) in zip(now, self._before, strict=True)
        )
        if not same:
            raise changed_while_pickled("what snapshot() gives")
        return bool, (True,)

    def _now(self) -> list[tuple[Any, int | None]]:
        found: list[Any] = []
        for group in self._optimizer.param_groups:
            found += [*group.values(), *group["params"]]
        for state in self._optimizer.state.values():
            found += state.values() if isinstance(state, dict) else (state,)
        return [(each, _version(each)) for each in found]


def _version(value: Any) -> int | None:
    is_counted = isinstance(value, Tensor) and not value.is_inference()
    return value._version if is_counted else None


WITHIN = within("a snapshot, or a step that a signal handler interrupted")
