"""What the scripts share: run the rows of one kind, print and keep the figures."""

from __future__ import annotations

import sys
from pathlib import Path

from adamas import bench

RESULTS = Path(__file__).parent / "results"


def measure(name: str, prefixes: tuple[str, ...]) -> None:
    """Run the rows whose work begins with one of ``prefixes``; write results/<name>.json, .md."""
    quick = "--quick" in sys.argv
    chosen = [row for row in bench.rows() if row.work.startswith(prefixes)]
    report = bench.run(chosen, quick=quick, tell=print)
    print(bench.markdown(report))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        bench.write_json(report, RESULTS / f"{name}.json")
        (RESULTS / f"{name}.md").write_text(bench.markdown(report), "utf-8")
