"""Functions of two variables to race on: four known ones, or the user's own."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checks import near
from adamas.importing import called

__all__ = [
    "FUNCTIONS",
    "Array",
    "Track",
    "WrongFunctionError",
    "check_start",
    "differences",
    "find",
    "local_minimum",
    "slope_at",
    "value_at",
]

Array = NDArray[np.float64]
Value = Callable[[Array], float]
Gradient = Callable[[Array], Array]


def _usual_rates() -> dict[str, float]:
    return {"Momentum": 0.01, "RMSProp": 0.02, "Adam": 0.05, "note": 0.05}


@dataclass(frozen=True)
class Track:
    """A function to race on, and what is sensible there."""

    name: str
    value: Value
    gradient: Gradient
    start: tuple[float, float]
    #: Lower and upper bounds of the picture, for both variables; nothing keeps a method inside.
    view: tuple[tuple[float, float], tuple[float, float]]
    #: Where the function is lowest, as far as that is known.
    minima: tuple[tuple[float, float], ...] = ()
    #: Learning rate of each method.
    rates: Mapping[str, float] = field(default_factory=_usual_rates)
    #: How many steps the methods make.
    steps: int = 300


class WrongFunctionError(ValueError):
    """A function cannot be raced on, wherever it is called."""


def value_at(track: Track, point: Array) -> float:
    """Return the value, which is NaN where the function says by an error that it has none."""
    try:
        return _number(track.name, track.value(point.copy()))
    except WrongFunctionError:
        raise
    except (ArithmeticError, ValueError):  # math.log(-1.0) is a ValueError
        return math.nan


def slope_at(track: Track, point: Array) -> Array:
    """Return the gradient, which is NaN where the function says by an error that it has none."""
    try:
        slope = np.asarray(track.gradient(point.copy()))
    except WrongFunctionError:
        raise
    except (ArithmeticError, ValueError):
        return np.full(2, np.nan)
    if slope.shape != (2,) or slope.dtype.kind not in "buif":
        raise WrongFunctionError(
            f"The gradient of {track.name} has shape {slope.shape} and dtype {slope.dtype}, but it "
            "must hold two real numbers, shape (2,)."
        )
    return slope.astype(np.float64)


def find(name: str) -> Track:
    """Return the track of a known function, or of the user's own ``"module:function"``.

    The user's function takes an array of two numbers, or two numbers x and y, and returns one; it
    may stand in a file, ``"path/to/file.py:function"``. Its attribute ``gradient``, where there is
    one, takes the same and returns the gradient, else central differences are taken. Attributes
    ``start`` and ``view`` are used in the same way. Raises ValueError where there is no such thing.
    """
    if name.lower() in FUNCTIONS:
        return FUNCTIONS[name.lower()]
    if ":" not in name and not name.endswith(".py"):
        raise ValueError(
            f"There is no function {name!r}.{near(name, FUNCTIONS)} Known are "
            f"{', '.join(FUNCTIONS)}; your own is given as module:function or "
            "path/to/file.py:function."
        )
    function = called(name, "function")
    call = _of_a_point(name, function)

    def value(x: Array) -> float:
        return _number(name, call(x))

    own = getattr(function, "gradient", None)
    track = Track(
        name=name.rpartition(":")[2],
        value=value,
        gradient=differences(value) if own is None else _of_a_point(f"{name}.gradient", own),
        start=getattr(function, "start", (-1.0, 1.0)),
        view=getattr(function, "view", ((-3.0, 3.0), (-3.0, 3.0))),
    )
    view = _numbers(track.view)
    if (
        view is None
        or view.shape != (2, 2)
        or not (np.isfinite(view).all() and (view[:, 0] < view[:, 1]).all())
    ):
        raise ValueError(
            f"The view of {name} is {track.view!r}, but it must be two pairs (lower, upper) of"
            " finite numbers."
        )
    return track


def _of_a_point(name: str, function: Callable[..., Any]) -> Callable[[Array], Any]:
    """Return ``function`` as one of an array of two numbers, whether it takes that or x and y.

    What it raises says where.
    """
    spread = _takes_two(name, function)

    def at(point: Array) -> Any:
        try:
            return function(*point) if spread else function(point)
        except Exception as error:
            told = (
                f"{name} raised {type(error).__name__}: {error} (at {_told(point)}{_line(error)})."
            )
            if isinstance(error, (ArithmeticError, ValueError)):
                raise ValueError(told) from error
            given = "two numbers" if spread else "an array of two numbers"
            raise WrongFunctionError(f"{told} It is called with {given}.") from error

    return at


def _takes_two(name: str, function: Callable[..., Any]) -> bool:
    """Return whether a function is one of x and y, rather than of one array."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty] or places[:2]
    any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(needed) > 2 or (not needed and not any_number):
        told = ", ".join(p.name for p in needed)
        raise WrongFunctionError(
            f"{name} takes ({told}), but it must take an array of two numbers, or two numbers x "
            "and y."
        )
    return len(needed) == 2


def _line(error: BaseException) -> str:
    """Return the place in the user's code that raised: the innermost is rarely theirs."""
    trace = error.__traceback__
    trace = trace and trace.tb_next
    if trace is None:
        return ""
    return f"; {Path(trace.tb_frame.f_code.co_filename).name}, line {trace.tb_lineno}"


def differences(function: Value) -> Gradient:
    """Return the gradient of ``function`` by central differences, to about ten digits."""

    def gradient(x: Array) -> Array:
        slopes = np.empty(2)
        for i in range(2):
            width = np.finfo(float).eps ** (1 / 3) * max(1.0, abs(x[i]))
            above, below = x.copy(), x.copy()
            above[i] += width
            below[i] -= width
            # Before the calls: a function may write into its argument.
            apart = above[i] - below[i]
            slopes[i] = (function(above) - function(below)) / apart
        return slopes

    return gradient


def local_minimum(track: Track, point: Array) -> Array | None:
    """Return the minimum of ``track`` within 0.2 of ``point``, found by Newton's method.

    None where there is none, or Newton's method leaves for elsewhere.
    """
    x = point.copy()
    for _ in range(30):
        slope, curvature = slope_at(track, x), _curvature(track, x)
        if not np.isfinite(curvature).all() or np.linalg.eigvalsh(curvature)[0] <= 0:
            return None
        move = np.linalg.solve(curvature, slope)
        x -= move
        if not np.hypot(*(x - point)) <= 0.2:
            return None
        if np.hypot(*move) <= 1e-9:
            return x
    return None


def _curvature(track: Track, x: Array) -> Array:
    """Return the Hessian by central differences of the gradient."""
    width = 1e-5
    columns = [
        (slope_at(track, x + width * each) - slope_at(track, x - width * each)) / (2 * width)
        for each in np.eye(2)
    ]
    hessian = np.array(columns)
    return (hessian + hessian.T) / 2


def check_start(track: Track) -> None:
    """Refuse a start that is no point, or where the function or its gradient is no number."""
    start = _numbers(track.start)
    if start is None or start.shape != (2,) or not np.isfinite(start).all():
        raise ValueError(f"The start is {track.start!r}, but it must be two finite numbers.")
    with np.errstate(all="ignore"):
        # What is raised here says more than a value that is none.
        track.value(start.copy())
        track.gradient(start.copy())
        finite = math.isfinite(value_at(track, start)) and np.isfinite(slope_at(track, start))
    if not np.all(finite):
        raise ValueError(
            f"{track.name} or its gradient is not finite at {track.start}. Choose another start."
        )


def _numbers(value: Any) -> Array | None:
    """Return real numbers as an array; None where they are something else."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "buif" else None


def _number(name: str, value: Any) -> float:
    array = _numbers(value)
    # A fraction, or a whole number of 400 digits.
    if array is None and isinstance(value, numbers.Real):
        return float(value)
    if array is None or array.size != 1:
        raise WrongFunctionError(
            f"{name} returned {value!r:.80}, but it must return one number for an array of two."
        )
    return float(array.item())


def _told(point: Array) -> str:
    return f"({point[0]:.6g}, {point[1]:.6g})"


# -- the functions: values, gradients and minima as in Surjanovic & Bingham's collection ----------


def _himmelblau(x: Array) -> float:
    return (x[0] ** 2 + x[1] - 11) ** 2 + (x[0] + x[1] ** 2 - 7) ** 2


def _himmelblau_gradient(x: Array) -> Array:
    a, b = x[0] ** 2 + x[1] - 11, x[0] + x[1] ** 2 - 7
    return np.array([4 * x[0] * a + 2 * b, 2 * a + 4 * x[1] * b])


def _rosenbrock(x: Array) -> float:
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def _rosenbrock_gradient(x: Array) -> Array:
    a = x[1] - x[0] ** 2
    return np.array([-2 * (1 - x[0]) - 400 * x[0] * a, 200 * a])


_BEALE = ((1.5, 1), (2.25, 2), (2.625, 3))


def _beale(x: Array) -> float:
    return sum((c - x[0] + x[0] * x[1] ** n) ** 2 for c, n in _BEALE)


def _beale_gradient(x: Array) -> Array:
    parts = [(c - x[0] + x[0] * x[1] ** n, n) for c, n in _BEALE]
    return np.array(
        [
            sum(2 * a * (x[1] ** n - 1) for a, n in parts),
            sum(2 * a * x[0] * n * x[1] ** (n - 1) for a, n in parts),
        ]
    )


def _rastrigin(x: Array) -> float:
    return float(20 + np.sum(x**2 - 10 * np.cos(2 * np.pi * x)))


def _rastrigin_gradient(x: Array) -> Array:
    return 2 * x + 20 * np.pi * np.sin(2 * np.pi * x)


FUNCTIONS = {
    "himmelblau": Track(
        "Himmelblau",
        _himmelblau,
        _himmelblau_gradient,
        start=(-0.5, -4.2),
        view=((-5, 5), (-5, 5)),
        minima=(
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ),
        rates={"Momentum": 0.05, "RMSProp": 0.01, "Adam": 0.5, "note": 0.2},
        steps=500,
    ),
    "rosenbrock": Track(
        "Rosenbrock",
        _rosenbrock,
        _rosenbrock_gradient,
        start=(-1.2, 1.0),
        view=((-2, 2), (-1, 3)),
        minima=((1.0, 1.0),),
        rates={"Momentum": 0.02, "RMSProp": 0.002, "Adam": 0.02, "note": 0.1},
        steps=5000,
    ),
    "beale": Track(
        "Beale",
        _beale,
        _beale_gradient,
        start=(1.0, 1.5),
        view=((-1, 4.5), (-2, 2)),
        minima=((3.0, 0.5),),
        rates={"Momentum": 0.05, "RMSProp": 0.01, "Adam": 0.5, "note": 0.2},
        steps=1000,
    ),
    "rastrigin": Track(
        "Rastrigin",
        _rastrigin,
        _rastrigin_gradient,
        start=(-0.55, 0.8),
        view=((-2.5, 2.5), (-2.5, 2.5)),
        minima=((0.0, 0.0),),
        rates={"Momentum": 0.001, "RMSProp": 0.005, "Adam": 0.1, "note": 0.05},
        steps=200,
    ),
}
