"""What the optimizers for PyTorch tell of the steps that they made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, overload

import torch
from torch import Tensor

from adamas.assignments import Assignment
from adamas.changes import AVERAGED, NOT_TRACKED, WENT_ON, Change, Changes
from adamas.checks import check_flag
from adamas.options import Phase
from adamas.settings import fixed_method, stepping
from adamas.spikes import Skipped
from adamas.statistics import NONE_LEFT, NOT_TAKEN
from adamas.summary import summary as told
from adamas.torch import distributed
from adamas.torch.grouping import names_of, parameters_of
from adamas.torch.members import scalar
from adamas.torch.stepper import Stepper
from adamas.torch.tracking import Tracking

__all__ = ["Reports"]

# Where ``skipped`` stands in a checkpoint, torch.load() gives it back with weights_only=True.
torch.serialization.add_safe_globals([Skipped])


class Reports:
    """What an optimizer tells of its steps; it has groups, states, a phase and a stepper."""

    _phase: Phase
    _stepper: Stepper
    _tracking: Tracking
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

    @overload
    def statistics(self, *, summary: Literal[False] = ...) -> dict[str, Tensor]: ...
    @overload
    def statistics(self, *, summary: Literal[True]) -> dict[str, float]: ...
    @fixed_method
    def statistics(self, *, summary: bool = False) -> dict[str, Any]:
        """Return what the last step did: float64 scalars under ``"<parameter>/<statistic>"``.

        The statistics are the fields of ``adamas.Statistics``, and the form is that of
        TensorBoard's ``add_scalar(tag, value)``. Parameters have the names of
        ``named_parameters()``, or ``"<group>.<index>"``.

        With ``summary`` a dozen plain numbers of the whole step for a logger: the statistics of all
        parameters of this process taken as one, ``update_ratio`` (of update and parameter),
        ``clip_factor``, ``lr`` (of the first group), and how many steps were ``skipped`` so far.
        After a step that was left out it has what is known. Raises RuntimeError without any.
        """
        if not self._phase.statistics:
            raise RuntimeError(NOT_TAKEN)
        with self._stepper.held():
            record = self._stepper.record
            if not summary:
                return record.statistics(names_of(self.param_groups))
            if not record.count:
                raise RuntimeError(NONE_LEFT)
            return told(
                record.total(),
                lr=scalar(self.param_groups[0]["lr"]),
                gradient_norm=record.norm,
                clip_factor=record.clip_factor,
                skipped=self.skipped,
            )

    def changes(self, *, clear: bool = True) -> Changes:
        """Return what has changed since the last changes were told: ``Change`` by tensor.

        A change has indices in the whole flattened tensor and values, of the parameter as it is
        stored, or of its low-precision copy (``copy_to``). Of distributed tensors each process
        tells its own part. All of a parameter has changed after a load, where its group was added,
        and where something else than a step wrote to it. (What is written through ``.data`` is not
        seen.) With ``clear=False`` the next call tells all of it again. Raises RuntimeError without
        ``track_changes``, and while ``ema_weights()`` is open.
        """
        check_flag("clear", clear)
        return _told(stepping(self), clear)

    @property
    def skipped(self) -> Skipped:
        """How many steps were left out: an int that says what for. Reading it waits for devices."""
        return self._stepper.skipped

    @property
    def gradient_norm(self) -> float | None:
        """Norm of all gradients of the last step, unscaled; None where no option needed it."""
        return self._stepper.record.norm

    @property
    def clip_factor(self) -> float | None:
        """What the gradients of the last step were multiplied by, at most 1, with ``clip_norm``.

        None without, and after a step that was left out.
        """
        return self._stepper.record.clip_factor

    @property
    def copies(self) -> list[Tensor]:
        """The low-precision copies of the parameters, in their order; empty without ``copy_to``.

        Reading them brings them up to date with what changed outside of steps. While
        ``ema_weights()`` is open they are those of the weights in training.
        """
        return self._stepper.copies(self.param_groups, self.state)

    def _observe(self, who: object, wanted: bool) -> None:
        """Let further steps take statistics for somebody, or not; the phase stays as it is."""
        with self._stepper.turn.held():
            self._stepper.observe(who, wanted=wanted)


def _told(optimizer: Any, clear: bool) -> Changes:
    """Return the changes of an optimizer as it is now."""
    if not optimizer._phase.track_changes:
        raise RuntimeError(NOT_TRACKED)
    with optimizer._stepper.held(AVERAGED):
        names = names_of(optimizer.param_groups)
        optimizer._stepper.settle(optimizer.param_groups, optimizer.state)
        tracking: Tracking = optimizer._tracking
        moment, numbers = tracking.moment, (tracking.first_step, tracking.steps)
        is_whole = tracking.is_whole
        own, among = distributed.sharers(parameters_of(optimizer.param_groups))

    def refuse_later() -> None:
        if optimizer._tracking is not tracking or tracking.moment != moment:
            raise RuntimeError(WENT_ON)

    def each() -> Iterator[Change]:
        place = 0
        while place < len(names):
            with optimizer._stepper.held(AVERAGED):
                refuse_later()
                found, place = tracking.changes(place, names)
            for change in found:
                refuse_later()
                yield change
        with optimizer._stepper.held(AVERAGED):
            refuse_later()

    def start_anew(others: list[Assignment]) -> None:
        with optimizer._stepper.held(AVERAGED):
            refuse_later()
            tracking.clear(others)

    clearing = start_anew if clear else None
    return Changes(each, clearing, *numbers, is_whole, chain=tracking.chain, part=own, parts=among)
