"""Many small tensors in one step: the bits of the reference in each, and in none beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import adamas
from adamas.engines import native, reference
from adamas.options import Options, Phase
from tests.support.cases import (
    FLOATS,
    METHODS,
    PHASES,
    differences,
    each_machine,
    run,
    special,
    special_values,
)

#: Options whose steps have the usual numbers, and some whose steps do not.
OPTIONS = (
    Options(lr=0.1),
    Options(lr=0.1, weight_decay=0.01, decay="decoupled"),
    Options(lr=0.1, weight_decay=0.01),
    Options(lr=0.1, weight_decay=0.01, decay="cautious"),
    Options(lr=0.1, eps=0.0),
    Options(lr=0.1, maximize=True),
    *(Options(lr=0.1, **each) for each in METHODS.values()),
)


def disagreements(*case: Any, **more: Any) -> dict[str, list[str]]:
    """What each machine's code computes otherwise than the reference."""
    judge = run(reference, *case, **more)
    return {
        machine: found
        for machine in each_machine()
        if (found := differences(judge, run(native, *case, **more)))
    }


@pytest.mark.parametrize("phase", ["plain", "clip"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_of_all_small_sizes_in_one_group_give_the_bits_of_the_reference(dtype, phase):
    random = np.random.default_rng(1)
    sizes = range(70)
    parameters, *gradients = (
        [random.standard_normal(size).astype(dtype) for size in sizes] for _ in range(2)
    )
    for options in OPTIONS[:6]:
        assert disagreements(options, PHASES[phase], parameters, gradients) == {}, options


def test_small_tensors_of_all_kinds_side_by_side_give_the_bits_of_the_reference():
    random = np.random.default_rng(2)
    count = 400
    sizes = random.integers(0, 40, count)
    # Runs of tensors that are alike are of all lengths, and of groups and dtypes that change alone.
    kinds = random.choice([0, 1], count, p=[0.9, 0.1]).cumsum() % len(OPTIONS)
    dtypes = [FLOATS[i % 2] for i in random.choice([0, 1], count, p=[0.9, 0.1]).cumsum()]
    parameters, *gradients = (
        [special(random, size, dtype) for size, dtype in zip(sizes, dtypes, strict=True)]
        for _ in range(3)
    )
    options = [OPTIONS[kind] for kind in kinds]
    assert disagreements(options, Phase(), parameters, gradients) == {}


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_that_are_the_last_of_a_tensor_give_the_bits_of_the_reference(dtype):
    values = special_values(dtype)
    every = np.meshgrid(values, values, values[::4], values[::4])
    length = 15  # one less than the widest register has
    p, g, m, v = (np.array_split(x.ravel(), x.size // length) for x in every)
    starts = [{"mean": a, "square": b} for a, b in zip(m, v, strict=True)]
    for options in OPTIONS[:2]:
        assert disagreements(options, Phase(), p, [g], starts=starts, first=2) == {}, options


def test_small_tensors_that_threads_share_give_the_bits_of_the_reference():
    random = np.random.default_rng(3)
    sizes = random.integers(1, 4000, 300)
    parameters, *gradients = (
        [random.standard_normal(size).astype(np.float32) for size in sizes] for _ in range(5)
    )
    judge = run(reference, OPTIONS[0], Phase(), parameters, gradients)
    before = adamas.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            adamas.set_num_threads(threads)
            found = run(native, OPTIONS[0], Phase(), parameters, gradients)
            assert differences(judge, found) == [], threads
    finally:
        adamas.set_num_threads(before)
