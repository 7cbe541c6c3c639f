"""Elements that are offloaded, cut into chunks, and the host's buffers that chunks go through.

Random bits and blocks are those of whole tensors, and chunks are cut where tiles are, so a step by
chunks has the bits of a whole one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.codecs import BLOCK
from adamas.engines import Group, Runs, Slot, native
from adamas.marks import word_count
from adamas.options import Options, Phase
from adamas.state import Entries, State
from adamas.statistics import TILE
from adamas.storage import Storage
from adamas.torch import parts, small
from adamas.torch.host_memory import pins
from adamas.torch.members import Member
from adamas.torch.memory import Memory

__all__ = [
    "CHUNK",
    "Chunk",
    "Item",
    "Piece",
    "Room",
    "bound",
    "cut_up",
    "rounds_of",
    "staging_bytes",
    "wide_bytes",
]

#: Elements of a chunk, a multiple of a tile: long enough that starting a copy is next to nothing.
CHUNK = 4 * 1024 * 1024
_ALIGNMENT = 64


class Item(NamedTuple):
    """One parameter with its gradient, on a card, and its state, in host memory.

    Of distributed tensors it has this process's parts.
    """

    member: Member
    parameter: Tensor
    gradient: Tensor
    entries: Entries
    #: Of the new parameter, in lower precision.
    lower: Tensor | None
    #: Of its numbers among those of the step.
    cohort: int
    #: Where the elements of a part stand in the whole tensor, where random bits are drawn.
    runs: tuple[Runs, ...]
    #: Where elements are marked that change: of the parameter in host memory, where it is stepped;
    #: of ``lower``, where there is one, on the card.
    marks: Tensor | None

    @classmethod
    def of(cls, member: Member, cohort: int) -> Item:
        """Return what is stepped of a member."""
        lower = None if member.copy is None else parts.local(member.copy)
        return cls(
            member=member,
            parameter=parts.local(member.parameter).detach(),
            gradient=member.local_gradient,
            entries=member.entries.map(parts.local),
            lower=lower,
            cohort=cohort,
            runs=(parts.runs(member.parameter) or ()) if member.draws else (),
            marks=member.marks,
        )

    @property
    def copy(self) -> Tensor | None:
        """The copy of the new parameter, where it is of more than what the card will have."""
        return self.lower if self.entries.remainder is not None else None

    @property
    def own_marks(self) -> Tensor | None:
        """Marks of the parameter; None where they are of the copy."""
        return self.marks if self.lower is None else None

    @property
    def memory(self) -> tuple[Hashable, ...]:
        """Where it is, on the card and in host memory."""
        return tuple(map(_place, (self.parameter, *self.entries, self.own_marks)))

    @property
    def form(self) -> tuple[Hashable, ...]:
        """What its chunks depend on besides."""
        member = self.member
        copied = None if self.lower is None else self.lower.dtype
        return (copied, member.storage, member.top, member.place, self.runs, self.cohort)

    def runs_until(self, last: int) -> tuple[Runs, ...]:
        """Return where the elements before ``last`` stand in the whole tensor, for random bits."""
        return tuple(run for run in self.runs if run.first < last)

    @property
    def narrow(self) -> tuple[str, ...]:
        """Which of m, v and w are not codes but torch's own state in half precision, by role."""
        mean, square = (form == "float32" for form in self.member.storage.forms)
        numbers = self.entries._replace(
            mean=self.entries.mean if mean else None,
            square=self.entries.square if square else None,
            ema=None,
            header=None,
            remainder=None,
        )
        return tuple(role for role, entry in numbers.items() if entry.dtype in small.HALF)

    def part(self, piece: Piece) -> Entries:
        """Return the state of some elements."""

        def cut(entry: Tensor, first: int, last: int) -> Tensor:
            return entry.detach().view(-1)[first:last]

        entries, header = self.entries._replace(header=None), self.entries.header
        sliced = entries.map(lambda entry: cut(entry, piece.first, piece.last))
        if header is not None:  # an entry for each block
            header = cut(header, piece.first // BLOCK, -(-piece.last // BLOCK))
        return sliced._replace(header=header)

    def marks_of(self, piece: Piece) -> NDArray[np.int32] | None:
        """Return the marks of some elements of the parameter; they begin with a word."""
        if self.own_marks is None:
            return None
        return self.own_marks[word_count(piece.first) : word_count(piece.last)].numpy()


class Piece(NamedTuple):
    """Elements of one item."""

    item: int
    first: int
    last: int

    @property
    def size(self) -> int:
        """How many they are."""
        return self.last - self.first


class Staged(NamedTuple):
    """A piece in its staging buffer."""

    piece: Piece
    parameter: Tensor
    gradient: Tensor
    copy: Tensor | None
    remainder: Tensor | None


class Chunk(NamedTuple):
    """Pieces that are copied and stepped together."""

    staged: tuple[Staged, ...]
    plan: native.Plan
    #: In the order of the plan: gradients, and to which items what it records belongs.
    gradients: list[NDArray[Any]]
    items: list[int]
    #: Of each of its groups.
    cohorts: list[int]
    #: State in half precision, and where it is while it is stepped.
    widened: tuple[tuple[Tensor, Tensor], ...]


def _place(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    return tensor.data_ptr(), tensor.numel(), tensor.dtype, tensor.device


def rounds_of(items: Sequence[Item]) -> list[list[int]]:
    """Return the items in groups: of one device, and no two of a group share memory.

    Those that share memory are stepped one after another, as torch does.
    """
    by_device: dict[torch.device, list[int]] = {}
    alone: list[list[int]] = []
    taken = Memory()
    for index, item in enumerate(items):
        if taken.add((item.parameter, *(entry for _, entry in item.entries.items()))):
            by_device.setdefault(item.parameter.device, []).append(index)
        else:
            alone.append([index])
    return [*by_device.values(), *alone]


def cut_up(items: Sequence[Item], indices: list[int], *, whole: bool) -> list[list[Piece]]:
    """Return the pieces of each chunk; with ``whole``, every tensor is one piece."""
    chunks: list[list[Piece]] = []
    room = 0
    for index in indices:
        count = left = items[index].parameter.numel()
        while True:
            if not chunks or room < (left if whole else min(left, TILE)):
                chunks.append([])
                room = max(CHUNK, left) if whole else CHUNK
            take = left if left <= room else room // TILE * TILE
            chunks[-1].append(Piece(index, count - left, count - left + take))
            room -= take
            left -= take
            if left == 0:
                break
    return chunks


class Room:
    """Memory that is handed out in parts."""

    def __init__(self, nbytes: int, *, pinned: bool) -> None:
        self.nbytes = nbytes
        shape = torch.Size((nbytes,))
        #: All of it, as bytes.
        self.memory = torch.empty(
            shape, dtype=torch.uint8, device="cpu", pin_memory=pinned and pins(shape)
        )
        self._next = 0

    def clear(self) -> None:
        """Hand everything out anew."""
        self._next = 0

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return so many elements, with any values."""
        nbytes = count * dtype.itemsize
        part = self.memory[self._next : self._next + nbytes].view(dtype)
        self._next += _aligned(nbytes)
        return part


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def staging_bytes(items: Sequence[Item], pieces: Sequence[Piece]) -> int:
    """Return what the pieces of a chunk take of a staging buffer."""
    total = 0
    for piece in pieces:
        item = items[piece.item]
        total += 2 * _aligned(piece.size * item.parameter.itemsize)
        if item.copy is not None:
            total += _aligned(piece.size * item.copy.itemsize)
    return total


def wide_bytes(items: Sequence[Item], pieces: Sequence[Piece]) -> int:
    """Return what their state in half precision takes while it is stepped."""
    return sum(
        len(items[piece.item].narrow) * _aligned(piece.size * torch.float32.itemsize)
        for piece in pieces
    )


def bound(
    items: Sequence[Item], pieces: Sequence[Piece], room: Room, wide: Room, phase: Phase
) -> Chunk:
    """Return a chunk whose pieces have their places in a staging buffer."""
    staged: list[Staged] = []
    widened: list[tuple[Tensor, Tensor]] = []
    #: By cohort and options: each piece as the engine has it, its gradient, and its item.
    groups: dict[tuple[int, Options], list[tuple[Slot, NDArray[Any], int]]] = {}
    for piece in pieces:
        item, count = items[piece.item], piece.size
        dtype = item.parameter.dtype
        parameter, gradient = room.take(count, dtype), room.take(count, dtype)
        copy = None
        if item.copy is not None:
            copy = room.take(count, item.copy.dtype)
        sliced = item.part(piece)
        staged.append(Staged(piece, parameter, gradient, copy, sliced.remainder))
        own = {role: wide.take(count, torch.float32) for role in item.narrow}
        widened += [(getattr(sliced, role), each) for role, each in own.items()]
        arrays = sliced._replace(**own).map(_array)
        state = State(*arrays, forms=item.member.storage.forms, top=item.member.top)
        slot = Slot(
            _array(parameter),
            state,
            item.member.place,
            piece.first,
            runs=item.runs_until(piece.last),
            marks=item.marks_of(piece),
        )
        options = _options(
            item.member.storage,
            has_mean=sliced.mean is not None,
            has_square=sliced.square is not None,
            amsgrad=sliced.largest_square is not None,
        )
        group = groups.setdefault((item.cohort, options), [])
        group.append((slot, _array(gradient), piece.item))
    plan = native.Plan(
        [
            Group(options, tuple(slot for slot, _, _ in members))
            for (_, options), members in groups.items()
        ],
        phase,
        keep_sums=phase.statistics,
    )
    members = list(itertools.chain.from_iterable(groups.values()))
    return Chunk(
        staged=tuple(staged),
        plan=plan,
        gradients=[gradient for _, gradient, _ in members],
        items=[item for _, _, item in members],
        cohorts=[cohort for cohort, _ in groups],
        widened=tuple(widened),
    )


@functools.lru_cache(maxsize=64)
def _options(storage: Storage, *, has_mean: bool, has_square: bool, amsgrad: bool) -> Options:
    """Return options that say how something is stored; its numbers are given with each step."""
    betas = (0.0 if has_mean else None, 0.0 if has_square else None)
    return Options(
        betas=betas,
        amsgrad=amsgrad,
        state=cast(Any, storage.forms),
        rounding=cast(Any, storage.rounding),
    )


def _array(tensor: Tensor) -> NDArray[Any]:
    """Return the memory of a tensor as an array: bits, where NumPy lacks the dtype."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()
