"""Types of the compiled module; use the front-ends instead."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.coefficients import StepNumbers
from adamas.engines import Group
from adamas.engines.native import Cohort, Distributed, TensorSlot
from adamas.options import Options, Phase

class Plan:
    """A step over fixed arrays."""

    def __init__(
        self,
        groups: Sequence[Group],
        phase: Phase,
        keep_sums: bool = False,
        spikes: NDArray[np.float64] | None = None,
    ) -> None:
        """``spikes`` is what norms are judged by where the phase asks: ``adamas.spikes``."""
    def step(
        self,
        gradients: Sequence[Any],
        step: int,
        rates: Sequence[float],
        record: list[Any] | None = None,
    ) -> Any: ...
    def step_tree(
        self, gradients: Any, like: Any, step: int, rates: Sequence[float], record: list[Any]
    ) -> Any: ...
    def step_with(
        self,
        gradients: Sequence[Any],
        numbers: Sequence[StepNumbers],
        loss_scale: float = 1.0,
        factor: float = 1.0,
    ) -> Any: ...
    def measured(
        self,
        gradients: Sequence[Any],
        numbers: Sequence[StepNumbers],
        loss_scale: float = 1.0,
        factor: float = 1.0,
    ) -> Any:
        """Return the sums that ``step_with`` would clip updates by: a row for each slot, bytes."""

class TensorPlan:
    """A step over the parameters of a torch.optim.Optimizer."""

    def __init__(
        self,
        tensor_type: type,
        parameter_type: type,
        groups: list[dict[str, Any]],
        slots: Sequence[TensorSlot],
        cohorts: Sequence[Cohort],
        idle: Sequence[Any],
        phase: Phase,
        increment_version: Callable[[list[Any]], None],
        rows: int = 1,
        exchange: Callable[[NDArray[np.int64]], None] | None = None,
        distributed: Distributed | None = None,
        keep_sums: bool = False,
        spikes: NDArray[np.float64] | None = None,
        versions: NDArray[np.int64] | None = None,
        update_rows: int = 0,
        exchange_updates: Callable[[NDArray[np.int64]], None] | None = None,
    ) -> None:
        """Gradients are summed up in ``rows`` rows of ``adamas.digits``, as each slot says.

        Where the phase reads gradients before a step, ``exchange`` is called after that with all
        rows, int64[rows, WIDTH], and adds to them in place what other processes have. With
        ``keep_sums`` a sixth part of an outcome has the rows of its statistics, three of each
        tensor, as bytes. ``spikes`` is what norms are judged by where the phase asks:
        ``adamas.spikes``. ``versions`` are those of all parameters that the last step has
        left, and then the number of steps, which goes on: where a version is another by now, all
        of that parameter is marked as changed.

        Where the phase clips updates, ``exchange_updates`` is called before anything is written,
        in every step that is not left out, with int64[update_rows, WIDTH]: the sums of the tensors
        that other processes have parts of, as their slots say; the rows of others are 0.
        """
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Any,
        loss_scale: float = 1.0,
        factor: float = 1.0,
        numbers: Sequence[StepNumbers] | None = None,
    ) -> Any: ...
    def step_if_open(self, groups: list[dict[str, Any]], state: Any) -> Any:
        """Make one step; NotImplemented, too, where the plan is closed or in use.

        A new plan is closed.
        """
    def set_phase(self, phase: Phase) -> None:
        """Step by another phase from now on, which keeps the same averages."""
    def open(self) -> None:
        """Let anybody step."""
    def close(self) -> bool:
        """Let nobody step that asks; False while such a step is in flight: close it again then."""
    @property
    def is_called_here(self) -> bool:
        """Whether a step of this thread is in flight."""
    @property
    def stepped(self) -> int:
        """How many parameters the last step was about: those with a gradient."""
    @property
    def parameters(self) -> list[Any]:
        """Those parameters."""
    @property
    def is_fast(self) -> bool: ...

class TensorWatch:
    """Whether the tensors of a torch.optim.Optimizer are those a plan was made for.

    ``groups`` are the optimizer's own. ``members`` are parameters with a gradient, in the order of
    the optimizer's state, each with its state and further tensors whose addresses must stay.
    ``idle`` are parameters without a gradient. Tensors of all devices; no value is read. Of a
    distributed tensor this process's part is looked at.
    """

    def __init__(
        self,
        tensor_type: type,
        parameter_type: type,
        groups: list[dict[str, Any]],
        members: Sequence[tuple[Any, dict[str, Any], Sequence[Any]]],
        idle: Sequence[Any],
        distributed: Distributed | None = None,
    ) -> None: ...
    def gradients(
        self, groups: list[dict[str, Any]], state: Any, addresses: NDArray[np.int64]
    ) -> bool:
        """Return whether all is as it was, and every gradient fits its parameter.

        Then ``addresses`` (one for each member) holds those of the gradients; otherwise anything.
        Learning rates are free. Raises RuntimeError where another thread is in this call, and
        ValueError where ``addresses`` cannot be written.
        """
    @property
    def is_fast(self) -> bool: ...

def target() -> str: ...
def targets(only_here: bool = False) -> list[str]: ...
def set_target(name: str) -> None: ...
def thread_count() -> int: ...
def set_thread_count(count: int) -> None: ...
def set_usual_threads(count: int) -> None: ...
def processor_count() -> int: ...
def ask_for_huge_pages(address: int, size: int) -> None: ...
def numbers(options: Options, step: int, lr: float, grad_scale: float) -> tuple[float, ...]: ...
def add_squares(array: Any, row: NDArray[np.int64]) -> None: ...
def marked_count(marks: NDArray[np.int32], count: int) -> int: ...
def counts_below(arrays: list[NDArray[Any]], bounds: list[float]) -> list[int]: ...
def write_marked(marks: NDArray[np.int32], count: int, indices: NDArray[Any]) -> None: ...
