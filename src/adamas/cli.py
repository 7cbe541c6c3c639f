"""The command line: ``adamas check``, ``demo``, ``race`` and ``info``."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import adamas
from adamas.checks import check_count, near
from adamas.engines import native
from adamas.extras import MissingExtraError, require

if TYPE_CHECKING:
    import click
    from rich.console import Console

    from adamas.checking import Report
else:
    try:
        import click
    except ModuleNotFoundError:
        sys.exit('The command line needs click. Install it with: pip install "adamas[cli]"')

__all__ = ["main"]

_PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "triton",
    "jax",
    "optax",
    "scikit-learn",
    "matplotlib",
)

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _WholeNumber(click.IntRange):
    """A whole number in a range, which may be written as 1e4."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        # As digits it may have more of them than float64; else click says what is wrong with it.
        if not str(value).isdecimal():
            with suppress(TypeError, ValueError, OverflowError):
                value = check_count("value", float(value))
        return super().convert(value, param, ctx)


class _Commands(click.Group):
    """Commands whose foreseeable failures are one line on standard error, and exit code 1.

    A name that is nearly right is answered with the right one.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = near(args[0], self.commands)
            if not meant or "Did you mean" in error.message:  # as later versions of click offer it
                raise
            raise click.UsageError(error.message + meant, ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MissingExtraError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


def _written(*names: str, help: str, default: Path | None = None) -> Any:  # noqa: A002
    """Return the option of a file that a command writes."""
    kind, shown = click.Path(path_type=Path), default is not None
    return click.option(*names, type=kind, default=default, show_default=shown, help=help)


@click.group(cls=_Commands, context_settings=_HELP)
@click.version_option(adamas.__version__, prog_name="adamas")
def main() -> None:
    """Adam, done right: see it work, race it, check another."""


@main.command()
@_written(
    "--output",
    default=Path("adamas-demo.png"),
    help="Where to write the picture of the loss curves (PNG).",
)
@click.option(
    "--epochs", type=_WholeNumber(1), default=None, help="How often each method sees all images."
)
@click.option(
    "--seed",
    type=_WholeNumber(0),
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
    _check_writable(output, "--output")
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
@_written("--output", default=Path("adamas-race.png"), help="Where to write the picture (PNG).")
@_written("--gif", help="Where to write the race as an animated GIF, too.")
@click.option("--steps", type=_WholeNumber(1), default=300, show_default=True)
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

    FUNCTION is himmelblau, rosenbrock, beale, rastrigin, or your own as module:function or
    path/to/file.py:function: it takes an array of two numbers, or two numbers, and returns one. Its
    attribute `gradient`, where it has one, returns the gradient; else differences are taken.
    """
    import dataclasses

    from adamas import race as races

    console = _console("adamas race")
    _check_writable(output, "--output")
    if gif is not None:
        if gif.suffix.lower() != ".gif":
            raise click.UsageError(f"--gif is {str(gif)!r}, but its name must end in .gif.")
        _check_writable(gif, "--gif")
    track = races.find(function)
    if start is not None:
        track = dataclasses.replace(track, start=start)
    paths = races.race(track, steps=steps, lr=lr)
    table = _table("method", "learning rate", "ends at", "value")
    for path in paths:
        place = ", ".join(f"{x:.4f}" if abs(x) < 1e6 else f"{x:.4g}" for x in path.points[-1])
        value = f"{path.final_value:.4g}"
        if path.diverges_at is not None:
            value = f"diverges at step {path.diverges_at}"
        table.add_row(path.method, f"{path.lr:g}", f"({place})", value)
    console.print(table)
    races.draw(track, paths, output)
    _say_where(console, output)
    if gif is not None:
        races.animate(track, paths, gif)
        _say_where(console, gif)


@main.command()
@click.argument("subject", required=False)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option that the subject is made with; may be given several times.",
)
@_written("--json", "json_path", help="Where to write the report as JSON.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="FOLDER",
    help="Where to write probes with exact results, for implementations in any language.",
)
def check(
    subject: str | None, settings: tuple[str, ...], json_path: Path | None, vectors: Path | None
) -> None:
    """Tell what an implementation of Adam computes.

    SUBJECT is module:Class or path/to/file.py:Class: a class, a function that makes an optimizer,
    or one that makes a step, of NumPy arrays, PyTorch tensors or JAX arrays.

    \b
        adamas check torch.optim:Adam --set amsgrad=True
        adamas check mine.py:Adam

    Exit code 0 for a faithful Adam, 1 for any other, 2 where it cannot be run.
    """  # noqa: D301 - click leaves alone what follows the character \\b
    try:
        faithful = _check(subject, settings, json_path, vectors)
    except click.UsageError:
        raise
    except (MissingExtraError, ValueError, OSError, click.ClickException) as error:
        raise _CannotRunError(str(error)) from error
    if not faithful:
        sys.exit(1)


class _CannotRunError(click.ClickException):
    """What keeps a check from telling anything: not to be taken for a verdict."""

    exit_code = 2


def _check(
    subject: str | None, settings: tuple[str, ...], json_path: Path | None, vectors: Path | None
) -> bool:
    console = _console("adamas check")
    if subject is None and (settings or json_path is not None):
        raise click.UsageError("--set and --json go with a subject. Give one, or leave them out.")
    if subject is None and vectors is None:
        raise click.UsageError(
            "Nothing to check. Give a subject, for example torch.optim:Adam, or --vectors FOLDER."
        )
    if vectors is not None:
        from adamas.checking.vectors import write

        paths = write(vectors)
        _say_where(console, vectors, f"{len(paths)} files in ")
    if subject is None:
        return True
    if json_path is not None:
        _check_writable(json_path, "--json")
    report = _examined(subject, dict(map(_option, settings)))
    first, *rest = report.lines()
    console.print(first, style="bold", markup=False, soft_wrap=True)
    for line in rest:
        console.print(line, markup=False, soft_wrap=True)
    if json_path is not None:
        text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
        json_path.write_text(text + "\n", encoding="utf-8")
        _say_where(console, json_path)
    return report.faithful


def _examined(subject: str, options: dict[str, Any]) -> Report:
    """Return the report on a subject; on a terminal, show on standard error how far it is."""
    from adamas.checking.examination import STAGES, examine

    console = require("rich.console", "adamas check", "cli", "rich").Console(stderr=True)
    progress = require("rich.progress", "adamas check", "cli", "rich")
    with progress.Progress(
        progress.TextColumn("{task.description:<28}"),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
        # What the subject prints goes where it would go without a bar.
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bars:
        bar = bars.add_task("", total=len(STAGES))

        def tell(stage: str) -> None:
            bars.update(bar, description=stage, completed=STAGES.index(stage))

        return examine(subject, options, tell)


def _option(text: str) -> tuple[str, Any]:
    """Return name and value of ``name=value``; the value is a Python literal, or else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set was given {text!r}, but it must be name=value, as amsgrad=True.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


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


def _say_where(console: Console, path: Path, what: str = "") -> None:
    console.print(f"wrote {what}{path.resolve()}", soft_wrap=True, markup=False)


def _check_writable(path: Path, option: str) -> None:
    """Refuse a path given by ``option`` that cannot be written, before any work is done for it."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written ({error.strerror}). Choose another with {option}."
        ) from None
    if not existed:
        path.unlink()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
