"""``adamas check`` on RAdams: which of the known forms each is."""

from __future__ import annotations

import math

import numpy as np
import pytest

import adamas
from adamas.checking import wording
from adamas.checking.examination import diagnose
from adamas.checking.fitting import same
from adamas.checking.variants import Variant, is_valid, rule_nearest
from tests.support.planted import Planted

#: What is computed, by the name of the choice, and the words for it.
KINDS = {
    "5": "RAdam (rectified above ρ = 5)",
    "4": "RAdam (rectified above ρ = 4 as in the paper)",
    "5, no factor": "the factor r_t is missing: m̂ alone while ρ_t is up to 5, then Adam",
    "5, at rest": "no steps of m̂ while ρ_t is up to 5: nothing moves; then RAdam",
}


class RAdam(Planted):
    """RAdam as people write it: ρ as a difference."""

    kind = "5"

    def _update(self, g, m, v, w):
        b1, b2, t = self.b1, self.b2, self.t
        longest = 2.0 / (1.0 - b2) - 1.0
        rho = longest - 2.0 * t * b2**t / (1.0 - b2**t)
        first = m / (1.0 - b1**t)
        if rho <= float(self.kind[0]):
            return 0.0 * first if self.kind == "5, at rest" else first
        r = math.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
        root = np.sqrt(v)
        if "eps before the correction" in self.mistakes:
            update = first * math.sqrt(1.0 - b2**t) / (root + self.eps)
        else:
            update = first / (root / math.sqrt(1.0 - b2**t) + self.eps)
        return update if self.kind == "5, no factor" else r * update


def planted(kind, *mistakes):
    given = {"kind": kind, "mistakes": frozenset(mistakes), "__module__": "planted"}
    return type("RAdam", (RAdam,), given)


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_to_rectify_is_named(kind):
    found = diagnose(planted(kind)).fit
    assert found.variant == Variant(rectified=kind)
    assert found.rivals == ()
    assert KINDS[kind] in wording.words(found.variant)


@pytest.mark.parametrize(
    ("mistake", "change"),
    [
        ("eps before the correction", {"epsilon": "outside before"}),
        ("decay decoupled", {"decay": "decoupled"}),
        ("ascends", {"direction": "ascent"}),
        ("m is a sum", {"mean": "sum"}),
        ("beta2 ignored", {"beta2_fixed": 0.999}),
    ],
)
def test_what_else_is_done_is_named_beside(mistake, change):
    found = diagnose(planted("5", mistake)).fit
    assert found.variant == Variant(rectified="5", **change)
    assert found.rivals == ()


def test_an_adam_that_begins_with_a_step_of_momentum_is_no_radam():
    """Rectified from the second step on: nothing that is known."""

    class Odd(Planted):
        def _update(self, g, m, v, w):
            update = super()._update(g, m, v, w)
            return m / (1.0 - self.b1) if self.t == 1 else update

    assert diagnose(Odd).fit.variant.rectified == "no"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("subject", "epsilon"),
    [
        ("adamas:RAdam", "ε outside the root"),
        ("adamas.torch:RAdam", "ε̂ outside the root, before the correction"),
        ("torch.optim:RAdam", "ε̂ outside the root, before the correction"),
    ],
)
def test_radams_of_libraries_are_faithful(subject, epsilon):
    pytest.importorskip(subject.partition(":")[0].partition(".")[0])
    if "torch" in subject:
        pytest.importorskip("torch")
    report = adamas.check(subject)
    assert report.faithful
    assert report.sentence.startswith("RAdam (rectified above ρ = 5), paper, ")
    assert epsilon in report.sentence


def test_one_that_rests_at_first_is_tried_at_its_edges_once_it_moves():
    happens = {edge.name: edge.happens for edge in adamas.check(planted("5, at rest")).edges}
    assert happens["NaN in the gradient"] == "that element is lost for good, others are not"
    assert not happens["subnormal gradient"].endswith("0.0e+00")


def test_forms_that_are_something_simpler_are_left_out():
    for change in (
        {"square": "absent", "correction2": "paper"},
        {"mean": "absent"},
        {"memory": "nothing"},
        {"largest": "fed back"},
    ):
        assert not is_valid(Variant(rectified="5", **change))
    assert is_valid(Variant(rectified="5, no factor", epsilon="inside"))
    assert not same(Variant(rectified="5"), Variant(rectified="4"), False)


def test_the_nearest_faithful_form_rectifies_too():
    assert rule_nearest(Variant(rectified="5, no factor")) == Variant(rectified="5")
    assert rule_nearest(Variant(rectified="5, at rest")) == Variant(rectified="5")
    assert rule_nearest(Variant(rectified="4", epsilon="inside")) == Variant(rectified="4")


def test_the_formula_shows_both_cases():
    lines = wording.sheet(Variant(rectified="5"))
    assert lines["ρ"] == "ρ∞ = 2/(1−β2) − 1, ρ = ρ∞ − 2t·β2^t/(1−β2^t)"
    assert lines["r"] == "r = √((ρ−4)(ρ−2)ρ∞ / ((ρ∞−4)(ρ∞−2)ρ))"
    assert lines["w"] == "w ← w − η·(r·m̂ / (√v̂ + ε) where ρ > 5, else m̂)"
    lines = wording.sheet(Variant(rectified="5, at rest"))
    assert lines["w"] == "w ← w − η·(r·m̂ / (√v̂ + ε) where ρ > 5, else 0)"
