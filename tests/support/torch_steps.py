"""Parameters with gradients for steps of torch's on each route, and what such steps leave."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["METHODS", "ROUTES", "everything", "made", "same"]

#: Parameters that take one way or another, and what sends them there.
ROUTES = {
    "native": {},
    "plain": {"strided": True},
    "mixed": {"strided": "last"},
}


def made(route="native", shapes=((4, 6), (5,), (3, 2)), seed=0):
    """Return parameters with gradients."""
    strided = ROUTES[route].get("strided")
    generator = torch.Generator().manual_seed(seed)
    parameters = []
    for i, shape in enumerate(shapes):
        is_strided = strided is True or (strided == "last" and i == len(shapes) - 1)
        value = torch.randn(*shape, 2 if is_strided else 1, generator=generator)[..., 0]
        p = nn.Parameter(value if is_strided else value.contiguous())
        assert p.is_contiguous() == (not is_strided)
        p.grad = torch.randn(shape, generator=generator)
        parameters.append(p)
    return parameters


def everything(optimizer):
    """Return copies of parameters and state."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return copy.deepcopy(
        ([p.detach() for p in parameters], [dict(optimizer.state.get(p, {})) for p in parameters])
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


METHODS = [
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "ema": 0.9, "statistics": True}),
    ("AdamW", {"clip_norm": 0.5, "copy_to": torch.bfloat16}),
    ("AdamW", {"state": "8bit", "seed": 3}),
    ("AdamW", {"on_nonfinite": "skip"}),
    ("NAdam", {}),
    ("RAdam", {"betas": (0.9, 0.8)}),
    ("RMSprop", {}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "ema": 0.9}),
]
