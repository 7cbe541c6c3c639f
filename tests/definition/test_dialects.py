"""Dialects: each is what the library or paper that it is named after computes."""

from __future__ import annotations

import re

import numpy as np
import pytest

import adamas
from benchmarks import dialects
from tests.support.cases import ROOT

PAGE = ROOT / "docs" / "names.md"


def bound(title):
    """How far two runs of one formula may end from each other by rounding, in learning rates.

    A running mean after t steps has seen 3t roundings, each relative to the mean of magnitudes;
    that mean over the root is at most C = 7.27 (Cauchy-Schwarz), and the root halves what v has.
    So an update is off by (3t + 3t / 2 + 16) · C units of 2^-23 at most. Keras takes the powers of
    float32's β: 1 - β2^t is off by 2^-24 / (1 - β2), relative to itself. Every step rounds the
    parameter, twice with weight decay.
    """
    steps, unit, c = dialects.STEPS, 2.0**-23, 7.27
    update = (4.5 * steps + 16) * c * unit
    if title.startswith("keras"):
        update += c * 2.0**-24 / (1 - 0.999)
    largest = np.abs(dialects.drawn()[0]).max() + steps * dialects.LR * c
    return float(steps * (update + 2 * unit * largest / dialects.LR))


@pytest.mark.parametrize("number", range(14))
def test_a_dialect_is_what_the_library_computes(number):
    assert len(dialects.PAIRS) == 14
    title, own, other = dialects.PAIRS[number]
    pytest.importorskip(title.partition(".")[0])
    assert dialects.distance(own, other) <= bound(title), title


@pytest.mark.parametrize(
    ("method", "one", "other"),
    [
        ("Adam", "torch", "keras"),
        ("Adam", "torch", "note"),
        ("AdamW", "torch", "optax"),
        ("AdamW", "torch", "keras"),
        ("RMSProp", "torch", "optax"),
        ("RMSProp", "optax", "keras"),
        ("RMSProp", "optax", "paper"),
    ],
)
def test_dialects_that_differ_end_further_apart_than_rounding(method, one, other):
    runs = [dialects.own(method, dialect) for dialect in (one, other)]
    assert dialects.distance(*runs) > bound("keras" if "keras" in (one, other) else "")


def test_the_page_shows_the_distances_of_these_pairs():
    page = PAGE.read_text("utf-8")
    for title, *_ in dialects.PAIRS:
        (shown,) = re.findall(rf"^\| {re.escape(title)} \| (\S+) \|$", page, re.MULTILINE)
        assert float(shown) <= bound(title), title


def test_the_paper_and_adamas_own_dialect_are_one_in_adam():
    start, gradients = dialects.drawn()
    ends = [dialects.own("Adam", name)(start, gradients) for name in ("paper", None, "torch")]
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


def test_the_papers_amsgrad_has_no_bias_correction():
    p = np.ones(3)
    assert adamas.Adam(p, dialect="paper", amsgrad=True).groups[0].options.bias_correction == "none"
    assert adamas.Adam(p, dialect="paper").groups[0].options.bias_correction == "paper"


def test_what_is_given_stands():
    optimizer = adamas.Adam(
        np.ones(2), 0.5, eps=1e-3, dialect="keras", eps_place="corrected", bias_correction="none"
    )
    options = optimizer.groups[0].options
    assert (options.lr, options.eps, options.eps_place) == (0.5, 1e-3, "corrected")
    assert options.bias_correction == "none"
    assert adamas.RMSProp(np.ones(2), 0.1, eps=1e-3, dialect="optax").groups[0].options.eps == 1e-3


REFUSED = [
    (
        lambda p: adamas.Adam(p, dialect="jax"),
        'dialect is \'jax\', but it must be one of "torch", "optax", "keras", "paper", "note", or',
    ),
    (
        lambda p: adamas.Adam(p, dialect="optax"),
        'lr is missing: dialect "optax" has no default for it. Give one.',
    ),
    (
        lambda p: adamas.AdamW(p, dialect="paper"),
        'weight_decay is missing: dialect "paper" has no default for it. Give one.',
    ),
    (
        lambda p: adamas.Adam(p, 0.1, dialect="optax", amsgrad=True),
        'dialect is "optax" and amsgrad is True, but optax\'s amsgrad takes the largest of the',
    ),
    (
        lambda p: adamas.Adam(p, dialect="torch", nesterov=True),
        'dialect is "torch" and nesterov is True, but torch\'s NAdam lets β1 grow',
    ),
    (
        lambda p: adamas.AdamW(p, dialect="keras", nesterov=True),
        'dialect is "keras" and nesterov is True, but Keras\' Nadam lets β1 grow',
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_a_dialect_does_not_say_is_asked_for(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(np.ones(3))
