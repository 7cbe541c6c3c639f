"""What the optimizers for NumPy arrays tell of the steps that they made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, overload

from numpy.typing import NDArray

from adamas.arrays import Layout, layout_of
from adamas.assignments import Assignment, all_at_once
from adamas.changes import AVERAGED, NOT_TRACKED, WENT_ON, Change, Changes
from adamas.checks import check_flag
from adamas.hooks import Handle, Hook, Hooks
from adamas.options import Phase
from adamas.runs import Run
from adamas.settings import fixed_method
from adamas.spikes import Skipped
from adamas.statistics import NONE_LEFT, NOT_TAKEN, OfPart, Statistics
from adamas.summary import summary, total
from adamas.tracked import Tracked
from adamas.turns import check_turn, in_turn

__all__ = ["Reports"]

Array = NDArray[Any]
#: Marks, how many steps were made, and how many when marks were last cleared.
Moment = tuple[Tracked, int, int]


class Reports:
    """What an optimizer tells of its steps; it has a run."""

    _run: Run
    _turn: Any
    _busy: bool
    _averaged: bool
    _hooks: Hooks
    #: Who asks for statistics besides the user.
    _observers: set[object]

    @property
    def _phase(self) -> Phase:
        return self._run.phase

    def named_parameters(self) -> dict[str, Array]:
        """Return the parameters by name: the arrays themselves."""
        return dict(self._run.parameters.named)

    @property
    def steps(self) -> int:
        """How many steps were made; the next has the number ``steps + 1``."""
        return self._run.steps

    @property
    def skipped(self) -> Skipped:
        """How many steps were left out: an int that says what for."""
        return self._run.skipped

    @overload
    def statistics(self, *, summary: Literal[False] = ...) -> dict[str, Statistics]: ...
    @overload
    def statistics(self, *, summary: Literal[True]) -> dict[str, float]: ...
    @fixed_method
    def statistics(self, *, summary: bool = False) -> dict[str, Any]:
        """Return what the last step did to each parameter, by name.

        With ``summary`` a dozen numbers of the whole step for a logger: the statistics of all
        parameters taken as one, ``update_ratio`` (of update and parameter), ``clip_factor``,
        ``lr`` (of the first group), and how many steps were ``skipped`` so far. After a step that
        was left out it has what is known. Raises RuntimeError where ``statistics=True`` was not
        given or no step was made yet.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        taken = self._run.statistics
        if self._run.outcome is None or (taken is None and not summary):
            raise RuntimeError(NONE_LEFT)
        if taken is None or summary:
            return self._summary(taken)
        named = self.named_parameters()
        return {name: each.alone for name, each in zip(named, taken, strict=True)}

    def changes(self, *, clear: bool = True) -> Changes:
        """Return what has changed since the last changes were told: ``Change`` by array.

        A change has indices in the flattened array and values. Everything has changed after a load,
        and of an array that lies elsewhere in memory than before. (What else writes to arrays is
        not seen.) With ``clear=False`` the next call tells all of it again. Raises RuntimeError
        without ``track_changes``, and within ``ema_weights()``.
        """
        check_flag("clear", clear)
        if not self._phase.track_changes:
            raise RuntimeError(NOT_TRACKED)
        moment = self._looked_at()
        tracked, steps, _ = moment
        parameters = self._run.parameters
        arrays = parameters.arrays
        members = [*zip(parameters.named, parameters.layouts, strict=True)]

        def each() -> Iterator[Change]:
            for place, ((name, p), layout) in enumerate(members):
                change = self._change(moment, place, name, p, layout)
                if change is not None:
                    yield change
            self._check_still(moment)

        clearing = partial(self._start_anew, moment) if clear else None
        first, is_whole = tracked.first_step(steps), tracked.is_whole(arrays)
        return Changes(each, clearing, first, steps, is_whole, chain=tracked.chain)

    @property
    def _moment(self) -> Moment:
        """What is another after each step, and after whatever changes marks."""
        tracked = self._run.tracked
        assert tracked is not None
        return tracked, self._run.steps, tracked.cleared_at[0]

    @in_turn(AVERAGED)
    def _looked_at(self) -> Moment:
        """Look at where the arrays are by now."""
        self._run = self._run.checked()
        return self._moment

    @in_turn(AVERAGED)
    def _check_still(self, moment: Moment) -> None:
        """Raise RuntimeError where the run went on."""
        if self._moment != moment:
            raise RuntimeError(WENT_ON)

    @in_turn(AVERAGED)
    def _change(
        self, moment: Moment, place: int, name: str, parameter: Any, layout: Layout
    ) -> Change | None:
        """Return what has changed of the parameter at a place; raise where the run went on."""
        if self._moment != moment or layout_of(parameter) != layout:
            raise RuntimeError(WENT_ON)
        return moment[0].change(place, name, parameter)

    @in_turn(AVERAGED)
    def _start_anew(self, moment: Moment, others: list[Assignment]) -> None:
        if self._moment != moment:
            raise RuntimeError(WENT_ON)
        all_at_once([*moment[0].clearing(self._run.steps), *others])

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step as given; None where no option needed it."""
        return getattr(self._run.outcome, "norm", None)

    @property
    def clip_factor(self) -> float | None:
        """What the gradients of the last step were multiplied by, at most 1, with ``clip_norm``.

        None without, and after a step that was left out.
        """
        return self._run.clip_factor

    def _summary(self, taken: Sequence[OfPart] | None) -> dict[str, float]:
        sizes = [p.size for p in self.named_parameters().values()]
        return summary(
            None if taken is None else total(taken, sizes),
            lr=self._run.rates[0],
            gradient_norm=self.gradient_norm,
            clip_factor=self.clip_factor,
            skipped=self.skipped,
        )

    # -- who looks on --------------------------------------------------------------------------

    def register_step_post_hook(self, hook: Hook) -> Handle:
        """Call ``hook(optimizer, args, kwargs)`` after each step, as with torch's optimizers.

        ``args`` are the optimizer and the gradients. Hooks are called in their order, when the step
        is made and before another thread's; what one raises, the step raises. ``remove()`` of what
        is returned takes a hook away. Copies and pickles of an optimizer have none.
        """
        return Handle(self._hooks, hook)

    def _observe(self, who: object, wanted: bool) -> None:
        """Let further steps take statistics for somebody, or not; the phase stays as it is."""
        with self._turn:
            check_turn(self, None)
            if wanted:
                self._observers.add(who)
            else:
                self._observers.discard(who)
            self._run = self._run.observed(bool(self._observers))
