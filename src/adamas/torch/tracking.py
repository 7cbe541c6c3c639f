"""Which elements of the parameters have changed: marks that steps set, one bit an element.

What is compared is the parameter as it is stored, or its low-precision copy where it has one, and
of a distributed tensor this process's part. A step marks what it changes itself. What else writes
to a parameter is told by its version, or by other memory: then all of it has changed.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from adamas.assignments import Assignment, all_at_once, attribute
from adamas.changes import Chain, Change
from adamas.marks import IN_WORD, word_count
from adamas.torch import host_memory, memory, operations, parts

__all__ = ["Tracking"]

#: Parameters are looked through together until they have so many elements.
_AT_ONCE = 1 << 20


class _Seen(NamedTuple):
    """Where a parameter was, and what of it is compared, when it was last looked at."""

    #: Addresses, and which storages they are in: memory that was freed may be given out again.
    parameter: int
    compared: int
    storages: tuple[int, int]
    elements: int
    dtype: torch.dtype
    device: torch.device  # of its marks


class Tracking:
    """Marks of all parameters, in their order; of none, where changes are not tracked."""

    def __init__(self, is_on: bool = False, offloads: bool = False) -> None:
        """Begin without marks, before the parameters are there."""
        self.is_on = is_on
        #: Whether marks of parameters whose state is in host memory are there, too.
        self._offloads = offloads
        #: Of each parameter, int32, in the order of the flattened part that this process has.
        self.marks: list[Tensor] = []
        #: Of each parameter, its version as the last step has left it, and then the number of
        #: steps; the native engine, too, reads and writes them.
        self.versions: NDArray[np.int64] = np.zeros(1, np.int64)
        #: How many there were when marks were last cleared.
        self._cleared_at = 0
        #: Places of copies that are to be brought up to date before they are told.
        self.stale: set[int] = set()
        #: Where those stand who follow the changes.
        self.chain = Chain()
        self._has_begun = False
        self._forget()

    def _forget(self) -> None:
        """Know no parameters."""
        self._parameters: list[Tensor] = []
        #: What is compared, and versions of copies as they were left.
        self._compared: list[Tensor] = []
        self._copied = np.zeros(0, np.int64)
        #: Give the versions of parameters and copies now, in their order.
        self._read_versions = self._read_copied = _no_versions
        self._seen: list[_Seen] = []
        #: As long as these are there, no other storage is taken for one of them.
        self._storages: list[StorageWeakRef] = []
        #: Places of those that share memory with others: a step of one may change another.
        self.shared: frozenset[int] = frozenset()
        #: These, and those whose storage is that of others: PyTorch may count a write to one of
        #: them as one to all.
        self.together: frozenset[int] = frozenset()
        #: How often parameters became others, or marks were cleared.
        self._turns = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return marks and counts; parameters belong to the groups, and versions to them."""
        kept = (
            "is_on",
            "_offloads",
            "marks",
            "steps",
            "_cleared_at",
            "stale",
            "chain",
            "_has_begun",
        )
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take marks and counts over; ``of`` brings them to parameters."""
        self.versions = np.zeros(1, np.int64)
        for name, value in state.items():
            setattr(self, name, value)
        self._forget()

    @property
    def steps(self) -> int:
        """How many steps were made; one that a device has left out counts, as nothing waits."""
        return int(self.versions[-1])

    @steps.setter
    def steps(self, count: int) -> None:
        self.versions[-1] = count

    # -- whose marks they are ------------------------------------------------------------------

    def begin(self, parameters: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
        """Begin with parameters of which nothing has changed."""
        self._has_begun = self.is_on
        self.fit(parameters, copies)
        self.clear()
        self.stale.clear()

    def of(self, parameters: Sequence[Tensor], copies: Sequence[Tensor]) -> Tracking:
        """Return the same, in memory of its own, for parameters in the places of these."""
        own = copy(self)
        own.chain = copy(self.chain)
        own.fit(parameters, copies)
        for place, (marks, before) in enumerate(zip(own.marks, self.marks, strict=False)):
            if marks.shape == before.shape:
                marks.copy_(before)
                own.stale.discard(place)
        return own

    def loaded(
        self, parameters: Sequence[Tensor], copies: Sequence[Tensor], states: Mapping[Any, Any]
    ) -> Tracking:
        """Return what goes on after a load: of all parameters everything has changed."""
        own = copy(self)
        own.chain = copy(self.chain)
        if self.is_on:
            own.steps = own._cleared_at = max(map(int, _steps_in(states)), default=self.steps)
        own.fit(parameters, copies)
        return own

    def fit(self, parameters: Sequence[Tensor], copies: Sequence[Tensor]) -> bool:
        """Let marks be those of these parameters; return whether any are in other memory now.

        Of a parameter that is new, or in other memory than before, everything has changed.
        """
        if not self._has_begun:
            return False
        compared = copies or parameters
        seen = [*map(self._seen_now, parameters, compared)]
        if seen == self._seen and _are(parameters, self._parameters):
            if copies:
                self._compared = [*compared]
                self._read_copied = _reader(copies)
            return False
        before = {id(p): place for place, p in enumerate(self._parameters)}
        known = [before.get(id(p)) for p in parameters]
        marks: list[Tensor] = []
        versions = np.zeros(len(parameters) + 1, np.int64)
        versions[-1] = self.steps
        stale: set[int] = set()
        copied: list[int] = []
        for place, (now, p, old) in enumerate(zip(seen, parameters, known, strict=True)):
            words = word_count(now.elements)
            own = None if old is None else self.marks[old]
            if own is None or own.numel() != words or own.device != now.device:
                with torch.inference_mode(False):
                    own = torch.zeros(words, dtype=torch.int32, device=now.device)
            if old is None or now != self._seen[old]:
                _fill(own, now.elements)
                stale.add(place)
                versions[place], version = version_of(p), _copy_version(p, compared[place])
                copied.append(version)
            else:
                versions[place] = self.versions[old]
                copied.append(int(self._copied[old]))
                if old in self.stale:
                    stale.add(place)
            marks.append(own)
        is_as_before = _are(marks, self.marks)
        self._parameters, self._compared, self._seen = [*parameters], [*compared], seen
        self._storages = [
            StorageWeakRef(parts.local(each).untyped_storage())
            for pair, place in zip(zip(parameters, compared, strict=True), seen, strict=True)
            for each, storage in zip(pair, place.storages, strict=True)
            if storage
        ]
        self._copied, self.stale = np.array(copied, np.int64), stale
        self._read_versions = _reader(parameters)
        self._read_copied = _reader(copies) if copies else lambda: np.zeros(len(seen), np.int64)
        here = (
            parts.local(each) if own.compared else None
            for each, own in zip(compared, seen, strict=True)
        )
        self.shared = frozenset(memory.sharing(here))
        users = Counter(storage for own in seen for storage in {*own.storages} if storage)
        self.together = self.shared.union(
            place for place, own in enumerate(seen) if any(users[each] > 1 for each in own.storages)
        )
        self._turns += 1
        if is_as_before:
            self.versions[:] = versions  # plans have this array
        else:
            self.marks, self.versions = marks, versions
        return not is_as_before

    def _seen_now(self, parameter: Tensor, compared: Tensor) -> _Seen:
        """Return where a parameter is; its marks are where it is stepped, or its copy written."""
        seen = _seen(parameter, compared)
        is_own = self._offloads and compared is parameter
        is_in_host = is_own and host_memory.is_offloaded(parameter)
        return seen._replace(device=torch.device("cpu")) if is_in_host else seen

    # -- what else writes ----------------------------------------------------------------------

    def look(self) -> None:
        """Mark all of the parameters that something else than a step has written to."""
        now, copied = self._read_versions(), self._read_copied()
        found = {*np.flatnonzero((now != self.versions[:-1]) | (copied != self._copied)).tolist()}
        if found & self.shared:
            found |= self.shared
        for place in found:
            _fill(self.marks[place], self._seen[place].elements)
            self.stale.add(place)
        self.versions[:-1], self._copied = now, copied

    def saw(self, places: Iterable[int]) -> None:
        """Take parameters as they are now for what a step has left."""
        those = [*places]
        if those:
            self.versions[those] = self._read_versions()[those]
            self._copied[those] = self._read_copied()[those]

    def saw_again(self, parameters: Iterable[Tensor]) -> None:
        """Take parameters for what a step has left: they have the values that they had."""
        given = {id(p) for p in parameters}
        self.saw(place for place, p in enumerate(self._parameters) if id(p) in given)

    @contextmanager
    def comparing(self, places: Collection[int]) -> Generator[None]:
        """Mark what changes meanwhile at places, by comparing it with what it was before."""
        tensors = [parts.here(self._compared[place]).detach() for place in places]
        before = [each.clone() for each in tensors]
        try:
            yield
        finally:
            for place, old in zip(places, before, strict=True):
                now = parts.here(self._compared[place]).detach()
                operations.mark(self.marks[place], old, now)

    @contextmanager
    def renewing(self, place: int) -> Generator[None]:
        """Mark what changes meanwhile in a copy that is brought up to date."""
        if not self._has_begun:
            yield
            return
        with self.comparing([place]):
            yield
        self._copied[place] = _copy_version(self._parameters[place], self._compared[place])

    # -- what is told --------------------------------------------------------------------------

    @property
    def moment(self) -> tuple[bytes, int]:
        """What is another after each step, and after whatever changes marks."""
        return self.versions.tobytes(), self._turns

    @property
    def first_step(self) -> int:
        """Number of the first step whose changes are marked."""
        return min(self._cleared_at, self.steps) + 1

    @property
    def is_whole(self) -> bool:
        """Whether all elements of all parameters are marked."""
        counts = [each.elements for each in self._seen]
        return bool(counts) and all(map(_is_full, self.marks, counts))

    def change(self, place: int, name: str) -> Change | None:
        """Return what has changed of a parameter; None where nothing has."""
        p, compared = self._parameters[place], self._compared[place]
        found = operations.marked(self.marks[place], self._seen[place].elements)
        if not found.numel():
            return None
        part = parts.here(compared).detach()
        if found.device != part.device:  # marks may be in host memory
            found = found.to(part.device)
        values = part.reshape(-1).index_select(0, found)
        whole = parts.in_whole(p, found)
        return Change(name, whole, values, tuple(p.shape))

    def changes(self, first: int, names: Sequence[str]) -> tuple[list[Change], int]:
        """Return what has changed of a large parameter, or some small ones, and who is next."""
        found: list[Change] = []
        elements, place = 0, first
        while place < len(names) and elements < _AT_ONCE:
            change = self.change(place, names[place])
            if change is not None:
                found.append(change)
            elements += self._seen[place].elements
            place += 1
        return found, place

    def clear(self, others: Iterable[Assignment] = ()) -> None:
        """Start anew: nothing has changed. Whatever interrupts this, ``others`` go with it."""
        # Of tensors on a device, few launches.
        zero = torch._foreach_zero_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        all_at_once(
            [
                *([partial(zero, self.marks)] if self.marks else []),
                attribute(self, "_cleared_at", self.steps),
                attribute(self, "_turns", self._turns + 1),
                *others,
            ]
        )


def version_of(parameter: Tensor) -> int:
    """Return what is another after each write that PyTorch sees."""
    part = parts.local(parameter)
    try:
        return parameter._version + (0 if part is parameter else part._version)
    except RuntimeError:  # tensors of inference mode count no writes
        return 0


def _reader(tensors: Sequence[Tensor]) -> Callable[[], NDArray[np.int64]]:
    """Return what gives the versions of tensors now; steps ask for all of them, so it is quick."""
    local = [(place, p) for place, p in enumerate(tensors) if parts.local(p) is not p]
    places = [place for place, _ in local]

    def read() -> NDArray[np.int64]:
        try:
            now = np.array([p._version for p in tensors], np.int64)
            if places:
                now[places] += [parts.local(p)._version for _, p in local]
        except RuntimeError:  # some count no writes
            now = np.array([*map(version_of, tensors)], np.int64)
        return now

    return read


def _no_versions() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


def _copy_version(parameter: Tensor, compared: Tensor) -> int:
    """Return the version of a copy; 0 where the parameter itself is compared."""
    return 0 if compared is parameter else version_of(compared)


def _seen(parameter: Tensor, compared: Tensor) -> _Seen:
    if is_lazy(parameter) or parameter.is_meta:  # which have no memory yet
        return _Seen(0, 0, (0, 0), 0, torch.float32, torch.device("cpu"))
    part, own = parts.local(parameter), parts.local(compared)
    storages = (_storage(part), 0 if own is part else _storage(own))
    return _Seen(_address(part), _address(own), storages, own.numel(), own.dtype, part.device)


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if tensor.layout == torch.strided else 0


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]
    except (NotImplementedError, RuntimeError):  # other layouts, and types that wrap tensors
        return 0


def _are(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Return whether both have the same tensors."""
    return len(tensors) == len(others) and all(map(operator.is_, tensors, others))


def _steps_in(states: Mapping[Any, Any]) -> Iterator[float]:
    """Yield the numbers of steps that states have."""
    for state in states.values():
        step = state.get("step") if isinstance(state, dict) else None
        if isinstance(step, Tensor):
            yield float(step.item())


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


def _fill(marks: Tensor, count: int) -> None:
    """Mark all elements; bits behind the last one stay 0."""
    marks.fill_(-1)
    if count % IN_WORD:
        marks[-1] = (1 << count % IN_WORD) - 1


def _is_full(marks: Tensor, count: int) -> bool:
    whole = count // IN_WORD
    last = (1 << count % IN_WORD) - 1
    is_full = bool((marks[:whole] == -1).all())
    return is_full and (not last or int(marks[-1].item()) == last)
