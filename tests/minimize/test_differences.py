"""adamas.minimize: slopes from differences and complex steps, and bounds, which both keep."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds

import adamas
from tests.support.bowls import CENTRE, WAYS, Counted, bowl, bowl_slope

# ── finite differences ─────────────────────────────────────────────────────────────────────────


def test_two_point_slopes_are_right_to_first_order_and_three_point_to_second():
    x = np.array([1.5, -2.0, 0.25])
    two = adamas.minimize(lambda x: np.exp(x).sum(), x, maxiter=0, jac="2-point")
    three = adamas.minimize(lambda x: np.exp(x).sum(), x, maxiter=0, jac="3-point")
    # Truncation h/2·f'' with h = 2^-26·2 and f'' < 4.5, rounding 2·2^-53·f/h with f < 6, doubled.
    assert np.max(np.abs(two.jac - np.exp(x))) < 2 * (2**-26 * 4.5 + 2**-26 * 6)
    # Truncation h²/6·f''' with h = 2^(-52/3)·2, rounding 2^-53·f/h·2, doubled.
    step = 2 ** (-52 / 3)
    assert np.max(np.abs(three.jac - np.exp(x))) < 2 * (4 * step**2 / 6 * 4.5 + 2**-52 * 6 / step)


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
@pytest.mark.parametrize("x0", [[0.0, 2.0], [1.0, 1.0], [0.5, 1.0 + 1e-9]])
def test_differences_stay_inside_the_bounds(jac, x0):
    bounds = [(0.0, 1.0), (1.0, 2.0)]
    fun = Counted(lambda x: float(x @ x))
    result = adamas.minimize(fun, x0, jac=jac, bounds=bounds, maxiter=0)
    points = np.array(fun.points)
    assert points.min(axis=0) @ [1, 0] >= 0.0
    assert points[:, 0].max() <= 1.0
    assert points[:, 1].min() >= 1.0
    assert points[:, 1].max() <= 2.0
    # h/2·f'' with h ≤ 2^-26·2, and rounding 2^-53·8/2^-26.
    assert np.max(np.abs(result.jac - 2 * np.array(x0))) < 2**-25 + 2**-24


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_differences_fit_into_a_box_narrower_than_their_step(jac):
    fun = Counted(lambda x: float(x @ x))
    width = 2.0**-30
    result = adamas.minimize(
        fun, [1.0 + width / 4], jac=jac, bounds=[(1.0, 1.0 + width)], maxiter=0
    )
    assert all(1.0 <= x[0] <= 1.0 + width for x in fun.points)
    # f' = 2 and f'' = 2, but values near 1 are 2^-52 apart: four of them over a step of 2^-32.
    assert abs(result.jac[0] - 2.0) < 8 * 2**-52 / 2**-32


def test_a_step_as_wide_as_the_box_does_not_round_out_of_it():
    lower, here, upper = -1.0, -0.947, 0.22
    assert here + (upper - here) > upper
    fun = Counted(lambda x: float(x[0]))
    adamas.minimize(fun, [here], bounds=[(lower, upper)], finite_diff_rel_step=10, maxiter=0)
    assert np.array_equal(fun.points, [[here], [upper]])


def test_an_element_that_is_held_fast_is_not_differentiated():
    fun = Counted(bowl)
    result = adamas.minimize(
        fun, np.zeros(3), bounds=[(None, None), (1.0, 1.0), (None, None)], maxiter=0
    )
    assert fun.calls == 3
    assert result.x[1] == 1.0
    assert result.jac[1] == 0.0


def test_a_wide_step_sees_through_noise():
    random = np.random.default_rng(0)
    result = adamas.minimize(
        lambda x: bowl(x) + 1e-3 * random.normal(),
        np.zeros(3),
        jac="3-point",
        finite_diff_rel_step=0.1,
        noisy=True,
        maxiter=1000,
    )
    # A difference has noise 1e-3·√2/0.2; over the curvature, at least 1, and without any averaging
    # that is 0.007. Six sigma.
    assert np.max(np.abs(result.x - CENTRE)) < 0.05


def test_complex_steps_are_exact_and_need_a_complex_function():
    """The imaginary part of f(x + ih)/h is off by h² only, far below the last digit."""
    seen = []

    def fun(x):
        seen.append(x.dtype.kind)
        return x[0] ** 3 + np.sin(x[1])

    result = adamas.minimize(fun, [1.0, 0.5], jac="cs", maxiter=0)
    assert result.jac == pytest.approx([3.0, np.cos(0.5)], rel=4e-16)
    assert seen == ["f", "c", "c"]
    with pytest.raises(TypeError, match='jac is "cs", which needs a complex number from fun'):
        adamas.minimize(lambda x: float(x[0].real), [1.0], jac="cs")


def test_differences_are_those_of_scipys_own_routine(monkeypatch):
    from adamas import quotients as front_end

    asked = []
    routine = front_end.approx_derivative

    def watched(*arguments, **options):
        asked.append(options["method"])
        return routine(*arguments, **options)

    monkeypatch.setattr(front_end, "approx_derivative", watched)
    for jac in (None, "2-point", "3-point"):
        adamas.minimize(bowl, np.zeros(3), jac=jac, maxiter=1)
    assert set(asked) == {"2-point", "3-point"}


# ── bounds ─────────────────────────────────────────────────────────────────────────────────────


@WAYS
@pytest.mark.parametrize(
    "bounds",
    [
        [(None, 1.0), (-1.0, None), (None, None)],
        [(-np.inf, 1.0), (-1.0, np.inf), (0, 2)],
        np.array([[-5.0, 1.0], [-1.0, 5.0], [-5.0, 5.0]]),
        Bounds([-np.inf, -1.0, -np.inf], [1.0, np.inf, np.inf]),
    ],
)
def test_bounds_that_are_active_at_the_minimum_are_met_exactly(way, bounds):
    fun = Counted(bowl)
    result = way(fun, np.zeros(3), jac=bowl_slope, bounds=bounds)
    assert result.success
    assert np.array_equal(result.x[:2], [1.0, -1.0])
    assert abs(result.x[2] - 0.5) <= 1e-5 / 25
    assert all(x[0] <= 1.0 and x[1] >= -1.0 for x in fun.points)


def test_one_bound_may_stand_for_all_elements():
    result = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, bounds=Bounds(0.0, 1.0))
    assert np.array_equal(result.x[:2], [1.0, 0.0])


def test_a_start_outside_the_bounds_is_moved_inside():
    fun = Counted(bowl)
    adamas.minimize(fun, [9.0, 9.0, 9.0], jac=bowl_slope, bounds=Bounds(-1.0, 1.0), maxiter=3)
    assert np.array_equal(fun.points[0], [1.0, 1.0, 1.0])
    assert np.max(np.abs(fun.points)) <= 1.0


def test_a_start_at_a_bound_that_is_the_minimum_is_the_result():
    result = adamas.minimize(lambda x: float(x[0]), [2.0], jac=lambda x: [1.0], bounds=[(2, 3)])
    assert (result.nit, result.nfev, result.success) == (0, 1, True)
