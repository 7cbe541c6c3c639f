"""The Triton engine: kernels for GPUs, bit for bit the reference.

======== =========================================================================================
rule     the lines of :mod:`adamas.rule` once more
codecs   small forms of m, v and parameters
sums     norms and statistics in the order of :mod:`adamas.statistics`, added up exactly
numbers  the numbers of a step, taken on the device
tables   what kernels find where
kernels  the kernels that go through memory, and what they share
======== =========================================================================================

Here are kernels only; :mod:`adamas.torch.cuda` makes their tables and launches them. Kernels must
be launched with :data:`OPTIONS`. With ``TRITON_INTERPRET=1`` they run on the CPU.
"""

from __future__ import annotations

from adamas.engines.triton.kernels import describe, read, sweep
from adamas.engines.triton.numbers import conclude, number
from adamas.engines.triton.rule import OPTIONS
from adamas.engines.triton.sums import ROW, collect

__all__ = ["OPTIONS", "ROW", "collect", "conclude", "describe", "number", "read", "sweep"]
