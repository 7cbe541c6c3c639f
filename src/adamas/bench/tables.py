"""Figures as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from adamas.bench.measuring import Figure, Report

__all__ = ["HEADER", "cells", "markdown", "read_json", "write_json"]

HEADER = ("work", "against", "adamas", "other", "ratio", "from … to", "goal")


def cells(report: Report) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line of the table, under ``HEADER``."""
    for each in report.figures:
        goal = "" if each.goal is None else f"{each.goal:g}×"
        if each.ratio is None:
            why = f"needs {', '.join(each.missing)}" if each.missing else _cell(each.failure)
            yield (each.work, each.against, "", "", why, "", goal)
            continue
        spread = f"{_short(each.lowest)} … {_short(each.highest)}"
        times = (_time(each.ours), _time(each.other))
        yield (each.work, each.against, *times, f"{_short(each.ratio)}×", spread, goal)


def markdown(report: Report) -> str:
    """Return the table and the machine as Markdown."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|--:|--:|--:|--:|--:|"]
    lines += ["| " + " | ".join(row) + " |" for row in cells(report)]
    about = " · ".join(f"{key} {value}" for key, value in report.machine.items())
    note = "\n\nSmall sizes (--quick): no figures to quote." if report.quick else ""
    return "\n".join(lines) + f"\n\nMachine: {about}.{note}\n"


def write_json(report: Report, path: Path) -> None:
    """Write everything measured to ``path``."""
    path.write_text(json.dumps(asdict(report), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path) -> Report:
    """Return the report that :func:`write_json` wrote."""
    stored = json.loads(path.read_text("utf-8"))
    figures: list[Figure] = []
    for each in stored["figures"]:
        missing = tuple(each.pop("missing"))
        figures.append(Figure(**each, missing=missing))
    return Report(stored["machine"], stored["quick"], tuple(figures))


def _cell(failure: str) -> str:
    """Return a failure so that it fits into a cell of Markdown."""
    text = "failed: " + failure.replace("|", "/")
    return text if len(text) <= 100 else text[:99] + "…"


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"
