"""Count and measure the memory of optimizers, in bytes for each parameter. See README.md.

Each optimizer steps twice in a process of its own. "Counted" is the bytes of all tensors and arrays
in its state; "held" what the process has more after the first step than before the optimizer was
made, in resident memory; "a step besides" how much higher resident memory rises during the second.
Resident memory is rounded to pages and has an allocator's slack, so its figures are within a tenth
of a byte or so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from adamas.bench import machine

RESULTS = Path(__file__).parent / "results"
COUNT = 1 << 25

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


def resident(field: str) -> int:
    """Return a field of the process's status in bytes: VmRSS is now, VmHWM the highest so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def forget_the_highest() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measured(title: str) -> dict[str, Any]:
    """Step one optimizer twice in this process; return its figures."""
    library, dtype, kind, options = SUBJECTS[title]
    is_numpy = library == "adamas"
    if is_numpy:
        import numpy as np

        import adamas

        p, g = np.ones(COUNT, dtype), np.full(COUNT, 0.01, dtype)
        small = np.ones(64, dtype)
        adamas.Adam(small).step(small)  # what is made once in a process is not counted
        make: Any = lambda: getattr(adamas, kind)(p, **options)  # noqa: E731
        step = lambda optimizer: optimizer.step(g)  # noqa: E731
    else:
        import torch

        module = importlib.import_module(library)
        p = torch.nn.Parameter(torch.ones(COUNT, dtype=getattr(torch, dtype)))
        p.grad = torch.full_like(p, 0.01)
        small = torch.nn.Parameter(torch.ones(8192, dtype=p.dtype))
        small.grad = torch.ones_like(small)
        getattr(module, kind)([small], **options).step()
        make = lambda: getattr(module, kind)([p], **options)  # noqa: E731
        step = lambda optimizer: optimizer.step()  # noqa: E731
    before = resident("VmRSS")
    optimizer = make()
    step(optimizer)
    held = resident("VmRSS") - before
    forget_the_highest()
    begin = resident("VmRSS")
    step(optimizer)
    besides = resident("VmHWM") - begin
    counted = optimizer.nbytes if is_numpy else sum(map(bytes_of, optimizer.state[p].values()))
    return {
        "optimizer": title,
        "counted": round(counted / COUNT, 4),
        "held": round(held / COUNT, 2),
        "besides": round(max(0, besides) / COUNT, 2),
    }


def bytes_of(entry: Any) -> int:
    """Return the bytes of an entry of ``state[p]``, of a tensor's own parts where it has some."""
    import torch

    if not isinstance(entry, torch.Tensor):
        return 0
    parts = getattr(entry, "tensor_attrs", None)  # torchao's
    if parts:
        return sum(getattr(entry, part).nbytes for part in parts)
    return entry.nbytes


def table(stored: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = ["| optimizer | state, counted | held | a step besides |", "|---|--:|--:|--:|"]
    lines += [
        f"| {f['optimizer']} | {f['counted']:.3g} | {f['held']:.2f} | {f['besides']:.2f} |"
        for f in stored["figures"]
    ]
    about = " · ".join(f"{key} {value}" for key, value in stored["machine"].items())
    what = f"Bytes for each parameter, {stored['count']:,} of them."
    return "\n".join(lines) + f"\n\n{what} Machine: {about}.\n"


def main() -> None:
    figures = []
    for title, (library, *_) in SUBJECTS.items():
        package = library.partition(".")[0]
        if importlib.util.find_spec(package) is None:
            print(f"{title}: {package} is not installed, so it is left out", flush=True)
            continue
        command = [sys.executable, __file__, title]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures.append(json.loads(done.stdout.splitlines()[-1]))
        print(figures[-1], flush=True)
    stored = {"machine": machine(), "count": COUNT, "figures": figures}
    print(table(stored))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(stored, indent=2) + "\n", "utf-8")
    (RESULTS / "memory.md").write_text(table(stored), "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(sys.argv[1])))
    else:
        main()
