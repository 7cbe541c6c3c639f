"""``adamas race``: methods on a function of two variables."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from adamas import race, tracks
from adamas.cli.arguments import WholeNumber, check_picture, written
from adamas.cli.output import NOTE, console_of, say_where, table_of
from adamas.extras import require
from adamas.methods import USUAL

__all__ = ["command"]


@click.command("race")
@click.argument("function", default="himmelblau")
@written("--output", default=Path("adamas-race.png"), help="Where to write the picture (PNG).")
@written("--gif", help="Where to write an animated GIF of the race, besides the picture.")
@click.option(
    "--steps",
    type=WholeNumber(1),
    default=None,
    help="How many steps each method makes.  [default: as many as the function takes]",
)
@click.option(
    "--start", type=(float, float), default=None, metavar="X Y", help="Where to start from."
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="One learning rate for all methods, in place of their own.",
)
@click.option(
    "--note",
    is_flag=True,
    help="Add a fourth method: Adam without the exponent t in the bias correction.",
)
def command(
    function: str,
    output: Path,
    gif: Path | None,
    steps: int | None,
    start: tuple[float, float] | None,
    lr: float | None,
    note: bool,
) -> None:
    """Race Momentum, RMSProp and Adam on a FUNCTION of two variables.

    FUNCTION is himmelblau, rosenbrock, beale, rastrigin, or your own as module:function or
    path/to/file.py:function: it takes an array of two numbers, or two numbers, and returns one. Its
    attribute `gradient`, where it has one, returns the gradient; else differences are taken.
    """
    console = console_of("adamas race")
    require("matplotlib", "adamas race", "plots", "matplotlib")
    check_picture(output, "--output", ".png")
    if gif is not None:
        require("PIL", "adamas race --gif", "plots", "pillow")
        check_picture(gif, "--gif", ".gif")
    track = tracks.find(function)
    if start is not None:
        track = dataclasses.replace(track, start=start)
    methods = (*USUAL, "note") if note else USUAL
    paths = race.race(track, methods=methods, steps=steps, lr=lr)
    goals = ("to a\nminimum", f"within\n{race.NEAR:g}") if track.minima else ()
    table = table_of("method", "learning\nrate", "ends at", "value", *goals)
    for path in paths:
        table.add_row(path.method, f"{path.lr:g}", *_end(path), *_goal(track, path))
    console.print(table)
    for remark in race.remarks(track, paths):
        console.print(remark, markup=False)
    if note:
        console.print(NOTE, markup=False)
    race.draw(track, paths, output)
    say_where(console, output)
    if gif is not None:
        race.animate(track, paths, gif)
        say_where(console, gif)


def _end(path: race.Path2D) -> tuple[str, str]:
    """Return where a method ends, and the value there."""
    place = ", ".join(f"{x:.4f}" if abs(x) < 1e6 else f"{x:.4g}" for x in path.points[-1])
    if path.diverges_at is not None:
        return f"({place})", f"diverges at step {path.diverges_at}"
    return f"({place})", f"{path.final_value:.4g}"


def _goal(track: tracks.Track, path: race.Path2D) -> tuple[str, ...]:
    """Return how far from a minimum a method ends, and when it was first near one."""
    if not track.minima:
        return ()
    step = race.arrival(track, path)
    near = "never" if step is None else f"step {step:,}"
    return f"{race.distances(track, path)[-1]:.2g}", near
