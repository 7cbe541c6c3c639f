"""A run that is interrupted and taken up again, with the bits of one that was not."""

import tempfile
from pathlib import Path

import numpy as np

import adamas


def gradients(weights, step):
    noise = np.random.default_rng(step)
    return {name: w + noise.standard_normal(w.shape).astype("f4") for name, w in weights.items()}


def start():
    random = np.random.default_rng(0)
    shapes = {"in": (20, 10), "out": (10,)}
    weights = {name: random.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    return weights, adamas.AdamW(weights, lr=0.01, ema=0.9)


unbroken, optimizer = start()
for step in range(100):
    optimizer.step(gradients(unbroken, step))

with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / "run.safetensors"

    weights, optimizer = start()
    for step in range(60):
        optimizer.step(gradients(weights, step))
    adamas.save(
        path, optimizer
    )  # atomically: the old file or the new one, whenever the power fails
    print(f"{path.name} holds {path.stat().st_size} bytes")

    weights, optimizer = start()  # another process, another day
    adamas.load(path, optimizer)
    for step in range(optimizer.steps, 100):
        optimizer.step(gradients(weights, step))

assert all(weights[name].tobytes() == unbroken[name].tobytes() for name in unbroken)
print("the same bits")
