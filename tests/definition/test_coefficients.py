"""The numbers of the rule: accurate, rounded once, and the same in C++."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas import _native
from adamas.coefficients import Coefficients, at_step, clip_factor, ema_weights, one_minus_power
from adamas.options import Options

U = 2.0**-53


def exact_one_minus_power(beta, exponent):
    with mpmath.workprec(400):
        return 1 - mpmath.mpf(beta) ** exponent


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12, 1 - U])
@pytest.mark.parametrize("exponent", [1, 2, 3, 7, 64, 1000, 12345, 10**6, 2**31 - 1, 10**9])
def test_one_minus_power_is_off_by_three_roundings_for_each_bit_of_the_exponent(beta, exponent):
    """Each doubling rounds 2 - q and a product, each addition 1 - q, a product and a sum.

    None of these enlarges a relative error that is there: 2 - q and 1 - q are multiplied by q, and
    q(2 - q) and q + r(1 - q) change relatively by no more than q and r do. The rounding of 2 - q
    counts once (2 - q ≥ 1, so U relative), that of 1 - q, absolute U at most, adds U·r to a sum
    that is at least r. So at most five roundings a bit, and one of 1 - β.
    """
    computed = one_minus_power(beta, exponent)
    exact = exact_one_minus_power(beta, exponent)
    roundings = 5 * exponent.bit_length() + 1
    assert abs(mpmath.mpf(computed) - exact) <= roundings * U * abs(exact)


def test_the_plain_formula_loses_what_one_minus_power_keeps():
    def distance(computed, beta):
        with mpmath.workprec(400):
            return abs(computed / exact_one_minus_power(beta, 7) - 1)

    betas = (0.999, 1 - 1e-4, 1 - 1e-5, 1 - 1e-6)
    assert max(distance(1 - beta**7, beta) for beta in betas) > 1000 * U
    assert max(distance(one_minus_power(beta, 7), beta) for beta in betas) < 16 * U


def test_one_minus_power_at_one_is_what_the_running_mean_takes():
    for beta in (0.9, 0.999, 0.5, 0.0):
        assert one_minus_power(beta, 1) == 1.0 - beta


RATES = st.floats(0, 1, exclude_max=True)
AMOUNTS = st.one_of(st.just(0.0), st.floats(1e-30, 1e3))


@st.composite
def options(draw):
    method = draw(st.sampled_from(["adam", "momentum", "rmsprop", "descent"]))
    beta1 = draw(RATES) if method in ("adam", "momentum") else None
    beta2 = draw(RATES) if method in ("adam", "rmsprop") else None
    decay = draw(st.sampled_from(["l2", "decoupled", "fully-decoupled"]))
    return Options(
        lr=1.0,
        betas=(beta1, beta2),
        eps=draw(AMOUNTS),
        eps_root=draw(AMOUNTS),
        eps_place=draw(st.sampled_from(["corrected", "uncorrected", "inside"])),
        weight_decay=draw(AMOUNTS),
        decay=decay,
        lr_max=draw(st.floats(1e-10, 10)) if decay == "fully-decoupled" else None,
        bias_correction=draw(st.sampled_from(["paper", "first-step", "none"])),
        amsgrad=beta2 is not None and draw(st.booleans()),
        nesterov=beta1 is not None and draw(st.booleans()),
        maximize=draw(st.booleans()),
    )


@given(options(), st.integers(1, 2**53), AMOUNTS, st.floats(0, 1))
@settings(max_examples=500, deadline=None)
def test_the_compiled_numbers_have_the_bits_of_the_definition(options, step, lr, scale):
    ours = [float(x).hex() for x in at_step(options, step, lr, scale)]
    assert [x.hex() for x in _native.numbers(options, step, lr, scale)] == ours


@given(options(), st.integers(1, 10**6), AMOUNTS)
@settings(max_examples=100, deadline=None)
def test_every_number_is_rounded_once(options, step, lr):
    with np.errstate(over="ignore", under="ignore"):
        numbers = at_step(options, step, lr)
        for wide, narrow in zip(numbers, numbers.rounded(np.dtype(np.float32)), strict=True):
            assert isinstance(narrow, np.float32)
            assert narrow == np.float32(wide)
    assert numbers.rounded(np.dtype(np.float64)) == numbers


def test_neutral_numbers_stand_for_what_was_not_asked_for():
    numbers = at_step(Options(betas=(None, None), eps=0.0), 5, 0.25)
    assert numbers == Coefficients(1, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0.25)


@pytest.mark.parametrize(
    ("decay", "more", "l2", "shrink"),
    [
        ("l2", {}, 0.1, 0.0),
        ("decoupled", {}, 0.0, 0.05),
        ("fully-decoupled", {"lr_max": 2.0}, 0.0, 0.1 * 0.25),
    ],
)
def test_each_kind_of_decay_has_its_place(decay, more, l2, shrink):
    numbers = at_step(Options(lr=0.5, weight_decay=0.1, decay=decay, **more), 3, 0.5)
    assert (numbers.l2, numbers.decay) == (l2, shrink)


def test_a_fixed_rate_is_its_own_greatest():
    options = Options(lr=0.5, weight_decay=0.1, decay="fully-decoupled")
    assert options.lr_max == 0.5
    assert at_step(options.replace(lr=0.25), 1, 0.25).decay == 0.1 * 0.5


def test_maximize_turns_the_gradient_and_clipping_shrinks_it():
    assert at_step(Options(maximize=True), 1, 1.0, 0.5).grad_scale == -0.5
    assert at_step(Options(), 1, 1.0, 0.5).grad_scale == 0.5


@pytest.mark.parametrize(
    ("norm", "factor"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (8.0, 0.25), (math.inf, 0.0)]
)
def test_clipping_never_enlarges(norm, factor):
    assert clip_factor(2.0, norm) == factor


def test_a_norm_that_is_no_number_clips_to_no_number():
    assert math.isnan(clip_factor(2.0, math.nan))


def test_the_first_average_is_a_copy():
    assert ema_weights(0.9, 1) == (0.0, 1.0)
    assert ema_weights(0.9, 2) == (0.9, 1 - 0.9)
