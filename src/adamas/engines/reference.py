"""The reference engine: slow and plain; every other is compared with it.

It calls ``adamas.rule.rule`` on whole arrays and ``adamas.statistics`` on whole tensors,
one thing after another, and stores everything in the end. How values are stored it leaves to
``adamas.codecs``: what a form stores stands in ``adamas.storage``, and a new form is one
codec there, in ``native/codecs.h`` and in ``engines/triton/codecs.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas import marks
from adamas.assignments import Assignment, all_at_once, values
from adamas.codecs import decode_parameter, encode_parameter, key_of, random_bits_at
from adamas.coefficients import (
    Coefficients,
    at_step,
    check_step,
    clip_factor,
    ema_weights,
    update_factor,
)
from adamas.digits import norm as norm_of_row
from adamas.engines import Group, Slot, check_rates, noted, places, readable
from adamas.options import Options, Phase
from adamas.rule import Result, rule, smooth, unsmoothed
from adamas.spikes import Window, entered, is_spike, kept
from adamas.statistics import OfPart, Outcome, Statistics, norm, row_of

__all__ = ["Plan"]

Array = NDArray[Any]


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
        """Keep all of them; nothing is copied."""
        self._groups = tuple(groups)
        self._phase = phase
        self._spikes = kept(phase, spikes)
        self._keep_sums = keep_sums

    def step(
        self, gradients: Any, step: int, rates: Sequence[float], record: list[Any] | None = None
    ) -> Outcome | None:
        """Make one step in place; see ``adamas.engines``."""
        slots = [slot for group in self._groups for slot in group.slots]
        bits = readable(gradients, slots)
        if bits is None:
            return NotImplemented
        step = check_step(step)
        check_rates(rates, self._groups)
        with np.errstate(all="ignore"):
            outcome, new_values = self._stepped(list(map(decode_parameter, bits)), step, rates)
        if record is not None:
            skips = self._phase.on_nonfinite == "skip"
            new_values += noted(record, step, outcome, skips=skips)
        all_at_once(new_values)
        return outcome

    def step_tree(self, *_: Any) -> Any:
        """Leave a close look at everything to the caller."""
        return NotImplemented

    def _stepped(
        self, gradients: Sequence[Array], step: int, rates: Sequence[float]
    ) -> tuple[Outcome | None, list[Assignment]]:
        """Return the outcome of a step, and what it writes."""
        phase = self._phase
        total = norm(gradients) if phase.reads_first else None
        nonfinite = tuple(map(_count_nonfinite, gradients)) if phase.reads_first else None
        if nonfinite is not None and any(nonfinite) and phase.on_nonfinite != "propagate":
            return Outcome(False, total, nonfinite, statistics=None), []
        spikes, above = self._spikes, phase.skip_above
        new_values: list[Assignment] = []
        if spikes is not None and total is not None and above is not None:
            leaps = is_spike(spikes, total, above)
            new_values.append(values(spikes, entered(spikes, total, is_left_out=leaps)))
            if leaps:
                return Outcome(False, total, nonfinite, statistics=None, spike=True), new_values
        factor = 1.0
        if phase.clip_norm is not None and total is not None:
            factor = clip_factor(phase.clip_norm, total)
        statistics: list[Statistics] = []
        remaining = enumerate(gradients)
        for group, rate in zip(self._groups, rates, strict=True):
            numbers = at_step(group.options, step, rate, factor)
            for slot in group.slots:
                place, gradient = next(remaining)
                number = place if slot.number is None else slot.number
                key = key_of(phase.seed, step, number)
                random = random_bits_at(key, places(slot, gradient.size))
                before = _value(slot)
                mean, square = slot.state.means()
                largest = slot.state.largest_square
                own = numbers
                if phase.clip_update is not None:
                    own = _shortened(numbers, phase.clip_update, before, gradient, square, largest)
                result = rule(own.rounded(before.dtype), before, gradient, mean, square, largest)
                after, changed = _stored(slot, result, group.options, random)
                new_values += changed
                if phase.ema is not None:
                    new_values.append(_averaged(slot, after, phase.ema, step))
                if phase.statistics:
                    described = _describe(gradient, before, after, result)
                    statistics.append(described if self._keep_sums else described.alone)
        if not phase.reads_first and not phase.statistics:
            return None, new_values
        taken = tuple(statistics) if phase.statistics else None
        return Outcome(True, total, nonfinite, statistics=taken), new_values


def _value(slot: Slot) -> Array:
    """Return the parameter as it is computed with.

    One without axes has one: else the results were scalars, which had no array namespace before
    NumPy 2.1.
    """
    return np.atleast_1d(decode_parameter(slot.parameter, slot.state.remainder))


def _shortened(
    numbers: Coefficients, bound: float, p: Array, g: Array, v: Array | None, w: Array | None
) -> Coefficients:
    """Return the numbers of a tensor whose update is clipped at ``bound``."""
    c = numbers.rounded(p.dtype)
    length = norm([unsmoothed(c, p if c.l2 != 0 else None, g, v, w)])
    return numbers.shortened(update_factor(bound, length, p.size, numbers.root))


def _stored(
    slot: Slot, result: Result, options: Options, random: Any
) -> tuple[Array, list[Assignment]]:
    """Return the new parameter as it is computed with, and what is to be stored."""
    state = slot.state
    after, code, remainder = result.p, result.p, None
    if slot.parameter.dtype != result.p.dtype:
        rounding = options.storage.parameter_rounding
        code, remainder = encode_parameter(result.p.ravel(), slot.parameter, rounding, random)
        after = decode_parameter(code, remainder).reshape(result.p.shape)
    by_chance = options.storage.means_by_chance
    means = state.encoded(result.m, result.v, random if by_chance else None)
    kept = [(slot.parameter, code), (state.remainder, remainder)]
    kept += [(state.largest_square, result.w), *means]
    if slot.marks is not None:
        stored = code.reshape(slot.parameter.shape)
        kept.append((slot.marks, slot.marks | marks.between(slot.parameter, stored)))
    return after, [values(old, new) for old, new in kept if old is not None and new is not None]


def _averaged(slot: Slot, parameter: Array, beta: float, step: int) -> Assignment:
    average = slot.state.ema
    assert average is not None
    keep, take = map(average.dtype.type, ema_weights(beta, step))
    return values(average, smooth(keep, take, average, parameter))


def _describe(gradient: Array, before: Array, after: Array, result: Result) -> OfPart:
    moved = int(np.count_nonzero(after != before))
    sums = np.stack([row_of([each]) for each in (gradient, before, result.change)])
    return OfPart(
        *map(norm_of_row, sums),
        largest_update=float(np.max(np.abs(result.u), initial=0.0)),
        nonfinite=_count_nonfinite(gradient),
        unmoved=(before.size - moved) / before.size if before.size else 0.0,
        sums=sums,
    )


def _count_nonfinite(gradient: Array) -> int:
    return int(gradient.size - np.count_nonzero(np.isfinite(gradient)))
