"""What is asked of an optimizer whose steps are recorded, whatever its tensors are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

__all__ = ["CHOICES", "Observed", "Taken"]

#: What headers tell of the rule besides numbers, by the names of ``adamas.Options``.
CHOICES = (
    "decay",
    "lr_max",
    "bias_correction",
    "eps_place",
    "eps_root",
    "amsgrad",
    "nesterov",
    "rectify",
    "maximize",
)

#: Called after each step.
Called = Callable[..., None]


class Taken(NamedTuple):
    """What the last step did, as plain numbers."""

    #: Its number; that of the last one that was made, where it was left out. None: not counted.
    step: int | None
    #: Of each group.
    lr: list[float]
    gradient_norm: float | None
    #: Whether steps are clipped, and what by; None where the step was left out.
    is_clipping: bool
    clip_factor: float | None
    skipped: dict[str, int]
    #: By name; None where the step was left out.
    tensors: dict[str, dict[str, float]] | None


class Observed:
    """An optimizer, with what a recorder asks of it. It is not kept alive."""

    #: Whether this process writes what is recorded.
    is_writer = True

    def description(self) -> dict[str, Any]:
        """Return ``method``, ``phase``, ``groups`` and ``parameters`` of a header."""
        raise NotImplementedError

    def frame(self) -> Any:
        """Return what differs as soon as the description may; cheap, and compared at each line."""
        raise NotImplementedError

    def origin(self) -> Any:
        """Return what is another where a state was loaded."""
        raise NotImplementedError

    def follow(self, before_first: Called, after: Called) -> Callable[[], None]:
        """Have functions called before the next step, and after each; return what ends that."""
        raise NotImplementedError

    def begun(self) -> None:
        """Take notice that the first step was made."""

    def goes_on_uncounted(self) -> bool:
        """Return whether the first step goes on from others, of which none was counted."""
        return False

    def begin(self, every: int) -> bool:
        """Return whether this process has anything to do; before a step that is observed.

        Raises RuntimeError where a process that has parts of the tensors records nothing, or not
        the same steps.
        """
        raise NotImplementedError

    def observe(self, *, wanted: bool) -> None:
        """Let further steps take statistics, or not; the user sees nothing of it."""
        raise NotImplementedError

    def is_clipped(self, optimizer: Any) -> bool | None:
        """Return whether the step of the ``optimizer`` that was just made clipped.

        None where a device would be waited for.
        """
        raise NotImplementedError

    def taken(self) -> Taken | None:
        """Return what the last step did; None where it was not observed. Waits for devices."""
        raise NotImplementedError


def shown(phase: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a phase as JSON can have them."""
    plain = (str, int, float, bool, type(None))
    return {name: value for name, value in phase.items() if isinstance(value, plain)}
