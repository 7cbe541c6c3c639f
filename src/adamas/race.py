"""Methods on a function of two variables, from one start, and a picture of their ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adamas.extras import require
from adamas.methods import METHODS, USUAL
from adamas.numpy import Optimizer
from adamas.palette import COLOURS
from adamas.tracks import Array, Track, check_start, local_minimum, slope_at, value_at

__all__ = [
    "NEAR",
    "Path2D",
    "animate",
    "arrival",
    "distances",
    "draw",
    "plot",
    "race",
    "remarks",
    "steps_shown",
    "view_of",
]

#: A method has arrived where it is this near to a minimum.
NEAR = 0.01


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


def race(
    track: Track,
    *,
    methods: Sequence[str] = USUAL,
    steps: int | None = None,
    lr: float | None = None,
) -> list[Path2D]:
    """Let each method make ``steps`` steps on ``track``, at its own rate or all at ``lr``.

    Methods are keys of ``METHODS``; steps are those of the track where none are given. Raises
    ValueError where the function or its gradient is no number at the start.
    """
    check_start(track)
    steps = track.steps if steps is None else steps
    paths: list[Path2D] = []
    for method in methods:
        rate = track.rates[method] if lr is None else lr
        with np.errstate(all="ignore"):
            points = _way(track, METHODS[method], rate, steps)
            while not math.isfinite(final := value_at(track, points[-1])):
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
        slope = slope_at(track, point)
        if not np.isfinite(slope).all():
            break
        optimizer.step(slope)
        if not np.isfinite(point).all():
            break
        points.append(point.copy())
    return points


# -- what became of them --------------------------------------------------------------------------


def distances(track: Track, path: Path2D) -> Array:
    """Return how far each point is from the nearest minimum of the track."""
    apart = path.points[:, None] - np.array(track.minima)
    return np.hypot(apart[..., 0], apart[..., 1]).min(axis=1)


def arrival(track: Track, path: Path2D) -> int | None:
    """Return the step after which a method is first ``NEAR`` a minimum; None if it never is."""
    near = np.flatnonzero(distances(track, path) <= NEAR)
    return int(near[0]) if near.size else None


def remarks(track: Track, paths: Sequence[Path2D]) -> list[str]:
    """Return what there is to say of methods that do not end at one of the track's minima."""
    caught: dict[str, list[str]] = {}
    away: list[str] = []
    for path in paths:
        if not track.minima or path.diverges_at is not None:
            continue
        if distances(track, path)[-1] <= NEAR:
            continue
        found = local_minimum(track, path.points[-1])
        if found is None or np.hypot(*(np.array(track.minima) - found).T).min() <= NEAR:
            away.append(path.method)
        else:
            place = f"({found[0]:.3f}, {found[1]:.3f}), value {value_at(track, found):.3g}"
            caught.setdefault(place, []).append(path.method)
    told = [
        f"In the local minimum at {place}, not in a global one: {', '.join(methods)}."
        for place, methods in caught.items()
    ]
    if away:
        names = ", ".join(away)
        told.append(
            f"At no minimum after the last step: {names}. Try more --steps or another --lr."
        )
    return told


# -- pictures -------------------------------------------------------------------------------------


def draw(track: Track, paths: Sequence[Path2D], path: Path) -> None:
    """Write contours and paths as PNG to ``path``."""
    figure = _figures().Figure(figsize=(7.5, 6), layout="constrained")
    plot(figure.subplots(), track, paths)
    figure.savefig(path, dpi=120, format="png", bbox_inches="tight")


def plot(axes: Any, track: Track, paths: Sequence[Path2D], *, dark: bool = False) -> None:
    """Draw contours and paths on matplotlib's ``axes``; ``dark`` says what their ground is."""
    _ground(axes, track, dark=dark)
    for each in paths:
        colour = COLOURS[each.method]
        label = f"{each.method}, lr {each.lr:g}: {_outcome(track, each)}"
        points = _drawable(each.points)
        axes.plot(*points.T, color=colour, linewidth=1.8, label=label, zorder=3)
        _mark(axes, points[-1], "o", 8, colour)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), frameon=False)


def animate(track: Track, paths: Sequence[Path2D], path: Path, *, frames: int = 45) -> None:
    """Write the race as an animated GIF of ``frames`` pictures to ``path``.

    They follow each other the more steps apart, the later they are: it begins soon, and ends late.
    """
    agg = require("matplotlib.backends.backend_agg", "adamas race", "plots", "matplotlib")
    image = require("PIL.Image", "adamas race --gif", "plots", "pillow")
    figure = _figures().Figure(figsize=(5, 4.2), dpi=120, layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    _ground(axes, track)
    ways = [_drawable(each.points) for each in paths]
    moving: list[tuple[Any, Any]] = []
    for each, way in zip(paths, ways, strict=True):
        colour = COLOURS[each.method]
        (line,) = axes.plot(*way[:1].T, color=colour, linewidth=1.8, label=each.method, zorder=3)
        moving.append((line, _mark(axes, way[0], "o", 8, colour)))
    figure.legend(loc="outside lower center", ncols=len(paths), frameon=False)
    title = axes.set_title(" ")
    drawn = [*(artist for pair in moving for artist in pair), title]
    for artist in drawn:
        artist.set_animated(True)
    canvas.draw()
    ground = canvas.copy_from_bbox(figure.bbox)
    colours = image.new("P", (1, 1))
    colours.putpalette(_few_colours([each.method for each in paths]))
    pictures: list[Any] = []
    for last in steps_shown(max(map(len, ways)) - 1, frames):
        for way, (line, head) in zip(ways, moving, strict=True):
            line.set_data(*way[: last + 1].T)
            head.set_data(*way[: last + 1][-1:].T)
        title.set_text(f"{track.name}: step {last:,}")
        canvas.restore_region(ground)
        for artist in drawn:
            axes.draw_artist(artist)
        whole = image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
        # Without dithering what stands still stays the same, and only differences are stored.
        pictures.append(whole.quantize(palette=colours, dither=image.Dither.NONE))
    pictures[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[70] * (len(pictures) - 1) + [2500],
        loop=0,
        optimize=True,
    )


def steps_shown(steps: int, frames: int) -> list[int]:
    """Return the steps to be shown, the first and the last among them."""
    return [
        max(min(frame, steps), round(steps * (frame / (frames - 1)) ** 2))
        for frame in range(frames)
    ]


def _few_colours(methods: Sequence[str]) -> bytes:
    """Return greys, and the colours of the methods on their way to white and to grey."""
    greys = [np.full(3, grey) for grey in np.linspace(0, 255, 28)]
    mixed = [
        share * colour + (1 - share) * other
        for colour in (np.array(list(bytes.fromhex(COLOURS[each][1:]))) for each in methods)
        for share, other in ((1, 255), (0.75, 255), (0.5, 255), (0.25, 255), (0.6, 150))
    ]
    return np.rint([*greys, *mixed]).astype(np.uint8).tobytes()


def _ground(axes: Any, track: Track, *, dark: bool = False) -> None:
    view = view_of(track)
    x, y = (np.linspace(*bounds, 161) for bounds in view)
    with np.errstate(all="ignore"):
        heights = np.array([[value_at(track, np.array([a, b])) for a in x] for b in y])
    heights[~np.isfinite(heights)] = np.nan
    # Nothing is drawn where it has no value, and nothing stands out where it has one alone.
    lowest, middle, highest = (
        np.nanquantile(heights, (0, 0.5, 1)) if np.isfinite(heights).any() else (0, 0, 0)
    )
    if lowest < highest:
        # Contours at even steps of the logarithm show a valley's floor and its walls alike.
        shifted = np.log10(heights - lowest + 1e-3 * (middle - lowest) + 1e-12)
        colors = require("matplotlib.colors", "adamas race", "plots", "matplotlib")
        paper = axes.get_facecolor()
        ends = [paper, _HILLS_ON_DARK if dark else _HILLS]
        shade = colors.LinearSegmentedColormap.from_list("ground", ends)
        shades = axes.contourf(x, y, shifted, levels=20, cmap=shade)
        lines = axes.contour(x, y, shifted, levels=20, colors=[paper], linewidths=0.5)
        # In a picture of lines they would be most of the file.
        shades.set_rasterized(True)
        lines.set_rasterized(True)
    for minimum in track.minima:
        _mark(axes, np.array(minimum), "*", 13, _ink(dark=dark))
    _mark(axes, np.array(track.start), "s", 7, _ink(dark=dark))
    axes.set_xlim(view[0])
    axes.set_ylim(view[1])
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.grid(visible=False)
    axes.set_title(f"{track.name}, from ■ to ★" if track.minima else f"{track.name}, from ■")


def _mark(axes: Any, point: Array, shape: str, size: float, colour: str) -> Any:
    edge = axes.get_facecolor()
    return axes.plot(*point, shape, color=colour, markersize=size, mec=edge, zorder=5)[0]


#: What is highest; the lowest has the colour of the page.
_HILLS, _HILLS_ON_DARK = "#b3b8c0", "#5c6272"


def _ink(*, dark: bool) -> str:
    return "white" if dark else "black"


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


def _outcome(track: Track, path: Path2D) -> str:
    if path.diverges_at is not None:
        return f"diverges at step {path.diverges_at}"
    step = arrival(track, path) if track.minima else None
    if step is not None:
        return f"arrives at step {step:,}"
    return f"ends at {path.final_value:.3g}"


def _figures() -> Any:
    return require("matplotlib.figure", "adamas race", "plots", "matplotlib")
