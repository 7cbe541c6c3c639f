"""The part of a step that goes to one device: its tables, and the kernels that are launched there.

Kernels find in a table what belongs to each tensor (``tables``). A launch covers the chunks of
all tensors that are stored alike.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas import digits
from adamas.engines.triton import kernels, numbers, sums, tables
from adamas.engines.triton.jobs import Inputs, Int64, Job, Stored
from adamas.engines.triton.live import Live
from adamas.engines.triton.rule import OPTIONS
from adamas.options import Options, Phase
from adamas.statistics import OfPart, Statistics

__all__ = ["Part"]

#: Where rows of sums are taken, a program takes a piece: so many chunks of a tensor, at most, that
#: its digits have room, and so few where there are few that all of a device has work.
_MOST_CHUNKS = 64
_PIECES = 2048
#: Entries of rows that one program adds up, and how many rows at a time.
_COLLECTED, _AT_ONCE = 16, 64
#: Bytes: kernels read aligned arrays so many at a time.
_ALIGNMENT = 16
#: Of each tensor, where a step is recorded; as many counts go with them.
_NORMS = tables.NORMS.value

#: Of each device, a count of steps.
_Counters = dict[torch.device, Tensor]


class _Chunks(NamedTuple):
    """The chunks of tensors that are stored alike, and how the kernel is to be compiled."""

    chunks: Tensor
    rows: Int64  # of its tensors
    stored: Stored
    is_aligned: bool
    #: The same, several chunks of a tensor at a time, and where their rows of sums begin.
    pieces: Tensor
    first_row: int


class _Sums(NamedTuple):
    """Rows of sums: of each piece, and of what pieces belong to."""

    rows: Tensor
    #: Those of each launch.
    by_launch: list[Tensor]
    #: Numbers of the rows to add up, and ranges of them.
    order: Tensor
    ranges: Tensor
    total: Tensor


class _Device:
    """What is kept on one device, and what is launched there."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: list[Tensor] = []  # that a graph reads from
        self._compiled: dict[Any, Any] = {}

    def launch(
        self,
        which: Any,
        kernel: Any,
        grid: tuple[int, ...],
        *arguments: Any,
        num_warps: int = 4,
        **constants: Any,
    ) -> None:
        """Launch a kernel, and keep what it was compiled to: to find that takes longer than to run.

        ``which`` tells apart launches of one kernel whose constants or addresses differ.
        """
        compiled = self._compiled.get((kernel, which))
        if compiled is None:
            options = {"num_warps": num_warps, **OPTIONS}
            compiled = kernel[grid](*arguments, **constants, **options)
            self._compiled[kernel, which] = compiled  # None in Triton's interpreter
        else:
            names = kernel.arg_names[len(arguments) :]
            compiled[(*grid, 1, 1)[:3]](*arguments, *(constants[name] for name in names))

    def _room_for_sums(
        self, targets: Int64, count: int, norms: int, launches: Sequence[_Chunks]
    ) -> _Sums:
        """Return room for rows of sums of each piece, added up to ``count`` by ``targets``."""
        ends = np.cumsum(np.bincount(targets, minlength=count))
        rows = self._zeros((len(targets), norms, sums.ROW.value), torch.int64)
        return _Sums(
            rows=rows,
            by_launch=[rows[chunks.first_row :] for chunks in launches],
            order=self._sent(np.argsort(targets, kind="stable").astype(np.int32)),
            ranges=self._sent(np.concatenate([[0], ends]).astype(np.int32)),
            total=self._zeros((count, norms, sums.ROW.value), torch.int64),
        )

    def _collect(self, room: _Sums) -> None:
        """Add up the rows of pieces."""
        groups, norms, entries = room.total.shape
        self.launch(
            norms,
            sums.collect,
            (groups, norms, entries // _COLLECTED),
            room.rows,
            room.order,
            room.ranges,
            room.total,
            SIZE=_COLLECTED,
            BLOCK=_AT_ONCE,
        )

    def _here(self) -> Any:
        """Return a context in which launches go to the device."""
        is_cuda = self.device.type == "cuda"
        return torch.cuda.device(self.device) if is_cuda else contextlib.nullcontext()

    def _zeros(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _sent(self, array: NDArray[Any]) -> Tensor:
        source = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda" and source.numel():
            source = source.pin_memory()
            self._kept.append(source)
        return source.to(self.device, non_blocking=True)


class Part(_Device):
    """The tensors of a plan that are on one device."""

    def __init__(
        self,
        device: torch.device,
        jobs: Sequence[Job],
        options: Sequence[Options | None],
        phase: Phase,
        row_count: int,
    ) -> None:
        """Send the tables of ``jobs``; gradients are counted in ``row_count`` sums."""
        super().__init__(device)
        self._phase = phase
        counts = np.array([job.parameter.numel() for job in jobs], np.int64)
        self._jobs = len(jobs)
        table = tables.table_of(jobs)
        #: Where elements stand in whole tensors, of those that are spread there.
        self._runs = [self._sent(_runs_of(job)) if job.runs else None for job in jobs]
        for row, runs in zip(table, self._runs, strict=True):
            if runs is not None:
                row[tables.FIRST.value] = runs.data_ptr()
        #: Where the kernels find all of it, and what each launch covers.
        self.table = self._sent(table)
        self.chunks_each, self.chunks, owners = _chunked(jobs, table, counts, self._sent)
        #: The tensor of each piece.
        self._owners = owners
        recipes = [tables.recipe(each, phase) for each in options]
        self._recipes = self._sent(np.array(recipes, np.int64))
        #: What the host sends at each step.
        self.live = Live(
            {
                "gradients": len(jobs),
                "steps": len(jobs),
                "rates": len(options),
                "scale": tables.LIVE_SCALE_WIDTH.value,
                "given": tables.GIVEN_WIDTH.value * sum(job.is_given for job in jobs),
            },
            device,
        )
        self.live.host["scale"][tables.SEED.value] = np.uint64(phase.seed).view(np.int64)
        #: What the look at the gradients has led to.
        self.verdict = self._zeros(tables.VERDICT_WIDTH.value, torch.float64)
        self._numbers = self._zeros((len(jobs), tables.NUMBERS.value), torch.float64)
        self._keys = self._zeros(len(jobs), torch.int64)
        limits = (phase.clip_norm, phase.skip_above, phase.clip_update)
        self._limits = self._sent(np.array([each or 0.0 for each in limits]))
        self._read = self._recorded = self._measured = self._no_sums()
        if phase.reads_first:
            own = np.array([job.row for job in jobs], np.int64)[owners]
            self._read = self._room_for_sums(own, row_count, 1, self.chunks)
        if phase.clip_update is not None:
            self._measured = self._room_for_sums(owners, len(jobs), 1, self.chunks)
        if phase.statistics:
            self._recorded = self._room_for_sums(owners, len(jobs), _NORMS, self.chunks)
            width = tables.STATISTICS_WIDTH.value
            self._statistics = self._zeros((len(jobs), width), torch.float64)

    def _no_sums(self) -> _Sums:
        """Return pointers that are not followed."""
        some = self.verdict
        return _Sums(some, [some] * len(self.chunks), some, some, some)

    # -- one step --------------------------------------------------------------------------------

    def send(self, inputs: Inputs, places: Int64, given: list[int], *, is_captured: bool) -> None:
        """Send what has changed since the last step."""
        host = self.live.host
        host["gradients"][:] = inputs.gradients[places]
        host["steps"][:] = inputs.steps[places]
        host["rates"][:] = np.asarray(inputs.rates, np.float64).view(np.int64)
        scale = host["scale"].view(np.float64)
        scale[tables.LIVE_LOSS_SCALE.value] = inputs.loss_scale
        scale[tables.LIVE_FACTOR.value] = inputs.factor
        if given:
            own = [inputs.given[i] for i in given]
            rows = np.array([(*each.rule, each.keep, each.take) for each in own], np.float64)
            host["given"][:] = rows.ravel().view(np.int64)
        self.live.send(is_captured=is_captured)

    def read(self) -> Tensor:
        """Read the gradients; return the row of each sum, ``sums.ROW`` entries apart."""
        with self._here():
            for i, chunks in enumerate(self.chunks):
                is_aligned = self._has_aligned_gradients(chunks)
                self.launch(
                    (i, is_aligned),
                    kernels.read,
                    (len(chunks.pieces),),
                    chunks.pieces,
                    self.table,
                    self.live.on_device["gradients"],
                    self._read.by_launch[i],
                    self.chunks_each,
                    P=chunks.stored.P,
                    ALIGNED=is_aligned,
                )
            self._collect(self._read)
        return self._read.total.view(-1, sums.ROW.value)

    def carried(self, rows: Tensor) -> Tensor:
        """Return rows of ``adamas.digits``, of those of several parts: (parts, sums, ROW)."""
        parts, count, _ = rows.shape
        carried = torch.empty((count, digits.WIDTH), dtype=torch.int64, device=self.device)
        if count:
            with self._here():
                kernel = _untyped(sums.carry)
                kernel[(count,)](rows, parts, carried, num_warps=1, **OPTIONS)
        return carried

    def conclude(
        self, rows: Tensor | None, inputs: Inputs, skipped: _Counters, spikes: Tensor | None
    ) -> None:
        """Write the verdict."""
        phase, kernel = self._phase, _untyped(numbers.conclude)
        found, scale = (
            None if each is None else each.to(self.device, non_blocking=True)
            for each in (inputs.found_inf, inputs.scale_on_device)
        )
        with self._here():
            kernel[(1,)](
                self.table if rows is None else rows,
                0 if rows is None else rows.shape[0],
                found,
                scale,
                self.live.on_device["scale"],
                self._limits,
                self.verdict,
                skipped[self.device],
                self.verdict if spikes is None else spikes,
                phase.skip_window,
                READS=rows is not None,
                SKIPS=phase.on_nonfinite != "propagate",
                COUNTS=phase.on_nonfinite == "skip",
                CLIPS=phase.clip_norm is not None,
                WATCHES=spikes is not None,
                STEP=0 if rows is None else rows.shape[1],
                num_warps=1,
                **OPTIONS,
            )

    def number(self, guarded: bool) -> None:
        """Take the numbers of each tensor's step."""
        if not self._jobs:
            return
        live = self.live.on_device
        with self._here():
            self.launch(
                guarded,
                numbers.number,
                (self._jobs,),
                self.table,
                self._recipes,
                live["given"],
                live["steps"],
                live["rates"],
                live["scale"],
                self.verdict,
                self._numbers,
                self._keys,
                GUARDED=guarded,
                num_warps=1,
            )

    def measure(self, guarded: bool) -> Tensor:
        """Return the rows of the squares of updates, ``sums.ROW`` entries apart."""
        live = self.live.on_device
        with self._here():
            for i, chunks in enumerate(self.chunks):
                is_aligned = chunks.is_aligned and self._has_aligned_gradients(chunks)
                stored = chunks.stored
                self.launch(
                    (i, guarded, is_aligned),
                    kernels.measure,
                    (len(chunks.pieces),),
                    chunks.pieces,
                    self.table,
                    live["gradients"],
                    self._numbers,
                    self.verdict,
                    self._measured.by_launch[i],
                    self.chunks_each,
                    P=stored.P,
                    V=stored.V,
                    W=stored.W,
                    ROUNDING=stored.ROUNDING,
                    GUARDED=guarded,
                    ALIGNED=is_aligned,
                )
            if self._jobs:
                self._collect(self._measured)
        return self._measured.total.view(-1, sums.ROW.value)

    def shorten(self, rows: Tensor) -> None:
        """Clip updates by the rows of their squares, in the numbers of their steps."""
        if not self._jobs:
            return
        with self._here():
            self.launch(
                rows.shape[1],
                numbers.shorten,
                (self._jobs,),
                rows,
                self.table,
                self._limits,
                self._numbers,
                STEP=rows.shape[1],
                num_warps=1,
            )

    def sweep(self, guarded: bool) -> None:
        """Step all tensors, by the numbers that were taken."""
        if not self._jobs:
            return
        live = self.live.on_device
        with self._here():
            for i, chunks in enumerate(self.chunks):
                is_aligned = chunks.is_aligned and self._has_aligned_gradients(chunks)
                covered = chunks.pieces if self._phase.statistics else chunks.chunks
                self.launch(
                    (i, guarded, is_aligned),
                    kernels.sweep,
                    (len(covered),),
                    covered,
                    self.table,
                    live["gradients"],
                    self._numbers,
                    self._keys,
                    self.verdict,
                    self._recorded.by_launch[i],
                    self.chunks_each if self._phase.statistics else 1,
                    **chunks.stored._asdict(),
                    GUARDED=guarded,
                    RECORDED=self._phase.statistics,
                    ALIGNED=is_aligned,
                )
            if self._phase.statistics:
                self._collect(self._recorded)
                self.launch(
                    None,
                    kernels.describe,
                    (self._jobs, _NORMS),
                    self._recorded.total,
                    self.table,
                    self._statistics,
                    num_warps=1,
                )

    def _has_aligned_gradients(self, chunks: _Chunks) -> bool:
        return not (self.live.host["gradients"][chunks.rows] % _ALIGNMENT).any()

    # -- what it has left; all but the first three wait for it ------------------------------------

    @property
    def is_applied(self) -> Tensor:
        """Not 0 where the last step was made, on the device."""
        return self.verdict[tables.APPLIED.value]

    @property
    def is_spike(self) -> Tensor:
        """Not 0 where it was left out since the norm leaps, on the device."""
        return self.verdict[tables.SPIKE.value]

    @property
    def norm(self) -> Tensor:
        """The norm of all gradients, on the device."""
        return self.verdict[tables.NORM.value]

    def nonfinite(self) -> list[int]:
        """Return the number of non-finite elements of each gradient."""
        counts = self._read.rows[:, 0, [digits.INFINITE, digits.NAN]].sum(1).cpu().numpy()
        totals = np.zeros(self._jobs, np.int64)
        np.add.at(totals, self._owners, counts)
        return totals.tolist()

    def statistics(self) -> list[Statistics]:
        """Return what the step has done to each tensor."""
        rows = (dict(zip(tables.STATISTICS, row, strict=True)) for row in self._statistics.tolist())
        return [Statistics(**{**row, "nonfinite": int(row["nonfinite"])}) for row in rows]

    def recorded(self) -> list[OfPart]:
        """Return the same with the sums that it follows from."""
        rows = self._recorded.total[:, :, : digits.WIDTH].cpu().numpy()
        return [
            OfPart(**vars(each), sums=np.stack([*map(digits.carried, own)]))
            for each, own in zip(self.statistics(), rows, strict=True)
        ]


def _chunked(
    jobs: Sequence[Job],
    table: Int64,
    counts: Int64,
    sent: Callable[[NDArray[Any]], Tensor],
) -> tuple[int, list[_Chunks], Int64]:
    """Return how many chunks a piece has, what each launch covers, and pieces' tensors."""
    alike: dict[tuple[Stored, bool], list[int]] = {}
    for i, job in enumerate(jobs):
        is_aligned = not (table[i, tables.ALIGNABLE] % _ALIGNMENT).any()
        alike.setdefault((job.stored, is_aligned), []).append(i)
    chunk_counts = -(-counts // tables.CHUNK.value)
    each = min(max(1, -(-int(chunk_counts.sum()) // _PIECES)), _MOST_CHUNKS)
    launches: list[_Chunks] = []
    owners: list[Int64] = [np.zeros(0, np.int64)]
    first_row = 0
    for (stored, is_aligned), rows in alike.items():
        own = np.repeat(rows, chunk_counts[rows])
        if not len(own):
            continue
        numbers = np.concatenate([np.arange(chunk_counts[i]) for i in rows])
        chunks = (own << tables.CHUNK_BITS.value) + numbers
        starts = numbers % each == 0
        owners.append(own[starts])
        on_device = [sent(each) for each in (chunks, chunks[starts])]
        launches.append(
            _Chunks(on_device[0], np.array(rows), stored, is_aligned, on_device[1], first_row)
        )
        first_row += len(owners[-1])
    return each, launches, np.concatenate(owners)


def _runs_of(job: Job) -> Int64:
    """Return the runs of a job as kernels read them.

    How many, where the job begins in the part that they are of, all of them, and the end.
    """
    end = job.first + job.parameter.numel()
    return np.array([len(job.runs), job.first, *itertools.chain(*job.runs), end], np.int64)


def _untyped(kernel: object) -> Any:
    """Return a kernel as it is: Triton's are not typed."""
    return kernel
