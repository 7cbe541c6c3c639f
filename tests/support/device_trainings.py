"""Trainings on the device that Triton serves, and the same ones on the CPU, which judge them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.engines.triton import devices
from adamas.engines.triton.jobs import Inputs
from adamas.engines.triton.launches import Launches
from tests.support.copied import left_by_steps
from tests.support.triton_plans import DEVICE

__all__ = [
    "NO_GPU",
    "PHASE",
    "SHAPES",
    "Training",
    "device_switch",
    "differences",
    "on_the_cpu",
    "routes_of",
    "steps_launched",
]

SHAPES = ((3, 4), (33,), (), (0,), (1030,))
NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device: torch finds none"
)


def device_switch(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Let tensors of the device be taken; called with False, those of the CPU go the native way."""

    def set_to(taken: bool) -> None:
        monkeypatch.setattr(devices, "DEVICE_TYPES", (DEVICE.type,) if taken else ())

    set_to(True)
    return set_to


class Launched(NamedTuple):
    """What a step was launched with."""

    launches: Launches
    inputs: Inputs


def steps_launched(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """Return a list, to which all steps are added that are launched."""
    found, step = [], Launches.step

    def noted(self, inputs, skipped):
        found.append(Launched(self, inputs))
        return step(self, inputs, skipped)

    monkeypatch.setattr(Launches, "step", noted)
    return found


class Training:
    """Parameters with an optimizer, and gradients that are the same for all trainings."""

    def __init__(self, kind="Adam", device=DEVICE, dtype=torch.float32, shapes=SHAPES, **options):
        self.random = torch.Generator().manual_seed(0)
        self.dtype, self.device = dtype, device
        self.params = [nn.Parameter(self.drawn(shape)) for shape in shapes]
        self.optimizer = getattr(ours, kind)(self.params, **{"lr": 0.1, **options})

    def drawn(self, shape):
        return torch.randn(shape, generator=self.random).to(self.device, self.dtype)

    def gradients(self):
        for p in self.params:
            p.grad = self.drawn(p.shape)

    def step(self, count=1):
        for _ in range(count):
            self.gradients()
            self.optimizer.step()
        return self

    def values(self) -> dict[str, Any]:
        """Parameters, state, copies and averages, on the CPU."""
        found: dict[str, Any] = {}
        for i, p in enumerate(self.params):
            found[f"{i}"] = p.detach().cpu()
            for name, entry in self.optimizer.state.get(p, {}).items():
                found[f"{i}.{name}"] = entry.cpu() if isinstance(entry, torch.Tensor) else entry
        for i, each in enumerate(left_by_steps(self.optimizer)):
            found[f"copy {i}"] = each.cpu()
        return found


def routes_of(optimizer):
    """How its parameters were stepped, each way once."""
    return {*optimizer.routes().values()}


def differences(one, other):
    a, b = one.values(), other.values()
    found = sorted(a.keys() ^ b.keys())
    for name in a.keys() & b.keys():
        x, y = a[name], b[name]
        same = torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y
        if not same:
            found.append(name)
    return found


def on_the_cpu(on_device, steps=3, **case):
    """The same training on CPU tensors, by the native engine."""
    on_device(False)
    training = Training(**{**case, "device": torch.device("cpu")}).step(steps)
    on_device(True)
    return training


PHASE = {
    "clip_norm": 0.5,
    "on_nonfinite": "skip",
    "ema": 0.9,
    "copy_to": torch.bfloat16,
    "statistics": True,
}
