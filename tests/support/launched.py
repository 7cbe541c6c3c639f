"""Makes the launches of adamas.torch as Triton does on a GPU, but for the last: the start itself.

Run in a process of its own, without TRITON_INTERPRET: writes, as JSON, the arguments that each
kernel got when it was found by Triton (name, values) and when it was launched again as compiled.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.compiler import CompiledKernel
from triton.runtime import driver, jit

import adamas.torch as ours
from adamas.engines.triton import devices
from tests.support.compiled_kernels import NoDriver


def plain(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


found: list[tuple[str, tuple[int, ...], list[Any]]] = []
again: list[tuple[str, tuple[int, ...], list[Any]]] = []
run = jit.JITFunction.run


def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    named = dict(zip(self.arg_names, arguments, strict=False)) | options
    found.append((kernel.name, grid, [plain(named[name]) for name in self.arg_names]))
    return kernel


def start(self: Any, grid: Any) -> Any:
    return lambda *arguments: again.append((self.name, grid, list(map(plain, arguments))))


driver.set_active(NoDriver())
jit.JITFunction.run = compile_only
CompiledKernel.__getitem__ = start
devices.DEVICE_TYPES = ("cpu",)

params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (9000,), (0,))]
halves = [torch.nn.Parameter(torch.randn(7).to(torch.bfloat16))]
optimizers = [
    ours.AdamW(
        params,
        fused=True,
        clip_norm=1.0,
        on_nonfinite="skip",
        ema=0.9,
        copy_to=torch.bfloat16,
        statistics=True,
        state="8bit",
        track_changes=True,
    ),
    ours.Adam(
        [*params, *halves], lr=torch.tensor(0.1), capturable=True, amsgrad=True, clip_update=1.0
    ),
    ours.SGD(halves, momentum=0.9, rounding="remainder8"),
]
for optimizer in optimizers:
    for _ in range(3):
        for p in (*params, *halves):
            p.grad = torch.ones_like(p)
        optimizer.step()
sys.stdout.write(json.dumps({"found": found, "again": again}))
