"""A bowl to minimize, with and without noise, and the two ways in: ours and SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize

import adamas

__all__ = [
    "CENTRE",
    "CURVATURE",
    "FORMS",
    "START",
    "WAYS",
    "Counted",
    "NoisyBowl",
    "bowl",
    "bowl_both",
    "bowl_slope",
]

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
