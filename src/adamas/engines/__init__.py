"""Engines carry out a planned step on arrays; all give the same bits.

An engine is a module with a class ``Plan``:

``Plan(groups, phase, spikes=None, keep_sums=False)``
    takes the groups of slots and the ``Phase`` once, when they are known, and the window of norms
    that ``skip_above`` judges by (``adamas.spikes``; one of its own where none is given). A step
    changes it together with the arrays. With ``keep_sums`` statistics have their sums: they are
    ``adamas.statistics.OfPart``.
``Plan.step(gradients, step, rates, record=None)``
    makes one step in place, given one C-contiguous gradient for each slot, the step number
    (1 first) and the learning rate of each group. It returns an
    ``Outcome``, or None where the phase asks for nothing but the sweep;
    or NotImplemented, having done nothing, where it cannot read the gradients as they are (not a
    list or tuple of C-contiguous arrays of the parameters' shapes and dtypes, or sharing memory
    with what the step writes), or where a parameter is no longer what it was.
    With ``on_nonfinite`` other than "propagate" and a gradient that is not finite, nothing is
    touched and the outcome says so. Raises ValueError where ``step`` is no number of a step or
    ``rates`` are not one for each group, before anything is touched.
    ``record`` is a list of a run's steps, its steps left out and its last outcome. It is brought
    up to date together with the arrays: an interrupt leaves the whole step or nothing of it.
``Plan.step_tree(gradients, like, step, rates, record)``
    does so with gradients that are built as ``like``, the containers of the parameters. It
    answers NotImplemented also where these are not plain, or hold other arrays by now; an engine
    that is not made for speed does so always.

Where front-ends make the numbers of a step themselves, in place of options, they are given as
``StepNumbers``: to ``step_with`` of ``native.Plan``, to
``native.TensorPlan``, whose slots are tensors, and to ``triton.launches.Launches``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from operator import setitem
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.assignments import Assignment
from adamas.options import Options
from adamas.state import State
from adamas.statistics import Outcome

__all__ = [
    "OUTCOME",
    "SKIPPED",
    "STEPS",
    "Group",
    "Runs",
    "Slot",
    "check_rates",
    "noted",
    "places",
    "readable",
]

#: Where the record of a run has its steps, its steps left out and its last outcome.
STEPS, SKIPPED, OUTCOME = range(3)


class Runs(NamedTuple):
    """Elements of a part of a tensor that stand in runs of one length in the whole tensor.

    Both are flattened. These reach to the first of the next ``Runs``, or to the end of the part.
    """

    #: The first of them, in the part and in the whole tensor.
    first: int
    start: int
    #: How long runs are, and how far it is from one to the next in the whole tensor.
    length: int
    pitch: int


class Slot(NamedTuple):
    """One parameter with its state, of one shape; the state is C-contiguous.

    The parameter is float32, float64 or float16, or uint16 for the bits of bfloat16, and so is
    its gradient.

    Random bits belong to the elements of a whole tensor: a slot may be a slice
    of one (flattened, from the element ``first`` on; a multiple of 32 for the form 8bit), or of a
    part whose elements stand in ``runs`` there.
    """

    parameter: NDArray[Any]
    state: State
    #: The number of the tensor among all; None stands for the place of the slot in the plan.
    number: int | None = None
    first: int = 0
    #: The array that ``parameter`` shows the bits of, where that is not the parameter itself.
    array: NDArray[Any] | None = None
    runs: Sequence[Runs] = ()
    #: What is marked where the parameter changes, as ``adamas.marks`` says; None: nothing is.
    marks: NDArray[np.int32] | None = None


def places(slot: Slot, count: int) -> NDArray[np.uint64]:
    """Return where the ``count`` elements of a slot stand in the whole tensor, flattened."""
    element = np.arange(slot.first, slot.first + count)
    place = element
    for run in slot.runs:
        number, within = np.divmod(element - run.first, run.length)
        place = np.where(element < run.first, place, run.start + number * run.pitch + within)
    return place.astype(np.uint64)


class Group(NamedTuple):
    """The slots that share one set of options."""

    options: Options
    slots: tuple[Slot, ...]


def readable(gradients: Any, slots: Sequence[Slot]) -> list[NDArray[Any]] | None:
    """Return gradients with the dtypes that the slots have, or None where they do not fit."""
    if not isinstance(gradients, (list, tuple)) or len(gradients) != len(slots):
        return None
    if not all(map(_fits, gradients, slots)):
        return None
    return [
        gradient.view(slot.parameter.dtype) for gradient, slot in zip(gradients, slots, strict=True)
    ]


def _fits(gradient: Any, slot: Slot) -> bool:
    parameter = slot.parameter if slot.array is None else slot.array
    return (
        type(gradient) is np.ndarray  # others may compute in another way
        and gradient.shape == parameter.shape
        and gradient.dtype == parameter.dtype
        and gradient.flags.c_contiguous
    )


def check_rates(rates: Sequence[float], groups: Sequence[Any]) -> None:
    """Raise ValueError where ``rates`` are not one for each group."""
    if len(rates) != len(groups):
        raise ValueError("A step needs one learning rate for each group.")


def noted(
    record: list[Any], step: int, outcome: Outcome | None, *, skips: bool
) -> list[Assignment]:
    """Return what brings the record of a run up to date; ``skips`` counts a step left out."""
    changes = [partial(setitem, record, OUTCOME, outcome)]
    if outcome is None or outcome.applied:
        changes.append(partial(setitem, record, STEPS, step))
    elif skips and not outcome.spike:
        changes.append(partial(setitem, record, SKIPPED, record[SKIPPED] + 1))
    return changes
