"""Steps of parameters on a card whose state stays in host memory, by the processor.

Elements go in chunks through a few staging buffers: gradients and parameters come down, the native
engine steps them with their slice of the state, parameters go up. A chunk comes down while the one
before is stepped and the one before that goes up. The card keeps parameters and gradients alone.

Three queues of copies take part: the device's own (its current stream), "down" and "up". All that
one waits for is said here, in ``Offload``; ``CudaStreams`` only carries it out.

Random bits and blocks are those of whole tensors, and chunks are cut where tiles are, so a step
has the bits of one in the processor's memory.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from adamas.coefficients import StepNumbers
from adamas.digits import WIDTH, Row, carried
from adamas.options import Phase
from adamas.statistics import Statistics
from adamas.torch import operations, small
from adamas.torch.members import Member
from adamas.torch.numbers import Scaling
from adamas.torch.routes import Made, Route, Setup
from adamas.torch.routes.chunks import (
    Chunk,
    Item,
    Room,
    bound,
    cut_up,
    rounds_of,
    staging_bytes,
    wide_bytes,
)
from adamas.torch.updates import shortened

__all__ = ["BUFFERS", "CudaStreams", "Offload", "Offloaded", "takes"]

#: Staging buffers: one comes down, one is stepped, one goes up.
BUFFERS = 3
#: Sets of items that are kept ready for the next time.
_MOST_PREPARED = 8

Queue = Literal["own", "down", "up"]
Pairs = Sequence[tuple[Tensor, Tensor]]


def takes(member: Member) -> bool:
    """Whether the state of a parameter is in host memory."""
    return member.is_offloaded


# ── queues of copies ───────────────────────────────────────────────────────────────────────────


class CudaStreams:
    """Queues of copies of a CUDA device, which go on by themselves, each in its order.

    Its own queue is the stream that is current there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams = {"down": torch.cuda.Stream(device), "up": torch.cuda.Stream(device)}

    def record(self, queue: Queue) -> torch.cuda.Event:
        """Return an event: all that was asked of a queue before is done."""
        return self._stream(queue).record_event()

    def wait(self, queue: Queue, event: torch.cuda.Event) -> None:
        """Let what is asked of a queue from now on begin after an event."""
        self._stream(queue).wait_event(event)

    def copy(self, queue: Queue, pairs: Pairs) -> None:
        """Ask for copies, each from the second to the first, where the host's side is pinned."""
        with torch.cuda.stream(self._stream(queue)):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def synchronize(self, event: torch.cuda.Event) -> None:
        """Wait for an event."""
        event.synchronize()

    def _stream(self, queue: Queue) -> Any:
        if queue == "own":
            return torch.cuda.current_stream(self._device)
        return self._streams[queue]


# ── what is stepped ────────────────────────────────────────────────────────────────────────────


class _Round(NamedTuple):
    """Chunks of one device that share no memory, and the items they are made of."""

    items: list[int]
    chunks: list[Chunk]


@functools.lru_cache(maxsize=64)
def _carried_on(ema: float | None, statistics: bool, seed: int) -> Phase:
    return Phase(ema=ema, statistics=statistics, seed=seed)


class Offload:
    """Steps items, with chunks and buffers that are made once and kept while they fit."""

    def __init__(self, phase: Phase) -> None:
        """Take ``phase``; its norm, guard and clipping are over when a step begins."""
        self.go_by(phase)
        #: What the last sets of items were cut into: gradients may come and go, and so may
        #: statistics, for which tensors are whole.
        self.prepared: dict[tuple[Any, ...], list[_Round]] = {}
        #: Where chunks are staged, one after another.
        self.buffers: list[Room] = []
        self._streams: dict[torch.device, CudaStreams] = {}
        #: The last copies up, of any device: they read the buffers.
        self.uploaded: Any = None

    def go_by(self, phase: Phase) -> None:
        """Go on by another phase that keeps the same."""
        self._phase = _carried_on(phase.ema, phase.statistics, phase.seed)

    def prepare(self, items: Sequence[Item]) -> list[_Round]:
        """Return what a step of items goes by, which is kept for the next one."""
        own = tuple((item.memory, item.form) for item in items)
        known = self._phase.statistics, own
        rounds = self.prepared.pop(known, None)
        if rounds is None:
            self._forget(known)
            rounds = self._made(items)
        self.prepared[known] = rounds
        return rounds

    def step(
        self,
        items: Sequence[Item],
        numbers: Sequence[StepNumbers],
        loss_scale: float,
        factor: float,
    ) -> list[Statistics | None]:
        """Make one step in place; return what it did to each item, where the phase records.

        ``numbers`` are those of the cohorts.
        """
        rounds = self.prepare(items)
        records: list[Statistics | None] = [None] * len(items)
        for each in rounds:
            for item, record in self._run(each, items, numbers, loss_scale, factor):
                records[item] = record
        return records

    def _run(
        self,
        this: _Round,
        items: Sequence[Item],
        numbers: Sequence[StepNumbers],
        loss_scale: float,
        factor: float,
    ) -> list[tuple[int, Statistics]]:
        """Make the step of one round; return the records of its items."""
        streams = self._streams_of(items[this.items[0]].parameter.device)
        flat = _Flat(items, this.items)
        records: list[tuple[int, Statistics]] = []
        try:
            for chunk in self._coming_down(this, flat, streams):
                records += _stepped(chunk, numbers, loss_scale, factor)
                streams.copy("up", flat.targets(chunk))
                self.uploaded = streams.record("up")
        finally:
            # What is asked of the device next finds the new parameters, and no copy under way
            # reads or writes memory that it takes.
            streams.wait("own", streams.record("down"))
            streams.wait("own", streams.record("up"))
        flat.put_back()
        return records

    def measured(
        self,
        items: Sequence[Item],
        numbers: Sequence[StepNumbers],
        loss_scale: float,
        factor: float,
    ) -> list[Row]:
        """Return the rows of what the updates of items are clipped by; nothing is changed."""
        rows = [np.zeros(WIDTH, np.int64) for _ in items]
        for this in self.prepare(items):
            streams = self._streams_of(items[this.items[0]].parameter.device)
            flat = _Flat(items, this.items)
            try:
                for chunk in self._coming_down(this, flat, streams):
                    for item, row in _measured(chunk, numbers, loss_scale, factor):
                        rows[item] = carried(rows[item] + row)
            finally:
                streams.wait("own", streams.record("down"))
        return rows

    def _coming_down(self, this: _Round, flat: _Flat, streams: CudaStreams) -> Iterator[Chunk]:
        """Yield chunks as they come down; the buffer of one is free when the next is asked for.

        Copies up that read it, if any, are those that were recorded last.
        """
        # What the device computed before, gradients above all, is done before it is read. The
        # copies up need not wait for it: each is of what came down.
        streams.wait("down", streams.record("own"))
        if self.uploaded is not None:
            streams.wait("down", self.uploaded)
        came: deque[Any] = deque()

        def fetch(chunk: Chunk) -> None:
            streams.copy("down", flat.sources(chunk))
            came.append(streams.record("down"))

        for chunk in this.chunks[: len(self.buffers)]:
            fetch(chunk)
        following = this.chunks[len(self.buffers) :]
        for chunk, later in itertools.zip_longest(this.chunks, following):
            streams.synchronize(came.popleft())
            yield chunk
            if later is not None:  # into the buffer that is now read
                if self.uploaded is not None:
                    streams.wait("down", self.uploaded)
                fetch(later)

    def _streams_of(self, device: torch.device) -> CudaStreams:
        if device not in self._streams:
            self._streams[device] = CudaStreams(device)
        return self._streams[device]

    # -- the plan ----------------------------------------------------------------------------

    def _forget(self, known: tuple[Any, ...]) -> None:
        """Let go of what was prepared longest ago, or for memory that is not in use any more."""
        used = {memory[0]: memory for memory, _ in known[1]}
        for before in list(self.prepared):
            if any(used.get(memory[0], memory) != memory for memory, _ in before[1]):
                del self.prepared[before]
        while len(self.prepared) >= _MOST_PREPARED:
            del self.prepared[next(iter(self.prepared))]

    def _made(self, items: Sequence[Item]) -> list[_Round]:
        """Return items cut into chunks, each bound to a buffer."""
        rounds = [
            (indices, cut_up(items, indices, whole=self._phase.statistics))
            for indices in rounds_of(items)
        ]
        pieces = [each for _, cut in rounds for each in cut]
        needed = max((staging_bytes(items, each) for each in pieces), default=0)
        count = min(BUFFERS, max((len(cut) for _, cut in rounds), default=0))
        if len(self.buffers) < count or any(room.nbytes < needed for room in self.buffers):
            self.prepared.clear()  # they are bound to buffers that go
            self.buffers = []
            self.buffers = [Room(needed, pinned=True) for _ in range(count)]
        made: list[_Round] = []
        wide = Room(max((wide_bytes(items, each) for each in pieces), default=0), pinned=False)
        for indices, cut in rounds:
            chunks: list[Chunk] = []
            for own, room in zip(cut, itertools.cycle(self.buffers), strict=False):
                room.clear()
                wide.clear()
                chunks.append(bound(items, own, room, wide, self._phase))
            made.append(_Round(indices, chunks))
        return made


class Offloaded(Route):
    """The parameters that are stepped so."""

    name = "offload"

    def __init__(self, members: Sequence[Member], setup: Setup, pipeline: Offload) -> None:
        """Step ``members`` through a pipeline, which keeps what it has prepared."""
        super().__init__(members, setup)
        self._pipeline = pipeline
        self._items: list[Item] = []
        self._given: list[StepNumbers] = []

    def ready(self) -> None:
        """Take the numbers, and cut what has not been cut before."""
        numbers = self._numbers
        cohorts: dict[Hashable, int] = {}
        options = numbers.options(self.members)
        self._items, self._given = [], []
        for member in self.members:
            key = numbers.cohort(member)
            if self._phase.clip_update is not None:  # each is clipped by its own factor
                key = member.place
            if key not in cohorts:
                cohorts[key] = len(cohorts)
                self._given.append(numbers.of(member, options[id(member.group)]))
            self._items.append(Item.of(member, cohorts[key]))
        self._pipeline.prepare(self._items)

    def measured(self, scaling: Scaling, factor: float) -> Sequence[Row]:
        """Return the rows of what updates are clipped by, chunk by chunk."""
        return self._pipeline.measured(self._items, self._given, scaling.loss_scale, factor)

    def step(
        self, scaling: Scaling, factor: float = 1.0, updates: Mapping[int, Row] | None = None
    ) -> Made | None:
        """Make one step, chunk by chunk."""
        items, self._items = self._items, []  # gradients are to go when the user lets them go
        given, updates, bound = self._given, updates or {}, self._phase.clip_update
        for item in items if bound is not None else ():
            own, row = given[item.cohort], updates[item.member.place]
            given[item.cohort] = own._replace(rule=shortened(own.rule, item.member, row, bound))
        records = self._pipeline.step(items, given, scaling.loss_scale, factor)
        for member in self.members:
            if member.step is not None:
                member.step.add_(1)
        return self._reported(records)


def _stepped(
    chunk: Chunk, numbers: Sequence[StepNumbers], loss_scale: float, factor: float
) -> list[tuple[int, Statistics]]:
    """Step what lies in a staging buffer; return the records of items."""
    for narrow, wide in chunk.widened:
        wide.copy_(narrow)
    own = [numbers[cohort] for cohort in chunk.cohorts]
    outcome = chunk.plan.step_with(chunk.gradients, own, loss_scale, factor)
    for narrow, wide in chunk.widened:
        narrow.copy_(wide)
    for staged in chunk.staged:
        if staged.copy is not None:
            staged.copy.copy_(small.decoded_parameter(staged.parameter, staged.remainder))
    if outcome is None or outcome.statistics is None:
        return []
    return list(zip(chunk.items, outcome.statistics, strict=True))


def _measured(
    chunk: Chunk, numbers: Sequence[StepNumbers], loss_scale: float, factor: float
) -> list[tuple[int, Row]]:
    """Return items with the rows of their elements that lie in a staging buffer."""
    for narrow, wide in chunk.widened:
        wide.copy_(narrow)
    own = [numbers[cohort] for cohort in chunk.cohorts]
    rows = chunk.plan.measured(chunk.gradients, own, loss_scale, factor)
    return list(zip(chunk.items, rows, strict=True))


class _Flat:
    """The memory of items on their device, as the copies see it: flat and contiguous.

    What is not contiguous, or a copy on another device, has a double there that is put back after.
    """

    def __init__(self, items: Sequence[Item], indices: Sequence[int]) -> None:
        self._put_back: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._gradients = {i: items[i].gradient.detach().contiguous().view(-1) for i in indices}
        self._parameters = {
            i: self._written(items[i].parameter, items[i].parameter.device) for i in indices
        }
        self._copies: dict[int, Tensor] = {}
        for i in indices:
            item = items[i]
            if item.copy is not None and item.marks is not None:
                # What was there before is compared with what comes up.
                shape, dtype = item.copy.shape, item.copy.dtype
                double = torch.empty(shape, dtype=dtype, device=item.parameter.device)
                self._copies[i] = double.view(-1)
                self._put_back.append((item.copy, double, item.marks))
            elif item.copy is not None:
                self._copies[i] = self._written(item.copy, item.parameter.device)
            elif item.lower is not None:
                self._put_back.append((item.lower, item.parameter, item.marks))

    def sources(self, chunk: Chunk) -> list[tuple[Tensor, Tensor]]:
        """Return what comes down."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for staged in chunk.staged:
            item, part = staged.piece.item, slice(staged.piece.first, staged.piece.last)
            pairs.append((staged.parameter, self._parameters[item][part]))
            pairs.append((staged.gradient, self._gradients[item][part]))
        return pairs

    def targets(self, chunk: Chunk) -> list[tuple[Tensor, Tensor]]:
        """Return what goes up."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for staged in chunk.staged:
            item, part = staged.piece.item, slice(staged.piece.first, staged.piece.last)
            pairs.append((self._parameters[item][part], staged.parameter))
            if staged.copy is not None:
                pairs.append((self._copies[item][part], staged.copy))
        return pairs

    def put_back(self) -> None:
        """Write what is left to write, where all else is up."""
        for target, source, marks in self._put_back:
            operations.store(target, source, marks)

    def _written(self, tensor: Tensor, device: torch.device) -> Tensor:
        tensor = tensor.detach()
        flat = tensor.to(device).contiguous()
        if flat is not tensor:
            self._put_back.append((tensor, flat, None))
        return flat.view(-1)
