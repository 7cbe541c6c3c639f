"""The reference engine: slow, obvious, and the judge of every other.

It calls :func:`adamas.rule.rule` on whole arrays and :mod:`adamas.statistics` on whole tensors,
one thing after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.codecs import decode_parameter, encode_parameter, key_of, random_bits
from adamas.coefficients import Coefficients, at_step, clip_factor, ema_weights
from adamas.engines import Group, Slot
from adamas.options import Options, Phase
from adamas.rule import Result, rule, smooth
from adamas.statistics import Outcome, Statistics, norm

__all__ = ["Plan"]

Array = NDArray[Any]


class Plan:
    """A step over fixed groups of arrays, as :mod:`adamas.engines` describes it."""

    def __init__(self, groups: Sequence[Group], phase: Phase) -> None:
        """Keep ``groups`` and ``phase``; nothing is copied."""
        self._groups = tuple(groups)
        self._phase = phase

    def step(self, gradients: Sequence[Array], step: int, rates: Sequence[float]) -> Outcome | None:
        """Make one step in place; see :mod:`adamas.engines`."""
        if not self._can_read(gradients):
            return NotImplemented
        with np.errstate(all="ignore"):
            return self._step(gradients, step, rates)

    def _can_read(self, gradients: Sequence[Array]) -> bool:
        parameters = [slot.parameter for group in self._groups for slot in group.slots]
        return (
            isinstance(gradients, (list, tuple))
            and len(gradients) == len(parameters)
            and all(map(_fits, gradients, parameters))
        )

    def _step(
        self, gradients: Sequence[Array], step: int, rates: Sequence[float]
    ) -> Outcome | None:
        phase = self._phase
        gradients = [decode_parameter(gradient) for gradient in gradients]
        total = norm(gradients) if phase.reads_first else None
        nonfinite = tuple(map(_count_nonfinite, gradients)) if phase.reads_first else None
        if nonfinite is not None and any(nonfinite) and phase.on_nonfinite != "propagate":
            return Outcome(applied=False, norm=total, nonfinite=nonfinite, statistics=None)
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
                random = random_bits(key_of(phase.seed, step, number), slot.first, gradient.size)
                before = _value(slot).copy()
                result = _step_slot(slot, gradient, numbers, group.options, random)
                if phase.ema is not None:
                    _average(slot, phase.ema, step)
                if phase.statistics:
                    statistics.append(_describe(gradient, before, _value(slot), result))
        if not phase.reads_first and not phase.statistics:
            return None
        taken = tuple(statistics) if phase.statistics else None
        return Outcome(applied=True, norm=total, nonfinite=nonfinite, statistics=taken)


def _fits(gradient: Any, parameter: Array) -> bool:
    return (
        isinstance(gradient, np.ndarray)
        and gradient.shape == parameter.shape
        and gradient.dtype == parameter.dtype
        and gradient.flags.c_contiguous
    )


def _value(slot: Slot) -> Array:
    """Return the parameter as it is computed with."""
    return decode_parameter(slot.parameter, slot.state.remainder)


def _step_slot(
    slot: Slot, gradient: Array, numbers: Coefficients, options: Options, random: Any
) -> Result:
    p, state = _value(slot), slot.state
    c = numbers.rounded(p.dtype)
    result = rule(c, p, gradient, *state.means(), state.largest_square)
    _put_parameter(slot, result.p, options, random)
    state.put_means(result.m, result.v, random if options.is_stochastic else None)
    if state.largest_square is not None and result.w is not None:
        np.copyto(state.largest_square, result.w)
    return result


def _put_parameter(slot: Slot, p: Array, options: Options, random: Any) -> None:
    if slot.parameter.dtype == p.dtype:
        np.copyto(slot.parameter, p)
        return
    rounding = options.parameter_rounding
    code, remainder = encode_parameter(p.ravel(), slot.parameter, rounding, random)
    np.copyto(slot.parameter, code.reshape(p.shape))
    if slot.state.remainder is not None and remainder is not None:
        np.copyto(slot.state.remainder, remainder.reshape(p.shape))


def _average(slot: Slot, beta: float, step: int) -> None:
    average = slot.state.ema
    assert average is not None
    keep, take = map(average.dtype.type, ema_weights(beta, step))
    np.copyto(average, smooth(keep, take, average, _value(slot)))


def _describe(gradient: Array, before: Array, after: Array, result: Result) -> Statistics:
    moved = int(np.count_nonzero(after != before))
    return Statistics(
        gradient_norm=norm([gradient]),
        parameter_norm=norm([before]),
        update_norm=norm([result.change]),
        largest_update=float(np.max(np.abs(result.u), initial=0.0)),
        nonfinite=_count_nonfinite(gradient),
        unmoved=(before.size - moved) / before.size if before.size else 0.0,
    )


def _count_nonfinite(gradient: Array) -> int:
    return int(gradient.size - np.count_nonzero(np.isfinite(gradient)))
