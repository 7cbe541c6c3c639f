"""What a step is about: the tensors to step, how they are stored, what each step is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.coefficients import StepNumbers
from adamas.engines import Runs
from adamas.options import Options, Phase
from adamas.state import Entries
from adamas.storage import Storage

__all__ = ["DTYPES", "Inputs", "Int64", "Job", "Stored", "signature_of"]

Int64 = NDArray[np.int64]

#: What the kernels call the dtypes of parameters and copies.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


class Stored(NamedTuple):
    """How a tensor is stored, by the names of the constants that the sweep is compiled for."""

    P: str
    M: str | None
    V: str | None
    W: bool
    HAS_EMA: bool
    COPY_TO: str | None
    ROUNDING: str
    BY_CHANCE: bool
    SPREAD: bool
    HAS_MARKS: bool


class Job(NamedTuple):
    """One tensor to step: arrays in the same order in memory, all on one device."""

    parameter: Tensor
    entries: Entries
    copy: Tensor | None
    #: How the entries and the parameter are stored.
    storage: Storage
    #: The number of the last step, on the device; None where it is given with each step.
    step: Tensor | None = None
    #: The learning rate, on the device; None where it is given with each step.
    lr: Tensor | None = None
    #: ``adamas.codecs.mean_top``.
    top: int = 0
    #: The number of the tensor, and where its elements begin in the whole tensor, for random bits;
    #: in the part, where that stands in ``runs`` there.
    place: int = 0
    first: int = 0
    runs: tuple[Runs, ...] = ()
    #: Of the parameters' group, among the groups of the plan.
    group: int = 0
    #: The sum that its gradient is counted in.
    row: int = 0
    #: Whether its numbers are given with each step.
    is_given: bool = False
    #: How many elements the whole tensor has; None: as many as are here.
    whole: int | None = None
    #: One bit an element, in int32 words, which is set where the element changes: see
    #: ``adamas.marks``. Elements are numbered as they lie in memory.
    marks: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device that steps it."""
        return self.parameter.device

    @property
    def stored(self) -> Stored:
        """How it is stored."""
        mean, square = (
            None if entry is None else "own" if form == "float32" else form
            for entry, form in zip(self.entries, self.storage.forms, strict=False)
        )
        is_half = self.parameter.itemsize == 2
        return Stored(
            P=DTYPES[self.parameter.dtype],
            M=mean,
            V=square,
            W=self.entries.largest_square is not None,
            HAS_EMA=self.entries.ema is not None,
            COPY_TO=None if self.copy is None else DTYPES[self.copy.dtype],
            ROUNDING=self.storage.parameter_rounding if is_half else "nearest",
            BY_CHANCE=self.storage.means_by_chance,
            SPREAD=bool(self.runs),
            HAS_MARKS=self.marks is not None,
        )


def signature_of(
    jobs: Sequence[Job],
    options: Sequence[Options | None],
    phase: Phase,
    exchange: Any = None,
    spikes: Tensor | None = None,
) -> tuple[Any, ...]:
    """Return what launches are made of: equal where they may be used again."""
    parts = (each for job in jobs for each in (*job, *job.entries))
    return (phase, tuple(options), exchange, *map(_memory, (spikes, *parts)))


def _memory(part: Any) -> Any:
    """Return where a tensor is and how it is read; nothing of entries, and others as they are."""
    if isinstance(part, Tensor):
        return part.data_ptr(), part.numel(), part.dtype, part.device
    return None if isinstance(part, Entries) else part


class Inputs(NamedTuple):
    """What a step is given."""

    #: Addresses of the gradients, one for each job.
    gradients: Int64
    #: Numbers of the coming step, for jobs that do not keep them on the device.
    steps: Int64
    #: The learning rate of each group; anything where it is kept on the device.
    rates: Sequence[float]
    loss_scale: float = 1.0
    factor: float = 1.0
    #: For each job that is given its own.
    given: Sequence[StepNumbers] = ()
    #: Of each job, the row of the squares of its update, of the whole tensor: what updates are
    #: clipped by. None where that is taken here.
    updates: Int64 | None = None
    #: A GradScaler's float32 scalars, on any device.
    found_inf: Tensor | None = None
    scale_on_device: Tensor | None = None
