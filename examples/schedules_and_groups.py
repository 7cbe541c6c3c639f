"""A learning rate that changes, options for a part of the parameters, and the phase of a step."""

import math

import numpy as np

import adamas

random = np.random.default_rng(0)
inputs = random.standard_normal((500, 8))
truth = random.standard_normal(8)
targets = inputs @ truth + 3.0 + 0.1 * random.standard_normal(500)

weights, offset = np.zeros(8), np.zeros(())
STEPS = 400


def schedule(step):
    """Up in 20 steps, then down on a cosine. The first step is 1."""
    up = min(step / 20, 1.0)
    return 0.1 * up * 0.5 * (1 + math.cos(math.pi * step / STEPS))


optimizer = adamas.AdamW(
    [
        {"params": weights, "weight_decay": 0.01},
        {"params": offset, "weight_decay": 0.0},  # an offset need not be small
    ],
    lr=schedule,
    clip_norm=10.0,
    on_nonfinite="skip",
    ema=0.98,
    statistics=True,
)
for step in range(STEPS):
    rows = random.integers(0, 500, 32)
    error = inputs[rows] @ weights + offset - targets[rows]
    if step == 7:
        error = error * np.nan  # a bad batch: left out, and counted
    optimizer.step([inputs[rows].T @ error / 32, np.mean(error)])

print(optimizer)
print(f"left out: {optimizer.skipped}; norm of the last gradient: {optimizer.gradient_norm:.3f}")
for name, taken in optimizer.statistics().items():
    print(f"{name}: largest update {taken.largest_update:.2f} of the learning rate")
with optimizer.ema_weights():
    print(f"averaged weights are off by {np.abs(weights - truth).max():.4f}")
    assert np.abs(weights - truth).max() < 0.05
assert (optimizer.steps, optimizer.skipped) == (STEPS - 1, 1)
