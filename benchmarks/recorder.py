"""Trainings with a recorder and without: 50 steps, of which one is recorded."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checks import WrongResultError
from benchmarks.ratios import Pair
from benchmarks.tables import Row

_EVERY = 50
_AGAINST = "the same without"


def rows() -> list[Row]:
    """Return the rows; at most 2 % of the time are the recorder's."""
    return [
        Row(f"{_EVERY} steps of training, {name}", _AGAINST, 0.98, make, needs)
        for name, make, needs in (
            ("transformer of 4.7 M, PyTorch", _torch(_transformer, 2), ("torch",)),
            ("5,702 in 6 tensors, PyTorch", _torch(_perceptron, 32), ("torch",)),
            ("5,702 in 6 tensors, NumPy", _numpy, ()),
        )
    ]


def _transformer(quick: bool) -> tuple[Any, Any]:
    """Return a model of 6 layers of width 256, and data of 64 sequences of 8, which take little."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    layers = nn.TransformerEncoder(layer, 1 if quick else 6, enable_nested_tensor=False)
    return layers, torch.randn(64, 8, 256)


def _perceptron(quick: bool) -> tuple[Any, Any]:  # noqa: ARG001
    """Return three layers, and data of 1,024 examples."""
    import torch
    from torch import nn

    layers = nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 10)
    return nn.Sequential(*layers), torch.randn(1024, 64)


def _torch(made: Callable[[bool], tuple[Any, Any]], batch: int) -> Callable[[bool], Pair]:
    """Return what makes trainings to tell classes apart, of batches that are drawn."""

    def make(quick: bool) -> Pair:
        import torch
        from torch.nn import functional

        from adamas.torch import AdamW

        def training() -> tuple[Any, Any, Callable[[], None]]:
            torch.manual_seed(0)
            model, x = made(quick)
            optimizer = AdamW(model.named_parameters(), lr=1e-4, clip_norm=1.0)
            classes = torch.randint(0, 10, x.shape[:-1])
            drawing = torch.Generator().manual_seed(0)

            def train() -> None:
                for _ in range(_EVERY):
                    drawn = torch.randint(0, len(x), (batch,), generator=drawing)
                    optimizer.zero_grad()
                    scores = model(x[drawn])
                    scores = scores.view(-1, scores.shape[-1])
                    loss = functional.cross_entropy(scores, classes[drawn].view(-1))
                    loss.backward()
                    optimizer.step()

            return [*model.parameters()], optimizer, train

        return _pair(training, lambda ours, theirs: all(map(torch.equal, ours, theirs)))

    return make


def _numpy(quick: bool) -> Pair:  # noqa: ARG001
    import adamas

    def training() -> tuple[Any, Any, Callable[[], None]]:
        random = np.random.default_rng(0)
        x = random.standard_normal((1024, 64), np.float32)
        wanted = np.eye(10, dtype=np.float32)[random.integers(0, 10, 1024)]
        sides = [(64, 50), (50, 40), (40, 10)]
        weights = [(0.1 * random.standard_normal(s)).astype(np.float32) for s in sides]
        biases = [np.zeros(each, np.float32) for _, each in sides]
        optimizer = adamas.AdamW([weights, biases], lr=1e-4, clip_norm=1.0)

        def train() -> None:
            for _ in range(_EVERY):
                drawn = random.integers(0, 1024, 32)
                inputs = [x[drawn]]
                for w, b in zip(weights, biases, strict=True):
                    inputs.append(np.maximum(inputs[-1] @ w + b, 0))
                back = (inputs.pop() - wanted[drawn]) / np.float32(320)
                of_weights, of_biases = [], []
                for w in reversed(weights):
                    of_weights.insert(0, inputs[-1].T @ back)
                    of_biases.insert(0, back.sum(0))
                    back = (back @ w.T) * (inputs.pop() > 0)
                optimizer.step([of_weights, of_biases])

        return [*weights, *biases], optimizer, train

    return _pair(training, lambda ours, theirs: all(map(np.array_equal, ours, theirs)))


def _pair(
    training: Callable[[], tuple[Any, Any, Callable[[], None]]],
    are_equal: Callable[[Any, Any], bool],
) -> Pair:
    """Return a training with a recorder beside one without."""
    import adamas
    from adamas import records

    ours, optimizer, recorded = training()
    theirs, _, plain = training()
    folder = tempfile.mkdtemp()
    weakref.finalize(recorded, shutil.rmtree, folder)
    path = Path(folder) / "run.jsonl"
    adamas.Recorder(optimizer, path)

    def check() -> None:
        recorded()
        plain()
        if not are_equal(ours, theirs):
            raise WrongResultError("A recorded training came to other bits.")
        (opening,) = records.read(path)
        if [line["step"] for line in opening.steps] != [1, _EVERY]:
            raise WrongResultError("A recorded training has left other lines.")

    return Pair(recorded, plain, check)
