"""The memory of optimizers, in bytes for each parameter: computed and measured.

Each optimizer steps twice in a process of its own. "State, computed" is the bytes of all tensors
and arrays in its state; "state, measured" how much resident memory the process has more after the
first step than before the optimizer was made; "extra in a step" how much higher resident memory
rises during the second step. Resident memory is rounded to pages and has an allocator's slack, so
its figures are within a tenth of a byte or so.
"""

from __future__ import annotations

import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, Run, Stored, Table, machine_note, markdown, why_not

ROOT = Path(__file__).parents[1]
HEADER = ("optimizer", "state, computed", "state, measured", "extra in a step")
#: Makes the kernel forget how much memory a process had at most.
CLEAR = "/proc/self/clear_refs"

FORMS = ("float32", "bfloat16", "compact", "8bit")
ROUNDINGS = {
    "bfloat16": ("nearest", "stochastic", "remainder", "remainder8"),
    "float16": ("nearest", "stochastic"),
}

#: Title: library, dtype of parameters, class, options.
SUBJECTS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "NumPy: Momentum": ("adamas", "float32", "Momentum", {}),
    "NumPy: RMSProp": ("adamas", "float32", "RMSProp", {}),
    **{f"NumPy: Adam, {form}": ("adamas", "float32", "Adam", {"state": form}) for form in FORMS},
    "NumPy: Adam, float32, amsgrad": ("adamas", "float32", "Adam", {"amsgrad": True}),
    "NumPy: AdamW, float32, clip_norm and ema": (
        "adamas", "float32", "AdamW", {"clip_norm": 1.0, "ema": 0.999}
    ),
    "NumPy: AdamW, 8bit, statistics": (
        "adamas", "float32", "AdamW", {"state": "8bit", "statistics": True}
    ),
    "NumPy: Adam of float64": ("adamas", "float64", "Adam", {}),
    **{
        f"torch: AdamW, {form}": ("adamas.torch", "float32", "AdamW", {"state": form})
        for form in FORMS
    },
    "torch: AdamW, m 8bit, v float32": (
        "adamas.torch", "float32", "AdamW", {"state": ("8bit", "float32")}
    ),
    **{
        f"torch: AdamW of {dtype}, {form}, {rounding}": (
            "adamas.torch", dtype, "AdamW", {"state": form, "rounding": rounding}
        )
        for dtype, roundings in ROUNDINGS.items()
        for form in FORMS
        for rounding in roundings
    },
    "torch's AdamW, default": ("torch.optim", "float32", "AdamW", {}),
    "torch's AdamW, fused": ("torch.optim", "float32", "AdamW", {"fused": True}),
    "bitsandbytes' AdamW8bit": ("bitsandbytes.optim", "float32", "AdamW8bit", {}),
    "torchao's AdamW8bit": ("torchao.optim", "float32", "AdamW8bit", {}),
}  # fmt: skip


def rows() -> tuple[Row, ...]:
    """Return a row for each optimizer."""
    return tuple(
        Row(title, "", None, functools.partial(_in_a_process, title), (CLEAR, *_modules(library)))
        for title, (library, *_) in SUBJECTS.items()
    )


def _modules(library: str) -> tuple[str, ...]:
    package = library.partition(".")[0]
    return () if library == "adamas" else ("torch",) if package == "adamas" else ("torch", package)


@dataclass(frozen=True)
class Memory(Table):
    """Rows that make their figures."""

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        return {"count": _count(run.quick), **super().measured(rows, run)}

    def figure(self, row: Row, run: Run) -> Stored:
        return row.make(run.quick)

    def markdown(self, stored: Stored) -> str:
        what = f"Bytes for each parameter, {stored['count']:,} of them."
        table = markdown(HEADER, map(_cells, stored["figures"]))
        return f"{table}\n{what} {machine_note(stored)}"


def _cells(figure: Stored) -> tuple[str, ...]:
    title = figure["work"]
    if why := why_not(figure):
        return title, why, "", ""
    return title, f"{figure['counted']:.3g}", f"{figure['held']:.2f}", f"{figure['besides']:.2f}"


def _count(quick: bool) -> int:
    return 1 << (20 if quick else 25)


def _in_a_process(title: str, quick: bool) -> Stored:
    command = [sys.executable, "-m", "benchmarks.memory", title, str(_count(quick))]
    done = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# -- in the process ------------------------------------------------------------------------------


def resident(field: str) -> int:
    """Return a field of the process's status in bytes: VmRSS is now, VmHWM the highest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def stepped_twice(title: str, count: int) -> Stored:
    """Step one optimizer twice in this process; return its figures."""
    library, dtype, kind, options = SUBJECTS[title]
    make, step, counted = (_arrays if library == "adamas" else _tensors)(
        getattr(importlib.import_module(library), kind), options, dtype, count
    )
    before = resident("VmRSS")
    optimizer = make()
    step(optimizer)
    held = resident("VmRSS") - before
    Path(CLEAR).write_text("5")
    begin = resident("VmRSS")
    step(optimizer)
    besides = resident("VmHWM") - begin
    return {
        "counted": round(counted(optimizer) / count, 4),
        "held": round(held / count, 2),
        "besides": round(max(0, besides) / count, 2),
    }


#: What makes an optimizer, what makes a step of it, what counts the bytes of its state.
_Stepped = tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], int]]


def _arrays(kind: Any, options: dict[str, Any], dtype: str, count: int) -> _Stepped:
    import numpy as np

    p, g = np.ones(count, dtype), np.full(count, 0.01, dtype)
    small = np.ones(64, dtype)
    kind(small).step(small)  # what is made once in a process is not counted
    return (
        lambda: kind(p, **options),
        lambda optimizer: optimizer.step(g),
        lambda optimizer: optimizer.nbytes,
    )


def _tensors(kind: Any, options: dict[str, Any], dtype: str, count: int) -> _Stepped:
    import torch

    p = torch.nn.Parameter(torch.ones(count, dtype=getattr(torch, dtype)))
    p.grad = torch.full_like(p, 0.01)
    small = torch.nn.Parameter(torch.ones(8192, dtype=p.dtype))
    small.grad = torch.ones_like(small)
    kind([small], **options).step()
    return (
        lambda: kind([p], **options),
        lambda optimizer: optimizer.step(),
        lambda optimizer: sum(map(_bytes_of, optimizer.state[p].values())),
    )


def _bytes_of(entry: Any) -> int:
    """Return the bytes of an entry of ``state[p]``, of a tensor's own parts where it has some."""
    import torch

    if not isinstance(entry, torch.Tensor):
        return 0
    parts = getattr(entry, "tensor_attrs", None)  # torchao's
    if parts:
        return sum(getattr(entry, part).nbytes for part in parts)
    return entry.nbytes


if __name__ == "__main__":
    print(json.dumps(stepped_twice(sys.argv[1], int(sys.argv[2]))))
