"""Steps of two versions of adamas.torch, in turn: ``--old OLD/src --new NEW/src``.

Each version runs in a process of its own, with the compiled module in its source tree. Both take
the same steps first, and have to come to the same bits; then they are timed in turn.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.checks import WrongResultError
from benchmarks.ratios import more_calls
from benchmarks.shapes import MANY, MLP, SIXTY
from benchmarks.tables import (
    TWO_VERSIONS,
    Row,
    Run,
    Stored,
    Table,
    figures,
    machine_note,
    markdown,
    why_not,
)

ROOT = Path(__file__).parents[1]
HEADER = ("step", "old", "new", "time, new : old", "from … to", "fastest, new : old")

#: A case is made so many times, in other memory each time: how arrays lie to each other in caches
#: is worth up to a third of a small step.
PLACES = 7
ROUNDS = 3


class Case(NamedTuple):
    """A step that both versions make."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    options: dict[str, Any] = {}  # noqa: RUF012 - never written
    dtype: str = "float32"
    #: What is done beside the step: "lr", "scaler", "heads" or "plan".
    beside: str = ""


_LARGE = ((1 << 24,),)
_PHASE = {"clip_norm": 1.0, "ema": 0.999, "copy_to": "bfloat16"}

CASES = {
    "AdamW, 1 tensor": Case("AdamW", ((5702,),)),
    "AdamW, 5,702 in 6 tensors": Case("AdamW", MLP),
    "the same, new lr": Case("AdamW", MLP, beside="lr"),
    "the same, clipped": Case("AdamW", MLP, {"clip_norm": 1.0}),
    "the same, copies": Case("AdamW", MLP, {"copy_to": "bfloat16"}),
    "the same, clip, EMA, copies": Case("AdamW", MLP, _PHASE),
    "the same, statistics": Case("AdamW", MLP, {"statistics": True}),
    "the same, 8bit state": Case("AdamW", MLP, {"state": "8bit"}),
    "the same, bfloat16 parameters": Case("AdamW", MLP, dtype="bfloat16"),
    "the same, GradScaler attributes": Case("AdamW", MLP, beside="scaler"),
    "SGD with momentum, 6 tensors": Case("SGD", MLP, {"momentum": 0.9}),
    "NAdam, 6 tensors": Case("NAdam", MLP),
    "RMSprop with momentum, 6 tensors": Case("RMSprop", MLP, {"momentum": 0.9}),
    "AdamW, 6 complex tensors": Case("AdamW", MLP, dtype="complex64"),
    "AdamW, 60 tensors of 32": Case("AdamW", SIXTY),
    "the same, alternating heads": Case("AdamW", SIXTY, beside="heads"),
    "the same, new plan": Case("AdamW", SIXTY, beside="plan"),
    "AdamW, 128 tensors of 2,080": Case("AdamW", MANY),
    "AdamW, 16 M in 1 tensor": Case("AdamW", _LARGE),
    "the same, with 8bit state": Case("AdamW", _LARGE, {"state": "8bit"}),
    "the same, with clip, EMA, copy": Case("AdamW", _LARGE, _PHASE),
}


def rows() -> tuple[Row, ...]:
    """Return a row for each case; goals are none, since the one version is not known."""
    return tuple(
        Row(name, "", None, functools.partial(_sized, name), ("torch", TWO_VERSIONS))
        for name in CASES
    )


def _sized(name: str, quick: bool) -> Case:
    case = CASES[name]
    return case._replace(shapes=((1 << 16,),)) if quick and case.shapes == _LARGE else case


# -- the process that asks -----------------------------------------------------------------------


class Version:
    """A version of adamas, in a process of its own."""

    def __init__(self, source: Path) -> None:
        self._source = source
        environment = {**os.environ, "PYTHONPATH": str(source.resolve())}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.versions"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def ask(self, **asked: Any) -> Any:
        """Return what it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with suppress(BrokenPipeError):
            print(json.dumps(asked), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The version in {self._source} has ended; see what it raised.")
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclass(frozen=True)
class Versions(Table):
    """Rows that make a ``Case``."""

    def measured(self, rows: Sequence[Row], run: Run) -> Stored:
        assert run.old is not None
        assert run.new is not None
        old, new = versions = Version(run.old), Version(run.new)
        try:
            return {"figures": figures(rows, run, lambda row: compared(row, run.quick, old, new))}
        finally:
            for version in versions:
                version.end()

    def markdown(self, stored: Stored) -> str:
        return markdown(HEADER, map(_cells, stored["figures"])) + "\n" + machine_note(stored)


def compared(row: Row, quick: bool, *versions: Version) -> Stored:
    """Return the times of a case in both versions, the old one first, and their ratio."""
    old, _ = versions
    case = row.make(quick)._asdict()
    places, count, least = (2, 2, 0.002) if quick else (PLACES, ROUNDS, 0.03)
    rounds: list[list[float]] = []
    for place in range(places):
        digests = {version.ask(case=case, is_first=place == 0) for version in versions}
        if len(digests) > 1:
            raise WrongResultError("the two versions do not come to the same bits")
        calls = 1
        while (taken := old.ask(calls=calls) * calls) < least and calls < 1_000_000:
            calls = more_calls(calls, taken, least)
        for i in range(count):  # who comes first changes, too
            order = versions if (place + i) % 2 else versions[::-1]
            times = {id(version): version.ask(calls=calls) for version in order}
            rounds.append([times[id(version)] for version in versions])
    ratios = [after / before for before, after in rounds]
    return {
        "old": statistics.median(before for before, _ in rounds),
        "new": statistics.median(after for _, after in rounds),
        "fastest old": min(before for before, _ in rounds),
        "fastest new": min(after for _, after in rounds),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def _cells(figure: Stored) -> tuple[str, ...]:
    if why := why_not(figure):
        return figure["work"], "", "", why, "", ""
    return (
        figure["work"],
        f"{1e6 * figure['old']:.3g} µs",
        f"{1e6 * figure['new']:.3g} µs",
        f"{figure['ratio']:.2f}",
        f"{figure['lowest']:.2f} … {figure['highest']:.2f}",
        f"{figure['fastest new'] / figure['fastest old']:.2f}",
    )


# -- the process that answers --------------------------------------------------------------------


def made(case: Case) -> tuple[Any, Any, list[Any]]:
    """Return what makes a step of a case, its optimizer and its parameters."""
    import torch

    import adamas.torch as ours

    options = {
        key: getattr(torch, value) if key == "copy_to" else value
        for key, value in case.options.items()
    }
    generator = torch.Generator().manual_seed(5)

    def drawn(shape: Any) -> Any:
        return torch.randn(shape, generator=generator).to(getattr(torch, case.dtype))

    parameters = [torch.nn.Parameter(drawn(shape)) for shape in case.shapes]
    for p in parameters:
        p.grad = drawn(p.shape)
    optimizer = getattr(ours, case.kind)(parameters, lr=1e-3, **options)
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

    works = {
        "": step,
        "lr": beside_lr,
        "scaler": beside_scaler,
        "heads": beside_heads,
        "plan": beside_plan,
    }
    return works[case.beside], optimizer, parameters


def answer() -> None:
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
            work, optimizer, parameters = made(Case(**asked["case"]))
            kept.append((optimizer, parameters))
            for _ in range(7):
                work()
            digest = hashlib.blake2b(digest_size=16)
            entries = [each for state in optimizer.state.values() for each in state.values()]
            for each in (*parameters, *entries):
                if isinstance(each, torch.Tensor):
                    flat = each.detach().contiguous().view(-1)
                    digest.update(flat.view(torch.uint8).numpy().tobytes())
            told: Any = digest.hexdigest()
        else:
            begin = time.perf_counter()
            for _ in range(asked["calls"]):
                work()
            told = (time.perf_counter() - begin) / asked["calls"]
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    answer()
