"""The Triton engine as the other engines are: a Plan over NumPy arrays, for comparisons of bits.

On a machine with a GPU the arrays go there and back; without one the kernels run in Triton's
interpreter, on the arrays themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from adamas.engines import Group, Slot
from adamas.engines.triton.jobs import Inputs, Job
from adamas.engines.triton.launches import Launches
from adamas.options import Phase
from adamas.statistics import Outcome

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

if DEVICE.type == "cpu":
    # The interpreter puts its language in place again in every function that a kernel calls, which
    # takes most of its time; once in each kernel is enough.
    _patch = interpreter._patch_lang

    def _patch_once(fn: Any) -> Any:
        languages = [each for each in fn.__globals__.values() if each is tl or each is tl.core]
        names = {each.static_assert.__name__ for each in languages}
        return interpreter._LangPatchScope() if names == {"_new_static_assert"} else _patch(fn)

    interpreter._patch_lang = _patch_once

_VIEWS = {np.dtype(np.uint16): np.int16}


def on_device(array: Any) -> Any:
    """An array of any dtype as a tensor; uint16 as int16."""
    if array is None:
        return None
    flat = array.reshape(-1)
    return torch.from_numpy(flat.view(_VIEWS.get(array.dtype, array.dtype))).to(DEVICE)


def parameter_on_device(array: Any) -> torch.Tensor:
    """A parameter or gradient as a tensor; uint16 stands for bfloat16's bits."""
    tensor = on_device(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


class Plan:
    """A step over fixed groups of arrays, as adamas.engines describes it."""

    #: The dtype of copies of the parameters; None: there are none.
    copy_to: torch.dtype | None = None

    def __init__(self, groups: Sequence[Group], phase: Phase) -> None:
        self.phase = phase
        #: What each step is given besides, as Inputs call it.
        self.extra: dict[str, Any] = {}
        self.slots = [slot for group in groups for slot in group.slots]
        self.arrays: list[tuple[Any, torch.Tensor]] = []
        self.jobs: list[Job] = []
        for index, group in enumerate(groups):
            for slot in group.slots:
                self.jobs.append(self.job(slot, index, group))
        self.launches = Launches(self.jobs, [group.options for group in groups], phase)
        self.skipped = {DEVICE: torch.zeros((), dtype=torch.int64, device=DEVICE)}

    def job(self, slot: Slot, index: int, group: Group) -> Job:
        options, state = group.options, slot.state
        parameter = parameter_on_device(slot.parameter)
        own = ("own" if form == "float32" else form for form in state.forms)
        m, v = (
            form if array is not None else None
            for form, array in zip(own, (state.mean, state.square), strict=True)
        )
        half = slot.parameter.dtype in (np.uint16, np.float16)
        entries = [
            on_device(each)
            for each in (
                state.mean,
                state.square,
                state.largest_square,
                state.ema,
                state.header,
                state.remainder,
            )
        ]
        arrays = [state.mean, state.square, state.largest_square, state.ema]
        arrays += [state.header, state.remainder]
        pairs = zip((slot.parameter, *arrays), (parameter, *entries), strict=True)
        self.arrays += [(array, tensor) for array, tensor in pairs if array is not None]
        mean, square, largest, ema, header, remainder = entries
        copy = None
        if self.copy_to is not None:
            copy = torch.full(parameter.shape, -3.0, dtype=self.copy_to, device=DEVICE)
        number = len(self.jobs) if slot.number is None else slot.number
        return Job(
            parameter=parameter,
            gradient=parameter,
            mean=mean,
            square=square,
            largest_square=largest,
            ema=ema,
            copy=copy,
            header=header,
            remainder=remainder,
            step=None,
            lr=None,
            forms=(m, v),
            rounding=options.parameter_rounding if half else "nearest",
            by_chance=options.is_stochastic and state.is_small,
            top=state.top,
            place=number,
            first=slot.first,
            group=index,
            is_given=False,
        )

    def step(self, gradients: Any, step: int, rates: Any) -> Outcome | None:
        tensors = [parameter_on_device(each) for each in gradients]
        addresses = np.array([each.data_ptr() for each in tensors], np.int64)
        inputs = Inputs(
            gradients=addresses,
            ordered_gradients=addresses,
            steps=np.full(len(tensors), step, np.int64),
            rates=rates,
            **self.extra,
        )
        with np.errstate(all="ignore") if DEVICE.type == "cpu" else contextlib.nullcontext():
            outcome = self.launches.step(inputs, self.skipped)
        if DEVICE.type != "cpu":
            for array, tensor in self.arrays:
                bits = tensor.cpu().view(torch.int8).numpy()
                array.reshape(-1).view(np.int8)[:] = bits
        if outcome is None or not (self.phase.reads_first or self.phase.statistics):
            return None
        return Outcome(outcome.applied, outcome.norm, outcome.nonfinite, outcome.statistics)


def with_copy(dtype: str | None) -> Any:
    """The engine, with a copy of each parameter in another dtype: ``plan.jobs[…].copy``."""
    copy_to = None if dtype is None else getattr(torch, dtype)
    return SimpleNamespace(Plan=type("Plan", (Plan,), {"copy_to": copy_to}))
