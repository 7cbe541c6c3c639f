"""The space of forms: what an implementation of Adam may compute, as independent choices.

A :class:`Form` is one point of it: a value for every choice. The rule is the form whose values are
all the first ones. :func:`axes` lists the steps that lead away from a form, one choice at a time;
:func:`deviations` says in words what a form does that the rule does not, and :func:`sheet` writes
its formula.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

__all__ = [
    "FAMILIES",
    "Changes",
    "Constants",
    "Correction",
    "Form",
    "axes",
    "decays",
    "description",
    "deviations",
    "is_valid",
    "remarks",
    "roundings",
    "rule_nearest",
    "sheet",
]

Correction = Literal["paper", "first-step", "none", "t-1", "t+1"]


class Form(NamedTuple):
    """One form of Adam. The first value of each choice, its default, is that of the rule."""

    #: "descent", "ascent" (the gradient's sign turned) or "added" (the update's sign turned).
    direction: str = "descent"
    #: The learning rate that is used whatever is given; None where the given one is. NaN: some
    #: rate, to be found out.
    lr_fixed: float | None = None
    beta1_fixed: float | None = None
    beta2_fixed: float | None = None
    swapped: bool = False
    eps_fixed: float | None = None
    #: "mean", "sum" (without 1 - β1) or "absent".
    mean: str = "mean"
    #: "square", "sum" (without 1 - β2), "absent", or a square of something else: "norm" and "mean
    #: square" (one number for the whole array), "plain" and "absolute" (not squared), "of m",
    #: "belief" (of g - m).
    square: str = "square"
    #: Whether the root of v is taken.
    root: bool = True
    correction1: Correction = "paper"
    correction2: Correction = "paper"
    #: "outside" or "inside" the root; "outside before" or "inside before" the correction; or
    #: "missing".
    epsilon: str = "outside"
    #: "no", "then corrected" (of v), "corrected first" (of v̂), "fed back" (into v).
    largest: str = "no"
    #: "no", "dozat", "same step", "raw" (the gradient's part is not corrected), or a schedule for
    #: β1: "torch schedule", "keras schedule".
    nesterov: str = "no"
    #: What is kept from step to step: "all", "nothing" (not even t), "t", "m and t", "v and t".
    memory: str = "all"
    #: What parameters have in common: "nothing", "m and v", "t" (counted once for each), "all".
    shared: str = "nothing"
    #: "l2", "decoupled", "after" (the step), "fully", "without lr", "without lr, after", "l2 in m",
    #: "ignored"; or "unknown": none of these.
    decay: str = "l2"
    #: Where 1 - β is taken from β in float32: "nowhere", "take" (in the means), "correction", or
    #: "all".
    float32: str = "nowhere"
    #: How m and v are stored: "as is", or rounded to a smaller type.
    storage: str = "as is"

    def but(self, **changes: Any) -> Form:
        """Return the form with other values for some choices."""
        return self._replace(**changes)


#: The rule, and what is left of it without its means: RMSProp; Momentum, as a mean and as a sum;
#: gradient descent. None of them has a correction of its own.
FAMILIES = (
    Form(),
    Form(mean="absent", correction2="none"),
    Form(square="absent", correction1="none"),
    Form(square="absent", correction1="none", mean="sum"),
    Form(square="absent", mean="absent"),
)


@dataclass(frozen=True)
class Constants:
    """What is known of the subject before any probing: it limits the space."""

    #: What the caller can set, of lr, beta1, beta2, eps and weight_decay.
    settable: frozenset[str]
    #: The values that stand where nothing is given.
    lr: float
    beta1: float
    beta2: float
    eps: float
    #: Whether several arrays are stepped by one optimizer.
    several: bool


Changes = Mapping[str, Any]

_CORRECTIONS: tuple[Correction, ...] = ("paper", "first-step", "none", "t-1", "t+1")
_STORAGES = ("m and v bfloat16", "m bfloat16", "v bfloat16", "m and v float16", "m and v float32")


@lru_cache(maxsize=8)
def axes(constants: Constants) -> dict[str, tuple[Changes, ...]]:
    """Return every choice with the changes it can make to a form, but for weight decay."""
    table: dict[str, tuple[Changes, ...]] = {
        "lr": ({"lr_fixed": float("nan")},),
        "direction": ({"direction": "ascent"}, {"direction": "added"}),
        "bias correction": tuple(
            {"correction1": first, "correction2": second}
            for first in _CORRECTIONS
            for second in _CORRECTIONS
        )[1:],
        "epsilon": _values("epsilon", "inside", "outside before", "inside before", "missing"),
        "betas": tuple(_betas(constants)),
        "eps": tuple({"eps_fixed": eps} for eps in _fixed_eps(constants)),
        "mean": _values("mean", "sum", "absent"),
        "square": _values(
            *("square", "sum", "absent", "norm", "mean square", "plain", "absolute", "of m"),
            "belief",
        ),
        "root": ({"root": False},),
        "largest": _values("largest", "then corrected", "corrected first", "fed back"),
        "nesterov": _values(
            "nesterov", "dozat", "same step", "raw", "torch schedule", "keras schedule"
        ),
        "memory": _values("memory", "nothing", "t", "m and t", "v and t"),
        "float32": _values("float32", "take", "correction", "all"),
        "storage": _values("storage", *_STORAGES),
    }
    if constants.several:
        table["shared"] = _values("shared", "m and v", "t", "all")
    return table


def decays() -> tuple[str, ...]:
    """Return all forms of weight decay, the rule's first."""
    return (
        *("l2", "decoupled", "after", "without lr", "without lr, after", "fully", "l2 in m"),
        "ignored",
    )


def roundings() -> tuple[Changes, ...]:
    """Return the changes that concern rounding alone."""
    return (*_values("float32", "take", "correction", "all"), *_values("storage", *_STORAGES))


def _values(name: str, *values: str) -> tuple[Changes, ...]:
    return tuple({name: value} for value in values)


def _betas(constants: Constants) -> Iterator[Changes]:
    if {"beta1", "beta2"} <= constants.settable:
        yield {"swapped": True}
        first, second = (constants.beta1, 0.9), (constants.beta2, 0.999)
    else:
        if constants.beta1 != constants.beta2:
            yield {"swapped": True}
        first = (0.9, 0.95, 0.8, 0.5)
        second = (0.999, 0.99, 0.98, 0.95, 0.9)
    firsts: list[float | None] = [None, *dict.fromkeys(first)]
    seconds: list[float | None] = [None, *dict.fromkeys(second)]
    for one in firsts:
        for other in seconds:
            if (one, other) != (None, None):
                yield {"beta1_fixed": one, "beta2_fixed": other}
                yield {"beta1_fixed": one, "beta2_fixed": other, "swapped": True}


def _fixed_eps(constants: Constants) -> tuple[float, ...]:
    known = (constants.eps, 1e-8, 1e-7, 1e-6, 1e-10)
    kept = dict.fromkeys(known)
    if "eps" not in constants.settable:
        kept.pop(constants.eps)
    return tuple(kept)


def is_valid(form: Form) -> bool:
    """Return whether no simpler form computes the same by construction."""
    without_square = form.square == "absent" and (
        form.epsilon != "outside"
        or not form.root
        or form.largest != "no"
        or form.correction2 != "paper"
        or form.eps_fixed is not None
        or form.memory == "m and t"
        or (form.mean == "mean" and form.correction1 == "first-step")
    )
    without_mean = form.mean == "absent" and (
        form.nesterov != "no"
        or form.correction1 != "paper"
        or form.square in ("of m", "belief")
        or form.memory in ("v and t", "t", "nothing")
        or (form.memory == "m and t" and form.correction2 in ("none", "first-step"))
    )
    without_root = not form.root and form.epsilon == "inside"
    uncorrected = form.correction2 == "none" and (
        form.epsilon.endswith("before") or form.largest == "corrected first"
    )
    without_eps = form.epsilon == "missing" and form.eps_fixed is not None
    without_t = form.memory == "nothing" and (
        "first-step" in (form.correction1, form.correction2) or form.shared != "nothing"
    )
    # m without its past, divided by what it was multiplied with, is the gradient: no mean at all.
    mean_of_one = form.memory == "v and t" and (form.mean, form.correction1) in (
        ("mean", "first-step"),
        ("sum", "none"),
    )
    without_past = form.memory in ("nothing", "t", "m and t") and form.largest == "fed back"
    return not (
        without_square
        or without_mean
        or without_root
        or uncorrected
        or without_eps
        or without_t
        or mean_of_one
        or without_past
    )


# -- in words ------------------------------------------------------------------------------------

_SAME_CORRECTION = {
    "first-step": "no exponent t in the bias correction (agrees at step 1 only)",
    "none": "no bias correction",
    "t-1": "t starts at 0 (the bias correction's exponent is one too small)",
    "t+1": "t starts at 2 (the bias correction's exponent is one too large)",
}
_ONE_CORRECTION = {
    "first-step": "no exponent t in the bias correction of {} (agrees at step 1 only)",
    "none": "{} is not corrected for its bias",
    "t-1": "the exponent in the bias correction of {} is one too small (t starts at 0)",
    "t+1": "the exponent in the bias correction of {} is one too large (t starts at 2)",
}
_DEVIATIONS: dict[str, dict[Any, str]] = {
    "direction": {
        "ascent": "the sign of the gradient is turned: it ascends",
        "added": "the sign of the update is turned: it is added, not subtracted",
    },
    "mean": {"sum": "m is a sum, not a mean (the factor 1−β1 is missing)"},
    "square": {
        "sum": "v is a sum, not a mean (the factor 1−β2 is missing)",
        "norm": "the squared norm of the whole array instead of each element's square",
        "mean square": "the mean square of the whole array instead of each element's square",
        "plain": "the gradient is not squared in v",
        "absolute": "the gradient's absolute value instead of its square in v",
        "of m": "v is the mean of m², not of g²",
        "belief": "v is the mean of (g−m)², not of g² (AdaBelief)",
    },
    "root": {False: "the root of v is not taken"},
    "epsilon": {
        "inside": "ε inside the root",
        "inside before": "ε inside the root, before the correction",
        "missing": "no ε",
    },
    "largest": {"fed back": "AMSGrad's largest v is fed back into v"},
    "nesterov": {
        "same step": "Nesterov's form with the correction of step t for m, where it is that of t+1",
        "raw": "Nesterov's form with a gradient that is not corrected",
    },
    "memory": {
        "nothing": "no state is kept: every step is a first one",
        "t": "m and v are not kept from step to step",
        "m and t": "v is not kept from step to step",
        "v and t": "m is not kept from step to step",
    },
    "shared": {
        "m and v": "parameters share m and v",
        "t": "t is counted once for each parameter, not for each step",
        "all": "parameters share m, v and t",
    },
    "decay": {
        "after": "decoupled weight decay after the step, not of the parameter before it",
        "without lr": "weight decay without the learning rate",
        "without lr, after": "weight decay without the learning rate, after the step",
        "l2 in m": "L2 weight decay in m only, not in v",
        "ignored": "weight_decay is ignored",
        "unknown": "weight decay in a form that is not known",
    },
}


def deviations(form: Form) -> tuple[str, ...]:
    """Return in words what ``form`` does that no faithful form does, in the order of a step."""
    found: list[str] = []
    if form.mean == "absent" and form.square == "absent":
        found.append("neither m nor v: gradient descent")
    elif form.mean == "absent":
        found.append("no running mean of gradients: RMSProp")
    elif form.square == "absent":
        found.append("no running mean of squares: Momentum")
    found.extend(_ignored(form))
    for choice, phrases in _DEVIATIONS.items():
        if choice == "epsilon":
            found.extend(_corrections(form))
        phrase = phrases.get(getattr(form, choice))
        if phrase is not None:
            found.append(phrase)
    return tuple(found)


def _ignored(form: Form) -> Iterator[str]:
    if form.lr_fixed is not None:
        yield f"lr is ignored: it is {form.lr_fixed:.6g} whatever is given"
    if form.swapped:
        yield "β1 and β2 are swapped"
    both = form.beta1_fixed is not None and form.beta2_fixed is not None
    if both:
        yield f"betas are ignored: they are {form.beta1_fixed:g} and {form.beta2_fixed:g}"
    elif form.beta1_fixed is not None:
        yield f"β1 is ignored: it is {form.beta1_fixed:g}"
    elif form.beta2_fixed is not None:
        yield f"β2 is ignored: it is {form.beta2_fixed:g}"
    if form.eps_fixed is not None:
        yield f"ε is ignored: it is {form.eps_fixed:g}"


def _corrections(form: Form) -> Iterator[str]:
    first, second = form.correction1, form.correction2
    if form.mean == "absent" or form.square == "absent":
        # Plain RMSProp and Momentum have no correction to lose.
        if first != "paper" and form.mean != "absent" and first != "none":
            yield _ONE_CORRECTION[first].format("m")
        if second != "paper" and form.square != "absent" and second != "none":
            yield _ONE_CORRECTION[second].format("v")
        return
    if first == second:
        if first != "paper" and not _is_published_amsgrad(form):
            yield _SAME_CORRECTION[first]
        return
    for letter, correction in (("m", first), ("v", second)):
        if correction != "paper":
            yield _ONE_CORRECTION[correction].format(letter)


def _is_published_amsgrad(form: Form) -> bool:
    """Return whether there is no correction, as in algorithm 2 of Reddi, Kale & Kumar (2018)."""
    return form.largest == "then corrected" and form.correction1 == form.correction2 == "none"


_DECAYS = {
    "l2": "L2 weight decay",
    "decoupled": "decoupled weight decay",
    "fully": "fully decoupled weight decay",
}


def description(form: Form, *, decays: bool) -> tuple[str, ...]:
    """Return in words the faithful choices of ``form``; with ``decays`` also that of the decay."""
    words: list[str] = []
    if _is_published_amsgrad(form):
        words.append("AMSGrad as in its paper, without bias correction")
    elif form.largest in ("then corrected", "corrected first"):
        order = "the largest v, corrected" if form.largest == "then corrected" else "the largest v̂"
        words.append("AMSGrad" if form.correction2 == "none" else f"AMSGrad ({order})")
    if form.nesterov == "dozat":
        words.append("Nesterov's form (Dozat's)")
    elif form.nesterov.endswith("schedule"):
        words.append(f"Nesterov's form with a schedule for β1 ({form.nesterov.split()[0]}'s)")
    corrected = (form.correction1, form.correction2) == ("paper", "paper")
    absent = form.mean == "absent" or form.square == "absent"
    if corrected and form.memory != "nothing":
        words.append("paper" if not absent else "bias correction as in the paper")
    elif absent and "paper" in (form.correction1, form.correction2):
        kept = form.correction2 if form.mean == "absent" else form.correction1
        words.append("bias correction as in the paper" if kept == "paper" else "no bias correction")
    elif absent and "none" in (form.correction1, form.correction2):
        words.append("no bias correction")
    if form.square != "absent":
        if form.epsilon == "outside":
            words.append("ε outside the root" if form.root else "ε added")
        elif form.epsilon == "outside before":
            words.append("ε̂ outside the root, before the correction (the paper's efficient form)")
    if decays and form.decay in _DECAYS:
        words.append(_DECAYS[form.decay])
    return tuple(words)


def remarks(form: Form) -> tuple[str, ...]:
    """Return in words how ``form`` rounds, where that can be told."""
    found: list[str] = []
    if form.float32 != "nowhere":
        where = {
            "take": "in the means",
            "correction": "in the bias correction",
            "all": "everywhere",
        }
        found.append(f"1−β from a float32 β {where[form.float32]}")
    if form.storage != "as is":
        what, _, kind = form.storage.rpartition(" ")
        found.append(f"{what} kept in {kind}")
    return tuple(found)


def rule_nearest(form: Form) -> Form:
    """Return the faithful form nearest to ``form``: what differs goes back to the rule."""
    rule = Form()
    if form.largest in ("then corrected", "corrected first"):
        rule = rule.but(largest=form.largest)
    if form.nesterov == "dozat" or form.nesterov.endswith("schedule"):
        rule = rule.but(nesterov=form.nesterov)
    if form.epsilon == "outside before":
        rule = rule.but(epsilon=form.epsilon)
    if form.decay in ("decoupled", "fully"):
        rule = rule.but(decay=form.decay)
    elif form.decay in ("after", "without lr", "without lr, after", "unknown"):
        rule = rule.but(decay="decoupled")
    return rule if is_valid(rule) else rule.but(epsilon="outside")


# -- as formulas ---------------------------------------------------------------------------------

_POWER = {
    "paper": "(1−β{}^t)",
    "first-step": "(1−β{})",
    "t-1": "(1−β{}^(t−1))",
    "t+1": "(1−β{}^(t+1))",
}
_SQUARES = {
    "square": "g²",
    "sum": "g²",
    "norm": "‖g‖²",
    "mean square": "mean(g²)",
    "plain": "g",
    "absolute": "|g|",
    "of m": "m²",
    "belief": "(g−m)²",
}


def sheet(form: Form) -> dict[str, str]:
    """Return the formula of ``form``: the name of each line, and the line."""
    first, second = ("β2", "β1") if form.swapped else ("β1", "β2")
    lines: dict[str, str] = {}
    if form.shared in ("t", "all"):
        lines["t"] = "t ← t + 1   (for each parameter)"
    if form.direction == "ascent":
        lines["gradient"] = "g ← −g"
    if form.decay == "l2":
        lines["decay"] = "g ← g + λ·w"
    elif form.decay == "l2 in m":
        lines["decay"] = "g in m ← g + λ·w"
    if form.mean != "absent":
        take = "" if form.mean == "sum" else f"(1−{first})·"
        kept = "" if form.memory in ("nothing", "t", "v and t") else f"{first}·m + "
        lines["m"] = f"m ← {kept}{take}g" + _whose(form)
        if form.nesterov == "no":
            lines["m̂"] = _corrected("m̂ = m", form.correction1, first)
        else:
            lines["m̂"] = _nesterov(form, first)
    if form.square != "absent":
        take = "" if form.square == "sum" else f"(1−{second})·"
        kept = "" if form.memory in ("nothing", "t", "m and t") else f"{second}·v + "
        new = f"{kept}{take}{_SQUARES[form.square]}"
        lines["v"] = f"v ← max(v, {new})" if form.largest == "fed back" else f"v ← {new}"
        lines["v"] += _whose(form)
        if not form.epsilon.endswith("before"):
            lines["v̂"] = _square(form, second)
        elif form.largest == "then corrected":
            lines["v̂"] = "w ← max(w, v)"
    top = "m̂" if form.mean != "absent" else "g"
    bottom = _denominator(form, second)
    update = f"{top} / {bottom}" if bottom else top
    rate = "η" if form.lr_fixed is None else f"{form.lr_fixed:.6g}"
    sign = "+" if form.direction == "added" else "−"
    decay = {
        "decoupled": f" − {rate}·λ·w",
        "fully": f" − ({rate}/η_max)·λ·w",
        "without lr": " − λ·w",
        "after": f", then w ← w − {rate}·λ·w",
        "without lr, after": ", then w ← w − λ·w",
        "unknown": ", and something with λ",
    }.get(form.decay, "")
    lines["w"] = f"w ← w {sign} {rate}·{update}{decay}"
    return lines


def _whose(form: Form) -> str:
    return "   (one for all parameters)" if form.shared in ("m and v", "all") else ""


def _power(correction: str, beta: str, form: Form | None = None) -> str:
    text = _POWER[correction].replace("β{}", beta)
    return text if form is None or form.memory != "nothing" else text.replace("^t", "")


def _corrected(start: str, correction: str, beta: str) -> str:
    return start if correction == "none" else f"{start} / {_power(correction, beta)}"


def _nesterov(form: Form, beta: str) -> str:
    if form.nesterov.endswith("schedule"):
        rate = "0.004·t" if form.nesterov.startswith("torch") else "t"
        return (
            f"m̂ = μ_(t+1)·m / (1−∏μ_(≤t+1)) + (1−μ_t)·g / (1−∏μ_(≤t)), "
            f"μ_t = {beta}·(1−0.96^({rate})/2)"
        )
    here = form.correction1
    now = "" if here == "none" else f" / {_power(here, beta)}"
    ahead = now
    if form.nesterov == "dozat" and here in ("paper", "t-1", "t+1"):
        later = {"paper": "(t+1)", "t-1": "t", "t+1": "(t+2)"}[here]
        ahead = f" / (1−{beta}^{later})"
    raw = "" if form.nesterov == "raw" else now
    return f"m̂ = {beta}·m{ahead} + (1−{beta})·g{raw}"


def _square(form: Form, beta: str) -> str:
    if form.largest == "then corrected":
        return _corrected("w ← max(w, v), v̂ = w", form.correction2, beta)
    if form.largest == "corrected first":
        return _corrected("v̂ ← max(v̂, v", form.correction2, beta) + ")"
    return _corrected("v̂ = v", form.correction2, beta)


def _denominator(form: Form, beta: str) -> str:
    if form.square == "absent":
        return ""
    eps = "ε" if form.eps_fixed is None else f"{form.eps_fixed:g}"
    if form.epsilon.endswith("before"):
        letter = "w" if form.largest == "then corrected" else "v"
        power = _power(form.correction2, beta)
        if not form.root:
            return f"(({letter} + {eps}) / {power})"
        if form.epsilon == "inside before":
            return f"√(({letter} + {eps}) / {power})"
        return f"((√{letter} + {eps}) / √{power})"
    if form.epsilon == "missing":
        return "√v̂" if form.root else "v̂"
    if form.epsilon == "inside":
        return f"√(v̂ + {eps})"
    return f"(√v̂ + {eps})" if form.root else f"(v̂ + {eps})"
