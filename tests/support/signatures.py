"""Adam in the signatures of courses and libraries, right and with mistakes planted."""

from __future__ import annotations

import numpy as np

#: What may be planted, and the words for it.
MISTAKES = {
    "no exponent": "no exponent t in the bias correction (agrees at step 1 only)",
    "eps inside": "ε inside the root",
    "betas swapped": "β1 and β2 are swapped",
    "not squared": "the gradient is not squared in v",
    "t starts at 0": "t starts at 0 (the bias correction's exponent is one too small)",
}


def one_step(p, g, m, v, t, lr, b1, b2, eps, mistake):
    """The paper's algorithm 1 on one array, but for the mistake."""
    b1, b2 = (b2, b1) if mistake == "betas swapped" else (b1, b2)
    t = t - 1 if mistake == "t starts at 0" else t
    power = 1 if mistake == "no exponent" else t
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * (g if mistake == "not squared" else g**2)
    c1, c2 = np.float64(1 - b1**power), np.float64(1 - b2**power)
    top, square = m / c1, v / c2
    if mistake == "eps inside":
        return p - lr * top / np.sqrt(square + eps), m, v
    return p - lr * top / (np.sqrt(square) + eps), m, v


def course(mistake=None):
    """adam(w, dw, config=None) -> (w, config): settings and state in one dict."""

    def adam(w, dw, config=None):
        if config is None:
            config = {}
        config.setdefault("learning_rate", 1e-3)
        config.setdefault("beta1", 0.9)
        config.setdefault("beta2", 0.999)
        config.setdefault("epsilon", 1e-8)
        config.setdefault("m", np.zeros_like(w))
        config.setdefault("v", np.zeros_like(w))
        config.setdefault("t", 0)
        config["t"] += 1
        names = ("learning_rate", "beta1", "beta2", "epsilon")
        settings = [config[name] for name in names]
        next_w, config["m"], config["v"] = one_step(
            w, dw, config["m"], config["v"], config["t"], *settings, mistake
        )
        return next_w, config

    return adam


def course_with_all_or_nothing(mistake=None):
    """As above, but a dict that is given must be whole; and it comes back first."""

    def adam(x, dx, memo=None, clip=None, verbose=False):
        if memo is None:
            memo = {"lr": 1e-3, "m": np.zeros_like(x), "v": np.zeros_like(x), "t": 0}
        t = memo["t"] + 1
        x, m, v = one_step(x, dx, memo["m"], memo["v"], t, memo["lr"], 0.9, 0.999, 1e-8, mistake)
        return {"lr": memo["lr"], "m": m, "v": v, "t": t}, x

    return adam


def fed_whole(mistake=None):
    """What it returns besides is a tuple of three, for one argument of any name."""

    def step(params, grads, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, previous=None):
        m, v, t = previous or (0.0, 0.0, 0)
        params, m, v = one_step(params, grads, m, v, t + 1, lr, beta1, beta2, eps, mistake)
        return params, m, v, t + 1

    return step


def fed_in_parts(mistake=None):
    """What it returns besides goes to three arguments of any names."""

    def step(params, grads, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, a=None, b=None, c=None):
        a, b, c = (0.0, 0.0, 0) if a is None else (a, b, c)
        params, a, b = one_step(params, grads, a, b, c + 1, lr, beta1, beta2, eps, mistake)
        return params, a, b, c + 1

    return step


def autograd(mistake=None):
    """adam(grad, x, …): as in HIPS autograd, with its names."""

    def adam(grad, x, callback=None, num_iters=100, step_size=0.001, b1=0.9, b2=0.999, eps=10**-8):
        m = np.zeros(len(x))
        v = np.zeros(len(x))
        for i in range(num_iters):
            g = grad(x, i)
            if callback:
                callback(x, i, g)
            x, m, v = one_step(x, g, m, v, i + 1, step_size, b1, b2, eps, mistake)
        return x

    return adam


def descent(mistake=None):
    """A loop that takes the value, too, works in place, and ends by a tolerance."""

    def minimise(f, df, x0, learning_rate=1e-3, betas=(0.9, 0.999), eps=1e-8, tol=0.0):
        x, m, v, t = x0, np.zeros_like(x0), np.zeros_like(x0), 0
        while f(x) > -1.0 and t >= 0:
            t += 1
            new, m, v = one_step(x, df(x), m, v, t, learning_rate, *betas, eps, mistake)
            if tol and np.max(np.abs(new - x)) < tol:
                break
            x[...] = new
        return x, t

    return minimise


def triple(mistake=None):
    """init, update of (i, gradients, state), and get_params, as in jax.example_libraries."""

    def adam(step_size, b1=0.9, b2=0.999, eps=1e-8):
        rate = step_size if callable(step_size) else lambda i: step_size

        def init(params):
            return [(np.asarray(p), 0.0, 0.0) for p in params]

        def update(i, gradients, state):
            settings = float(rate(i)), b1, b2, eps, mistake
            return [
                one_step(p, np.asarray(g), m, v, i + 1, *settings)
                for g, (p, m, v) in zip(gradients, state, strict=True)
            ]

        def get_params(state):
            return [p for p, _, _ in state]

        return init, update, get_params

    return adam


def _updating(name, method):
    def made(mistake=None):
        class Adam:
            def __init__(self, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
                self.settings = lr, beta1, beta2, eps, mistake
                self.t, self.m, self.v = 0, 0.0, 0.0

            def next(self, p, g):
                self.t += 1
                p, self.m, self.v = one_step(p, g, self.m, self.v, self.t, *self.settings)
                return p

        setattr(Adam, name, method)
        return Adam

    return made


#: get_update(params, grads) of one array: the new one; get_update(g): what the caller subtracts;
#: get_update(g): what the caller adds; get_updates(params, grads): what the caller adds.
next_of_both = _updating("update_weights", lambda self, w, dw: self.next(w, dw))
subtracted = _updating("get_update", lambda self, g: -self.next(0.0 * g, g))
added = _updating("get_update", lambda self, g: self.next(0.0 * g, g))
added_of_both = _updating("get_updates", lambda self, params, grads: self.next(0.0 * params, grads))

#: Each form, what it is taken for, and what of it cannot be set.
FORMS = {
    course: (
        "a function (w, dw, config) of one array, config fed back from what it returns, "
        "learning_rate, beta1, beta2, epsilon set in config"
    ),
    course_with_all_or_nothing: (
        "a function (x, dx, memo, clip) of one array, memo and clip fed back from what it returns"
    ),
    fed_whole: (
        "a function (params, grads, previous) of one array, previous fed back from what it returns"
    ),
    fed_in_parts: (
        "a function (params, grads, a, b, c) of one array, a and b and c fed back from what it "
        "returns"
    ),
    autograd: "a loop (grad, x, num_iters) that asks for the gradient of one array",
    descent: "a loop (f, df, x0) that asks for the gradient of one array",
    triple: "a triple (init, update, get_params): update(i, grads, state), i from 0",
    next_of_both: "an object with update_weights(w, dw) on one array",
    subtracted: "an object with get_update(g) on one array",
    added: "an object with get_update(g) on one array",
    added_of_both: "an object with get_updates(params, grads) on one array",
}
