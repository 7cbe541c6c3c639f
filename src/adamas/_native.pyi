"""Types of the compiled module; use the front-ends instead."""

from collections.abc import Callable, Sequence
from typing import Any

from adamas.engines import Group
from adamas.options import Options, Phase

class Plan:
    """A step over fixed arrays."""

    def __init__(self, groups: Sequence[Group], phase: Phase) -> None: ...
    def step(self, gradients: Sequence[Any], step: int, rates: Sequence[float]) -> Any: ...
    def step_with(
        self,
        gradients: Sequence[Any],
        numbers: Sequence[tuple[float, ...]],
        loss_scale: float = 1.0,
        factor: float = 1.0,
    ) -> Any: ...

class TensorPlan:
    """A step over the parameters of a torch.optim.Optimizer."""

    def __init__(
        self,
        tensor_type: type,
        parameter_type: type,
        groups: list[dict[str, Any]],
        members: Sequence[tuple[Any, ...]],
        cohorts: Sequence[tuple[int, Options | None]],
        idle: Sequence[Any],
        phase: Phase,
        increment_version: Callable[[list[Any]], None],
    ) -> None: ...
    def step(
        self,
        groups: list[dict[str, Any]],
        state: Any,
        loss_scale: float = 1.0,
        factor: float = 1.0,
        numbers: Sequence[tuple[float, ...]] | None = None,
    ) -> Any: ...
    @property
    def is_fast(self) -> bool: ...

def target() -> str: ...
def targets(only_here: bool = False) -> list[str]: ...
def set_target(name: str) -> None: ...
def thread_count() -> int: ...
def set_thread_count(count: int) -> None: ...
def processor_count() -> int: ...
def numbers(options: Options, step: int, lr: float, grad_scale: float) -> tuple[float, ...]: ...
def exact_sum(numbers: Sequence[float]) -> float: ...
def touch(arrays: Sequence[Any]) -> None: ...
