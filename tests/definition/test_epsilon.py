"""How many elements have √v̂ below ε, told by v as it is stored."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

import adamas
from adamas import epsilon
from adamas.coefficients import at_step, one_minus_power
from adamas.options import Options

FORMS = ["float32", "bfloat16", "compact", "8bit"]


def squares(optimizer):
    """v by name, decoded; the largest one where it is kept."""
    stored = optimizer.state_dict()["state"]
    return {name: each.get("largest_square", each["square"]) for name, each in stored.items()}


def shares(optimizer):
    numbers = at_step(optimizer.groups[0].options, optimizer.steps, 0.0)
    group = optimizer.groups[0]
    bounds = [epsilon.v_bound(numbers)] * len(group.names)
    return dict(zip(group.names, epsilon.shares_below(group.states, bounds), strict=True))


def trained(steps=3, *, size=2_500, dtype=np.float32, **options):
    random = np.random.default_rng(7)
    weights = {
        "a": np.zeros(size, dtype),
        "b": np.zeros((3, 64), dtype),
        "none": np.zeros(0, dtype),
    }
    optimizer = adamas.Adam(weights, lr=1e-3, **options)
    for _ in range(steps):
        optimizer.step(
            {
                name: (
                    random.standard_normal(p.shape) * 10.0 ** random.uniform(-12, -4, p.shape)
                ).astype(dtype)
                for name, p in weights.items()
            }
        )
    return optimizer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("eps", [1e-8, 3e-7, 1e-30, 0.0])
def test_shares_are_those_of_the_decoded_squares(form, eps):
    optimizer = trained(state=form, eps=eps)
    unbias = one_minus_power(0.999, 3)
    for name, v in squares(optimizer).items():
        expected = [Fraction(float(x)) < Fraction(eps * eps * unbias) for x in v.ravel()]
        share = sum(expected) / len(expected) if expected else 0.0
        assert shares(optimizer)[name] == share
    if eps == 3e-7:
        assert 0.1 < shares(optimizer)["a"] < 0.9


@pytest.mark.parametrize("form", FORMS)
def test_a_bound_between_two_stored_numbers_parts_them(form):
    """At each stored number: it is not below itself, and below the next number."""
    optimizer = trained(state=form)
    ((_, state), *_) = zip(optimizer.groups[0].names, optimizer.groups[0].states, strict=True)
    v = squares(optimizer)["a"].ravel().astype(np.float64)
    for bound in [*np.unique(v)[:: max(1, len(np.unique(v)) // 40)], 0.0, math.inf]:
        for exact in (bound, np.nextafter(bound, math.inf), np.nextafter(bound, 0.0)):
            stored = epsilon.Stored(state.square, state.forms[1], state.header)
            (found,) = epsilon.counts_below([stored], [float(exact)])
            assert found == np.count_nonzero(v < exact)


def test_elements_without_any_gradient_are_below_and_those_at_eps_are_not():
    weights = np.zeros(4)
    optimizer = adamas.Adam(weights, betas=(0.0, 0.0), eps=0.25)
    optimizer.step(np.array([0.0, 0.25, 0.2499, 1.0]))
    assert shares(optimizer) == {optimizer.groups[0].names[0]: 0.5}


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("eps", [0.25, 0.125])
def test_what_is_at_eps_exactly_is_not_below_whatever_is_rounded(step, eps):
    numbers = at_step(Options(betas=(0.5, 0.5), eps=eps), step, 0.1)
    at = np.array([eps * eps * one_minus_power(0.5, step)], np.float32)
    before = np.nextafter(at, np.float32(0))
    bound = epsilon.v_bound(numbers)
    stored = [epsilon.Stored(v, "float32", None) for v in (at, before)]
    assert epsilon.counts_below(stored, [bound] * 2) == [0, 1]


def test_the_largest_square_counts_where_it_is_kept():
    optimizer = adamas.Adam(np.zeros(2), betas=(0.0, 0.0), eps=0.5, amsgrad=True)
    optimizer.step(np.array([1.0, 0.0]))
    optimizer.step(np.array([0.0, 0.0]))
    assert [*shares(optimizer).values()] == [0.5]


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"eps": 1e-4}, 1e-8 * 0.19),
        ({"eps": 1e-4, "eps_place": "uncorrected"}, 1e-8),
        ({"eps": 1e-4, "eps_place": "inside"}, 1e-4 * 0.19),
        ({"eps": 1e-8, "eps_root": 1e-6}, 1e-6 * 0.19),
        ({"eps": 1e-2, "eps_root": 1e-6}, 1e-4 * 0.19),
        ({"eps": 1e-4, "bias_correction": "none"}, 1e-8),
    ],
)
def test_the_bound_follows_the_place_of_eps(options, bound):
    numbers = at_step(Options(betas=(0.9, 0.9), **options), 2, 0.1)
    assert epsilon.v_bound(numbers) == pytest.approx(bound, rel=1e-12)


def test_without_a_second_moment_there_is_no_share():
    optimizer = adamas.Momentum(np.zeros(3))
    optimizer.step(np.ones(3))
    assert [*shares(optimizer).values()] == [None]


@pytest.mark.parametrize("size", [1, 31, 33, epsilon.AT_ONCE - 1, 6 * epsilon.AT_ONCE + 33])
def test_every_element_is_counted_once_whatever_the_size(size):
    for form in FORMS:
        optimizer = adamas.Adam(np.zeros(size, np.float32), state=form, eps=1e-3)
        optimizer.step(np.zeros(size, np.float32))
        assert [*shares(optimizer).values()] == [1.0]
        optimizer.step(np.ones(size, np.float32))
        assert [*shares(optimizer).values()] == [0.0]
