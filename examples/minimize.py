"""Fit a damped oscillation when every call sees only 32 of 20,000 measurements.

Such a function has another value at each call, so a method that compares values is misled:
L-BFGS-B stops where its line search finds nothing better. adamas.minimize does not compare; with
noisy=True it gives the mean of its last iterates. Runs in a few seconds and checks itself.
"""

import numpy as np
import scipy.optimize

import adamas

TRUTH = np.array([2.0, 0.3, 2.5])  # amplitude, damping, frequency
START = np.array([1.0, 0.1, 2.2])
BOUNDS = [(0, None), (0, None), (0, None)]

random = np.random.default_rng(7)


def oscillation(parameters, time):
    amplitude, damping, frequency = parameters
    return amplitude * np.exp(-damping * time) * np.cos(frequency * time)


time = random.uniform(0, 8, 20_000)
measured = oscillation(TRUTH, time) + 0.3 * random.normal(size=time.size)


def loss_of(parameters, time, measured):
    """Half the mean squared residual, and its gradient."""
    amplitude, damping, frequency = parameters
    envelope = amplitude * np.exp(-damping * time)
    wave = np.cos(frequency * time)
    residual = envelope * wave - measured
    slopes = np.stack(
        [
            np.exp(-damping * time) * wave,
            -time * envelope * wave,
            -time * envelope * np.sin(frequency * time),
        ]
    )
    return 0.5 * np.mean(residual**2), slopes @ residual / time.size


def loss_of_a_batch(parameters):
    batch = random.integers(0, time.size, 32)
    return loss_of(parameters, time[batch], measured[batch])


def loss_of_all(parameters):
    return loss_of(parameters, time, measured)


def report(name, result):
    loss, _ = loss_of_all(result.x)
    print(f"{name:<28} {np.round(result.x, 3)!s:<22} loss on all data {loss:.4f}")
    return loss


exact = scipy.optimize.minimize(loss_of_all, START, jac=True, bounds=BOUNDS)
misled = scipy.optimize.minimize(loss_of_a_batch, START, jac=True, bounds=BOUNDS)
noisy = adamas.minimize(
    loss_of_a_batch, START, jac=True, bounds=BOUNDS, noisy=True, lr=0.05, maxiter=5_000
)
through_scipy = scipy.optimize.minimize(
    loss_of_all, START, jac=True, bounds=BOUNDS, method=adamas.minimize
)

least = report("L-BFGS-B, all the data", exact)
report("adamas, all the data", through_scipy)
reached = report("adamas, 32 at a time", noisy)
stuck = report("L-BFGS-B, 32 at a time", misled)

assert through_scipy.success
assert np.allclose(through_scipy.x, exact.x, atol=1e-3)
assert noisy.success
assert reached - least < 1e-3 * least
assert stuck - least > 10 * (reached - least)
