"""What the optimizers for PyTorch tell of the steps that they made."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adamas.options import Phase
from adamas.settings import fixed_method
from adamas.statistics import NOT_TAKEN
from adamas.torch.grouping import names_of
from adamas.torch.stepper import Stepper

__all__ = ["Reports"]


class Reports:
    """What an optimizer tells of its steps; it has groups, states, a phase and a stepper."""

    _phase: Phase
    _stepper: Stepper
    param_groups: list[dict[str, Any]]
    state: Any

    def routes(self) -> dict[str, str]:
        """Return how the last step stepped each parameter: its name, and that of the route.

        Routes are "native" (the compiled engine), "triton", "offload" (the same, state in host
        memory) and "torch" (PyTorch's own operations). Parameters without a gradient then are not
        among them; before the first step, and after loading, none is.
        """
        with self._stepper.held():
            return self._stepper.routes(self.param_groups)

    @fixed_method
    def statistics(self) -> dict[str, Tensor]:
        """Return what the last step did: float64 scalars under ``"<parameter>/<statistic>"``.

        The statistics are the fields of ``adamas.Statistics``, and the form is that of
        TensorBoard's ``add_scalar(tag, value)``. Parameters have the names of
        ``named_parameters()``, or ``"<group>.<index>"``. Raises RuntimeError without any.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        with self._stepper.held():
            return self._stepper.record.statistics(names_of(self.param_groups))

    @property
    def skipped(self) -> int:
        """How many steps were skipped, since a gradient was NaN or infinite."""
        return self._stepper.skipped

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step, unscaled; None where no option needed it."""
        return self._stepper.record.norm

    @property
    def copies(self) -> list[Tensor]:
        """The low-precision copies of the parameters, in their order; empty without ``copy_to``.

        Reading them brings them up to date with what changed outside of steps. While
        ``ema_weights()`` is open they are those of the weights in training.
        """
        return self._stepper.copies(self.param_groups, self.state)
