"""What processes send one another for a norm, in bytes for each process and step.

Every process of a small gloo group counts what it gives to ``torch.distributed.all_reduce``, the
only collective of a step; one that pickles would end the run.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from benchmarks.shapes import TRANSFORMER, Shapes
from benchmarks.tables import Row, Run, Stored, Table, machine_note, markdown, why_not

ROOT = Path(__file__).parents[1]
HEADER = ("model", "processes", "sets of process groups", "all-reduces", "bytes", "goal")
#: Title: shapes of the sharded parameters, and the mesh.
SUBJECTS: dict[str, tuple[Shapes, tuple[int, ...]]] = {
    "one vector of 1,000": (((1000,),), (2,)),
    "transformer of 4.7 M, FSDP2": (TRANSFORMER, (2,)),
    "one matrix of 16 M, FSDP2": (((4096, 4096),), (2,)),
    "transformer of 4.7 M, FSDP2 over tensor parallelism": (TRANSFORMER, (2, 2)),
}
#: Bytes, for each set of process groups.
GOAL = 1024
LIMIT = timedelta(seconds=300)


def rows() -> tuple[Row, ...]:
    """Return a row for each model."""
    return tuple(
        Row(title, "", None, functools.partial(_in_processes, title), ("torch",))
        for title in SUBJECTS
    )


@dataclass(frozen=True)
class Messages(Table):
    """Rows that make their figures."""

    def figure(self, row: Row, run: Run) -> Stored:
        return row.make(run.quick)

    def markdown(self, stored: Stored) -> str:
        table = markdown(HEADER, map(_cells, stored["figures"]))
        return (
            f"{table}\nBytes that each process sends for a norm, in a step.\n{machine_note(stored)}"
        )

    def passages(self, stored: Stored) -> dict[str, str]:
        return {"messages": self.markdown(stored)}


def _cells(figure: Stored) -> Sequence[str]:
    if why := why_not(figure):
        return figure["work"], why, "", "", "", ""
    names = ("processes", "sets", "messages", "bytes")
    return figure["work"], *(str(figure[name]) for name in names), f"≤ {GOAL * figure['sets']}"


def _in_processes(title: str, quick: bool) -> Stored:
    del quick  # the figures are those of any size
    count = functools.reduce(int.__mul__, SUBJECTS[title][1])
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        command = [sys.executable, "-m", "benchmarks.messages", title, store]
        started = [
            subprocess.Popen([*command, str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for rank in range(count)
        ]
        try:
            said = [each.communicate(timeout=2 * LIMIT.total_seconds())[0] for each in started]
        finally:
            for each in started:
                each.kill()
    if any(each.returncode for each in started):
        raise RuntimeError("A process has failed.")
    figures = [json.loads(each.splitlines()[-1]) for each in said]
    if any(each != figures[0] for each in figures):
        raise RuntimeError(f"Processes have sent different messages: {figures}.")
    return figures[0]


# -- in each process -----------------------------------------------------------------------------


def counted(title: str, store: str, rank: int) -> Stored:
    """Step one model in this process; return what was sent for it in the second step."""
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from adamas.torch import AdamW

    shapes, mesh_shape = SUBJECTS[title]
    torch.set_num_threads(1)
    count = functools.reduce(int.__mul__, mesh_shape)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=LIMIT
    )
    mesh = init_device_mesh("cpu", mesh_shape)
    sets = set()
    parameters = [torch.nn.Parameter(torch.ones(1))]  # all processes have it
    for i, shape in enumerate(shapes):
        # Tensor parallelism cuts matrices, in turn by rows and by columns.
        by_tp = Replicate() if len(shape) < 2 else Shard(i % 2)
        placements = [Shard(0), by_tp][: len(mesh_shape)]
        sets.add(tuple(each.is_shard() for each in placements))
        whole = torch.ones(shape)
        part = distribute_tensor(whole, mesh, placements, src_data_rank=None)
        parameters.append(torch.nn.Parameter(part))
    optimizer = AdamW(parameters, clip_norm=1.0)
    sent: list[int] = []
    reduce = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *arguments: Any, **options: Any) -> object:
        sent.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **options)

    def refused(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("A step has pickled something.")

    dist.all_reduce, dist.all_gather_object = all_reduce, refused
    for _ in range(2):
        sent.clear()
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    dist.barrier()
    figures = {"processes": count, "sets": len(sets), "messages": len(sent), "bytes": sum(sent)}
    print(json.dumps(figures), flush=True)
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    counted(sys.argv[1], sys.argv[2], int(sys.argv[3]))
