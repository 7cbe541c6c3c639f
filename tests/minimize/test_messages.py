"""adamas.minimize: what it warns of, what it refuses, and with which words."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
from scipy.optimize import Bounds, OptimizeWarning

import adamas
from tests.support.bowls import CENTRE, CURVATURE, WAYS, Counted, bowl, bowl_slope


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
        {"x0": np.ma.array([1.0, 2.0], mask=[True, False])},
        TypeError,
        (
            "x0 is a MaskedArray, whose arithmetic is not that of plain arrays. Give "
            "numpy.asarray() of it, or .filled(0.0) where a mask counts."
        ),
    ),
    (
        {"x0": [1.0, math.nan]},
        ValueError,
        "x0 holds NaN or infinity. Start where fun is defined.",
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
        lambda x: np.ma.masked,
        bowl_slope,
        TypeError,
        (
            "What fun returned is a MaskedConstant, whose arithmetic is not that of plain arrays. "
            "Give numpy.asarray() of it, or .filled(0.0) where a mask counts."
        ),
    ),
    (
        bowl,
        lambda x: np.ma.array(x, mask=x == 0),
        TypeError,
        (
            "The gradient is a MaskedArray, whose arithmetic is not that of plain arrays. Give "
            "numpy.asarray() of it, or .filled(0.0) where a mask counts."
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
