"""A small Adam in which mistakes can be planted, one or several: the subjects of tests/checking.

It is written as people write it, in NumPy and in place, and knows nothing of how adamas.check
predicts what a mistake does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = list[np.ndarray[Any, Any]]


class Planted:
    """Adam on a list of arrays; ``mistakes`` names what is wrong with it."""

    mistakes: frozenset[str] = frozenset()

    def __init__(
        self,
        params: Arrays,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        has = self.mistakes.__contains__
        self.params = params
        self.lr = lr
        b1, b2 = betas
        b1 = 0.9 if has("beta1 ignored") or has("betas ignored") else b1
        b2 = 0.999 if has("beta2 ignored") or has("betas ignored") else b2
        self.b1, self.b2 = (b2, b1) if has("betas swapped") else (b1, b2)
        self.eps = 1e-8 if has("eps ignored") else eps
        self.wd = 0.0 if has("weight decay ignored") else weight_decay
        self.t = 0
        shared = has("state shared") or has("state and t shared")
        self.m, self.v, self.w = (self._zeros(shared) for _ in range(3))

    def _zeros(self, shared: bool) -> Arrays:
        if shared:
            one = np.zeros_like(self.params[0])
            return [one for _ in self.params]
        return [np.zeros_like(p) for p in self.params]

    def step(self, grads: Arrays) -> None:
        has = self.mistakes.__contains__
        counts_each = has("t counted for each array") or has("state and t shared")
        if not counts_each:
            self.t += 1
        for p, g, m, v, w in zip(self.params, grads, self.m, self.v, self.w, strict=True):
            if counts_each:
                self.t += 1
            self._step(p, g, m, v, w)

    def _step(self, p, given, m, v, w) -> None:
        has = self.mistakes.__contains__
        before = p.copy()
        lr = 0.01 if has("lr ignored") else self.lr
        g = given
        if has("gradient changed in place"):
            given *= 0.5
            g = given * 2.0
        if has("ascends"):
            g = -g
        decoupled = any(
            has(f"decay {kind}")
            for kind in (
                "decoupled",
                "after",
                "without lr",
                "without lr, after",
                "in m only",
                "odd",
                "cautious",
                "cautious, strict",
                "cautious by g",
                "cautious, turned",
            )
        )
        g_of_m = g
        if has("decay in m only"):
            g_of_m = g + self.wd * p
        elif not decoupled:
            g = g_of_m = g + self.wd * p
        self._update_means(m, v, g_of_m, g)
        u = self._update(g_of_m, m, v, w)
        if has("decay decoupled"):
            p -= lr * self.wd * before
        agreed = np.sign(g if has("decay cautious by g") else u) * np.sign(before)
        if has("decay cautious") or has("decay cautious by g"):
            p -= lr * self.wd * before * (agreed >= 0)
        if has("decay cautious, strict"):
            p -= lr * self.wd * before * (agreed > 0)
        if has("decay cautious, turned"):
            p -= lr * self.wd * before * (agreed <= 0)
        if has("decay without lr"):
            p -= self.wd * before
        if has("update added"):
            p += lr * u
        else:
            p -= lr * u
        if has("decay after"):
            p -= lr * self.wd * p
        if has("decay without lr, after"):
            p -= self.wd * p
        if has("decay odd"):
            p -= self.wd * np.sign(before)

    def _update_means(self, m, v, g_of_m, g) -> None:
        has = self.mistakes.__contains__
        take1, take2 = 1.0 - self.b1, 1.0 - self.b2
        if has("float32 1-beta") or has("float32 beta"):
            take1 = float(np.float32(1.0) - np.float32(self.b1))
            take2 = float(np.float32(1.0) - np.float32(self.b2))
        take1 = 1.0 if has("m is a sum") else take1
        take2 = 1.0 if has("v is a sum") else take2
        forgets = has("nothing kept") or has("m and v not kept")
        if forgets or has("m not kept"):
            m[...] = 0.0
        if forgets or has("v not kept"):
            v[...] = 0.0
        m[...] = self._stored(self.b1 * m + take1 * g_of_m)
        q = g * g
        if has("norm"):
            q = np.sum(g * g) + np.zeros_like(g)
        elif has("mean square"):
            q = np.mean(g * g) + np.zeros_like(g)
        elif has("not squared"):
            q = g
        elif has("absolute"):
            q = np.abs(g)
        elif has("square of m"):
            q = m * m
        new = self.b2 * v + take2 * q
        v[...] = self._stored(np.maximum(v, new) if has("amsgrad fed back") else new)

    def _stored(self, x):
        if "m and v in bfloat16" in self.mistakes:
            return _bfloat16(x)
        return x.astype(np.float32) if "m and v in float32" in self.mistakes else x

    def _corrections(self) -> tuple[float, float, float]:
        """What m and v are divided by, and what m of the next step is."""
        has = self.mistakes.__contains__
        t = 1 if has("nothing kept") else self.t
        if has("t starts at 0"):
            t = t - 1
        if has("t starts at 2"):
            t = t + 1
        power1, power2 = self.b1**t, self.b2**t
        first1, first2, ahead = self.b1, self.b2, self.b1 ** (t + 1)
        if has("float32 correction") or has("float32 beta"):
            f = np.float32
            power1, power2 = f(self.b1) ** f(t), f(self.b2) ** f(t)
            first1, first2, ahead = f(self.b1), f(self.b2), f(self.b1) ** f(t + 1)
        c1, c2, ahead = 1 - power1, 1 - power2, 1 - ahead
        if has("no exponent") or has("no exponent for m"):
            c1 = ahead = 1 - first1
        if has("no exponent") or has("no exponent for v"):
            c2 = 1 - first2
        if has("no correction") or has("no correction of m"):
            c1 = ahead = 1.0
        if has("no correction") or has("no correction of v"):
            c2 = 1.0
        return np.float64(c1), np.float64(c2), np.float64(ahead)

    def _update(self, g, m, v, w):
        has = self.mistakes.__contains__
        c1, c2, ahead = self._corrections()
        top = m / c1
        if has("nesterov"):
            top = self.b1 * m / ahead + (1.0 - self.b1) * g / c1
        elif has("nesterov with the same correction"):
            top = self.b1 * m / c1 + (1.0 - self.b1) * g / c1
        elif has("nesterov with a raw gradient"):
            top = self.b1 * m / c1 + (1.0 - self.b1) * g
        s = v / c2
        if has("amsgrad"):
            w[...] = np.maximum(w, v)
            s = w / c2
        elif has("amsgrad corrected first"):
            w[...] = np.maximum(w, v / c2)
            s = w
        take_root = (lambda x: x) if has("no root") else np.sqrt
        if has("eps inside"):
            return top / take_root(s + self.eps)
        if has("eps before the correction"):
            scale = c2 if has("no root") else np.sqrt(c2)
            return top / ((take_root(s * c2) + self.eps) / scale)
        if has("eps inside before the correction"):
            return top / take_root((s * c2 + self.eps) / c2)
        if has("no eps"):
            return top / take_root(s)
        return top / (take_root(s) + self.eps)


def _bfloat16(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    bits = x.astype(np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(x.dtype)


def planted(*mistakes: str) -> type[Planted]:
    """Return a class with these mistakes."""
    return type("Adam", (Planted,), {"mistakes": frozenset(mistakes), "__module__": "planted"})
