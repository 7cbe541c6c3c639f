"""``adamas check``: what an implementation of Adam computes."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adamas.cli.arguments import check_writable, written
from adamas.cli.output import console_of, say_where
from adamas.extras import MissingExtraError, require

if TYPE_CHECKING:
    from adamas.checking import Report

__all__ = ["command"]


@click.command("check")
@click.argument("subject", required=False)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="An option that the subject is made with; may be given several times.",
)
@written("--json", "json_path", help="Where to write the report as JSON.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="FOLDER",
    help="Where to write probes with exact results, for implementations in any language.",
)
def command(
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
    console = console_of("adamas check")
    if subject is None and (settings or json_path is not None):
        raise click.UsageError("--set and --json go with a subject. Give one, or leave them out.")
    if subject is None and vectors is None:
        raise click.UsageError(
            "Nothing to check. Give a subject, for example torch.optim:Adam, or --vectors FOLDER."
        )
    if vectors is not None:
        from adamas.checking.vectors import write

        paths = write(vectors)
        say_where(console, vectors, f"{len(paths)} files in ")
    if subject is None:
        return True
    if json_path is not None:
        check_writable(json_path, "--json")
    report = _examined(subject, dict(map(_option, settings)))
    first, *rest = report.lines()
    console.print(first, style="bold", markup=False, soft_wrap=True)
    for line in rest:
        console.print(line, markup=False, soft_wrap=True)
    if json_path is not None:
        text = json.dumps(report.as_dict(), indent=1, ensure_ascii=False)
        json_path.write_text(text + "\n", encoding="utf-8")
        say_where(console, json_path)
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
