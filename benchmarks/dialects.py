"""How far adamas' dialects end from the libraries they are named after.

Both step the same parameters with the same gradients. A distance is the largest difference of any
parameter after all steps, in learning rates; roundings differ, and accumulate.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import adamas
from benchmarks.tables import Row, Run, Stored, Table, markdown, why_not

LR, STEPS, COUNT = 1e-3, 60, 500
#: The packages whose versions the page tells.
PACKAGES = ("torch", "optax", "keras")

Array = Any
#: Takes a start and the gradients of all steps; returns where it ends.
Trace = Callable[[Array, Array], Array]


def drawn() -> tuple[Array, Array]:
    """Return a start and gradients of sizes from 1e-8 to 1, so that ε matters for some of them."""
    random = np.random.default_rng(0)
    start = random.standard_normal(COUNT).astype(np.float32)
    sizes = np.logspace(-8, 0, COUNT)
    gradients = random.standard_normal((STEPS, COUNT)) * sizes
    return start, gradients.astype(np.float32)


def own(method: str, dialect: str, **options: Any) -> Trace:
    def run(start: Array, gradients: Array) -> Array:
        p = start.copy()
        optimizer = getattr(adamas, method)(p, lr=LR, dialect=dialect, **options)
        for each in gradients:
            optimizer.step(each)
        return p

    return run


def torchs(method: str, **options: Any) -> Trace:
    def run(start: Array, gradients: Array) -> Array:
        import torch

        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        optimizer = getattr(torch.optim, method)([p], lr=LR, **options)
        for each in gradients:
            p.grad = torch.from_numpy(each)
            optimizer.step()
        return p.detach().numpy()

    return run


def optaxs(method: str, **options: Any) -> Trace:
    def run(start: Array, gradients: Array) -> Array:
        import jax
        import jax.numpy as jnp
        import optax

        optimizer = getattr(optax, method)(LR, **options)
        p = jnp.asarray(start)
        state = optimizer.init(p)
        update = jax.jit(optimizer.update)
        for each in gradients:
            change, state = update(jnp.asarray(each), state, p)
            p = optax.apply_updates(p, change)
        return np.asarray(p)

    return run


def keras(method: str, **options: Any) -> Trace:
    def run(start: Array, gradients: Array) -> Array:
        os.environ.setdefault("KERAS_BACKEND", "jax")
        import keras

        p = keras.Variable(start)
        optimizer = getattr(keras.optimizers, method)(learning_rate=LR, **options)
        optimizer.build([p])
        for each in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(each)])
        return np.asarray(p.value)

    return run


#: What is compared: title, dialect's run, library's run.
PAIRS: tuple[tuple[str, Trace, Trace], ...] = (
    ("torch.optim.Adam", own("Adam", "torch"), torchs("Adam")),
    ("torch.optim.Adam, amsgrad", own("Adam", "torch", amsgrad=True), torchs("Adam", amsgrad=True)),
    (
        "torch.optim.Adam, weight_decay 0.1",
        own("Adam", "torch", weight_decay=0.1),
        torchs("Adam", weight_decay=0.1),
    ),
    ("torch.optim.AdamW", own("AdamW", "torch"), torchs("AdamW")),
    ("torch.optim.RAdam", own("RAdam", "torch"), torchs("RAdam")),
    ("torch.optim.RMSprop", own("RMSProp", "torch"), torchs("RMSprop")),
    ("optax.adam", own("Adam", "optax"), optaxs("adam")),
    ("optax.adam, nesterov", own("Adam", "optax", nesterov=True), optaxs("adam", nesterov=True)),
    ("optax.adamw", own("AdamW", "optax"), optaxs("adamw")),
    ("optax.rmsprop", own("RMSProp", "optax"), optaxs("rmsprop")),
    ("keras.optimizers.Adam", own("Adam", "keras"), keras("Adam")),
    (
        "keras.optimizers.Adam, amsgrad",
        own("Adam", "keras", amsgrad=True),
        keras("Adam", amsgrad=True),
    ),
    ("keras.optimizers.AdamW", own("AdamW", "keras"), keras("AdamW")),
    ("keras.optimizers.RMSprop", own("RMSProp", "keras"), keras("RMSprop")),
)


#: By the beginning of a title.
_NEEDS = {"torch": ("torch",), "optax": ("jax", "optax"), "keras": ("keras", "jax")}


def distance(one: Trace, other: Trace) -> float:
    """Return how far two runs end from each other, in learning rates."""
    start, gradients = drawn()
    return float(np.abs(one(start, gradients) - other(start, gradients)).max()) / LR


def rows() -> tuple[Row, ...]:
    """Return a row for each dialect of a method."""
    return tuple(
        Row(
            title,
            "",
            None,
            functools.partial(_distance, own, library),
            _NEEDS[title.partition(".")[0]],
        )
        for title, own, library in PAIRS
    )


def _distance(own: Trace, library: Trace, quick: bool) -> float:
    del quick  # they take no time
    return distance(own, library)


@dataclass(frozen=True)
class Dialects(Table):
    """Rows that make their distance."""

    def figure(self, row: Row, run: Run) -> Stored:
        return {"distance": row.make(run.quick)}

    def markdown(self, stored: Stored) -> str:
        lines = (
            (each["work"], why_not(each) or f"{each['distance']:.1g}") for each in stored["figures"]
        )
        versions = {name: stored["machine"].get(name) for name in PACKAGES}
        told = " · ".join(f"{name} {version}" for name, version in versions.items() if version)
        table = markdown(("dialect of", "distance, in learning rates"), lines)
        return f"{table}\n{STEPS} steps from the same start, in float32. {told}.\n"

    def passages(self, stored: Stored) -> dict[str, str]:
        return {"distances": self.markdown(stored)}
