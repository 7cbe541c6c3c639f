"""Momentum, RMSProp and Adam on one valley, and Adam put together from the other two.

The valley is a hundred times steeper in one direction than in the other. Momentum smooths its way
down; RMSProp makes steps of one size in both directions; Adam does both.
"""

import numpy as np

import adamas

STEEPNESS = np.array([100.0, 1.0])
BETA1, BETA2, LR, EPS = 0.9, 0.999, 0.05, 1e-8


def gradient(position):
    return STEEPNESS * position


for method in (
    lambda p: adamas.Momentum(p, lr=0.01, beta=BETA1),
    lambda p: adamas.RMSProp(p, lr=LR, beta=0.9),
    lambda p: adamas.Adam(p, lr=LR, betas=(BETA1, BETA2)),
):
    position = np.array([1.0, 1.0])
    optimizer = method(position)
    for _ in range(300):
        optimizer.step(gradient(position))
    print(f"{type(optimizer).__name__:>8} ends at {position}")
    assert np.abs(position).max() < 0.1

# Adam by hand: Momentum's mean over the root of RMSProp's square, both without their bias.
by_hand, m, v = np.array([1.0, 1.0]), np.zeros(2), np.zeros(2)
position = by_hand.copy()
optimizer = adamas.Adam(position, lr=LR, betas=(BETA1, BETA2), eps=EPS)
for t in range(1, 301):
    g = gradient(by_hand)
    m = BETA1 * m + (1 - BETA1) * g
    v = BETA2 * v + (1 - BETA2) * g**2
    by_hand -= LR * (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
    optimizer.step(gradient(position))
assert np.allclose(by_hand, position, rtol=0, atol=1e-10)
print(f" by hand ends at {by_hand}")
