"""A device of queues that offloaded optimizers are stepped on, and the same ones without offload.

Its tensors are the processor's, its copies are those of ``queues``, made at the worst moments.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import adamas.torch as ours
from adamas.torch import host_memory
from adamas.torch.routes import chunks, offload
from tests.support.queues import Queues

__all__ = [
    "BFLOAT16",
    "DTYPES",
    "FLOAT16",
    "METHODS",
    "ROUNDINGS",
    "SHAPES",
    "STATES",
    "assert_pinned",
    "assert_same",
    "both",
    "device_of_queues",
    "give_gradients",
    "parameters",
    "same",
    "tensors_of",
    "trained",
]

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16
DTYPES = [torch.float32, torch.float64, BFLOAT16, FLOAT16]
#: Tiles end within, at and before the ends of tensors.
SHAPES = [(5, 7), (3000,), (), (0,), (64, 48), (1024,), (1025,), (33,)]
METHODS = [
    ("Adam", {"weight_decay": 0.1}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    ("AdamW", {"betas": (0.5, 0.9), "eps": 1e-3}),
    ("AdamW", {"lr": torch.tensor(0.02), "fused": True}),
    ("NAdam", {"momentum_decay": 0.1}),
    ("RAdam", {"betas": (0.9, 0.8)}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("SGD", {"momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"weight_decay": 0.1}),
]
STATES = ["float32", "bfloat16", "compact", "8bit", ("8bit", "float32"), ("bfloat16", "8bit")]
ROUNDINGS = [
    *((torch.float32, each) for each in (None, "nearest")),
    *((BFLOAT16, each) for each in (None, "nearest", "stochastic", "remainder", "remainder8")),
    *((FLOAT16, each) for each in (None, "nearest", "stochastic")),
]


class Device:
    """The device of the tests: what it is asked for by all optimizers."""

    def __init__(self, order):
        self.order, self.deaf = order, ()
        self.made = []
        #: What was prepared for each step: whose it is, and by what the step goes.
        self.pipelines, self.rounds = [], []

    def streams(self, device):
        self.made.append(Queues(self.order, self.deaf))
        return self.made[-1]

    @property
    def chunks(self):
        """The chunks of the last step."""
        return [chunk for each in self.rounds[-1] for chunk in each.chunks]


def device_of_queues(order: str, monkeypatch: pytest.MonkeyPatch) -> Device:
    """Return the device on which all parameters are from now on, in chunks of 1024 elements."""
    made = Device(order)
    prepare = offload.Offload.prepare

    def noted(pipeline, items):
        made.pipelines.append(pipeline)
        made.rounds.append(prepare(pipeline, items))
        return made.rounds[-1]

    monkeypatch.setattr(offload.Offload, "prepare", noted)
    monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
    monkeypatch.setattr(offload, "CudaStreams", made.streams)
    monkeypatch.setattr(chunks, "CHUNK", 1024)
    return made


def parameters(dtype=torch.float32, shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def give_gradients(params, step, scale=1.0):
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        p.grad = (torch.randn(p.shape, generator=generator) * scale).to(p.dtype)


def trained(optimizer, params, steps=range(4), scale=1.0):
    for step in steps:
        give_gradients(params, step, scale)
        optimizer.step()
    return optimizer


def both(name, options, dtype=torch.float32, shapes=SHAPES):
    """An optimizer with and one without, each with its parameters, all alike."""
    pairs = []
    for offloads in (True, False):
        params = parameters(dtype, shapes)
        given = {"lr": 0.01, **options, "offload": offloads}
        pairs.append((getattr(ours, name)(params, **given), params))
    return pairs


def bits(tensor):
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.itemsize]
    )


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and torch.equal(bits(x), bits(y))
        for x, y in zip(a, b, strict=True)
    )


def tensors_of(optimizer):
    """All that an optimizer keeps, in one order."""
    states = optimizer.state_dict(packed=True)["packed_state"]
    return [torch.as_tensor(states[i][name]) for i in sorted(states) for name in sorted(states[i])]


def assert_same(one, other):
    assert same(one[1], other[1])
    assert same(tensors_of(one[0]), tensors_of(other[0]))
    assert one[0].state_dict()["state"].keys() == other[0].state_dict()["state"].keys()


def assert_pinned(optimizer):
    entries = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    ]
    assert entries
    assert all(value.is_pinned() and value.is_cpu for value in entries)
