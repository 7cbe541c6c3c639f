"""One process of two that make many steps with a norm of both: ``growth_program.py rank store``.

It fails where steps leave objects or memory behind.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import adamas.torch as ours

LIMIT = timedelta(seconds=500)
#: What each step left behind would be that many objects and bytes at least, once in ten steps.
PER_STEP = 0.1
BYTES_PER_STEP = 100
PIECES = 8


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def objects():
    gc.collect()
    return Counter(type(each).__qualname__ for each in gc.get_objects())


def main():
    rank, store, steps = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=LIMIT
    )
    net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    options = {"clip_norm": 0.5, "on_nonfinite": "skip", "ema": 0.99}
    optimizer = ours.AdamW(net.parameters(), lr=1e-3, **options)
    net(torch.ones(2, 32)).square().sum().backward()  # its gradients serve all steps
    found = []
    for _ in range(PIECES + 1):  # the first one makes what lasts
        for _ in range(steps // PIECES):
            optimizer.step()
        found.append((objects(), resident()))
    # What is made once, such as caches of torch, grows in some pieces; what is left behind, in all.
    pairs = list(itertools.pairwise(found))
    counts = [after - before for (before, _), (after, _) in pairs]
    lasting = {kind: min(each[kind] for each in counts) for kind in counts[0]}
    more = {kind: n for kind, n in lasting.items() if n > PER_STEP * steps // PIECES}
    assert not more, more
    grown = min(after - before for (_, before), (_, after) in pairs)
    assert grown < BYTES_PER_STEP * steps // PIECES, grown
    assert optimizer.gradient_norm > 0.5
    assert optimizer.state[next(net.parameters())]["step"] == steps // PIECES + steps
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
