"""The quick cases of a test show every value of every parameter, as far as their number goes."""

from __future__ import annotations

import itertools

import pytest

from tests.support.quick_cases import quick_cases


def product(*counts):
    """The cases of nested parameters with so many values, the last of which varies most quickly."""
    every = itertools.product(*map(range, counts))
    return [frozenset(enumerate(each)) for each in every]


@pytest.mark.parametrize("counts", [(9, 2), (2, 9), (4, 3), (6, 5), (3, 4, 2), (7,), (1,)], ids=str)
def test_as_many_cases_as_one_parameter_has_values_show_all_values_of_all(counts):
    cases = product(*counts)
    chosen = quick_cases(cases, max(counts))
    assert len(set(chosen)) == max(counts)
    assert frozenset.union(*(cases[i] for i in chosen)) == frozenset.union(*cases)


def test_cases_that_have_no_value_in_common_are_spread_evenly():
    assert quick_cases(product(9), 3) == [0, 4, 8]
    assert quick_cases(product(51), 8) == [0, 7, 14, 21, 29, 36, 43, 50]


def test_one_quick_case_is_the_first():
    assert quick_cases(product(4), 1) == [0]


@pytest.mark.parametrize("count", [5, 6, 100])
def test_no_case_is_quick_twice_where_more_are_asked_for_than_there_are(count):
    assert quick_cases(product(5), count) == [0, 1, 2, 3, 4]
