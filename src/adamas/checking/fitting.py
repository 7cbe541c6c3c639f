"""Which variant explains what was seen: a search, first wide and in float64.

The search goes up in levels: no choice changed from the rule (or from its halves, RMSProp and
Momentum), one, every pair; then the best pairs go on, one change at a time. It stops at the first
level at which a variant explains everything, so the simplest explanation is the one that is found.
What else explains it as well is reported, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checking.observation import Observation, misfit
from adamas.checking.prediction import Part, Prediction, Settings, parts
from adamas.checking.variants import DECAYS, FAMILIES, Constants, Variant, axes, is_valid

__all__ = ["UNKNOWN", "Fit", "fit", "same"]

Array = NDArray[Any]

#: Mean error above which a variant explains nothing, unless quantized state does.
UNKNOWN = 1e-4
#: How many variants go on from one level to the next, and from the first probe to the others.
_KEPT = 40
#: How many variants are compared in one go.
_AT_ONCE = 64
#: The most choices that differ from the rule's in a variant that is found.
_DEEPEST = 5


def _misfits(observation: Observation, variants: tuple[Variant, ...]) -> Array:
    """Return the mean error of each variant: as ``Observation.misfit``, many at once."""
    if observation.settings.weight_decay != 0.0:
        return np.array([observation.misfit(variant) for variant in variants])
    plan, of = _plan(variants, observation.settings), observation.prediction.of
    found = np.empty(len(variants))
    tops, bottoms = np.stack(list(map(of, plan.tops))), np.stack(list(map(of, plan.bottoms)))
    for start in range(0, len(variants), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        change = tops[plan.top[part]] / bottoms[plan.bottom[part]]
        change *= plan.factor[part].reshape(-1, 1, 1, 1)
        found[part] = observation.errors(change).mean(axis=(1, 2, 3))
    return found


class _Plan(NamedTuple):
    """Many variants as combinations of few numerators and denominators."""

    tops: tuple[Part, ...]
    bottoms: tuple[Part, ...]
    #: For each variant: its numerator, its denominator, and what multiplies their ratio.
    top: Array
    bottom: Array
    factor: Array


@lru_cache(maxsize=32)
def _plan(variants: tuple[Variant, ...], settings: Settings) -> _Plan:
    tops: dict[Part, int] = {}
    bottoms: dict[Part, int] = {}
    top, bottom = np.empty((2, len(variants)), np.intp)
    factor = np.empty(len(variants))
    for i, variant in enumerate(variants):
        made_of = parts(variant, settings)
        top[i] = tops.setdefault(made_of.numerator, len(tops))
        bottom[i] = bottoms.setdefault(made_of.denominator, len(bottoms))
        factor[i] = settings.lr if variant.lr_fixed is None else variant.lr_fixed
        factor[i] *= -1.0 if variant.direction == "added" else 1.0
    return _Plan(tuple(tops), tuple(bottoms), top, bottom, factor)


@dataclass(frozen=True)
class Fit:
    """The variant that explains what was seen, and what it leaves unexplained."""

    variant: Variant
    #: Mean error of the predicted changes, relative to each element's largest.
    misfit: float
    #: Other variants that explain what was seen as well, but would differ elsewhere.
    rivals: tuple[Variant, ...]
    #: Whether a learning rate that changes on the way is followed; None where that was not tried.
    follows: bool | None


class _Candidate(NamedTuple):
    variant: Variant
    #: The choices that were changed.
    changed: tuple[str, ...]
    misfit: float = math.inf


@np.errstate(all="ignore")
def fit(
    plain: Sequence[Observation],
    decaying: Sequence[Observation],
    constants: Constants,
    tolerance: float,
    scheduled: Observation | None = None,
) -> Fit:
    """Return the variant that explains ``plain`` and then, for its weight decay, ``decaying``.

    ``tolerance`` is the mean error below which everything is explained. ``scheduled`` has a
    learning rate that changes, and is used where the subject follows it.
    """
    found = _simplest(_levels(plain, constants, tolerance), tolerance)
    limit = max(tolerance, 3.0 * found[0].misfit)
    found = [each for each in found if each.misfit <= limit]
    follows = None
    if decaying:
        # With one learning rate a corrected decay is a decoupled one.
        kinds = tuple(each for each in DECAYS if each != "corrected")
        decayed = _with_decay(found, len(plain), decaying, tolerance, kinds)
        if scheduled is not None:
            follows = _follows(scheduled, decayed, tolerance)
            if follows:
                both = [*decaying, scheduled]
                decayed = _with_decay(found, len(plain), both, tolerance, DECAYS)
        best = decayed[0].variant
        if misfit(decaying, best) <= max(UNKNOWN, 3.0 * misfit(plain, best)):
            found = decayed
        else:
            found = [c._replace(variant=c.variant.but(decay="unknown")) for c in found]
    best, limit = found[0], max(tolerance, 1.5 * found[0].misfit)
    named = [best.variant]
    for each in found[1:]:
        if each.misfit <= limit and not any(same(each.variant, o, bool(decaying)) for o in named):
            named.append(each.variant)
    return Fit(best.variant, best.misfit, tuple(named[1:]), follows)


def same(one: Variant, other: Variant, with_decay: bool) -> bool:
    """Return whether two variants compute the same by construction, whatever they are given.

    They are compared on numbers that no subject is asked about, with every setting at work.
    """
    for prediction in _generic(with_decay):
        with np.errstate(all="ignore"):
            first, second = prediction.change(one), prediction.change(other)
        off = np.abs(first - second) > 1e-12 * np.nanmax(np.abs(first), initial=1e-300)
        if off.any() or not np.array_equal(np.isnan(first), np.isnan(second)):
            return False
    return True


@lru_cache(maxsize=2)
def _generic(with_decay: bool) -> tuple[Prediction, ...]:
    random = np.random.default_rng(2015)
    made: list[Prediction] = []
    for lr, beta1, beta2, eps in ((0.31, 0.77, 0.83, 0.19), (0.17, 0.58, 0.91, 0.37)):
        settings = Settings(lr, beta1, beta2, eps, 0.29 if with_decay else 0.0)
        gradients, before = random.normal(size=(2, 9, 3, 7))
        rates = lr * random.uniform(0.2, 1.0, 9)
        made.append(Prediction(settings, gradients, before, rates))
    return tuple(made)


def _follows(scheduled: Observation, found: Sequence[_Candidate], tolerance: float) -> bool:
    """Return whether a learning rate that changes on the way explains the changes better."""
    variants = [each.variant.but(decay=decay) for each in found[:3] for decay in DECAYS]
    fixed = dataclasses.replace(scheduled, follows_rates=False)
    moved = min(map(scheduled.misfit, variants))
    return moved <= tolerance or 2.0 * moved < min(map(fixed.misfit, variants))


def _levels(
    plain: Sequence[Observation], constants: Constants, tolerance: float
) -> list[list[_Candidate]]:
    """Return the best variants of each level, best first."""
    starts = [_Candidate(each, _halved(each), misfit(plain, each)) for each in FAMILIES]
    levels = [_ranked(starts, tolerance)]
    while levels[-1][0].misfit > tolerance and len(levels) <= _DEEPEST:
        front = starts if len(levels) == 1 else levels[-1]
        groups: list[tuple[_Candidate, ...]] = []
        if len(levels) == 2:
            # Apart from the others, since these are the same for every subject.
            groups.append(_pairs(constants))
            front = [each for each in front if _halved(each.variant)]
        groups.append(tuple(_changed(front, constants)))
        if not any(groups):
            break
        levels.append(_best(groups, plain, tolerance))
    return levels


def _halved(variant: Variant) -> tuple[str, ...]:
    """Return the means that a variant does without: choices that are made."""
    absent = () if variant.mean == "mean" else ("mean",)
    return (*absent, "square") if variant.square == "absent" else absent


@lru_cache(maxsize=8)
def _pairs(constants: Constants) -> tuple[_Candidate, ...]:
    """Return every variant that differs from the rule in two choices."""
    found = [
        _Candidate(Variant(**first, **second), (one, other))
        for (one, some), (other, more) in itertools.combinations(axes(constants).items(), 2)
        for first, second in itertools.product(some, more)
    ]
    return tuple(each for each in found if is_valid(each.variant))


def _changed(front: Sequence[_Candidate], constants: Constants) -> Iterator[_Candidate]:
    """Yield every variant one choice away from those of ``front``, once."""
    seen: set[Variant] = set()
    for candidate in front:
        for choice, values in axes(constants).items():
            if choice in candidate.changed:
                continue
            for change in values:
                variant = candidate.variant.but(**change)
                if variant not in seen and is_valid(variant):
                    seen.add(variant)
                    yield _Candidate(variant, (*candidate.changed, choice))


def _best(
    groups: Sequence[tuple[_Candidate, ...]], plain: Sequence[Observation], tolerance: float
) -> list[_Candidate]:
    """Return the best variants: judged by the first observation, the better ones by all."""
    first, others = plain[0], plain[1:]
    candidates = [each for group in groups for each in group]
    variants = [each.variant for each in candidates]
    misfits = np.concatenate(
        [_misfits(first, tuple(each.variant for each in group)) for group in groups if group]
    )
    for i, variant in enumerate(variants):
        if variant.lr_fixed is not None and math.isnan(variant.lr_fixed):
            variants[i] = _with_rate(variant, first)
            misfits[i] = first.misfit(variants[i])
    order = np.argsort(misfits, kind="stable")
    limit = max(tolerance, 3.0 * misfits[order[0]])
    kept = [i for place, i in enumerate(order) if place < _KEPT or misfits[i] <= limit]
    chosen = tuple(variants[i] for i in kept)
    total = misfits[kept] + sum(_misfits(each, chosen) for each in others)
    judged = [
        _Candidate(variant, candidates[i].changed, float(sum_of_all) / len(plain))
        for variant, i, sum_of_all in zip(chosen, kept, total, strict=True)
    ]
    return _ranked(judged, tolerance)[:_KEPT]


def _with_rate(variant: Variant, observation: Observation) -> Variant:
    """Return ``variant`` with the learning rate found out, where it is some fixed one."""
    rate = observation.rate(variant)
    round_number = float(f"{rate:.3g}")
    near = abs(round_number - rate) <= 1e-5 * rate
    return variant.but(lr_fixed=round_number if near else rate)


def _simplest(levels: list[list[_Candidate]], tolerance: float) -> list[_Candidate]:
    """Return the first level that is not clearly worse than the best one."""
    least = min(level[0].misfit for level in levels)
    return next(each for each in levels if each[0].misfit <= max(tolerance, 2.0 * least))


def _with_decay(
    found: Sequence[_Candidate],
    weight: int,
    decaying: Sequence[Observation],
    tolerance: float,
    kinds: Sequence[str],
) -> list[_Candidate]:
    """Return ``found`` with each of these kinds of weight decay, best first.

    The misfit that they have already counts ``weight`` times.
    """
    judged: list[_Candidate] = []
    for decay, candidate in itertools.product(kinds, found):
        variant = candidate.variant.but(decay=decay)
        total = weight * candidate.misfit + len(decaying) * misfit(decaying, variant)
        judged.append(_Candidate(variant, candidate.changed, total / (weight + len(decaying))))
    return _ranked(judged, tolerance)


def _ranked(found: Iterable[_Candidate], tolerance: float) -> list[_Candidate]:
    """Return the variants best first; those that explain everything in the order they came."""
    return sorted(found, key=lambda each: 0.0 if each.misfit <= tolerance else each.misfit)
