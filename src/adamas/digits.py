"""Exact sums of squares, as digits of 48 bits that add up in any order.

The squares of float64 are whole multiples of 2^-2148 and below 2^2048. A **row** holds their sum as
int64: digit i counts units of 2^(48·i - 2148), and two more entries count what has no digits,
infinities and NaN. Rows are added entry by entry, in any order and grouping, on any device and over
processes (one all-reduce); what ``carried`` leaves has room for 2^15 such rows. The sum is rounded
once, when it is read: what ``math.fsum`` returns of exact squares, without the limits of float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BITS",
    "DIGITS",
    "INFINITE",
    "LOWEST",
    "NAN",
    "WIDTH",
    "Row",
    "carried",
    "nonfinite",
    "norm",
    "norm_of_total",
    "of_squares",
    "sum_of_squares",
    "total",
]

Row = NDArray[np.int64]

#: Of each digit that has been carried.
BITS = 48
DIGITS = 89
#: The exponent of the unit of digit 0: of the square of the smallest subnormal number.
LOWEST = -2148
#: Entries of a row behind its digits: how many elements are infinite, and how many are NaN.
INFINITE, NAN = DIGITS, DIGITS + 1
#: Entries of a row.
WIDTH = DIGITS + 2

_MASK = (1 << BITS) - 1
_HALF = 27
#: Elements that are looked at at once: so many parts of 27 bits add up to a float64 exactly.
_AT_ONCE = 1 << 20


def of_squares(array: NDArray[Any]) -> Row:
    """Return the row of the squares of all elements of an array of floats; its digits are carried.

    ``array`` has any shape and strides, and a dtype whose values are float64's.
    """
    flat = np.asarray(array).reshape(-1)
    found, infinite, nan = 0, 0, 0
    for first in range(0, flat.size, _AT_ONCE):
        x = flat[first : first + _AT_ONCE]
        finite = np.isfinite(x)
        if not finite.all():
            infinite += np.count_nonzero(np.isinf(x))
            nan += np.count_nonzero(np.isnan(x))
            x = x[finite]
        found += _sum_of_squares(x.astype(np.float64))
    digits = [found >> BITS * i & _MASK for i in range(DIGITS - 1)]
    return np.array([*digits, found >> BITS * (DIGITS - 1), infinite, nan], np.int64)


def _sum_of_squares(x: NDArray[np.float64]) -> int:
    """Return the sum of squares of finite numbers, in units of 2^-2148."""
    bits = x.view(np.int64)
    exponent, fraction = bits >> 52 & 0x7FF, bits & (1 << 52) - 1
    significand = np.where(exponent > 0, fraction | 1 << 52, fraction)
    places = 2 * (np.maximum(exponent, 1) - 1)  # of the lowest bits of the squares
    high, low = significand >> _HALF, significand & (1 << _HALF) - 1
    found = 0
    for product, above in ((low * low, 0), (2 * high * low, _HALF), (high * high, 2 * _HALF)):
        for part, place in ((product & (1 << _HALF) - 1, above), (product >> _HALF, above + _HALF)):
            if part.any():
                sums = np.bincount(places, part)
                for i in np.flatnonzero(sums).tolist():
                    found += int(sums[i]) << i + place
    return found


def carried(row: Row) -> Row:
    """Return an equal row whose digits are from 0 to 2^48 - 1, but for the last one."""
    digits = row.tolist()
    for i in range(DIGITS - 1):
        digits[i + 1] += digits[i] >> BITS
        digits[i] &= _MASK
    return np.array(digits, np.int64)


def total(row: Row) -> int:
    """Return the sum of finite squares, in units of 2^-2148."""
    places = np.flatnonzero(row[:DIGITS])
    if not places.size:
        return 0
    first, found = int(places[0]), 0
    for digit in reversed(row[first : int(places[-1]) + 1].tolist()):
        found = (found << BITS) + digit
    return found << BITS * first


def nonfinite(row: Row) -> int:
    """Return how many elements are infinite or NaN."""
    return int(row[INFINITE] + row[NAN])


def sum_of_squares(row: Row) -> float:
    """Return the sum, rounded to nearest even; infinite where float64 has no such number."""
    if nonfinite(row):
        return math.nan if row[NAN] else math.inf
    number, exponent = _rounded(total(row))
    return _scaled(float(number), exponent + LOWEST)


def norm(row: Row) -> float:
    """Return the root of the sum.

    The sum is rounded to 53 bits (its exponent may be any), and the root of that to float64.
    """
    if nonfinite(row):
        return math.nan if row[NAN] else math.inf
    return norm_of_total(total(row))


def norm_of_total(number: int) -> float:
    """Return the norm whose square is a whole number of units of 2^-2148."""
    number, exponent = _rounded(number)
    if exponent % 2:
        number, exponent = 2 * number, exponent - 1
    return _scaled(math.sqrt(number), (exponent + LOWEST) // 2)


def _rounded(number: int) -> tuple[int, int]:
    """Return a whole number rounded to 53 bits, to nearest even, and what to shift it by."""
    exponent = max(number.bit_length() - 53, 0)
    if exponent == 0:
        return number, 0
    kept, rest = number >> exponent, number & (1 << exponent) - 1
    half = 1 << exponent - 1
    return kept + (rest > half or (rest == half and kept % 2 == 1)), exponent


def _scaled(number: float, exponent: int) -> float:
    try:
        return math.ldexp(number, exponent)
    except OverflowError:
        return math.inf
