"""What adamas.torch does is what it did: digests of all aspects, seen from outside."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

pytest.importorskip("torch")

from tests.support.torch_cases import METHODS, cases, words
from tests.support.torch_digests import differences, digested, digested_by_two, kept
from tests.support.torch_refusals import KINDS, refusals
from tests.support.torch_routes import ROUTES
from tests.support.torch_trainings import ASPECTS

SLOW = pytest.mark.slow
HERE = [each for each in ROUTES if each != "processes" and (each != "triton" or find_spec(each))]


def failure(key: str, lines: list[str]) -> str:
    """Return what pytest is to say: which cases, and which aspects of them, have changed."""
    return "\n".join([f"{len(lines)} cases of {key} are not what they were:", *lines])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "route", [pytest.param(each, marks=SLOW) if each == "triton" else each for each in HERE]
)
@pytest.mark.parametrize("part", ["every twelfth", pytest.param("the others", marks=SLOW)])
def test_a_training_leaves_what_it_left(route, method, part):
    wanted = kept(f"{route} {method}")
    chosen = []
    for i, case in enumerate(cases(route, method)):
        if (i % 12 == 0) == (part == "every twelfth"):
            chosen.append(case)
        else:
            wanted.pop(words(route, case), None)
    lines = differences(wanted, digested(route, method, chosen))
    assert not lines, failure(f"{route} {method}", lines)


@pytest.mark.slow
def test_two_processes_leave_what_they_left(tmp_path):
    found = digested_by_two(tmp_path)
    lines = [
        f"{key}, {line}" for key, of_key in found.items() for line in differences(kept(key), of_key)
    ]
    assert not lines, failure("processes", lines)
    assert len(found) == len(METHODS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of sparse tensors
def test_bad_input_is_refused_in_the_same_words_and_changes_what_it_changed(kind):
    assert refusals(kind) == kept(f"refused {kind}")


def test_a_difference_says_which_aspect_of_which_case():
    before = {"as usual": ["x"] * len(ASPECTS), "gone": []}
    after = {"as usual": ["x", "y", *["x"] * (len(ASPECTS) - 2)], "new": []}
    assert differences(before, after) == [
        "as usual: state",
        "gone: is no case any more",
        "new: is a new case",
    ]


@pytest.mark.parametrize("route", ROUTES)
def test_cases_differ_in_their_words(route):
    for method in METHODS:
        named = [words(route, case) for case in cases(route, method)]
        assert len(named) == len(set(named)) > 3
