"""adamas.minimize of noisy functions without a gradient: steps that the noise allows, or a refusal.

Objectives draw their noise from a fixed seed. A run is believed (``success``) only if it found the
minimum to within what the noise of a single value hides.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize

import adamas
from adamas.noise import level, look


class Bowl:
    """A bowl of ``size`` elements, each with a curvature of its own, and noise from a seed."""

    def __init__(self, size, noise, seed=0):
        self.curvature = np.logspace(-0.5, 1.5, size)
        self.centre = np.linspace(-2.0, 3.0, size)
        self.noise, self.random = noise, np.random.default_rng(seed)
        self.calls = 0

    def exact(self, x):
        return float(0.5 * self.curvature @ (x - self.centre) ** 2)

    def __call__(self, x):
        self.calls += 1
        return self.exact(x) + self.noise * self.random.standard_normal()


def monte_carlo(seed, draws=16):
    """The mean over some draws of the squared distance from them: noise that grows with x."""
    random = np.random.default_rng(seed)
    centre = np.array([1.0, -2.0, 0.5, 3.0, -1.0])

    def fun(x):
        return float(np.mean(np.sum((x - centre - random.normal(size=(draws, 5))) ** 2, axis=1)))

    return fun, centre


def by_adamas(fun, x0, **options):
    return adamas.minimize(fun, x0, **options)


def by_scipy(fun, x0, **options):
    return scipy.optimize.minimize(fun, x0, method=adamas.minimize, options=options)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("way", [by_adamas, by_scipy])
@pytest.mark.parametrize("seed", range(2))
def test_a_monte_carlo_objective_without_a_gradient_is_solved(way, seed):
    fun, centre = monte_carlo(seed)
    result = way(fun, np.zeros(5), noisy=True, maxiter=2000)
    assert result.success
    assert result.message == "All 2000 steps were made."
    # The best known: jac="3-point", finite_diff_rel_step=0.1 comes to 0.04 or so.
    assert np.max(np.abs(result.x - centre)) < 0.1


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("noise", [0.0, 1e-9, 1e-3, 1.0, 10.0, 100.0, 1e6])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_success_is_never_told_of_what_the_noise_of_one_value_does_not_hide(size, noise):
    fun = Bowl(size, noise)
    start = np.full(size, 0.5)
    result = adamas.minimize(fun, start, noisy=True, maxiter=300)
    assert result.nfev == fun.calls
    assert np.isfinite(result.x).all()
    left, at_first = fun.exact(result.x), fun.exact(start)
    if result.success:
        assert left <= max(0.5 * noise, 1e-5)
        assert left < 0.01 * at_first or noise >= 0.1 * at_first
    else:
        # The flattest element falls by 1 on its way: what is refused may be hidden.
        assert noise >= 1.0
        assert result.status in (1, 4)
        assert "noise" in result.message


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("noise", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("size", [1, 5])
def test_what_stands_out_of_its_noise_is_solved(size, noise):
    fun = Bowl(size, noise)
    result = adamas.minimize(fun, np.full(size, 0.5), noisy=True, maxiter=1000)
    assert result.success
    assert fun.exact(result.x) < 0.05 * noise


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("step", "is_wide"), [(None, True), (0.1, True), (1.5e-8, False),
                                               (1e-4, False), (1e-3, False)])  # fmt: skip
def test_a_step_of_ones_own_that_is_too_narrow_is_no_success(step, is_wide):
    fun = Bowl(5, 0.1)
    options = {"jac": "3-point", "finite_diff_rel_step": step, "noisy": True, "maxiter": 1000}
    result = adamas.minimize(fun, np.full(5, 0.5), **options)
    assert result.success == is_wide == (fun.exact(result.x) < 0.1)
    assert result.nfev == fun.calls
    if not is_wide:
        assert result.status == 1
        assert result.message.startswith(
            "All 1000 steps were made, but by its mean gradient fun could still fall by about "
        )
        assert result.message.endswith(
            "Raise maxiter. Widen finite_diff_rel_step or leave it out, or give the gradient as "
            "jac."
        )


def test_noise_that_hides_everything_is_refused_before_the_first_step():
    fun = Bowl(3, 1e6)
    result = adamas.minimize(fun, np.ones(3), noisy=True)
    assert (result.status, result.success, result.nit) == (4, False, 0)
    assert np.array_equal(result.x, np.ones(3))
    assert result.nfev == fun.calls
    assert result.message.startswith(
        "Nothing that fun does within a step of max(1, |x|) around x0 stands out of its noise, "
    )
    assert result.message.endswith(
        ". Give its gradient as jac, a wider finite_diff_rel_step, or the mean of more draws as "
        "fun."
    )


def test_an_element_that_noise_hides_is_named():
    random = np.random.default_rng(0)
    result = adamas.minimize(
        lambda x: (x[0] - 2) ** 2 + 0.1 * random.normal(), np.zeros(3), noisy=True, maxiter=500
    )
    assert (result.status, result.success) == (4, False)
    assert result.message.startswith(
        "What x[1], x[2] do to fun does not stand out of its noise, 0."
    )
    assert abs(result.x[0] - 2) < 0.05
    # Held fast, they are not asked about.
    bounds = [(None, None), (0.0, 0.0), (1.0, 1.0)]
    result = adamas.minimize(
        lambda x: (x[0] - 2) ** 2 + 0.1 * random.normal(),
        np.zeros(3),
        noisy=True,
        maxiter=500,
        bounds=bounds,
    )
    assert result.success
    assert abs(result.x[0] - 2) < 0.05


def test_a_start_at_the_minimum_is_a_success():
    for options in ({}, {"jac": "3-point", "finite_diff_rel_step": 0.1}):
        fun = Bowl(5, 0.1)
        result = adamas.minimize(fun, fun.centre, noisy=True, maxiter=500, **options)
        assert result.success
        assert fun.exact(result.x) < 0.1


def test_steps_and_looks_stay_inside_the_bounds():
    random = np.random.default_rng(0)
    points = []

    def fun(x):
        points.append(x.copy())
        return float(x.sum()) + 0.1 * random.normal()

    bounds = [(0.0, 1.0), (-3.0, -2.75)]
    result = adamas.minimize(fun, [0.5, -2.9], noisy=True, bounds=bounds, maxiter=400)
    points = np.array(points)
    assert points.min(axis=0) @ [1, 0] >= 0.0
    assert points[:, 0].max() <= 1.0
    assert points[:, 1].min() >= -3.0
    assert points[:, 1].max() <= -2.75
    assert result.success
    assert np.max(np.abs(result.x - [0.0, -3.0])) < 0.01


def test_a_forward_difference_is_balanced_with_the_mean_of_the_run():
    fun = Bowl(5, 0.1)
    result = adamas.minimize(fun, np.full(5, 0.5), jac="2-point", noisy=True, maxiter=1000)
    assert result.success
    assert fun.exact(result.x) < 0.05


def test_a_staircase_is_walked_down_though_its_steps_are_flat():
    result = adamas.minimize(
        lambda x: math.floor(20 * float(x @ x)) / 20, [2.5, 2.0], noisy=True, maxiter=500
    )
    assert result.success
    assert np.max(np.abs(result.x)) < 0.2


def test_walls_of_infinity_beside_x_do_not_widen_the_step():
    """The square root of a negative number is NaN, which ends a run: no step may come there."""
    random = np.random.default_rng(0)

    def fun(x):
        wall = math.inf if x[0] < 0.2 else 0.0
        return (x[0] - 1) ** 2 + wall + 1e-3 * random.normal()

    result = adamas.minimize(fun, [1.5], noisy=True, maxiter=300)
    assert result.success
    assert abs(result.x[0] - 1) < 0.02


def test_an_exact_gradient_is_not_looked_at():
    fun = Bowl(5, 100.0)
    result = adamas.minimize(
        fun, np.zeros(5), jac=lambda x: fun.curvature * (x - fun.centre), noisy=True, maxiter=300
    )
    assert result.success
    assert result.nfev == fun.calls == 302


# ── the noise itself ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("noise", [1e-12, 1e-3, 1.0, 1e5])
def test_the_level_of_noise_is_that_of_the_values_about_any_smooth_function(noise):
    random = np.random.default_rng(0)
    x = np.linspace(1.0, 1.02, 25)
    found = [level(np.exp(x) + noise * random.standard_normal(25)) for _ in range(200)]
    # A level is a root of a mean over some twenty squares: one in six times is off by a fifth.
    assert 0.9 * noise < np.median(found) < 1.1 * noise
    assert np.quantile(found, 0.01) > 0.4 * noise
    assert np.quantile(found, 0.99) < 2.0 * noise


def test_a_smooth_function_has_no_noise_but_rounding():
    x = np.linspace(1.0, 1.02, 25)
    assert level(np.exp(x)) < 4 * np.spacing(3.0)
    assert level(np.zeros(25)) == 0.0


def test_a_step_is_as_wide_as_noise_and_curvature_ask_for():
    random = np.random.default_rng(0)
    curvature = np.array([2.0, 200.0])

    def values_at(points):
        return [0.5 * curvature @ p**2 + 1e-4 * random.normal() for p in points]

    none = np.full(2, np.inf)
    found = look(values_at, np.array([0.3, 0.1]), -none, none)
    # 8^(1/4) √(noise / f''), and both are known to a third or so.
    wanted = 8**0.25 * np.sqrt(1e-4 / curvature)
    assert (found.steps / wanted > 0.6).all()
    assert (found.steps / wanted < 1.6).all()
    assert found.seen.all()
