"""What the scripts share: run the rows of one kind, print and keep the figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from adamas import bench

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "small-states.md"
KINDS = ("step", "torch_step", "torch_phase", "small_states", "jax_step")


def measure(name: str, prefixes: tuple[str, ...]) -> None:
    """Run the rows whose work begins with one of ``prefixes``; write results/<name>.json, .md.

    The tables in README and guide are made anew, too. With ``--quick`` nothing is written.
    """
    quick = "--quick" in sys.argv
    chosen = [row for row in bench.rows() if row.work.startswith(prefixes)]
    report = bench.run(chosen, quick=quick, tell=print)
    print(bench.markdown(report))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        bench.write_json(report, RESULTS / f"{name}.json")
        (RESULTS / f"{name}.md").write_text(bench.markdown(report), "utf-8")
        write_pages()


def write_pages() -> None:
    """Put the tables of all results into the pages that show them."""
    for page in (README, GUIDE):
        page.write_text(with_figures(page.read_text("utf-8")), "utf-8")


def with_figures(text: str) -> str:
    """Return the text of a page with the tables between its markers."""
    for marker, kinds in (("measured", KINDS), ("speed", ("small_states",))):
        text = re.sub(
            rf"(<!-- {marker}: begin -->\n).*?(<!-- {marker}: end -->)",
            lambda found, kinds=kinds: found[1] + short_table(kinds) + found[2],
            text,
            flags=re.DOTALL,
        )
    return text


def short_table(kinds: tuple[str, ...]) -> str:
    """Return the ratios of some results as Markdown, with the machine of the first."""
    reports = [
        bench.read_json(path)
        for path in (RESULTS / f"{kind}.json" for kind in kinds)
        if path.exists()
    ]
    lines = ["| work | against | ratio | goal |", "|---|---|--:|--:|"]
    for report in reports:
        for work, against, *_, ratio, _, goal in bench.cells(report):
            lines.append(f"| {work} | {against} | {ratio} | {goal} |")
    about = " · ".join(f"{key} {value}" for key, value in reports[0].machine.items())
    return "\n".join(lines) + f"\n\n{about}\n"


if __name__ == "__main__":
    write_pages()
