"""What `adamas check` says about mistakes that are planted: each alone, and in pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adamas
from adamas.checking import fitting, wording
from adamas.checking.examination import diagnose
from adamas.checking.variants import Variant, rule_nearest
from tests.support.planted import planted

#: What each mistake of planted.py is as a variant, and the words for it.
MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no exponent": (
        {"correction1": "first-step", "correction2": "first-step"},
        "no exponent t in the bias correction (agrees at step 1 only)",
    ),
    "no exponent for m": (
        {"correction1": "first-step"},
        "no exponent t in the bias correction of m (agrees at step 1 only)",
    ),
    "no exponent for v": (
        {"correction2": "first-step"},
        "no exponent t in the bias correction of v (agrees at step 1 only)",
    ),
    "no correction": ({"correction1": "none", "correction2": "none"}, "no bias correction"),
    "no correction of m": ({"correction1": "none"}, "m is not corrected for its bias"),
    "no correction of v": ({"correction2": "none"}, "v is not corrected for its bias"),
    "t starts at 0": (
        {"correction1": "t-1", "correction2": "t-1"},
        "t starts at 0 (the bias correction's exponent is one too small)",
    ),
    "t starts at 2": (
        {"correction1": "t+1", "correction2": "t+1"},
        "t starts at 2 (the bias correction's exponent is one too large)",
    ),
    "eps inside": ({"epsilon": "inside"}, "ε inside the root"),
    "eps before the correction": (
        {"epsilon": "outside before"},
        "ε̂ outside the root, before the correction (the paper's efficient form)",
    ),
    "eps inside before the correction": (
        {"epsilon": "inside before"},
        "ε inside the root, before the correction",
    ),
    "no eps": ({"epsilon": "missing"}, "no ε"),
    "no root": ({"root": False}, "the root of v is not taken"),
    "amsgrad": ({"largest": "then corrected"}, "AMSGrad (the largest v, corrected)"),
    "amsgrad corrected first": ({"largest": "corrected first"}, "AMSGrad (the largest v̂)"),
    "amsgrad fed back": ({"largest": "fed back"}, "AMSGrad's largest v is fed back into v"),
    "nesterov": ({"nesterov": "dozat"}, "Nesterov's form (Dozat's)"),
    "nesterov with the same correction": (
        {"nesterov": "same step"},
        "Nesterov's form with the correction of step t for m, where it is that of t+1",
    ),
    "nesterov with a raw gradient": (
        {"nesterov": "raw"},
        "Nesterov's form with a gradient that is not corrected",
    ),
    "betas swapped": ({"swapped": True}, "β1 and β2 are swapped"),
    "betas ignored": (
        {"beta1_fixed": 0.9, "beta2_fixed": 0.999},
        "betas are ignored: they are 0.9 and 0.999",
    ),
    "beta1 ignored": ({"beta1_fixed": 0.9}, "β1 is ignored: it is 0.9"),
    "beta2 ignored": ({"beta2_fixed": 0.999}, "β2 is ignored: it is 0.999"),
    "lr ignored": ({"lr_fixed": 0.01}, "lr is ignored: it is 0.01 whatever is given"),
    "eps ignored": ({"eps_fixed": 1e-8}, "ε is ignored: it is 1e-08"),
    "norm": (
        {"square": "norm"},
        "the squared norm of the whole array instead of each element's square",
    ),
    "mean square": (
        {"square": "mean square"},
        "the mean square of the whole array instead of each element's square",
    ),
    "not squared": ({"square": "plain"}, "the gradient is not squared in v"),
    "absolute": (
        {"square": "absolute"},
        "the gradient's absolute value instead of its square in v",
    ),
    "square of m": ({"square": "of m"}, "v is the mean of m², not of g²"),
    "m is a sum": ({"mean": "sum"}, "m is a sum, not a mean (the factor 1−β1 is missing)"),
    "v is a sum": ({"square": "sum"}, "v is a sum, not a mean (the factor 1−β2 is missing)"),
    "ascends": ({"direction": "ascent"}, "the sign of the gradient is flipped: it ascends"),
    "update added": (
        {"direction": "added"},
        "the sign of the update is flipped: it is added, not subtracted",
    ),
    "float32 1-beta": ({"float32": "take"}, "1−β from a float32 β in the means"),
    "float32 correction": (
        {"float32": "correction"},
        "1−β from a float32 β in the bias correction",
    ),
    "float32 beta": ({"float32": "all"}, "1−β from a float32 β everywhere"),
    "nothing kept": ({"memory": "nothing"}, "no state is kept: every step is a first one"),
    "m and v not kept": ({"memory": "t"}, "m and v are not kept from step to step"),
    "m not kept": ({"memory": "v and t"}, "m is not kept from step to step"),
    "v not kept": ({"memory": "m and t"}, "v is not kept from step to step"),
    "state shared": ({"shared": "m and v"}, "parameters share m and v"),
    "t counted for each array": (
        {"shared": "t"},
        "t is counted once for each parameter, not for each step",
    ),
    "state and t shared": ({"shared": "all"}, "parameters share m, v and t"),
    "m and v in bfloat16": ({"storage": "m and v bfloat16"}, "m and v kept in bfloat16"),
    "m and v in float32": ({"storage": "m and v float32"}, "m and v kept in float32"),
    "decay decoupled": ({"decay": "decoupled"}, "decoupled weight decay"),
    "decay after": (
        {"decay": "after"},
        "decoupled weight decay after the step, not of the parameter before it",
    ),
    "decay without lr": ({"decay": "without lr"}, "weight decay without the learning rate"),
    "decay without lr, after": (
        {"decay": "without lr, after"},
        "weight decay without the learning rate, after the step",
    ),
    "decay in m only": ({"decay": "l2 in m"}, "L2 weight decay in m only, not in v"),
    "weight decay ignored": ({"decay": "ignored"}, "weight_decay is ignored"),
}

#: Pairs of mistakes that compute the same as something simpler, whatever they are given: no probe
#: can tell them apart, and the simpler one is named.
ONE_AND_THE_SAME: dict[str, tuple[tuple[str, str], ...]] = {
    "a correction that is the same at every step is the same at t and at t + 1": (
        ("no exponent", "nesterov with the same correction"),
        ("no exponent for m", "nesterov with the same correction"),
        ("no correction", "nesterov with the same correction"),
        ("no correction of m", "nesterov with the same correction"),
        ("no correction", "nesterov with a raw gradient"),
        ("no correction of m", "nesterov with a raw gradient"),
    ),
    "the largest of v times a constant is the largest v, times that constant": (
        ("no exponent", "amsgrad corrected first"),
        ("no exponent for v", "amsgrad corrected first"),
        ("no correction", "amsgrad corrected first"),
        ("no correction of v", "amsgrad corrected first"),
    ),
    "a correction without t does not look at how t is counted": (
        ("no exponent", "t counted for each array"),
        ("no exponent", "state and t shared"),
        ("no correction", "t counted for each array"),
        ("no correction", "state and t shared"),
    ),
    "where nothing is corrected there is no before and after": (
        ("no correction", "eps before the correction"),
        ("no correction", "eps inside before the correction"),
        ("no correction of v", "eps before the correction"),
        ("no correction of v", "eps inside before the correction"),
    ),
    "without a root there is no inside": (
        ("eps inside", "no root"),
        ("eps inside before the correction", "no root"),
    ),
    "a sum that is not corrected is a mean divided by 1 - β": (
        ("no correction", "m is a sum"),
        ("no correction", "v is a sum"),
        ("no correction of m", "m is a sum"),
        ("no correction of v", "v is a sum"),
    ),
    "(1 - β) / (1 - β) is 1, whatever β is rounded to": (
        ("no exponent", "float32 beta"),
        ("float32 beta", "nothing kept"),
    ),
    "what is not used is not seen to be rounded": (
        ("no correction", "float32 correction"),
        ("no correction", "float32 beta"),
    ),
    "where t stands still the exponent is 1, as where there is none": (
        ("no exponent", "nothing kept"),
        ("no exponent for m", "nothing kept"),
        ("no exponent for v", "nothing kept"),
        ("no exponent", "m and v not kept"),
        ("no correction", "m and v not kept"),
    ),
    "(1 - β1)·g / (1 - β1) is the gradient: no mean at all": (
        ("no exponent", "m not kept"),
        ("no exponent for m", "m not kept"),
    ),
    "what is not kept is not shared": (
        ("nothing kept", "state shared"),
        ("nothing kept", "t counted for each array"),
        ("nothing kept", "state and t shared"),
        ("m and v not kept", "state shared"),
        ("m and v not kept", "state and t shared"),
    ),
    "without a past m̂ is g and v̂ is g², whatever the betas and in whatever order": (
        ("betas swapped", "nothing kept"),
        ("betas ignored", "nothing kept"),
        ("beta1 ignored", "nothing kept"),
        ("beta2 ignored", "nothing kept"),
        ("amsgrad corrected first", "nothing kept"),
        ("nesterov with a raw gradient", "nothing kept"),
    ),
    "the largest of a new v and 0 is the new v": (
        ("amsgrad fed back", "nothing kept"),
        ("amsgrad fed back", "m and v not kept"),
        ("amsgrad fed back", "v not kept"),
    ),
    "an ε that is missing is not ignored": (("no eps", "eps ignored"),),
    "v does not see the gradient that the decay is left out of": (
        ("square of m", "decay in m only"),
    ),
    "where the decay is no part of the update, adding the update is ascending": (
        ("update added", "decay decoupled"),
        ("update added", "decay after"),
        ("update added", "decay without lr"),
        ("update added", "decay without lr, after"),
        ("update added", "weight decay ignored"),
    ),
}

#: Pairs that have a name together.
NAMED_TOGETHER = {
    ("no correction", "amsgrad"): ("AMSGrad as in its paper, without bias correction",),
    ("no correction of v", "amsgrad"): ("AMSGrad", "v is not corrected for its bias"),
}

#: Pairs whose steps are infinite or NaN from the first on, so that nothing else can be seen.
NOT_A_NUMBER = {
    ("t starts at 0", "amsgrad corrected first"),
    ("t starts at 0", "nothing kept"),
}

SAME = {pair for pairs in ONE_AND_THE_SAME.values() for pair in pairs}


def variant_of(*mistakes):
    return Variant(**{k: v for each in mistakes for k, v in MISTAKES[each][0].items()})


def together(*pair):
    """The words for a pair: those of both, or their own where they have a name together."""
    if pair in NAMED_TOGETHER:
        return NAMED_TOGETHER[pair]
    one = next((each for each in MISTAKES if variant_of(each) == variant_of(*pair)), None)
    return [MISTAKES[each][1] for each in ((one,) if one else pair)]


def combine(one, other):
    """Whether two mistakes are not two values of one choice."""
    return not set(MISTAKES[one][0]) & set(MISTAKES[other][0])


def test_a_weight_decay_of_no_known_form_does_not_hide_the_rest():
    found = diagnose(planted("decay odd", "eps inside")).fit
    assert found.variant == Variant(epsilon="inside", decay="unknown")
    assert "weight decay in a form that is not known" in wording.deviations(found.variant)


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        ("cautious", "cautious decay"),
        ("cautious, strict", "cautious decay that leaves out elements whose update is 0"),
        ("cautious by g", "cautious decay by the sign of the gradient, not of the update"),
        ("cautious, turned", "cautious decay turned round: where signs are opposite"),
    ],
)
def test_each_way_to_compare_signs_in_a_cautious_decay_is_named(decay, words):
    found = diagnose(planted(f"decay {decay}")).fit
    assert found.variant == Variant(decay=decay)
    assert found.rivals == ()
    assert words in wording.words(found.variant)
    assert rule_nearest(found.variant) == Variant(decay="cautious")


def test_a_weight_decay_of_no_known_form_is_what_misses_the_rule():
    miss = adamas.check(planted("decay odd")).miss
    assert miss is not None
    assert miss.share > 1e-3


def test_a_right_adam_has_no_mistake():
    found = diagnose(planted()).fit
    assert found.variant == Variant()
    assert found.rivals == ()
    assert wording.deviations(found.variant) == ()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_named(mistake):
    found = diagnose(planted(mistake)).fit
    assert found.variant == variant_of(mistake)
    assert found.rivals == ()
    assert MISTAKES[mistake][1] in wording.words(found.variant)


def in_float32_only(kind):
    class Narrow(kind):
        def __init__(self, params, **settings):
            if params[0].dtype != np.float32:
                raise TypeError("float32 only")
            super().__init__(params, **settings)

    return Narrow


@pytest.mark.quick_cases(16)
@pytest.mark.parametrize(
    "mistake", [m for m, (form, _) in MISTAKES.items() if not {"float32", "storage"} & set(form)]
)
def test_a_planted_mistake_is_named_in_float32_as_well(mistake):
    """But for those of rounding, which float32 parameters hide in part."""
    found = diagnose(in_float32_only(planted(mistake)))
    assert found.plain[0].dtype == np.float32
    assert found.fit.variant == variant_of(mistake)
    assert MISTAKES[mistake][1] in wording.words(found.fit.variant)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "first", [*list(MISTAKES)[-5:-1], *list(MISTAKES)[:-5]]
)  # short ones first
def test_pairs_of_planted_mistakes_are_named(first):
    for second in list(MISTAKES)[list(MISTAKES).index(first) + 1 :]:
        pair = (first, second)
        if not combine(*pair) or pair in NOT_A_NUMBER:
            continue
        found = diagnose(planted(*pair)).fit
        assert found.rivals == (), pair
        if pair in SAME:
            continue
        assert found.variant == variant_of(*pair), pair
        for words in together(*pair):
            assert words in wording.words(found.variant), pair


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("reason", ONE_AND_THE_SAME)
def test_pairs_that_are_one_and_the_same_are_named_by_the_simpler(reason):
    for pair in ONE_AND_THE_SAME[reason]:
        found = diagnose(planted(*pair)).fit.variant
        assert found != variant_of(*pair), f"{pair} can be told apart after all"
        assert fitting.same(found, variant_of(*pair), True), pair


@pytest.mark.parametrize("pair", sorted(NOT_A_NUMBER))
def test_a_pair_that_is_never_a_number_is_seen_to_start_at_0_and_rivals_are_owned_up_to(pair):
    found = diagnose(planted(*pair)).fit
    assert "t-1" in (found.variant.correction1, found.variant.correction2)
    assert variant_of(*pair) in (found.variant, *found.rivals)
    assert found.rivals
