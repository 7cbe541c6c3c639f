"""Runs of NumPy's optimizers that are saved, spoiled and resumed."""

from __future__ import annotations

import numpy as np

import adamas

EVERYTHING = {
    "adam": (adamas.Adam, {"amsgrad": True, "ema": 0.9, "clip_norm": 1.0}),
    "adamw": (adamas.AdamW, {"nesterov": True, "on_nonfinite": "skip"}),
    "momentum": (adamas.Momentum, {"weight_decay": 0.1, "ema": 0.5}),
    "rmsprop": (adamas.RMSProp, {"eps": 0.1 + 0.2}),
    "fully": (adamas.Adam, {"decay": "fully-decoupled", "weight_decay": 0.1}),
}
#: Classes whose runs leave out steps that are not finite.
SKIPPING = tuple(m for m, given in EVERYTHING.values() if given.get("on_nonfinite") == "skip")


def schedule(step):
    return 0.1 / step


def made(kind="adam", lr=0.01):
    method, options = EVERYTHING[kind]
    random_numbers = np.random.default_rng(1)
    weights = {
        "a": random_numbers.standard_normal((3, 5)).astype(np.float32),
        "nested": [np.asfortranarray(random_numbers.standard_normal((4, 2))), np.ones(())],
        "slashed/name": np.zeros(0, np.float32),
    }
    if kind == "fully" and callable(lr):
        options = {**options, "lr_max": 0.1}
    return weights, method(weights, lr=lr, **options)


def gradients(weights, step):
    random_numbers = np.random.default_rng(step)

    def like(w):
        return np.asarray(random_numbers.standard_normal(w.shape), dtype=w.dtype)

    nested = [like(w) for w in weights["nested"]]
    return {
        "a": like(weights["a"]),
        "nested": nested,
        "slashed/name": like(weights["slashed/name"]),
    }


def advance(weights, optimizer, first, last):
    for step in range(first, last):
        given = gradients(weights, step)
        if step == 3 and isinstance(optimizer, SKIPPING):
            given["a"][0, 0] = np.nan
        optimizer.step(given)


def everything(optimizer):
    """The bytes of parameters and state, and all counts and options."""
    stored = optimizer.state_dict()
    arrays = {
        (name, entry): array.tobytes()
        for name, entries in stored.pop("state").items()
        for entry, array in entries.items()
    }
    arrays |= {name: p.tobytes() for name, p in optimizer.named_parameters().items()}
    return arrays, stored
