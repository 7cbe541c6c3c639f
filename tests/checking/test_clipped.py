"""``adamas check`` on optimizers that clip updates, as StableAdamW does."""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from adamas.checking import wording
from adamas.checking.examination import diagnose
from adamas.checking.variants import Variant, is_valid, rule_nearest
from tests.support.planted import Planted

WORDS = "updates clipped at 1 (StableAdamW)"


class Clipped(Planted):
    """StableAdamW without decay, as its algorithm 2 is written."""

    def _update(self, g, m, v, w):
        root = np.sqrt(v / (1.0 - self.b2**self.t))
        size = np.sqrt(np.mean(np.square(g / np.maximum(root, self.eps))))
        return super()._update(g, m, v, w) / max(1.0, size)


def test_clipping_as_in_its_paper_is_named():
    found = diagnose(Clipped).fit
    assert found.variant == Variant(clipped="above 1")
    assert found.rivals == ()
    assert WORDS in wording.words(found.variant)


def test_decay_is_clipped_with_the_update():
    found = diagnose("adamas:AdamW", clip_update=1.0).fit
    assert found.variant == Variant(clipped="above 1", decay="decoupled")
    assert found.rivals == ()


def test_options_that_torch_classes_name_by_annotation_can_be_set():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = diagnose("adamas.torch:AdamW", clip_update=1.0, decay="cautious").fit
    assert found.variant == Variant(clipped="above 1", decay="cautious")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subject", "options", "said"),
    [
        ("RAdam", {}, f"RAdam (rectified above ρ = 5), paper, ε outside the root, {WORDS}"),
        ("Adam", {"amsgrad": True}, f"corrected), paper, ε outside the root, {WORDS}"),
        ("Adam", {"eps_place": "uncorrected"}, f"efficient form), {WORDS}"),
        ("Adam", {"eps_place": "inside"}, f"ε inside the root; else paper, {WORDS}"),
        ("AdamW", {"decay": "cautious"}, f"{WORDS}, cautious decay"),
        ("RMSProp", {}, f"ε outside the root, {WORDS}"),
    ],
)
def test_what_else_is_done_is_named_beside(subject, options, said):
    assert said in adamas.check(f"adamas:{subject}", clip_update=1.0, **options).sentence


def test_forms_without_anything_to_clip_are_left_out():
    for change in (
        {"square": "absent"},
        {"square": "norm"},
        {"root": False},
        {"memory": "nothing"},
    ):
        assert not is_valid(Variant(clipped="above 1", **change))
    assert is_valid(Variant(clipped="above 1", epsilon="inside"))


def test_the_nearest_faithful_form_clips_too():
    assert rule_nearest(Variant(clipped="above 1", mean="sum")) == Variant(clipped="above 1")


def test_the_formula_shows_what_is_divided_by():
    lines = wording.sheet(Variant(clipped="above 1", decay="decoupled"))
    assert lines["RMS"] == "RMS = √mean((g / max(√v̂, ε))²)   (of each array)"
    rate = "(η/max(1, RMS))"
    assert lines["w"] == f"w ← w − {rate}·m̂ / (√v̂ + ε) − {rate}·λ·w"
