"""Steps of CUDA tensors by the Triton engine: tables on the device, and a few launches.

One launch steps all tensors that are stored alike, whatever their number and shapes: kernels find
addresses in a table on the device, which is sent when a plan is made. What may change from step to
step (addresses of gradients, numbers and rates kept on the host) is sent again where it has
changed. Norm, guard, clip factor, loss scale and the numbers of a step are taken on the device, and
the host waits for none of it unless it asks: ``on_nonfinite="raise"`` does, and so does whoever
reads an outcome (:class:`DeviceOutcome`).

Inside a CUDA graph a step reads what it finds on the device at each replay: learning rates and
numbers of steps that are tensors there. What is sent from the host is sent again by each replay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.options import Options, Phase
from adamas.statistics import TILE, Statistics

__all__ = [
    "DEVICE_TYPES",
    "DeviceOutcome",
    "Inputs",
    "Job",
    "Launches",
    "form_name",
    "is_beside",
    "is_dense",
    "laid_out",
    "refuse_capture",
    "signature_of",
    "takes",
]

Int64 = NDArray[np.int64]

#: Types of devices whose tensors the engine takes.
DEVICE_TYPES = ("cuda",)

_DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
_NO_TRITON = (
    "CUDA parameters are stepped by plain torch operations, with the same bits but slower, since "
    "Triton is not installed. It comes with PyTorch for CUDA on Linux; elsewhere try: "
    "pip install triton"
)
#: Tiles that one program adds up, at least; more where there are many.
_LEAST_RANGE = 64
_MOST_RANGES = 1024


def takes(device: torch.device) -> bool:
    """Return whether the engine steps tensors on a device.

    Where it would but for Triton, which is not installed, a warning says so once.
    """
    if device.type not in DEVICE_TYPES:
        return False
    if _has_triton():
        return True
    # Of one place, whoever asks: that is what makes Python say it once.
    warnings.warn(_NO_TRITON, RuntimeWarning, stacklevel=1)
    return False


def is_beside(step: Tensor, parameter: Tensor) -> bool:
    """Return whether the number of a step is kept where kernels that step a parameter read it."""
    return step.device == parameter.device


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def form_name(form: str, tensor: Tensor | None) -> str | None:
    """Return what the kernels call a form of m or v: "own" is the dtype of the arithmetic."""
    if tensor is None:
        return None
    return "own" if form == "float32" else form


def laid_out(tensors: Sequence[Tensor | None], *, is_ordered: bool) -> list[Tensor | None]:
    """Return tensors of one shape that have their elements in the same order in memory.

    They are the given ones where those have: in C order, or in any where nothing depends on it
    (not ``is_ordered``). Else there are contiguous copies in place of those that need it.
    """
    present = [each for each in tensors if each is not None]
    layouts = {
        tuple(a for a, n in zip(x.stride(), x.shape, strict=True) if n != 1) for x in present
    }
    if not is_ordered and len(layouts) == 1 and is_dense(present[0]):
        return list(tensors)
    return [None if each is None else each.contiguous() for each in tensors]


class Job(NamedTuple):
    """One tensor to step: arrays in the same order in memory, all on one device."""

    parameter: Tensor
    gradient: Tensor
    mean: Tensor | None
    square: Tensor | None
    largest_square: Tensor | None
    ema: Tensor | None
    copy: Tensor | None
    header: Tensor | None
    remainder: Tensor | None
    #: The number of the last step, on the device; None where it is given with each step.
    step: Tensor | None
    #: The learning rate, on the device; None where it is given with each step.
    lr: Tensor | None
    #: Forms of m and v as the kernels name them: None, "own" for the dtype of the arithmetic.
    forms: tuple[str | None, str | None]
    rounding: str
    by_chance: bool
    #: :func:`adamas.codecs.mean_top`.
    top: int
    #: The number of the tensor, and where its elements begin in the whole tensor, for random bits.
    place: int
    first: int
    #: Of the parameters' group, among the groups of the plan.
    group: int
    #: Whether its numbers are given with each step.
    is_given: bool

    @property
    def device(self) -> torch.device:
        """The device that steps it."""
        return self.parameter.device

    def tensors(self) -> list[Tensor | None]:
        """Return what the table has addresses of, in its order."""
        return [
            self.parameter,
            self.mean,
            self.square,
            self.largest_square,
            self.ema,
            self.copy,
            self.header,
            self.remainder,
        ]

    def signature(self) -> tuple[Any, ...]:
        """Return what the tables are made of, gradients apart."""
        all_of_them = (*self.tensors(), self.step, self.lr)
        addresses = [None if each is None else each.data_ptr() for each in all_of_them]
        kinds = [None if each is None else each.dtype for each in all_of_them]
        return (*addresses, *kinds, self.device, self.parameter.numel(), *self[11:])


class Inputs(NamedTuple):
    """What a step is given."""

    #: Addresses of the gradients, one for each job.
    gradients: Int64
    #: The same in C order, for what is read before anything is stepped.
    ordered_gradients: Int64
    #: Numbers of the coming step, for jobs that do not keep them on the device.
    steps: Int64
    #: The learning rate of each group; anything where it is kept on the device.
    rates: Sequence[float]
    loss_scale: float = 1.0
    factor: float = 1.0
    #: 13 numbers of the rule, keep and take of the average, for each job that is given its own.
    given: Sequence[Sequence[float]] = ()
    #: A GradScaler's float32 scalars, on any device.
    found_inf: Tensor | None = None
    scale_on_device: Tensor | None = None


@dataclasses.dataclass
class DeviceOutcome:
    """What a step reports, as :class:`adamas.statistics.Outcome`; each reading waits for it."""

    launches: Launches
    reads: bool

    @property
    def applied(self) -> bool:
        """Whether the step was made."""
        return self.launches.applied()

    @property
    def norm(self) -> float | None:
        """Euclidean norm of all gradients, unscaled; None where nothing needed it."""
        return self.launches.norm() if self.reads else None

    @property
    def nonfinite(self) -> tuple[int, ...] | None:
        """Number of non-finite elements of each gradient; None where nothing needed it."""
        return self.launches.nonfinite() if self.reads else None

    @property
    def statistics(self) -> tuple[Statistics, ...] | None:
        """One entry for each tensor; None where none were taken."""
        return self.launches.statistics()


class Launches:
    """The step of fixed tensors on any number of devices."""

    def __init__(
        self, jobs: Sequence[Job], options: Sequence[Options | None], phase: Phase
    ) -> None:
        """Make the tables of ``jobs``; ``options`` has those of each group, None where given."""
        self._phase = phase
        self.signature = signature_of(jobs, options, phase)
        by_device: dict[torch.device, list[int]] = {}
        for i, job in enumerate(jobs):
            by_device.setdefault(job.device, []).append(i)
        scales = 3 if any(job.parameter.dtype == torch.float64 for job in jobs) else 1
        self._places = [np.array(indices) for indices in by_device.values()]
        given = np.cumsum([job.is_given for job in jobs]) - 1
        self._given_places = [
            [int(given[i]) for i in indices if jobs[i].is_given] for indices in by_device.values()
        ]
        self._parts = [
            _Part(device, [jobs[i] for i in indices], options, phase, scales)
            for device, indices in by_device.items()
        ]
        self._order = np.argsort(np.concatenate(self._places), kind="stable")
        self._is_guarded = False
        #: Whether a CUDA graph has recorded a step: the tables must then outlive the plan.
        self.is_captured = False

    def step(self, inputs: Inputs, skipped: dict[torch.device, Tensor]) -> DeviceOutcome | None:
        """Launch one step; ``skipped`` has an int64 scalar on each device that counts."""
        phase = self._phase
        self.is_captured = self.is_captured or any(
            is_capturing(part.device) for part in self._parts
        )
        guarded = phase.reads_first or inputs.found_inf is not None
        guarded = guarded or inputs.scale_on_device is not None
        self._is_guarded = guarded
        for part, places, given in zip(self._parts, self._places, self._given_places, strict=True):
            part.send(inputs, places, given)
        if guarded:
            lead = self._parts[0]
            rows = None
            if phase.reads_first:
                rows = torch.cat([part.read().to(lead.device) for part in self._parts])
            lead.conclude(rows, inputs, skipped)
            for part in self._parts[1:]:
                part.verdict.copy_(lead.verdict, non_blocking=True)
            if phase.on_nonfinite == "raise" and not self.applied():
                return DeviceOutcome(self, phase.reads_first)
        for part in self._parts:
            part.sweep(guarded)
        if guarded or phase.statistics:
            return DeviceOutcome(self, phase.reads_first)
        return None

    # -- what a step has left on the device; each waits for it ----------------------------------

    @property
    def verdict(self) -> Tensor:
        """Not 0 where the last step was made, on the device; nothing waits for it."""
        return self._parts[0].verdict[0]

    def applied(self) -> bool:
        """Return whether the last step was made."""
        return not self._is_guarded or bool(self._parts[0].verdict[0].item())

    def norm(self) -> float:
        """Return the norm that the last step took."""
        return float(self._parts[0].verdict[2].item())

    def nonfinite(self) -> tuple[int, ...]:
        """Return the number of non-finite elements of each gradient of the last step."""
        counts = np.concatenate([part.nonfinite() for part in self._parts])
        return tuple(counts[self._order].tolist())

    def statistics(self) -> tuple[Statistics, ...] | None:
        """Return the statistics of the last step, for each job; None where none were taken."""
        if not self._phase.statistics or not self.applied():
            return None
        rows = np.concatenate([part.statistics() for part in self._parts])[self._order]
        return tuple(
            Statistics(
                gradient_norm=float(row[0]),
                parameter_norm=float(row[1]),
                update_norm=float(row[2]),
                largest_update=float(row[3]),
                nonfinite=int(row[4]),
                unmoved=float(row[5]),
            )
            for row in rows
        )


def signature_of(
    jobs: Sequence[Job], options: Sequence[Options | None], phase: Phase
) -> tuple[Any, ...]:
    """Return what :class:`Launches` are made of: equal where they may be used again."""
    return (phase, tuple(options), *(job.signature() for job in jobs))


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory, each at a place of its own."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.numel() == 0
        expected *= size if size != 1 else 1
    return True


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph records what is launched on a device now."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def refuse_capture(
    devices: Iterable[torch.device], *, host_steps: bool, given: bool, fresh: bool, waits: bool
) -> None:
    """Raise RuntimeError where a CUDA graph is recorded of a step that it could not repeat."""
    if not any(map(is_capturing, devices)):
        return
    for is_so, why in (
        (host_steps, _HOST_STEPS),
        (fresh, _FRESH),
        (given, _GIVEN),
        (waits, _WAITS),
    ):
        if is_so:
            raise RuntimeError(f"A CUDA graph is being recorded, but {why}")


_HOST_STEPS = (
    "the numbers of the steps are counted on the host, so that each replay would make the same "
    "step. Create the optimizer with capturable=True."
)
_FRESH = "this would be the first step, which differs from all others. Make one before recording."
_GIVEN = (
    "this method takes the numbers of its steps on the host, so that each replay would make the "
    "same step. Use Adam, AdamW or RMSprop, or make the step outside of the graph."
)
_WAITS = 'on_nonfinite="raise" waits for the device at each step. Use on_nonfinite="skip".'


class _Launch(NamedTuple):
    """The chunks of tensors that are stored alike, and how the kernel is to be compiled."""

    chunks: Tensor
    chunk_count: int
    rows: Int64  # of its tensors
    dtype: str
    forms: dict[str, Any]
    is_aligned: bool


class _Part:
    """The tensors of a plan that are on one device."""

    def __init__(
        self,
        device: torch.device,
        jobs: list[Job],
        options: Sequence[Options | None],
        phase: Phase,
        scales: int,
    ) -> None:
        from adamas.engines import triton as engine
        from adamas.engines.triton import tables

        self._engine: Any = engine  # Triton's kernels are not typed
        self.device = device
        self._phase = phase
        self._scales = scales
        self._kept: list[Any] = []  # that a graph reads from
        self._compiled: dict[Any, Any] = {}
        counts = np.array([job.parameter.numel() for job in jobs], np.int64)
        tiles = -(-counts // TILE)
        self._first_tiles = np.concatenate([[0], np.cumsum(tiles)])
        self._tiles = int(self._first_tiles[-1])
        self._jobs = len(jobs)
        given = np.cumsum([job.is_given for job in jobs]) - 1
        table = np.zeros((len(jobs), tables.TABLE_WIDTH.value), np.int64)
        for row, job, first_tile, place in zip(
            table, jobs, self._first_tiles, given.tolist(), strict=False
        ):
            _fill(row, job, int(first_tile), place if job.is_given else -1)
        self._table = self._sent(table)
        self._recipes = self._sent(np.stack([_recipe(each, phase) for each in options]))
        self._launches = self._chunked(jobs, table, counts)
        n, groups = len(jobs), len(options)
        lengths = {
            "gradients": n,
            "ordered_gradients": n,
            "steps": n,
            "rates": groups,
            "scale": 3,
            "given": tables.GIVEN_WIDTH.value * int(given[-1] + 1),
        }
        self._live = _Live(lengths, device)
        self._live.host["scale"][2] = np.uint64(phase.seed).view(np.int64)
        self.verdict = self._zeros(tables.VERDICT_WIDTH.value, torch.float64)
        self._numbers = self._zeros((n, tables.NUMBERS.value), torch.float64)
        self._keys = self._zeros(n, torch.int64)
        self._clip = self._sent(np.array([phase.clip_norm or 0.0]))
        self._norm_buffers(engine.ROW)

    def _norm_buffers(self, width: int) -> None:
        phase, scales, tiles = self._phase, self._scales, self._tiles
        self._sums = self._counts = self.verdict  # a pointer that is not followed
        if phase.reads_first:
            self._read_sums = self._zeros((scales, tiles), torch.float64)
            self._read_counts = self._zeros((1, tiles), torch.int64)
            step = max(_LEAST_RANGE, -(-tiles // _MOST_RANGES))
            ranges = np.append(np.arange(0, tiles, step), tiles)
            self._read_ranges = self._sent(ranges.astype(np.int64))
            self._read_rows = self._zeros((len(ranges) - 1, scales, width), torch.int64)
        if phase.statistics:
            self._sums = self._zeros((3 * scales, tiles), torch.float64)
            self._counts = self._zeros((3, tiles), torch.int64)
            starts: list[int] = []
            firsts = [0]
            for first, last in zip(self._first_tiles[:-1], self._first_tiles[1:], strict=True):
                step = max(_LEAST_RANGE, -(-int(last - first) // _MOST_RANGES))
                starts.extend(range(int(first), int(last), step))
                firsts.append(len(starts))
            self._ranges = self._sent(np.array([*starts, tiles], np.int64))
            self._row_ranges = self._sent(np.array(firsts, np.int32))
            self._rows = self._zeros((len(starts), 3 * scales, width), torch.int64)
            self._statistics = self._zeros((self._jobs, 6), torch.float64)

    def _chunked(self, jobs: list[Job], table: Int64, counts: Int64) -> list[_Launch]:
        from adamas.engines.triton import tables

        alike: dict[tuple[Any, ...], list[int]] = {}
        for i, job in enumerate(jobs):
            addresses = table[i, : tables.HEADER.value]
            is_aligned = not (addresses % 16).any() and not table[i, tables.REMAINDER.value] % 16
            alike.setdefault((*_stored(job), is_aligned), []).append(i)
        launches: list[_Launch] = []
        for key, rows in alike.items():
            pieces = [
                (np.int64(i) << tables.CHUNK_BITS.value)
                + np.arange(-(-counts[i] // tables.CHUNK.value), dtype=np.int64)
                for i in rows
            ]
            chunks = np.concatenate(pieces)
            dtype, *stored, is_aligned = key
            forms: dict[str, Any] = dict(zip(_CONSTANTS, stored, strict=True))
            if len(chunks):
                sent = self._sent(chunks)
                launches.append(
                    _Launch(sent, len(chunks), np.array(rows), dtype, forms, is_aligned)
                )
        return launches

    # -- one step --------------------------------------------------------------------------------

    def send(self, inputs: Inputs, places: Int64, given: list[int]) -> None:
        """Send what has changed since the last step."""
        host = self._live.host
        host["gradients"][:] = inputs.gradients[places]
        host["ordered_gradients"][:] = inputs.ordered_gradients[places]
        host["steps"][:] = inputs.steps[places]
        host["rates"][:] = np.asarray(inputs.rates, np.float64).view(np.int64)
        host["scale"][:2] = np.array([inputs.loss_scale, inputs.factor]).view(np.int64)
        if given:
            rows = np.array([inputs.given[i] for i in given], np.float64)
            host["given"][:] = rows.ravel().view(np.int64)
        self._live.send(is_captured=is_capturing(self.device))

    def read(self) -> Tensor:
        """Read the gradients; return rows of partial sums."""
        engine, rows = self._engine, self._read_rows
        with self._here():
            for i, launch in enumerate(self._launches):
                self._run(
                    i,
                    engine.read,
                    (launch.chunk_count,),
                    launch.chunks,
                    self._table,
                    self._live.on_device["ordered_gradients"],
                    self._read_sums,
                    self._read_counts,
                    self._tiles,
                    P=launch.dtype,
                    SCALES=self._scales,
                )
            self._collect(self._read_sums, self._read_counts, self._read_ranges, rows)
        return rows

    def conclude(
        self, rows: Tensor | None, inputs: Inputs, skipped: dict[torch.device, Tensor]
    ) -> None:
        """Write the verdict."""
        phase, engine = self._phase, self._engine
        found, scale = (
            None if each is None else each.to(self.device, non_blocking=True)
            for each in (inputs.found_inf, inputs.scale_on_device)
        )
        with self._here():
            engine.conclude[(1,)](
                self._table if rows is None else rows,
                0 if rows is None else rows.shape[0],
                found,
                scale,
                self._live.on_device["scale"],
                self._clip,
                self.verdict,
                skipped[self.device],
                READS=rows is not None,
                SKIPS=phase.on_nonfinite != "propagate",
                COUNTS=phase.on_nonfinite == "skip",
                CLIPS=phase.clip_norm is not None,
                SCALES=self._scales,
                num_warps=1,
                **engine.OPTIONS,
            )

    def sweep(self, guarded: bool) -> None:
        """Take the numbers of each tensor, and step them all."""
        engine, live = self._engine, self._live.on_device
        with self._here():
            self._run(
                guarded,
                engine.number,
                (self._jobs,),
                self._table,
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
            for i, launch in enumerate(self._launches):
                gradients = self._live.host["gradients"][launch.rows]
                is_aligned = launch.is_aligned and not (gradients % 16).any()
                self._run(
                    (i, guarded, is_aligned),
                    engine.sweep,
                    (launch.chunk_count,),
                    launch.chunks,
                    self._table,
                    live["gradients"],
                    self._numbers,
                    self._keys,
                    self.verdict,
                    self._sums,
                    self._counts,
                    self._tiles,
                    P=launch.dtype,
                    **launch.forms,
                    GUARDED=guarded,
                    RECORDED=self._phase.statistics,
                    SCALES=self._scales,
                    ALIGNED=is_aligned,
                )
            if self._phase.statistics:
                self._collect(self._sums, self._counts, self._ranges, self._rows)
                self._run(
                    None,
                    engine.describe,
                    (self._jobs, 3),
                    self._rows,
                    self._row_ranges,
                    self._table,
                    self._statistics,
                    SCALES=self._scales,
                    num_warps=1,
                )

    def _collect(self, sums: Tensor, counts: Tensor, ranges: Tensor, rows: Tensor) -> None:
        """Add up the sums of tiles, range by range."""
        self._run(
            sums.shape[0],
            self._engine.collect,
            tuple(rows.shape[:2]),
            sums,
            counts,
            ranges,
            rows,
            self._tiles,
            HAS_COUNTS=counts.shape[0] > 1,
            BLOCK=32,
        )

    def _run(
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
            options = {"num_warps": num_warps, **self._engine.OPTIONS}
            compiled = kernel[grid](*arguments, **constants, **options)
            self._compiled[kernel, which] = compiled  # None in Triton's interpreter
        else:
            names = kernel.arg_names[len(arguments) :]
            compiled[(*grid, 1, 1)[:3]](*arguments, *(constants[name] for name in names))

    # -- what it has left --------------------------------------------------------------------------

    def nonfinite(self) -> Int64:
        """Return the number of non-finite elements of each gradient."""
        sums = np.concatenate([[0], np.cumsum(self._read_counts[0].cpu().numpy())])
        return np.diff(sums[self._first_tiles])

    def statistics(self) -> NDArray[np.float64]:
        """Return a row for each tensor: the fields of adamas.statistics.Statistics."""
        return self._statistics.cpu().numpy()

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


class _Live:
    """Values of the host that the device reads, sent where they have changed."""

    def __init__(self, lengths: dict[str, int], device: torch.device) -> None:
        self._host = np.zeros(sum(lengths.values()), np.int64)
        self._on_device = torch.zeros(len(self._host), dtype=torch.int64, device=device)
        ends = np.cumsum(list(lengths.values())).tolist()
        #: The values by name, to be written, and where kernels find them.
        self.host = dict(zip(lengths, np.split(self._host, ends), strict=False))
        self.on_device = {
            name: self._on_device[end - length :]
            for (name, length), end in zip(lengths.items(), ends, strict=True)
        }
        self._is_cuda = device.type == "cuda"
        #: In pinned memory for the next graph, which allocates none while it records.
        self._spare = self._pinned()
        self._recorded: list[Tensor] = []
        self._known: Int64 | None = None

    def send(self, *, is_captured: bool) -> None:
        if is_captured:  # each replay sends what is sent now
            source, self._spare = self._spare, None
            source = self._pinned() if source is None else source
            self._recorded.append(source)
        elif self._known is not None and np.array_equal(self._known, self._host):
            return
        else:
            source = self._pinned()
            self._spare = self._pinned() if self._spare is None else self._spare
        source.numpy()[:] = self._host
        self._on_device.copy_(source, non_blocking=True)
        # A replay may send other values at any time, so what is there is not known from then on.
        self._known = None if self._recorded else self._host.copy()

    def _pinned(self) -> Tensor:
        return torch.empty(len(self._host), dtype=torch.int64, pin_memory=self._is_cuda)


#: What the kernel calls what :func:`_stored` returns, the dtype apart.
_CONSTANTS = ("M", "V", "W", "HAS_EMA", "COPY_TO", "ROUNDING", "BY_CHANCE")


def _stored(job: Job) -> tuple[Any, ...]:
    """Return how a tensor is stored: what a kernel must be compiled for."""
    copy = None if job.copy is None else _DTYPES[job.copy.dtype]
    mean, square = job.forms
    dtype = _DTYPES[job.parameter.dtype]
    return (
        dtype,
        mean,
        square,
        job.largest_square is not None,
        job.ema is not None,
        copy,
        job.rounding,
        job.by_chance,
    )


def _fill(row: Int64, job: Job, first_tile: int, given: int) -> None:
    """Write the row of the table for one tensor."""
    from adamas.engines.triton import tables

    for column, tensor in enumerate(job.tensors()):
        row[column] = 0 if tensor is None else tensor.data_ptr()
    for tensor, column, is_double in (
        (job.step, tables.STEP, tables.STEP_IS_DOUBLE),
        (job.lr, tables.LR, tables.LR_IS_DOUBLE),
    ):
        if tensor is not None:
            row[column.value] = tensor.data_ptr()
            row[is_double.value] = tensor.dtype == torch.float64
    for column, number in (
        (tables.COUNT, job.parameter.numel()),
        (tables.PLACE, job.place),
        (tables.FIRST, job.first),
        (tables.TOP, job.top),
        (tables.FIRST_TILE, first_tile),
        (tables.RECIPE, job.group),
        (tables.GIVEN, given),
    ):
        row[column.value] = number


def _recipe(options: Options | None, phase: Phase) -> Int64:
    """Return the row that says how the numbers of a group's steps come about."""
    from adamas.engines.triton import tables

    row = np.zeros(tables.RECIPE_WIDTH.value, np.int64)
    real = row.view(np.float64)
    ema = phase.ema or 0.0
    real[tables.EMA_RATE.value] = ema
    real[tables.LR_MAX.value] = 1.0
    if options is None:
        return row
    beta1, beta2 = options.betas
    for column, number in (
        (tables.BETA1, beta1),
        (tables.BETA2, beta2),
        (tables.EPS, options.eps),
        (tables.EPS_ROOT, options.eps_root),
        (tables.WEIGHT_DECAY, options.weight_decay),
        (tables.LR_MAX, options.lr_max),
    ):
        if number is not None:
            real[column.value] = number
    for column, choice in (
        (tables.DECAY, tables.DECAYS.index(options.decay)),
        (tables.BIAS_CORRECTION, tables.BIAS_CORRECTIONS.index(options.bias_correction)),
        (tables.EPS_PLACE, tables.EPS_PLACES.index(options.eps_place)),
        (tables.HAS_MEAN, options.has_mean),
        (tables.HAS_SQUARE, options.has_square),
        (tables.NESTEROV, options.nesterov),
        (tables.MAXIMIZE, options.maximize),
    ):
        row[column.value] = choice
    return row
