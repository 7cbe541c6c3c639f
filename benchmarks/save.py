"""What the scripts share: run the rows of one kind, print and keep the figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from adamas import bench

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
KINDS = ("step", "torch_step", "torch_phase", "jax_step")


def measure(name: str, prefixes: tuple[str, ...]) -> None:
    """Run the rows whose work begins with one of ``prefixes``; write results/<name>.json, .md.

    The table in the README is made anew, too. With ``--quick`` nothing is written.
    """
    quick = "--quick" in sys.argv
    chosen = [row for row in bench.rows() if row.work.startswith(prefixes)]
    report = bench.run(chosen, quick=quick, tell=print)
    print(bench.markdown(report))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        bench.write_json(report, RESULTS / f"{name}.json")
        (RESULTS / f"{name}.md").write_text(bench.markdown(report), "utf-8")
        README.write_text(with_figures(README.read_text("utf-8")), "utf-8")


def with_figures(text: str) -> str:
    """Return the text of the README with the table of all results between its markers."""
    return re.sub(
        r"(<!-- measured: begin -->\n).*?(<!-- measured: end -->)",
        lambda found: found[1] + short_table() + found[2],
        text,
        flags=re.DOTALL,
    )


def short_table() -> str:
    """Return the ratios of all results as Markdown, with the machine of the first."""
    reports = [
        bench.read_json(path)
        for path in (RESULTS / f"{kind}.json" for kind in KINDS)
        if path.exists()
    ]
    lines = ["| work | against | ratio | goal |", "|---|---|--:|--:|"]
    for report in reports:
        for work, against, *_, ratio, _, goal in bench.cells(report):
            lines.append(f"| {work} | {against} | {ratio} | {goal} |")
    about = " · ".join(f"{key} {value}" for key, value in reports[0].machine.items())
    return "\n".join(lines) + f"\n\n{about}\n"


if __name__ == "__main__":
    README.write_text(with_figures(README.read_text("utf-8")), "utf-8")
