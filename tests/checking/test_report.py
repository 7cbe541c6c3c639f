"""What a report says and measures, and what the command line makes of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

import adamas
from adamas.checking import Report, distances, probes, variants, wording
from adamas.checking.conventions import detect
from adamas.checking.examination import diagnose
from adamas.checking.observation import observe
from adamas.checking.subjects import find
from adamas.checking.variants import Variant
from adamas.cli import main
from tests.support import ways
from tests.support.cases import ROOT
from tests.support.planted import Planted, planted


@pytest.fixture(scope="module")
def right():
    return adamas.check(planted())


@pytest.fixture(scope="module")
def wrong():
    return adamas.check(planted("no exponent", "eps inside"))


# ── the sentence and the rest ──────────────────────────────────────────────────────────────────


def test_a_faithful_adam_is_told_in_one_sentence_with_its_distance(right):
    assert right.faithful
    assert right.deviations == right.rivals == right.formula == ()
    assert right.miss is None
    worst = right.distances[0].worst
    assert right.sentence == f"paper, ε outside the root, L2 weight decay, {worst:.1f} ulp"


def test_a_wrong_adam_is_told_with_what_differs_and_by_how_much(wrong):
    assert not wrong.faithful
    assert wrong.deviations == (
        "no exponent t in the bias correction (agrees at step 1 only)",
        "ε inside the root",
    )
    assert wrong.sentence.startswith("; ".join(wrong.deviations) + "; else L2 weight decay, ")
    assert wrong.sentence.endswith(" ulp from that")
    assert wrong.formula == (
        ("m̂ = m / (1−β1)", "m̂ = m / (1−β1^t)"),
        ("v̂ = v / (1−β2)", "v̂ = v / (1−β2^t)"),
        ("w ← w − η·m̂ / √(v̂ + ε)", "w ← w − η·m̂ / (√v̂ + ε)"),
    )
    assert wrong.miss is not None
    assert 0.5 < wrong.miss.share <= 1.0


def test_the_text_has_all_of_it_the_sentence_first(wrong):
    text = str(wrong)
    lines = text.splitlines()
    assert " ".join(lines[:2]).strip() == wrong.sentence
    assert max(map(len, lines)) <= 80
    for word in ("subject", "called as", "formula", "the rule", "misses", "distance", "cost"):
        assert any(line.startswith(word) for line in lines), word
    assert sum(line.startswith("edge") for line in lines) == len(wrong.edges) == 10


def test_what_a_mistake_misses_is_its_distance_from_the_rule():
    """Without a correction the first update is (1-β1)/√(1-β2) of the rule's: at β1 = 0.9 and
    β2 = 0.999, 3.16 times as much; the miss is told as a share of the larger of the two."""
    report = adamas.check(planted("no correction"))
    assert report.miss is not None
    assert report.miss.share >= 1 - np.sqrt(1 - 0.999) / (1 - 0.9)


def test_the_formula_of_the_rule_is_the_papers():
    assert list(wording.sheet(Variant(decay="ignored")).values()) == [
        "m ← β1·m + (1−β1)·g",
        "m̂ = m / (1−β1^t)",
        "v ← β2·v + (1−β2)·g²",
        "v̂ = v / (1−β2^t)",
        "w ← w − η·m̂ / (√v̂ + ε)",
    ]


def test_every_choice_that_differs_from_the_rule_has_its_words_and_its_formula():
    constants = variants.Constants(
        frozenset({"lr", "beta1", "beta2", "eps", "weight_decay"}), 0.9, 0.999, 1e-8, True
    )
    told: dict[object, Variant] = {}
    changes = [c for values in variants.axes(constants).values() for c in values]
    changes += [{"decay": decay} for decay in variants.DECAYS[1:]]
    for change in changes:
        variant = Variant().but(**change)
        if variant.lr_fixed is not None:
            variant = variant.but(lr_fixed=0.5)
        if not variants.is_valid(variant):
            continue
        words = wording.words(variant)
        assert words not in told, (variant, told.get(words))
        told[words] = variant
        rounds = {"float32", "storage"} & set(change)
        swaps = {"beta1_fixed", "beta2_fixed"} & set(change)
        if not rounds and not swaps and variant.shared != "t":
            assert wording.sheet(variant) != wording.sheet(Variant()), variant
    assert len(told) > 60


def test_names_that_promise_decoupled_decay_are_held_to_it():
    subject = type("MyAdamW", (Planted,), {"__module__": "planted"})
    report = adamas.check(subject)
    assert report.deviations == ("L2 instead of decoupled weight decay, which the name promises",)
    assert ("w ← w − η·m̂ / (√v̂ + ε)", "w ← w − η·m̂ / (√v̂ + ε) − η·λ·w") in report.formula


class IgnoresFlags(Planted):
    def __init__(self, params, amsgrad=False, nesterov=False, maximize=False, **settings):
        super().__init__(params, **settings)


def test_flags_that_are_given_in_vain_are_named():
    report = adamas.check(IgnoresFlags, amsgrad=True, nesterov=True, maximize=True)
    assert report.deviations == (
        "maximize is given, but it descends",
        "amsgrad is given, but no largest square is kept",
        "nesterov is given, but has no effect",
    )


def test_a_gradient_that_is_changed_in_place_is_named():
    report = adamas.check(planted("gradient changed in place"))
    assert report.deviations == ("the gradient is changed in place",)
    assert report.miss is None
    report = adamas.check(planted("gradient changed in place", "eps inside"))
    assert report.deviations == ("ε inside the root", "the gradient is changed in place")


def test_a_scheduler_without_effect_is_named():
    import torch

    class Deaf(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                group["lr"] = self.defaults["lr"]
            return super().step(closure)

    report = adamas.check(Deaf)
    assert report.deviations == (
        "a learning rate that changes on the way (a scheduler's) has no effect",
    )


def test_state_in_bfloat16_is_named_with_what_it_costs():
    report = adamas.check(planted("m and v in bfloat16"))
    (told,) = report.deviations
    assert told.startswith("m and v in bfloat16: updates are off by up to 0.")


def test_arrays_that_must_be_of_one_shape_are_remarked_on():
    report = adamas.check(planted("state shared"))
    assert "arrays of different shapes cannot be stepped together" in report.remarks
    assert report.deviations == ("parameters share m and v",)


def test_forms_that_cannot_be_told_apart_are_owned_up_to():
    """Without a schedule, a decay by λ and one by λ·η/η_max are one."""

    def step(params, grads, state, weight_decay=0.0):
        p, (m, v, t) = params, state or (0.0, 0.0, 0)
        new, m, v = ways.one_step(p, grads, m, v, t + 1, 0.001, 0.9, 0.999, 1e-8)
        return new - weight_decay * p, (m, v, t + 1)

    report = adamas.check(step)
    assert "weight decay without the learning rate" in report.deviations
    assert any("decoupled weight decay" in rival for rival in report.rivals)


# ── distances ──────────────────────────────────────────────────────────────────────────────────


def test_a_step_that_is_rounded_once_is_half_a_unit_away_at_most():
    """Computed in float64 and rounded to float32 once: half a unit, and the little that float64
    leaves: 2^-29 of a unit for each of its roundings, of which there are less than 2^9."""

    def once(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        m, v, t = state or (0.0, 0.0, 0)
        p, g = params.astype(np.float64), grads.astype(np.float64)
        p, m, v = ways.one_step(p, g, m, v, t + 1, lr, beta1, beta2, eps)
        return p.astype(params.dtype), (m, v, t + 1)

    for each in adamas.check(once).distances:
        if each.dtype == "float32":
            assert 0.4 < each.worst <= 0.5 + 2.0**-20
            assert 0.1 < each.median < 0.4


def test_the_distance_is_that_of_single_steps_and_counts_in_the_unit_of_the_parameter():
    convention = detect(find(planted(), {}))
    run = observe(convention, probes.long(2, convention.default), np.float32)
    true = distances.distance(run, Variant())
    after = run.after.copy()
    after[7, 1, 2] += 64 * np.spacing(np.abs(after[7, 1, 2]).astype(np.float32))
    moved = distances.distance(dataclasses.replace(run, after=after), Variant())
    assert true.worst < 1.0
    assert 63.0 < moved.worst < 65.0
    assert moved.at_step == 8


def test_adamas_is_two_units_away_at_most_and_four_in_float64():
    """Its bits are the same everywhere, so this is a fact about it and no measurement."""
    worst = {(d.dtype, d.run): d.worst for d in adamas.check("adamas:AdamW").distances}
    assert worst["float32", "usual"] < 2.0
    assert worst["float32", "long"] < 0.6
    assert worst["float64", "usual"] < 4.0


# ── edges and cost ─────────────────────────────────────────────────────────────────────────────


def edges_of(report):
    return {edge.name: edge.happens for edge in report.edges}


def test_edges_tell_what_happens(right):
    edges = edges_of(right)
    assert edges["zero gradient"] == "the parameter stays"
    assert edges["zero gradient, ε = 0"] == "the parameter becomes NaN"
    assert edges["g² underflows, ε = 0"] == "the parameter becomes -inf"
    assert edges["g² overflows"] == "no step, and none ever after"
    assert edges["NaN in the gradient"] == "that element is lost for good, others are not"
    assert edges["0-dim array"] == edges["empty array"] == "works"
    assert edges["array not contiguous"] == "works, with the same bits"
    # In exact arithmetic g / (|g| + ε) · lr = 1e-40 / 1e-8 · 1e-3.
    assert edges["subnormal gradient"].endswith("where that of exact arithmetic is 1.0e-35")


def test_edges_of_adamas_do_no_harm():
    report = adamas.check("adamas:Adam", on_nonfinite="skip")
    edges = edges_of(report)
    assert edges["zero gradient, ε = 0"] == "the parameter stays"
    assert edges["NaN in the gradient"] == edges["infinity in it"] == "the step is left out"
    assert [edge.name for edge in report.edges if not edge.harmless] == ["g² overflows"]


def test_edges_name_what_is_raised_and_who_is_lost():
    edges = edges_of(adamas.check("adamas:Adam", on_nonfinite="raise"))
    assert edges["NaN in the gradient"].startswith("FloatingPointError: ")
    edges = edges_of(adamas.check(planted("norm")))
    assert edges["NaN in the gradient"] == "all elements are lost"


def test_a_step_costs_something(right):
    assert right.cost is not None
    assert 0 < right.cost.small < right.cost.large
    assert right.cost.elements > 128


def test_a_subject_that_refuses_large_arrays_is_told_all_the_same():
    class Small(Planted):
        def __init__(self, params, **settings):
            if params[0].size > 1000:
                raise MemoryError("too large")
            super().__init__(params, **settings)

    report = adamas.check(Small)
    assert report.faithful
    assert report.cost is not None
    assert report.cost.elements == 128
    assert report.remarks[-1] == (
        "an array of 8,192 elements cannot be stepped: quantized state, which small arrays may "
        "not have, was not looked for"
    )


# ── the command line ───────────────────────────────────────────────────────────────────────────


def run(*arguments):
    return CliRunner().invoke(main, ["check", *map(str, arguments)])


def test_the_guide_shows_what_the_command_prints():
    guide = (ROOT / "docs" / "guides" / "check.md").read_text("utf-8")
    shown = guide.split("```text\n")[1].split("…")[0].splitlines()
    printed = run("adamas:Adam", "--set", "bias_correction=first-step").output.splitlines()
    assert printed[: len(shown)] == shown


def test_the_exit_code_is_the_verdict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "support"))
    done = run("adamas:AdamW")
    assert done.exit_code == 0, done.output
    assert done.output.startswith("paper, ε outside the root, decoupled weight decay, ")
    done = run("planted:Planted", "--set", "betas=(0.5, 0.75)")
    assert done.exit_code == 0, done.output
    done = run("adamas:Adam", "--set", "bias_correction=first-step", "--json", "report.json")
    assert done.exit_code == 1
    assert done.output.startswith("no exponent t in the bias correction (agrees at step 1 only)")
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["sentence"] in " ".join(done.output.split())
    assert set(report) == {field.name for field in dataclasses.fields(Report)}
    assert report["distances"][0]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Nothing to check. Give a subject, for example torch.optim:Adam, or --vectors"),
        (
            ["--set", "a=1"],
            "--set, --all and --json go with a subject. Give one, or leave them out.",
        ),
        (["Adam"], "'Adam' is neither module:Class nor path/to/file.py:Class."),
        (["adamas:Adam", "--set", "amsgrad"], "--set was given 'amsgrad', but it must be name="),
        (["adamas:Adam", "--set", "amsgrad=3"], "amsgrad is 3, but it must be True or False."),
        (
            ["adamas:Adam", "--json", "no/such/folder.json"],
            "directory). Choose another with --json",
        ),
    ],
)
def test_what_cannot_be_run_has_exit_code_2_and_no_verdict(arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())


def test_without_mpmath_the_way_to_it_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mpmath", None)
    done = run("adamas:Adam")
    assert done.exit_code == 2
    assert 'adamas.check needs mpmath. Install it with: pip install "adamas[cli]"' in done.output


def test_diagnosing_takes_no_mpmath(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mpmath", None)
    assert diagnose(planted()).fit.variant == Variant()
