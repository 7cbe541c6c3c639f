"""How commands show what they found: plain where there is no terminal."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from adamas.extras import require

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["NOTE", "console_of", "is_terminal", "progress_on", "say_where", "shown", "table_of"]

#: What is printed wherever "note" stands among the methods.
NOTE = 'note: Adam without the exponent t in the bias correction (bias_correction="first-step").'


def console_of(who: str) -> Console:
    """Return a console that is plain where there is no terminal or NO_COLOR is set."""
    console = require("rich.console", who, "cli", "rich")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console that has no β is no reason to fail.
        sys.stdout.reconfigure(errors="replace")
    width = None if is_terminal(sys.stdout) else 110
    return console.Console(highlight=False, width=width)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal; it is None where it was closed from the first."""
    return stream is not None and stream.isatty()


def progress_on(console: Console, *, hidden: bool) -> Any:
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


def table_of(*columns: str) -> Any:
    """Return a table whose first column has names and whose others have numbers."""
    table = require("rich.table", "adamas", "cli", "rich").Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        # A narrow terminal breaks a number, but no digit of it is left out.
        table.add_column(
            column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0
        )
    return table


@contextmanager
def shown() -> Generator[None]:
    """Let the exit code stand where what reads the output is gone, as behind ``| head -1``."""
    if sys.stdout is None:  # closed from the first
        yield
        return
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the latter is rich's
        # What Python itself writes at its end goes nowhere.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_where(console: Console, path: Path, what: str = "") -> None:
    """Print where a file was written."""
    console.print(f"wrote {what}{path.resolve()}", soft_wrap=True, markup=False)
