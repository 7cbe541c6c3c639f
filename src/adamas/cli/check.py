"""``adamas check``: what an implementation of Adam computes."""

from __future__ import annotations

import json
import shlex
import sys
import textwrap
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adamas.cli.arguments import assigned, check_writable, written
from adamas.cli.output import console_of, is_terminal, say_where, shown
from adamas.extras import MissingExtraError, require

if TYPE_CHECKING:
    from adamas.checking import Report
    from adamas.checking.progress import Position
    from adamas.checking.subjects import Subject

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
@click.option("--all", "every", is_flag=True, help="Check all that a module or file has, briefly.")
@written("--json", "json_path", help="Where to write the report as JSON.")
@click.option(
    "--vectors",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    metavar="FOLDER",
    help="Where to write test vectors with exact results, for implementations in any language.",
)
def command(
    subject: str | None,
    settings: tuple[str, ...],
    every: bool,
    json_path: Path | None,
    vectors: Path | None,
) -> None:
    """Tell what an implementation of Adam computes.

    SUBJECT is module:Class or path/to/file.py:Class: a class, a function that makes an optimizer,
    or one that makes a step, of NumPy arrays, PyTorch tensors or JAX arrays. A module or file alone
    lists what it has.

    \b
        adamas check torch.optim:Adam --set amsgrad=True
        adamas check mine.py:Adam
        adamas check mine.py
        adamas check torch.optim --all

    Exit code 0 for a faithful Adam, 1 for any other, 2 where nothing was checked. With --all: 0
    where all are faithful, 2 where none can be run, else 1.
    """  # noqa: D301 - click leaves alone what follows the character \\b
    try:
        code = _check(subject, settings, every, json_path, vectors)
    except click.UsageError:
        raise
    except (MissingExtraError, ValueError, OSError, click.ClickException) as error:
        raise _CannotRunError(str(error)) from error
    except KeyboardInterrupt:
        raise _CannotRunError("Interrupted before the check was finished.") from None
    if code:
        sys.exit(code)


class _CannotRunError(click.ClickException):
    """What keeps a check from telling anything: not to be taken for a verdict."""

    exit_code = 2


def _check(
    subject: str | None,
    settings: tuple[str, ...],
    every: bool,
    json_path: Path | None,
    vectors: Path | None,
) -> int:
    """Do what is asked, and return the exit code."""
    console = console_of("adamas check")
    if subject is None and (settings or every or json_path is not None):
        raise click.UsageError(
            "--set, --all and --json go with a subject. Give one, or leave them out."
        )
    if subject is None and vectors is None:
        raise click.UsageError(
            "Nothing to check. Give a subject, for example torch.optim:Adam, or --vectors FOLDER."
        )
    if vectors is not None:
        from adamas.checking.vectors import write

        paths = write(vectors)
        say_where(console, vectors, f"{len(paths)} files in ")
    if subject is None:
        return 0
    options = dict(map(assigned, settings))
    if json_path is not None:
        check_writable(json_path, "--json")
    from adamas.checking.candidates import candidates

    found = candidates(subject)
    if every:
        if found is None:
            raise click.UsageError(
                f"--all goes with a module or file, but {subject} names one thing in it. Give "
                f"{subject.rpartition(':')[0]} --all, or leave --all out."
            )
        return _check_all(found, options, json_path)
    one: str | Subject = subject
    if found is not None:
        one, *others = found
        if others:
            given = [word for each in settings for word in ("--set", each)]
            given += [] if json_path is None else ["--json", str(json_path)]
            _list(subject, found, given)
            return 2
    report = _examined(one, options)
    if json_path is not None:
        # Before anything is printed: what reads that may be gone.
        _write(json_path, report.as_dict())
    first, *rest = report.lines()
    with shown():
        console.print(first, style="bold", markup=False, soft_wrap=True)
        for line in rest:
            console.print(line, markup=False, soft_wrap=True)
        if json_path is not None:
            say_where(console, json_path)
    return 0 if report.faithful else 1


def _list(place: str, found: tuple[Subject, ...], given: list[str]) -> None:
    """Print the command that checks each, with the options that were ``given``."""
    console = console_of("adamas check")
    which = [*([each.name] for each in found), [place, "--all"]]
    commands = [shlex.join(["adamas", "check", *each, *given]) for each in which]
    with shown():
        console.print(
            f"{place} has {len(found)} candidates. Check one of them, or all with --all:",
            markup=False,
            soft_wrap=True,
        )
        for line in commands:
            console.print(f"    {line}", markup=False, soft_wrap=True)


def _check_all(found: tuple[Subject, ...], options: dict[str, Any], json_path: Path | None) -> int:
    """Check each, and print a line for it as soon as it is known."""
    from adamas.checking import CannotCheckError

    console = console_of("adamas check")
    width = max(len(each.name) for each in found)
    told: list[dict[str, Any]] = []
    verdicts: list[bool | None] = []
    for number, subject in enumerate(found, 1):
        try:
            name = subject.name.rpartition(":")[2]
            report = _examined(subject, options, f"{number}/{len(found)} {name}: ")
        except CannotCheckError as error:
            said = str(error).removeprefix(
                f"{subject.name} can be called in no way that is known. "
            )
            sentence = f"cannot be run: {textwrap.shorten(said, 160, placeholder=' …')}"
            verdicts.append(None)
            told.append({"subject": subject.name, "error": str(error)})
        else:
            sentence = report.sentence
            verdicts.append(report.faithful)
            told.append(report.as_dict())
        if json_path is not None:
            _write(json_path, told)
        mark = {True: " ", False: "!", None: "?"}[verdicts[-1]]
        with shown():
            line = f"{mark} {subject.name:<{width}}  {sentence}"
            console.print(line, markup=False, soft_wrap=True)
    with shown():
        faithful, cannot = verdicts.count(True), verdicts.count(None)
        summary = f"{faithful} of {len(found)} faithful"
        if faithful + cannot < len(found):
            summary += f", {len(found) - faithful - cannot} with a deviation (!)"
        summary += f", {cannot} that cannot be run (?)" * bool(cannot)
        console.print(summary, style="bold", markup=False, soft_wrap=True)
        if json_path is not None:
            say_where(console, json_path)
    if cannot == len(found):
        return 2
    return 0 if faithful == len(found) else 1


def _write(path: Path, content: object) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _examined(subject: str | Subject, options: dict[str, Any], before: str = "") -> Report:
    """Return the report on a subject; on a terminal, show on standard error how far it is."""
    from adamas.checking.examination import examine

    with _bars(before) as tell:
        return examine(subject, options, tell)


@contextmanager
def _bars(before: str) -> Generator[Callable[[Position], None]]:
    """Give what shows a position as a bar: of the stage, with its parts and the time so far."""
    from adamas.checking.progress import STAGES

    console = require("rich.console", "adamas check", "cli", "rich").Console(stderr=True)
    progress = require("rich.progress", "adamas check", "cli", "rich")
    bars = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[parts]:>7}"),
        progress.TimeElapsedColumn(),
        console=console,
        disable=not is_terminal(sys.stderr),
        transient=True,
        # What the subject prints goes where it would go without a bar.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    wide = max(map(len, STAGES))
    bar = bars.add_task(f"{before}1/{len(STAGES)} {STAGES[0]:<{wide}}", total=None, parts="")

    def tell(position: Position) -> None:
        stage, done, total = position
        # One task for all stages, so that the clock goes on.
        task = bars.tasks[0]
        task.total, task.finished_time = total, None
        bars.update(
            bar,
            completed=done,
            description=f"{before}{STAGES.index(stage) + 1}/{len(STAGES)} {stage:<{wide}}",
            parts=f"{done}/{total}" if total else "",
        )

    with bars:
        yield tell
