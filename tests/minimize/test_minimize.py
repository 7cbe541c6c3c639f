"""adamas.minimize: SciPy's conventions, honest counts, the point it returns, and its errors."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import Bounds, OptimizeResult, OptimizeWarning, rosen, rosen_der

import adamas

START = np.array([-1.2, 1.0])
CENTRE = np.array([3.0, -2.0, 0.5])
CURVATURE = np.array([1.0, 4.0, 25.0])


def bowl(x):
    return 0.5 * float(CURVATURE @ (x - CENTRE) ** 2)


def bowl_slope(x):
    return CURVATURE * (x - CENTRE)


def bowl_both(x):
    return bowl(x), bowl_slope(x)


class Counted:
    """A function that remembers where it was called."""

    def __init__(self, function):
        self.function = function
        self.points = []

    def __call__(self, x, *args):
        self.points.append(x.copy())
        return self.function(x, *args)

    @property
    def calls(self):
        return len(self.points)


class NoisyBowl:
    """The bowl with noise in value and gradient, from a fixed seed."""

    def __init__(self, seed=0, noise=3.0):
        self.random = np.random.default_rng(seed)
        self.noise = noise
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        value = bowl(x) + self.noise * self.random.normal()
        return value, bowl_slope(x) + self.noise * self.random.normal(size=x.size)


def by_adamas(fun, x0, options=None, **arguments):
    return adamas.minimize(fun, x0, options=options, **arguments)


def by_scipy(fun, x0, options=None, **arguments):
    return scipy.optimize.minimize(fun, x0, method=adamas.minimize, options=options, **arguments)


#: The two ways in.
WAYS = pytest.mark.parametrize("way", [by_adamas, by_scipy])
#: The bowl's value and gradient in each form that jac may have.
FORMS = pytest.mark.parametrize(
    ("fun", "jac"),
    [(bowl, bowl_slope), (bowl_both, True), (bowl, None), (bowl, "2-point"), (bowl, "3-point")],
    ids=["function", "pair", "none", "2-point", "3-point"],
)

# ── it finds minima ────────────────────────────────────────────────────────────────────────────


@WAYS
@FORMS
def test_every_form_of_the_gradient_leads_to_the_minimum(way, fun, jac):
    result = way(fun, np.zeros(3), jac=jac)
    assert result.success
    assert result.status == 0
    # The gradient of "2-point" is wrong by h/2·f'' ≤ 25/2·3·1.5e-8 < 1e-6, and gtol is 1e-5; x is
    # off by the gradient over the curvature, which is at least 1.
    assert np.max(np.abs(result.x - CENTRE)) <= 1.2e-5
    assert isinstance(result, OptimizeResult)


@WAYS
@pytest.mark.parametrize("size", [2, 10])
def test_rosenbrocks_valley_is_walked_to_its_end_with_the_defaults(way, size):
    result = way(rosen, np.resize(START, size), jac=rosen_der)
    assert result.success
    assert np.max(np.abs(rosen_der(result.x))) <= 1e-5
    assert np.max(np.abs(result.x - 1)) < 0.01


@pytest.mark.parametrize("options", [{"method": "rmsprop"}, {"method": "momentum"}, {"lr": 0.3}])
def test_every_method_and_a_rate_of_ones_own_lead_to_the_minimum(options):
    result = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, **options)
    assert result.success
    assert np.max(np.abs(result.x - CENTRE)) <= 1e-5


@pytest.mark.parametrize(
    "options", [{"amsgrad": True}, {"nesterov": True}, {"betas": (0.8, 0.99)}, {"clip_norm": 0.5}]
)
def test_options_of_the_optimizer_change_the_path(options):
    plain = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, maxiter=20)
    other = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, maxiter=20, **options)
    assert not np.array_equal(plain.x, other.x)


def test_a_run_makes_the_steps_of_adam_at_the_rates_of_half_a_cosine():
    path = []
    adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, lr=0.25, maxiter=5, callback=path.append)
    x = np.zeros(3)
    rates = [0.25 * (0.5 + 0.5 * math.cos(math.pi * t / 5)) for t in range(5)]
    optimizer = adamas.Adam(x, lr=lambda step: rates[step - 1])
    for seen in path:
        optimizer.step(bowl_slope(x))
        assert np.array_equal(seen, x)
    assert len(path) == 5


def test_a_schedule_is_taken_as_it_is():
    asked = []

    def rate(step):
        asked.append(step)
        return 0.125

    result = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, lr=rate, maxiter=3, eps=0.0)
    assert asked == [1, 2, 3]
    assert result.nit == 3


def test_a_fully_decoupled_decay_knows_the_greatest_rate():
    options = {"decay": "fully-decoupled", "weight_decay": 0.01, "maxiter": 5}
    given = adamas.minimize(bowl, np.ones(3), jac=bowl_slope, lr=0.2, lr_max=0.2, **options)
    known = adamas.minimize(bowl, np.ones(3), jac=bowl_slope, lr=0.2, **options)
    assert np.array_equal(given.x, known.x)


# ── what comes back ────────────────────────────────────────────────────────────────────────────


@WAYS
@FORMS
@pytest.mark.parametrize("maxiter", [0, 1, 7, 50])
def test_the_value_is_that_of_the_point_exactly_and_no_worse_than_the_start(way, fun, jac, maxiter):
    result = way(fun, np.zeros(3), jac=jac, options={"maxiter": maxiter, "lr": 2.0})
    assert result.fun == bowl(result.x)
    assert result.fun <= bowl(np.zeros(3))
    assert result.nit == maxiter


def test_the_best_point_seen_comes_back_with_its_own_gradient():
    fun = Counted(bowl)
    result = adamas.minimize(fun, np.zeros(3), jac=bowl_slope, lr=lambda _: 2.0, maxiter=30)
    values = [bowl(x) for x in fun.points]
    assert values[-1] != min(values)
    assert result.fun == min(values)
    assert np.array_equal(result.jac, bowl_slope(result.x))


@WAYS
@FORMS
def test_the_counts_are_the_calls(way, fun, jac):
    fun = Counted(fun)
    slope = Counted(jac) if callable(jac) else jac
    result = way(fun, np.zeros(3), jac=slope, options={"maxiter": 20})
    assert result.nfev == fun.calls
    assert result.njev == (slope.calls if callable(slope) else 21)
    assert result.nit == 20


@WAYS
@FORMS
def test_no_point_is_evaluated_twice(way, fun, jac):
    fun = Counted(fun)
    way(fun, np.zeros(3), jac=jac, options={"maxiter": 20})
    assert len({x.tobytes() for x in fun.points}) == fun.calls


def test_where_x_stands_still_nothing_is_evaluated_again():
    fun = Counted(bowl)
    result = adamas.minimize(fun, np.zeros(3), jac=bowl_slope, lr=lambda _: 0.0, maxiter=9)
    assert (fun.calls, result.nfev, result.njev, result.nit) == (1, 1, 1, 9)


def test_the_users_arrays_are_left_alone():
    x0 = np.zeros(3)
    result = adamas.minimize(bowl, x0, jac=bowl_slope, maxiter=5)
    assert np.array_equal(x0, np.zeros(3))
    assert not np.shares_memory(result.x, x0)


@WAYS
def test_functions_may_overwrite_x_and_reuse_a_buffer(way):
    buffer = np.empty(3)

    def fun(x):
        value = bowl(x)
        x[:] = np.nan
        return value

    def slope(x):
        buffer[:] = bowl_slope(x)
        x[:] = np.nan
        return buffer

    # So fast that the best point is not the last: its gradient has to outlive later calls.
    options = {"maxiter": 30, "lr": lambda _: 2.0}
    plain = way(bowl, np.zeros(3), jac=bowl_slope, options=options)
    rough = way(fun, np.zeros(3), jac=slope, options=options)
    assert np.array_equal(plain.x, rough.x)
    assert np.array_equal(plain.jac, rough.jac)


@WAYS
@pytest.mark.parametrize("args", [(2.0,), 2.0])
def test_arguments_reach_both_functions(way, args):
    result = way(lambda x, a: (x[0] - a) ** 2, [0.0], args=args, jac=lambda x, a: 2 * (x - a))
    assert abs(result.x[0] - 2.0) <= 5e-6  # gtol / f''


@WAYS
@pytest.mark.parametrize("x0", [5, 5.0, [5], np.float32(5), np.array([5], dtype=np.int8)])
def test_numbers_and_integers_are_starts(way, x0):
    result = way(lambda x: float(x[0] ** 2), x0, jac=lambda x: 2 * x)
    assert result.x.shape == (1,)
    assert result.x.dtype == np.float64
    assert abs(result.x[0]) <= 5e-6


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


@pytest.mark.parametrize("maxiter", [3e1, np.int32(30), np.float32(30)])
def test_a_whole_number_may_be_a_float_or_numpys(maxiter):
    result = adamas.minimize(bowl, np.zeros(3), maxiter=maxiter, patience=1e2)
    plain = adamas.minimize(bowl, np.zeros(3), maxiter=30, patience=100)
    assert result.nit == 30
    assert np.array_equal(result.x, plain.x)


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


# ── noise ──────────────────────────────────────────────────────────────────────────────────────


@WAYS
def test_a_noisy_function_ends_nearer_the_minimum_than_its_luckiest_draw(way):
    errors, lucky = [], []
    for seed in range(5):
        options = {"maxiter": 2000, "noisy": True}
        result = way(NoisyBowl(seed), np.zeros(3), jac=True, options=options)
        assert result.success
        assert result.message == "All 2000 steps were made."
        errors.append(bowl(result.x))
        luck = way(NoisyBowl(seed), np.zeros(3), jac=True, options={"maxiter": 2000})
        lucky.append(bowl(luck.x))
        assert luck.fun < 0 <= bowl(luck.x)  # the smallest value flatters
    assert np.mean(errors) < 0.1 * np.mean(lucky)


@WAYS
def test_the_mean_of_the_iterates_comes_back_with_one_call_of_its_own(way):
    path = []
    fun = NoisyBowl()
    options = {"maxiter": 30, "noisy": True, "ema": 0.5, "lr": lambda _: 0.1}
    result = way(fun, np.zeros(3), jac=True, callback=path.append, options=options)
    mean = path[0]
    for x in path[1:]:
        mean = 0.5 * mean + 0.5 * x
    assert np.array_equal(result.x, mean)
    assert fun.calls == 32 == result.nfev == result.njev


def test_an_ema_of_zero_gives_the_last_iterate_without_another_call():
    path = []
    fun = NoisyBowl()
    result = adamas.minimize(
        fun, np.zeros(3), jac=True, callback=path.append, noisy=True, ema=0.0, maxiter=9
    )
    assert np.array_equal(result.x, path[-1])
    assert fun.calls == 10 == result.nfev


def test_a_noisy_function_is_called_again_where_x_stands_still():
    fun = NoisyBowl()
    adamas.minimize(fun, np.zeros(3), jac=True, noisy=True, lr=lambda _: 0.0, maxiter=9)
    assert fun.calls == 10


def test_the_mean_of_a_noisy_run_does_not_round_out_of_the_bounds():
    upper, ema = 2.82, 0.44
    assert ema * upper + (1 - ema) * upper > upper
    result = adamas.minimize(
        lambda x: (-x[0], [-1.0]),
        [upper],
        jac=True,
        bounds=[(0.0, upper)],
        noisy=True,
        ema=ema,
        maxiter=2,
    )
    assert result.x[0] == upper


def test_a_gradient_that_vanishes_by_chance_does_not_end_a_noisy_run():
    slopes = iter([0.0, 1.0, 0.0, 1.0])
    result = adamas.minimize(
        lambda x: (0.0, [next(slopes)]), [0.0], jac=True, noisy=True, ema=0.0, maxiter=3
    )
    assert result.nit == 3


# ── the end ────────────────────────────────────────────────────────────────────────────────────


def test_a_start_that_is_a_minimum_costs_one_call():
    result = adamas.minimize(bowl, CENTRE, jac=bowl_slope)
    assert (result.nit, result.nfev, result.njev, result.status) == (0, 1, 1, 0)
    assert result.message == "The gradient is zero to within gtol: 0."


@WAYS
def test_steps_that_run_out_are_no_success(way):
    result = way(rosen, START, jac=rosen_der, options={"maxiter": 10})
    assert (result.success, result.status, result.nit) == (False, 1, 10)
    assert result.message == "maxiter=10 steps were made and no tolerance was met."


@WAYS
def test_a_smaller_tolerance_gives_a_smaller_gradient(way):
    loose = way(bowl, np.zeros(3), jac=bowl_slope, tol=1e-2)
    tight = way(bowl, np.zeros(3), jac=bowl_slope, tol=1e-9, options={"ftol": 0.0})
    assert loose.success
    assert tight.success
    assert np.max(np.abs(loose.jac)) <= 1e-2
    assert np.max(np.abs(tight.jac)) <= 1e-9
    assert loose.nit < tight.nit


def test_gtol_goes_before_tol():
    result = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, tol=1e-9, gtol=1e-2, ftol=0.0)
    assert 1e-9 < np.max(np.abs(result.jac)) <= 1e-2


def test_a_gradient_that_vanishes_above_the_best_point_does_not_end_the_run():
    # A hill at 0 with a value above that of the start, between a start at -1 and the way down.
    result = adamas.minimize(
        lambda x: (float(x[0] > -0.5) * (2.0 - x[0]), [0.0 if -0.5 < x[0] < 0.2 else -1.0]),
        [-1.0],
        jac=True,
        lr=lambda _: 0.2,
        maxiter=20,
    )
    assert result.nit == 20


def test_ftol_ends_a_run_whose_value_has_not_fallen_for_patience_steps():
    fun = Counted(lambda x: float(np.abs(x).sum()))
    result = adamas.minimize(fun, [0.3], jac=np.sign, ftol=1e-3, patience=25, lr=lambda _: 0.05)
    best = min(range(fun.calls), key=lambda i: abs(fun.points[i][0]))
    assert result.success
    assert result.message == "fun has not fallen by ftol in 25 steps."
    # What fell by less than ftol after the mark does not count, so the best is at or past it.
    assert 0 < result.nit - best <= 25


def test_ftol_does_not_take_a_fall_from_infinity_for_none():
    values = iter([np.inf, 3.0, *[2.0] * 10])
    result = adamas.minimize(
        lambda x: (next(values), [1.0]), [0.0], jac=True, ftol=1e-6, patience=3
    )
    assert result.nit == 5


@WAYS
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_nan_ends_the_run_at_the_best_finite_point(way, where):
    calls = []

    def fun(x):
        calls.append(x)
        value, slope = bowl_both(x)
        if len(calls) < 6:
            return value, slope
        return (math.nan, slope) if where == "value" else (value, slope * math.nan)

    result = way(fun, np.zeros(3), jac=True)
    assert (result.success, result.status, result.nit) == (False, 3, 5)
    assert np.isfinite(result.x).all()
    assert result.fun == bowl(result.x) < bowl(np.zeros(3))
    assert result.message == "fun or its gradient is not finite. x is what had been reached before."


def test_nan_at_the_start_gives_the_start_back():
    slope = Counted(bowl_slope)
    result = adamas.minimize(lambda x: math.nan, [1.0, 2.0], jac=slope)
    assert (result.status, result.nit, result.nfev, result.njev) == (3, 0, 1, 0)
    assert np.array_equal(result.x, [1.0, 2.0])


def test_nan_in_a_noisy_run_leaves_a_finite_mean_of_what_came_before():
    path = []

    def fun(x):
        return (bowl(x) if len(path) < 5 else math.nan), bowl_slope(x)

    result = adamas.minimize(fun, np.zeros(3), jac=True, noisy=True, callback=path.append, ema=0.0)
    assert result.status == 3
    assert np.array_equal(result.x, path[4])


def test_nan_at_the_mean_of_a_noisy_run_is_no_success():
    def fun(x):
        return (math.nan if len(path) == 4 else bowl(x)), bowl_slope(x)

    path = []
    result = adamas.minimize(
        fun, np.zeros(3), jac=True, noisy=True, callback=path.append, ema=0.5, maxiter=4
    )
    assert (result.nit, result.nfev) == (4, 6)
    assert (result.success, result.status) == (False, 3)
    assert np.isfinite(result.x).all()


def test_a_step_that_overflows_ends_the_run_at_a_finite_point():
    result = adamas.minimize(
        lambda x: -float(x[0] / 1e308), [1e308], jac=lambda x: [-1.0], lr=lambda _: 1e308
    )
    assert result.status == 3
    assert np.isfinite(result.x).all()


def test_an_infinite_value_is_a_wall_and_not_the_end():
    result = adamas.minimize(
        lambda x: float(x[0]) if x[0] >= 0 else math.inf, [0.3], jac=lambda x: [1.0], maxiter=20
    )
    assert result.status == 1
    assert 0 <= result.x[0] < 0.1


# ── callback, bar, print ───────────────────────────────────────────────────────────────────────


@WAYS
def test_a_callback_of_x_gets_a_copy_of_each_iterate(way):
    fun, seen = Counted(bowl), []

    def callback(xk):
        seen.append(xk.copy())
        xk[:] = np.nan

    result = way(fun, np.zeros(3), jac=bowl_slope, callback=callback, options={"maxiter": 8})
    assert np.array_equal(seen, fun.points[1:])
    assert np.isfinite(result.x).all()
    assert len(seen) == result.nit == 8


@WAYS
def test_a_callback_of_an_intermediate_result_gets_copies(way):
    seen = []

    def callback(*, intermediate_result):
        assert isinstance(intermediate_result, OptimizeResult)
        assert intermediate_result.fun == bowl(intermediate_result.x)
        assert np.array_equal(intermediate_result.jac, bowl_slope(intermediate_result.x))
        seen.append(intermediate_result.nit)
        intermediate_result.x[:] = intermediate_result.jac[:] = np.nan

    result = way(bowl, np.zeros(3), jac=bowl_slope, callback=callback, options={"maxiter": 8})
    assert seen == list(range(1, 9))
    assert np.isfinite(result.x).all()
    assert np.isfinite(result.jac).all()


@WAYS
def test_a_callback_may_end_the_run(way):
    def callback(intermediate_result):
        if intermediate_result.nit == 4:
            raise StopIteration

    result = way(bowl, np.zeros(3), jac=bowl_slope, callback=callback)
    assert (result.success, result.status, result.nit, result.nfev) == (False, 99, 4, 5)
    assert result.message == "`callback` raised `StopIteration`."
    assert result.fun == bowl(result.x) < bowl(np.zeros(3))


def test_stop_iteration_from_the_function_itself_is_not_swallowed():
    with pytest.raises(StopIteration):
        adamas.minimize(lambda x: next(iter([])), [0.0], jac=lambda x: x)


def test_a_bar_is_drawn_on_standard_error(capsys):
    result = adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, maxiter=12, progress=True)
    captured = capsys.readouterr()
    assert "12/12" in captured.err
    assert f"fun = {result.fun:.6g}" in captured.err
    assert captured.out == ""


@WAYS
def test_disp_prints_how_the_run_ended(way, capsys):
    way(bowl, CENTRE, jac=bowl_slope, options={"disp": True})
    assert capsys.readouterr().out == (
        "The gradient is zero to within gtol: 0.\n"
        "         Current function value: 0\n"
        "         Iterations: 0\n"
        "         Function evaluations: 1\n"
        "         Gradient evaluations: 1\n"
    )


def test_nothing_is_printed_unasked(capfd):
    adamas.minimize(bowl, np.zeros(3), jac=bowl_slope, maxiter=3)
    assert capfd.readouterr() == ("", "")


# ── warnings and errors ────────────────────────────────────────────────────────────────────────


@WAYS
def test_unknown_options_warn_by_name_and_change_nothing(way):
    with pytest.warns(OptimizeWarning, match=r"^Unknown solver options: maximize, xtol\."):
        result = way(
            bowl, np.zeros(3), jac=bowl_slope, options={"xtol": 1, "maximize": True, "maxiter": 5}
        )
    plain = way(bowl, np.zeros(3), jac=bowl_slope, options={"maxiter": 5})
    assert np.array_equal(result.x, plain.x)


def test_the_warning_lists_the_options_of_the_method():
    with pytest.warns(OptimizeWarning) as caught:
        adamas.minimize(bowl, CENTRE, jac=bowl_slope, method="momentum", betas=(0.9, 0.99))
    assert str(caught[0].message) == (
        "Unknown solver options: betas. Did you mean 'beta'? Possible with method=\"momentum\" are "
        "beta, bias_correction, clip_norm, decay, disp, ema, finite_diff_rel_step, ftol, gtol, lr, "
        "lr_max, maxiter, method, nesterov, noisy, patience, progress, weight_decay, workers."
    )
    assert caught[0].filename == __file__


@WAYS
@pytest.mark.parametrize(
    ("name", "what"), [("hess", "Hessian"), ("hessp", "Hessian-vector product")]
)
def test_a_hessian_warns_that_it_is_not_used(way, name, what):
    message = f"Method adamas.minimize does not use {what} information ({name})."
    with pytest.warns(RuntimeWarning, match=f"^{re.escape(message)}$"):
        way(bowl, CENTRE, jac=bowl_slope, **{name: lambda *_: np.diag(CURVATURE)})


@WAYS
@pytest.mark.parametrize(
    "constraints",
    [
        {"type": "eq", "fun": lambda x: x[0]},
        [{"type": "ineq", "fun": lambda x: x[0]}],
        scipy.optimize.LinearConstraint(np.eye(3), 0, 1),
    ],
)
def test_constraints_are_refused(way, constraints):
    with pytest.raises(ValueError, match=r"^constraints were given, but") as caught:
        way(bowl, np.zeros(3), jac=bowl_slope, constraints=constraints)
    assert str(caught.value) == (
        "constraints were given, but adamas.minimize can keep bounds only. Give bounds, add a "
        'penalty to fun, or use method="SLSQP" or "trust-constr" of scipy.optimize.minimize.'
    )


@pytest.mark.parametrize("constraints", [(), [], {}, None])
def test_no_constraints_in_any_form_are_none(constraints):
    assert adamas.minimize(bowl, CENTRE, jac=bowl_slope, constraints=constraints).success


#: Arguments that cannot be honoured, the error, and what it says.
REFUSED = [
    ({"callback": "log"}, TypeError, "callback is 'log', but it must be a function."),
    ({"options": [1]}, TypeError, "options is [1], but it must be a dict."),
    (
        {"x0": [[1.0, 2.0], [3.0]]},
        ValueError,
        "x0 is [[1.0, 2.0], [3.0]], but it must be a vector or a number.",
    ),
    (
        {"x0": np.zeros((2, 3))},
        ValueError,
        (
            "x0 has shape (2, 3), but it must be a vector with at least one element, or a number. "
            "Flatten it with .ravel(), and reshape x inside fun."
        ),
    ),
    (
        {"x0": []},
        ValueError,
        (
            "x0 has shape (0,), but it must be a vector with at least one element, or a number. "
            "Flatten it with .ravel(), and reshape x inside fun."
        ),
    ),
    ({"x0": [1j]}, TypeError, "x0 has dtype complex128, but it must hold real numbers."),
    (
        {"x0": [1.0, math.nan]},
        ValueError,
        "x0 holds a number that is not finite. Start where fun is defined.",
    ),
    (
        {"jac": "4-point"},
        ValueError,
        (
            "jac is '4-point', but it must be a function, True where fun returns (value, "
            'gradient), "2-point", "3-point", "cs" or None.'
        ),
    ),
    (
        {"bounds": [(0, 1)]},
        ValueError,
        (
            "bounds has 1 entries, but x0 has 3 elements. Give one pair (lower, upper) for each, "
            "with None where there is no bound."
        ),
    ),
    (
        {"bounds": [(0, 1), 2, (0, 1)]},
        ValueError,
        "bounds[1] is 2, but it must be a pair (lower, upper).",
    ),
    (
        {"bounds": 5},
        TypeError,
        (
            "bounds is 5, but it must be SciPy's Bounds, or one pair (lower, upper) for each "
            "element of x."
        ),
    ),
    (
        {"bounds": Bounds(np.array([None, 0, 0]), [1, 1, 1])},
        TypeError,
        (
            "bounds has array([None, 0, 0], dtype=object), but it must hold real numbers: infinite "
            "ones where there is no bound."
        ),
    ),
    (
        {"bounds": [(0, 1), ("0", 1), (0, 1)]},
        TypeError,
        "bounds[1] is '0', but it must be a number. It is text: give float('0').",
    ),
    (
        {"bounds": [(0, 1), (2, 1), (0, 1)]},
        ValueError,
        (
            "bounds[1] is (2.0, 1.0), but the lower bound must be a number that does not exceed "
            "the upper."
        ),
    ),
    (
        {"bounds": [(math.nan, 1), (2, 3), (0, 1)]},
        ValueError,
        (
            "bounds[0] is (nan, 1.0), but the lower bound must be a number that does not exceed "
            "the upper."
        ),
    ),
    (
        {"bounds": Bounds([0, 0], [1, 1])},
        ValueError,
        "bounds has 2 elements, but x0 has 3. Give one bound for each element, or one for all.",
    ),
    (
        {"method": "newton"},
        ValueError,
        'method is \'newton\', but it must be one of "adam", "momentum", "rmsprop".',
    ),
    ({"lr": -1.0}, ValueError, "lr is -1.0, but it must be finite and at least 0."),
    (
        {"betas": (0.9, 1.0)},
        ValueError,
        "betas[1] is 1.0, but a decay rate must be at least 0 and less than 1.",
    ),
    (
        {"maxiter": 1.5},
        ValueError,
        ("maxiter is 1.5, but it must be a whole number, at least 0 and at most 2^53."),
    ),
    (
        {"patience": 0},
        ValueError,
        ("patience is 0, but it must be a whole number, at least 1 and at most 2^53."),
    ),
    ({"gtol": -1.0}, ValueError, "gtol is -1.0, but it must be a finite number, at least 0."),
    ({"tol": "x"}, ValueError, "tol is 'x', but it must be a finite number, at least 0."),
    (
        {"finite_diff_rel_step": 0},
        ValueError,
        "finite_diff_rel_step is 0, but it must be a finite number above 0.",
    ),
    (
        {"workers": 0},
        ValueError,
        (
            "workers is 0, but it must be a number of processes, at least 1; -1 for all "
            "processors; or a function that maps as Python's map does."
        ),
    ),
    (
        {"method": "adm"},
        ValueError,
        (
            'method is \'adm\', but it must be one of "adam", "momentum", "rmsprop". Did you mean '
            "'adam'?"
        ),
    ),
    ({"noisy": "yes"}, TypeError, "noisy is 'yes', but it must be True or False."),
    (
        {"ema": 0.9},
        ValueError,
        (
            "ema is 0.9, but noisy is False, so the best point is returned and no mean is kept. "
            "Give noisy=True, or leave ema out."
        ),
    ),
    (
        {"noisy": True, "tol": 0.1},
        ValueError,
        (
            "tol is 0.1, but noisy is True, and a single value or gradient cannot tell that a "
            "noisy run has converged. Leave tol out and set maxiter, or raise StopIteration in "
            "callback."
        ),
    ),
    (
        {"noisy": True, "gtol": 0.1},
        ValueError,
        (
            "gtol is 0.1, but noisy is True, and a single value or gradient cannot tell that a "
            "noisy run has converged. Leave gtol out and set maxiter, or raise StopIteration in "
            "callback."
        ),
    ),
    (
        {"lr": 0.1, "options": {"lr": 0.2}},
        TypeError,
        "lr is given twice, as a keyword and in options. Give it once.",
    ),
]


@pytest.mark.parametrize(("given", "error", "message"), REFUSED)
def test_what_cannot_be_honoured_is_refused_before_the_function_is_called(given, error, message):
    fun = Counted(bowl)
    arguments = {"x0": np.zeros(3), "jac": bowl_slope, **given}
    with pytest.raises(error) as caught:
        adamas.minimize(fun, **arguments)
    assert str(caught.value) == message
    assert fun.calls == 0


def test_what_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"^fun is 3, but it must be a function\.$"):
        adamas.minimize(3, [1.0])  # type: ignore[arg-type]


#: Functions that return what they must not, the error, and what it says.
MISFITS = [
    (
        lambda x: x,
        bowl_slope,
        TypeError,
        (
            "fun returned an array of shape (3,) and dtype float64, but it must return one real "
            "number. With a gradient, return (value, gradient) and give jac=True."
        ),
    ),
    (
        bowl,
        True,
        TypeError,
        (
            "jac is True, so fun must return a pair (value, gradient), but it returned a float. "
            "Return both, or give the gradient as jac."
        ),
    ),
    (
        bowl,
        lambda x: x[:2],
        ValueError,
        (
            "The gradient is an array of shape (2,) and dtype float64, but x is a vector of shape "
            "(3,). Return one real number for each element of x."
        ),
    ),
    (
        bowl,
        lambda x: x * 1j,
        ValueError,
        (
            "The gradient is an array of shape (3,) and dtype complex128, but x is a vector of "
            "shape (3,). Return one real number for each element of x."
        ),
    ),
]


@pytest.mark.parametrize(("fun", "jac", "error", "message"), MISFITS)
def test_functions_that_return_something_else_are_told_what_is_wanted(fun, jac, error, message):
    with pytest.raises(error) as caught:
        adamas.minimize(fun, np.zeros(3), jac=jac)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("blocked", "code", "message"),
    [
        (
            "scipy",
            "adamas.minimize",
            'adamas.minimize needs SciPy. Install it with: pip install "adamas[scipy]"',
        ),
        (
            "rich",
            "adamas.minimize(lambda x: x[0] ** 2, [1.0], progress=True)",
            'progress=True needs rich. Install it with: pip install "adamas[cli]"',
        ),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(blocked, code, message):
    script = f"import sys\nsys.modules[{blocked!r}] = None\nimport adamas\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=900
    )
    assert result.stderr.strip().splitlines()[-1] == f"ModuleNotFoundError: {message}"


def test_an_empty_dict_of_options_is_the_defaults():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = adamas.minimize(rosen, START, jac=rosen_der, options={}, maxiter=None)
    assert given.nit == adamas.minimize(rosen, START, jac=rosen_der).nit


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
