"""Sums on the device, in the order of ``adamas.statistics``: the same bits as on the host.

Sums of tiles are added exactly: each float64 is an integer times 2^-1074, its digits are added to
those of a long number in base 2^32 (one int64 for each digit, so that the order does not matter
and nothing overflows), and the long number is rounded once, to nearest even. That is what
``math.fsum`` returns.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas.statistics import ENLARGE, SHRINK, SMALLEST_SUM

__all__ = [
    "LARGEST",
    "MOVED",
    "NONFINITE",
    "ROW",
    "add_row",
    "collect",
    "entry",
    "folded",
    "norm_of",
]

_SHRINK: tl.constexpr = tl.constexpr(SHRINK)
_ENLARGE: tl.constexpr = tl.constexpr(ENLARGE)
_SMALLEST_SUM: tl.constexpr = tl.constexpr(SMALLEST_SUM)

#: Entries of a row of partial sums: the digits, counts of NaN and infinity, and what is counted
#: besides.
ROW = 128
_ROW: tl.constexpr = tl.constexpr(ROW)
_DIGITS: tl.constexpr = tl.constexpr(68)
_NAN: tl.constexpr = tl.constexpr(68)
_INFINITE: tl.constexpr = tl.constexpr(69)
NONFINITE: tl.constexpr = tl.constexpr(70)
MOVED: tl.constexpr = tl.constexpr(71)
LARGEST: tl.constexpr = tl.constexpr(72)


@triton.jit
def scale_at(which: tl.constexpr):
    """Return the factor of sum number ``which``: 1, and two that keep float64 in its range."""
    if which == 0:
        return 1.0
    elif which == 1:
        return _SHRINK
    else:
        return _ENLARGE


@triton.jit
def add_row(lanes, x, which: tl.constexpr):
    """Return lanes of float64 with the squares of one more row of elements times a factor."""
    value = x.to(tl.float64)
    if which != 0:
        value = value * scale_at(which)
    return lanes + value * value


@triton.jit
def folded(lanes):
    """Return the sum of each tile: its 16 lanes folded in halves."""
    tiles: tl.constexpr = lanes.shape[0]
    eight = halved(lanes, tiles, 8)
    four = halved(eight, tiles, 4)
    two = halved(four, tiles, 2)
    return halved(two, tiles, 1).reshape(tiles)


@triton.jit
def halved(lanes, tiles: tl.constexpr, half: tl.constexpr):
    """Return lane i plus lane i + half."""
    low, high = tl.split(lanes.reshape(tiles, 2, half).permute(0, 2, 1))
    return low + high


@triton.jit(do_not_specialize=["tiles"])
def collect(sums, counts, ranges, rows, tiles, HAS_COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """Write a row of partial sums for a range of tiles; program axis 1 is the number of the sum.

    ``sums`` is float64 of shape (sums, tiles), ``counts`` int64 of shape (3, tiles): non-finite
    and moved elements, and the largest update's bits; without ``HAS_COUNTS`` the first only.
    ``ranges`` holds the first tile of each program and, last, the end; ``rows`` is int64.
    """
    group, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, last = tl.load(ranges + group), tl.load(ranges + group + 1)
    index = tl.arange(0, _ROW)
    total = tl.zeros((_ROW,), tl.int64)
    largest = tl.zeros((_ROW,), tl.int64)
    for start in range(first, last, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        mask = tile < last
        total += tl.sum(digits_of(tl.load(sums + which * tiles + tile, mask=mask, other=0.0)), 0)
        nonfinite = tl.sum(tl.load(counts + tile, mask=mask, other=0), 0)
        total += tl.where(index == NONFINITE, nonfinite, 0)
        if HAS_COUNTS:
            moved = tl.sum(tl.load(counts + tiles + tile, mask=mask, other=0), 0)
            total += tl.where(index == MOVED, moved, 0)
            most = tl.max(tl.load(counts + 2 * tiles + tile, mask=mask, other=0), 0)
            largest = tl.maximum(largest, tl.where(index == LARGEST, most, 0))
    tl.store(rows + (group * tl.num_programs(1) + which) * _ROW + index, total + largest)


@triton.jit
def digits_of(x):
    """Return float64 numbers, at least 0, as digits in base 2^32: shape (x, ROW)."""
    index = tl.arange(0, _ROW)[None, :]
    bits = x.to(tl.int64, bitcast=True)
    exponent = (bits >> 52) & 2047  # NaN may have a sign
    is_special = exponent == 2047
    mantissa = bits & ((1 << 52) - 1)
    is_nan = is_special & (mantissa != 0)
    mantissa = tl.where(exponent > 0, mantissa | (1 << 52), mantissa)
    mantissa = tl.where(is_special, 0, mantissa)
    place = tl.maximum(exponent, 1) - 1
    shift, digit = place & 31, (place >> 5)[:, None]
    low = low_word(mantissa) << shift
    high = (mantissa >> 32) << shift
    found = tl.where(index == digit, low_word(low)[:, None], 0)
    found += tl.where(index == digit + 1, ((low >> 32) + low_word(high))[:, None], 0)
    found += tl.where(index == digit + 2, (high >> 32)[:, None], 0)
    found += ((index == _NAN) & is_nan[:, None]).to(tl.int64)
    is_infinite = is_special & (is_nan == 0)
    found += ((index == _INFINITE) & is_infinite[:, None]).to(tl.int64)
    return found


@triton.jit
def low_word(x):
    """Return the low 32 bits of int64 numbers, as int64."""
    return x & ((1 << 32) - 1)


@triton.jit
def added_rows(rows, first, last, which, sums, BLOCK: tl.constexpr):
    """Return the sum of the rows first … last - 1 of sum number ``which`` of ``sums``."""
    index = tl.arange(0, _ROW)
    total = tl.zeros((_ROW,), tl.int64)
    largest = tl.zeros((_ROW,), tl.int64)
    for start in range(first, last, BLOCK):
        row = start + tl.arange(0, BLOCK)
        at = (row.to(tl.int64) * sums + which)[:, None] * _ROW + index[None, :]
        found = tl.load(rows + at, mask=(row < last)[:, None], other=0)
        total += tl.sum(found, 0)
        largest = tl.maximum(largest, tl.max(found, 0))
    return tl.where(index == LARGEST, largest, total)


@triton.jit
def entry(row, place):
    """Return one entry of a row."""
    return tl.sum(tl.where(tl.arange(0, _ROW) == place, row, 0), 0)


@triton.jit
def rounded(row):
    """Return the long number of a row as float64, rounded to nearest even."""
    index = tl.arange(0, _ROW)
    carry = tl.full((), 0, tl.int64)
    before, before_that, below = carry, carry, carry
    top, second, third, rest, place = carry, carry, carry, carry, carry
    for k in tl.range(0, _DIGITS, loop_unroll_factor=4):
        x = tl.sum(tl.where(index == k, row, 0), 0) + carry
        carry = x >> 32
        digit = x - (carry << 32)
        found = digit != 0
        top = tl.where(found, digit, top)
        second = tl.where(found, before, second)
        third = tl.where(found, before_that, third)
        rest = tl.where(found, below, rest)
        place = tl.where(found, k, place)
        below = below | before_that
        before_that = before
        before = digit
    # 96 bits, the first of which is a 1; what is below the last of 64 only breaks ties.
    exponent = (tl.maximum(top, 1).to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    shift = 31 - exponent
    third = third << shift
    head = ((top << 32 | second).to(tl.uint64) << shift.to(tl.uint64)) | (third >> 32).to(tl.uint64)
    head = head | ((low_word(third) | rest) != 0).to(tl.uint64)
    scale = 32 * (place - 1) - shift - 1074
    half = scale >> 1
    value = head.to(tl.float64) * power_of_two_64(half) * power_of_two_64(scale - half)
    value = tl.where(entry(row, _INFINITE) > 0, float("inf"), value)
    return tl.where(entry(row, _NAN) > 0, float("nan"), value)


@triton.jit
def power_of_two_64(exponent):
    """Return 2^exponent as float64, for the exponents of normal numbers."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def norm_of(rows, first, last, which, sums, SCALES: tl.constexpr, BLOCK: tl.constexpr):
    """Return the root of a sum of squares, taken at another scale where it left float64's range.

    Also the row of the plain sum, for what is counted in it.
    """
    row = added_rows(rows, first, last, which, sums, BLOCK)
    total = rounded(row)
    norm = tl.sqrt(total)
    if SCALES > 1:  # squares of float32 always fit
        fits = (total != total) | ((total >= _SMALLEST_SUM) & (total < float("inf")))
        shrunk = rounded(added_rows(rows, first, last, which + 1, sums, BLOCK))
        enlarged = rounded(added_rows(rows, first, last, which + 2, sums, BLOCK))
        is_large = total == float("inf")
        other = tl.sqrt(tl.where(is_large, shrunk, enlarged))
        scale = tl.where(is_large, _SHRINK, _ENLARGE).to(tl.float64)
        norm = tl.where(fits, norm, other / scale)
    return norm, row
