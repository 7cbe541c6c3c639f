"""What commands take: counts, options of what they check, and files that they write."""

from __future__ import annotations

import ast
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from adamas.checks import check_count

__all__ = ["WholeNumber", "assigned", "check_picture", "check_writable", "written"]


class WholeNumber(click.IntRange):
    """A whole number in a range, which may be written as 1e4."""

    name = "integer"  # click says "is not a valid integer range" of what is no number

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
        path.resolve().unlink()  # not a link to it


def check_picture(path: Path, option: str, ending: str) -> None:
    """Refuse a picture given by ``option`` whose name says another format, or as above."""
    if path.suffix.lower() != ending:
        raise click.UsageError(f"{option} is {str(path)!r}, but its name must end in {ending}.")
    check_writable(path, option)


#: What stands for itself in an option, as Python writes it without quotes or does not write it.
_WORDS = {
    "nan": float("nan"),
    "inf": float("inf"),
    "infinity": float("inf"),
    "true": True,
    "false": False,
}


class _Words(ast.NodeTransformer):
    """Puts constants in place of the words, and of ``float('nan')``."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """Return the constant that a name stands for, if any."""
        word = node.id.lower()
        return ast.Constant(_WORDS[word]) if word in _WORDS else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        """Return the number of ``float('nan')`` and its kin."""
        match node:
            case ast.Call(ast.Name("float"), [ast.Constant(str(text))], []):
                return ast.Constant(float(text))
            case _:
                return node


def assigned(text: str) -> tuple[str, Any]:
    """Return name and value of ``name=value``; the value is a Python literal, or else a string."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set was given {text!r}, but it must be name=value, as amsgrad=True.")
    try:
        return name, ast.literal_eval(_Words().visit(ast.parse(value.strip(), mode="eval")))
    except (ValueError, SyntaxError):
        return name, value
