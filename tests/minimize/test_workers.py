"""adamas.minimize with workers: who calls the function, and that nothing else depends on it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import OptimizeWarning, rosen

import adamas
from adamas import quotients

# JAX warns of every fork of a process in which it was imported, as by other tests; nothing of it is
# used by the processes that are made here.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")

START = np.array([-1.2, 1.0, 0.5, -0.3, 0.8])


def result_of(**options):
    return adamas.minimize(rosen, START, maxiter=15, **options)


def elsewhere(x, pid):
    """Rosenbrock's valley, where another process walks it."""
    return rosen(x) + (0.0 if os.getpid() != pid else 1e3)


def fails(x):
    if x[0] != START[0]:
        raise ZeroDivisionError("from a worker")
    return rosen(x)


def dies(x):
    if x[0] != START[0]:
        os._exit(1)
    return rosen(x)


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("jac", [None, "2-point", "3-point", "cs"])
@pytest.mark.parametrize("workers", [2, 3, 2.0, np.int64(2), "threads", "map"])
def test_the_bits_and_counts_are_the_same_with_any_number_of_workers(workers, jac):
    alone = result_of(jac=jac)
    with ThreadPoolExecutor(2) as pool:
        how = (
            {"threads": pool.map, "map": map}.get(workers, workers)
            if isinstance(workers, str)
            else workers
        )
        shared = result_of(jac=jac, workers=how)
    for name in ("x", "fun", "jac"):
        assert np.asarray(shared[name]).tobytes() == np.asarray(alone[name]).tobytes(), name
    assert (shared.nfev, shared.njev, shared.nit) == (alone.nfev, alone.njev, alone.nit)


@pytest.mark.parametrize("workers", [2, -1])
def test_quotients_are_found_by_other_processes_and_the_value_at_x_here(workers):
    if workers == -1 and quotients.check_workers(-1) == 1:
        pytest.skip("one processor")
    pid = os.getpid()
    here = adamas.minimize(elsewhere, START, args=(pid,), maxiter=0, workers=workers)
    assert here.fun == rosen(START) + 1e3
    # The neighbours were found without the thousand that is added here.
    assert (np.abs(here.jac) > 1e6).all()
    assert not multiprocessing.active_children()


def test_scipy_hands_workers_on():
    options = {"workers": 2, "maxiter": 15}
    shared = scipy.optimize.minimize(rosen, START, method=adamas.minimize, options=options)
    assert shared.x.tobytes() == result_of().x.tobytes()


def test_a_map_is_called_once_for_each_gradient_with_all_its_points():
    sizes = []

    def mapped(function, points):
        points = list(points)
        sizes.append(len(points))
        return [function(point) for point in points]

    adamas.minimize(rosen, START, maxiter=3, workers=mapped)
    assert sizes == [5] * 4


def test_looking_at_noise_is_shared_too():
    threads = set()

    def fun(x):
        threads.add(threading.get_ident())
        return float(x @ x)

    with ThreadPoolExecutor(2) as pool:
        shared = adamas.minimize(fun, [1.0, 2.0], noisy=True, maxiter=60, workers=pool.map)
    assert len(threads) == 3
    alone = adamas.minimize(fun, [1.0, 2.0], noisy=True, maxiter=60)
    assert shared.x.tobytes() == alone.x.tobytes()
    assert shared.nfev == alone.nfev


@pytest.mark.parametrize("fun", [fails, dies])
def test_processes_are_closed_where_the_function_ends_the_run(fun):
    error, message = {
        fails: (ZeroDivisionError, "from a worker"),
        dies: (TypeError, "workers is 2, but fun cannot be called in other processes "),
    }[fun]
    with pytest.raises(error, match=message):
        adamas.minimize(fun, START, workers=2)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("error", [StopIteration, KeyboardInterrupt])
def test_processes_are_closed_where_the_callback_ends_the_run(error):
    def callback(x):
        raise error

    if error is StopIteration:
        assert result_of(workers=2, callback=callback).status == 99
    else:
        with pytest.raises(KeyboardInterrupt):
            result_of(workers=2, callback=callback)
    assert not multiprocessing.active_children()


def test_processes_are_closed_where_an_option_is_refused():
    with pytest.raises(ValueError, match="betas"):
        result_of(workers=2, betas=(2, 2))
    with pytest.raises(ValueError, match="jac is"):
        result_of(workers=2, jac="4-point")
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("jac", [scipy.optimize.rosen_der, True])
def test_workers_beside_a_gradient_warn_that_they_have_nothing_to_do(jac):
    fun = rosen if callable(jac) else lambda x: (rosen(x), scipy.optimize.rosen_der(x))
    with pytest.warns(OptimizeWarning, match="workers is 2, but jac gives the gradient, so there"):
        result = adamas.minimize(fun, START, jac=jac, maxiter=3, workers=2)
    plain = adamas.minimize(fun, START, jac=jac, maxiter=3)
    assert result.x.tobytes() == plain.x.tobytes()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, -2, 1.5, True, "2", None])
def test_what_is_no_number_of_workers_is_refused(workers):
    with pytest.raises(ValueError, match=r"^workers is .*, but it must be a number of processes, "):
        result_of(workers=workers)
