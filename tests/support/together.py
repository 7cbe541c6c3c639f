"""Cases that several processes run together, each with a name of its own.

A program calls `main` with its cases. Processes run them in one order; a case that fails in one of
them ends all, since others may wait for it, and `outcomes` starts anew with the case after it. So
one set of processes serves all cases as long as none fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from tests.support.processes import run_together

__all__ = ["PASSED", "main", "outcomes"]

PASSED = "passed"
#: Of one collective: where processes wait for one another in vain, they fail.
LIMIT = timedelta(seconds=300)


def main(cases: Mapping[str, Callable[[], None]]) -> None:
    """Run cases in one process of several: ``program rank store count folder case …``."""
    import torch
    import torch.distributed as dist

    rank, store, count, folder = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=LIMIT
    )
    for name in sys.argv[5:]:
        said = Path(folder) / f"{name} {rank}"
        began = time.monotonic()
        try:
            cases[name]()
            dist.barrier()
        except BaseException:
            said.write_text(traceback.format_exc())
            time.sleep(2)  # so that those that wait for this one fail later, and say so
            os._exit(1)
        said.write_text(PASSED)
        if "ADAMAS_TESTS_SAY_WHEN" in os.environ and rank == 0:
            sys.stderr.write(f"{time.monotonic() - began:6.2f} s  {name}\n")
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


def outcomes(
    program: str, count: int, cases: Sequence[str], folder: Path, limit: float = 600
) -> dict[str, list[str]]:
    """Return what each process said of each case: `PASSED`, or how it failed.

    A case that hangs is the last that is run.
    """
    said: dict[str, list[str]] = {}
    left = list(cases)
    for attempt in range(len(cases)):
        place = folder / str(attempt)
        place.mkdir()
        has_hung = False
        try:
            run_together([program], count, place, str(count), str(place), *left, limit=limit)
        except subprocess.TimeoutExpired:
            has_hung = True
        for name in left:
            said[name] = [_said(place / f"{name} {rank}") for rank in range(count)]
            if said[name] != [PASSED] * count:
                break
        left = left[left.index(name) + 1 :]
        if has_hung:
            said |= {name: ["was not run, since one before it hung"] * count for name in left}
        if has_hung or not left:
            break
    return said


def _said(path: Path) -> str:
    return path.read_text() if path.exists() else "ended without a word"
