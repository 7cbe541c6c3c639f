"""The course of a check: find, call, probe, fit, judge."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking import probes, wording
from adamas.checking.candidates import the_one
from adamas.checking.conventions import detect
from adamas.checking.cost import cost
from adamas.checking.distances import Distance, distance
from adamas.checking.edges import edges
from adamas.checking.fitting import UNKNOWN, Fit, fit
from adamas.checking.frameworks import Torch
from adamas.checking.observation import Observation, misfit, observe
from adamas.checking.progress import STAGES, Progress, Tell
from adamas.checking.report import Line, Miss, Report
from adamas.checking.subjects import CannotCheckError, find
from adamas.checking.trials import Convention, told
from adamas.checking.variants import ROUNDINGS, Constants, Variant, rule_nearest

__all__ = ["Diagnosis", "check", "diagnose", "examine"]

Array = NDArray[Any]

#: Mean error below which everything is explained, by the dtype that is probed. In float64 a variant
#: that is right leaves about 1e-16; in float32 about 1e-7. Variants that differ differ by more.
_TOLERANCES = {"float64": 1e-12, "float32": 2e-6}
#: The largest error of an ordinary element that is put down to quantized state.
_NOISE = 0.02
#: Relative error of an update from which rounding is no longer a matter of rounding.
_COARSE = 2.0**-10


def check(subject: object, **options: Any) -> Report:
    """Return what an implementation of Adam computes.

    ``subject`` is a class, a function that makes an optimizer or a function that makes a step, or
    the name of one: ``"package.module:Class"`` or ``"path/to/file.py:Class"``. ``options`` are
    keyword arguments that it is made with besides, as ``amsgrad=True``. It may work on PyTorch
    tensors, on JAX arrays (an optax transformation) or on NumPy arrays.

    Takes some seconds. Raises ``adamas.checking.CannotCheckError`` (a ValueError) where the
    subject cannot be found, or called in any known way.
    """
    return examine(subject, options)


def examine(subject: object, options: Mapping[str, Any], tell: Tell = lambda _: None) -> Report:
    """Return what ``check`` returns; call ``tell`` with each position on the way."""
    progress = Progress(tell)
    progress.begin(STAGES[0])
    if isinstance(subject, str):
        subject = the_one(subject) or subject
    convention = detect(find(subject, options), progress.advance)
    if convention.outlives:
        return _outliving(convention)
    return _Judgement(_probed(convention, progress), progress).report()


def _outliving(convention: Convention) -> Report:
    """Return the report on a subject that cannot be run twice: probes would mix with each other."""
    told = (
        "state outlives its optimizer: a second one goes on where the first has stopped, so that "
        "nothing else can be told (a mutable default argument, or an attribute of the class?)"
    )
    return Report(
        subject=convention.subject.name,
        convention=convention.name,
        sentence=told,
        faithful=False,
        deviations=(told,),
    )


@dataclass(frozen=True)
class Diagnosis:
    """The variant that a subject is, and the runs that show it."""

    convention: Convention
    fit: Fit
    plain: tuple[Observation, ...]
    decaying: tuple[Observation, ...]


def diagnose(subject: object, **options: Any) -> Diagnosis:
    """Return which variant ``subject`` is: the first part of ``check``."""
    return _probed(detect(find(subject, options)), Progress())


def _probed(convention: Convention, progress: Progress) -> Diagnosis:
    arrays, default = convention.arrays, convention.default
    settable = convention.arguments.settable
    simple, decayed, moved = probes.plain(arrays, default), [], None
    if "weight_decay" in settable:
        decayed = probes.decaying(arrays)
        moved = probes.scheduled(arrays) if "lr" in settable else None
    every = [*simple, *decayed, *([] if moved is None else [moved])]
    progress.begin(STAGES[1], sum(len(each.gradients) for each in every))
    kind = _widest(convention)
    plain = [_observed(convention, probe, kind, progress) for probe in simple]
    decaying = [_observed(convention, probe, kind, progress) for probe in decayed]
    scheduled = None
    if moved is not None:
        # It may refuse to have its learning rate changed.
        with suppress(Exception):
            scheduled = observe(convention, moved, kind, progress.advance)
    constants = Constants(settable, default.beta1, default.beta2, default.eps, arrays > 1)
    progress.begin(STAGES[2])
    found = fit(plain, decaying, constants, _TOLERANCES[kind.name], scheduled)
    return Diagnosis(convention, found, tuple(plain), tuple(decaying))


def _widest(convention: Convention) -> np.dtype[Any]:
    """Return float64 where the subject keeps it, else float32."""
    probe = probes.plain(convention.arrays, convention.default)[0]
    short = dataclasses.replace(probe, gradients=probe.gradients[:2])
    wide = False
    with suppress(Exception):
        wide = observe(convention, short, np.float64).dtype == np.float64
    return np.dtype(np.float64 if wide else np.float32)


def _observed(
    convention: Convention, probe: probes.Probe, kind: Any, progress: Progress
) -> Observation:
    try:
        return observe(convention, probe, kind, progress.advance)
    except Exception as error:
        raise CannotCheckError(
            f"{convention.subject.name} began to step, but then raised {told(error, 200)} "
            f"(probe {probe.name!r}, {probe.settings}). Mend that first, or give options with "
            "--set under which it runs."
        ) from error


class _Judgement:
    """The second part of a check: distances, edges and words for a diagnosis."""

    def __init__(self, diagnosis: Diagnosis, progress: Progress) -> None:
        # The runs that the diagnosis did not need.
        self._diagnosis, self._fit, self._progress = diagnosis, diagnosis.fit, progress
        self._convention = convention = diagnosis.convention
        self._options = convention.subject.options
        self._is_wide = diagnosis.plain[0].dtype == np.float64
        usual = probes.usual(convention.arrays, convention.default)
        long = probes.long(convention.arrays, convention.default)
        large, which = probes.large(convention.default)
        runs = [usual, long, *([usual] if self._is_wide else []), large]
        progress.begin(STAGES[3], sum(len(each.gradients) for each in runs))
        self._usual = _observed(convention, usual, np.float32, progress)
        self._long = _observed(convention, long, np.float32, progress)
        self._measured = [self._usual, self._long]
        if self._is_wide:
            self._measured.append(_observed(convention, usual, np.float64, progress))
        self._variant = _settled(self._fit.variant, [self._usual, self._long])
        self._large, self._spread = _spread(convention, large, which, progress)

    def report(self) -> Report:
        """Return all that was found."""
        convention, variant = self._convention, self._variant
        self._progress.begin(STAGES[4], len(self._measured) if self._known else None)
        deviations, rule = self._deviations(), self._rule()
        rivals = self._fit.rivals[:5] if self._known else ()
        formula = _differing(variant, rule) if deviations and self._known else ()
        miss = None
        if formula or not self._known or self._few_bits:
            # The rule has a weight decay, also where that of the subject is not known.
            runs = [*self._runs(large=True), *self._diagnosis.decaying]
            miss = Miss(*max(each.worst(rule) for each in runs))
        sentence = self._sentence(deviations)
        return Report(
            subject=convention.subject.name,
            convention=convention.name,
            sentence=sentence,
            faithful=not deviations,
            deviations=deviations,
            remarks=tuple(self._remarks()),
            rivals=tuple(_difference(rival, variant) for rival in rivals),
            formula=formula,
            distances=tuple(self._distances),
            miss=miss,
            cost=cost(convention),
            edges=edges(convention, variant if self._known else None, self._progress),
        )

    # -- words -------------------------------------------------------------------------------

    def _sentence(self, deviations: tuple[str, ...]) -> str:
        words: list[str] = []
        if self._known:
            words += wording.description(self._variant, decays=self._decays)
            words += wording.remarks(self._variant.but(storage="as is"))
            if not self._few_bits:
                worst = self._distances[0].worst
                ulp = f"{worst:.1f} ulp" if worst < 1000.0 else f"{worst:.2g} ulp"
                words.append(ulp + " from that" * bool(deviations))
        if not deviations:
            return ", ".join(words)
        told = "; ".join(deviations)
        return f"{told}; else {', '.join(words)}" if words else told

    def _deviations(self) -> tuple[str, ...]:
        found: list[str] = []
        if self._known:
            # What cannot be set is not ignored.
            variant = self._variant.but(**{f"{name}_fixed": None for name in self._fixed})
            variant, asked = self._as_asked(variant)
            found += [*asked, *wording.deviations(variant), *self._against_the_name]
        else:
            found.append(
                f"none of the known forms: the nearest leaves {100 * self._fit.misfit:.2g} % of "
                f"an update unexplained{self._nearest()}"
            )
        if any(each.writes_gradients for each in self._runs()):
            found.append("the gradient is changed in place")
        if self._known and self._fit.follows is False and self._convention.trial is Torch:
            found.append("a learning rate that changes on the way (a scheduler's) has no effect")
        return (*found, *self._few_bits)

    @cached_property
    def _fixed(self) -> list[str]:
        """Return the settings that the variant has and nobody can set."""
        used = {
            "lr": True,
            "beta1": self._variant.mean != "absent",
            "beta2": self._variant.square != "absent",
            "eps": self._variant.square != "absent" and self._variant.epsilon != "missing",
        }
        settable = self._convention.arguments.settable
        return [name for name, is_used in used.items() if is_used and name not in settable]

    def _as_asked(self, variant: Variant) -> tuple[Variant, list[str]]:
        """Return the variant without what options asked for, and what was asked in vain."""
        in_vain: list[str] = []
        if self._options.get("maximize") is True:
            if variant.direction == "ascent":
                variant = variant.but(direction="descent")
            else:
                in_vain.append("maximize is given, but it descends")
        if self._options.get("amsgrad") is True and variant.largest == "no":
            in_vain.append("amsgrad is given, but no largest square is kept")
        if self._options.get("nesterov") is True and variant.nesterov == "no":
            in_vain.append("nesterov is given, but has no effect")
        return variant, in_vain

    @property
    def _against_the_name(self) -> list[str]:
        name = self._convention.subject.name.rpartition(":")[2]
        promised = self._decays and re.search("adam_?w", name, re.IGNORECASE)
        if promised and self._variant.decay == "l2":
            return ["L2 instead of decoupled weight decay, which the name promises"]
        return []

    @cached_property
    def _few_bits(self) -> list[str]:
        if not self._known:
            return []
        if self._spread > _COARSE:
            how = "quantized state (block scales or stochastic rounding)"
            off = f"{self._spread:.2g} of an update"
            return [f"{how}: equal gradients move parameters by up to {off} differently"]
        variant = self._variant.but(storage="as is")
        error, _ = max(each.worst(variant) for each in self._runs(large=True))
        if error > _COARSE:
            what, _, kind = self._variant.storage.rpartition(" ")
            kept = "low-bit state" if self._variant == variant else f"{what} in {kind}"
            return [f"{kept}: updates are off by up to {error:.2g}"]
        return []

    def _remarks(self) -> list[str]:
        convention = self._convention
        found: list[str] = []
        left = convention.left_alone()
        if left:
            found.append(f"left at their defaults: {', '.join(left)}")
        if not self._few_bits:
            found += wording.remarks(self._variant.but(float32="nowhere"))
        if self._fixed:
            names = {"lr": "lr", "beta1": "β1", "beta2": "β2", "eps": "ε"}
            told = ", ".join(f"{names[n]} = {self._standing(n):.6g}" for n in self._fixed)
            found.append(f"cannot be set, and so taken as it is found: {told}")
        if not self._decays:
            found.append("has no weight decay, or none that can be set: that part was not tried")
        if self._usual.dtype != np.float32:
            found.append(f"float32 parameters come back as {self._usual.dtype}")
        if not self._is_wide:
            found.append(
                "float64 parameters are refused, or come back narrower: probed in float32 alone"
            )
        narrow = [d for d in self._distances if d.dtype == "float64" and d.worst > 1e5]
        if narrow and self._fit.variant.storage == "as is":
            bits = 52 - int(np.log2(narrow[0].worst))
            found.append(f"float64 parameters move with {bits} bits of precision")
        if not convention.mixes_shapes:
            found.append("arrays of different shapes cannot be stepped together")
        if self._large is None:
            found.append(
                f"an array of {probes.LARGE:,} elements cannot be stepped: quantized state, "
                "which small arrays may not have, was not looked for"
            )
        return found

    def _standing(self, name: str) -> float:
        found = getattr(self._variant, f"{name}_fixed")
        return getattr(self._convention.default, name) if found is None else found

    def _nearest(self) -> str:
        """Return the words for the nearest variant, where it is near enough to help."""
        words = wording.deviations(self._variant)
        return f" ({words[0]})" if len(words) == 1 and self._fit.misfit < 0.05 else ""

    # -- numbers -----------------------------------------------------------------------------

    @property
    def _decays(self) -> bool:
        return "weight_decay" in self._convention.arguments.settable

    def _runs(self, *, large: bool = False) -> list[Observation]:
        found = [*self._diagnosis.plain]
        if self._fit.variant.decay != "unknown":
            found += self._diagnosis.decaying
        found += [self._usual, self._long]
        return [*found, self._large] if large and self._large is not None else found

    @cached_property
    def _known(self) -> bool:
        """Whether the variant explains the subject but for rounding."""
        if self._fit.misfit <= UNKNOWN:
            return True
        # Chance and blocks leave errors that no formula explains.
        typical = self._diagnosis.plain[0].typical(self._variant)
        return self._spread > _COARSE and typical <= _NOISE

    @cached_property
    def _distances(self) -> list[Distance]:
        # Rounding is what is measured here, so that of the variant is left out.
        variant = self._variant.but(float32="nowhere", storage="as is")
        found: list[Distance] = []
        for run in self._measured if self._known else []:
            found.append(distance(run, variant))
            self._progress.advance()
        return found

    def _rule(self) -> Variant:
        """Return the faithful variant that this one is measured against."""
        rule = rule_nearest(self._variant)
        rule = rule.but(**{f"{n}_fixed": getattr(self._variant, f"{n}_fixed") for n in self._fixed})
        if self._options.get("maximize") is True:
            rule = rule.but(direction="ascent")
        return rule.but(decay="decoupled") if self._against_the_name else rule


def _settled(variant: Variant, runs: Sequence[Observation]) -> Variant:
    """Return ``variant`` with the rounding that explains float32 ``runs`` clearly better."""
    with np.errstate(all="ignore"):
        rounded = [variant.but(**change) for change in ROUNDINGS]
        best = min(rounded, key=lambda each: misfit(runs, each))
        return best if misfit(runs, best) < misfit(runs, variant) / 4.0 else variant


def _spread(
    convention: Convention, probe: probes.Probe, which: Array, progress: Progress
) -> tuple[Observation | None, float]:
    """Return the run of one large array, and how differently equal gradients move its elements.

    None and 0 where the subject cannot step such an array.
    """
    try:
        run = observe(convention, probe, np.float32, progress.advance)
    except Exception:
        return None, 0.0
    spread = 0.0
    for kind in range(int(which.max()) + 1):
        change = run.change[:, 0, which == kind]
        largest = float(np.max(np.abs(change), initial=0.0))
        if np.isfinite(largest) and largest > 0.0:
            differs = change.max(axis=1) - change.min(axis=1)
            spread = max(spread, float(differs.max()) / largest)
    return run, spread


def _difference(rival: Variant, variant: Variant) -> str:
    """Return in words what ``rival`` has that ``variant`` does not have."""
    known = wording.words(variant)
    words = [each for each in wording.words(rival) if each not in known]
    return "; ".join(words) or "a form that differs in what was not tested"


def _differing(variant: Variant, rule: Variant) -> tuple[Line, ...]:
    """Return the lines of the formula in which two variants differ."""
    here, there = wording.sheet(variant), wording.sheet(rule)
    return tuple(
        Line(here.get(name, ""), there.get(name, ""))
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    )
