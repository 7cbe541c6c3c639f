"""A model of torch's that trains in a moment, and the optimizers to train it with."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["NAMES", "VARIANTS", "backward", "model", "same", "train", "values"]

F = nn.functional

#: Class name and arguments.
VARIANTS = [
    ("Adam", {}),
    ("Adam", {"weight_decay": 0.1, "amsgrad": True}),
    ("Adam", {"betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}),
    (
        "Adam",
        {
            "lr": torch.tensor(0.01, dtype=torch.float64),
            "decoupled_weight_decay": True,
            "weight_decay": 0.1,
        },
    ),
    ("AdamW", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "momentum_decay": 0.1}),
    ("RAdam", {"weight_decay": 0.1, "betas": (0.9, 0.99)}),
    ("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "maximize": True}),
]
NAMES = ["Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD"]


def model(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def backward(net, step):
    """Give ``net`` the gradients of a loss that changes with ``step``."""
    generator = torch.Generator().manual_seed(step)
    dtype = next(net.parameters()).dtype
    x = torch.randn(16, 6, generator=generator).to(dtype)
    net.zero_grad()
    F.cross_entropy(net(x), torch.randint(0, 3, (16,), generator=generator)).backward()


def train(net, optimizer, steps=range(10)):
    for step in steps:
        backward(net, step)
        optimizer.step()


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
