"""What a step is about: the tensors to step, how they are stored, what each step is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adamas.coefficients import StepNumbers
from adamas.options import Options, Phase

__all__ = ["DTYPES", "Inputs", "Int64", "Job", "Stored", "form_name", "signature_of"]

Int64 = NDArray[np.int64]

#: What the kernels call the dtypes of parameters and copies.
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def form_name(form: str, tensor: Tensor | None) -> str | None:
    """Return what the kernels call a form of m or v: "own" is the dtype of the arithmetic."""
    if tensor is None:
        return None
    return "own" if form == "float32" else form


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


class Job(NamedTuple):
    """One tensor to step: arrays in the same order in memory, all on one device."""

    parameter: Tensor
    mean: Tensor | None
    square: Tensor | None
    largest_square: Tensor | None
    ema: Tensor | None
    copy: Tensor | None
    header: Tensor | None
    remainder: Tensor | None
    #: The number of the last step, on the device; None where it is given with each step.
    step: Tensor | None
    #: The learning rate, on the device; None where it is given with each step.
    lr: Tensor | None
    #: Forms of m and v as the kernels name them: None, "own" for the dtype of the arithmetic.
    forms: tuple[str | None, str | None]
    rounding: str
    by_chance: bool
    #: :func:`adamas.codecs.mean_top`.
    top: int
    #: The number of the tensor, and where its elements begin in the whole tensor, for random bits.
    place: int
    first: int
    #: Of the parameters' group, among the groups of the plan.
    group: int
    #: Whether its numbers are given with each step.
    is_given: bool

    @property
    def device(self) -> torch.device:
        """The device that steps it."""
        return self.parameter.device

    @property
    def stored(self) -> Stored:
        """How it is stored."""
        mean, square = self.forms
        return Stored(
            P=DTYPES[self.parameter.dtype],
            M=mean,
            V=square,
            W=self.largest_square is not None,
            HAS_EMA=self.ema is not None,
            COPY_TO=None if self.copy is None else DTYPES[self.copy.dtype],
            ROUNDING=self.rounding,
            BY_CHANCE=self.by_chance,
        )

    def signature(self) -> tuple[Any, ...]:
        """Return what the tables are made of."""
        return tuple(
            (each.data_ptr(), each.numel(), each.dtype, each.device)
            if isinstance(each, Tensor)
            else each
            for each in self
        )


def signature_of(
    jobs: Sequence[Job], options: Sequence[Options | None], phase: Phase
) -> tuple[Any, ...]:
    """Return what launches are made of: equal where they may be used again."""
    return (phase, tuple(options), *(job.signature() for job in jobs))


class Inputs(NamedTuple):
    """What a step is given."""

    #: Addresses of the gradients, one for each job.
    gradients: Int64
    #: The same in C order, for what is read before anything is stepped.
    ordered_gradients: Int64
    #: Numbers of the coming step, for jobs that do not keep them on the device.
    steps: Int64
    #: The learning rate of each group; anything where it is kept on the device.
    rates: Sequence[float]
    loss_scale: float = 1.0
    factor: float = 1.0
    #: For each job that is given its own.
    given: Sequence[StepNumbers] = ()
    #: A GradScaler's float32 scalars, on any device.
    found_inf: Tensor | None = None
    scale_on_device: Tensor | None = None
