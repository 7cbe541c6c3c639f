"""Sums that Triton's kernels add are exact: those of ``math.fsum``."""

from __future__ import annotations

import functools
import math
import operator
import random as plain_random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas.engines.triton import sums
from adamas.engines.triton.rule import OPTIONS
from tests.support.triton_plans import DEVICE


@triton.jit
def write_sum(rows, ranges, found):
    """Write the sum of a range of rows."""
    place = tl.program_id(0)
    first, last = tl.load(ranges + place), tl.load(ranges + place + 1)
    tl.store(found + place, sums.rounded(sums.added_rows(rows, first, last, 0, 1, 8)))


def exact_sums(lists, row_size=40):
    """The sums of some lists of numbers, each of which makes a row of every ``row_size``."""
    starts, firsts, total = [], [0], 0
    for each in lists:
        starts += range(total, total + len(each), row_size)
        total += len(each)
        firsts.append(len(starts))
    flat = np.array([x for each in lists for x in each] or [0.0])
    values = torch.from_numpy(flat).to(DEVICE)
    counts = torch.zeros(len(flat), dtype=torch.int64, device=DEVICE)
    ranges = torch.tensor([*starts, total], dtype=torch.int64, device=DEVICE)
    row_ranges = torch.tensor(firsts, dtype=torch.int32, device=DEVICE)
    rows = torch.zeros((max(len(starts), 1), sums.ROW), dtype=torch.int64, device=DEVICE)
    found = torch.zeros(len(lists), dtype=torch.float64, device=DEVICE)
    with np.errstate(all="ignore"):
        if starts:
            sums.collect[(len(starts), 1)](
                values, counts, ranges, rows, len(flat),
                HAS_COUNTS=False, BLOCK=32, **OPTIONS,
            )  # fmt: skip
        write_sum[(len(lists),)](rows, row_ranges, found, **OPTIONS)
    return found.tolist()


def fsum(numbers):
    try:
        return math.fsum(numbers)
    except OverflowError:
        return math.inf


NONNEGATIVE = st.floats(0, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(NONNEGATIVE, max_size=100), min_size=4, max_size=8))
def test_the_exact_sum_is_fsum(lists):
    assert exact_sums(lists) == [fsum(each) for each in lists]


LEAST, MOST = 5e-324, float(np.finfo(np.float64).max)


def hard_lists():
    half = 2.0**-53
    for high in (1.0, 1.0 + 2.0**-52, 2.0**-1022, 2.0**-1022 + LEAST, 2.0**970, 2.0**1023):
        for low in (half / 2, half, 1.5 * half, half - half * 2.0**-52):
            for tiny in ([], [LEAST], [half * 2.0**-60] * 3):
                yield [high, high * low, *tiny]
    # Each digit is all ones, and the least addition carries through all of them.
    ones = [math.ldexp(2.0**53 - 1, 53 * k - 1074) for k in range(37)]
    yield from (ones, [*ones, LEAST], [*ones, LEAST, LEAST], ones * 50)
    yield from ([LEAST] * 100, [2.0**-1022 - LEAST, LEAST], [2.0**-1022 - LEAST] * 3)
    ulp = 2.0**971
    yield from ([MOST], [MOST, ulp / 4], [MOST, ulp / 2], [MOST, ulp / 2 * (1 - 2.0**-53), LEAST])
    yield from ([MOST / 2] * 2, [MOST / 2] * 3, [2.0**1023] * 2, [2.0**1000] * 2000)
    yield from ([], [0.0], [0.0] * 50, [LEAST], [math.inf], [1.0, math.inf, MOST, MOST])
    shuffled = plain_random.Random(4)
    many = [shuffled.random() * 2.0 ** shuffled.randint(-1070, 1000) for _ in range(2000)]
    yield from (many, many[::-1], sorted(many))


@pytest.mark.slow
def test_the_exact_sum_of_hard_numbers_is_fsum():
    lists = list(hard_lists())
    found = exact_sums(lists)
    for each, one in zip(lists, found, strict=True):
        assert one == fsum(each), each[:5]
    assert {math.inf, 0.0, MOST, LEAST, 2.0**-1022} <= set(found)
    # Adding one after another would give something else.
    plain = [functools.reduce(operator.add, each, 0.0) for each in lists]
    assert sum(a != b for a, b in zip(plain, found, strict=True)) > 5


def test_the_exact_sum_of_nan_is_nan_whatever_else_is_added():
    nan = math.nan
    minus = math.copysign(nan, -1.0)  # as processors of the x86 family make it
    lists = [[nan], [minus], [1.0, nan, math.inf], [math.inf, minus], [MOST, MOST, nan]]
    assert all(map(math.isnan, exact_sums(lists)))
