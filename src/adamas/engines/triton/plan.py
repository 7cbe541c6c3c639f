"""The engine's Plan: a step of NumPy arrays, as ``adamas.engines`` describes it.

For comparisons: at each step all arrays go to the device and come back. Without a GPU the kernels
run in Triton's interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from adamas.assignments import Assignment, all_at_once, values
from adamas.coefficients import check_step
from adamas.engines import Group, Slot, check_rates, noted, readable
from adamas.engines.triton.jobs import Inputs, Job
from adamas.engines.triton.kernels import sweep
from adamas.engines.triton.launches import Launches
from adamas.options import Phase
from adamas.spikes import Window, kept
from adamas.statistics import Outcome

__all__ = ["Plan", "device"]

Array = NDArray[Any]

#: What stands for dtypes that torch does not compute with: arrays of bits.
_AS_BITS = {np.dtype(np.uint16): np.int16}


def device() -> torch.device:
    """Return the device that arrays are stepped on: a GPU, or the CPU in Triton's interpreter."""
    if not isinstance(sweep, triton.JITFunction):
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    raise RuntimeError(
        "The Triton engine needs a GPU, but torch.cuda.is_available() is False. To run its kernels "
        "in Triton's interpreter, set TRITON_INTERPRET=1 in the environment before Python starts."
    )


class Plan:
    """A step over fixed groups of arrays, as ``adamas.engines`` describes it."""

    def __init__(
        self,
        groups: Sequence[Group],
        phase: Phase,
        spikes: Window | None = None,
        *,
        keep_sums: bool = False,
    ) -> None:
        """Make room for the arrays of ``groups`` on the device; they are sent with each step."""
        self._device = device()
        self._phase = phase
        self._keep_sums = keep_sums
        self._options = [group.options for group in groups]
        self._slots = [slot for group in groups for slot in group.slots]
        self._layouts = [_layout(slot) for slot in self._slots]
        owners = [index for index, group in enumerate(groups) for _ in group.slots]
        #: What is stepped there, one for each slot, and what steps it.
        self.jobs = [
            self._job(slot, place, owner)
            for place, (slot, owner) in enumerate(zip(self._slots, owners, strict=True))
        ]
        self._spikes = kept(phase, spikes)
        #: What stands for it there.
        self._window = None
        if self._spikes is not None:
            self._window = torch.from_numpy(self._spikes).to(self._device, copy=True)
        self.launches = Launches(self.jobs, self._options, phase, spikes=self._window)

    def step(
        self, gradients: Any, step: int, rates: Sequence[float], record: list[Any] | None = None
    ) -> Outcome | None:
        """Make one step in place; see ``adamas.engines``."""
        bits = readable(gradients, self._slots)
        if bits is None or self._layouts != [_layout(slot) for slot in self._slots]:
            return NotImplemented
        step = check_step(step)
        check_rates(rates, self._options)
        sent = [_parameter(each).to(self._device) for each in bits]
        for array, tensor in self._pairs():
            tensor.copy_(_flat(array).view(tensor.dtype))
        if self._spikes is not None and self._window is not None:
            self._window.copy_(torch.from_numpy(self._spikes))
        inputs = Inputs(
            gradients=np.array([each.data_ptr() for each in sent], np.int64),
            steps=np.full(len(sent), step, np.int64),
            rates=rates,
        )
        skipped = torch.zeros((), dtype=torch.int64, device=self._device)
        with np.errstate(all="ignore"):  # the interpreter computes with NumPy
            launched = self.launches.step(inputs, {self._device: skipped})
        outcome = None if launched is None else launched.fetched()
        if launched is not None and outcome is not None and self._keep_sums:
            outcome = replace(outcome, statistics=launched.recorded)
        changes: list[Assignment] = []
        if outcome is None or outcome.applied:
            changes += [values(array, _back(tensor, array)) for array, tensor in self._pairs()]
        if self._spikes is not None and self._window is not None:
            changes.append(values(self._spikes, self._window.cpu().numpy()))
        if record is not None:
            changes += noted(record, step, outcome, skips=bool(skipped))
        all_at_once(changes)
        return outcome

    def step_tree(self, *_: Any) -> Any:
        """Leave a close look at everything to the caller."""
        return NotImplemented

    def _job(self, slot: Slot, place: int, owner: int) -> Job:
        options, state = self._options[owner], slot.state
        entries = state.entries.map(self._room_for)
        if self._phase.ema is None:
            entries = entries._replace(ema=None)
        return Job(
            parameter=torch.empty_like(_parameter(slot.parameter), device=self._device),
            entries=entries,
            copy=None,
            storage=options.storage,
            top=state.top,
            place=place if slot.number is None else slot.number,
            first=slot.first,
            runs=tuple(slot.runs),
            group=owner,
            marks=None if slot.marks is None else self._room_for(slot.marks),
        )

    def _room_for(self, array: Array) -> Tensor:
        return torch.empty_like(_flat(array), device=self._device)

    def _pairs(self) -> Iterator[tuple[Array, Tensor]]:
        """Yield all arrays that a step writes, each with what stands for it on the device."""
        for slot, job in zip(self._slots, self.jobs, strict=True):
            pairs = zip(slot.state.entries, job.entries, strict=True)
            own = ((slot.parameter, job.parameter), (slot.marks, job.marks))
            for array, tensor in (*own, *pairs):
                if array is not None and tensor is not None:
                    yield array, tensor


def _layout(slot: Slot) -> tuple[Any, ...]:
    return slot.parameter.shape, slot.parameter.dtype


def _flat(array: Array) -> Tensor:
    """Return an array of any dtype as a tensor of one dimension on the host."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.flags.writeable:
        flat = flat.copy()  # torch has no tensors that are only read
    return torch.from_numpy(flat.view(_AS_BITS.get(flat.dtype, flat.dtype)))


def _parameter(array: Array) -> Tensor:
    """Return a parameter or gradient as a tensor; uint16 stands for the bits of bfloat16."""
    tensor = _flat(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def _back(tensor: Tensor, like: Array) -> Array:
    """Return a tensor as an array of the dtype of ``like``, bit for bit."""
    return tensor.cpu().view(torch.int8).numpy().view(like.dtype)
