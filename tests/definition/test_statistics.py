"""Sums have one order of addition, and so one result."""

from __future__ import annotations

import math
import random as plain_random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas import _native
from adamas.statistics import TILE, norm, sum_of_squares, tile_sums


def literal_tile_sums(x):
    """The contract, element by element."""
    flat = [float(value) for value in np.asarray(x).reshape(-1)]
    sums = []
    for first in range(0, len(flat), 1024):
        lanes = [0.0] * 16
        for i, value in enumerate(flat[first : first + 1024]):
            lanes[i % 16] = lanes[i % 16] + value * value
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
        sums.append(lanes[0])
    return sums


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 1023, 1024, 1025, 5000])
def test_tile_sums_are_those_of_the_contract(dtype, size):
    x = (np.random.default_rng(size).standard_normal(size) * 1e3).astype(dtype)
    assert tile_sums(x).tolist() == literal_tile_sums(x)


def test_a_norm_does_not_depend_on_shape_layout_or_the_order_of_tensors():
    random = np.random.default_rng(1)
    tensors = [random.standard_normal((30, 7, 11)), random.standard_normal(4097)]
    expected = norm(tensors)
    assert norm(tensors[::-1]) == expected
    assert norm([np.asfortranarray(tensors[0]), tensors[1].reshape(17, 241)]) == expected


def test_a_norm_does_not_depend_on_cuts_at_the_borders_of_tiles():
    x = np.random.default_rng(2).standard_normal(10 * TILE + 5).astype(np.float32)
    for cuts in ([TILE], [3 * TILE, 4 * TILE], [5 * TILE, 9 * TILE, 10 * TILE]):
        assert norm(np.split(x, cuts)) == norm([x])


def test_another_order_of_addition_would_give_other_bits():
    """Else the tests above could not fail."""
    x = np.random.default_rng(3).standard_normal(5000)
    assert sum_of_squares([x]) != sum(value * value for value in x.tolist())


@pytest.mark.parametrize("size", [2.0**800, 2.0**-800, 2.0**1000, 2.0**-1050])
def test_a_norm_of_float64_neither_overflows_nor_underflows(size):
    assert norm([np.array([3.0, 4.0]) * size]) == 5.0 * size


def test_a_norm_says_what_is_not_finite():
    assert norm([np.array([1.0, np.inf])]) == math.inf
    assert math.isnan(norm([np.array([1.0, np.nan, np.inf])]))
    assert norm([]) == 0.0
    assert norm([np.zeros(0, np.float32)]) == 0.0


NUMBERS = st.floats(0, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@given(st.lists(NUMBERS, max_size=200))
@settings(max_examples=500, deadline=None)
def test_the_compiled_exact_sum_is_fsum(numbers):
    try:
        expected = math.fsum(numbers)
    except OverflowError:
        expected = math.inf
    assert _native.exact_sum(numbers) == expected


def test_the_compiled_exact_sum_rounds_ties_to_even_whatever_lies_below():
    for low in (2.0**-54, 2.0**-53, 1.5 * 2.0**-53):
        for tiny in (0.0, 5e-324):
            for high in (1.0, 1.0 + 2.0**-52):
                numbers = [high, low, tiny]
                assert _native.exact_sum(numbers) == math.fsum(numbers), numbers


def test_the_compiled_exact_sum_of_many_numbers_is_fsum_in_any_order():
    shuffled = plain_random.Random(4)
    numbers = [shuffled.random() * 2.0 ** shuffled.randint(-1000, 900) for _ in range(20000)]
    expected = math.fsum(numbers)
    for _ in range(3):
        shuffled.shuffle(numbers)
        assert _native.exact_sum(numbers) == expected


def test_the_compiled_exact_sum_passes_what_is_not_finite():
    assert _native.exact_sum([1.0, math.inf]) == math.inf
    assert math.isnan(_native.exact_sum([math.inf, math.nan, 1.0]))
    assert math.isnan(_native.exact_sum([math.nan, 1.0]))
