"""Measure what saving, loading and checksums cost, in seconds of a processor for each GB.

Everything is taken in turn, in rounds; the figure is the median of the rounds, for what the process
does itself and what the system does on its behalf. Files are on a file system in memory where there
is one, so what the system does is to move bytes and to find memory; how long it looks for that
depends on what else the machine did before.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import adamas
from adamas.bench import machine

RESULTS = Path(__file__).parent / "results"
MEMORY = Path("/dev/shm")
QUICK = "--quick" in sys.argv
COUNT = 1 << (16 if QUICK else 24)
ROUNDS = 2 if QUICK else 11


def work(directory: Path) -> tuple[dict[str, Callable[[], Any]], int]:
    """Return what is measured by name, and how many bytes each goes over."""
    random = np.random.default_rng(0)
    weights = [random.standard_normal(COUNT, np.float32) for _ in range(4)]
    optimizer = adamas.AdamW(weights)
    optimizer.step(weights)
    ours, theirs = directory / "ours", directory / "theirs"
    arrays = {f"parameters/{i}": w for i, w in enumerate(weights)}
    for name, entries in optimizer.state_dict(copy=False)["state"].items():
        arrays |= {f"state/{name}/{entry}": array for entry, array in entries.items()}

    def over_all(function: Callable[[Any], Any]) -> Callable[[], None]:
        def summed() -> None:
            for array in arrays.values():
                function(array)

        return summed

    before = [w.tobytes() for w in weights]
    adamas.save(ours, optimizer)
    save_file(arrays, theirs)
    found = load_file(ours)
    assert all(found[name].tobytes() == array.tobytes() for name, array in arrays.items())
    adamas.load(ours, optimizer)
    assert [w.tobytes() for w in weights] == before
    return {
        "CRC-32": over_all(zlib.crc32),
        "SHA-256": over_all(hashlib.sha256),
        "BLAKE2b": over_all(hashlib.blake2b),
        "adamas.save": lambda: adamas.save(ours, optimizer),
        "safetensors' save_file": lambda: save_file(arrays, theirs),
        "adamas.load": lambda: adamas.load(ours, optimizer),
        "safetensors' load_file": lambda: load_file(theirs),
    }, sum(array.nbytes for array in arrays.values())


def measured() -> dict[str, tuple[float, float]]:
    """Return seconds of a processor for each GB, in the process and in the system."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as directory:
        rows, size = work(Path(directory))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for _ in range(ROUNDS):
            for name, run in rows.items():
                start = os.times()
                run()
                end = os.times()
                taken[name].append((end.user - start.user, end.system - start.system))
    figures: dict[str, tuple[float, float]] = {}
    for name, times in taken.items():
        own, system = zip(*times, strict=True)
        figures[name] = _median(own, size), _median(system, size)
    return figures


def _median(times: tuple[float, ...], size: int) -> float:
    return round(statistics.median(times) / size * 1e9, 2)


def main() -> None:
    figures = measured()
    about = {**machine(), "safetensors": importlib.metadata.version("safetensors")}
    lines = ["| work | in the process | in the system |", "|---|--:|--:|"]
    lines += [f"| {name} | {own:.2f} | {system:.2f} |" for name, (own, system) in figures.items()]
    told = " · ".join(f"{key} {value}" for key, value in about.items())
    lines += ["", f"Seconds of a processor for each GB, in files of {COUNT * 48 / 1e9:.2f} GB."]
    lines += [f"Machine: {told}."]
    text = "\n".join(lines) + "\n"
    print(text)
    if not QUICK:
        report = {"machine": about, "seconds for each GB": figures}
        (RESULTS / "checkpoints.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        (RESULTS / "checkpoints.md").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
