"""``adamas race``: three methods on a function of two variables."""

from __future__ import annotations

from pathlib import Path

import click

from adamas.cli.arguments import WholeNumber, check_writable, written
from adamas.cli.output import console_of, say_where, table_of
from adamas.extras import require

__all__ = ["command"]


@click.command("race")
@click.argument("function", default="himmelblau")
@written("--output", default=Path("adamas-race.png"), help="Where to write the picture (PNG).")
@written("--gif", help="Where to write the race as an animated GIF, too.")
@click.option("--steps", type=WholeNumber(1), default=300, show_default=True)
@click.option(
    "--start", type=(float, float), default=None, metavar="X Y", help="Where to start from."
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="One learning rate for all methods, in place of their own.",
)
def command(
    function: str,
    output: Path,
    gif: Path | None,
    steps: int,
    start: tuple[float, float] | None,
    lr: float | None,
) -> None:
    """Race the three methods on a FUNCTION of two variables.

    FUNCTION is himmelblau, rosenbrock, beale, rastrigin, or your own as module:function or
    path/to/file.py:function: it takes an array of two numbers, or two numbers, and returns one. Its
    attribute `gradient`, where it has one, returns the gradient; else differences are taken.
    """
    import dataclasses

    from adamas import race as races

    console = console_of("adamas race")
    require("matplotlib", "adamas race", "plots", "matplotlib")
    check_writable(output, "--output")
    if gif is not None:
        if gif.suffix.lower() != ".gif":
            raise click.UsageError(f"--gif is {str(gif)!r}, but its name must end in .gif.")
        require("PIL", "adamas race --gif", "plots", "pillow")
        check_writable(gif, "--gif")
    track = races.find(function)
    if start is not None:
        track = dataclasses.replace(track, start=start)
    paths = races.race(track, steps=steps, lr=lr)
    table = table_of("method", "learning rate", "ends at", "value")
    for path in paths:
        place = ", ".join(f"{x:.4f}" if abs(x) < 1e6 else f"{x:.4g}" for x in path.points[-1])
        value = f"{path.final_value:.4g}"
        if path.diverges_at is not None:
            value = f"diverges at step {path.diverges_at}"
        table.add_row(path.method, f"{path.lr:g}", f"({place})", value)
    console.print(table)
    races.draw(track, paths, output)
    say_where(console, output)
    if gif is not None:
        races.animate(track, paths, gif)
        say_where(console, gif)
