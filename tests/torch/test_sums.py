"""Sums in torch's operations: the rows are those of adamas.digits, bit for bit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from adamas import digits
from adamas.torch import operations

REAL = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = {8: np.int64, 4: np.int32, 2: np.int16}


def any_bits(dtype, size, seed=0):
    """Return elements of all magnitudes, NaN and infinities among them."""
    drawn = np.random.default_rng(seed).integers(0, 256, (size, dtype.itemsize), np.uint8)
    return torch.from_numpy(drawn.view(BITS[dtype.itemsize]).ravel()).view(dtype)


def row_of(x):
    """The row of a tensor; its device's operations find the same as the native engine."""
    found = operations.row_of(x)
    x = x.resolve_conj().resolve_neg()
    flat = (torch.view_as_real(x) if x.is_complex() else x).reshape(-1)
    assert torch.equal(operations.row_by_operations(flat), found)
    return found.numpy()


def expected(x):
    return digits.of_squares(x.to(torch.float64).numpy())


@pytest.mark.parametrize("dtype", REAL)
def test_rows_of_all_magnitudes_are_those_of_the_definition(dtype):
    x = any_bits(dtype, 20_000)
    np.testing.assert_array_equal(row_of(x), expected(x))
    finite = torch.where(torch.isfinite(x), x, torch.zeros((), dtype=dtype))
    exact = sum(Fraction(each) ** 2 for each in finite[:500].tolist())
    assert digits.total(row_of(finite[:500])) == exact * 2**2148


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", ["smallest", "largest", "one", "all below one"])
def test_many_equal_elements_carry_into_every_digit_above(dtype, name):
    info = torch.finfo(dtype)
    value = {
        "smallest": info.tiny * info.eps,
        "largest": info.max,
        "one": 1.0,
        "all below one": 1.0 - info.eps / 2,
    }[name]
    x = torch.full((5_000,), value, dtype=dtype)
    np.testing.assert_array_equal(row_of(x), expected(x))


def test_a_carry_runs_through_digits_that_are_full():
    """Three squares of each power of four have all bits set, and one more unit carries them all."""
    full = torch.tensor([2.0**k for k in range(120) for _ in range(3)], dtype=torch.float64)
    x = torch.cat([full, torch.ones(1, dtype=torch.float64)])
    assert np.count_nonzero(row_of(full) == 2**48 - 1) >= 4
    assert digits.total(row_of(x)) == 2 ** (240 + 2148)
    assert np.count_nonzero(row_of(x)) == 1


def test_strides_slabs_and_shapes_leave_the_row_as_it_is(monkeypatch):
    x = torch.linspace(-3, 5, 10_000).reshape(100, 100)
    x[3, 7], x[99, 99] = torch.inf, torch.nan
    rows = [row_of(x), row_of(x.t()), row_of(x.reshape(-1).flip(0)), row_of(x.reshape(4, -1, 5))]
    rows.append(row_of(x[:, ::2]) + row_of(x[:, 1::2]))
    monkeypatch.setattr(operations, "SLAB", 3_000)
    rows.append(row_of(x))
    for row in rows:
        np.testing.assert_array_equal(digits.carried(row), expected(x))
    assert digits.nonfinite(row_of(x)) == 2


def test_complex_numbers_count_as_two():
    x = torch.complex(torch.tensor([3.0, torch.nan]), torch.tensor([4.0, -torch.inf]))
    row = row_of(x)
    np.testing.assert_array_equal(row, expected(torch.view_as_real(x)))
    conjugate = x[:1].conj()
    assert digits.norm(row_of(conjugate)) == 5.0
    assert conjugate.imag.is_neg()
    assert digits.norm(row_of(conjugate.imag)) == 4.0


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_are_added_and_empty_tensors_add_nothing(shape):
    x = torch.full(shape, 2.0)
    np.testing.assert_array_equal(row_of(x), expected(x))
