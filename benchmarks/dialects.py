"""Measure how far adamas' dialects end from the libraries they are named after. See README.md.

Both step the same parameters with the same gradients. A distance is the largest difference of any
parameter after all steps, in learning rates; roundings differ, and accumulate.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import adamas

os.environ.setdefault("KERAS_BACKEND", "jax")

PAGE = Path(__file__).parent.parent / "docs" / "names.md"
LR, STEPS, COUNT = 1e-3, 60, 500

Array = Any
#: Takes a start and the gradients of all steps; returns where it ends.
Run = Callable[[Array, Array], Array]


def drawn() -> tuple[Array, Array]:
    """Return a start and gradients of sizes from 1e-8 to 1, so that ε matters for some of them."""
    random = np.random.default_rng(0)
    start = random.standard_normal(COUNT).astype(np.float32)
    sizes = np.logspace(-8, 0, COUNT)
    gradients = random.standard_normal((STEPS, COUNT)) * sizes
    return start, gradients.astype(np.float32)


def own(method: str, dialect: str, **options: Any) -> Run:
    def run(start: Array, gradients: Array) -> Array:
        p = start.copy()
        optimizer = getattr(adamas, method)(p, lr=LR, dialect=dialect, **options)
        for each in gradients:
            optimizer.step(each)
        return p

    return run


def torchs(method: str, **options: Any) -> Run:
    def run(start: Array, gradients: Array) -> Array:
        import torch

        p = torch.nn.Parameter(torch.from_numpy(start.copy()))
        optimizer = getattr(torch.optim, method)([p], lr=LR, **options)
        for each in gradients:
            p.grad = torch.from_numpy(each)
            optimizer.step()
        return p.detach().numpy()

    return run


def optaxs(method: str, **options: Any) -> Run:
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


def keras(method: str, **options: Any) -> Run:
    def run(start: Array, gradients: Array) -> Array:
        import keras

        p = keras.Variable(start)
        optimizer = getattr(keras.optimizers, method)(learning_rate=LR, **options)
        optimizer.build([p])
        for each in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(each)])
        return np.asarray(p.value)

    return run


#: What is compared: title, dialect's run, library's run.
PAIRS: tuple[tuple[str, Run, Run], ...] = (
    ("torch.optim.Adam", own("Adam", "torch"), torchs("Adam")),
    ("torch.optim.Adam, amsgrad", own("Adam", "torch", amsgrad=True), torchs("Adam", amsgrad=True)),
    (
        "torch.optim.Adam, weight_decay 0.1",
        own("Adam", "torch", weight_decay=0.1),
        torchs("Adam", weight_decay=0.1),
    ),
    ("torch.optim.AdamW", own("AdamW", "torch"), torchs("AdamW")),
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


def distance(one: Run, other: Run) -> float:
    """Return how far two runs end from each other, in learning rates."""
    start, gradients = drawn()
    return float(np.abs(one(start, gradients) - other(start, gradients)).max()) / LR


def table() -> str:
    """Return all distances as Markdown."""
    from importlib.metadata import version

    lines = ["| dialect of | distance, in learning rates |", "|---|--:|"]
    lines += [f"| {title} | {distance(one, other):.1g} |" for title, one, other in PAIRS]
    packages = " · ".join(f"{name} {version(name)}" for name in ("torch", "optax", "keras"))
    return "\n".join(lines) + f"\n\n{STEPS} steps from the same start, in float32. {packages}.\n"


def with_table(text: str, made: str) -> str:
    """Return the text of the page with a table between its markers."""
    return re.sub(
        r"(<!-- distances: begin -->\n).*?(<!-- distances: end -->)",
        lambda found: found[1] + made + found[2],
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    made = table()
    print(made)
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), made), "utf-8")
