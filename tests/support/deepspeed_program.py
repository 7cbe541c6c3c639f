"""One process of two that train with DeepSpeed's ZeRO: ``deepspeed_program.py rank store folder``.

A twin is trained beside it, with plain parameters and the mean of the gradients of both processes.
A sum of two numbers and half of it are the same in any order, so both have the same bits.
"""

from __future__ import annotations

import importlib
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import adamas.torch as ours

LIMIT = timedelta(seconds=300)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))


def loss_of(model, step, rank):
    generator = torch.Generator().manual_seed(100 * step + rank)
    return model(torch.randn(2, 3, generator=generator)).square().mean()


def step_twin(twin, optimizer, step, rank):
    optimizer.zero_grad()
    loss_of(twin, step, rank).backward()
    for p in twin.parameters():
        dist.all_reduce(p.grad)
        p.grad /= 2
    optimizer.step()


def check(stage, rank, folder, phase, of_all):
    deepspeed: Any = importlib.import_module("deepspeed")
    model, twin = network(), network()
    options = {"lr": 0.01, "weight_decay": 0.1, **phase}
    config = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # 1.0 by default
    }

    def made():
        optimizer = ours.AdamW(model.parameters(), **options, **of_all)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        return engine

    def step(number):
        engine.backward(loss_of(engine, number, rank))
        engine.step()

    def check_same(number):
        params = list(model.parameters())
        with deepspeed.zero.GatheredParameters(params, enabled=stage == 3):
            for one, other in zip(twin.parameters(), params, strict=True):
                assert torch.equal(one, other), (stage, number)

    engine, judge = made(), ours.AdamW(twin.parameters(), **options)
    for number in range(3):
        step(number)
        step_twin(twin, judge, number, rank)
        check_same(number)
    engine.save_checkpoint(folder)
    for number in range(3, 5):
        step(number)
    engine.load_checkpoint(folder)
    for number in range(3, 5):
        step(number)
        step_twin(twin, judge, number, rank)
        check_same(number)


def main():
    rank, store, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {**ranks, "LOCAL_SIZE": "2", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}  # they have met already
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=LIMIT
    )
    importlib.import_module("deepspeed")
    # Sums in shared memory are a module that would be compiled for minutes.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    for stage in range(4):
        check(stage, rank, f"{folder}/{stage}", {"ema": 0.9}, {})
        if stage:  # each process has a flat piece of the parameters
            of_all = {"clip_group": dist.group.WORLD}
            check(stage, rank, f"{folder}/{stage} clipped", {"clip_norm": 0.05}, of_all)
    dist.barrier()
    os._exit(0)  # gloo's own threads sometimes abort an orderly end


if __name__ == "__main__":
    main()
