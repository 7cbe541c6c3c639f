"""Decay rates and half-lives: the nearest float64, one the inverse of the other."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamas

LIVES = st.floats(1e-3, 1e12)
STEPS = st.one_of(st.just(1.0), st.floats(1e-2, 1e9), st.integers(1, 2**40).map(float))


def nearest(exact):
    """The float64 nearest to a number of mpmath."""
    with mpmath.workprec(53):
        return float(+exact)


@given(LIVES, STEPS)
@settings(max_examples=100, deadline=None)
def test_a_decay_rate_is_the_nearest_to_the_formula(life, every):
    with mpmath.workprec(200):
        exact = mpmath.mpf(2) ** (-mpmath.mpf(every) / mpmath.mpf(life))
    wanted = nearest(exact)
    if wanted == 1:
        with pytest.raises(ValueError, match="nothing would be forgotten"):
            adamas.beta_for(life, every)
    elif wanted > 1e-300:
        assert adamas.beta_for(life, every) == wanted


@given(st.floats(0, 1, exclude_max=True, exclude_min=True), STEPS)
@settings(max_examples=100, deadline=None)
def test_a_half_life_is_the_nearest_to_the_formula(beta, every):
    with mpmath.workprec(200):
        exact = mpmath.mpf(every) * mpmath.log(2) / -mpmath.log(mpmath.mpf(beta))
    assert adamas.half_life(beta, every) == nearest(exact)


@given(st.floats(0.5, 1, exclude_max=True))
@settings(max_examples=100, deadline=None)
def test_the_decay_rate_of_its_half_life_is_the_same_again(beta):
    """A half-life is off by 2^-53 of itself, and so β by β·|ln β|·2^-53 < 0.37 units in its last
    place."""
    assert adamas.beta_for(adamas.half_life(beta)) == beta


def test_a_value_counts_half_after_its_half_life():
    beta = adamas.beta_for(10)
    series = adamas.ema([1.0] + [0.0] * 10, beta, debias=False)
    assert series[10] / series[0] == pytest.approx(0.5, rel=20 * 2.0**-53)


def test_the_memory_in_tokens_stays_when_the_batch_changes():
    """Twice the batch: a decay rate for two of the former steps, within its rounding."""
    life = adamas.half_life(0.95, every=512)
    for batch in (1, 8, 64, 512, 4096):
        beta = adamas.beta_for(life, every=batch)
        assert math.isclose(beta, 0.95 ** (batch / 512), rel_tol=4 * 2.0**-53)
    assert adamas.beta_for(life, every=512) == 0.95


def test_what_is_forgotten_at_once_has_a_rate_and_a_half_life_of_0():
    assert adamas.half_life(0.0, every=64) == 0.0
    assert adamas.beta_for(1e-300, every=1e300) == 0.0


@given(LIVES, st.floats(1023, 1076))
@settings(max_examples=50, deadline=None)
def test_rates_below_the_normal_numbers_are_the_nearest(life, halvings):
    """Below 2^-1022 numbers have fewer digits: 2^-1074 is the smallest of all."""
    every = life * halvings
    with mpmath.workprec(200):
        steps = mpmath.ldexp(mpmath.mpf(2) ** (-mpmath.mpf(every) / mpmath.mpf(life)), 1074)
    assert adamas.beta_for(life, every) == math.ldexp(float(mpmath.nint(steps)), -1074)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, Fraction, Decimal])
def test_numbers_of_all_kinds_are_taken_as_what_they_are(kind):
    assert adamas.half_life(kind(0.875), kind(64)) == adamas.half_life(0.875, 64.0)
    assert adamas.beta_for(kind(64), kind(2)) == adamas.beta_for(64, 2)


LONG = (
    "half_life is 1e+17 and every is 1, so that the decay rate is 1 in float64 and nothing would "
    "be forgotten. Give a half-life of less than 10^16 steps."
)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: adamas.beta_for(0),
            ValueError,
            "half_life is 0.0, but it must be finite and above 0.",
        ),
        (
            lambda: adamas.beta_for(math.nan),
            ValueError,
            "half_life is nan, but it must be finite and above 0.",
        ),
        (
            lambda: adamas.beta_for(10, every=-1),
            ValueError,
            "every is -1.0, but it must be finite and above 0.",
        ),
        (
            lambda: adamas.beta_for(math.inf),
            ValueError,
            "half_life is inf, but it must be finite and above 0.",
        ),
        (
            lambda: adamas.beta_for("10"),
            TypeError,
            "half_life is '10', but it must be a number. It is text: give float('10').",
        ),
        (lambda: adamas.beta_for(1e17), ValueError, LONG),
        (
            lambda: adamas.half_life(1.0),
            ValueError,
            "beta is 1.0, but a decay rate must be at least 0 and less than 1.",
        ),
        (
            lambda: adamas.half_life(0.9, every=1e308),
            ValueError,
            "beta is 0.9 and every is 1e+308, so that the half-life is above the largest number of "
            "float64. Give every in a larger unit.",
        ),
        (
            lambda: adamas.half_life(0.25, every=5e-324),
            ValueError,
            "beta is 0.25 and every is 5e-324, so that the half-life is below the smallest number "
            "of float64. Give every in a smaller unit.",
        ),
        (
            lambda: adamas.half_life(10**400),
            ValueError,
            "beta is inf, but a decay rate must be at least 0 and less than 1.",
        ),
        (
            lambda: adamas.half_life(True),
            TypeError,
            "beta is True, but it must be a number.",
        ),
        (
            lambda: adamas.beta_for(np.array([1.0, 2.0])),
            TypeError,
            "half_life is array([1., 2.]), but it must be a number.",
        ),
        (
            lambda: adamas.beta_for(10, every="a batch"),
            TypeError,
            "every is 'a batch', but it must be a number.",
        ),
        (
            lambda: adamas.half_life(0.9, every=0),
            ValueError,
            "every is 0.0, but it must be finite and above 0.",
        ),
    ],
)
def test_what_is_no_span_is_refused(call, error, text):
    with pytest.raises(error) as refused:
        call()
    assert str(refused.value) == text
