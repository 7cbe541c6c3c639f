"""Check an Adam as people write it: what is wrong with it, and that it is right when mended."""

from __future__ import annotations

import numpy as np

import adamas


class MyAdam:
    """Adam on a list of arrays, from memory."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        self.params, self.lr, self.betas, self.eps = params, lr, betas, eps
        self.weight_decay = weight_decay
        self.means = [(np.zeros_like(p), np.zeros_like(p)) for p in params]
        self.t = 0

    def step(self, grads):
        for p, g, (m, v) in zip(self.params, grads, self.means, strict=True):
            self.t += 1  # once for each array
            self.update(p, g, m, v)
            p *= 1 - self.weight_decay  # noqa: PLW2901 - in place

    def update(self, p, g, m, v):
        beta1, beta2 = self.betas
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g * g - v)
        p -= self.lr * (m / (1 - beta1**self.t)) / (np.sqrt(v / (1 - beta2**self.t)) + self.eps)


class Mended(MyAdam):
    """The same, after reading the report."""

    def step(self, grads):
        self.t += 1
        for p, g, (m, v) in zip(self.params, grads, self.means, strict=True):
            p *= 1 - self.lr * self.weight_decay  # noqa: PLW2901 - in place
            self.update(p, g, m, v)


report = adamas.check(MyAdam)
print(report)
assert not report.faithful
assert report.deviations == (
    "t is counted once for each parameter, not for each step",
    "weight decay without the learning rate, after the step",
)

report = adamas.check(Mended)
print()
print(report.sentence)
assert report.faithful
