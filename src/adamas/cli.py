"""The command line: ``adamas demo``, ``race``, ``bench`` and ``info``."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adamas
from adamas.engines import native
from adamas.extras import MissingExtraError, require

if TYPE_CHECKING:
    import click
    from rich.console import Console
else:
    try:
        import click
    except ModuleNotFoundError:
        sys.exit('The command line needs click. Install it with: pip install "adamas[cli]"')

__all__ = ["main"]

_PACKAGES = ("numpy", "scipy", "torch", "jax", "optax", "scikit-learn", "safetensors", "matplotlib")

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(click.Group):
    """Commands whose foreseeable failures are one line on standard error, and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MissingExtraError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings=_HELP)
@click.version_option(adamas.__version__, prog_name="adamas")
def main() -> None:
    """Adam, done right: see it work, race it, measure it."""


@main.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("adamas-demo.png"),
    show_default=True,
    help="Where to write the picture of the loss curves (PNG).",
)
@click.option(
    "--epochs", type=click.IntRange(1), default=None, help="How often each method sees all images."
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Chooses the held-out images, the start and the batches.",
)
@click.option("--quiet", is_flag=True, help="No progress bars.")
def demo(output: Path, epochs: int | None, seed: int, quiet: bool) -> None:
    """Train a classifier of handwritten digits with Momentum, RMSProp and Adam.

    Takes the 1,797 real images that ship with scikit-learn, holds a fifth of them out, and trains
    the same network three times with NumPy alone.
    """
    from adamas import demo as job

    console = _console("adamas demo")
    _check_writable(output)
    digits = job.load_digits(seed)
    epochs = job.EPOCHS if epochs is None else epochs
    runs: list[job.Run] = []
    with _progress(console, hidden=quiet) as bars:
        for method in job.METHODS:
            bar = bars.add_task(method, total=job.steps_of(digits, epochs))
            runs.append(
                job.train(
                    digits, method, epochs=epochs, seed=seed, progress=lambda b=bar: bars.advance(b)
                )
            )
    table = _table("method", "final loss", "held-out images read", "time", "steps/s", "optimizer")
    for run in runs:
        table.add_row(
            run.method,
            f"{run.final_loss:.5f}",
            f"{run.accuracy:.2%}",
            f"{run.seconds:.2f} s",
            f"{run.steps_per_second:,.0f}",
            f"{run.optimizer_seconds / run.seconds:.1%} of the time",
        )
    console.print(table)
    job.draw(runs, output)
    _say_where(console, output)


@main.command()
@click.argument("function", default="himmelblau")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("adamas-race.png"),
    show_default=True,
    help="Where to write the picture (PNG).",
)
@click.option(
    "--gif",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write the race as an animated GIF, too.",
)
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True)
@click.option(
    "--start", type=(float, float), default=None, metavar="X Y", help="Where to start from."
)
@click.option(
    "--lr",
    type=click.FloatRange(0, min_open=True),
    default=None,
    help="One learning rate for all methods, in place of their own.",
)
def race(
    function: str,
    output: Path,
    gif: Path | None,
    steps: int,
    start: tuple[float, float] | None,
    lr: float | None,
) -> None:
    """Race the three methods on a FUNCTION of two variables.

    FUNCTION is himmelblau, rosenbrock, beale, rastrigin, or your own as module:function: it takes
    an array of two numbers and returns one. Its attribute `gradient`, where it has one, returns the
    gradient; else differences are taken.
    """
    import dataclasses

    from adamas import race as races

    console = _console("adamas race")
    for path in (output, gif):
        if path is not None:
            _check_writable(path)
    track = races.find(function)
    if start is not None:
        track = dataclasses.replace(track, start=start)
    paths = races.race(track, steps=steps, lr=lr)
    table = _table("method", "learning rate", "ends at", "value")
    for path in paths:
        x, y = path.points[-1]
        table.add_row(path.method, f"{path.lr:g}", f"({x:.4f}, {y:.4f})", f"{path.final_value:.4g}")
    console.print(table)
    races.draw(track, paths, output)
    _say_where(console, output)
    if gif is not None:
        races.animate(track, paths, gif)
        _say_where(console, gif)


@main.command()
def info() -> None:
    """Tell version, machine, threads and the packages found."""
    console = _console("adamas info")
    table = require("rich.table", "adamas info", "cli", "rich").Table.grid(padding=(0, 2))
    targets = native.targets()
    names = [name if runs else f"{name} (not on this processor)" for name, runs in targets.items()]
    table.add_row("adamas", adamas.__version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("target", native.target())
    table.add_row("targets in this build", ", ".join(names))
    threads = f"{native.get_num_threads()} (processors: {native.processor_count()})"
    table.add_row("threads", threads)
    for package in _PACKAGES:
        table.add_row(package, _version(package))
    console.print(table)


@main.command()
@click.option("--quick", is_flag=True, help="Small sizes: tries the rows out, says little.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path),
    default=None,
    help="Where to write all figures as JSON.",
)
def bench(quick: bool, json_path: Path | None) -> None:
    """Measure adamas against what is installed, as ratios.

    Every result is checked against the other's before anything is timed. Takes some minutes, and
    up to 1.5 GB of memory; with --quick, seconds.
    """
    from adamas import bench as benches

    console = _console("adamas bench")
    if json_path is not None:
        _check_writable(json_path)
    report = benches.run(benches.rows(), quick=quick, tell=console.print)
    table = _table(*benches.HEADER)
    for cells in benches.cells(report):
        table.add_row(*cells)
    console.print(table)
    if json_path is not None:
        benches.write_json(report, json_path)
        _say_where(console, json_path)


def _console(who: str) -> Console:
    """Return a console that is plain where there is no terminal or NO_COLOR is set."""
    console = require("rich.console", who, "cli", "rich")
    to_terminal = sys.stdout.isatty()
    return console.Console(highlight=False, width=None if to_terminal else 110)


def _progress(console: Console, *, hidden: bool) -> Any:
    """Return progress bars; none where there is no terminal, so that logs stay readable."""
    progress = require("rich.progress", "adamas", "cli", "rich")
    return progress.Progress(
        progress.TextColumn("{task.description:>9}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        disable=hidden or not console.is_terminal,
    )


def _table(*columns: str) -> Any:
    table = require("rich.table", "adamas", "cli", "rich").Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _say_where(console: Console, path: Path) -> None:
    console.print(f"wrote {path.resolve()}", soft_wrap=True, markup=False)


def _check_writable(path: Path) -> None:
    """Refuse a path that cannot be written, before any work is done for it."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written ({error.strerror}). Choose another with --output."
        ) from None
    if not existed:
        path.unlink()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
