"""The native engine's sums of squares, against rational arithmetic and the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from adamas import _native, digits
from adamas.codecs import decode_bfloat16
from adamas.engines import native
from adamas.engines.native import row_of
from tests.support.cases import LARGE, MACHINES, each_machine

SIZES = [0, 1, 2, 15, 16, 17, 31, 33, 255, 1024, 2047, 2049, 4095, 4096, 4097, 9000]
#: Of the blocks of native/statistics.h.
BLOCK_BYTES = 16384
LIMITS = {np.float16: (-24, 15), np.float32: (-149, 127), np.float64: (-1074, 1023)}


def ordinary(rng, size, _low, high):
    return rng.standard_normal(size) * 2.0 ** rng.integers(-8, high - 3)


def of_all_magnitudes(rng, size, low, high):
    return np.ldexp(rng.uniform(1, 2, size), rng.integers(low, high, size))


def one_large_among_small(rng, size, low, high):
    x = np.ldexp(rng.uniform(1, 2, size), low + 3)
    x[rng.integers(size + 1) :][:1] = np.ldexp(1.0, high)
    return x


def mostly_zeros(rng, size, low, high):
    return of_all_magnitudes(rng, size, low, high) * (rng.uniform(size=size) < 0.1)


def all_the_largest(_rng, size, _low, high):
    return np.full(size, np.ldexp(1.0, high) * (2 - 2.0**-10))


def subnormal(rng, size, low, _high):
    return np.ldexp(rng.integers(-5, 6, size).astype(float), low)


def some_not_finite(rng, size, _low, high):
    x = ordinary(rng, size, 0, high)
    x[rng.uniform(size=size) < 0.01] = np.inf
    x[rng.uniform(size=size) < 0.01] = -np.inf
    x[rng.uniform(size=size) < 0.02] = np.nan
    return x


KINDS = [
    ordinary,
    of_all_magnitudes,
    one_large_among_small,
    mostly_zeros,
    all_the_largest,
    subnormal,
    some_not_finite,
]


def just_below_powers_of_2(rng, size, low, high):
    """Return two magnitudes whose squares need all their bits, as far apart as rounds reach."""
    apart = int(rng.choice([*range(12, 25), *range(34, 48)]))
    below = 1 - 2.0 ** -(24 if high < 1000 else 53)
    small = np.ldexp(below, int(rng.integers(low + 53, max(low + 54, high - apart))))
    return np.where(rng.uniform(size=size) < rng.choice([0.01, 0.5]), np.ldexp(small, apart), small)


def spread(rng, size, low, high):
    """Return numbers whose exponents lie so far apart, at a place of their own."""
    width = rng.integers(0, min(high - low, 90))
    at = rng.integers(low, high - width)
    x = np.ldexp(rng.uniform(1, 2, size), rng.integers(at, at + width + 1, size))
    return x * rng.choice([-1, 0, 1], size, p=[0.45, 0.1, 0.45])


def drawn(kind, rng, size, dtype):
    with np.errstate(over="ignore"):
        return kind(rng, size, *LIMITS[dtype]).astype(dtype)


def exact_total(x):
    """Return the sum of squares of finite numbers in units of digit 0, by whole numbers."""
    found = 0
    for numerator, denominator in map(float.as_integer_ratio, x.tolist()):
        found += numerator * numerator << -digits.LOWEST - 2 * (denominator.bit_length() - 1)
    return found


def assert_exact(x):
    row = row_of([x])
    finite = x[np.isfinite(x)]
    assert digits.total(row) == exact_total(finite)
    assert row[digits.INFINITE] == np.count_nonzero(np.isinf(x))
    assert row[digits.NAN] == np.count_nonzero(np.isnan(x))


def assert_carried(row):
    assert np.array_equal(digits.carried(row), row)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_every_machine_are_exact(kind, dtype):
    rng = np.random.default_rng(5)
    for size in SIZES:
        x = drawn(kind, rng, size, dtype)
        for _ in each_machine():
            assert_exact(x)
            assert_carried(row_of([x]))


@pytest.mark.parametrize("dtype", LIMITS)
def test_sums_of_blocks_of_any_spread_are_exact(dtype):
    rng = np.random.default_rng(6)
    for _ in range(300):
        x = drawn(spread, rng, int(rng.integers(1, 300)), dtype)
        for _ in each_machine():
            assert_exact(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_full_blocks_at_the_ends_of_a_round_are_exact(dtype):
    rng = np.random.default_rng(10)
    for _ in range(60):
        x = drawn(just_below_powers_of_2, rng, BLOCK_BYTES // np.dtype(dtype).itemsize, dtype)
        wanted = exact_total(x)
        for _ in each_machine():
            assert digits.total(row_of([x])) == wanted


def at_the_ends_of_units(rng, size, _low, _high):
    """Return numbers around what a block has room for, or a floor, after one of ones."""
    x = rng.uniform(1, 2, size) * 2.0 ** rng.integers(-26, 12)
    x[rng.integers(0, size, 2)] *= 2.0 ** rng.integers(-24, 24, 2)
    return x


def alternating_zeros(rng, size, _low, _high):
    return np.where(np.arange(size) % 2 == rng.integers(2), 0.0, rng.standard_normal(size))


def all_zero(_rng, size, _low, _high):
    return np.full(size, -0.0)


def in_blocks(rng, count, kinds, dtype):
    """Return whole blocks, each of a kind of its own, and a part of one."""
    size = BLOCK_BYTES // np.dtype(dtype).itemsize
    chosen = [kinds[i] for i in rng.integers(0, len(kinds), count)]
    drawn_blocks = [drawn(kind, rng, size, dtype) for kind in chosen]
    return np.concatenate(drawn_blocks)[: rng.integers(size * count - size, size * count + 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_of_blocks_unlike_those_before_them_are_exact(dtype):
    rng = np.random.default_rng(12)
    kinds = [*KINDS, spread, at_the_ends_of_units, alternating_zeros, all_zero]
    for _ in range(40):
        x = in_blocks(rng, 5, kinds, dtype)
        wanted = digits.of_squares(x)
        for _ in each_machine():
            assert np.array_equal(row_of([x]), wanted)


def test_sums_of_subnormal_numbers_do_not_depend_on_the_mode_of_the_thread():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    given = [drawn(subnormal, rng, 1000, dtype) for dtype in LIMITS]
    given.append(drawn(subnormal, rng, LARGE, np.float32))
    wanted = [digits.of_squares(x) for x in given]
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor has no mode that flushes subnormal numbers")
    try:
        for _ in each_machine():
            assert all(map(np.array_equal, [row_of([x]) for x in given], wanted))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMITS)
def test_sums_of_half_a_million_blocks_are_exact(dtype):
    rng = np.random.default_rng(7)
    blocks = 0
    for _ in each_machine():
        for kind in [spread, *KINDS[:6]]:
            whole = drawn(kind, rng, 9 * 8_000, dtype)
            for first in range(0, whole.size, 9):
                assert_exact(whole[first : first + rng.integers(1, 10)])
            blocks += 8_000
    assert 3 * blocks > 500_000 or len(MACHINES) < 3
    for _ in range(500):
        assert_exact(drawn(spread, rng, int(rng.integers(1000, 3000)), dtype))


@pytest.mark.slow
def test_sums_of_a_hundred_thousand_blocks_after_others_are_those_of_fsum():
    """Sums are rounded here: ``math.fsum`` has no digits."""
    rng = np.random.default_rng(13)
    size = BLOCK_BYTES // 4
    for round_number in range(100):
        scales = 2.0 ** rng.integers(-30, 30, (1000, 1))
        widths = rng.choice([0.5, 1, 6, 20], (1000, 1))
        x = (scales * 2.0 ** (widths * rng.standard_normal((1000, 64)))).astype(np.float32)
        # What lies between are zeros, so that each row of 64 stands in a block of its own.
        whole = np.zeros((1000, size), np.float32)
        whole[:, rng.permutation(size)[:64]] = x
        squares = x.astype(np.float64) ** 2
        wanted = math.fsum(squares.ravel().tolist())
        for _ in each_machine():
            assert digits.sum_of_squares(row_of([whole])) == wanted, round_number


def test_squares_of_bfloat16_are_those_of_its_values():
    codes = np.arange(1 << 16, dtype=np.uint16)
    values = decode_bfloat16(codes)
    for _ in each_machine():
        assert np.array_equal(row_of([codes]), digits.of_squares(values))


def test_squares_of_float16_are_those_of_its_values():
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for _ in each_machine():
        assert np.array_equal(row_of([x]), digits.of_squares(x))


@pytest.mark.parametrize("dtype", LIMITS)
def test_a_sum_depends_on_no_cut_no_order_and_no_stride(dtype):
    rng = np.random.default_rng(8)
    x = drawn(spread, rng, 5040, dtype)
    whole = row_of([x])
    for cuts in ([1], [17, 1025, 1026], [2520], list(range(0, 5040, 371))):
        assert np.array_equal(row_of(np.split(x, cuts)), whole)
    for _ in range(5):
        assert np.array_equal(row_of([rng.permutation(x)]), whole)
    wide = np.zeros((70, 144), dtype)
    wide[:, ::2] = x.reshape(70, 72)
    assert np.array_equal(row_of([wide[:, ::2]]), whole)
    assert np.array_equal(row_of([x.reshape(72, 70).T]), whole)


@pytest.mark.parametrize("dtype", LIMITS)
def test_a_large_sum_is_the_same_on_any_number_of_threads(dtype):
    x = drawn(ordinary, np.random.default_rng(9), LARGE, dtype)
    wanted = digits.of_squares(x)
    before = native.get_num_threads()
    try:
        for threads in (1, 2, 5):
            native.set_num_threads(threads)
            for _ in each_machine():
                assert np.array_equal(row_of([x]), wanted)
    finally:
        native.set_num_threads(before)


def test_squares_are_added_to_what_a_row_has():
    x, y = np.array([3.0, 1e300, np.inf]), np.array([np.nan, 1e-200], np.float64)
    row = digits.of_squares(x)
    _native.add_squares(y, row)
    assert np.array_equal(row, digits.of_squares(np.concatenate([x, y])))


@pytest.mark.parametrize(
    ("array", "row", "message"),
    [
        (np.zeros(3, np.int32), np.zeros(91, np.int64), "C-contiguous array of float32"),
        (np.zeros(6, np.float32)[::2], np.zeros(91, np.int64), "C-contiguous array of float32"),
        ("text", np.zeros(91, np.int64), "C-contiguous array of float32"),
        (np.zeros(3, np.float32), np.zeros(90, np.int64), "array of 91 int64"),
        (np.zeros(3, np.float32), np.zeros(91, np.uint64), "array of 91 int64"),
        (np.zeros(3, np.float32), np.zeros(182, np.int64)[::2], "array of 91 int64"),
    ],
)
def test_what_cannot_be_added_is_refused(array, row, message):
    with pytest.raises(ValueError, match=message):
        _native.add_squares(array, row)
    assert not row.any()
