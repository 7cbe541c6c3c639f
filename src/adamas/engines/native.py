"""The native engine: compiled sweeps on all processors, bit for bit the reference.

The machine is picked at import: the best of those the build has code for that runs here.
``ADAMAS_TARGET`` names another; ``ADAMAS_NUM_THREADS`` says how many threads a large step uses
(at first one for each processor that is the process's to use: ``processors.py``). Steps of fewer
than about 100,000 elements stay on the calling thread.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checks import whole_number
from adamas.coefficients import StepNumbers
from adamas.digits import WIDTH, Row
from adamas.engines import Group, Runs
from adamas.marks import LARGEST
from adamas.options import Options, Phase
from adamas.processors import usable
from adamas.spikes import Window, kept
from adamas.state import Entries
from adamas.statistics import OfParts, Outcome, Statistics
from adamas.storage import Storage

try:
    from adamas import _native
except ImportError as error:
    # Python takes a module that is not there for a circular import.
    why, folder = str(error), Path(__file__).parents[1]
    if importlib.util.find_spec("adamas._native") is None:
        found = sorted(each.name for each in folder.glob("_native.*") if each.suffix != ".pyi")
        others = ", ".join(found)
        why = f"{folder} has {f'only {others}' if others else 'none'}"
    raise ImportError(
        f"adamas has no compiled module that {sys.implementation.cache_tag} on {sys.platform} can "
        f"load: {why}. Install adamas with the pip of this Python, which builds the module where "
        "no wheel fits: pip install . in the repository. Its src/ alone is not enough."
    ) from error

__all__ = [
    "Cohort",
    "Distributed",
    "Plan",
    "TensorPlan",
    "TensorSlot",
    "TensorWatch",
    "ask_for_huge_pages",
    "counts_below",
    "get_num_threads",
    "outcome_of",
    "processor_count",
    "row_of",
    "set_num_threads",
    "set_target",
    "target",
    "targets",
]

#: A step over the parameters of a torch.optim.Optimizer: native/tensor_plan.cpp.
TensorPlan = _native.TensorPlan

#: Advice for the memory of a large array.
ask_for_huge_pages = _native.ask_for_huge_pages

#: Whether its tensors are those a plan was made for, on any device: native/tensor_watch.cpp.
TensorWatch = _native.TensorWatch


class TensorSlot(NamedTuple):
    """One parameter of a ``TensorPlan``, a CPU tensor, with what belongs to it.

    It is stepped where it has a gradient, and left as it is where it has none. Of a distributed
    tensor, and of what belongs to it, this process's part is stepped.
    """

    parameter: Any
    #: Its own dict of the optimizer's state, and the names there: of the count of steps, and by
    #: role; None where there is no such entry.
    state: dict[str, Any]
    step: str | None
    names: Entries
    storage: Storage
    #: What codes of m are counted from: ``adamas.codecs.mean_top``.
    top: int
    #: Of the tensor among all, for random bits.
    number: int
    #: A tensor in half precision that is written along, or None.
    copy: Any
    #: Which of the plan's cohorts it is of.
    cohort: int
    #: Which of the plan's rows its gradient is counted in.
    row: int = 0
    #: Where the elements of a part stand in the whole tensor, where random bits are drawn; empty
    #: for those of a whole one.
    runs: Sequence[Runs] = ()
    #: What is marked where it changes, as ``adamas.marks`` says: an int32 tensor, or None.
    marks: Any = None
    #: How many elements the whole tensor has, of a part of one, and which of the rows that its
    #: update is counted in that the plan exchanges; None of a whole one.
    whole: int | None = None
    update_row: int | None = None


class Cohort(NamedTuple):
    """Parameters of a ``TensorPlan`` that are stepped with the same numbers."""

    #: The index of their group among the optimizer's.
    group: int
    #: Where the numbers come from; None where each step is given them (``StepNumbers``).
    options: Options | None


class Distributed(NamedTuple):
    """How plans tell tensors that are sharded over processes, and what they may ask of them."""

    #: Their class, torch's DTensor.
    kind: type
    #: Whether what has one ``_spec`` is sharded as what has the other.
    are_alike: Callable[[Any, Any], bool]
    #: Makes a context in which torch asks no type for its ``__torch_function__``, or None.
    unasked: Callable[[], Any] | None


class Plan:
    """A step over fixed groups of arrays, as ``adamas.engines`` describes it."""

    def __init__(
        self,
        groups: Sequence[Group],
        phase: Phase,
        spikes: Window | None = None,
        *,
        keep_sums: bool = False,
    ) -> None:
        """Keep the memory of ``groups`` and ``spikes``; nothing is copied."""
        self._plan = _native.Plan(groups, phase, keep_sums, kept(phase, spikes))
        if not phase.reads_first and not phase.statistics:
            # They return None: there is nothing to unpack.
            self.step = self._plan.step
            self.step_tree = self._plan.step_tree

    def step(
        self, gradients: Any, step: int, rates: Sequence[float], record: list[Any] | None = None
    ) -> Outcome | None:
        """Make one step in place; see ``adamas.engines``."""
        return outcome_of(self._plan.step(gradients, step, rates, record))

    def step_tree(
        self, gradients: Any, like: Any, step: int, rates: Sequence[float], record: list[Any]
    ) -> Outcome | None:
        """Make one step in place; see ``adamas.engines``."""
        return outcome_of(self._plan.step_tree(gradients, like, step, rates, record))

    def step_with(
        self,
        gradients: Sequence[NDArray[Any]],
        numbers: Sequence[StepNumbers],
        loss_scale: float = 1.0,
        factor: float = 1.0,
    ) -> Outcome | None:
        """Make one step with numbers that are given, in place of those of the options.

        ``numbers`` are those of each group. Gradients are ``loss_scale`` times what they stand
        for, and are multiplied by ``factor`` besides. The rest is as in ``step``.
        """
        return outcome_of(self._plan.step_with(gradients, numbers, loss_scale, factor))

    def measured(
        self,
        gradients: Sequence[NDArray[Any]],
        numbers: Sequence[StepNumbers],
        loss_scale: float = 1.0,
        factor: float = 1.0,
    ) -> NDArray[np.int64]:
        """Return the sums of squares by which ``step_with`` would clip updates; it steps nothing.

        int64[slots, digits.WIDTH], of ``adamas.rule.unsmoothed``. Arguments are those of
        ``step_with``; NotImplemented where that would decline.
        """
        rows = self._plan.measured(gradients, numbers, loss_scale, factor)
        return rows if rows is NotImplemented else np.frombuffer(rows, np.int64).reshape(-1, WIDTH)


def outcome_of(parts: Any) -> Outcome | None:
    """Return a compiled step's answer as an outcome; what is none of them as it is."""
    if not isinstance(parts, tuple):
        return parts
    applied, norm, nonfinite, statistics, spike, *own_sums = parts
    if statistics is not None and own_sums:
        statistics = OfParts(statistics, own_sums[0])
    elif statistics is not None:
        statistics = tuple(Statistics(*each) for each in statistics)
    return Outcome(applied, norm, nonfinite, statistics, spike)


def row_of(arrays: Iterable[NDArray[Any]]) -> Row:
    """Return the row of the squares of all elements, as ``adamas.digits.of_squares``.

    Arrays of any shape and strides, of float32, float64, float16, or uint16: bits of bfloat16.
    """
    row = np.zeros(WIDTH, np.int64)
    for array in arrays:
        _native.add_squares(np.ascontiguousarray(array), row)
    return row


def counts_below(arrays: list[NDArray[Any]], bounds: list[float]) -> list[int]:
    """Return how many numbers of each C-contiguous array are below its bound.

    Arrays are of float32 or float64, of any shape.
    """
    return _native.counts_below(arrays, bounds)


def marked_count(marks: NDArray[np.int32], count: int) -> int:
    """Return how many of ``count`` elements are marked."""
    return _native.marked_count(marks, count)


def marked(marks: NDArray[np.int32], count: int) -> NDArray[Any]:
    """Return the indices of the marked elements, of ``count``, ascending.

    They are int32, or int64 where an index needs more.
    """
    dtype = np.int32 if count <= LARGEST else np.int64
    indices = np.empty(_native.marked_count(marks, count), dtype)
    _native.write_marked(marks, count, indices)
    return indices


def targets() -> dict[str, bool]:
    """Return the machines this build has code for, best first, and whether each runs here."""
    here = _native.targets(only_here=True)
    return {name: name in here for name in _native.targets()}


def target() -> str:
    """Return the machine whose code answers."""
    return _native.target()


def set_target(name: str) -> None:
    """Let another machine's code answer. Raises ValueError where it cannot run here."""
    available = targets()
    if not available.get(name):
        reason = "this processor cannot run it" if name in available else "there is no such target"
        possible = ", ".join(each for each, runs in available.items() if runs)
        raise ValueError(
            f"The target {name!r} was asked for, but {reason}. Possible here are: {possible}. "
            "Unset ADAMAS_TARGET for the best of them."
        )
    _native.set_target(name)


def get_num_threads() -> int:
    """Return how many threads a large step uses where the system grants them, this one included."""
    return _native.thread_count()


def processor_count() -> int:
    """Return how many processors this process may run on."""
    return _native.processor_count()


def set_num_threads(count: int) -> None:
    """Set how many threads a large step uses; the bits do not depend on it.

    Raises ValueError or TypeError where ``count`` is no whole number from 1 to 1024.
    """
    whole = whole_number(count)
    if whole is None:
        raise TypeError(f"The number of threads is {count!r}, but it must be a whole number.")
    _set_num_threads("The number of threads", whole)


def _set_num_threads(what: str, count: int) -> None:
    if not 1 <= count <= 1024:
        raise ValueError(f"{what} is {count}, but it must be from 1 to 1024.")
    _native.set_thread_count(count)


def _read_environment() -> None:
    _native.set_usual_threads(usable())
    wanted = os.environ.get("ADAMAS_TARGET")
    if wanted:
        set_target(wanted)
    threads = os.environ.get("ADAMAS_NUM_THREADS")
    if threads:
        if not threads.strip().isdecimal():
            raise ValueError(
                f"ADAMAS_NUM_THREADS is {threads!r}, but it must be a whole number from 1 to 1024."
            )
        _set_num_threads("ADAMAS_NUM_THREADS", int(threads))


_read_environment()
