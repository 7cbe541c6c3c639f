"""Decays that depend on signs, or on the square of the learning rate: alike on every engine."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adamas.engines import native, reference
from adamas.options import Options, Phase
from tests.support.cases import FLOATS, differences, each_machine, ordinary, run, special, wide

CAUTIOUS = {"weight_decay": 0.3, "decay": "cautious"}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = [
    *((BFLOAT16, rounding) for rounding in ("nearest", "stochastic", "remainder", "remainder8")),
    *((np.dtype(np.float16), rounding) for rounding in ("nearest", "stochastic")),
]
IDS = [f"{dtype}-{rounding}" for dtype, rounding in HALVES]
SIZES = [1, 33, 256 + 70, 3 * 256]


def drawn(values, dtype, steps=3):
    random = np.random.default_rng(7)

    def numbers():
        own = np.float64 if dtype == np.float64 else np.float32
        with np.errstate(all="ignore"):
            made = [values(random, size, own).astype(dtype) for size in SIZES]
        return [each.view(np.uint16) if dtype == BFLOAT16 else each for each in made]

    return numbers(), [numbers() for _ in range(steps)]


def agrees(options, phase, parameters, gradients):
    judge = run(reference, options, phase, parameters, gradients)
    for machine in each_machine():
        found = run(native, options, phase, parameters, gradients)
        assert differences(judge, found) == [], machine
    return judge


@pytest.mark.parametrize("values", [ordinary, wide, special])
@pytest.mark.parametrize("form", ["float32", "bfloat16", "compact", "8bit"])
def test_a_cautious_step_of_any_state_has_the_bits_of_the_reference(form, values):
    options = Options(lr=0.1, state=form, **CAUTIOUS)
    agrees(options, Phase(seed=3), *drawn(values, np.float32))


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("form", ["float32", "compact", "8bit"])
@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_a_cautious_step_in_half_precision_has_the_bits_of_the_reference(dtype, rounding, form):
    options = Options(lr=0.1, state=form, rounding=rounding, **CAUTIOUS)
    for values in (ordinary, special):
        agrees(options, Phase(seed=3), *drawn(values, dtype))


@pytest.mark.parametrize("dtype", [*FLOATS, BFLOAT16])
@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, None), (None, 0.99), (None, None)])
def test_a_cautious_step_of_any_method_is_told_to_the_bit(betas, dtype):
    options = Options(lr=0.1, betas=betas, eps=0.0, **CAUTIOUS)
    phase = Phase(ema=0.9, statistics=True, clip_norm=3.0)
    cautious = agrees(options, phase, *drawn(ordinary, dtype))
    usual = run(native, options.replace(decay="decoupled"), phase, *drawn(ordinary, dtype))
    assert differences(cautious, usual), "the case tells nothing"


bit_patterns = arrays.arrays(np.uint32, 64)


@given(p=bit_patterns, g=bit_patterns, m=bit_patterns, data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_bits_of_parameter_update_and_decay_give_the_bits_of_the_reference(p, g, m, data):
    amount = data.draw(st.sampled_from([0.0, 1e-38, 0.1, 1e30]))
    beta = data.draw(st.sampled_from([0.0, 0.9]))
    options = Options(
        lr=0.5, betas=(beta, None), weight_decay=amount, decay="cautious", maximize=bool(p[0] & 1)
    )
    parameters, gradients = [p.view(np.float32)], [[g.view(np.float32)], [m.view(np.float32)]]
    agrees(options, Phase(), parameters, gradients)


def test_a_corrected_decay_goes_with_the_square_of_the_rate():
    """Steps without gradients: p shrinks by λ·lr²/lr_max alone, at every rate."""
    p, g = np.array([1.0]), [np.zeros(1)]
    options = Options(lr=0.5, weight_decay=0.25, decay="corrected", lr_max=0.5)
    for rate, left in ((0.5, 1 - 0.125), (0.25, 1 - 0.03125), (0.125, 1 - 0.0078125)):
        judge = agrees(options.replace(lr=rate), Phase(), [p], [g])
        assert judge.arrays["0"] == left
