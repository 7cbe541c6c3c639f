"""``adamas info``: what a report of a problem needs."""

from __future__ import annotations

import importlib.metadata
import platform

import click

import adamas
from adamas.cli.output import console_of
from adamas.engines import native
from adamas.extras import require

__all__ = ["command"]

_PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "triton",
    "jax",
    "optax",
    "scikit-learn",
    "matplotlib",
)


@click.command("info")
def command() -> None:
    """Tell version, machine, threads and the packages found."""
    console = console_of("adamas info")
    table = require("rich.table", "adamas info", "cli", "rich").Table.grid(padding=(0, 2))
    targets = native.targets()
    names = [name if runs else f"{name} (not on this processor)" for name, runs in targets.items()]
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    table.add_row("adamas", adamas.__version__)
    table.add_row("Python", f"{platform.python_version()} on {platform.platform()}")
    table.add_row("target", native.target())
    table.add_row("targets in this build", ", ".join(names))
    threads = f"{native.get_num_threads()} (processors: {native.processor_count()})"
    table.add_row("threads", threads)
    for package in _PACKAGES:
        table.add_row(package, _version(package))
    console.print(table)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
