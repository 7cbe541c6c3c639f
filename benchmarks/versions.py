"""Time the steps of two versions of adamas.torch in turn: ``versions.py OLD/src NEW/src``.

Each version runs in a process of its own, with the compiled module in its source tree. Both take
the same steps first, and have to come to the same bits; then they are timed in turn. ``--quick``
tries it out and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
QUICK = "--quick" in sys.argv
#: A case is made so many times, in other memory each time: how arrays lie to each other in caches
#: is worth up to a third of a small step.
PLACES = 2 if QUICK else 7
ROUNDS = 2 if QUICK else 3
LEAST = 0.002 if QUICK else 0.03

MLP = [(50, 64), (50,), (40, 50), (40,), (10, 40), (10,)]
PHASE = {"clip_norm": 1.0, "ema": 0.999, "copy_to": "bfloat16"}
LARGE = [(1 << 16 if QUICK else 1 << 24,)]
#: Work by name: class, shapes, options, dtype of the parameters, and what is done beside a step.
CASES: dict[str, tuple[str, list[Any], dict[str, Any], str, str]] = {
    "AdamW, 1 tensor": ("AdamW", [(5702,)], {}, "float32", ""),
    "AdamW, 5,702 in 6 tensors": ("AdamW", MLP, {}, "float32", ""),
    "the same, lr set anew": ("AdamW", MLP, {}, "float32", "lr"),
    "the same, clipped": ("AdamW", MLP, {"clip_norm": 1.0}, "float32", ""),
    "the same, copies": ("AdamW", MLP, {"copy_to": "bfloat16"}, "float32", ""),
    "the same, clipped, averaged, copies": ("AdamW", MLP, PHASE, "float32", ""),
    "the same, statistics": ("AdamW", MLP, {"statistics": True}, "float32", ""),
    "the same, 8bit state": ("AdamW", MLP, {"state": "8bit"}, "float32", ""),
    "the same, bfloat16 parameters": ("AdamW", MLP, {}, "bfloat16", ""),
    "the same, a scaler's attributes": ("AdamW", MLP, {}, "float32", "scaler"),
    "SGD with momentum, 6 tensors": ("SGD", MLP, {"momentum": 0.9}, "float32", ""),
    "NAdam, 6 tensors": ("NAdam", MLP, {}, "float32", ""),
    "RMSprop with momentum, 6 tensors": ("RMSprop", MLP, {"momentum": 0.9}, "float32", ""),
    "AdamW, 6 complex tensors": ("AdamW", MLP, {}, "complex64", ""),
    "AdamW, 60 tensors of 32": ("AdamW", [(32,)] * 60, {}, "float32", ""),
    "the same, heads in turn": ("AdamW", [(32,)] * 60, {}, "float32", "heads"),
    "the same, planned anew": ("AdamW", [(32,)] * 60, {}, "float32", "plan"),
    "AdamW, 128 tensors of 2,080": ("AdamW", [(2080,)] * 128, {}, "float32", ""),
    "AdamW, 16 M in 1 tensor": ("AdamW", LARGE, {}, "float32", ""),
    "the same, with 8bit state": ("AdamW", LARGE, {"state": "8bit"}, "float32", ""),
    "the same, with clipping, average, copy": ("AdamW", LARGE, PHASE, "float32", ""),
}


def made(case: str) -> tuple[Any, Any, list[Any]]:
    """Return what makes a step of a case, its optimizer and its parameters."""
    import torch

    import adamas.torch as ours

    name, shapes, options, dtype, beside = CASES[case]
    options = {key: getattr(torch, value) if key == "copy_to" else value
               for key, value in options.items()}  # fmt: skip
    generator = torch.Generator().manual_seed(5)

    def drawn(shape: Any) -> Any:
        return torch.randn(shape, generator=generator).to(getattr(torch, dtype))

    parameters = [torch.nn.Parameter(drawn(shape)) for shape in shapes]
    for p in parameters:
        p.grad = drawn(p.shape)
    optimizer = getattr(ours, name)(parameters, lr=1e-3, **options)
    step, turns = optimizer.step, [0]
    heads = [p.grad for p in parameters[:4]]

    def beside_lr() -> None:
        turns[0] += 1
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 + turns[0] % 2)
        step()

    def beside_scaler() -> None:
        optimizer.grad_scale, optimizer.found_inf = None, torch.zeros(1)
        step()
        del optimizer.grad_scale, optimizer.found_inf

    def beside_heads() -> None:
        turns[0] += 1
        for i, gradient in enumerate(heads):
            parameters[i].grad = gradient if (turns[0] + i) % 2 else None
        step()

    def beside_plan() -> None:
        group = optimizer.param_groups[0]
        optimizer.param_groups[0] = dict(group)
        step()

    works = {"": step, "lr": beside_lr, "scaler": beside_scaler, "heads": beside_heads}
    return works.get(beside, beside_plan), optimizer, parameters


def serve() -> None:
    """Answer what is asked on the standard input: the digest of a case, or the time of its step."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    work: Any = None
    kept: list[Any] = []  # so that the next is elsewhere
    for line in sys.stdin:
        asked = json.loads(line)
        if "case" in asked:
            if asked["is_first"]:
                kept.clear()
            work, optimizer, parameters = made(asked["case"])
            kept.append((optimizer, parameters))
            for _ in range(7):
                work()
            digest = hashlib.blake2b(digest_size=16)
            entries = [each for state in optimizer.state.values() for each in state.values()]
            for each in (*parameters, *entries):
                if isinstance(each, torch.Tensor):
                    digest.update(each.detach().contiguous().view(-1).view(torch.uint8).numpy())
            answer: Any = digest.hexdigest()
        else:
            begin = time.perf_counter()
            for _ in range(asked["calls"]):
                work()
            answer = (time.perf_counter() - begin) / asked["calls"]
        print(json.dumps(answer), flush=True)


class Version:
    """A version of adamas, in a process of its own."""

    def __init__(self, source: str) -> None:
        """Start it."""
        environment = {**os.environ, "PYTHONPATH": source}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *(["--quick"] if QUICK else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, **asked: Any) -> Any:
        """Return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())


def compared(case: str, versions: tuple[Version, Version]) -> dict[str, Any]:
    """Return the times of a case in both versions, and their ratio."""
    rounds = []
    for place in range(PLACES):
        digests = [version.ask(case=case, is_first=place == 0) for version in versions]
        if digests[0] != digests[1]:
            sys.exit(f"{case}: the two versions do not come to the same bits.")
        calls = 1
        while (taken := versions[0].ask(calls=calls) * calls) < LEAST and calls < 1_000_000:
            calls = max(2 * calls, int(calls * LEAST / max(taken, 1e-9)))
        for i in range(ROUNDS):  # who comes first changes, too
            order = versions if (place + i) % 2 else versions[::-1]
            times = {id(version): version.ask(calls=calls) for version in order}
            rounds.append([times[id(version)] for version in versions])
    ratios = [new / old for old, new in rounds]
    return {
        "work": case,
        "old": statistics.median(old for old, _ in rounds),
        "new": statistics.median(new for _, new in rounds),
        "fastest old": min(old for old, _ in rounds),
        "fastest new": min(new for _, new in rounds),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def table(figures: list[dict[str, Any]], machine: dict[str, str]) -> str:
    """Return the figures as Markdown."""
    lines = [
        "| step | old | new | time, new : old | from … to | fastest, new : old |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for each in figures:
        fastest = each["fastest new"] / each["fastest old"]
        lines.append(
            f"| {each['work']} | {1e6 * each['old']:.3g} µs | {1e6 * each['new']:.3g} µs | "
            f"{each['ratio']:.2f} | {each['lowest']:.2f} … {each['highest']:.2f} | {fastest:.2f} |"
        )
    about = " · ".join(f"{key} {value}" for key, value in machine.items())
    return "\n".join(lines) + f"\n\nMachine: {about}.\n"


def main() -> None:
    """Compare two versions, print and keep the figures."""
    old, new = (each for each in sys.argv[1:] if not each.startswith("--"))
    versions = Version(old), Version(new)
    figures = []
    for case in CASES:
        figures.append(compared(case, versions))
        print(f"{case}: {figures[-1]['ratio']:.2f}", flush=True)
    sys.path.insert(0, new)
    import torch  # noqa: F401  # of which the machine tells

    from adamas.bench.hardware import machine

    print(table(figures, machine()))
    if not QUICK:
        report = {"machine": machine(), "figures": figures}
        (RESULTS / "torch_versions.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
        (RESULTS / "torch_versions.md").write_text(table(figures, machine()), "utf-8")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        serve()
    else:
        main()
