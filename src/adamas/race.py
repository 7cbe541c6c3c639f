"""The three methods on a function of two variables, from one start, and a picture of their ways."""

from __future__ import annotations

import importlib
import inspect
import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checks import near
from adamas.extras import require
from adamas.importing import called
from adamas.numpy import Adam, Momentum, Optimizer, RMSProp
from adamas.palette import COLOURS

__all__ = ["FUNCTIONS", "Path2D", "Track", "animate", "draw", "find", "race", "view_of"]

Array = NDArray[np.float64]
Value = Callable[[Array], float]
Gradient = Callable[[Array], Array]

METHODS: dict[str, type[Momentum | RMSProp | Adam]] = {
    "Momentum": Momentum,
    "RMSProp": RMSProp,
    "Adam": Adam,
}


@dataclass(frozen=True)
class Track:
    """A function to race on, and what is sensible there."""

    name: str
    value: Value
    gradient: Gradient
    start: tuple[float, float]
    #: Lower and upper bounds of the picture, for both variables; nothing keeps a method inside.
    view: tuple[tuple[float, float], tuple[float, float]]
    minima: tuple[tuple[float, float], ...] = ()
    #: Learning rate of each method.
    rates: tuple[float, float, float] = (0.01, 0.02, 0.05)


@dataclass(frozen=True)
class Path2D:
    """The way of one method: its points, shape (steps + 1, 2), and the value in the end.

    Where the method diverges, points end before the step after which point, value or gradient is no
    finite number.
    """

    method: str
    lr: float
    points: Array
    final_value: float
    #: The number of that step; None where the race was run to its end.
    diverges_at: int | None = None


class WrongFunctionError(ValueError):
    """A function cannot be raced on, wherever it is called."""


def race(track: Track, *, steps: int = 300, lr: float | None = None) -> list[Path2D]:
    """Let each method make ``steps`` steps on ``track``, at its own rate or all at ``lr``.

    Raises ValueError where the function or its gradient is no number at the start.
    """
    _check_start(track)
    paths: list[Path2D] = []
    for (method, kind), own in zip(METHODS.items(), track.rates, strict=True):
        rate = own if lr is None else lr
        with np.errstate(all="ignore"):
            points = _way(track, kind, rate, steps)
            while not math.isfinite(final := _value_at(track, points[-1])):
                points.pop()
        diverges_at = len(points) if len(points) <= steps else None
        paths.append(Path2D(method, rate, np.array(points), final, diverges_at))
    return paths


def _way(track: Track, kind: Callable[..., Optimizer], rate: float, steps: int) -> list[Array]:
    """Return the points of a method, as long as they and the gradient there are finite."""
    point = np.array(track.start, dtype=np.float64)
    optimizer = kind(point, lr=rate)
    points = [point.copy()]
    for _ in range(steps):
        slope = _slope_at(track, point)
        if not np.isfinite(slope).all():
            break
        optimizer.step(slope)
        if not np.isfinite(point).all():
            break
        points.append(point.copy())
    return points


def _value_at(track: Track, point: Array) -> float:
    """Return the value, which is NaN where the function says by an error that it has none."""
    try:
        return _number(track.name, track.value(point.copy()))
    except WrongFunctionError:
        raise
    except (ArithmeticError, ValueError):  # math.log(-1.0) is a ValueError
        return math.nan


def _slope_at(track: Track, point: Array) -> Array:
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
    if view is None or view.shape != (2, 2) or not (view[:, 0] < view[:, 1]).all():
        raise ValueError(
            f"The view of {name} is {track.view!r}, but it must be two pairs (lower, upper)."
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
            slopes[i] = (function(above) - function(below)) / (above[i] - below[i])
        return slopes

    return gradient


def draw(track: Track, paths: list[Path2D], path: Path) -> None:
    """Write contours and ways as PNG to ``path``."""
    pyplot = _pyplot()
    figure, axes = _ground(track)
    for each in paths:
        colour = COLOURS[each.method]
        label = f"{each.method}, lr {each.lr:g}: {_outcome(each)}"
        points = _drawable(each.points)
        axes.plot(*points.T, color=colour, linewidth=1.8, label=label, zorder=3)
        axes.plot(*points[-1], "o", color=colour, markersize=8, mec="white", zorder=5)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False)
    figure.savefig(path, dpi=120, format="png", bbox_inches="tight")
    pyplot.close(figure)


def animate(track: Track, paths: list[Path2D], path: Path, *, frames: int = 45) -> None:
    """Write the race as an animated GIF of ``frames`` pictures to ``path``."""
    pyplot = _pyplot()
    animation = require("matplotlib.animation", "adamas race", "plots", "matplotlib")
    require("PIL", "adamas race --gif", "plots", "pillow")
    figure, axes = _ground(track, size=(5, 4.2))
    lines = [
        axes.plot([], [], color=COLOURS[each.method], linewidth=1.8, label=each.method)[0]
        for each in paths
    ]
    heads = [
        axes.plot([], [], "o", color=COLOURS[each.method], markersize=8, mec="white")[0]
        for each in paths
    ]
    axes.legend(loc="upper right")
    ways = [_drawable(each.points) for each in paths]
    steps = max(map(len, ways)) - 1

    def show(frame: int) -> list[Any]:
        last = round(steps * frame / (frames - 1))
        for way, line, head in zip(ways, lines, heads, strict=True):
            line.set_data(*way[: last + 1].T)
            head.set_data(*way[: last + 1][-1:].T)
        axes.set_title(f"{track.name}: step {last}")
        return [*lines, *heads]

    moving = animation.FuncAnimation(figure, show, frames=frames)
    moving.save(path, writer=animation.PillowWriter(fps=15), dpi=80)
    pyplot.close(figure)


def _ground(track: Track, size: tuple[float, float] = (7.5, 6)) -> tuple[Any, Any]:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    view = view_of(track)
    x, y = (np.linspace(*bounds, 241) for bounds in view)
    with np.errstate(all="ignore"):
        heights = np.array([[_value_at(track, np.array([a, b])) for a in x] for b in y])
    heights[~np.isfinite(heights)] = np.nan
    lowest, middle, highest = np.nanquantile(heights, (0, 0.5, 1))
    if lowest < highest:
        # Contours at even steps of the logarithm show a valley's floor and its walls alike.
        shifted = np.log10(heights - lowest + 1e-3 * (middle - lowest) + 1e-12)
        axes.contourf(x, y, shifted, levels=30, cmap="Greys", alpha=0.55)
        axes.contour(x, y, shifted, levels=30, colors="white", linewidths=0.5)
    for minimum in track.minima:
        axes.plot(*minimum, "*", color="black", markersize=13, mec="white", zorder=4)
    axes.plot(*track.start, "s", color="black", markersize=8, mec="white", zorder=4)
    axes.set_xlim(view[0])
    axes.set_ylim(view[1])
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    goal = ", minima are stars" if track.minima else ""
    axes.set_title(f"{track.name}: the start is a square{goal}")
    return figure, axes


def view_of(track: Track) -> list[tuple[float, float]]:
    """Return the bounds of the picture, widened where the start would not be in it."""
    found: list[tuple[float, float]] = []
    for (lower, upper), start in zip(track.view, track.start, strict=True):
        margin = (max(upper, start) - min(lower, start)) / 20
        low = lower if start >= lower else start - margin
        found.append((low, upper if start <= upper else start + margin))
    return found


def _drawable(points: Array) -> Array:
    """Return points that are far outside nearer, where a picture's arithmetic does not overflow."""
    return np.clip(points, -1e9, 1e9)


def _outcome(path: Path2D) -> str:
    if path.diverges_at is not None:
        return f"diverges at step {path.diverges_at}"
    return f"ends at {path.final_value:.3g}"


def _pyplot() -> Any:
    require("matplotlib", "adamas race", "plots", "matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _check_start(track: Track) -> None:
    start = _numbers(track.start)
    if start is None or start.shape != (2,) or not np.isfinite(start).all():
        raise ValueError(f"The start is {track.start!r}, but it must be two finite numbers.")
    with np.errstate(all="ignore"):
        # What is raised here says more than a value that is none.
        track.value(start.copy())
        track.gradient(start.copy())
        finite = math.isfinite(_value_at(track, start)) and np.isfinite(_slope_at(track, start))
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
        rates=(0.01, 0.02, 0.1),
    ),
    "rosenbrock": Track(
        "Rosenbrock",
        _rosenbrock,
        _rosenbrock_gradient,
        start=(-1.2, 1.0),
        view=((-2, 2), (-1, 3)),
        minima=((1.0, 1.0),),
        rates=(0.001, 0.01, 0.1),
    ),
    "beale": Track(
        "Beale",
        _beale,
        _beale_gradient,
        start=(1.0, 1.5),
        view=((-1, 4.5), (-2, 2)),
        minima=((3.0, 0.5),),
        rates=(0.005, 0.02, 0.1),
    ),
    "rastrigin": Track(
        "Rastrigin",
        _rastrigin,
        _rastrigin_gradient,
        start=(-0.55, 0.8),
        view=((-5.12, 5.12), (-5.12, 5.12)),
        minima=((0.0, 0.0),),
        rates=(0.005, 0.02, 0.1),
    ),
}
