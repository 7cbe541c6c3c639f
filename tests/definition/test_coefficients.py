"""The numbers of the rule: accurate, rounded once, and the same in C++."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas import _native
from adamas.coefficients import (
    Coefficients,
    at_step,
    clip_factor,
    ema_weights,
    one_minus_power,
    rectification,
)
from adamas.options import Decay, Options
from tests.support import rectified

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


#: Decay rates that rectify at some step, those of the smallest and the largest memory among them.
RECTIFYING = [
    0.67,
    0.7,
    0.8,
    0.9,
    0.95,
    0.99,
    0.999,
    1 - 1e-4,
    1 - 1e-6,
    1 - 1e-7,
    1 - 1e-12,
    1 - U,
]
COUNTS = [*range(1, 80), 127, 128, 129, 999, 4095, 10**4, 65537, 10**5 + 1, 10**6, 10**7]


@pytest.mark.parametrize("beta", RECTIFYING)
def test_the_rectification_is_liu_et_als_within_roundings_for_each_bit_of_t(beta):
    on = 0
    for t in COUNTS:
        ours, exact = rectification(beta, t), rectified.rectification(beta, t)
        assert (ours == 0) == (exact == 0), t
        with mpmath.workprec(400):
            bound = rectified.ROUNDINGS * t.bit_length() * U * exact
            assert abs(mpmath.mpf(ours) - exact) <= bound, t
        on += ours > 0
    assert on > 20


def test_the_papers_formula_of_the_rectification_loses_what_ours_keeps():
    def papers(beta, t):
        longest, power = 2 / (1 - beta) - 1, beta**t
        rho = longest - 2 * t * power / (1 - power)
        now, last = (rho - 4) * (rho - 2), (longest - 4) * (longest - 2)
        return math.sqrt(now * longest / (last * rho))

    def distance(computed, beta):
        exact = rectified.rectification(beta, 9)
        return abs(mpmath.mpf(computed) / exact - 1)

    betas = (0.999, 1 - 1e-5, 1 - 1e-7)
    assert max(distance(papers(beta, 9), beta) for beta in betas) > 10**6 * U
    assert max(distance(rectification(beta, 9), beta) for beta in betas) < 16 * U


@pytest.mark.parametrize("beta", [0.0, 1e-300, 0.5, 0.6, 2 / 3 - 1e-9])
def test_a_memory_of_five_steps_or_fewer_is_never_rectified(beta):
    assert [rectification(beta, t) for t in (1, 2, 5, 6, 100, 10**7, 2**53)] == [0.0] * 7


@pytest.mark.parametrize("beta", RECTIFYING)
def test_the_rectification_begins_once_and_ends_at_1(beta):
    """It grows with t, but for roundings."""
    made = [rectification(beta, t) for t in (*COUNTS, 2**52 + 1)]
    slack = 1 - 2 * rectified.ROUNDINGS * 53 * U
    assert all(later >= earlier * slack for earlier, later in itertools.pairwise(made))
    if 2**52 * (1 - beta) > 64:
        assert abs(made[-1] - 1) <= rectified.ROUNDINGS * 53 * U


def test_a_step_is_rectified_from_the_sixth_on():
    """At β2 = 0.999; before, nothing is divided, whatever ε is, and the decay keeps the rate."""
    for place in ("corrected", "uncorrected", "inside"):
        options = Options(
            rectify=True, eps=1e-3, eps_place=place, weight_decay=0.5, decay="decoupled"
        )
        plain = options.replace(rectify=False)
        for t in range(1, 12):
            numbers, usual = at_step(options, t, 0.25), at_step(plain, t, 0.25)
            if t < 6:
                assert numbers == usual._replace(root=0.0, eps=1.0)
            else:
                assert numbers == usual._replace(step=0.25 * rectification(0.999, t))


def test_rho_is_5_for_no_decay_rate_of_binary64():
    """So ``>`` and ``≥`` mean the same: what solves Σ (k - 3) β^(k-1) = 0 is no binary fraction.

    An odd number over a power of two that solves it has a numerator that divides the first
    coefficient, -2, and is 1: β is 1/2 or less. But then ρ is below 2/(1 - 1/2) - 1 = 3.
    """
    for t in range(4, 200):
        for denominator in (2, 4, 8, 16):
            terms = sum((k - 3) * denominator ** (t - k) for k in range(1, t + 1))
            assert terms != 0
    assert rectified.length(0.5, 10**4) <= 3


RATES = st.floats(0, 1, exclude_max=True)
AMOUNTS = st.one_of(st.just(0.0), st.floats(1e-30, 1e3))


@st.composite
def options(draw):
    method = draw(st.sampled_from(["adam", "momentum", "rmsprop", "descent"]))
    beta1 = draw(RATES) if method in ("adam", "momentum") else None
    beta2 = draw(RATES) if method in ("adam", "rmsprop") else None
    decay = draw(st.sampled_from(get_args(Decay)))
    rectify = method == "adam" and draw(st.booleans())
    return Options(
        lr=1.0,
        betas=(beta1, beta2),
        eps=draw(AMOUNTS),
        eps_root=draw(AMOUNTS),
        eps_place=draw(st.sampled_from(["corrected", "uncorrected", "inside"])),
        weight_decay=draw(AMOUNTS),
        decay=decay,
        lr_max=draw(st.floats(1e-10, 10)) if decay in ("fully-decoupled", "corrected") else None,
        bias_correction="paper"
        if rectify
        else draw(st.sampled_from(["paper", "first-step", "none"])),
        rectify=rectify,
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
    assert numbers == Coefficients(1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0.25)


@pytest.mark.parametrize(
    ("decay", "more", "l2", "shrink", "opposed"),
    [
        ("l2", {}, 0.1, 0.0, 0.0),
        ("decoupled", {}, 0.0, 0.05, 0.05),
        ("fully-decoupled", {"lr_max": 2.0}, 0.0, 0.1 * 0.25, 0.1 * 0.25),
        ("cautious", {}, 0.0, 0.05, 0.0),
        ("corrected", {"lr_max": 2.0}, 0.0, 0.5 * (0.1 * 0.25), 0.5 * (0.1 * 0.25)),
    ],
)
def test_each_kind_of_decay_has_its_place(decay, more, l2, shrink, opposed):
    numbers = at_step(Options(lr=0.5, weight_decay=0.1, decay=decay, **more), 3, 0.5)
    assert (numbers.l2, numbers.decay, numbers.opposed) == (l2, shrink, opposed)


@pytest.mark.parametrize("decay", ["fully-decoupled", "corrected"])
def test_a_fixed_rate_is_its_own_greatest(decay):
    options = Options(lr=0.5, weight_decay=0.1, decay=decay)
    assert options.lr_max == 0.5
    fully = 0.1 * 0.5
    wanted = fully if decay == "fully-decoupled" else 0.25 * fully
    assert at_step(options.replace(lr=0.25), 1, 0.25).decay == wanted


@given(st.floats(0, 1e3), st.floats(1e-10, 1e3))
@settings(max_examples=100, deadline=None)
def test_at_the_greatest_rate_a_corrected_decay_is_a_decoupled_one(weight_decay, lr):
    corrected = Options(lr=lr, weight_decay=weight_decay, decay="corrected")
    decoupled = Options(lr=lr, weight_decay=weight_decay, decay="decoupled")
    assert at_step(corrected, 1, lr) == at_step(decoupled, 1, lr)


@given(options(), st.integers(1, 10**6), AMOUNTS)
@settings(max_examples=100, deadline=None)
def test_decays_that_are_one_number_are_one_object_once_they_are_rounded(options, step, lr):
    with np.errstate(over="ignore", under="ignore"):
        numbers = at_step(options, step, lr).rounded(np.dtype(np.float32))
    assert (numbers.opposed is numbers.decay) == (numbers.opposed == numbers.decay)


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
