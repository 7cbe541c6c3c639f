"""What was stored, and the pages that are made from it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import catalogue
from benchmarks.claims import claims
from benchmarks.ratios import HEADER, Ratios
from benchmarks.tables import Stored, Table, machine_line, markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
#: Pages that show passages of what is stored, each between two markers of its name.
PAGES = tuple(
    ROOT / name
    for name in (
        "README.md",
        "docs/benchmarks.md",
        "docs/convergence.md",
        "docs/guides/batch-size.md",
        "docs/guides/changes.md",
        "docs/guides/small-states.md",
        "docs/names.md",
        "benchmarks/README.md",
    )
)
#: Of which tables the ratios stand together, by the name of the markers.
TOGETHER = {
    "arrays": ("step",),
    "tensors": ("torch_step", "torch_heads"),
    "dtensors": ("dtensors",),
    "phase": ("torch_phase",),
    "norm": ("norm",),
    "changes": ("changes",),
    "recorder": ("recorder",),
    "ranks": ("ranks",),
    "threads": ("threads",),
    "jax": ("jax_step",),
    "compiling": ("jax_compile",),
    "cuda": ("cuda_step", "cuda_phase"),
    "speed": ("small_states",),
}
NO_FIGURES = "No figures have been taken yet: no machine with such a device was at hand.\n"


# Where no folder is given, it is RESULTS.


def stored(table: Table, results: Path | None = None) -> Stored | None:
    """Return what is stored of a table, None where there is nothing."""
    path = (results or RESULTS) / f"{table.name}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def store(table: Table, measured: Stored, results: Path | None = None) -> None:
    """Store what was measured, with its page."""
    results = results or RESULTS
    results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(measured, indent=1, ensure_ascii=False) + "\n"
    (results / f"{table.name}.json").write_text(text, "utf-8")
    write_page(table, measured, results)


def write_page(table: Table, measured: Stored, results: Path) -> None:
    """Write the page beside what is stored."""
    (results / f"{table.name}.md").write_text(table.markdown(measured), "utf-8")


def write_all() -> None:
    """Make all pages and pictures anew from what is stored."""
    for table in catalogue.TABLES:
        measured = stored(table)
        if measured is not None:
            write_page(table, measured, RESULTS)
            table.draw(measured)
    found = passages()
    for page in PAGES:
        page.write_text(with_passages(page.read_text("utf-8"), found), "utf-8")


def passages(results: Path | None = None) -> dict[str, str]:
    """Return what pages show, by the name of the markers around it."""
    found = {marker: ratios(names, results) for marker, names in TOGETHER.items()}
    read = {table.name: stored(table, results) for table in catalogue.TABLES}
    measured = {name: each for name, each in read.items() if each is not None}
    found["claims"] = claims(measured)
    lines = (f"| `{table.name}` | {table.about} |\n" for table in catalogue.TABLES)
    found["tables"] = "| table | measures |\n|---|---|\n" + "".join(lines)
    for name, each in measured.items():
        found |= catalogue.table(name).passages(each)
    return found


def with_passages(text: str, passages: dict[str, str]) -> str:
    """Return the text of a page with each passage between its markers."""
    for marker, passage in passages.items():
        text = re.sub(
            rf"(<!-- {marker}: begin -->\n).*?(<!-- {marker}: end -->)",
            lambda found, passage=passage: found[1] + passage + found[2],
            text,
            flags=re.DOTALL,
        )
    return text


def ratios(names: tuple[str, ...], results: Path | None = None) -> str:
    """Return the rows of some tables in one, and under them their machines."""
    lines: list[tuple[str, ...]] = []
    machines: dict[str, list[str]] = {}
    for table in map(catalogue.table, names):
        measured = stored(table, results)
        if measured is None:
            continue
        assert isinstance(table, Ratios)
        machines.setdefault(machine_line(measured), []).append(table.name)
        lines.extend(table.cells(measured))
    if not lines:
        return NO_FIGURES
    several = len(machines) > 1
    about = (
        f"{', '.join(on)}: {each}\n" if several else f"{each}\n" for each, on in machines.items()
    )
    return "\n".join((markdown(HEADER, lines, words=2), *about))
