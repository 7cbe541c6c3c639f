"""One Adam, written in the ways that people write it: each is called otherwise."""

from __future__ import annotations

from typing import Any

import numpy as np


def one_step(p, g, m, v, t, lr, b1, b2, eps):
    """The paper's algorithm 1 on one array; returns what comes next."""
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    return p - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps), m, v


# -- functions -----------------------------------------------------------------------------------


def with_state(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Lists of arrays; the state begins as None and is returned."""
    m, v, t = state or ([np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params], 0)
    new = [
        one_step(*each, t + 1, lr, beta1, beta2, eps)
        for each in zip(params, grads, m, v, strict=True)
    ]
    p, m, v = map(list, zip(*new, strict=True))
    return p, (m, v, t + 1)


def with_dict_of_state(weights, gradients, state, learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8):
    """One array, changed in place; the state is a dict that is filled."""
    state.setdefault("m", np.zeros_like(weights))
    state.setdefault("v", np.zeros_like(weights))
    state["t"] = state.get("t", 0) + 1
    weights[...], state["m"], state["v"] = one_step(
        *(weights, gradients, state["m"], state["v"], state["t"], learning_rate, *betas, eps)
    )


def with_m_and_v(theta, g, m, v, t, alpha=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """One array; m, v and t are handed in, the first two come back."""
    return one_step(theta, g, m, v, t, alpha, beta1, beta2, epsilon)


def with_m_v_and_t(w, dw, m, v, t, lr=1e-3, b1=0.9, b2=0.999, eps=1e-8):
    """As above, but t comes back, too, and is counted here, from 0."""
    w, m, v = one_step(w, dw, m, v, t, lr, b1, b2, eps)
    return w, m, v, t + 1


def with_names(params, grads, state, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
    """Dicts of arrays, changed in place."""
    state = state or {}
    state["t"] = t = state.get("t", 0) + 1
    for name, p in params.items():
        m, v = state.get(name, (np.zeros_like(p), np.zeros_like(p)))
        p[...], *state[name] = one_step(p, grads[name], m, v, t, lr, beta1, beta2, eps)
    return params, state


def with_everything_fixed(params, grads, state):
    """Nothing can be set."""
    return with_state(params, grads, state, 2e-3, 0.8, 0.99, 1e-6)


def with_state_for_ever(params, grads, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, state={}):  # noqa: B006
    """The famous default that outlives the call."""
    for i, p in enumerate(params):
        m, v, t = state.get(i, (np.zeros_like(p), np.zeros_like(p), 0))
        p[...], m, v = one_step(p, grads[i], m, v, t + 1, lr, *betas, eps)
        state[i] = m, v, t + 1


def descends(params, grads, state, lr=1e-3):
    return [p - lr * g for p, g in zip(params, grads, strict=True)]


# -- objects -------------------------------------------------------------------------------------


class Base:
    def __init__(self, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.t = 0
        self.kept: dict[Any, Any] = {}

    def next(self, key, p, g):
        m, v = self.kept.get(key, (np.zeros_like(p), np.zeros_like(p)))
        p, *self.kept[key] = one_step(p, g, m, v, self.t, self.lr, self.beta1, self.beta2, self.eps)
        return p


class Updates(Base):
    """update(params, grads) returns new lists."""

    def update(self, params, grads):
        self.t += 1
        pairs = zip(params, grads, strict=True)
        return [self.next(i, p, g) for i, (p, g) in enumerate(pairs)]


class GetUpdates(Base):
    """get_updates(params, grads) returns what is to be added."""

    def get_updates(self, params, grads):
        self.t += 1
        pairs = zip(params, grads, strict=True)
        return [self.next(i, p, g) - p for i, (p, g) in enumerate(pairs)]


class AppliesGradients(Base):
    """apply_gradients takes pairs, the gradient first, and changes the second in place."""

    def apply_gradients(self, grads_and_vars):
        self.t += 1
        for i, (g, p) in enumerate(grads_and_vars):
            p[...] = self.next(i, p, g)


class Rebinds(Base):
    """step(grads) makes new arrays in an attribute; those given stay as they are."""

    def __init__(self, params, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        super().__init__(lr, beta1, beta2, eps)
        self.params = [p.copy() for p in params]

    def step(self, grads):
        self.t += 1
        self.params = [self.next(i, p, g) for i, (p, g) in enumerate(zip(self.params, grads))]  # noqa: B905


class HasShape(Base):
    """Made for one array of a shape; step(w, g) returns the new one."""

    def __init__(self, shape, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        super().__init__(lr, beta1, beta2, eps)
        self.m, self.v = np.zeros(shape), np.zeros(shape)

    def step(self, w, g):
        self.t += 1
        settings = self.lr, self.beta1, self.beta2, self.eps
        w, self.m, self.v = one_step(w, g, self.m, self.v, self.t, *settings)
        return w


class Boxed(Base):
    """step() on parameters that carry data and grad."""

    def __init__(self, parameters, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        super().__init__(lr, beta1, beta2, eps)
        self.parameters = parameters

    def step(self):
        self.t += 1
        for i, p in enumerate(self.parameters):
            p.data = self.next(i, np.asarray(p.data), np.asarray(p.grad))


class Transformation:
    """init and update, as optax has them, in NumPy."""

    def __init__(self, learning_rate, b1=0.9, b2=0.999, eps=1e-8):
        self.settings = learning_rate, b1, b2, eps

    def init(self, params):
        return [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params], 0

    def update(self, grads, state, params=None):
        m, v, t = state
        new = [
            one_step(np.zeros_like(g), np.asarray(g), *each, t + 1, *self.settings)
            for g, *each in zip(grads, m, v, strict=True)
        ]
        updates, m, v = map(list, zip(*new, strict=True))
        return updates, (m, v, t + 1)


class OnTensors(Base):
    """step() on torch's tensors, without torch's base class."""

    def __init__(self, parameters, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        super().__init__(lr, beta1, beta2, eps)
        self.parameters = parameters

    def step(self):
        self.t += 1
        for i, p in enumerate(self.parameters):
            m, v = self.kept.get(i, (0.0, 0.0))
            m = self.beta1 * m + (1 - self.beta1) * p.grad
            v = self.beta2 * v + (1 - self.beta2) * p.grad**2
            self.kept[i] = m, v
            m, v = m / (1 - self.beta1**self.t), v / (1 - self.beta2**self.t)
            p.data -= self.lr * m / (v.sqrt() + self.eps)


def made_by_a_factory(params, **settings):
    """A function that makes an optimizer, with its arguments left open."""
    import torch

    return torch.optim.AdamW(params, **settings)


def raises_at_once(params, grads, state, lr=1e-3):
    raise RuntimeError("not written yet")


def does_nothing(params, grads, state, lr=1e-3):
    return params, state


class NeedsMore:
    def __init__(self, params, layers, lr=1e-3):
        self.params = params

    def step(self, grads):
        pass


class StopsLater(Base):
    """Raises at its third step."""

    def update(self, params, grads):
        self.t += 1
        if self.t == 3:
            raise ValueError("out of paper")
        return [self.next(i, p, g) for i, (p, g) in enumerate(zip(params, grads))]  # noqa: B905
