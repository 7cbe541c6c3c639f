"""The three methods on a function of two variables, from one start, and a picture of their ways."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.extras import require
from adamas.numpy import Adam, Momentum, Optimizer, RMSProp

__all__ = ["FUNCTIONS", "Path2D", "Track", "animate", "draw", "find", "race"]

Array = NDArray[np.float64]
Value = Callable[[Array], float]
Gradient = Callable[[Array], Array]

#: Colours that people with any colour vision can tell apart (Okabe & Ito 2008), on a light ground.
COLOURS = {"Momentum": "#D55E00", "RMSProp": "#009E73", "Adam": "#0072B2"}

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
    """The way of one method: its points, shape (steps + 1, 2), and the value in the end."""

    method: str
    lr: float
    points: Array
    final_value: float


def race(track: Track, *, steps: int = 300, lr: float | None = None) -> list[Path2D]:
    """Let each method make ``steps`` steps on ``track``, at its own rate or all at ``lr``.

    Raises ValueError where the function or its gradient is no number at the start.
    """
    _check_start(track)
    paths: list[Path2D] = []
    for (method, kind), rate in zip(METHODS.items(), track.rates, strict=True):
        point = np.array(track.start, dtype=np.float64)
        optimizer: Optimizer = kind(point, lr=rate if lr is None else lr)
        points = [point.copy()]
        for _ in range(steps):
            optimizer.step(np.asarray(track.gradient(point.copy()), dtype=np.float64))
            points.append(point.copy())
        final = float(track.value(point.copy()))
        paths.append(Path2D(method, rate if lr is None else lr, np.array(points), final))
    return paths


def find(name: str) -> Track:
    """Return the track of a known function, or of the user's own ``"module:function"``.

    The user's function takes an array of two numbers and returns one; an attribute ``gradient`` of
    it, where there is one, returns the gradient, else central differences are taken. Attributes
    ``start`` and ``view`` are used in the same way. Raises ValueError where there is no such thing.
    """
    if name.lower() in FUNCTIONS:
        return FUNCTIONS[name.lower()]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(
            f"There is no function {name!r}. Known are {', '.join(FUNCTIONS)}; "
            "your own is given as module:function."
        )
    function = _imported(module_name, attribute)
    return Track(
        name=attribute,
        value=lambda x: _number(name, function(x)),
        gradient=getattr(function, "gradient", None) or differences(function),
        start=getattr(function, "start", (-1.0, 1.0)),
        view=getattr(function, "view", ((-3.0, 3.0), (-3.0, 3.0))),
    )


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
        label = f"{each.method}, lr {each.lr:g}: ends at {each.final_value:.3g}"
        axes.plot(*each.points.T, color=colour, linewidth=1.8, label=label, zorder=3)
        axes.plot(*each.points[-1], "o", color=colour, markersize=8, mec="white", zorder=5)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.1), frameon=False)
    figure.savefig(path, dpi=120, format="png", bbox_inches="tight")
    pyplot.close(figure)


def animate(track: Track, paths: list[Path2D], path: Path, *, frames: int = 45) -> None:
    """Write the race as an animated GIF of ``frames`` pictures to ``path``."""
    pyplot = _pyplot()
    animation = require("matplotlib.animation", "adamas race", "cli", "matplotlib")
    require("PIL", "adamas race --gif", "cli", "pillow")
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
    steps = len(paths[0].points) - 1

    def show(frame: int) -> list[Any]:
        last = round(steps * frame / (frames - 1))
        for each, line, head in zip(paths, lines, heads, strict=True):
            line.set_data(*each.points[: last + 1].T)
            head.set_data(*each.points[last : last + 1].T)
        axes.set_title(f"{track.name}: step {last}")
        return [*lines, *heads]

    moving = animation.FuncAnimation(figure, show, frames=frames)
    moving.save(path, writer=animation.PillowWriter(fps=15), dpi=80)
    pyplot.close(figure)


def _ground(track: Track, size: tuple[float, float] = (7.5, 6)) -> tuple[Any, Any]:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=size, layout="constrained")
    x, y = (np.linspace(*bounds, 241) for bounds in track.view)
    heights = np.array([[track.value(np.array([a, b])) for a in x] for b in y])
    lowest = np.nanmin(heights)
    # Contours at even steps of the logarithm show a valley's floor and its walls alike.
    shifted = np.log10(heights - lowest + 1e-3 * (np.nanmedian(heights) - lowest) + 1e-12)
    axes.contourf(x, y, shifted, levels=30, cmap="Greys", alpha=0.55)
    axes.contour(x, y, shifted, levels=30, colors="white", linewidths=0.5)
    for minimum in track.minima:
        axes.plot(*minimum, "*", color="black", markersize=13, mec="white", zorder=4)
    axes.plot(*track.start, "s", color="black", markersize=8, mec="white", zorder=4)
    axes.set_xlim(track.view[0])
    axes.set_ylim(track.view[1])
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    goal = ", minima are stars" if track.minima else ""
    axes.set_title(f"{track.name}: the start is a square{goal}")
    return figure, axes


def _pyplot() -> Any:
    require("matplotlib", "adamas race", "cli", "matplotlib").use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _check_start(track: Track) -> None:
    start = np.array(track.start, dtype=np.float64)
    if start.shape != (2,):
        raise ValueError(f"The start is {track.start!r}, but it must be two numbers.")
    value, slope = track.value(start.copy()), np.asarray(track.gradient(start.copy()))
    if slope.shape != (2,):
        raise ValueError(
            f"The gradient of {track.name} has shape {slope.shape}, but it must have shape (2,)."
        )
    if not np.isfinite(value) or not np.isfinite(slope).all():
        raise ValueError(
            f"{track.name} or its gradient is not finite at {track.start}. Choose another start."
        )


def _imported(module_name: str, attribute: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"The module {module_name!r} cannot be imported ({error}). Give module:function, with "
            "the module in the current directory or installed."
        ) from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"The module {module_name!r} has no function {attribute!r}.")
    return function


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} returned {value!r}, but it must return one number for an array of two."
        ) from None


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
