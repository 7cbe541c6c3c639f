"""The main job on real data: learning to read digits with three methods side by side.

The 1,797 handwritten digits that ship with scikit-learn (8 × 8 pixels; Alpaydin & Kaynak 1998), a
fifth of them held out; a network of one hidden layer, written in NumPy; and Momentum, RMSProp and
Adam, each from the same start and on the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.extras import require
from adamas.numpy import Adam, Momentum, Optimizer, RMSProp
from adamas.palette import COLOURS
from adamas.smoothing import ema

__all__ = [
    "EPOCHS",
    "METHODS",
    "Digits",
    "Run",
    "draw",
    "initial_weights",
    "load_digits",
    "loss_and_gradients",
    "steps_of",
    "train",
]

Array = NDArray[Any]
Weights = dict[str, Array]

BATCH = 64
EPOCHS = 160
HIDDEN = 256

#: Each method, and the best rate for it of 1, 0.3, 0.1 … 0.0003: by the loss on the training set,
#: without a look at the held-out images. It falls linearly to 0.
METHODS: dict[str, tuple[type[Momentum | RMSProp | Adam], float]] = {
    "Momentum": (Momentum, 1.0),
    "RMSProp": (RMSProp, 0.03),
    "Adam": (Adam, 0.03),
}


@dataclass(frozen=True)
class Digits:
    """Images (float32, 0 to 1, one row of 64 pixels each) and labels (0 to 9)."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


@dataclass(frozen=True)
class Run:
    """What became of one method."""

    method: str
    #: Mean cross-entropy of each batch, in nats, in order.
    losses: Array
    #: Mean cross-entropy over the whole training set in the end, in nats.
    final_loss: float
    #: Fraction of the held-out images read correctly.
    accuracy: float
    #: Of the whole training, and of it in the optimizer; in seconds.
    seconds: float
    optimizer_seconds: float

    @property
    def steps_per_second(self) -> float:
        """Steps of training per second, gradients included."""
        return len(self.losses) / self.seconds


def load_digits(seed: int = 0) -> Digits:
    """Return the digits, a fifth of them held out, chosen by ``seed``."""
    datasets = require("sklearn.datasets", "adamas demo", "demo", "scikit-learn")
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = (images / 16).astype(np.float32)[order], labels[order]
    held_out = len(labels) // 5
    return Digits(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out])


def train(
    digits: Digits,
    method: str,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Run:
    """Train the network by ``method`` (a key of ``METHODS``); ``progress`` is called each step."""
    random = np.random.default_rng(seed)
    weights = initial_weights(random)
    kind, rate = METHODS[method]
    steps = steps_of(digits, epochs)
    optimizer: Optimizer = kind(weights, lr=lambda step: rate * (1 - (step - 1) / steps))
    losses: list[float] = []
    in_optimizer = 0.0
    begin = time.perf_counter()
    for batch in _batches(len(digits.labels), epochs, random):
        images = _moved(digits.images[batch], random)
        loss, gradients = loss_and_gradients(weights, images, digits.labels[batch])
        before = time.perf_counter()
        optimizer.step(gradients)
        in_optimizer += time.perf_counter() - before
        losses.append(loss)
        progress()
    seconds = time.perf_counter() - begin
    final_loss, _ = loss_and_gradients(weights, digits.images, digits.labels)
    guesses = _scores(weights, digits.test_images)[1].argmax(axis=1)
    accuracy = float(np.mean(guesses == digits.test_labels))
    return Run(method, np.array(losses), final_loss, accuracy, seconds, in_optimizer)


def steps_of(digits: Digits, epochs: int) -> int:
    """Return how many steps ``train`` makes."""
    return epochs * (len(digits.labels) // BATCH)


def draw(runs: list[Run], path: Path) -> None:
    """Write a picture of the loss curves, smoothed by ``adamas.ema``, as PNG to ``path``."""
    matplotlib = require("matplotlib", "adamas demo", "demo", "matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for run in runs:
        colour = COLOURS[run.method]
        steps = np.arange(1, len(run.losses) + 1)
        axes.plot(steps, run.losses, color=colour, alpha=0.1, linewidth=0.8)
        label = f"{run.method}: {run.accuracy:.1%} of held-out images"
        axes.plot(steps, ema(run.losses, 0.95), color=colour, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("step (batches of 64 images)")
    axes.set_ylabel("cross-entropy of the batch (nats)")
    axes.set_title("Learning to read 1,438 handwritten digits")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(title="smoothed by adamas.ema, β = 0.95", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)


def initial_weights(random: np.random.Generator) -> Weights:
    """Return weights of a width that keeps the size of signals (He et al. 2015), no biases yet."""

    def layer(inputs: int, outputs: int) -> Array:
        spread = np.sqrt(2 / inputs)
        return (random.standard_normal((inputs, outputs)) * spread).astype(np.float32)

    return {
        "hidden": layer(64, HIDDEN),
        "hidden_bias": np.zeros(HIDDEN, np.float32),
        "output": layer(HIDDEN, 10),
        "output_bias": np.zeros(10, np.float32),
    }


def _batches(count: int, epochs: int, random: np.random.Generator) -> Iterator[Array]:
    """Yield the indices of each batch: every epoch in a new order, what is left over left out."""
    for _ in range(epochs):
        order = random.permutation(count)
        for first in range(0, count - BATCH + 1, BATCH):
            yield order[first : first + BATCH]


def _moved(images: Array, random: np.random.Generator) -> Array:
    """Return the images, each moved by up to one pixel in each direction: more to learn from."""
    count = len(images)
    padded = np.zeros((count, 10, 10), np.float32)
    padded[:, 1:9, 1:9] = images.reshape(count, 8, 8)
    down, right = random.integers(0, 3, (2, count, 1, 1))
    rows, columns = np.arange(8)[:, None] + down, np.arange(8) + right
    return padded[np.arange(count)[:, None, None], rows, columns].reshape(count, 64)


def _scores(weights: Weights, images: Array) -> tuple[Array, Array]:
    hidden = np.maximum(images @ weights["hidden"] + weights["hidden_bias"], 0)
    return hidden, hidden @ weights["output"] + weights["output_bias"]


def loss_and_gradients(weights: Weights, images: Array, labels: Array) -> tuple[float, Weights]:
    """Return the mean cross-entropy of softmax, and its gradient for each array of weights."""
    hidden, scores = _scores(weights, images)
    rows = np.arange(len(labels))
    scores = scores - scores.max(axis=1, keepdims=True)
    odds = np.exp(scores)
    total = odds.sum(axis=1, keepdims=True)
    loss = float(np.mean(np.log(total[:, 0]) - scores[rows, labels]))
    error = odds / total
    error[rows, labels] -= 1
    error /= np.float32(len(labels))
    back = (error @ weights["output"].T) * (hidden > 0)
    return loss, {
        "hidden": images.T @ back,
        "hidden_bias": back.sum(axis=0),
        "output": hidden.T @ error,
        "output_bias": error.sum(axis=0),
    }
