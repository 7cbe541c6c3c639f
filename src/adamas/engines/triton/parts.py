"""The part of a step that goes to one device: its tables, and the kernels that are launched there.

Kernels find in a table what belongs to each tensor (``tables``). A launch covers the chunks of
all tensors that are stored alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.engines.triton import kernels, numbers, sums, tables
from adamas.engines.triton.jobs import Inputs, Int64, Job, Stored
from adamas.engines.triton.live import Live
from adamas.engines.triton.rule import OPTIONS
from adamas.options import Options, Phase
from adamas.statistics import TILE, Statistics

__all__ = ["Part"]

#: Tiles that one program adds up, at least; more where there are many.
_LEAST_RANGE = 64
_MOST_RANGES = 1024
#: Entries of a row of partial sums that one program adds up at a time.
_COLLECTED = 32
#: Bytes: kernels read aligned arrays so many at a time.
_ALIGNMENT = 16
#: Of each tensor, where a step is recorded; as many counts go with them.
_NORMS = tables.NORMS.value


class _Chunks(NamedTuple):
    """The chunks of tensors that are stored alike, and how the kernel is to be compiled."""

    chunks: Tensor
    chunk_count: int
    rows: Int64  # of its tensors
    stored: Stored
    is_aligned: bool


class _Sums(NamedTuple):
    """Room for the sums of tiles, and for those of ranges of tiles."""

    of_tiles: Tensor
    counts: Tensor
    ranges: Tensor
    rows: Tensor


class Part:
    """The tensors of a plan that are on one device."""

    def __init__(
        self,
        device: torch.device,
        jobs: Sequence[Job],
        options: Sequence[Options | None],
        phase: Phase,
        scales: int,
    ) -> None:
        """Send the tables of ``jobs``; sums of squares are taken at ``scales`` scales."""
        self.device = device
        self._phase = phase
        self._scales = scales
        self._kept: list[Tensor] = []  # that a graph reads from
        self._compiled: dict[Any, Any] = {}
        counts = np.array([job.parameter.numel() for job in jobs], np.int64)
        tiles = -(-counts // TILE)
        self._first_tiles = np.concatenate([[0], np.cumsum(tiles)])
        self._tiles = int(self._first_tiles[-1])
        self._jobs = len(jobs)
        table = tables.table_of(jobs, self._first_tiles)
        #: Where the kernels find all of it, and what each launch covers.
        self.table = self._sent(table)
        self.chunks = self._chunked(jobs, table, counts)
        self._recipes = self._sent(np.stack([tables.recipe(each, phase) for each in options]))
        #: What the host sends at each step.
        self.live = Live(
            {
                "gradients": len(jobs),
                "ordered_gradients": len(jobs),
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
        self._clip = self._sent(np.array([phase.clip_norm or 0.0]))
        unused = _Sums(*[self.verdict] * 4)  # pointers that are not followed
        self._read = self._recorded = unused
        if phase.reads_first:
            self._read, _ = self._room_for_sums(np.array([0, self._tiles]), 1, 1)
        if phase.statistics:
            self._recorded, firsts = self._room_for_sums(self._first_tiles, _NORMS, _NORMS)
            self._row_ranges = self._sent(np.array(firsts, np.int32))
            width = tables.STATISTICS_WIDTH.value
            self._statistics = self._zeros((len(jobs), width), torch.float64)

    def _room_for_sums(self, borders: Int64, norms: int, counts: int) -> tuple[_Sums, list[int]]:
        """Return room for sums of tiles, added up between ``borders`` by ranges of them.

        Returns besides the first range after each border, and last how many there are.
        """
        starts: list[int] = []
        firsts = [0]
        for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            step = max(_LEAST_RANGE, -(-(last - first) // _MOST_RANGES))
            starts.extend(range(first, last, step))
            firsts.append(len(starts))
        height, tiles = norms * self._scales, self._tiles
        room = _Sums(
            of_tiles=self._zeros((height, tiles), torch.float64),
            counts=self._zeros((counts, tiles), torch.int64),
            ranges=self._sent(np.array([*starts, tiles], np.int64)),
            rows=self._zeros((len(starts), height, sums.ROW), torch.int64),
        )
        return room, firsts

    def _chunked(self, jobs: Sequence[Job], table: Int64, counts: Int64) -> list[_Chunks]:
        alike: dict[tuple[Stored, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            is_aligned = not (table[i, tables.ALIGNABLE] % _ALIGNMENT).any()
            alike.setdefault((job.stored, is_aligned), []).append(i)
        launches: list[_Chunks] = []
        for (stored, is_aligned), rows in alike.items():
            pieces = [
                (np.int64(i) << tables.CHUNK_BITS.value)
                + np.arange(-(-counts[i] // tables.CHUNK.value), dtype=np.int64)
                for i in rows
            ]
            chunks = np.concatenate(pieces)
            if len(chunks):
                launches.append(
                    _Chunks(self._sent(chunks), len(chunks), np.array(rows), stored, is_aligned)
                )
        return launches

    # -- one step --------------------------------------------------------------------------------

    def send(self, inputs: Inputs, places: Int64, given: list[int], *, is_captured: bool) -> None:
        """Send what has changed since the last step."""
        host = self.live.host
        host["gradients"][:] = inputs.gradients[places]
        host["ordered_gradients"][:] = inputs.ordered_gradients[places]
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
        """Read the gradients; return rows of partial sums."""
        with self._here():
            for i, chunks in enumerate(self.chunks):
                self.launch(
                    i,
                    kernels.read,
                    (chunks.chunk_count,),
                    chunks.chunks,
                    self.table,
                    self.live.on_device["ordered_gradients"],
                    self._read.of_tiles,
                    self._read.counts,
                    self._tiles,
                    P=chunks.stored.P,
                    SCALES=self._scales,
                )
            self._collect(self._read)
        return self._read.rows

    def conclude(
        self, rows: Tensor | None, inputs: Inputs, skipped: dict[torch.device, Tensor]
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
                self._clip,
                self.verdict,
                skipped[self.device],
                READS=rows is not None,
                SKIPS=phase.on_nonfinite != "propagate",
                COUNTS=phase.on_nonfinite == "skip",
                CLIPS=phase.clip_norm is not None,
                SCALES=self._scales,
                num_warps=1,
                **OPTIONS,
            )

    def sweep(self, guarded: bool) -> None:
        """Take the numbers of each tensor, and step them all."""
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
            for i, chunks in enumerate(self.chunks):
                gradients = self.live.host["gradients"][chunks.rows]
                is_aligned = chunks.is_aligned and not (gradients % _ALIGNMENT).any()
                self.launch(
                    (i, guarded, is_aligned),
                    kernels.sweep,
                    (chunks.chunk_count,),
                    chunks.chunks,
                    self.table,
                    live["gradients"],
                    self._numbers,
                    self._keys,
                    self.verdict,
                    self._recorded.of_tiles,
                    self._recorded.counts,
                    self._tiles,
                    **chunks.stored._asdict(),
                    GUARDED=guarded,
                    RECORDED=self._phase.statistics,
                    SCALES=self._scales,
                    ALIGNED=is_aligned,
                )
            if self._phase.statistics:
                self._collect(self._recorded)
                self.launch(
                    None,
                    kernels.describe,
                    (self._jobs, _NORMS),
                    self._recorded.rows,
                    self._row_ranges,
                    self.table,
                    self._statistics,
                    SCALES=self._scales,
                    num_warps=1,
                )

    def _collect(self, room: _Sums) -> None:
        """Add up the sums of tiles, range by range."""
        self.launch(
            room.of_tiles.shape[0],
            sums.collect,
            tuple(room.rows.shape[:2]),
            room.of_tiles,
            room.counts,
            room.ranges,
            room.rows,
            self._tiles,
            HAS_COUNTS=room.counts.shape[0] > 1,
            BLOCK=_COLLECTED,
        )

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

    # -- what it has left; all but the first two wait for it --------------------------------------

    @property
    def is_applied(self) -> Tensor:
        """Not 0 where the last step was made, on the device."""
        return self.verdict[tables.APPLIED.value]

    @property
    def norm(self) -> Tensor:
        """The norm of all gradients, on the device."""
        return self.verdict[tables.NORM.value]

    def nonfinite(self) -> list[int]:
        """Return the number of non-finite elements of each gradient."""
        (counts,) = self._read.counts.cpu().numpy()
        totals = np.concatenate([[0], np.cumsum(counts)])
        return np.diff(totals[self._first_tiles]).tolist()

    def statistics(self) -> list[Statistics]:
        """Return what the step has done to each tensor."""
        rows = (dict(zip(tables.STATISTICS, row, strict=True)) for row in self._statistics.tolist())
        return [Statistics(**{**row, "nonfinite": int(row["nonfinite"])}) for row in rows]

    # -- inside ------------------------------------------------------------------------------------

    def _here(self) -> Any:
        """Return a context in which launches go to the device."""
        is_cuda = self.device.type == "cuda"
        return torch.cuda.device(self.device) if is_cuda else contextlib.nullcontext()

    def _zeros(self, shape: Any, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _sent(self, array: NDArray[Any]) -> Tensor:
        source = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            source = source.pin_memory()
            self._kept.append(source)
        return source.to(self.device, non_blocking=True)


def _untyped(kernel: object) -> Any:
    """Return a kernel as it is: Triton's are not typed."""
    return kernel
