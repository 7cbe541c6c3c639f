"""A training in one process beside the same training over several, whose bits must be the same.

Weights, inputs and targets are small whole numbers and processes are a power of two, so gradients
are exact however they are added up, and everything is compared with ``==``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

import adamas.torch as ours
from tests.support.copied import left_by_steps

__all__ = ["Language", "Twins", "assert_same", "cut", "here", "whole", "whole_numbers"]

WORDS, WIDTH, LENGTH = 16, 8, 4


def whole_numbers(shape: Any, seed: int, largest: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, tuple(shape), generator=generator).float()


def balanced(shape: Any, seed: int) -> Tensor:
    """Rows of as many 1 as -1: of mean 0 and variance 1, so that a norm of them is exact."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    signs = torch.tensor([1.0, -1.0]).repeat(columns // 2)
    return torch.stack([signs[torch.randperm(columns, generator=generator)] for _ in range(rows)])


def cut(value: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that all processes have, laid out as ``like`` is: by torch's own cutting."""
    if not isinstance(like, DTensor):
        return value
    value = value.detach().clone()
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def here(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Language(nn.Module):
    """A little of what language models have: an embedding, a norm, a block, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=0)
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        # Detached: the gradient of its input is the one thing here that a norm has to round.
        x = x + self.down(self.up(self.norm(x.detach())).relu())
        return self.head(x)


class Twins:
    """The same model twice, each with an optimizer."""

    def __init__(
        self,
        plain: nn.Module,
        spread: nn.Module,
        make: Callable[..., Any] = ours.AdamW,
        share: tuple[int, int] = (0, 1),
        **options: Any,
    ) -> None:
        """Take the model of one process and that of several.

        ``share``: which part of the examples this process has, and of how many.
        """
        self.plain, self.spread, self.share = plain, spread, share
        options = {"lr": 0.25, **options}
        self.optimizers = [make(net.parameters(), **options) for net in (plain, spread)]

    def set_weights(self, step: int) -> None:
        """Give both whole numbers, from which gradients are exact."""
        dtypes = [p.dtype for p in self.plain.parameters()]
        for module in self.spread.modules():
            if isinstance(module, FSDPModule):  # whose parameters may be gathered ones now
                module.reshard()
        for net in (self.plain, self.spread):
            with torch.no_grad():
                for i, (name, p) in enumerate(net.named_parameters()):
                    draw = balanced if "embed" in name else whole_numbers
                    p.copy_(cut(draw(p.shape, 100 * step + i).to(dtypes[i]), p))

    def examples(self, seed: int, *, shared: bool) -> tuple[Tensor, Tensor]:
        """Return words and what their logits are weighted by: all, or this process's share."""
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(0, WORDS, (8, LENGTH), generator=generator)
        weights = whole_numbers((8, LENGTH, WORDS), seed)
        if not shared:
            return words, weights
        index, count = self.share
        return words.chunk(count)[index], weights.chunk(count)[index]

    def loss(self, net: nn.Module, seed: int) -> Tensor:
        words, weights = self.examples(seed, shared=net is self.spread)
        return (net(words) * weights).sum() / len(words)

    def backward(self, step: int) -> None:
        for net, optimizer in zip((self.plain, self.spread), self.optimizers, strict=True):
            optimizer.zero_grad()
            self.loss(net, step).backward()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def train(self, steps: int = 4) -> None:
        for step in range(steps):
            self.set_weights(step)
            self.backward(step)
            self.step()
            self.compare(step)

    def compare(self, about: Any) -> None:
        """Compare norms, verdicts, parameters and all that is kept for them."""
        one, other = self.optimizers
        norms = one.gradient_norm, other.gradient_norm
        assert norms[0] == norms[1], (norms, about)
        assert one.skipped == other.skipped, about
        for (name, a), b in zip(
            self.plain.named_parameters(), self.spread.parameters(), strict=True
        ):
            assert_same(a, b, (name, about))
        for a, b in zip(*map(left_by_steps, self.optimizers), strict=True):
            assert_same(a, b, ("copy", about))
        saved = [optimizer.state_dict()["state"] for optimizer in self.optimizers]
        assert saved[0].keys() == saved[1].keys()
        for place, kept in saved[0].items():
            assert kept.keys() == saved[1][place].keys()
            for entry, value in kept.items():
                assert_same(value, saved[1][place][entry], (place, entry, about))


def assert_same(plain: Tensor, spread: Tensor, about: Any) -> None:
    """Compare what one process has with the part of it that this one has of several."""
    assert torch.equal(here(spread), here(cut(plain.detach(), spread))), about
