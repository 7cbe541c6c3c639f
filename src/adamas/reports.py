"""What the optimizers for NumPy arrays tell of the steps that they made."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from adamas.options import Phase
from adamas.runs import Run
from adamas.settings import fixed_method
from adamas.statistics import NONE_LEFT, NOT_TAKEN, Statistics

__all__ = ["Reports"]


class Reports:
    """What an optimizer tells of its steps; it has a run."""

    _run: Run

    @property
    def _phase(self) -> Phase:
        return self._run.phase

    def named_parameters(self) -> dict[str, NDArray[Any]]:
        """Return the parameters by name: the arrays themselves."""
        return dict(self._run.parameters.named)

    @property
    def steps(self) -> int:
        """How many steps were made; the next has the number ``steps + 1``."""
        return self._run.steps

    @property
    def skipped(self) -> int:
        """How many steps were skipped, since gradients were NaN or infinite."""
        return self._run.skipped

    @fixed_method
    def statistics(self) -> dict[str, Statistics]:
        """Return what the last step did to each parameter, by name.

        Raises RuntimeError where ``statistics=True`` was not given or no step was made yet.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        outcome = self._run.outcome
        if outcome is None or outcome.statistics is None:
            raise RuntimeError(NONE_LEFT)
        return dict(zip(self.named_parameters(), outcome.statistics, strict=True))

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step as given; None where no option needed it."""
        return getattr(self._run.outcome, "norm", None)
