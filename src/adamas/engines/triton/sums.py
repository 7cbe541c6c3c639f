"""Exact sums of squares on the device, as the digits of ``adamas.digits``: any order, any cut.

A block of elements is added window by window. A window takes the elements whose exponents are
within so many of the largest that is left: as whole numbers in one unit they have few limbs of 24
bits, whose products are added in int64 without rounding. Most blocks of gradients fit into one
window. The sums of a window go to the digits of a row, and rows are added like numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas import digits

__all__ = [
    "ENTRIES",
    "LARGEST",
    "MOVED",
    "ROW",
    "added",
    "carry",
    "collect",
    "entry",
    "no_row",
    "nonfinite",
    "norm_of",
    "put_row",
    "squares",
]

_BITS: tl.constexpr = tl.constexpr(digits.BITS)
_MASK: tl.constexpr = tl.constexpr((1 << digits.BITS) - 1)
_DIGITS: tl.constexpr = tl.constexpr(digits.DIGITS)
_LOWEST: tl.constexpr = tl.constexpr(digits.LOWEST)
_INFINITE: tl.constexpr = tl.constexpr(digits.INFINITE)
_NAN: tl.constexpr = tl.constexpr(digits.NAN)
_WIDTH: tl.constexpr = tl.constexpr(digits.WIDTH)

#: Of rows on the way, besides what a row of ``adamas.digits`` has: how many elements have moved,
#: and the largest update, as the bits of a float64.
MOVED: tl.constexpr = tl.constexpr(digits.WIDTH)
LARGEST: tl.constexpr = tl.constexpr(digits.WIDTH + 1)
#: From one such row to the next, in entries: whole lines of memory.
ROW: tl.constexpr = tl.constexpr(96)
#: A row in registers has zeros behind its entries, up to a power of two.
ENTRIES: tl.constexpr = tl.constexpr(128)

_LIMB: tl.constexpr = tl.constexpr(24)
_LIMB_MASK: tl.constexpr = tl.constexpr((1 << 24) - 1)
#: Exponents that a window of float64 reaches down: 53 bits, shifted by so many, have four limbs.
_REACH_64: tl.constexpr = tl.constexpr(43)


@triton.jit
def no_row():
    """Return the row of no elements."""
    return tl.zeros((ENTRIES,), tl.int64)


# ── a block of elements ────────────────────────────────────────────────────────────────────────


@triton.jit
def squares(x, LOW: tl.constexpr):
    """Return the row of a block of float32 or float64, whose digits are below 2^52.

    The last ``LOW`` bits of float32 are zeros, as where the values are those of half precision.
    """
    if x.dtype == tl.float64:
        return squares_64(x)
    else:
        return squares_32(x, LOW)


@triton.jit
def squares_32(x, LOW: tl.constexpr):
    """Return the row of a block of float32."""
    REACH: tl.constexpr = 24 + LOW
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    fraction = bits & 0x7FFFFF
    number = tl.where(bits > fraction, fraction | (1 << 23), fraction) >> LOW
    place = tl.where(bits == 0, -1, tl.maximum(bits >> 23, 1) - 1)
    row = no_row()
    top = tl.max(place, 0)
    if top == 254:
        is_special = place == 254
        row = counted(is_special & (fraction == 0), is_special & (fraction != 0))
        place = tl.where(is_special, -1, place)
        number = tl.where(is_special, 0, number)
        top = tl.max(place, 0)
    while top >= 0:
        bottom = top - REACH
        shift = place - bottom
        is_taken = shift.to(tl.uint32) <= REACH
        # A number below 2^48, in units of 2^(top - 24 - 149).
        own = tl.where(is_taken, number, 0).to(tl.int64)
        own = own << tl.where(is_taken, shift, 0).to(tl.int64)
        a, b = limb(own), limb(own >> _LIMB)
        lowest = 2 * (top - 24 - 149) - _LOWEST
        row += digits_of(tl.sum(a * a, 0), lowest)
        row += digits_of(tl.sum(a * b, 0), lowest + _LIMB + 1)
        row += digits_of(tl.sum(b * b, 0), lowest + 2 * _LIMB)
        top = tl.max(tl.where(place < bottom, place, -1), 0)
    return row


@triton.jit
def squares_64(x):
    """Return the row of a block of float64."""
    bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    fraction = bits & ((1 << 52) - 1)
    number = tl.where(bits > fraction, fraction | (1 << 52), fraction)
    place = tl.where(bits == 0, -1, tl.maximum((bits >> 52).to(tl.int32), 1) - 1)
    row = no_row()
    top = tl.max(place, 0)
    if top == 2046:
        is_special = place == 2046
        row = counted(is_special & (fraction == 0), is_special & (fraction != 0))
        place = tl.where(is_special, -1, place)
        number = tl.where(is_special, 0, number)
        top = tl.max(place, 0)
    while top >= 0:
        bottom = tl.maximum(top - _REACH_64, 0)
        shift = place - bottom
        is_taken = (shift >= 0) & (place <= top)
        # A number below 2^96, in units of 2^(bottom - 1074): its low 64 bits, and the others.
        own = tl.where(is_taken, number, 0)
        left = tl.where(is_taken, shift, 0).to(tl.int64)
        low, high = own << left, (own >> 1) >> (63 - left)
        a, b = limb(low), limb(low >> _LIMB)
        c, d = limb(((low >> 48) & 0xFFFF) | (high << 16)), limb(high >> 8)
        lowest = 2 * (bottom - 1074) - _LOWEST
        row += digits_of(tl.sum(a * a, 0), lowest)
        row += digits_of(tl.sum(a * b, 0), lowest + _LIMB + 1)
        row += digits_of(tl.sum(2 * (a * c) + b * b, 0), lowest + 2 * _LIMB)
        row += digits_of(tl.sum(a * d + b * c, 0), lowest + 3 * _LIMB + 1)
        row += digits_of(tl.sum(2 * (b * d) + c * c, 0), lowest + 4 * _LIMB)
        row += digits_of(tl.sum(c * d, 0), lowest + 5 * _LIMB + 1)
        row += digits_of(tl.sum(d * d, 0), lowest + 6 * _LIMB)
        top = tl.max(tl.where(place < bottom, place, -1), 0)
    return row


@triton.jit
def counted(is_infinite, is_nan):
    """Return the row of what has no digits."""
    index = tl.arange(0, ENTRIES)
    infinite = tl.sum(is_infinite.to(tl.int32), 0).to(tl.int64)
    nan = tl.sum(is_nan.to(tl.int32), 0).to(tl.int64)
    return tl.where(index == _INFINITE, infinite, tl.where(index == _NAN, nan, 0))


@triton.jit
def limb(x):
    """Return the last 24 bits of int64, in a way that lets 32 bits be multiplied with 32."""
    return (x.to(tl.int32) & _LIMB_MASK).to(tl.int64)


@triton.jit
def digits_of(total, lowest):
    """Return a whole number from 0 to 2^63, in units of 2^(lowest - 2148), as digits of a row."""
    shift = tl.arange(0, ENTRIES) * _BITS - lowest
    right = total >> tl.minimum(tl.maximum(shift, 0), 63).to(tl.int64)
    left = total << tl.minimum(tl.maximum(-shift, 0), 63).to(tl.int64)
    return tl.where(shift >= 0, right, left) & _MASK


# ── rows ───────────────────────────────────────────────────────────────────────────────────────


@triton.jit
def put_row(rows, place, row):
    """Write a row."""
    index = tl.arange(0, ENTRIES)
    tl.store(rows + place * ROW + index, row, mask=index < ROW)


@triton.jit
def entry(row, place: tl.constexpr):
    """Return one entry of a row."""
    return tl.sum(tl.where(tl.arange(0, ENTRIES) == place, row, 0), 0)


@triton.jit
def nonfinite(row):
    """Return how many elements are infinite or NaN."""
    return entry(row, _INFINITE) + entry(row, _NAN)


@triton.jit
def collect(rows, order, ranges, into, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Add up the rows of a range: a sum of each entry, but of the largest update the maximum.

    Program axis 0 is the range, of ``order``, which holds numbers of rows; axis 1 is the number of
    the sum, of those that each row has; axis 2 takes ``SIZE`` entries.
    """
    group, which = tl.program_id(0), tl.program_id(1)
    sums = tl.num_programs(1)
    first, last = tl.load(ranges + group), tl.load(ranges + group + 1)
    index = tl.program_id(2) * SIZE + tl.arange(0, SIZE)
    is_digit, is_carried = index < _DIGITS - 1, (index > 0) & (index < _DIGITS)
    total, largest = tl.zeros((SIZE,), tl.int64), tl.zeros((SIZE,), tl.int64)
    for start in tl.range(first, last, BLOCK, loop_unroll_factor=4):
        place = start + tl.arange(0, BLOCK)
        is_there = (place < last)[:, None]
        row = tl.load(order + place, mask=place < last, other=0).to(tl.int64)
        at = rows + ((row * sums + which) * ROW)[:, None] + index[None, :]
        own = tl.load(at, mask=is_there, other=0)
        # What is above a digit goes to the next, before rows are added and after: each time a
        # digit grows by no more than 2^49, so that there is room for 2^14 times.
        below = tl.load(at - 1, mask=is_there & is_carried[None, :], other=0)
        some = tl.sum(tl.where(is_digit[None, :], own & _MASK, own), 0)
        total += tl.where(is_digit, some & _MASK, some)
        total += (tl.sum(below & _MASK, 0) >> _BITS) + tl.sum(below >> _BITS, 0)
        largest = tl.maximum(largest, tl.max(own, 0))
    total = tl.where(index == LARGEST, largest, total)
    tl.store(into + (group * sums + which).to(tl.int64) * ROW + index, total)


@triton.jit
def added(rows, count, step):
    """Return the sum of rows that are ``step`` entries apart; its digits are carried."""
    index = tl.arange(0, ENTRIES)
    is_digit = index < _DIGITS - 1
    total, above = no_row(), no_row()
    for _ in range(count):
        own = tl.load(rows + index, mask=index < _WIDTH, other=0)
        rows += step
        total += tl.where(is_digit, own & _MASK, own)
        above += tl.where(is_digit, own >> _BITS, 0)
    total += moved_up(above)
    above = tl.where(is_digit, total >> _BITS, 0)
    while tl.max(above, 0) > 0:
        total = tl.where(is_digit, total & _MASK, total) + moved_up(above)
        above = tl.where(is_digit, total >> _BITS, 0)
    return total


@triton.jit
def moved_up(row):
    """Return a row with each entry at the next place; the last one is lost."""
    index = tl.arange(0, ENTRIES)
    return tl.where(index > 0, tl.gather(row, tl.maximum(index - 1, 0), 0), 0)


@triton.jit(do_not_specialize=["parts"])
def carry(rows, parts, into):
    """Write the rows of ``adamas.digits`` for each set of parameters: one program for each.

    ``rows`` has one for each set, and that ``parts`` times.
    """
    which, sets = tl.program_id(0), tl.num_programs(0)
    index = tl.arange(0, ENTRIES)
    row = added(rows + which * ROW, parts, sets * ROW)
    tl.store(into + which * _WIDTH + index, row, mask=index < _WIDTH)


@triton.jit
def norm_of(row):
    """Return the norm that a row with carried digits tells: ``adamas.digits.norm``."""
    index = tl.arange(0, ENTRIES)
    own = tl.where(index < _DIGITS, row, 0)
    place = tl.max(tl.where(own != 0, index, 0), 0)
    top = tl.sum(tl.where(index == place, own, 0), 0)
    second = tl.sum(tl.where(index == place - 1, own, 0), 0)
    third = tl.sum(tl.where(index == place - 2, own, 0), 0)
    rest = tl.max(tl.where(index < place - 2, own, 0), 0)
    # 96 bits, the first of which is a 1; what is below the last of 64 only breaks ties.
    exponent = (tl.maximum(top, 1).to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    shift = 47 - exponent
    high = (top << shift) | (second >> (_BITS - shift))
    low = ((second << shift) & _MASK) | (third >> (_BITS - shift))
    rest = rest | ((third << shift) & _MASK) | (low & 0xFFFFFFFF)
    head = (high.to(tl.uint64) << 16) | (low >> 32).to(tl.uint64) | (rest != 0).to(tl.uint64)
    total = head.to(tl.float64)  # the one rounding of the sum, to 53 bits
    scale = _BITS * place - shift - 16 + _LOWEST
    # The root of a number in [2^63, 2^65], times a power of two that only the last factor rounds.
    root = tl.sqrt(tl.where((scale & 1) == 0, total, 2.0 * total))
    scale = scale >> 1
    half = scale >> 1
    norm = root * power_of_two_64(half) * power_of_two_64(scale - half)
    norm = tl.where(entry(row, _INFINITE) > 0, float("inf"), norm)
    return tl.where(entry(row, _NAN) > 0, float("nan"), norm)


@triton.jit
def power_of_two_64(exponent):
    """Return 2^exponent as float64, for the exponents of normal numbers."""
    return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
