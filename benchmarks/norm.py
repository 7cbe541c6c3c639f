"""The norm of gradients on one core: exact sums beside sums by tiles and lanes in C."""

from __future__ import annotations

import ctypes
import functools
import math
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adamas import _native, digits
from adamas.engines import native
from benchmarks.bandwidth import compiler
from benchmarks.checks import require_within
from benchmarks.ratios import Pair
from benchmarks.tables import C_COMPILER, Row

SOURCE = Path(__file__).with_name("norm.c")
OTHER = "sums by tiles and lanes"


def rows() -> list[Row]:
    """Return the rows of norms. A goal below 1 allows exact sums more time."""
    return [
        Row("norm, 64 K, one core", OTHER, 0.5, _against(1 << 16), (C_COMPILER,)),
        Row("norm, 64 M, one core", OTHER, 0.77, _against(1 << 26), (C_COMPILER,)),
    ]


@functools.cache
def _sum_of_squares() -> Any:
    command = compiler()
    assert command is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder, "norm.so")
        flags = ["-O3", "-march=native", "-std=c99", "-ffp-contract=off", "-shared", "-fPIC"]
        subprocess.run([*command, *flags, str(SOURCE), "-o", str(library)], check=True)
        found = ctypes.CDLL(str(library)).sum_of_squares
    found.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    found.restype = ctypes.c_double
    return found


def _against(count: int) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        size = 1 << 14 if quick else count
        x = np.random.default_rng(0).standard_normal(size, np.float32)
        sum_of_squares, address = _sum_of_squares(), x.ctypes.data

        row = np.zeros(digits.WIDTH, np.int64)

        def ours() -> None:
            threads = native.get_num_threads()
            native.set_num_threads(1)
            try:
                _native.add_squares(x, row)
            finally:
                native.set_num_threads(threads)

        def other() -> float:
            return sum_of_squares(address, size)

        def check() -> None:
            ours()
            exact = digits.norm(digits.of_squares(x))
            require_within(abs(digits.norm(row) - exact), 0.0, "the norm")
            # Additions of numbers of one sign are off by 2^-53 each at most: of 64 rows of a tile,
            # of 4 halves, and of all tiles.
            bound = (68 + size / 1024) * 2.0**-53
            require_within(
                abs(math.sqrt(other()) / exact - 1), bound, "the norm by tiles and lanes"
            )

        return Pair(ours, other, check)

    return make
