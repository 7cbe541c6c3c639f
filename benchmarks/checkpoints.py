"""What saving, loading and checksums cost, in seconds of a processor for each GB.

Everything is taken in turn, in rounds; the figure is the median of the rounds, for what the process
does itself and what the system does on its behalf. Files are on a file system in memory where there
is one, so what the system does is to move bytes and to find memory; how long it looks for that
depends on what else the machine did before.
"""

from __future__ import annotations

import functools
import hashlib
import os
import statistics
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adamas
from benchmarks.checks import WrongResultError
from benchmarks.tables import Row, Run, Stored, Table, machine_note, markdown

MEMORY = Path("/dev/shm")
HEADER = ("work", "user time", "system time")


class Files:
    """A checkpoint written by adamas, and one with the same arrays by safetensors."""

    def __init__(self, folder: Path, count: int) -> None:
        from safetensors.numpy import save_file

        random = np.random.default_rng(0)
        self._weights = [random.standard_normal(count, np.float32) for _ in range(4)]
        self.optimizer = adamas.AdamW(self._weights)
        self.optimizer.step(self._weights)
        self.ours, self.theirs = folder / "ours", folder / "theirs"
        self.arrays = {f"parameters/{i}": w for i, w in enumerate(self._weights)}
        for name, entries in self.optimizer.state_dict(copy=False)["state"].items():
            self.arrays |= {f"state/{name}/{entry}": array for entry, array in entries.items()}
        adamas.save(self.ours, self.optimizer)
        save_file(self.arrays, self.theirs)

    @property
    def nbytes(self) -> int:
        """How many bytes each work goes over."""
        return sum(array.nbytes for array in self.arrays.values())

    def check(self) -> None:
        """Raise WrongResultError where what is read is not what was written."""
        from safetensors.numpy import load_file

        before = {name: array.tobytes() for name, array in self.arrays.items()}
        found = load_file(self.ours)
        adamas.load(self.ours, self.optimizer)
        for name, expected in before.items():
            if not found[name].tobytes() == self.arrays[name].tobytes() == expected:
                raise WrongResultError(f"{name} in the checkpoint is not what was saved")


Work = Callable[[Files], object]


def _over_all(function: Callable[[Any], object]) -> Work:
    def summed(files: Files) -> None:
        for array in files.arrays.values():
            function(array)

    return summed


def _save_file(files: Files) -> None:
    from safetensors.numpy import save_file

    save_file(files.arrays, files.theirs)


def _load_file(files: Files) -> object:
    from safetensors.numpy import load_file

    return load_file(files.theirs)


WORKS: dict[str, Work] = {
    "CRC-32": _over_all(zlib.crc32),
    "SHA-256": _over_all(hashlib.sha256),
    "BLAKE2b": _over_all(hashlib.blake2b),
    "adamas.save": lambda files: adamas.save(files.ours, files.optimizer),
    "safetensors' save_file": _save_file,
    "adamas.load": lambda files: adamas.load(files.ours, files.optimizer),
    "safetensors' load_file": _load_file,
}


def rows() -> tuple[Row, ...]:
    """Return a row for each work."""
    # The checkpoint is checked by safetensors, whatever is timed.
    return tuple(
        Row(name, "", None, functools.partial(_work, name), ("safetensors",)) for name in WORKS
    )


def _work(name: str, quick: bool) -> Work:
    del quick  # the size is that of the files
    return WORKS[name]


@dataclass(frozen=True)
class Checkpoints(Table):
    """Rows that make a ``Work``, which take turns."""

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        works = {row.name: row.make(run.quick) for row in rows if not row.missing(run)}
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            run.tell(f"{self.name}: {', '.join(works)}, in turn")
            files = Files(Path(folder), 1 << (16 if run.quick else 24))
            files.check()
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
            for _ in range(2 if run.quick else 11):
                for name, work in works.items():
                    start = os.times()
                    work(files)
                    end = os.times()
                    taken[name].append((end.user - start.user, end.system - start.system))
        found: dict[str, tuple[float, ...]] = {}
        for name, times in taken.items():
            medians = map(statistics.median, zip(*times, strict=True))
            found[name] = tuple(round(each / files.nbytes * 1e9, 2) for each in medians)
        return {"GB": files.nbytes / 1e9, "seconds for each GB": found}

    def markdown(self, stored: Stored) -> str:
        lines = (
            (name, f"{own:.2f}", f"{system:.2f}")
            for name, (own, system) in stored["seconds for each GB"].items()
        )
        # What was stored earlier had the full size.
        size = stored.get("GB", (1 << 24) * 48 / 1e9)
        told = f"\nCPU seconds for each GB, in files of {size:.2f} GB.\n"
        return markdown(HEADER, lines) + told + machine_note(stored)
