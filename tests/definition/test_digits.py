"""Exact sums of squares as digits, against rational arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from adamas import digits


def drawn(count, seed, dtype):
    """Return numbers of all magnitudes that a dtype has, subnormal ones too."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    lowest, highest = info.minexp - info.nmant, info.maxexp
    x = np.ldexp(rng.uniform(0.5, 1, count), rng.integers(lowest + 1, highest + 1, count))
    return (x * rng.choice([-1, 1], count)).astype(dtype)


def in_units(x):
    """Return the exact sum of squares in units of digit 0."""
    return sum(Fraction(float(each)) ** 2 for each in x) / Fraction(2) ** digits.LOWEST


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_digits_are_the_exact_sum(dtype):
    for seed in range(40):
        x = drawn(1 + 7 * seed, seed, dtype)
        assert digits.total(digits.of_squares(x)) == in_units(x)


def test_rows_of_parts_add_up_to_the_row_of_the_whole():
    x = drawn(5000, 0, np.float64)
    whole = digits.of_squares(x)
    for cut in (0, 1, 2047, 2048, 4999):
        rows = digits.of_squares(x[cut:]) + digits.of_squares(x[:cut])
        assert np.array_equal(digits.carried(rows), whole)
    assert np.array_equal(digits.of_squares(x.reshape(50, 100).T), whole)


def test_as_many_rows_as_are_promised_add_up():
    row = digits.of_squares(np.full(2048, np.finfo(np.float64).max))
    row[: digits.DIGITS - 1] = (1 << digits.BITS) - 1
    found = digits.total(digits.carried(row * 2**15))
    assert found == 2**15 * digits.total(row)


@pytest.mark.parametrize(
    ("x", "norm", "square"),
    [
        ([], 0, 0),
        ([3, -4], 5, 25),
        ([5e-324], 5e-324, 0),
        ([1.7e308], 1.7e308, math.inf),
        ([1.7e308, 1.7e308], math.inf, math.inf),
        ([1, math.inf], math.inf, math.inf),
        ([math.nan, math.inf], math.nan, math.nan),
        ([1.0, 2.0**-27, 2.0**-27], 1.0, 1.0),
    ],
)
def test_norm_and_sum_at_the_ends_of_the_range(x, norm, square):
    row = digits.of_squares(np.array(x, np.float64))
    assert [digits.norm(row), digits.sum_of_squares(row)] == pytest.approx(
        [norm, square], rel=0, abs=0, nan_ok=True
    )


def test_the_sum_is_rounded_as_rational_numbers_are():
    for seed in range(200):
        x = np.random.default_rng(seed).standard_normal(seed)
        row = digits.of_squares(x)
        exact = sum((Fraction(each) ** 2 for each in x.tolist()), Fraction(0))
        assert digits.sum_of_squares(row) == float(exact)
        assert digits.norm(row) == math.sqrt(float(exact))
        assert digits.nonfinite(row) == 0
