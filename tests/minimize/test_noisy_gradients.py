"""adamas.minimize of functions whose values and gradients are noisy: the mean that comes back."""

from __future__ import annotations

import numpy as np
import pytest

import adamas
from tests.support.bowls import WAYS, NoisyBowl, bowl


@pytest.mark.quick_cases(1)
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
