"""Compile the kernels of ``adamas.engines.triton``, for GPUs that need not be there.

As a program, in a process without Triton's interpreter: plans over arrays on the CPU are made and
stepped, but where they launch a kernel it is compiled, with the very arguments of the launch, for
the compute capability that is asked for. What comes of it is written as JSON. Nothing runs.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from adamas import state as states
from adamas.engines import Group, Runs, Slot
from adamas.engines.triton import marks as marking
from adamas.engines.triton import plan as plans
from adamas.engines.triton.jobs import Job
from adamas.engines.triton.rule import OPTIONS, rule
from adamas.options import Options, Phase
from tests.support.triton_plans import plan_with, shifted, step_with

#: Compute capabilities: 8.0 (A100), 9.0 (H100), 10.0 (B200).
CAPABILITIES = (80, 90, 100)

NUMPY = {
    "float32": np.float32,
    "float64": np.float64,
    "bfloat16": np.uint16,
    "float16": np.float16,
}
EVERYTHING = Phase(clip_norm=1.0, on_nonfinite="skip", ema=0.9, statistics=True, clip_update=1.0)
CLIPPED = Phase(clip_update=1.0)
_ADAM = (0.9, 0.999)


class Variant(NamedTuple):
    """A plan of one tensor."""

    dtype: str = "float32"
    betas: tuple[Any, Any] = _ADAM
    state: Any = "float32"
    rounding: Any = None
    amsgrad: bool = False
    copy: str | None = None
    phase: Phase = Phase()
    is_aligned: bool = True
    #: By a GradScaler.
    is_scaled: bool = False
    #: With the sums of other processes.
    is_exchanged: bool = False
    #: A part of a tensor that is cut along a later dimension.
    is_spread: bool = False
    #: With marks of the elements that change.
    is_tracked: bool = False


#: Compiled for all capabilities: each dtype, form and rounding, and each flag.
SHARED = (
    Variant(),
    Variant("float64", amsgrad=True, phase=CLIPPED),
    Variant("bfloat16", state="8bit", rounding="stochastic", copy="float16", is_spread=True),
    Variant("bfloat16", state="compact", rounding="remainder8", phase=EVERYTHING),
    Variant(
        "float16",
        state="bfloat16",
        is_aligned=False,
        phase=Phase(clip_norm=1.0, clip_update=1.0),
        is_exchanged=True,
    ),
    Variant("bfloat16", rounding="remainder", phase=Phase(ema=0.9), copy="bfloat16"),
    Variant(is_tracked=True),
    Variant("bfloat16", rounding="remainder8", state="8bit", is_tracked=True, phase=EVERYTHING),
    Variant("float64", phase=EVERYTHING),
    Variant(
        betas=(None, None),
        phase=Phase(clip_norm=1.0, skip_above=6.0),
        is_scaled=True,
        is_exchanged=True,
    ),
)
#: Compiled for one of them.
MORE = (
    Variant(betas=(0.9, None), is_scaled=True),
    Variant(betas=(None, 0.99), amsgrad=True, phase=CLIPPED),
    Variant(betas=(None, 0.99), state="8bit"),
    Variant(state=("float32", "8bit"), rounding="nearest"),
    Variant(state=("8bit", "float32"), phase=Phase(on_nonfinite="skip")),
    Variant(state=("compact", "8bit"), phase=Phase(statistics=True)),
    Variant(state=("8bit", "bfloat16"), copy="bfloat16"),
    Variant(state=("bfloat16", "compact"), is_aligned=False),
    Variant("float64", betas=(0.9, None), phase=Phase(ema=0.9), copy="bfloat16"),
    Variant("float64", betas=(None, None), copy="float16", is_aligned=False),
    Variant("float16", state="8bit", rounding="stochastic", phase=EVERYTHING),
    Variant("bfloat16", state="8bit", rounding="remainder", phase=CLIPPED),
    Variant("bfloat16", state="compact", rounding="nearest", copy="bfloat16"),
    Variant("float16", betas=(0.9, None)),
    Variant("float64", copy="bfloat16", is_tracked=True),
    Variant("float64", is_tracked=True, is_aligned=False),
    Variant("bfloat16", rounding="stochastic", is_tracked=True, is_spread=True),
    Variant("float16", copy="float16", is_tracked=True, phase=Phase(on_nonfinite="skip")),
)


class NoDriver:
    """A GPU of some compute capability, as far as Triton asks before it compiles."""

    def __init__(self) -> None:
        self.capability = CAPABILITIES[0]

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class Found(NamedTuple):
    """A compiled kernel."""

    kernel: str
    capability: int
    #: Values of the arguments that are constants.
    constants: dict[str, Any]
    #: How often each instruction of the PTX occurs.
    instructions: dict[str, int]
    #: Words of the PTX that no kernel may hold.
    forbidden: list[str]
    #: Names of the functions of the engine that it was compiled from.
    functions: list[str]


_INSTRUCTION = re.compile(
    r"^\s+(?:\{\s*)?(?:@!?%p\d+\s+)?([a-z][a-z0-9_.:]+)(?=[\s;])", re.MULTILINE
)
_FORBIDDEN = re.compile(r"[\w.]*(?:fma|mad\.rn|approx|ftz|ex2|lg2|rcp|rsqrt|div\.full)[\w.]*")
_FUNCTION = re.compile(r"tt\.func private @\"?adamas\.engines\.triton\.(\w+\.\w+?)__")


def described(kernel: Any, name: str, capability: int, constants: dict[str, Any]) -> Found:
    ptx = kernel.asm["ptx"]
    instructions = Counter(_INSTRUCTION.findall(ptx))
    functions = sorted(set(_FUNCTION.findall(str(kernel.asm["source"]))))
    forbidden = _FORBIDDEN.findall(ptx)
    return Found(name, capability, constants, instructions, forbidden, functions)


def launched(variant: Variant) -> None:
    """Make the launches of one step."""
    dtype = NUMPY[variant.dtype]
    options = Options(
        lr=0.1,
        betas=variant.betas,
        state=variant.state,
        rounding=variant.rounding,
        amsgrad=variant.amsgrad,
    )
    parameter = np.zeros(3 * 8192, dtype)
    state = states.create(parameter, options, ema=variant.phase.ema is not None)

    def changed(job: Job) -> Job:
        p = job.parameter if variant.is_aligned else shifted(job.parameter)
        if variant.is_spread:
            job = job._replace(runs=(Runs(0, 5, 16, 24),))
        if variant.is_tracked:
            words = -(-p.numel() // 32)
            job = job._replace(marks=torch.zeros(words, dtype=torch.int32))
        if variant.copy is None:
            return job._replace(parameter=p)
        return job._replace(parameter=p, copy=p.to(getattr(torch, variant.copy)))

    groups = [Group(options, (Slot(parameter, state),))]
    inputs: dict[str, Any] = {}
    if variant.is_scaled:
        inputs |= {"found_inf": torch.zeros(1), "scale_on_device": torch.ones(1)}
    if not variant.is_aligned:
        inputs["gradients"] = np.array([parameter.ctypes.data + parameter.itemsize])
    exchange = torch.Tensor.zero_ if variant.is_exchanged else None
    plan = plan_with(groups, variant.phase, changed, exchange=exchange, wholes=exchange)
    step_with(plan, [parameter], 1, [0.1], **inputs)


@triton.jit
def plainly_divided(x, BLOCK: tl.constexpr):
    """Write x / (x + 1) by Triton's own operator."""
    places = x + tl.arange(0, BLOCK)
    tl.store(places, tl.load(places) / (tl.load(places) + 1.0))


@triton.jit
def multiplied_and_added(x, BLOCK: tl.constexpr):
    """Write x * x + x."""
    places = x + tl.arange(0, BLOCK)
    y = tl.load(places)
    tl.store(places, y * y + y)


def main(path: str) -> None:
    """Compile everything and write what was found."""
    found: list[Found] = []
    no_driver = NoDriver()
    driver.set_active(no_driver)
    plans.device = lambda: torch.device("cpu")

    def compiled(kernel: Any, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            names = [each.name for each in kernel.params if each.is_constexpr]
            constants = {name: options[name] for name in names}
            result = kernel.warmup(*arguments, grid=grid, **options)
            found.append(described(result, kernel.__name__, no_driver.capability, constants))

        return launch

    JITFunction.__getitem__ = compiled
    for capability in CAPABILITIES:
        no_driver.capability = capability
        for variant in SHARED if capability != 90 else SHARED + MORE:
            launched(variant)
        marks, counts = torch.zeros(70, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        for dtype in (torch.int32, torch.int64):
            marking.count[(1,)](marks, 70, counts, **OPTIONS)
            marking.places[(1,)](marks, 70, counts, counts, counts.to(dtype), **OPTIONS)
    no_driver.capability = 90
    x = torch.zeros(1024)
    plainly_divided[(1,)](x, BLOCK=1024, **OPTIONS)
    multiplied_and_added[(1,)](x, BLOCK=1024, **OPTIONS)
    multiplied_and_added[(1,)](x, BLOCK=1024, enable_fp_fusion=True)
    assert isinstance(rule, JITFunction), "the interpreter is at work"
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump([each._asdict() for each in found], file)


if __name__ == "__main__":
    main(sys.argv[1])
