"""Variants in words and as formulas.

``deviations`` says what a variant does that no faithful one does, ``description`` which
faithful choices it makes, ``remarks`` how it rounds, and ``sheet`` writes its formula.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from adamas.checking.variants import Variant

__all__ = ["description", "deviations", "remarks", "sheet", "words"]


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
        "ascent": "the sign of the gradient is flipped: it ascends",
        "added": "the sign of the update is flipped: it is added, not subtracted",
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
    "rectified": {
        "5, no factor": "the factor r_t is missing: m̂ alone while ρ_t is up to 5, then Adam",
        "5, at rest": "no steps of m̂ while ρ_t is up to 5: nothing moves; then RAdam",
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
        "cautious, strict": "cautious decay that leaves out elements whose update is 0",
        "cautious by g": "cautious decay by the sign of the gradient, not of the update",
        "cautious, turned": "cautious decay turned round: where signs are opposite",
        "l2 in m": "L2 weight decay in m only, not in v",
        "ignored": "weight_decay is ignored",
        "unknown": "weight decay in a form that is not known",
    },
}


def deviations(variant: Variant) -> tuple[str, ...]:
    """Return in words what no faithful variant does, in the order of a step."""
    found: list[str] = []
    if variant.mean == "absent" and variant.square == "absent":
        found.append("neither m nor v: gradient descent")
    elif variant.mean == "absent":
        found.append("no first moment: RMSProp")
    elif variant.square == "absent":
        found.append("no second moment: Momentum")
    found.extend(_ignored(variant))
    for choice, phrases in _DEVIATIONS.items():
        if choice == "epsilon":
            found.extend(_corrections(variant))
        phrase = phrases.get(getattr(variant, choice))
        if phrase is not None:
            found.append(phrase)
    return tuple(found)


def _ignored(variant: Variant) -> Iterator[str]:
    beta1, beta2 = variant.beta1_fixed, variant.beta2_fixed
    if variant.lr_fixed is not None:
        yield f"lr is ignored: it is {variant.lr_fixed:.6g} whatever is given"
    if variant.swapped:
        yield "β1 and β2 are swapped"
    if beta1 is not None and beta2 is not None:
        yield f"betas are ignored: they are {beta1:g} and {beta2:g}"
    elif beta1 is not None:
        yield f"β1 is ignored: it is {beta1:g}"
    elif beta2 is not None:
        yield f"β2 is ignored: it is {beta2:g}"
    if variant.eps_fixed is not None:
        yield f"ε is ignored: it is {variant.eps_fixed:g}"


def _corrections(variant: Variant) -> Iterator[str]:
    first, second = variant.correction1, variant.correction2
    if first == second and not _is_half(variant):
        if first != "paper" and not _is_published_amsgrad(variant):
            yield _SAME_CORRECTION[first]
        return
    for letter, correction, of in (("m", first, variant.mean), ("v", second, variant.square)):
        # Plain RMSProp and Momentum have no correction to lose.
        lost = of == "absent" or (correction == "none" and _is_half(variant))
        if correction != "paper" and not lost:
            yield _ONE_CORRECTION[correction].format(letter)


def _is_half(variant: Variant) -> bool:
    """Return whether a mean is absent, as in RMSProp and Momentum."""
    return "absent" in (variant.mean, variant.square)


def _is_published_amsgrad(variant: Variant) -> bool:
    """Return whether there is no correction, as in algorithm 2 of Reddi, Kale & Kumar (2018)."""
    corrections = variant.correction1, variant.correction2
    return variant.largest == "then corrected" and corrections == ("none", "none")


_DECAYS = {
    "l2": "L2 weight decay",
    "decoupled": "decoupled weight decay",
    "fully": "fully decoupled weight decay",
    "cautious": "cautious decay",
    "corrected": "corrected decay",
}
_LARGEST = {"then corrected": "the largest v, corrected", "corrected first": "the largest v̂"}


def description(variant: Variant, *, decays: bool = True) -> tuple[str, ...]:
    """Return in words the faithful choices; with ``decays`` also that of weight decay."""
    found: list[str] = []
    corrections = variant.correction1, variant.correction2
    if _is_published_amsgrad(variant):
        found.append("AMSGrad as in its paper, without bias correction")
    elif variant.largest in _LARGEST:
        order = f" ({_LARGEST[variant.largest]})"
        found.append("AMSGrad" + order * (variant.correction2 != "none"))
    if variant.rectified in ("5", "4"):
        whose = " as in the paper" if variant.rectified == "4" else ""
        found.append(f"RAdam (rectified above ρ = {variant.rectified}{whose})")
    if variant.nesterov == "dozat":
        found.append("Nesterov's form (Dozat's)")
    elif variant.nesterov.endswith("schedule"):
        found.append(f"Nesterov's form with a schedule for β1 ({variant.nesterov.split()[0]}'s)")
    if _is_half(variant):
        if corrections[variant.mean == "absent"] == "paper":
            found.append("bias correction as in the paper")
        elif {"paper", "none"} & set(corrections):
            found.append("no bias correction")
    elif corrections == ("paper", "paper") and variant.memory != "nothing":
        found.append("paper")
    if variant.square != "absent":
        if variant.epsilon == "outside":
            found.append("ε outside the root" if variant.root else "ε added")
        elif variant.epsilon == "outside before":
            found.append("ε̂ outside the root, before the correction (the paper's efficient form)")
    if variant.clipped != "no":
        found.append("updates clipped at 1 (StableAdamW)")
    if decays and variant.decay in _DECAYS:
        found.append(_DECAYS[variant.decay])
    return tuple(found)


_FLOAT32 = {"take": "in the means", "correction": "in the bias correction", "all": "everywhere"}


def remarks(variant: Variant) -> tuple[str, ...]:
    """Return in words how ``variant`` rounds, where that can be told."""
    found: list[str] = []
    if variant.float32 != "nowhere":
        found.append(f"1−β from a float32 β {_FLOAT32[variant.float32]}")
    if variant.storage != "as is":
        what, _, kind = variant.storage.rpartition(" ")
        found.append(f"{what} kept in {kind}")
    return tuple(found)


def words(variant: Variant) -> tuple[str, ...]:
    """Return all words for ``variant``."""
    return *deviations(variant), *description(variant), *remarks(variant)


# -- as formulas ---------------------------------------------------------------------------------

_EXPONENTS = {"paper": "^t", "first-step": "", "t-1": "^(t−1)", "t+1": "^(t+1)"}
#: Those of m in the next step, where Dozat's form corrects it for that.
_AHEAD = {"paper": "^(t+1)", "first-step": "", "t-1": "^t", "t+1": "^(t+2)"}
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


def sheet(variant: Variant) -> dict[str, str]:
    """Return the formula of ``variant``: the name of each line, and the line."""
    first, second = ("β2", "β1") if variant.swapped else ("β1", "β2")
    whose = "   (one for all parameters)" if variant.shared in ("m and v", "all") else ""
    lines: dict[str, str] = {}
    if variant.shared in ("t", "all"):
        lines["t"] = "t ← t + 1   (for each parameter)"
    if variant.direction == "ascent":
        lines["gradient"] = "g ← −g"
    if variant.decay in ("l2", "l2 in m"):
        lines["decay"] = ("g" if variant.decay == "l2" else "g in m") + " ← g + λ·w"
    top = "g"
    if variant.mean != "absent":
        take = "" if variant.mean == "sum" else f"(1−{first})·"
        kept = "" if variant.memory in ("nothing", "t", "v and t") else f"{first}·m + "
        lines["m"] = f"m ← {kept}{take}g{whose}"
        lines["m̂"] = _first(variant, first)
        top = "m̂"
    update = top
    if variant.square != "absent":
        take = "" if variant.square == "sum" else f"(1−{second})·"
        kept = "" if variant.memory in ("nothing", "t", "m and t") else f"{second}·v + "
        new = f"{kept}{take}{_SQUARES[variant.square]}"
        lines["v"] = (
            f"v ← max(v, {new})" if variant.largest == "fed back" else f"v ← {new}"
        ) + whose
        if not variant.epsilon.endswith("before"):
            lines["v̂"] = _second(variant, second)
        elif variant.largest == "then corrected":
            lines["v̂"] = "w ← max(w, v)"
        update = f"{top} / {_denominator(variant, second)}"
    if variant.rectified != "no":
        lines["ρ"] = f"ρ∞ = 2/(1−{second}) − 1, ρ = ρ∞ − 2t·{second}^t/(1−{second}^t)"
        if variant.rectified != "5, no factor":
            lines["r"] = "r = √((ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ))"
            update = f"r·{update}"
        other = "0" if variant.rectified == "5, at rest" else top
        update = f"({update} where ρ > {variant.rectified[0]}, else {other})"
    rate = "η" if variant.lr_fixed is None else f"{variant.lr_fixed:.6g}"
    if variant.clipped != "no":
        over = "ε" if variant.eps_fixed is None else f"{variant.eps_fixed:g}"
        lines["RMS"] = f"RMS = √mean((g / max(√v̂, {over}))²)   (of each array)"
        rate = f"({rate}/max(1, RMS))"
    sign = "+" if variant.direction == "added" else "−"
    decay = {
        "decoupled": f" − {rate}·λ·w",
        "fully": f" − ({rate}/η_max)·λ·w",
        "cautious": f" − {rate}·λ·w where update·w ≥ 0",
        "cautious, strict": f" − {rate}·λ·w where update·w > 0",
        "cautious by g": f" − {rate}·λ·w where g·w ≥ 0",
        "cautious, turned": f" − {rate}·λ·w where update·w ≤ 0",
        "corrected": f" − ({rate}²/η_max)·λ·w",
        "without lr": " − λ·w",
        "after": f", then w ← w − {rate}·λ·w",
        "without lr, after": ", then w ← w − λ·w",
        "unknown": ", and something with λ",
    }.get(variant.decay, "")
    lines["w"] = f"w ← w {sign} {rate}·{update}{decay}"
    return lines


def _over(correction: str, beta: str, exponents: dict[str, str] = _EXPONENTS) -> str:
    return "" if correction == "none" else f" / (1−{beta}{exponents[correction]})"


def _first(variant: Variant, beta: str) -> str:
    if variant.nesterov.endswith("schedule"):
        rate = "0.004·t" if variant.nesterov.startswith("torch") else "t"
        return (
            f"m̂ = μ_(t+1)·m / (1−∏μ_(≤t+1)) + (1−μ_t)·g / (1−∏μ_(≤t)), "
            f"μ_t = {beta}·(1−0.96^({rate})/2)"
        )
    now = _over(variant.correction1, beta)
    if variant.nesterov == "no":
        return f"m̂ = m{now}"
    ahead = _over(variant.correction1, beta, _AHEAD) if variant.nesterov == "dozat" else now
    return f"m̂ = {beta}·m{ahead} + (1−{beta})·g{'' if variant.nesterov == 'raw' else now}"


def _second(variant: Variant, beta: str) -> str:
    over = _over(variant.correction2, beta)
    if variant.largest == "then corrected":
        return f"w ← max(w, v), v̂ = w{over}"
    return f"v̂ ← max(v̂, v{over})" if variant.largest == "corrected first" else f"v̂ = v{over}"


def _denominator(variant: Variant, beta: str) -> str:
    eps = "ε" if variant.eps_fixed is None else f"{variant.eps_fixed:g}"
    if variant.epsilon.endswith("before"):
        letter = "w" if variant.largest == "then corrected" else "v"
        power = f"(1−{beta}{_EXPONENTS[variant.correction2]})"
        if not variant.root:
            return f"(({letter} + {eps}) / {power})"
        if variant.epsilon == "inside before":
            return f"√(({letter} + {eps}) / {power})"
        return f"((√{letter} + {eps}) / √{power})"
    if variant.epsilon == "missing":
        return "√v̂" if variant.root else "v̂"
    if variant.epsilon == "inside":
        return f"√(v̂ + {eps})"
    return f"(√v̂ + {eps})" if variant.root else f"(v̂ + {eps})"
