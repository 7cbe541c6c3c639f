"""Signatures that people have: the right Adam is told right in each, and a wrong one by name."""

from __future__ import annotations

from functools import cache

import pytest

import adamas
from tests.support.signatures import (
    FORMS,
    MISTAKES,
    autograd,
    course,
    course_with_all_or_nothing,
    descent,
    fed_whole,
    subtracted,
    triple,
)

pytest.importorskip("jax")

IDS = [form.__name__ if form.__name__ != "made" else f"object{i}" for i, form in enumerate(FORMS)]
EVERY = pytest.mark.parametrize("form", FORMS, ids=IDS)


@cache
def right(form):
    """The report on the right Adam in a form."""
    return adamas.check(form())


@pytest.mark.quick_cases(3)
@EVERY
def test_the_right_one_is_told_right_and_what_it_was_taken_for(form):
    report = right(form)
    assert report.convention == FORMS[form]
    assert report.faithful, report
    assert report.sentence.startswith("paper, ε outside the root, ")
    assert report.rivals == ()
    assert f"called as  {FORMS[form]}"[:60] in str(report)


#: Every mistake in the first form; in the others one of the formula, and those that make NaN where
#: parameters are hard to put back.
PLANTED = [
    *((course, mistake) for mistake in MISTAKES),
    *((form, "no exponent") for form in FORMS if form is not course),
    *((form, "t starts at 0") for form in (fed_whole, autograd, descent, triple, subtracted)),
    *((form, "not squared") for form in (autograd, triple)),
]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("form", "mistake"), PLANTED)
def test_the_wrong_one_is_told_by_name(form, mistake):
    report = adamas.check(form(mistake))
    assert not report.faithful
    assert report.convention == FORMS[form]
    assert report.deviations[0] == MISTAKES[mistake], report


def left(report):
    found = [each for each in report.remarks if each.startswith("left at their defaults: ")]
    return [each.partition(": ")[2] for each in found]


def test_arguments_that_were_left_alone_are_told():
    assert left(right(autograd)) == ["callback"]
    assert left(right(course)) == []
    assert left(right(course_with_all_or_nothing)) == ["verbose"]
    assert left(adamas.check(course_with_all_or_nothing(), verbose=True)) == []
    assert left(right(triple)) == []


def test_settings_of_a_dict_that_must_be_whole_are_found_out():
    report = right(course_with_all_or_nothing)
    assert (
        "cannot be set, and so taken as it is found: lr = 0.001, β1 = 0.9, β2 = 0.999, ε = 1e-08"
        in report.remarks
    )


@pytest.mark.slow
def test_jaxs_own_triple_is_checked():
    report = adamas.check("jax.example_libraries.optimizers:adam")
    assert report.convention == FORMS[triple]
    assert report.faithful, report


def test_a_dict_that_outlives_its_run_is_noticed():
    plain = course()

    def adam(w, dw, config={}):  # noqa: B006 - the mistake
        return plain(w, dw, config)

    assert adamas.check(adam).sentence.startswith("state outlives its optimizer: ")
