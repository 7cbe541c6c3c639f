"""Steps of parameters on a card whose state stays in host memory, by the processor.

Elements go in chunks through a few staging buffers: gradients and parameters come down, the native
engine steps them with their slice of the state, parameters go up. A chunk comes down while the one
before is stepped and the one before that goes up. The card keeps parameters and gradients alone.

Three queues of copies take part: the device's own (its current stream), "down" and "up". All that
one waits for is said here, in :class:`Offload`; :class:`CudaStreams` only carries it out.

Random bits and blocks are those of whole tensors, and chunks are cut where tiles are, so a step
has the bits of one in the processor's memory.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.codecs import BLOCK
from adamas.coefficients import StepNumbers
from adamas.engines import Group, Slot, native
from adamas.options import Options, Phase
from adamas.state import State
from adamas.statistics import TILE, Statistics
from adamas.torch import small
from adamas.torch.memory import Memory

__all__ = [
    "BUFFERS",
    "CHUNK",
    "CudaStreams",
    "Item",
    "Offload",
    "Streams",
    "host_like",
    "in_host",
    "is_offloaded",
    "refuse",
    "settle",
]

#: Elements of a chunk, a multiple of a tile: long enough that starting a copy is next to nothing.
CHUNK = 4 * 1024 * 1024
#: Staging buffers: one comes down, one is stepped, one goes up.
BUFFERS = 3

_DTYPES = (torch.float32, torch.float64, *small.HALF)
_ALIGNMENT = 64
#: Sets of items that are kept ready for the next time.
_MOST_PREPARED = 8
#: How much of what describes an item says where it is: parameter, copy and six entries.
_PLACES = 8

Queue = Literal["own", "down", "up"]
Pairs = Sequence[tuple[Tensor, Tensor]]


def is_offloaded(parameter: Tensor) -> bool:
    """Whether a parameter of an optimizer with ``offload=True`` keeps its state elsewhere."""
    return parameter.is_cuda


# ── host memory ────────────────────────────────────────────────────────────────────────────────


def in_host(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a contiguous copy in host memory: pinned, where there is a card to pin it for."""
    wanted = _empty(tensor.shape, dtype or tensor.dtype)
    return wanted.copy_(tensor.detach())


def host_like(parameter: Tensor) -> Tensor:
    """Return a tensor as a parameter is, but in host memory, with no values."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")


def settle(state: dict[str, Any], *, pinned: bool = False) -> None:
    """Bring the tensors of a state into host memory, contiguous; with ``pinned``, pin them too."""
    for name, value in state.items():
        if isinstance(value, Tensor) and not (
            value.is_cpu
            and value.is_contiguous()
            and (not pinned or not _pins(value.shape) or value.is_pinned())
        ):
            state[name] = in_host(value)


def _empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=_pins(shape))


def _pins(shape: torch.Size) -> bool:
    return shape.numel() > 1 and torch.cuda.is_available()


# ── what is refused ────────────────────────────────────────────────────────────────────────────


def refuse(parameter: Tensor, is_special: bool, gradient: Tensor | None = None) -> None:
    """Raise TypeError or ValueError for a parameter whose state cannot stay in host memory."""
    if hasattr(parameter, "__tensor_flatten__"):
        raise TypeError(
            f"offload is True, but a parameter is a {type(parameter).__name__}, and plain tensors "
            "alone are offloaded. FSDP2 offloads by itself, with "
            "fully_shard(model, offload_policy=CPUOffloadPolicy()); else leave offload out."
        )
    if parameter.dtype not in _DTYPES or parameter.layout != torch.strided:
        raise TypeError(
            f"offload is True, but a parameter has dtype {parameter.dtype} and layout "
            f"{parameter.layout}. Offloaded parameters are dense, and float32, float64, bfloat16 "
            "or float16. Give the others an optimizer of their own."
        )
    if is_special:
        raise ValueError(
            "offload is True, but RMSprop with momentum or centered follows another rule than the "
            "engine of the processor has. Leave out the one or the other."
        )
    if gradient is not None and gradient.dtype != parameter.dtype:
        raise TypeError(
            f"offload is True, but a gradient has dtype {gradient.dtype} and its parameter "
            f"{parameter.dtype}. Convert the gradient."
        )


# ── queues of copies ───────────────────────────────────────────────────────────────────────────


class Streams(Protocol):
    """Queues of copies of one device, which go on by themselves, each in its order."""

    def record(self, queue: Queue) -> Any:
        """Return an event: all that was asked of a queue before is done."""
        ...

    def wait(self, queue: Queue, event: Any) -> None:
        """Let what is asked of a queue from now on begin after an event."""
        ...

    def copy(self, queue: Queue, pairs: Pairs) -> None:
        """Ask for copies, each from the second to the first."""
        ...

    def synchronize(self, event: Any) -> None:
        """Return after an event."""
        ...


class CudaStreams:
    """:class:`Streams` of a CUDA device; its own queue is the stream that is current there."""

    def __init__(self, device: torch.device) -> None:
        """Create streams on ``device``."""
        self._device = device
        self._streams = {"down": torch.cuda.Stream(device), "up": torch.cuda.Stream(device)}

    def record(self, queue: Queue) -> torch.cuda.Event:
        """Return an event after all that was asked of a queue."""
        return self._stream(queue).record_event()

    def wait(self, queue: Queue, event: torch.cuda.Event) -> None:
        """Let a queue wait for an event."""
        self._stream(queue).wait_event(event)

    def copy(self, queue: Queue, pairs: Pairs) -> None:
        """Ask for copies, which return at once where the host's side is pinned."""
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


class Item(NamedTuple):
    """One parameter with its gradient, on a card, and its state, in host memory."""

    parameter: Tensor
    gradient: Tensor
    #: m, v, w, the average, header and remainder; None where there is none.
    entries: tuple[Tensor | None, ...]
    #: How they are stored, and what codes of m are counted from.
    options: Options
    top: int
    #: Of the parameter among all, and of its numbers among those of the step.
    number: int
    cohort: int
    #: In low precision, of the new parameter.
    copy: Tensor | None

    @property
    def needs_host_for_copy(self) -> bool:
        """Whether the copy is of more than what the card will have."""
        return self.copy is not None and self.entries[5] is not None


class _Piece(NamedTuple):
    """Elements of one item."""

    item: int
    first: int
    last: int


class _Staged(NamedTuple):
    """A piece in its staging buffer."""

    piece: _Piece
    parameter: Tensor
    gradient: Tensor
    copy: Tensor | None
    remainder: Tensor | None


class _Chunk(NamedTuple):
    """Pieces that are copied and stepped together."""

    staged: tuple[_Staged, ...]
    plan: native.Plan
    #: In the order of the plan: gradients, and to which items what it records belongs.
    gradients: list[NDArray[Any]]
    items: list[int]
    #: Of each of its groups.
    cohorts: list[int]
    #: State in half precision, and where it is while it is stepped.
    widened: tuple[tuple[Tensor, Tensor], ...]


class _Round(NamedTuple):
    """Chunks of one device that share no memory, and the items they are made of."""

    items: list[int]
    chunks: list[_Chunk]


class Offload:
    """Steps items, with chunks and buffers that are made once and kept while they fit."""

    def __init__(self, phase: Phase) -> None:
        """Take ``phase``; its norm, guard and clipping are over when a step begins."""
        self._phase = Phase(ema=phase.ema, statistics=phase.statistics, seed=phase.seed)
        #: What the last sets of items were cut into: gradients may come and go.
        self._prepared: dict[tuple[Any, ...], list[_Round]] = {}
        self._rounds: list[_Round] = []
        self._buffers: list[_Room] = []
        self._streams: dict[torch.device, Streams] = {}
        #: The last copies up, of any device: they read the buffers.
        self._uploaded: Any = None

    def step(
        self,
        items: Sequence[Item],
        numbers: Sequence[StepNumbers],
        loss_scale: float,
        factor: float,
    ) -> list[Statistics | None]:
        """Make one step in place; return what it did to each item, where the phase records.

        ``numbers`` are those of the cohorts. Raises TypeError or ValueError before anything is
        touched where a state does not fit its parameter.
        """
        known = tuple(_described(item) for item in items)
        rounds = self._prepared.pop(known, None)
        if rounds is None:
            self._rounds = []
            self._forget(known)
            rounds = self._prepare(items)
        self._prepared[known] = self._rounds = rounds
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
        # What the device computed before, gradients above all, is done before it is read. The
        # copies up need not wait for it: each is of what came down.
        streams.wait("down", streams.record("own"))
        if self._uploaded is not None:
            streams.wait("down", self._uploaded)
        came: deque[Any] = deque()
        records: list[tuple[int, Statistics]] = []

        def fetch(chunk: _Chunk) -> None:
            streams.copy("down", flat.sources(chunk))
            came.append(streams.record("down"))

        try:
            for chunk in this.chunks[: len(self._buffers)]:
                fetch(chunk)
            following = this.chunks[len(self._buffers) :]
            for chunk, later in itertools.zip_longest(this.chunks, following):
                streams.synchronize(came.popleft())
                records += _stepped(chunk, numbers, loss_scale, factor)
                streams.copy("up", flat.targets(chunk))
                self._uploaded = streams.record("up")
                if later is not None:  # into the buffer that is now read
                    streams.wait("down", self._uploaded)
                    fetch(later)
        finally:
            # What is asked of the device next finds the new parameters, and no copy under way
            # reads or writes memory that it takes.
            streams.wait("own", streams.record("down"))
            streams.wait("own", streams.record("up"))
        flat.put_back()
        return records

    def _streams_of(self, device: torch.device) -> Streams:
        if device not in self._streams:
            self._streams[device] = CudaStreams(device)
        return self._streams[device]

    # -- the plan ----------------------------------------------------------------------------

    def _forget(self, known: tuple[Any, ...]) -> None:
        """Let go of what was prepared longest ago, or for memory that is not in use any more."""
        used = {each[0]: each[:_PLACES] for each in known}
        for before in list(self._prepared):
            if any(used.get(each[0], each[:_PLACES]) != each[:_PLACES] for each in before):
                del self._prepared[before]
        while len(self._prepared) >= _MOST_PREPARED:
            del self._prepared[next(iter(self._prepared))]

    def _prepare(self, items: Sequence[Item]) -> list[_Round]:
        """Return items cut into chunks, each bound to a buffer."""
        for item in items:
            _refuse_state(item)
        rounds = [
            (indices, _cut(items, indices, whole=self._phase.statistics))
            for indices in _rounds(items)
        ]
        pieces = [each for _, cut in rounds for each in cut]
        needed = max((_staging_bytes(items, each) for each in pieces), default=0)
        count = min(BUFFERS, max((len(cut) for _, cut in rounds), default=0))
        if len(self._buffers) < count or any(room.nbytes < needed for room in self._buffers):
            self._prepared.clear()  # they are bound to buffers that go
            self._buffers = []
            self._buffers = [_Room(needed, pinned=True) for _ in range(count)]
        made: list[_Round] = []
        wide = _Room(max((_wide_bytes(items, each) for each in pieces), default=0), pinned=False)
        for indices, cut in rounds:
            chunks: list[_Chunk] = []
            for own, room in zip(cut, itertools.cycle(self._buffers), strict=False):
                room.clear()
                wide.clear()
                chunks.append(_bound(items, own, room, wide, self._phase))
            made.append(_Round(indices, chunks))
        return made


def _stepped(
    chunk: _Chunk, numbers: Sequence[StepNumbers], loss_scale: float, factor: float
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


def _described(item: Item) -> tuple[Any, ...]:
    """Return all that the chunks of an item depend on."""
    return (
        _place(item.parameter),
        None if item.copy is None else item.copy.dtype,
        *(each if each is None else _place(each) for each in item.entries),
        *item[3:7],
    )


def _refuse_state(item: Item) -> None:
    """Raise ValueError where the state of an item does not fit its parameter."""
    count, dtype = item.parameter.numel(), item.parameter.dtype
    wide = (torch.float64,) if dtype == torch.float64 else (torch.float32,)
    halves = () if dtype == torch.float64 else small.HALF
    forms = (*item.options.storage.forms, "float32", "float32")
    for i, entry in enumerate(item.entries):
        if entry is None:
            continue
        wanted = -(-count // BLOCK) if i == 4 else count
        is_dense = i < 4 and forms[i] == "float32"
        # m, v and w may be in half precision, as torch stores them.
        dtypes = (*wide, *halves) if i < 3 else wide
        if entry.numel() != wanted or (is_dense and entry.dtype not in dtypes):
            raise ValueError(
                f"A parameter has {count} elements of dtype {dtype}, but an entry of its state has "
                f"{entry.numel()} of dtype {entry.dtype}. Load the state of this parameter, or "
                "leave its state out."
            )


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor.device


def _rounds(items: Sequence[Item]) -> list[list[int]]:
    """Return the items in groups: of one device, and no two of a group share memory.

    Those that share memory are stepped one after another, as torch does.
    """
    by_device: dict[torch.device, list[int]] = {}
    alone: list[list[int]] = []
    taken = Memory()
    for index, item in enumerate(items):
        if taken.add((item.parameter, *(each for each in item.entries if each is not None))):
            by_device.setdefault(item.parameter.device, []).append(index)
        else:
            alone.append([index])
    return [*by_device.values(), *alone]


def _cut(items: Sequence[Item], indices: list[int], *, whole: bool) -> list[list[_Piece]]:
    """Return the pieces of each chunk; with ``whole``, every tensor is one piece."""
    chunks: list[list[_Piece]] = []
    room = 0
    for index in indices:
        count = left = items[index].parameter.numel()
        while True:
            if not chunks or room < (left if whole else min(left, TILE)):
                chunks.append([])
                room = max(CHUNK, left) if whole else CHUNK
            take = left if left <= room else room // TILE * TILE
            chunks[-1].append(_Piece(index, count - left, count - left + take))
            room -= take
            left -= take
            if left == 0:
                break
    return chunks


# ── buffers ────────────────────────────────────────────────────────────────────────────────────


class _Room:
    """Memory that is handed out in parts."""

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes = nbytes
        shape = torch.Size((nbytes,))
        self._bytes = torch.empty(
            shape, dtype=torch.uint8, device="cpu", pin_memory=pinned and _pins(shape)
        )
        self._next = 0

    def clear(self) -> None:
        """Hand everything out anew."""
        self._next = 0

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return so many elements, with any values."""
        nbytes = count * dtype.itemsize
        part = self._bytes[self._next : self._next + nbytes].view(dtype)
        self._next += _aligned(nbytes)
        return part


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _staging_bytes(items: Sequence[Item], pieces: list[_Piece]) -> int:
    total = 0
    for index, first, last in pieces:
        item = items[index]
        total += 2 * _aligned((last - first) * item.parameter.itemsize)
        if item.copy is not None and item.needs_host_for_copy:
            total += _aligned((last - first) * item.copy.itemsize)
    return total


def _wide_bytes(items: Sequence[Item], pieces: list[_Piece]) -> int:
    return sum(
        len(_narrow(items[index])) * _aligned((last - first) * torch.float32.itemsize)
        for index, first, last in pieces
    )


def _narrow(item: Item) -> list[int]:
    """Return which of m, v and w are not codes but torch's own state in half precision."""
    forms = (*item.options.storage.forms, "float32")
    return [
        i
        for i, (entry, form) in enumerate(zip(item.entries[:3], forms, strict=True))
        if entry is not None and form == "float32" and entry.dtype in small.HALF
    ]


def _bound(
    items: Sequence[Item], pieces: list[_Piece], room: _Room, wide: _Room, phase: Phase
) -> _Chunk:
    """Return a chunk whose pieces have their places in a staging buffer."""
    staged: list[_Staged] = []
    widened: list[tuple[Tensor, Tensor]] = []
    groups: dict[tuple[int, Options], list[tuple[Slot, NDArray[Any], int]]] = {}
    for piece in pieces:
        item, count = items[piece.item], piece.last - piece.first
        dtype = item.parameter.dtype
        parameter, gradient = room.take(count, dtype), room.take(count, dtype)
        copy = None
        if item.copy is not None and item.needs_host_for_copy:
            copy = room.take(count, item.copy.dtype)
        parts = _parts(item, piece)
        staged.append(_Staged(piece, parameter, gradient, copy, parts[5]))
        for i in _narrow(item):
            narrow, own = parts[i], wide.take(count, torch.float32)
            assert narrow is not None
            widened.append((narrow, own))
            parts[i] = own
        arrays = [None if part is None else _array(part) for part in parts]
        state = State(*arrays, forms=item.options.storage.forms, top=item.top)
        slot = Slot(_array(parameter), state, item.number, piece.first)
        group = groups.setdefault((item.cohort, item.options), [])
        group.append((slot, _array(gradient), piece.item))
    plan = native.Plan(
        [
            Group(options, tuple(slot for slot, _, _ in members))
            for (_, options), members in groups.items()
        ],
        phase,
    )
    members = list(itertools.chain.from_iterable(groups.values()))
    return _Chunk(
        tuple(staged),
        plan,
        [gradient for _, gradient, _ in members],
        [item for _, _, item in members],
        [cohort for cohort, _ in groups],
        tuple(widened),
    )


def _parts(item: Item, piece: _Piece) -> list[Tensor | None]:
    """Return the state of some elements."""
    parts: list[Tensor | None] = []
    for i, entry in enumerate(item.entries):
        first, last = piece.first, piece.last
        if i == 4:  # the header: an entry for each block
            first, last = first // BLOCK, -(-last // BLOCK)
        parts.append(None if entry is None else entry.detach().view(-1)[first:last])
    return parts


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return the memory of a tensor as an array: bits, where NumPy lacks the dtype."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


class _Flat:
    """The memory of items on their device, as the copies see it: flat and contiguous.

    What is not contiguous, or a copy on another device, has a double there that is put back after.
    """

    def __init__(self, items: Sequence[Item], indices: Sequence[int]) -> None:
        self._put_back: list[tuple[Tensor, Tensor]] = []
        self._gradients = {i: items[i].gradient.detach().contiguous().view(-1) for i in indices}
        self._parameters = {
            i: self._written(items[i].parameter, items[i].parameter.device) for i in indices
        }
        self._copies: dict[int, Tensor] = {}
        for i in indices:
            copy = items[i].copy
            if copy is not None and items[i].needs_host_for_copy:
                self._copies[i] = self._written(copy, items[i].parameter.device)
            elif copy is not None:
                self._put_back.append((copy, items[i].parameter.detach()))

    def sources(self, chunk: _Chunk) -> list[tuple[Tensor, Tensor]]:
        """Return what comes down."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for staged in chunk.staged:
            index, first, last = staged.piece
            pairs.append((staged.parameter, self._parameters[index][first:last]))
            pairs.append((staged.gradient, self._gradients[index][first:last]))
        return pairs

    def targets(self, chunk: _Chunk) -> list[tuple[Tensor, Tensor]]:
        """Return what goes up."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for staged in chunk.staged:
            index, first, last = staged.piece
            pairs.append((self._parameters[index][first:last], staged.parameter))
            if staged.copy is not None:
                pairs.append((self._copies[index][first:last], staged.copy))
        return pairs

    def put_back(self) -> None:
        """Write what is left to write, where all else is up."""
        for target, source in self._put_back:
            target.copy_(source)

    def _written(self, tensor: Tensor, device: torch.device) -> Tensor:
        tensor = tensor.detach()
        flat = tensor.to(device).contiguous()
        if flat is not tensor:
            self._put_back.append((tensor, flat))
        return flat.view(-1)
