"""Rows of sums that Triton's kernels write are those of adamas.digits, bit for bit."""

from __future__ import annotations

import itertools
import math
import random as plain_random

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from adamas import digits
from adamas.engines.triton import sums
from adamas.engines.triton.rule import OPTIONS
from tests.support.triton_plans import DEVICE


@triton.jit
def write_squares(x, rows, LOW: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0)
    values = tl.load(x + place * BLOCK + tl.arange(0, BLOCK))
    sums.put_row(rows, place, sums.squares(values, LOW))


@triton.jit
def write_norm(rows, count, found):
    place = tl.program_id(0)
    row = sums.added(rows + place * count * sums.ROW, count, sums.ROW)
    tl.store(found + place, sums.norm_of(row))


def rows_of(x, low=0, block=256):
    """The row of each block of a float32 or float64 array."""
    values = torch.from_numpy(np.resize(x, -(-len(x) // block) * block)).to(DEVICE)
    rows = torch.zeros((len(values) // block, sums.ROW.value), dtype=torch.int64, device=DEVICE)
    with np.errstate(all="ignore"):
        write_squares[(len(rows),)](values, rows, LOW=low, BLOCK=block, **OPTIONS)
    return rows.cpu().numpy(), values.cpu().numpy().reshape(-1, block)


def expected(values):
    with np.errstate(invalid="ignore"):  # of signalling NaN
        return digits.of_squares(values)


def norms_of(rows):
    """The norm of each of some lists of as many rows."""
    held = np.zeros((*rows.shape[:2], sums.ROW.value), np.int64)
    held[:, :, : digits.WIDTH] = rows[:, :, : digits.WIDTH]
    found = torch.zeros(len(rows), dtype=torch.float64, device=DEVICE)
    with np.errstate(all="ignore"):
        write_norm[(len(rows),)](torch.from_numpy(held).to(DEVICE), rows.shape[1], found, **OPTIONS)
    return found.tolist()


def any_bits(dtype, size, seed=0):
    return (
        np.random.default_rng(seed).integers(0, 256, size * dtype().itemsize, np.uint8).view(dtype)
    )


def narrow(dtype, size, exponent, width, seed=0):
    random = np.random.default_rng(seed)
    return np.ldexp(random.uniform(-2, 2, size), exponent - random.integers(0, width, size)).astype(
        dtype
    )


def blocks(dtype):
    info = np.finfo(dtype)
    tiny, most = float(info.smallest_subnormal), float(info.max)
    lowest, highest = int(info.minexp) - info.nmant, int(info.maxexp) - 2
    yield any_bits(dtype, 1024)
    for exponent in (lowest, lowest + 1, lowest + 30, -1, 0, 3, highest - 40, highest):
        for width in (1, 24, 25, 26, 44, 45, 90):
            yield narrow(dtype, 256, exponent, width)
    for value in (0.0, -0.0, tiny, most, 1.0, 1 - info.epsneg):
        yield np.full(256, value, dtype)
    yield np.array([most, tiny, 0.0] * 86, dtype)[:256]
    yield np.array([math.nan, math.inf, -math.inf, 1.0, tiny, -math.nan, most, 0.0] * 32, dtype)
    yield np.array([math.nan] * 255 + [math.inf], dtype)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_blocks_are_those_of_the_definition(dtype, part):
    with np.errstate(all="ignore"):
        found, cut = rows_of(np.concatenate(list(blocks(dtype))[part::4]))
    assert found[:, : digits.DIGITS].max() < 2**52
    for row, values in zip(found, cut, strict=True):
        np.testing.assert_array_equal(digits.carried(row[: digits.WIDTH]), expected(values))


@pytest.mark.parametrize(("dtype", "low"), [(torch.bfloat16, 16), (torch.float16, 13)])
def test_rows_of_half_precision_are_those_of_the_definition(dtype, low):
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float().numpy()
    found, cut = rows_of(np.random.default_rng(0).permutation(every)[: 2**12], low)
    for row, values in zip(found, cut, strict=True):
        np.testing.assert_array_equal(digits.carried(row[: digits.WIDTH]), expected(values))


def hard_rows():
    """Lists of two rows each: digits that carry far, and sums beside ties."""
    random = plain_random.Random(4)
    mask = (1 << digits.BITS) - 1

    def row(number=0, infinite=0, nan=0):
        own = [number >> digits.BITS * i & mask for i in range(digits.DIGITS)]
        return [*own, infinite, nan]

    for place in (53, 54, 60, 101, 102, 149, 2148, 2149, 3000, 4195, 4196):
        for low in (0, 1, 2**19):
            for extra in (0, -1, 1, 1 << max(place - 53, 0), 3 << max(place - 54, 0)):
                total = (1 << place) + extra + low
                part = random.randrange(total)
                yield row(part), row(total - part)
    full = (1 << digits.BITS * 88) - 1
    yield row(full), row(1)
    yield row(full), row(full)
    yield row(0), row(0)
    yield from ((row(i), row(0)) for i in range(1, 6))
    yield row(5, infinite=1), row(0)
    yield row(5, infinite=1), row(0, nan=1)
    uncarried = [random.randrange(1 << 62) for _ in range(digits.DIGITS)]
    uncarried[digits.DIGITS - 2 :] = [0, 0]
    yield [*uncarried, 0, 0], [*reversed(uncarried[:-3]), 0, 0, 0, 0, 0]
    for _ in range(40):
        yield row(random.randrange(1 << random.randrange(1, 4200))), row(random.randrange(1 << 60))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("part", range(7))
def test_norms_of_rows_are_those_of_the_definition(part):
    rows = np.array(list(hard_rows())[part::7], np.int64)
    found = norms_of(rows)
    known = [digits.norm(digits.carried(a) + digits.carried(b)) for a, b in rows]
    np.testing.assert_array_equal(found, known)
    assert len(set(found)) > 5


def test_rows_of_pieces_are_added_by_what_they_belong_to():
    random = np.random.default_rng(1)
    rows = random.integers(0, 2**61, (150, 2, sums.ROW.value))
    rows[:, :, sums.LARGEST.value + 1 :] = 0
    rows[:, :, digits.DIGITS - 1 : sums.LARGEST.value] >>= 20
    order = random.permutation(150).astype(np.int32)
    ends = [0, 70, 70, 71, 150]
    into = torch.full((4, 2, sums.ROW.value), -1, dtype=torch.int64, device=DEVICE)
    given = [torch.from_numpy(each).to(DEVICE) for each in (rows, order, np.array(ends, np.int32))]
    sums.collect[(4, 2, 6)](*given, into, SIZE=16, BLOCK=64, **OPTIONS)
    found = into.cpu().numpy()
    for group, (first, last) in enumerate(itertools.pairwise(ends)):
        for which in range(2):
            own = rows[order[first:last], which]
            one = found[group, which]
            total = sum(map(digits.total, own), 0)
            assert digits.total(one) == total
            assert one[: digits.DIGITS - 1].max(initial=0) < 150 * 2**49
            for each in (digits.INFINITE, digits.NAN, sums.MOVED.value):
                assert one[each] == own[:, each].sum()
            assert one[sums.LARGEST.value] == own[:, sums.LARGEST.value].max(initial=0)


@pytest.mark.slow
def test_more_rows_than_digits_have_room_for_are_added():
    """As of tensors with more than 2^34 elements."""
    count = 2**15 + 2
    one = np.zeros(sums.ROW.value, np.int64)
    one[:15] = 2**48 - 1
    order = torch.zeros(count, dtype=torch.int32, device=DEVICE)
    ranges = torch.tensor([0, count], dtype=torch.int32, device=DEVICE)
    into = torch.zeros((1, 1, sums.ROW.value), dtype=torch.int64, device=DEVICE)
    row = torch.from_numpy(one).to(DEVICE)
    sums.collect[(1, 1, 1)](row, order, ranges, into, SIZE=16, BLOCK=64, **OPTIONS)
    found = into.cpu().numpy().ravel()
    assert count * int(one[0]) > 2**63
    assert digits.total(found) == count * digits.total(one)


def test_sets_of_several_parts_are_carried_to_rows_that_can_be_exchanged():
    random = np.random.default_rng(2)
    rows = np.zeros((3, 2, sums.ROW.value), np.int64)
    rows[:, :, : digits.DIGITS - 1] = random.integers(0, 2**60, (3, 2, digits.DIGITS - 1))
    rows[:, :, digits.INFINITE :] = random.integers(0, 9, (3, 2, 7))
    into = torch.zeros((2, digits.WIDTH), dtype=torch.int64, device=DEVICE)
    sums.carry[(2,)](torch.from_numpy(rows).to(DEVICE), 3, into, **OPTIONS)
    parts = rows[:, :, : digits.WIDTH]
    for which in range(2):
        own = digits.carried(sum(map(digits.carried, parts[:, which]), 0 * parts[0, 0]))
        np.testing.assert_array_equal(into[which].cpu().numpy(), own)
