"""The Triton engine: kernels for GPUs, bit for bit the reference.

======== =========================================================================================
plan     the engine's Plan, over NumPy arrays
launches a step of any tensors on any devices
parts    what goes to one device: its tables, and the kernels that are launched there
live     what the host sends at each step
tables   what kernels find where
kernels  the kernels that go through memory, and what they share
marks    where marks of changed elements are set
numbers  the numbers of a step, taken on the device
sums     exact sums of squares: the rows of ``adamas.digits``
codecs   small forms of m, v and parameters
rule     the lines of ``adamas.rule`` once more
jobs     what a step is about, and what it is given
devices  which tensors the engine takes
======== =========================================================================================

Kernels must be launched with ``rule.OPTIONS``. With ``TRITON_INTERPRET=1`` they run on the
CPU. Triton is imported where something is launched, so that front-ends can be imported without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adamas.extras import MissingExtraError, require

if TYPE_CHECKING:
    from adamas.engines.triton.plan import Plan

__all__ = ["Plan"]


def __getattr__(name: str) -> Any:
    """Return the Plan, with what it needs imported now."""
    if name != "Plan":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("torch", "The Triton engine", "torch", "PyTorch")
    from adamas.engines.triton.devices import WHERE_TRITON_IS, has_triton

    if not has_triton():
        raise MissingExtraError(f"The Triton engine needs Triton. {WHERE_TRITON_IS}")
    from adamas.engines.triton.plan import Plan

    return Plan
