"""Runs of all front ends, on each route, whose settings change, and all that is seen of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import adamas
import adamas.torch as ours
from adamas.engines.triton import devices
from adamas.torch import host_memory
from adamas.torch.routes import offload
from tests.support.queues import Queues

__all__ = [
    "METHODS",
    "NEW",
    "ROUTES",
    "arrays",
    "bits",
    "every_front_end",
    "everything",
    "made",
    "numpy_everything",
    "numpy_train",
    "parameters",
    "params_of",
    "take_route",
    "train",
]

SHAPES = [(5, 7), (40,), ()]
#: Dtype, which are strided, options; how parameters are stepped.
ROUTES = {
    "native, alone": (torch.float32, (), {}),
    "native": (torch.float32, (), {"statistics": True}),
    "native, in turn": (torch.float64, (), {"copy_to": torch.bfloat16, "ema": 0.9}),
    "native, small": (torch.bfloat16, (), {"state": "8bit", "rounding": "remainder"}),
    "operations": (torch.float32, (0, 1, 2), {"ema": 0.9}),
    "native beside operations": (torch.float32, (1,), {"ema": 0.9}),
    "device": (torch.float32, (), {}),
    "offload": (torch.float32, (), {"offload": True}),
}
METHODS = ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD"]
NEW = {"clip_norm": 0.5, "on_nonfinite": "skip"}


def take_route(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let parameters be stepped by a route that this machine may not have."""
    if name == "device" and not torch.cuda.is_available():
        pytest.importorskip("triton", reason="the interpreter is Triton's")
        monkeypatch.setattr(devices, "DEVICE_TYPES", ("cpu",))
    if name == "offload":
        monkeypatch.setattr(host_memory, "is_offloaded", lambda parameter: True)
        monkeypatch.setattr(offload, "CudaStreams", lambda device: Queues("late"))


def parameters(dtype=torch.float32, strided=(), device="cpu"):
    generator = torch.Generator().manual_seed(0)
    made = []
    for i, shape in enumerate(SHAPES):
        values = torch.randn((*shape, 2), generator=generator).to(device, dtype)[..., 0]
        made.append(nn.Parameter(values if i in strided else values.contiguous()))
    return made


def made(kind="AdamW", route="native", **more):
    dtype, strided, options = ROUTES[route]
    if kind == "SGD":
        options = {"momentum": 0.9, **options}
        if options.get("state") == "8bit":
            options["state"] = "bfloat16"
    device = "cuda" if route == "device" and torch.cuda.is_available() else "cpu"
    values = parameters(dtype, strided, device)
    return getattr(ours, kind)(values, lr=0.05, **options, **more)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def train(optimizer, first, last, bad=()):
    """Make the steps from ``first`` on, up to ``last``; those in ``bad`` with a NaN."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for i, p in enumerate(params_of(optimizer)):
            gradient = torch.randn(p.shape, generator=generator)
            if step in bad and i == 1:
                gradient[3] = float("nan")
            p.grad = gradient.to(p.device, p.dtype)
        optimizer.step()
    return optimizer


def bits(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        return value.dtype, tuple(value.shape), bytes(value.reshape(-1).view(torch.uint8).numpy())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(each) for key, each in value.items()}
    return [bits(each) for each in value] if isinstance(value, (list, tuple)) else value


def everything(optimizer):
    """Parameters, state, groups, copies, what was left out, and the last norm."""
    saved = optimizer.state_dict()
    saved.pop("phase", None)
    seen = [params_of(optimizer), saved, optimizer.copies, optimizer.skipped]
    return copy.deepcopy(bits([*seen, repr(optimizer.gradient_norm)]))


def arrays():
    random = np.random.default_rng(0)
    return {"w": random.normal(size=(5, 7)).astype(np.float32), "b": random.normal(size=40)}


def numpy_train(optimizer, first, last, bad=()):
    for step in range(first, last):
        random = np.random.default_rng(100 + step)
        gradients = {
            name: random.normal(size=p.shape).astype(p.dtype)
            for name, p in optimizer.named_parameters().items()
        }
        if step in bad:
            gradients["b"][3] = np.nan
        optimizer.step(gradients)
    return optimizer


def numpy_everything(optimizer):
    saved = optimizer.state_dict()
    saved.pop("phase", None)
    return copy.deepcopy(
        [bits(optimizer.named_parameters()), bits(saved), repr(optimizer.gradient_norm)]
    )


def every_front_end():
    return [train(made(), 0, 2), numpy_train(adamas.AdamW(arrays(), lr=0.05), 0, 2)]
