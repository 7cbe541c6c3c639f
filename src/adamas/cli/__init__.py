"""The command line: ``adamas check``, ``demo``, ``race``, ``report`` and ``info``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import adamas
from adamas.checks import near
from adamas.extras import MissingExtraError

if TYPE_CHECKING:
    import click
else:
    try:
        import click
    except ModuleNotFoundError:
        sys.exit('The command line needs click. Install it with: pip install "adamas[cli]"')

from adamas.cli import check, demo, info, race, report

__all__ = ["main"]

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Commands(click.Group):
    """Commands whose foreseeable failures are one line on standard error, and exit code 1.

    A name that is nearly right is answered with the right one.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            meant = near(args[0], self.commands)
            if not meant or "Did you mean" in error.message:  # as later versions of click offer it
                raise
            raise click.UsageError(error.message + meant, ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (MissingExtraError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings=_HELP)
@click.version_option(adamas.__version__, prog_name="adamas")
def main() -> None:
    """Show Adam at work, check an implementation of it, look at what a training did."""


for _module in (check, demo, info, race, report):
    main.add_command(_module.command)
