"""Models and data to compare trainings on, made from what is installed: no download.

``digits``   a multilayer perceptron on scikit-learn's handwritten digits
``letters``  a small GPT over letters, on source of Python's standard library
``words``    the next word after six, on docstrings of that library: tables of a few thousand words,
             of which a batch holds some hundreds (a model as in Bengio, Ducharme, Vincent & Jauvin
             2003)
"""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LIBRARY = Path(sysconfig.get_path("stdlib"))


@dataclass(frozen=True)
class Task:
    """A model and data; ``batch`` and ``held_out`` give what ``loss`` takes."""

    title: str
    seeds: int
    steps: int
    options: dict[str, float]
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Tensor]
    held_out: Tensor
    #: In the model's dtype, but for the cross-entropy, which is float32's.
    loss: Callable[[nn.Module, Tensor], Tensor]


# ── digits ─────────────────────────────────────────────────────────────────────────────────────


def digits() -> Task:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    rows = torch.cat(
        [torch.tensor(data.data / 16.0), torch.tensor(data.target[:, None], dtype=torch.float64)], 1
    ).float()[order]
    train, held_out = rows[:1400], rows[1400:]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        pixels = batch[:, :64].to(next(model.parameters()).dtype)
        return nn.functional.cross_entropy(model(pixels).float(), batch[:, 64].long())

    return Task(
        title="digits, MLP",
        seeds=12,
        steps=1500,
        options={"lr": 1e-3, "weight_decay": 0.1},
        model=lambda: nn.Sequential(
            nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
        ),
        batch=lambda generator: train[torch.randint(len(train), (64,), generator=generator)],
        held_out=held_out,
        loss=loss,
    )


# ── letters ────────────────────────────────────────────────────────────────────────────────────


class Block(nn.Module):
    """A layer of a GPT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.join = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        parts = self.attend(self.before(x)).view(rows, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.join(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.think(self.between(x))


class GPT(nn.Module):
    """A small GPT over letters."""

    def __init__(self, letters: int, length: int, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        x = self.letter(x) + self.place.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def source() -> str:
    """Return the source of part of Python's standard library."""
    names = ("argparse", "ast", "datetime", "doctest", "inspect", "random", "tarfile", "typing")
    files = [LIBRARY / f"{name}.py" for name in names]
    return "".join(path.read_text("utf-8") for path in files if path.exists())


def letters() -> Task:
    text = source()
    alphabet = sorted(set(text))
    place = {letter: i for i, letter in enumerate(alphabet)}
    codes = torch.tensor([place[letter] for letter in text])
    length = 64
    cut = int(0.95 * len(codes))
    held_out = codes[cut:]
    held_out = held_out[: len(held_out) // (length + 1) * (length + 1)].view(-1, length + 1)[:256]

    def batch(generator: torch.Generator) -> Tensor:
        starts = torch.randint(cut - length - 1, (12,), generator=generator)
        return codes[starts[:, None] + torch.arange(length + 1)]

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        guesses = model(rows[:, :-1]).float()
        return nn.functional.cross_entropy(guesses.flatten(0, 1), rows[:, 1:].flatten())

    return Task(
        title="letters, GPT",
        seeds=6,
        steps=750,
        options={"lr": 2e-3, "weight_decay": 0.1},
        model=lambda: GPT(len(alphabet), length),
        batch=batch,
        held_out=held_out,
        loss=loss,
    )


# ── words ──────────────────────────────────────────────────────────────────────────────────────


def docstrings() -> Iterator[str]:
    """Yield the docstrings of the modules that lie in the library's own folder."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(LIBRARY.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, documented):
                yield ast.get_docstring(node) or ""


class NextWord(nn.Sequential):
    """The next word, from a few before it."""

    def __init__(self, words: int, before: int, width: int = 32, hidden: int = 64) -> None:
        table = nn.Embedding(words, width)
        super().__init__(
            table,
            nn.Flatten(),
            nn.Linear(before * width, hidden),
            nn.GELU(),
            nn.Linear(hidden, words),
        )
        nn.init.normal_(table.weight, std=0.1)


def words() -> Task:
    text = [word for each in docstrings() for word in re.findall("[a-z]+", each.lower())]
    # A multiple of 256 rows: torchao leaves a table in float32 whose size is none.
    known = sorted(word for word, _ in Counter(text).most_common(4095))
    place = {word: i for i, word in enumerate(known, 1)}  # 0 stands for all others
    codes = torch.tensor([place.get(word, 0) for word in text])
    before = 6
    rows = codes.unfold(0, before + 1, 1)
    # Every tenth stretch of a thousand words is held out.
    is_held_out = torch.arange(len(rows)) // 1000 % 10 == 9
    train, held_out = rows[~is_held_out], rows[is_held_out][::4]

    return Task(
        title="words, embeddings",
        seeds=6,
        steps=700,
        options={"lr": 5e-3, "weight_decay": 0.1},
        model=lambda: NextWord(len(known) + 1, before),
        batch=lambda generator: train[torch.randint(len(train), (128,), generator=generator)],
        held_out=held_out,
        loss=lambda model, rows: nn.functional.cross_entropy(
            model(rows[:, :-1]).float(), rows[:, -1]
        ),
    )


TASKS = {"digits": digits, "letters": letters, "words": words}
