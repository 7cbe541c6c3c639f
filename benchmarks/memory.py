"""Count and measure the memory of optimizers, in bytes for each parameter. See README.md.

State is what an optimizer says it keeps, and what the process holds more once it is made and has
stepped (tracemalloc, which NumPy tells of its arrays). A step's own need is the highest point
during a step above what was held before it.
"""

import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

import adamas
from adamas.bench import machine

RESULTS = Path(__file__).parent / "results"
COUNT = 1 << 22

METHODS: dict[str, Callable[[np.ndarray], adamas.Optimizer]] = {
    "Momentum": adamas.Momentum,
    "RMSProp": adamas.RMSProp,
    "Adam": adamas.Adam,
    "Adam, amsgrad": lambda p: adamas.Adam(p, amsgrad=True),
    "AdamW, clip_norm, skip": lambda p: adamas.AdamW(p, clip_norm=1.0, on_nonfinite="skip"),
    "AdamW, clip_norm, ema": lambda p: adamas.AdamW(p, clip_norm=1.0, ema=0.999),
    "AdamW, statistics": lambda p: adamas.AdamW(p, statistics=True),
    "Adam, float64": adamas.Adam,
}


def measured(name: str) -> dict[str, float | str]:
    dtype = np.float64 if "float64" in name else np.float32
    p, g = np.ones(COUNT, dtype), np.ones(COUNT, dtype)
    tracemalloc.start()
    optimizer = METHODS[name](p)
    optimizer.step(g)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    optimizer.step(g)
    _, highest = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "method": name,
        "counted": optimizer.nbytes / COUNT,
        "measured": round(held / COUNT, 3),
        "step": round((highest - held) / COUNT, 3),
    }


def main() -> None:
    figures = [measured(name) for name in METHODS]
    lines = [
        "| optimizer | state, counted | state, measured | a step besides |",
        "|---|--:|--:|--:|",
    ]
    lines += [
        f"| {f['method']} | {f['counted']:g} | {f['measured']:.2f} | {f['step']:.2f} |"
        for f in figures
    ]
    about = " · ".join(f"{key} {value}" for key, value in machine().items())
    table = (
        "\n".join(lines) + f"\n\nBytes for each parameter, {COUNT:,} of them. Machine: {about}.\n"
    )
    print(table)
    if "--quick" not in sys.argv:
        RESULTS.mkdir(exist_ok=True)
        stored = {"machine": machine(), "count": COUNT, "figures": figures}
        (RESULTS / "memory.json").write_text(json.dumps(stored, indent=2) + "\n", "utf-8")
        (RESULTS / "memory.md").write_text(table, "utf-8")


if __name__ == "__main__":
    main()
