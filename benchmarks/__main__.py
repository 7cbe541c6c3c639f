"""The program: ``python -m benchmarks``, in the repository's root."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import catalogue, pages
from benchmarks.hardware import machine, why_no_cuda
from benchmarks.tables import CUDA_DEVICE, Row, Run, Table

_EPILOG = """\
ROWS are names of tables, or parts of the names of rows; without any, everything is measured, which
takes an hour or two and up to 6 GB of memory (58 GB of a CUDA device's). Results are compared
before anything is timed. A table that was measured whole, at full size, is stored in
benchmarks/results with its machine, and the pages that show it are made anew.
"""


def parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    made = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measure adamas against what is installed.",
        epilog=_EPILOG,
    )
    made.add_argument("rows", nargs="*", metavar="ROWS", help="what to measure")
    ways = made.add_mutually_exclusive_group()
    ways.add_argument(
        "--list", action="store_true", help="name rows, and what each lacks here; measure none"
    )
    ways.add_argument(
        "--quick", action="store_true", help="small sizes: tries rows out, says little"
    )
    ways.add_argument(
        "--tables", action="store_true", help="make all pages from what is stored; measure nothing"
    )
    made.add_argument(
        "--results",
        type=Path,
        metavar="FOLDER",
        help="store whatever is measured there, and leave pages as they are",
    )
    for name in ("old", "new"):
        made.add_argument(
            f"--{name}",
            type=Path,
            metavar="FOLDER",
            help=f"the src folder, with the compiled module, of the {name} version to compare",
        )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code: 1 where something failed, or nothing was measured."""
    reader = parser()
    asked = reader.parse_args(arguments)
    if asked.tables:
        if asked.rows:
            reader.error(f"--tables makes all pages. Leave {' '.join(asked.rows)} out.")
        _require_matplotlib(reader)
        pages.write_all()
        return 0
    try:
        chosen = list(catalogue.chosen(asked.rows))
    except LookupError as error:
        reader.error(error.args[0])
    for name, source in (("old", asked.old), ("new", asked.new)):
        if source is None:
            continue
        if not (source / "adamas").is_dir():
            missing = "no adamas"
        elif not any((source / "adamas").glob("_native*[!i]")):  # _native.pyi is its types only
            missing = "no compiled module of adamas (adamas/_native…)"
        else:
            continue
        reader.error(
            f"--{name} is {source}, but there is {missing} in it. Give the src folder of a"
            " version, with its compiled module."
        )
    run = Run(asked.quick, _tell, asked.old, asked.new)
    if asked.list:
        for table, rows in chosen:
            print(_listed(table, rows, run))
        return 0
    if asked.results is not None:
        _require_writable(reader, asked.results)
    elif any(_is_whole(table, rows, run) for table, rows in chosen):
        _require_matplotlib(reader)
    codes = {measure(table, rows, run, asked.results) for table, rows in chosen}
    return int(FAILED in codes or MEASURED not in codes)


MEASURED, FAILED, SKIPPED = range(3)


def measure(table: Table, rows: Sequence[Row], run: Run, results: Path | None) -> int:
    """Measure rows of a table; tell, store and show what was found."""
    lacking = {row.name: row.missing(run) for row in rows}
    if all(lacking.values()):
        print(f"{table.name}: {_why_skipped(lacking.values())}", file=sys.stderr)
        return SKIPPED
    try:
        found = table.measured(rows, run)
    except Exception:
        run.tell(traceback.format_exc())
        print(f"{table.name} failed; what it raised stands above", file=sys.stderr)
        return FAILED
    # Now, since what was measured with has been imported.
    measured = {"machine": machine(), "quick": run.quick, **found}
    print(table.markdown(measured))
    if results is not None:
        pages.store(table, measured, results)
    elif _is_whole(table, rows, run):
        pages.store(table, measured)
        pages.write_all()
    else:
        print("Not stored: small sizes, or not all rows of the table.", file=sys.stderr)
    failures = sum("failure" in each for each in found.get("figures", ()))
    if failures:
        told = f"{failures} of {len(rows)} rows failed; what they raised stands above"
        print(f"{table.name}: {told}", file=sys.stderr)
    return FAILED if failures else MEASURED


def _is_whole(table: Table, rows: Sequence[Row], run: Run) -> bool:
    return len(rows) == len(table.rows) and not run.quick


def _require_matplotlib(reader: argparse.ArgumentParser) -> None:
    """End with an error where the pictures of pages could not be drawn, before anything is done."""
    if importlib.util.find_spec("matplotlib") is None:
        reader.error(
            "the pictures of the pages need matplotlib. Install it with: pip install matplotlib; or"
            " store what is measured elsewhere: --results FOLDER."
        )


def _why_skipped(lacking: Iterable[tuple[str, ...]]) -> str:
    needs = dict.fromkeys(itertools.chain.from_iterable(lacking))
    reason = why_no_cuda() if CUDA_DEVICE in needs else None
    return reason or f"needs {', '.join(needs)}"


def _listed(table: Table, rows: Sequence[Row], run: Run) -> str:
    lines = [f"{table.name}: {table.about}"]
    for row in rows:
        missing = ", ".join(row.missing(run))
        lines.append(f"    {row.name}" + (f" (needs {missing})" if missing else ""))
    return "\n".join(lines)


def _require_writable(reader: argparse.ArgumentParser, folder: Path) -> None:
    """Refuse a folder that cannot be written to, before any work is done for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} cannot be written to ({error.strerror})"
        reader.error(f"{reason}. Choose another with --results.")


def _tell(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
