"""Marks of changed elements by torch's own operations, beside NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from adamas.torch import operations
from adamas.torch.operations import mark, marked, marked_by_operations, marks_of

DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.complex64, torch.complex128),
)
SIZES = (0, 1, 7, 8, 9, 31, 32, 33, 1000)
#: Elements that are looked at at once; a small number, so that tests are quick.
SLAB = 1 << 14
LARGE = (SLAB, SLAB + 33)


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    monkeypatch.setattr(operations, "SLAB", SLAB)


def drawn(size, dtype):
    """Two tensors of any bits, of which one in ten elements differ."""
    random = np.random.default_rng(size)
    one, other = random.integers(0, 256, (2, size, dtype.itemsize), np.uint8)
    stays = random.random(size) < 0.9
    other[stays] = one[stays]
    return [torch.from_numpy(each).view(-1).view(dtype) for each in (one, other)]


def compared(one, other):
    """Which elements are stored as other bits."""
    raw = [each.contiguous().view(-1).view(torch.uint8).numpy() for each in (one, other)]
    return (raw[0] != raw[1]).reshape(-1, one.itemsize).any(1)


def are_set(marks, count):
    bits = np.unpackbits(marks.numpy().view(np.uint8), bitorder="little")
    assert not bits[count:].any()
    return bits[:count].astype(bool)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_marks_are_a_bitwise_comparison_of_any_dtype_and_size(dtype):
    for size in (*SIZES, *LARGE) if dtype is torch.bfloat16 else SIZES:
        one, other = drawn(size, dtype)
        expected = compared(one, other)
        marks = marks_of(one, other)
        assert (marks.shape, marks.dtype) == ((-(-size // 32),), torch.int32)
        assert np.array_equal(are_set(marks, size), expected)
        places = marked(marks, size)
        assert places.dtype == torch.int32
        assert np.array_equal(places.numpy(), expected.nonzero()[0])
        assert torch.equal(marked_by_operations(marks, size), places)
    assert 0.05 < expected.mean() < 0.2


def test_marks_number_elements_in_the_order_of_their_indices_whatever_the_strides():
    one = torch.zeros(5, 7, 3).permute(2, 0, 1)[:, ::2]
    other = one.clone(memory_format=torch.contiguous_format)
    other[1, 2, 3] = -0.0
    expected = (1 * 3 + 2) * 7 + 3
    assert marked(marks_of(one, other), one.numel()).tolist() == [expected]


def test_what_is_marked_stays_marked():
    one, two, three = torch.zeros(40), torch.zeros(40), torch.zeros(40)
    two[[3, 33]] = 1.0
    three[[3, 35]] = 1.0
    marks = marks_of(one, two)
    mark(marks, two, three)
    assert marked(marks, 40).tolist() == [3, 33, 35]


class Largest(TorchDispatchMode):
    """Sees how many bytes the largest tensor has that an operation makes."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and not func.is_view:
            self.nbytes = max(self.nbytes, made.nbytes)
        return made


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_finding_what_is_marked_takes_little_more_memory_than_what_is_found(share):
    """Eight bytes for each element of a slab: a table of all bits would take more."""
    count = 9 * SLAB
    words = np.random.default_rng(1).random(count // 32) < share
    marks = torch.from_numpy(-words.astype(np.int32))
    with Largest() as seen:
        places = marked_by_operations(marks, count)
    assert len(places) == 32 * words.sum()
    assert seen.nbytes <= max(8 * SLAB, places.nbytes)
