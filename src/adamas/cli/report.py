"""``adamas report``: a page of what records of runs tell."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import click

import adamas
from adamas.cli.arguments import check_writable, written
from adamas.cli.output import console_of, say_where
from adamas.extras import require

__all__ = ["command"]


@click.command("report")
@click.argument(
    "records", nargs=-1, required=True, metavar="RECORD...", type=click.Path(path_type=Path)
)
@written(
    "--output", "-o", default=Path("adamas-report.html"), help="Where to write the page (HTML)."
)
def command(records: tuple[Path, ...], output: Path) -> None:
    """Make a page of what the records of one run or several tell.

    A RECORD is a file that adamas.Recorder has written. The page has findings, curves, a heat map
    of layers and a table; it is one file, and needs no network. The findings are printed, too.

    \b
        adamas report run.jsonl
        adamas report before.jsonl after.jsonl -o comparison.html
    """  # noqa: D301 - click leaves alone what follows the character \\b
    console = console_of("adamas report")
    require("vl_convert", "adamas report", "report", "vl-convert-python")
    from adamas.report import findings, page, read

    if output.suffix.lower() not in (".html", ".htm"):
        raise click.UsageError(f"--output is {str(output)!r}, but its name must end in .html.")
    check_writable(output, "--output")
    runs = [read(path, name) for path, name in zip(records, _names(records), strict=True)]
    text = page(runs, adamas.__version__)
    for run in runs:
        found = findings(run)
        said = "" if found else "nothing found"
        console.print(f"{run.name}: {said}".rstrip(), markup=False, style="bold", soft_wrap=True)
        for each in found:
            console.print(f"  {each.level}: {each.sentence}", markup=False, soft_wrap=True)
    try:
        # A name may have half of a character.
        output.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:  # as where the disk is full
        with suppress(OSError):
            output.resolve().unlink()  # a part of a page shows nothing
        raise click.ClickException(
            f"{output} cannot be written ({error.strerror}). Choose another with --output."
        ) from None
    say_where(console, output)


def _names(records: tuple[Path, ...]) -> list[str]:
    """Return what to call each file: its name, with as many folders as tell it from the others."""
    paths = [path.absolute() for path in records]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len({*names}) == len({*paths}):
            return names
    return [str(path) for path in paths]
