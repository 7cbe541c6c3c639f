"""What steps have changed: the elements whose stored bits differ, one tensor after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

__all__ = ["AVERAGED", "NOT_TRACKED", "WENT_ON", "Chain", "Change", "Changes", "steps_in_words"]

NOT_TRACKED = (
    "Changes are not tracked. Create the optimizer with track_changes=True, and load the "
    "state_dict() of this one to go on."
)
#: Why nothing is told while the EMA weights are swapped in.
AVERAGED = "what steps have changed cannot be told: it is of the weights in training"
WENT_ON = (
    "A step, a load, an added group or other changes came between the tensors of these changes, so "
    "they are of no one moment any more. Nothing is lost: call optimizer.changes() again, and go "
    "through it between steps."
)


class Change(NamedTuple):
    """The elements of one tensor that have changed, with the values that they have now."""

    #: Of the parameter, as ``named_parameters()`` has it.
    name: str
    #: Where the elements stand in the whole flattened tensor, ascending: int32, or int64 where the
    #: tensor has more than 2**31 - 1 elements.
    indices: Any
    #: One for each index, in the dtype of the parameter, or of its copy where it has one.
    values: Any
    #: Of the whole tensor.
    shape: tuple[int, ...]


class Chain:
    """Where those stand who have followed an optimizer's changes, as a random word.

    Step numbers alone do not tell: a training that went back to an older checkpoint comes past the
    same numbers with other weights.
    """

    __slots__ = ("following", "place")

    def __init__(self) -> None:
        self.place = _drawn()
        #: Where those will stand who take what is told next. Should that be told and not cleared,
        #: as after an interrupt, what is told then leads there again.
        self.following = _drawn()

    def moving(self, place: str) -> list[partial[Any]]:
        """Return the assignments after which they stand at ``place``, for ``all_at_once``."""
        return [
            partial(setattr, self, "place", place),
            partial(setattr, self, "following", _drawn()),
        ]

    def __getstate__(self) -> str:
        """Return what a copy, or a run that is resumed, has in common with this one."""
        return self.place

    def __setstate__(self, place: str) -> None:
        """Begin where the other stood, and lead elsewhere."""
        self.place, self.following = place, _drawn()


class Changes:
    """What changed since the last changes were told: an iterable of ``Change``.

    A tensor is looked through when its turn comes; those without changes are left out. Once all
    have been told the next ``optimizer.changes()`` starts anew; whoever stops before that has lost
    nothing. A step, a load or an added group meanwhile ends it with RuntimeError.
    """

    #: Number of the first step that these are the changes of; that of a run is 1.
    first_step: int
    #: Number of the last one: ``first_step - 1`` where no step was made.
    last_step: int
    #: Whether all elements of all parameters are among them, as after a load.
    is_whole: bool

    __slots__ = (
        "_chain", "_clear", "_each", "first_step", "follows", "is_whole", "last_step", "part",
        "parts", "place",
    )  # fmt: skip

    def __init__(
        self,
        each: Callable[[], Iterator[Change]],
        clear: Callable[[list[partial[Any]]], None] | None,
        first_step: int,
        last_step: int,
        is_whole: bool,
        *,
        chain: Chain | None = None,
        part: int = 0,
        parts: tuple[int, ...] = (0,),
    ) -> None:
        """``clear`` is None where nothing is to be cleared.

        It is given assignments that it makes together with its own, so that an interrupt comes
        before all of them or after.

        ``part`` is the rank of this process, ``parts`` are those of the processes whose changes
        are needed beside these for whole tensors.
        """
        self._each = each
        self._clear = clear
        self._chain = Chain() if chain is None else chain
        self.first_step = first_step
        self.last_step = last_step
        self.is_whole = is_whole
        self.part, self.parts = part, parts
        if is_whole:  # who has not got it cannot follow
            self._chain.following = _drawn()
        # What the changes follow on, and what follows on them.
        self.follows = self._chain.place
        self.place = self.follows if clear is None else self._chain.following

    def __iter__(self) -> Iterator[Change]:
        yield from self.each()
        self.clear()

    def each(self) -> Iterator[Change]:
        """Give the changes and clear nothing."""
        self._check_current()
        return self._each()

    def clear(self) -> None:
        """Start anew, as if all had been told; nothing where ``changes(clear=False)`` gave them."""
        if self._clear is not None:
            self._check_current()
            self._clear(self._chain.moving(self.place))

    def _check_current(self) -> None:
        """Raise RuntimeError where changes have been told since that begin as these do."""
        if self._chain.place != self.follows:
            raise RuntimeError(
                "These changes have been told already, and the marks they were made from are "
                "cleared. Call optimizer.changes() again for those since."
            )

    def __repr__(self) -> str:
        what = "everything" if self.is_whole else "what has changed"
        if self.last_step < self.first_step:
            return f"<Changes: {what} after step {self.last_step}, without a step>"
        return f"<Changes: {what} in {steps_in_words(self.first_step, self.last_step)}>"


def steps_in_words(first: int, last: int) -> str:
    """Return which steps these are, of which there is one at least."""
    return f"step {first}" if first == last else f"the steps {first} to {last}"


def _drawn() -> str:
    return os.urandom(8).hex()
