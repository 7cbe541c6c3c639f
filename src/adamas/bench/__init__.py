"""Measuring adamas against what is installed: ratios, each from one run, results checked first.

A row names a piece of work and two contenders for it. Before anything is timed, the contenders'
results are compared; then they take turns, round by round, and the ratio is that of each round's
two times, so that it holds where the machine's speed drifts. What is quoted is the median.
"""

from __future__ import annotations

from adamas.bench import arrays, cuda, jax, small, tensors
from adamas.bench.checks import WrongResultError
from adamas.bench.hardware import machine, why_no_cuda
from adamas.bench.measuring import Figure, Pair, Report, Row, run
from adamas.bench.tables import HEADER, cells, markdown, read_json, write_json

__all__ = [
    "HEADER",
    "Figure",
    "Pair",
    "Report",
    "Row",
    "WrongResultError",
    "cells",
    "machine",
    "markdown",
    "read_json",
    "rows",
    "run",
    "why_no_cuda",
    "write_json",
]


def rows() -> list[Row]:
    """Return the rows, those that need a missing package or device included."""
    return [*arrays.rows(), *tensors.rows(), *small.rows(), *jax.rows(), *cuda.rows()]
