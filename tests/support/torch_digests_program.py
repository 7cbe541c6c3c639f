"""One of two processes that digest distributed cases: ``torch_digests_program.py rank store out``.

Each writes what it finds of its own parts to ``out/digests of RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from tests.support.torch_cases import METHODS
from tests.support.torch_digests import digested


def main():
    rank, store, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        *("gloo", f"file://{store}"), rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    mesh = init_device_mesh("cpu", (2,))
    found = {f"processes {method}": digested("processes", method, mesh=mesh) for method in METHODS}
    (out / f"digests of {rank}.json").write_text(json.dumps(found), "utf-8")
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
