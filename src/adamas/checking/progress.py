"""How far a check is: the stage it is in, and how much of that is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ["STAGES", "Position", "Progress", "Tell"]

#: What a check does, in order.
STAGES = (
    "finding out how it is called",
    "probing",
    "searching for its form",
    "running longer",
    "measuring distances",
    "trying edges",
)


class Position(NamedTuple):
    """A place on the way through a check."""

    #: One of ``STAGES``.
    stage: str
    #: Parts of the stage that are done: steps, ways of calling, distances or edges.
    done: int
    #: How many parts it has; None where that is not known before.
    total: int | None


Tell = Callable[[Position], object]


class Progress:
    """Tells each position as it is reached."""

    def __init__(self, tell: Tell = lambda _: None) -> None:
        self._tell = tell
        self._position = Position(STAGES[0], 0, None)

    def begin(self, stage: str, total: int | None = None) -> None:
        """Tell that a stage of ``total`` parts begins."""
        self._move(Position(stage, 0, total))

    def advance(self) -> None:
        """Tell that one more part of the stage is done."""
        self._move(self._position._replace(done=self._position.done + 1))

    def _move(self, position: Position) -> None:
        self._position = position
        self._tell(position)
