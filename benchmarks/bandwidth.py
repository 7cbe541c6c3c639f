"""What memory allows a step at best, measured by a plain loop in C; needs a C compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.engines import native

SOURCE = Path(__file__).with_name("bandwidth.c")


def compiler() -> list[str] | None:
    """Return the command of a C compiler: that of ``CC``, or the first found; None without one."""
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


@functools.cache
def _loop() -> Any:
    command = compiler()
    if command is None:
        raise RuntimeError(
            "The bandwidth of memory is measured by a loop in C, but there is no C compiler. "
            "Install one, or name it in CC."
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        library = Path(folder, "bandwidth.so")
        flags = ["-O3", "-march=native", "-std=c99", "-shared", "-fPIC"]
        subprocess.run([*command, *flags, str(SOURCE), "-o", str(library)], check=True)
        loop = ctypes.CDLL(str(library)).read_modify_write
    loop.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64]
    loop.restype = None
    return loop


def read_modify_write(arrays: Sequence[NDArray[np.float32]]) -> None:
    """Read four equal arrays and write three of them, on as many threads as a step has.

    ``arrays`` are C-contiguous, in the order p, g, m, v; all but g change.
    """
    p, *others = arrays
    if len(others) != 3 or any(
        a.shape != p.shape or a.dtype != np.float32 or not a.flags.carray for a in arrays
    ):
        raise ValueError("The loop needs four equal C-contiguous float32 arrays.")
    loop, threads = _loop(), native.get_num_threads()
    # Whole pages, so that no two threads write to the same.
    length = max(-(-p.size // (threads * 1024)), 1) * 1024

    def part(first: int) -> None:
        addresses = (a.ctypes.data + a.itemsize * first for a in arrays)
        loop(*addresses, min(length, p.size - first))

    if threads == 1:
        part(0)
    else:
        list(_threads(threads).map(part, range(0, p.size, length)))


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count)
