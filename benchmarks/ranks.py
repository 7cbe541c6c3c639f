"""Rows of several processes that train on one machine, a thread each, beside one with all the work.

Each contender is processes that wait for a line, make so many steps and answer; a row's time is
that of all of them. In the rows of parts each process has the same share of every tensor, as FSDP
leaves it: as plain tensors, or as DTensors whose norm is one.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.checks import LR, WrongResultError
from benchmarks.ratios import Pair
from benchmarks.shapes import TRANSFORMER, Shapes
from benchmarks.tables import Row

ROOT = Path(__file__).parents[1]
#: At most 1.3 times the time of one process with all the work.
GOAL = 0.77
COUNT = 8
STEPS = 10
LIMIT = timedelta(seconds=300)
#: Set from outside, they would say how many threads one process has.
THREADS = ("ADAMAS_NUM_THREADS", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")


class Work(NamedTuple):
    """What is stepped, by whom."""

    shapes: Shapes
    options: dict[str, Any]
    #: Processes, and how many threads each has; None: as many as it has where nobody says so.
    processes: int
    threads: int | None
    #: Whether parts are DTensors.
    is_sharded: bool = False


class Processes:
    """Processes that make steps when they are told to."""

    def __init__(self, work: Work, parts: int) -> None:
        self._work, self._parts = work, parts
        folder = tempfile.TemporaryDirectory()
        environment = {name: value for name, value in os.environ.items() if name not in THREADS}
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", json.dumps([*work, parts, rank]), store],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for store in [f"{folder.name}/store"]
            for rank in range(work.processes)
        ]
        self._ended = weakref.finalize(self, _end, self._processes, folder)
        self.answers(0)

    def answers(self, steps: int) -> list[str]:
        """Have all make so many steps; return what each has of parameters, as digests."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [_line(process) for process in self._processes]
        return [digest for answer in answers for digest in json.loads(answer)]


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("A process ended before it had made its steps.")
    return line


def _end(processes: list[subprocess.Popen[str]], folder: Any) -> None:
    for process in processes:
        process.communicate()
    folder.cleanup()


def rows() -> Iterator[Row]:
    """Return rows of plain parts, and of sharded ones."""
    large, quick_large = ((1 << 24,),), ((1 << 16,),)
    for against, threads in (("1 process", None), ("1 process of 1 thread", 1)):
        make = functools.partial(_pair, large, quick_large, {}, threads, is_sharded=False)
        yield Row(f"{STEPS} steps, 16 M in 1 tensor, 8 processes", against, GOAL, make, ("torch",))
    phase = {"clip_norm": 1.0}
    make = functools.partial(_pair, TRANSFORMER, TRANSFORMER[:4], phase, None, is_sharded=True)
    name = f"{STEPS} steps with a norm, transformer of 4.7 M, 8 processes, DTensors"
    yield Row(name, "1 process, plain tensors", None, make, ("torch",))


def _pair(
    shapes: Shapes,
    quick_shapes: Shapes,
    options: dict[str, Any],
    threads: int | None,
    quick: bool,
    *,
    is_sharded: bool,
) -> Pair:
    count = 2 if quick else COUNT
    work = Work(quick_shapes if quick else shapes, options, count, 1, is_sharded)
    many = Processes(work, count)
    one = Processes(work._replace(processes=1, threads=threads, is_sharded=False), count)

    def check() -> None:
        ours, other = many.answers(-3), one.answers(-3)
        if ours != other:
            raise WrongResultError("Some processes have other bits than one that does it all.")

    return Pair(lambda: many.answers(STEPS), lambda: one.answers(STEPS), check)


# -- in the process ------------------------------------------------------------------------------


def step(work: Work, parts: int, rank: int, store: str) -> None:
    """Make as many steps as each line of standard input says; a negative number asks for digests.

    Answers, a list of them for each line, go to standard output.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import adamas
    import adamas.torch

    if work.threads is not None:
        adamas.set_num_threads(work.threads)
        torch.set_num_threads(work.threads)
    mesh = None
    if work.is_sharded:
        where = f"file://{store}"
        dist.init_process_group(
            "gloo", init_method=where, rank=rank, world_size=work.processes, timeout=LIMIT
        )
        mesh = init_device_mesh("cpu", (work.processes,))
    torch.manual_seed(0)
    params: list[torch.nn.Parameter] = []
    for shape in work.shapes:
        value, gradient = torch.randn(shape), torch.randn(shape)
        if mesh is not None:
            value, gradient = (
                distribute_tensor(each, mesh, [Shard(0)], src_data_rank=None)
                for each in (value, gradient)
            )
        elif work.processes > 1:
            value, gradient = (each.chunk(parts)[rank].clone() for each in (value, gradient))
        params.append(torch.nn.Parameter(value))
        params[-1].grad = gradient
    optimizer = adamas.torch.AdamW(params, lr=LR, **work.options)
    for line in sys.stdin:
        for _ in range(abs(int(line))):
            optimizer.step()
        digests: list[str] = []
        if int(line) < 0:
            here = [getattr(p, "_local_tensor", p).detach() for p in params]
            own = [p.chunk(parts) if work.processes == 1 else (p,) for p in here]
            digests = [_digest(part) for part in zip(*own, strict=True)]
        print(json.dumps(digests), flush=True)
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


def _digest(tensors: Any) -> str:
    found = hashlib.blake2b()
    for each in tensors:
        found.update(each.contiguous().numpy())
    return found.hexdigest()


if __name__ == "__main__":
    *fields, its_parts, its_rank = json.loads(sys.argv[1])
    step(Work(*fields), its_parts, its_rank, sys.argv[2])
