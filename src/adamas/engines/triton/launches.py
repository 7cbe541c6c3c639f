"""Steps of tensors on devices: tables there, and a few launches.

One launch steps all tensors that are stored alike, whatever their number and shapes: kernels find
addresses in a table on the device, which is sent when launches are made. What may change from step
to step (addresses of gradients, numbers and rates kept on the host) is sent again where it has
changed. Norm, guard, clip factor, loss scale and the numbers of a step are taken on the device, and
the host waits for none of it unless it asks: ``on_nonfinite="raise"`` does, and so does whoever
reads an outcome (``DeviceOutcome``).

Inside a CUDA graph a step reads what it finds on the device at each replay: learning rates and
numbers of steps that are tensors there. What is sent from the host is sent again by each replay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adamas.engines.triton import devices
from adamas.engines.triton.jobs import Inputs, Job, signature_of
from adamas.options import Options, Phase
from adamas.spikes import created
from adamas.statistics import OfPart, Outcome, Statistics

__all__ = ["DeviceOutcome", "Launches"]

T = TypeVar("T")


class DeviceOutcome:
    """What a step reports, as ``adamas.statistics.Outcome``; each reading waits for it."""

    def __init__(self, launches: Launches) -> None:
        """Read what the last step has left on the device."""
        self._launches = launches

    @property
    def verdict(self) -> Tensor:
        """Not 0 where the step was made, on the device; nothing waits for it."""
        return self._launches.parts[0].is_applied

    @property
    def applied(self) -> bool:
        """Whether the step was made."""
        return not self._launches.is_guarded or bool(self.verdict.item())

    @property
    def spike(self) -> bool:
        """Whether it was left out because the norm leaps."""
        launches = self._launches
        watches = launches.is_guarded and launches.phase.skip_above is not None
        return watches and bool(launches.parts[0].is_spike.item())

    @property
    def norm(self) -> float | None:
        """Euclidean norm of all gradients, unscaled; None where nothing needed it."""
        launches = self._launches
        return float(launches.parts[0].norm.item()) if launches.phase.reads_first else None

    @property
    def nonfinite(self) -> tuple[int, ...] | None:
        """Number of non-finite elements of each gradient; None where nothing needed it."""
        launches = self._launches
        if not launches.phase.reads_first:
            return None
        return launches.of_jobs(part.nonfinite() for part in launches.parts)

    @property
    def statistics(self) -> tuple[Statistics, ...] | None:
        """One entry for each tensor; None where none were taken."""
        launches = self._launches
        if not launches.phase.statistics or not self.applied:
            return None
        return launches.of_jobs(part.statistics() for part in launches.parts)

    @property
    def recorded(self) -> tuple[OfPart, ...] | None:
        """The same with their sums."""
        launches = self._launches
        if not launches.phase.statistics or not self.applied:
            return None
        return launches.of_jobs(part.recorded() for part in launches.parts)

    def fetched(self) -> Outcome:
        """Return all of it, as it is now: the next step leaves another."""
        return Outcome(self.applied, self.norm, self.nonfinite, self.statistics, self.spike)


class Launches:
    """The step of fixed tensors on any number of devices."""

    def __init__(
        self,
        jobs: Sequence[Job],
        options: Sequence[Options | None],
        phase: Phase,
        *,
        rows: int = 1,
        exchange: Callable[[Tensor], None] | None = None,
        device: torch.device | None = None,
        spikes: Tensor | None = None,
        wholes: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Make the tables of ``jobs``; ``options`` has those of each group, None where given.

        Gradients are counted in sums, of which there are ``rows``. ``exchange`` adds up, in place,
        what other processes have in them: int64[rows, digits.WIDTH] on the first job's device, or
        on ``device`` where there are no jobs. ``spikes`` is the window of ``adamas.spikes``, on
        that device; where the phase needs one and none is given, it is one of its own. ``wholes``
        makes sums of whole tensors of those of the jobs, where updates are clipped by them: in
        place, int64[jobs, digits.WIDTH] on that device.
        """
        from adamas.engines.triton.parts import Part

        self.phase = phase
        self._exchange = exchange
        self._wholes = wholes
        #: What it is made of: equal where it may be used again.
        self.signature = signature_of(jobs, options, phase, (exchange, wholes), spikes)
        by_device: dict[torch.device, list[int]] = {}
        if not jobs and device is not None:
            by_device[device] = []
        for i, job in enumerate(jobs):
            by_device.setdefault(job.device, []).append(i)
        #: Graphs write to them at each replay.
        self._marks = [job.marks for job in jobs if job.marks is not None]
        self._places = [np.array(indices, np.int64) for indices in by_device.values()]
        given = np.cumsum([job.is_given for job in jobs]) - 1
        self._given_places = [
            [int(given[i]) for i in indices if jobs[i].is_given] for indices in by_device.values()
        ]
        #: What goes to each device; the first has the verdict on all of them.
        self.parts = [
            Part(device, [jobs[i] for i in indices], options, phase, rows)
            for device, indices in by_device.items()
        ]
        if phase.skip_above is not None and spikes is None:
            spikes = torch.from_numpy(created(phase.skip_window)).to(self.parts[0].device)
        self._spikes = None if phase.skip_above is None else spikes
        self._order = np.argsort(np.concatenate(self._places), kind="stable").tolist()
        #: Whether the last step has asked for a verdict.
        self.is_guarded = False
        #: Whether a CUDA graph has recorded a step: the tables must then outlive the plan.
        self.is_captured = False

    def step(self, inputs: Inputs, skipped: dict[torch.device, Tensor]) -> DeviceOutcome | None:
        """Launch one step; ``skipped`` has an int64 scalar on each device that counts."""
        phase, outcome = self.phase, DeviceOutcome(self)
        captured = [devices.is_capturing(part.device) for part in self.parts]
        self.is_captured = self.is_captured or any(captured)
        guarded = phase.reads_first or inputs.found_inf is not None
        guarded = guarded or inputs.scale_on_device is not None
        self.is_guarded = guarded
        for part, places, given, is_captured in zip(
            self.parts, self._places, self._given_places, captured, strict=True
        ):
            part.send(inputs, places, given, is_captured=is_captured)
        if guarded:
            lead, *others = self.parts
            rows = self._read() if phase.reads_first else None
            lead.conclude(rows, inputs, skipped, self._spikes)
            for part in others:
                part.verdict.copy_(lead.verdict, non_blocking=True)
            if phase.on_nonfinite == "raise" and not outcome.applied:
                return outcome
        for part in self.parts:
            part.number(guarded)
        if phase.clip_update is not None:
            self._shorten(guarded, inputs)
        for part in self.parts:
            part.sweep(guarded)
        return outcome if guarded or phase.statistics else None

    def _read(self) -> Tensor:
        """Read the gradients; return the rows of all parts, and of all processes, on the first."""
        lead, *others = self.parts
        rows = lead.read()
        if not others and self._exchange is None:
            return rows
        own = [rows, *(part.read().to(lead.device) for part in others)]
        if self._exchange is None:
            return torch.cat(own)
        rows = lead.carried(torch.stack(own))
        self._exchange(rows)
        return rows

    def _shorten(self, guarded: bool, inputs: Inputs) -> None:
        """Clip updates, by sums of all processes where there are several."""
        if inputs.updates is not None:
            for part, places in zip(self.parts, self._places, strict=True):
                part.shorten(torch.from_numpy(inputs.updates[places]).to(part.device))
            return
        own = [part.measure(guarded) for part in self.parts]
        if self._wholes is not None:
            lead = self.parts[0]
            pairs = zip(self.parts, own, strict=True)
            carried = [part.carried(rows.unsqueeze(0)) for part, rows in pairs]
            rows = torch.cat([each.to(lead.device) for each in carried])
            if len(own) > 1:  # in the order of the jobs
                rows = rows[self._order]
            self._wholes(rows)
            own = (
                [rows]
                if len(own) == 1
                else [
                    rows[places].to(part.device)
                    for part, places in zip(self.parts, self._places, strict=True)
                ]
            )
        for part, rows in zip(self.parts, own, strict=True):
            part.shorten(rows)

    def of_jobs(self, found: Iterable[Sequence[T]]) -> tuple[T, ...]:
        """Return what the parts have found of each tensor, in the order of the jobs."""
        of_all = list(itertools.chain.from_iterable(found))
        return tuple(of_all[i] for i in self._order)
