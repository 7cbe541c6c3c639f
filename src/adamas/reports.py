"""What the optimizers for NumPy arrays tell of the steps that they made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

from numpy.typing import NDArray

from adamas.hooks import Handle, Hook, Hooks
from adamas.options import Phase
from adamas.runs import Run
from adamas.settings import fixed_method
from adamas.spikes import Skipped
from adamas.statistics import NONE_LEFT, NOT_TAKEN, OfPart, Statistics
from adamas.summary import summary, total
from adamas.turns import check_turn

__all__ = ["Reports"]

Array = NDArray[Any]


class Reports:
    """What an optimizer tells of its steps; it has a run."""

    _run: Run
    _turn: Any
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
