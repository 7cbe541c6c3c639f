"""What can be measured: rows, each with a name and what it needs, in tables that are stored."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bandwidth import compiler
from benchmarks.hardware import free_cuda_memory, why_no_cuda

#: What rows may need besides modules and files.
C_COMPILER = "a C compiler"
CUDA_DEVICE = "a CUDA device"
TWO_VERSIONS = "--old and --new"

Stored = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """How a run goes: at which sizes, and who hears of it."""

    #: Small sizes: tries rows out, says little.
    quick: bool = False
    #: Hears what comes next, and what went wrong.
    tell: Callable[[str], object] = lambda _: None
    #: Folders with two versions of adamas to be compared.
    old: Path | None = None
    new: Path | None = None


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    work: str
    #: What it is compared with; "" where it stands for itself.
    against: str
    #: What is to be reached; None where a row only informs.
    goal: float | None
    #: Makes what its table measures; ``quick`` asks for a small size.
    make: Callable[[bool], Any]
    #: What must be there: modules, files by their absolute path, and the three above.
    needs: tuple[str, ...] = ()
    #: Bytes of a CUDA device's memory that the full size takes; None where no device is needed.
    cuda_memory: int | None = None

    @property
    def name(self) -> str:
        return f"{self.work} · {self.against}" if self.against else self.work

    def missing(self, run: Run) -> tuple[str, ...]:
        """Return what is needed and not there."""
        lacking = tuple(need for need in self.needs if not _is_there(need, run))
        if self.cuda_memory is None:
            return lacking
        if why_no_cuda() is not None:
            return (CUDA_DEVICE, *lacking)
        if not lacking and not run.quick and free_cuda_memory() < self.cuda_memory:
            return (f"{self.cuda_memory / 1e9:.0f} GB free on the CUDA device",)
        return lacking


def _is_there(need: str, run: Run) -> bool:
    if need == C_COMPILER:
        return compiler() is not None
    if need == TWO_VERSIONS:
        return run.old is not None and run.new is not None
    if need.startswith("/"):
        return Path(need).exists()
    return importlib.util.find_spec(need) is not None


@dataclass(frozen=True)
class Table:
    """Rows that are measured together, stored in one file and shown in one table."""

    #: Of its files in ``results/``.
    name: str
    #: What it measures, in a line.
    about: str
    rows: tuple[Row, ...]

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        """Return what is to be stored of ``rows``, besides the machine."""
        return {"figures": figures(rows, run, lambda row: self.figure(row, run))}

    def figure(self, row: Row, run: Run) -> Stored:
        """Return what was measured for one row, for which all is there."""
        raise NotImplementedError

    def markdown(self, stored: Stored) -> str:
        """Return the page of what was stored."""
        raise NotImplementedError

    def passages(self, stored: Stored) -> dict[str, str]:
        """Return what pages show of it, by the name of the markers around it."""
        del stored
        return {}

    def draw(self, stored: Stored) -> None:
        """Draw the pictures that the docs show of it."""


def figures(rows: Iterable[Row], run: Run, measure: Callable[[Row], Stored]) -> list[Stored]:
    """Measure rows one after another.

    A row for which something is missing, or that raises, keeps no other from being measured: its
    figure says so, in ``missing`` or ``failure``.
    """
    made: list[Stored] = []
    for row in rows:
        run.tell(row.name)
        name = {"work": row.work, "against": row.against}
        if missing := row.missing(run):
            made.append({**name, "missing": list(missing)})
            continue
        try:
            made.append({**name, **measure(row)})
        except Exception as error:
            run.tell(traceback.format_exc())
            lines = str(error).splitlines() or [""]
            made.append({**name, "failure": f"{type(error).__name__}: {lines[0]}"})
    return made


def why_not(figure: Stored) -> str:
    """Return why there are no figures, so that it fits into a cell of Markdown; "" if there are."""
    if missing := figure.get("missing"):
        return f"needs {', '.join(missing)}"
    if failure := figure.get("failure"):
        text = "failed: " + failure.replace("|", "/")
        return text if len(text) <= 100 else text[:99] + "…"
    return ""


def short(value: float) -> str:
    """Return a ratio in few digits: two decimals below 10, one below 100."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Return a table; ``words`` is how many of its first columns are not numbers."""
    rule = "|---" * words + "|--:" * (len(header) - words) + "|"
    lines = [f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def machine_line(stored: Stored) -> str:
    """Return the machine that something was measured on, in a line."""
    return " · ".join(f"{key} {value}" for key, value in stored["machine"].items())


def machine_note(stored: Stored) -> str:
    """Return what stands under a table: the machine, and what its figures are good for."""
    note = "\n\nSmall sizes (--quick): no figures to quote." if stored.get("quick") else ""
    return f"Machine: {machine_line(stored)}.{note}\n"
