"""Sums are exact, and so have one result in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas.digits import norm as norm_of_row
from adamas.statistics import norm, row_of


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("size", [0, 1, 15, 1023, 1025, 50_000])
def test_a_norm_is_the_root_of_fsum_over_squares(dtype, size):
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    assert norm([x]) == math.sqrt(math.fsum(each * each for each in x.tolist()))


def test_a_norm_does_not_depend_on_shape_layout_or_the_order_of_tensors():
    random = np.random.default_rng(1)
    tensors = [random.standard_normal((30, 7, 11)), random.standard_normal(4097)]
    expected = norm(tensors)
    assert norm(tensors[::-1]) == expected
    assert norm([np.asfortranarray(tensors[0]), tensors[1].reshape(17, 241)]) == expected


def test_a_norm_does_not_depend_on_cuts():
    x = np.random.default_rng(2).standard_normal(10_245).astype(np.float32)
    for cuts in ([1024], [1, 2, 3], [3001, 3002, 9999]):
        parts = np.split(x, cuts)
        assert norm(parts) == norm([x])
        assert norm_of_row(sum(row_of([part]) for part in parts)) == norm([x])


def test_another_order_of_addition_would_give_other_bits():
    """Else the tests above could not fail."""
    x = np.random.default_rng(3).standard_normal(5000)
    assert norm([x]) != math.sqrt(sum(value * value for value in x.tolist()))


@pytest.mark.parametrize("size", [2.0**800, 2.0**-800, 2.0**1000, 2.0**-1050])
def test_a_norm_of_float64_neither_overflows_nor_underflows(size):
    assert norm([np.array([3.0, 4.0]) * size]) == 5.0 * size


def test_a_norm_says_what_is_not_finite():
    assert norm([np.array([1.0, np.inf])]) == math.inf
    assert math.isnan(norm([np.array([1.0, np.nan, np.inf])]))
    assert norm([]) == 0.0
    assert norm([np.zeros(0, np.float32)]) == 0.0


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=200))
@settings(max_examples=300, deadline=None)
def test_a_norm_of_any_numbers_is_the_root_of_fsum_over_squares(numbers):
    assert norm([np.array(numbers, np.float32)]) == math.sqrt(math.fsum(x * x for x in numbers))
