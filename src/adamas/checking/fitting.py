"""Which form explains what was seen: a search, first wide and in float64.

The search goes up in levels: no choice changed from the rule (or from its halves, RMSProp and
Momentum), one, every pair; then the best pairs go on, one change at a time. It stops at the first
level at which a form explains everything, so the simplest explanation is the one that is found.
What else explains it as well is reported, too.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from adamas.checking.forms import FAMILIES, Changes, Constants, Form, axes, decays, is_valid
from adamas.checking.observation import Observation
from adamas.checking.prediction import Prediction, Settings

__all__ = ["UNKNOWN", "Fit", "Watched", "fit", "misfit", "same"]

Array = NDArray[Any]

#: Mean error above which a form explains nothing, unless state in few bits does.
UNKNOWN = 1e-4
#: How many forms go on from one level to the next, and from the first probe to the others.
_KEPT = 40
#: How many forms are compared in one go.
_AT_ONCE = 64
#: The most choices that differ from the rule's in a form that is found.
_DEEPEST = 5


class Watched:
    """An observation made ready to be compared with many predictions."""

    def __init__(self, observation: Observation) -> None:
        """Work out once what every comparison needs."""
        self.observation = observation
        self.prediction: Prediction = observation.prediction()
        self.change = observation.change
        self._finite = np.isfinite(self.change)
        self._all_finite = bool(self._finite.all())
        with np.errstate(all="ignore"):
            self._size = np.where(self._finite, np.abs(self.change), 0.0).max(axis=0)
            height = np.maximum(np.abs(observation.before), np.abs(observation.after))
            height = np.where(np.isfinite(height), height, 0.0)
            #: What rounding the parameter may have done to the change.
            self._grain = np.spacing(height.astype(observation.dtype)).astype(np.float64)

    def errors(self, change: Array) -> Array:
        """Return the error of each predicted change, relative to the element's largest, up to 1."""
        size = np.abs(change)
        if self._all_finite and np.isfinite(size).all():
            return self._relative(change, size)
        known = np.isfinite(change)
        errors = self._relative(change, np.where(known, size, 0.0))
        # NaN and infinity are right where both are; 0/0 is left open.
        strange = np.where(known == self._finite, 0.0, 1.0)
        strange = np.where(np.isnan(change) & (self.change == 0.0), 0.0, strange)
        return np.where(known & self._finite, errors, strange)

    def _relative(self, change: Array, size: Array) -> Array:
        largest = np.maximum(self._size, size.max(axis=-3, keepdims=True))
        off = np.maximum(np.abs(change - self.change) - self._grain, 0.0)
        return np.minimum(off / np.where(largest == 0.0, 1.0, largest), 1.0)

    def misfit(self, form: Form) -> float:
        """Return the mean error of ``form``."""
        return float(self.errors(self.prediction.change(form)).mean())

    def typical(self, form: Form) -> float:
        """Return the error of ``form`` in the middle element: blind to a few that are far off."""
        with np.errstate(all="ignore"):
            return float(np.median(self.errors(self.prediction.change(form)).mean(axis=0)))

    def misfits(self, forms: tuple[Form, ...]) -> Array:
        """Return the mean error of each form: as :meth:`misfit`, many at once."""
        if self.observation.settings.weight_decay != 0.0:
            return np.array([self.misfit(form) for form in forms])
        plan = _plan(forms, self.observation.settings)
        found = np.empty(len(forms))
        tops = np.stack([self.prediction.top(form) for form in plan.tops])
        bottoms = np.stack([self.prediction.bottom(form) for form in plan.bottoms])
        for start in range(0, len(forms), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            change = tops[plan.top[part]] / bottoms[plan.bottom[part]]
            change *= plan.factor[part].reshape(-1, 1, 1, 1)
            found[part] = self.errors(change).mean(axis=(1, 2, 3))
        return found

    def rate(self, form: Form) -> float:
        """Return the learning rate that explains the size of the changes best, given the rest."""
        ratio = self.change / self.prediction.change(form.but(lr_fixed=1.0))
        ratio = ratio[np.isfinite(ratio) & (ratio > 0)]
        return float(np.median(ratio)) if ratio.size else 0.0


class _Plan(NamedTuple):
    """Many forms as combinations of few numerators and denominators."""

    tops: list[Form]
    bottoms: list[Form]
    #: For each form: its numerator, its denominator, and what multiplies their ratio.
    top: Array
    bottom: Array
    factor: Array


@lru_cache(maxsize=8)
def _plan(forms: tuple[Form, ...], settings: Settings) -> _Plan:
    keys = Prediction(settings, np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
    tops: dict[Any, tuple[int, Form]] = {}
    bottoms: dict[Any, tuple[int, Form]] = {}
    top, bottom, factor = (np.empty(len(forms), dtype) for dtype in (np.intp, np.intp, np.float64))
    for i, form in enumerate(forms):
        above, below = keys.parts(form)
        top[i] = tops.setdefault(above, (len(tops), form))[0]
        bottom[i] = bottoms.setdefault(below, (len(bottoms), form))[0]
        factor[i] = settings.lr if form.lr_fixed is None else form.lr_fixed
        factor[i] *= -1.0 if form.direction == "added" else 1.0
    return _Plan(
        [f for _, f in tops.values()], [f for _, f in bottoms.values()], top, bottom, factor
    )


def misfit(watched: Iterable[Watched], form: Form) -> float:
    """Return the mean error of ``form`` over several observations."""
    found = [each.misfit(form) for each in watched]
    return sum(found) / len(found) if found else 0.0


@dataclass(frozen=True)
class Fit:
    """The form that explains what was seen, and what it leaves unexplained."""

    form: Form
    #: Mean error of the predicted changes, relative to each element's largest.
    misfit: float
    #: Other forms that explain what was seen as well, but would differ elsewhere.
    rivals: tuple[Form, ...]
    #: Whether a learning rate that changes on the way is followed; None where that was not tried.
    follows: bool | None


#: A form, and the choices that were changed.
_Candidate = tuple[Form, tuple[str, ...]]


@dataclass(frozen=True)
class _Scored:
    misfit: float
    form: Form
    #: The choices that were changed.
    changed: tuple[str, ...]


def fit(
    plain: Sequence[Watched],
    decaying: Sequence[Watched],
    constants: Constants,
    tolerance: float,
    scheduled: Watched | None = None,
) -> Fit:
    """Return the form that explains ``plain`` and then, for its weight decay, ``decaying``.

    ``tolerance`` is the mean error below which everything is explained. ``scheduled`` has a
    learning rate that changes, and is used where the subject follows it.
    """
    with np.errstate(all="ignore"):
        return _fit(plain, decaying, constants, tolerance, scheduled)


def _fit(
    plain: Sequence[Watched],
    decaying: Sequence[Watched],
    constants: Constants,
    tolerance: float,
    scheduled: Watched | None,
) -> Fit:
    found = _simplest(_levels(plain, constants, tolerance), tolerance)
    limit = max(tolerance, 3.0 * found[0].misfit)
    found = [each for each in found if each.misfit <= limit]
    follows = None
    if decaying:
        decayed = _with_decay(found, len(plain), decaying, tolerance)
        if scheduled is not None:
            follows = _follows(scheduled, decayed, tolerance)
            if follows:
                both = [*decaying, scheduled]
                decayed = _with_decay(found, len(plain), both, tolerance)
        found = decayed if _explains(decayed[0], plain, decaying) else _undecayed(found)
    best = found[0]
    limit = max(tolerance, 1.5 * best.misfit)
    rivals: list[Form] = []
    for each in found[1:]:
        others = (best.form, *rivals)
        if each.misfit <= limit and not any(same(each.form, o, bool(decaying)) for o in others):
            rivals.append(each.form)
    return Fit(best.form, best.misfit, tuple(rivals), follows)


def _explains(best: _Scored, plain: Sequence[Watched], decaying: Sequence[Watched]) -> bool:
    """Return whether the weight decay is of a known form, as far as the rest is."""
    return misfit(decaying, best.form) <= max(UNKNOWN, 3.0 * misfit(plain, best.form))


def _undecayed(found: Sequence[_Scored]) -> list[_Scored]:
    return [_Scored(e.misfit, e.form.but(decay="unknown"), e.changed) for e in found]


def same(one: Form, other: Form, with_decay: bool) -> bool:
    """Return whether two forms compute the same by construction, whatever they are given.

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


def _follows(scheduled: Watched, found: Sequence[_Scored], tolerance: float) -> bool:
    """Return whether a learning rate that changes on the way explains the changes better."""
    forms = [each.form.but(decay=decay) for each in found[:3] for decay in decays()]
    fixed = Watched(dataclasses.replace(scheduled.observation, follows_rates=False))
    moved = min(scheduled.misfit(form) for form in forms)
    return moved <= tolerance or 2.0 * moved < min(fixed.misfit(form) for form in forms)


def _levels(
    plain: Sequence[Watched], constants: Constants, tolerance: float
) -> list[list[_Scored]]:
    """Return the best forms of each level, best first."""
    table = axes(constants)
    starts = [_Scored(misfit(plain, form), form, _halved(form)) for form in FAMILIES]
    levels = [_ranked(starts, tolerance)]
    while levels[-1][0].misfit > tolerance and len(levels) <= _DEEPEST:
        if len(levels) == 1:
            candidates = tuple(_changed(starts, table))
        elif len(levels) == 2:
            halves = [each for each in levels[-1] if _halved(each.form)]
            candidates = (*_pairs(constants), *_changed(halves, table))
        else:
            candidates = tuple(_changed(levels[-1], table))
        front = _best(candidates, plain, tolerance)
        if not front:
            break
        levels.append(front)
    return levels


def _halved(form: Form) -> tuple[str, ...]:
    """Return the means that a form does without: choices that are made."""
    absent = () if form.mean == "mean" else ("mean",)
    return (*absent, "square") if form.square == "absent" else absent


@lru_cache(maxsize=8)
def _pairs(constants: Constants) -> tuple[_Candidate, ...]:
    """Return every form that differs from the rule in two choices."""
    table = axes(constants)
    found: list[_Candidate] = []
    for one, other in itertools.combinations(table, 2):
        for first, second in itertools.product(table[one], table[other]):
            form = Form(**first, **second)
            if is_valid(form):
                found.append((form, (one, other)))
    return tuple(found)


def _changed(
    front: Sequence[_Scored], table: Mapping[str, Sequence[Changes]]
) -> Iterator[_Candidate]:
    """Yield every form one choice away from those of ``front``, once."""
    seen: set[Form] = set()
    for scored in front:
        for choice, values in table.items():
            if choice in scored.changed:
                continue
            for change in values:
                form = scored.form.but(**change)
                if form not in seen and is_valid(form):
                    seen.add(form)
                    yield form, (*scored.changed, choice)


def _best(
    candidates: Sequence[_Candidate], plain: Sequence[Watched], tolerance: float
) -> list[_Scored]:
    """Return the best forms: judged by the first observation, the better ones by all."""
    if not candidates:
        return []
    first, others = plain[0], plain[1:]
    misfits = first.misfits(tuple(form for form, _ in candidates))
    forms = [form for form, _ in candidates]
    for i, form in enumerate(forms):
        if form.lr_fixed is not None and math.isnan(form.lr_fixed):
            forms[i] = _with_rate(form, first)
            misfits[i] = first.misfit(forms[i])
    order = np.argsort(misfits, kind="stable")
    limit = max(tolerance, 3.0 * misfits[order[0]])
    kept = [i for place, i in enumerate(order) if place < _KEPT or misfits[i] <= limit]
    chosen = tuple(forms[i] for i in kept)
    total = misfits[kept] + sum(watched.misfits(chosen) for watched in others)
    judged = [
        _Scored(float(sum_of_all) / len(plain), form, candidates[i][1])
        for sum_of_all, form, i in zip(total, chosen, kept, strict=True)
    ]
    return _ranked(judged, tolerance)[:_KEPT]


def _with_rate(form: Form, watched: Watched) -> Form:
    """Return ``form`` with the learning rate found out, where it is some fixed one."""
    rate = watched.rate(form)
    round_number = float(f"{rate:.3g}")
    near = abs(round_number - rate) <= 1e-5 * rate
    return form.but(lr_fixed=round_number if near else rate)


def _simplest(levels: list[list[_Scored]], tolerance: float) -> list[_Scored]:
    """Return the first level that is not clearly worse than the best one."""
    least = min(level[0].misfit for level in levels)
    for level in levels:
        if level[0].misfit <= max(tolerance, 2.0 * least):
            return level
    return levels[-1]


def _with_decay(
    found: Sequence[_Scored], weight: int, decaying: Sequence[Watched], tolerance: float
) -> list[_Scored]:
    """Return ``found`` with each form of weight decay, best first.

    The misfit that they have already counts ``weight`` times.
    """
    judged: list[_Scored] = []
    for decay, scored in itertools.product(decays(), found):
        form = scored.form.but(decay=decay)
        total = weight * scored.misfit + len(decaying) * misfit(decaying, form)
        judged.append(_Scored(total / (weight + len(decaying)), form, scored.changed))
    return _ranked(judged, tolerance)


def _ranked(found: Iterable[_Scored], tolerance: float) -> list[_Scored]:
    """Return the forms best first; those that explain everything in the order they came."""
    return sorted(found, key=lambda each: 0.0 if each.misfit <= tolerance else each.misfit)
