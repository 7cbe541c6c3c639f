"""What the scripts share: run the rows of one kind, print and keep the figures."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from adamas import bench

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "small-states.md"
KINDS = ("step", "torch_step", "torch_heads", "torch_phase", "small_states", "jax_step")
CUDA_KINDS = ("cuda_step", "cuda_phase")
NO_FIGURES = "No figures have been taken yet: no machine with such a device was at hand.\n"


def measure(name: str, prefixes: tuple[str, ...], *, on_cuda: bool = False) -> None:
    """Run the rows whose work begins with one of ``prefixes``; write results/<name>.json, .md.

    The tables in README and guide are made anew, too. With ``--quick`` nothing is written.
    ``on_cuda`` says that the rows are nothing without a CUDA device; then a row that fails does
    not keep the others from being measured, and the exit code tells of it at the end.
    """
    if on_cuda and (missing := bench.why_no_cuda()):
        sys.exit(f"{name}.py {missing}")
    quick = "--quick" in sys.argv
    chosen = [row for row in bench.rows() if row.work.startswith(prefixes)]
    report = bench.run(chosen, quick=quick, tell=print, keep_going=on_cuda)
    print(bench.markdown(report))
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        bench.write_json(report, RESULTS / f"{name}.json")
        (RESULTS / f"{name}.md").write_text(bench.markdown(report), "utf-8")
        write_pages()
    failed = sum(each.failure != "" for each in report.figures)
    if failed:
        sys.exit(f"{failed} of {len(report.figures)} rows failed; what they raised stands above")


def write_pages() -> None:
    """Put the tables of all results into the pages that show them."""
    for page in (README, GUIDE):
        page.write_text(with_figures(page.read_text("utf-8")), "utf-8")


def with_figures(text: str) -> str:
    """Return the text of a page with the tables between its markers."""
    tables = (("measured", KINDS), ("cuda", CUDA_KINDS), ("speed", ("small_states",)))
    for marker, kinds in tables:
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
    if not reports:
        return NO_FIGURES
    lines = ["| work | against | ratio | goal |", "|---|---|--:|--:|"]
    for report in reports:
        for work, against, *_, ratio, _, goal in bench.cells(report):
            lines.append(f"| {work} | {against} | {ratio} | {goal} |")
    about = " · ".join(f"{key} {value}" for key, value in reports[0].machine.items())
    return "\n".join(lines) + f"\n\n{about}\n"


if __name__ == "__main__":
    write_pages()
