"""The main job on real data: methods that learn to read digits, side by side.

The 1,797 handwritten digits that ship with scikit-learn (8 × 8 pixels; Alpaydin & Kaynak 1998), a
fifth of them held out; a network of one hidden layer, written in NumPy; and the methods, each from
the same starts and on the same batches, for several seeds.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.extras import require
from adamas.methods import METHODS
from adamas.palette import COLOURS
from adamas.smoothing import ema

__all__ = [
    "EPOCHS",
    "GRID",
    "RATES",
    "SEEDS",
    "Digits",
    "Outcome",
    "Run",
    "compared",
    "draw",
    "initial_weights",
    "load_digits",
    "loss_and_gradients",
    "plot",
    "spread",
    "steps_of",
    "train",
    "verdicts",
]

Array = NDArray[Any]
Weights = dict[str, Array]

BATCH = 64
EPOCHS = 100
HIDDEN = 256
SEEDS = 5

#: The learning rates that were tried for each method.
GRID = (10.0, *(digit / 10**places for places in range(4) for digit in (5, 2, 1)))

#: The best of ``GRID`` for each method, by the mean loss on the training set at the end: over seeds
#: that the demo does not show, and without a look at the held-out images. ``python -m benchmarks
#: rates`` makes the choice anew. The rate falls linearly to 0.
RATES = {"Momentum": 5.0, "RMSProp": 0.02, "Adam": 0.02, "note": 0.02}


@dataclass(frozen=True)
class Digits:
    """Images (float32, 0 to 1, one row of 64 pixels each) and labels (0 to 9)."""

    images: Array
    labels: Array
    test_images: Array
    test_labels: Array


@dataclass(frozen=True)
class Run:
    """What became of one training."""

    method: str
    #: The learning rate of the first step.
    lr: float
    #: Mean cross-entropy of each batch, in nats, in order.
    losses: Array
    #: Mean cross-entropy over the whole training set in the end, in nats.
    final_loss: float
    #: Fraction of the held-out images read correctly.
    accuracy: float
    #: Of the whole training, and of it in the optimizer; in seconds.
    seconds: float
    optimizer_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What became of one method: a run for each seed."""

    runs: tuple[Run, ...]

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.runs[0].method

    @property
    def lr(self) -> float:
        """The learning rate of the first step."""
        return self.runs[0].lr

    @property
    def final_losses(self) -> Array:
        """The final loss of each run."""
        return np.array([run.final_loss for run in self.runs])

    @property
    def accuracies(self) -> Array:
        """The accuracy of each run."""
        return np.array([run.accuracy for run in self.runs])

    @property
    def seconds(self) -> float:
        """The time of all runs together."""
        return sum(run.seconds for run in self.runs)

    @property
    def optimizer_share(self) -> float:
        """The fraction of the time that was the optimizer's."""
        return sum(run.optimizer_seconds for run in self.runs) / self.seconds

    @property
    def steps_per_second(self) -> float:
        """Steps of training per second, gradients included."""
        return sum(len(run.losses) for run in self.runs) / self.seconds


def load_digits(seed: int = 0) -> Digits:
    """Return the digits, a fifth of them held out, chosen by ``seed``."""
    datasets = require("sklearn.datasets", "adamas demo", "demo", "scikit-learn")
    images, labels = _read(datasets)
    order = np.random.default_rng(seed).permutation(len(labels))
    images, labels = images[order], labels[order]
    held_out = len(labels) // 5
    return Digits(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out])


@functools.cache
def _read(datasets: Any) -> tuple[Array, Array]:
    """Return all images and labels, which scikit-learn reads from text."""
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels


def train(
    digits: Digits,
    method: str,
    *,
    lr: float | None = None,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Callable[[], object] = lambda: None,
) -> Run:
    """Train the network by ``method`` (a key of ``METHODS``); ``progress`` is called each step.

    ``lr`` is the rate of the first step, by default the method's own of ``RATES``. Matrices of 64
    columns are multiplied by one thread: two would wait for each other for longer than they work.
    """
    threadpoolctl = require("threadpoolctl", "adamas demo", "demo", "threadpoolctl")
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        rate = RATES[method] if lr is None else lr
        return _trained(digits, method, rate, epochs, seed, progress)


def compared(
    method: str,
    *,
    seeds: Sequence[int],
    lr: float | None = None,
    epochs: int = EPOCHS,
    progress: Callable[[], object] = lambda: None,
) -> Outcome:
    """Train the network by ``method`` for each seed, on the images that are split by that seed."""
    return Outcome(
        tuple(
            train(load_digits(seed), method, lr=lr, epochs=epochs, seed=seed, progress=progress)
            for seed in seeds
        )
    )


def _trained(
    digits: Digits,
    method: str,
    rate: float,
    epochs: int,
    seed: int,
    progress: Callable[[], object],
) -> Run:
    random = np.random.default_rng(seed)
    weights = initial_weights(random)
    steps = steps_of(digits, epochs)
    optimizer = METHODS[method](weights, lr=lambda step: rate * (1 - (step - 1) / steps))
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
    return Run(method, rate, np.array(losses), final_loss, accuracy, seconds, in_optimizer)


def steps_of(digits: Digits, epochs: int) -> int:
    """Return how many steps ``train`` makes."""
    return epochs * (len(digits.labels) // BATCH)


# -- who is ahead, and whether that is luck -------------------------------------------------------


def spread(values: Array) -> float:
    """Return the standard deviation over seeds: of all seeds, of which these are a sample."""
    return float(np.std(values, ddof=1))


def verdicts(outcomes: Sequence[Outcome]) -> list[str]:
    """Return sentences that say who is ahead, and whether by more than the spread of the seeds."""
    if len(outcomes) < 2:
        return []
    if len(outcomes[0].runs) < 2:
        return ["One seed shows no spread: who is ahead may be luck. Give --seeds 2 or more."]
    return [
        _verdict("Final loss", {each.method: each.final_losses for each in outcomes}),
        _verdict("Held-out images", {each.method: -each.accuracies for each in outcomes}),
        "By more than the spread: by more than both standard deviations together.",
    ]


def _verdict(what: str, values: Mapping[str, Array]) -> str:
    """Return who is ahead: who has the lowest mean."""
    ahead, *others = sorted(values, key=lambda method: float(np.mean(values[method])))

    def is_apart(method: str) -> bool:
        distance = float(np.mean(values[method]) - np.mean(values[ahead]))
        return distance > spread(values[ahead]) + spread(values[method])

    beaten = [method for method in others if is_apart(method)]
    near = [method for method in others if method not in beaten]
    if not beaten:
        names = _listed([ahead, *near])
        return f"{what}: {names} differ by less than the spread; who is ahead may be luck."
    told = f"{what}: {ahead} is ahead of {_listed(beaten)} by more than the spread"
    return f"{told}, but not of {_listed(near)}." if near else f"{told}."


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


# -- the picture ----------------------------------------------------------------------------------


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a picture of the loss curves as PNG to ``path``."""
    figures = require("matplotlib.figure", "adamas demo", "demo", "matplotlib")
    figure = figures.Figure(figsize=(8, 5), layout="constrained")
    plot(figure.subplots(), outcomes)
    figure.savefig(path, dpi=120, format="png")


def plot(axes: Any, outcomes: Sequence[Outcome]) -> None:
    """Draw the loss curves, smoothed by ``adamas.ema``, on matplotlib's ``axes``."""
    for outcome in outcomes:
        colour = COLOURS[outcome.method]
        curves = np.array([ema(run.losses, 0.95) for run in outcome.runs])
        # As many points as can be told apart.
        drawn = np.unique(np.linspace(0, curves.shape[1] - 1, 400).astype(int))
        steps, curves = drawn + 1, curves[:, drawn]
        lowest, highest = curves.min(axis=0), curves.max(axis=0)
        axes.fill_between(steps, lowest, highest, color=colour, alpha=0.25, linewidth=0)
        axes.plot(steps, curves.mean(axis=0), color=colour, label=_label(outcome))
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss of the batch")
    seeds = len(outcomes[0].runs)
    axes.set_title("one seed" if seeds == 1 else f"mean of {seeds} seeds, from lowest to highest")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(title="held-out images read", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _label(outcome: Outcome) -> str:
    accuracies = outcome.accuracies
    around = f" ± {100 * spread(accuracies):.1f}" if len(accuracies) > 1 else ""
    return f"{outcome.method}: {100 * accuracies.mean():.1f}{around} %"


# -- the network ----------------------------------------------------------------------------------


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
