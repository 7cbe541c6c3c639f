"""The course of a check: find, call, probe, fit, judge."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from adamas.checking import forms, probes
from adamas.checking.conventions import detect
from adamas.checking.cost import cost
from adamas.checking.distances import Distance, distance, relative_error
from adamas.checking.edges import edges
from adamas.checking.fitting import UNKNOWN, Fit, Watched, fit, misfit
from adamas.checking.forms import Form
from adamas.checking.frameworks import Torch
from adamas.checking.observation import Observation, observe
from adamas.checking.report import Line, Miss, Report
from adamas.checking.subjects import CannotCheckError, find
from adamas.checking.trials import Convention

__all__ = ["STAGES", "Diagnosis", "check", "diagnose", "examine"]

#: What a check does, in order.
STAGES = (
    "finding out how it is called",
    "probing",
    "searching for its form",
    "running longer",
    "measuring distances",
    "trying edges",
)
Tell = Callable[[str], object]

#: Mean error below which everything is explained, by the dtype that is probed. In float64 a form
#: that is right leaves about 1e-16; in float32 about 1e-7. Forms that differ differ by more.
_TOLERANCES = {"float64": 1e-12, "float32": 2e-6}
#: The largest error of an ordinary element that is put down to state in few bits.
_NOISE = 0.02
#: Relative error of an update from which rounding is no longer a matter of rounding.
_COARSE = 2.0**-10


def check(subject: object, **options: Any) -> Report:
    """Return what an implementation of Adam computes.

    ``subject`` is a class, a function that makes an optimizer or a function that makes a step, or
    the name of one: ``"package.module:Class"`` or ``"path/to/file.py:Class"``. ``options`` are
    keyword arguments that it is made with besides, as ``amsgrad=True``. It may work on PyTorch
    tensors, on JAX arrays (an optax transformation) or on NumPy arrays.

    Takes some seconds. Raises :class:`adamas.checking.CannotCheckError` (a ValueError) where the
    subject cannot be found, or called in any known way.
    """
    return examine(subject, options)


def examine(subject: object, options: Mapping[str, Any], tell: Tell = lambda _: None) -> Report:
    """Return what :func:`check` returns; call ``tell`` with each of ``STAGES`` as it begins."""
    tell(STAGES[0])
    convention = detect(find(subject, options))
    if convention.outlives:
        return _outliving(convention)
    diagnosis = _probed(convention, tell)
    tell(STAGES[3])
    return _Judgement(diagnosis).report(tell)


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
    """The form of a subject, and the runs that show it."""

    convention: Convention
    fit: Fit
    plain: tuple[Watched, ...]
    decaying: tuple[Watched, ...]


def diagnose(subject: object, **options: Any) -> Diagnosis:
    """Return the form of ``subject``: the first part of :func:`check`."""
    return _probed(detect(find(subject, options)))


def _probed(convention: Convention, tell: Tell = lambda _: None) -> Diagnosis:
    tell(STAGES[1])
    kind = _widest(convention)
    arrays = 2 if convention.several else 1
    default = convention.default
    plain = [_watched(convention, probe, kind) for probe in probes.plain(arrays, default)]
    decaying: list[Watched] = []
    scheduled = None
    if "weight_decay" in convention.arguments.settable:
        decaying = [_watched(convention, probe, kind) for probe in probes.decaying(arrays)]
        if "lr" in convention.arguments.settable:
            try:
                scheduled = Watched(observe(convention, probes.scheduled(arrays), kind))
            except Exception:
                scheduled = None  # It may refuse to have its learning rate changed.
    constants = forms.Constants(
        *(convention.arguments.settable, default.lr, default.beta1, default.beta2, default.eps),
        convention.several,
    )
    tell(STAGES[2])
    found = fit(plain, decaying, constants, _TOLERANCES[kind.name], scheduled)
    return Diagnosis(convention, found, tuple(plain), tuple(decaying))


def _widest(convention: Convention) -> np.dtype[Any]:
    """Return float64 where the subject keeps it, else float32."""
    probe = probes.plain(2 if convention.several else 1, convention.default)[0]
    short = dataclasses.replace(probe, gradients=probe.gradients[:2])
    try:
        wide = observe(convention, short, np.float64).dtype == np.float64
    except Exception:
        wide = False
    return np.dtype(np.float64 if wide else np.float32)


def _watched(convention: Convention, probe: probes.Probe, kind: Any) -> Watched:
    try:
        return Watched(observe(convention, probe, kind))
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise CannotCheckError(
            f"{convention.subject.name} began to step, but then raised "
            f"{type(error).__name__}: {first:.200} (probe {probe.name!r}, {probe.settings}). Mend "
            "that first, or give options with --set under which it runs."
        ) from error


class _Judgement:
    """The second part of a check: distances, edges and words for a diagnosis."""

    def __init__(self, diagnosis: Diagnosis) -> None:
        """Run what the diagnosis did not need."""
        self._diagnosis = diagnosis
        self._convention = convention = diagnosis.convention
        self._options = convention.subject.options
        self._fit = diagnosis.fit
        arrays = 2 if convention.several else 1
        usual = probes.usual(arrays, convention.default)
        self._usual = observe(convention, usual, np.float32)
        self._wide = None
        if diagnosis.plain[0].observation.dtype == np.float64:
            self._wide = observe(convention, usual, np.float64)
        self._long = observe(convention, probes.long(arrays, convention.default), np.float32)
        self._form = _settled(self._fit.form, [self._usual, self._long])
        self._large, self._spread = _spread(convention)

    def report(self, tell: Tell) -> Report:
        """Return all that was found."""
        convention, form = self._convention, self._form
        tell(STAGES[4])
        deviations = self._deviations()
        rule = self._rule()
        faithful = not deviations
        rivals = self._fit.rivals[:5] if self._known else ()
        formula = _differing(form, rule) if deviations and self._known else ()
        miss = None
        if formula or not self._known or self._few_bits():
            miss = Miss(*max(relative_error(o, rule) for o in self._runs(large=True)))
        sentence, distances = self._sentence(deviations), tuple(self._distances)
        tell(STAGES[5])
        return Report(
            subject=convention.subject.name,
            convention=convention.name,
            sentence=sentence,
            faithful=faithful,
            deviations=deviations,
            remarks=tuple(self._remarks()),
            rivals=tuple(_difference(rival, form) for rival in rivals),
            formula=formula,
            distances=distances,
            miss=miss,
            cost=cost(convention),
            edges=edges(convention, self._form if self._known else None),
        )

    # -- words -------------------------------------------------------------------------------

    def _sentence(self, deviations: tuple[str, ...]) -> str:
        words: list[str] = []
        if self._known:
            words += forms.description(self._form, decays=self._decays())
            words += forms.remarks(self._form.but(storage="as is"))
            if not self._few_bits():
                words.append(_told(self._distances[0].worst) + " from that" * bool(deviations))
        if not deviations:
            return ", ".join(words)
        told = "; ".join(deviations)
        return f"{told}; else {', '.join(words)}" if words else told

    def _deviations(self) -> tuple[str, ...]:
        form = self._form
        found: list[str] = []
        if not self._known:
            found.append(
                "none of the forms that are known: the nearest leaves "
                f"{100 * self._fit.misfit:.2g} % of an update unexplained{self._nearest()}"
            )
        else:
            form, asked = self._as_asked(self._as_set(form))
            found += [*asked, *forms.deviations(form), *self._against_the_name(form)]
        if any(each.writes_gradients for each in self._runs()):
            found.append("the gradient is changed in place")
        schedulers = isinstance(self._convention, Torch)
        if self._known and self._fit.follows is False and schedulers:
            found.append("a learning rate that changes on the way (a scheduler's) has no effect")
        found += self._few_bits()
        return tuple(found)

    def _as_set(self, form: Form) -> Form:
        """Return the form without the settings that cannot be set: they are not ignored."""
        changes = {f"{name}_fixed": None for name in self._fixed}
        return form.but(**changes)

    @property
    def _fixed(self) -> list[str]:
        """Return the settings that the form has and nobody can set."""
        used = {
            "lr": True,
            "beta1": self._form.mean != "absent",
            "beta2": self._form.square != "absent",
            "eps": self._form.square != "absent" and self._form.epsilon != "missing",
        }
        settable = self._convention.arguments.settable
        return [name for name, is_used in used.items() if is_used and name not in settable]

    def _as_asked(self, form: Form) -> tuple[Form, list[str]]:
        """Return the form without what was asked for by options, and what was asked in vain."""
        in_vain: list[str] = []
        if self._options.get("maximize") is True:
            if form.direction == "ascent":
                form = form.but(direction="descent")
            else:
                in_vain.append("maximize is given, but it descends")
        if self._options.get("amsgrad") is True and form.largest == "no":
            in_vain.append("amsgrad is given, but no largest square is kept")
        if self._options.get("nesterov") is True and form.nesterov == "no":
            in_vain.append("nesterov is given, but has no effect")
        return form, in_vain

    def _against_the_name(self, form: Form) -> list[str]:
        name = self._convention.subject.name.rpartition(":")[2]
        if re.search("adam_?w", name, re.IGNORECASE) and self._decays() and form.decay == "l2":
            return ["L2 instead of decoupled weight decay, which the name promises"]
        return []

    def _few_bits(self) -> list[str]:
        if not self._known:
            return []
        if self._spread > _COARSE:
            how = "state kept in few bits, in blocks or rounded by chance"
            off = f"{self._spread:.2g} of an update"
            return [f"{how}: equal gradients move parameters by up to {off} differently"]
        form = self._form.but(storage="as is")
        error, _ = max(relative_error(o, form) for o in self._runs(large=True))
        if error > _COARSE:
            kept = self._form.storage.replace(" b", " in b").replace(" f", " in f")
            what = "state in few bits" if self._form.storage == "as is" else f"{kept}"
            return [f"{what}: updates are off by up to {error:.2g}"]
        return []

    def _remarks(self) -> list[str]:
        convention = self._convention
        found: list[str] = []
        left = convention.left_alone()
        if left:
            found.append(f"left at their defaults: {', '.join(left)}")
        if self._form.storage != "as is" and not self._few_bits():
            found += forms.remarks(self._form.but(float32="nowhere"))
        if self._fixed:
            names = {"lr": "lr", "beta1": "β1", "beta2": "β2", "eps": "ε"}
            told = ", ".join(f"{names[n]} = {self._standing(n):.6g}" for n in self._fixed)
            found.append(f"cannot be set, and so taken as it is found: {told}")
        if not self._decays():
            found.append("has no weight decay, or none that can be set: that part was not tried")
        if self._usual.dtype != np.float32:
            found.append(f"float32 parameters come back as {self._usual.dtype}")
        if self._diagnosis.plain[0].observation.dtype != np.float64:
            found.append(
                "float64 parameters are refused, or come back narrower: probed in float32 alone"
            )
        narrow = [d for d in self._distances if d.dtype == "float64" and d.worst > 1e5]
        if narrow and self._fit.form.storage == "as is":
            bits = 52 - int(np.log2(narrow[0].worst))
            found.append(f"float64 parameters move with {bits} bits of precision")
        if not convention.mixes_shapes:
            found.append("arrays of different shapes cannot be stepped together")
        return found

    def _standing(self, name: str) -> float:
        found = getattr(self._form, f"{name}_fixed")
        return getattr(self._convention.default, name) if found is None else found

    # -- numbers -----------------------------------------------------------------------------

    def _decays(self) -> bool:
        return "weight_decay" in self._convention.arguments.settable

    def _runs(self, *, large: bool = False) -> list[Observation]:
        watched = self._diagnosis.plain
        if self._fit.form.decay != "unknown":
            watched = (*watched, *self._diagnosis.decaying)
        found = [*(each.observation for each in watched), self._usual, self._long]
        return [*found, self._large] if large and self._large is not None else found

    @property
    def _known(self) -> bool:
        """Whether the form explains the subject but for rounding."""
        if self._fit.misfit <= UNKNOWN:
            return True
        # Chance and blocks leave errors that no formula explains.
        typical = self._diagnosis.plain[0].typical(self._form)
        return self._spread > _COARSE and typical <= _NOISE

    def _nearest(self) -> str:
        """Return the words for the nearest form, where it is near enough to help."""
        words = forms.deviations(self._form)
        return f" ({words[0]})" if len(words) == 1 and self._fit.misfit < 0.05 else ""

    @cached_property
    def _distances(self) -> list[Distance]:
        if not self._known:
            return []
        # Rounding is what is measured here, so that of the form is left out.
        form = self._form.but(float32="nowhere", storage="as is")
        runs = [self._usual, self._long, *([] if self._wide is None else [self._wide])]
        return [distance(run, form) for run in runs]

    def _rule(self) -> Form:
        """Return the faithful form that this one is measured against."""
        rule = forms.rule_nearest(self._form)
        kept = {f"{name}_fixed": getattr(self._form, f"{name}_fixed") for name in self._fixed}
        rule = rule.but(**kept)
        if self._options.get("maximize") is True:
            rule = rule.but(direction="ascent")
        if self._against_the_name(self._form):
            rule = rule.but(decay="decoupled")
        return rule


def _told(distance: float) -> str:
    return f"{distance:.1f} ulp" if distance < 1000.0 else f"{distance:.2g} ulp"


def _settled(form: Form, runs: Sequence[Observation]) -> Form:
    """Return ``form`` with the rounding that explains float32 ``runs`` clearly better, if any."""
    watched = [Watched(run) for run in runs]
    with np.errstate(all="ignore"):
        plain = misfit(watched, form)
        rounded = [form.but(**change) for change in forms.roundings()]
        best = min(rounded, key=lambda each: misfit(watched, each))
        return best if misfit(watched, best) < plain / 4.0 else form


def _spread(convention: Convention) -> tuple[Observation | None, float]:
    """Return the run of one large array, and how differently equal gradients move its elements.

    None and 0 where the subject cannot step such an array.
    """
    probe, which = probes.large(convention.default)
    try:
        run = observe(convention, probe, np.float32)
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


def _difference(rival: Form, form: Form) -> str:
    """Return in words what ``rival`` has that ``form`` does not have."""
    words = [
        each
        for each in (
            *forms.deviations(rival),
            *forms.description(rival, decays=True),
            *forms.remarks(rival),
        )
        if each
        not in (
            *forms.deviations(form),
            *forms.description(form, decays=True),
            *forms.remarks(form),
        )
    ]
    return "; ".join(words) or "a form that differs in what was not probed"


def _differing(form: Form, rule: Form) -> tuple[Line, ...]:
    """Return the lines of the formula in which two forms differ."""
    here, there = forms.sheet(form), forms.sheet(rule)
    names = [*here, *(name for name in there if name not in here)]
    return tuple(
        Line(here.get(name, ""), there.get(name, ""))
        for name in names
        if here.get(name) != there.get(name)
    )
