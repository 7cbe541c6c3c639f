"""The space of variants: what an implementation of Adam may compute, as independent choices.

A ``Variant`` is one point of it: a value for every choice. The rule is the variant whose
values are all the first ones. ``axes`` lists the steps that lead away from a variant, one
choice at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

__all__ = [
    "DECAYS",
    "FAMILIES",
    "ROUNDINGS",
    "Constants",
    "Variant",
    "axes",
    "is_valid",
    "rule_nearest",
]

Correction = Literal["paper", "first-step", "none", "t-1", "t+1"]


class Variant(NamedTuple):
    """One variant of Adam. The first value of each choice, its default, is that of the rule."""

    #: "ascent" turns the gradient's sign, "added" that of the update.
    direction: Literal["descent", "ascent", "added"] = "descent"
    #: The learning rate that is used whatever is given; None where the given one is. NaN: some
    #: rate, to be found out.
    lr_fixed: float | None = None
    beta1_fixed: float | None = None
    beta2_fixed: float | None = None
    swapped: bool = False
    eps_fixed: float | None = None
    #: A sum is one without the factor 1 - β1.
    mean: Literal["mean", "sum", "absent"] = "mean"
    #: "norm" and "mean square" are one number for the whole array; "plain" and "absolute" are not
    #: squared; "belief" is the square of g - m.
    square: Literal[
        "square", "sum", "absent", "norm", "mean square", "plain", "absolute", "of m", "belief"
    ] = "square"
    #: Whether the root of v is taken.
    root: Literal[True, False] = True
    correction1: Correction = "paper"
    correction2: Correction = "paper"
    #: Where ε stands: of the root, and before or after the correction.
    epsilon: Literal["outside", "inside", "outside before", "inside before", "missing"] = "outside"
    #: "then corrected" is the largest v, "corrected first" the largest v̂.
    largest: Literal["no", "then corrected", "corrected first", "fed back"] = "no"
    #: "raw" leaves the gradient's part without a correction; a schedule is one for β1.
    nesterov: Literal["no", "dozat", "same step", "raw", "torch schedule", "keras schedule"] = "no"
    #: RAdam: above which ρ_t the learning rate is rectified; up to there nothing is divided. "5, no
    #: factor" leaves out r_t, "5, at rest" moves nothing up to there.
    rectified: Literal["no", "5", "4", "5, no factor", "5, at rest"] = "no"
    #: Update clipping, array by array: where the root mean square of g / max(√v̂, ε) is above 1, the
    #: learning rate is divided by it.
    clipped: Literal["no", "above 1"] = "no"
    #: What is kept from step to step; with "nothing" not even t.
    memory: Literal["all", "nothing", "t", "m and t", "v and t"] = "all"
    #: What parameters have in common; "t" is counted once for each.
    shared: Literal["nothing", "m and v", "t", "all"] = "nothing"
    #: "after" and "without lr, after" are of the parameter after the step; "strict" leaves out
    #: where the update is 0, "turned" decays where signs are opposite; "unknown" is none of these.
    decay: Literal[
        "l2",
        "decoupled",
        "after",
        "without lr",
        "without lr, after",
        "fully",
        "cautious",
        "cautious, strict",
        "cautious by g",
        "cautious, turned",
        "corrected",
        "l2 in m",
        "ignored",
        "unknown",
    ] = "l2"
    #: Where 1 - β is taken from β in float32: "take" is in the means.
    float32: Literal["nowhere", "take", "correction", "all"] = "nowhere"
    #: How m and v are stored: rounded to a smaller type.
    storage: Literal[
        "as is",
        "m and v bfloat16",
        "m bfloat16",
        "v bfloat16",
        "m and v float16",
        "m and v float32",
    ] = "as is"

    def but(self, **changes: Any) -> Variant:
        """Return the variant with other values for some choices."""
        return self._replace(**changes)


#: The rule, and what is left of it without its means: RMSProp; Momentum, as a mean and as a sum;
#: gradient descent. None of them has a correction of its own.
FAMILIES = (
    Variant(),
    Variant(mean="absent", correction2="none"),
    Variant(square="absent", correction1="none"),
    Variant(square="absent", correction1="none", mean="sum"),
    Variant(square="absent", mean="absent"),
)


@dataclass(frozen=True)
class Constants:
    """What is known of the subject before any probing: it limits the space."""

    #: What the caller can set, of lr, beta1, beta2, eps and weight_decay.
    settable: frozenset[str]
    #: The values that stand where nothing is given.
    beta1: float
    beta2: float
    eps: float
    #: Whether several arrays are stepped by one optimizer.
    several: bool


_Changes = Mapping[str, Any]

#: The changes of each choice to another of its values than the rule's.
_CHANGES: dict[str, tuple[_Changes, ...]] = {
    name: tuple({name: value} for value in get_args(values)[1:])
    for name, values in get_type_hints(Variant).items()
}
#: The changes that concern rounding alone.
ROUNDINGS = (*_CHANGES["float32"], *_CHANGES["storage"])
#: All known kinds of weight decay, the rule's first.
DECAYS = ("l2", *(change["decay"] for change in _CHANGES["decay"][:-1]))


@lru_cache(maxsize=8)
def axes(constants: Constants) -> dict[str, tuple[_Changes, ...]]:
    """Return every choice with the changes it can make to a variant, but for weight decay."""
    table: dict[str, tuple[_Changes, ...]] = {
        "lr": ({"lr_fixed": float("nan")},),
        "direction": _CHANGES["direction"],
        "bias correction": tuple(
            {"correction1": first, "correction2": second}
            for first, second in itertools.product(get_args(Correction), repeat=2)
        )[1:],
        "epsilon": _CHANGES["epsilon"],
        "betas": tuple(_betas(constants)),
        "eps": tuple({"eps_fixed": eps} for eps in _fixed_eps(constants)),
    }
    names = ("mean", "square", "root", "largest", "nesterov", "rectified", "clipped", "memory")
    names += ("float32", "storage")
    for name in (*names, *(["shared"] if constants.several else [])):
        table[name] = _CHANGES[name]
    return table


def _betas(constants: Constants) -> Iterator[_Changes]:
    firsts: list[float | None] = [None]
    seconds: list[float | None] = [None]
    settable = {"beta1", "beta2"} <= constants.settable
    if settable:
        firsts += dict.fromkeys((constants.beta1, 0.9))
        seconds += dict.fromkeys((constants.beta2, 0.999))
    else:
        firsts += (0.9, 0.95, 0.8, 0.5)
        seconds += (0.999, 0.99, 0.98, 0.95, 0.9)
    if settable or constants.beta1 != constants.beta2:
        yield {"swapped": True}
    for first, second in itertools.product(firsts, seconds):
        if (first, second) != (None, None):
            yield {"beta1_fixed": first, "beta2_fixed": second}
            yield {"beta1_fixed": first, "beta2_fixed": second, "swapped": True}


def _fixed_eps(constants: Constants) -> tuple[float, ...]:
    known = (constants.eps, 1e-8, 1e-7, 1e-6, 1e-10)
    kept = dict.fromkeys(known)
    if "eps" not in constants.settable:
        kept.pop(constants.eps)
    return tuple(kept)


def is_valid(variant: Variant) -> bool:
    """Return whether no simpler variant computes the same by construction."""
    without_square = variant.square == "absent" and (
        variant.epsilon != "outside"
        or not variant.root
        or variant.largest != "no"
        or variant.correction2 != "paper"
        or variant.eps_fixed is not None
        or variant.memory == "m and t"
        or (variant.mean == "mean" and variant.correction1 == "first-step")
    )
    without_mean = variant.mean == "absent" and (
        variant.nesterov != "no"
        or variant.correction1 != "paper"
        or variant.square in ("of m", "belief")
        or variant.memory in ("v and t", "t", "nothing")
        or (variant.memory == "m and t" and variant.correction2 in ("none", "first-step"))
    )
    without_root = not variant.root and variant.epsilon == "inside"
    uncorrected = variant.correction2 == "none" and (
        variant.epsilon.endswith("before") or variant.largest == "corrected first"
    )
    without_eps = variant.epsilon == "missing" and variant.eps_fixed is not None
    without_t = variant.memory == "nothing" and (
        "first-step" in (variant.correction1, variant.correction2) or variant.shared != "nothing"
    )
    # m without its past, divided by what it was multiplied with, is the gradient: no mean at all.
    mean_of_one = variant.memory == "v and t" and (variant.mean, variant.correction1) in (
        ("mean", "first-step"),
        ("sum", "none"),
    )
    # Of one gradient there is nothing to rectify; without means nothing is as long as ρ_t.
    unrectified = variant.rectified != "no" and (
        "absent" in (variant.mean, variant.square)
        or variant.memory != "all"
        or variant.largest == "fed back"
    )
    # The measure is of a v that follows the squares of the elements, and of its root.
    unclipped = variant.clipped != "no" and (
        variant.square != "square"
        or not variant.root
        or variant.memory in ("nothing", "t", "m and t")
    )
    without_past = variant.memory in ("nothing", "t", "m and t") and variant.largest == "fed back"
    return not (
        without_square
        or without_mean
        or without_root
        or uncorrected
        or without_eps
        or without_t
        or mean_of_one
        or without_past
        or unrectified
        or unclipped
    )


def rule_nearest(variant: Variant) -> Variant:
    """Return the faithful variant nearest to ``variant``: what differs goes back to the rule."""
    rule = Variant()
    if variant.largest in ("then corrected", "corrected first"):
        rule = rule.but(largest=variant.largest)
    if variant.nesterov == "dozat" or variant.nesterov.endswith("schedule"):
        rule = rule.but(nesterov=variant.nesterov)
    if variant.rectified != "no":
        rule = rule.but(rectified="4" if variant.rectified == "4" else "5")
    rule = rule.but(clipped=variant.clipped)
    if variant.epsilon == "outside before":
        rule = rule.but(epsilon=variant.epsilon)
    if variant.decay.startswith("cautious"):
        rule = rule.but(decay="cautious")
    elif variant.decay in ("decoupled", "fully", "corrected"):
        rule = rule.but(decay=variant.decay)
    elif variant.decay in ("after", "without lr", "without lr, after", "unknown"):
        rule = rule.but(decay="decoupled")
    return rule if is_valid(rule) else rule.but(epsilon="outside")
