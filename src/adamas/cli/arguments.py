"""What several commands take: counts, and files that they write."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from adamas.checks import check_count

__all__ = ["WholeNumber", "check_writable", "written"]


class WholeNumber(click.IntRange):
    """A whole number in a range, which may be written as 1e4."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number, exactly; click calls this."""
        # As digits it may have more of them than float64; else click says what is wrong with it.
        if not str(value).isdecimal():
            with suppress(TypeError, ValueError, OverflowError):
                value = check_count("value", float(value))
        return super().convert(value, param, ctx)


def written(*names: str, help: str, default: Path | None = None) -> Any:  # noqa: A002
    """Return the option of a file that a command writes."""
    kind, shown = click.Path(path_type=Path), default is not None
    return click.option(*names, type=kind, default=default, show_default=shown, help=help)


def check_writable(path: Path, option: str) -> None:
    """Refuse a path given by ``option`` that cannot be written, before any work is done for it."""
    existed = path.exists()
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise click.ClickException(
            f"{path} cannot be written ({error.strerror}). Choose another with {option}."
        ) from None
    if not existed:
        path.unlink()
