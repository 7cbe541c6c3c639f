"""What a variant computes from given gradients and parameters, in either arithmetic.

A prediction is of single steps: each starts from the parameters that the subject really had, so
that no error is carried from step to step but that of the state.

Arrays stand before numbers in a product: a number of mpmath would try to make a number of an array.

A step is made of parts: gradients, moments, corrections, a numerator and a denominator. Each
is a value that holds all that it is computed from, numbers and other parts, besides what happened.
So a ``Prediction`` can keep the arrays of a part by the part itself, and a search, which asks
for thousands of variants that have most of their parts in common, computes each part once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from adamas.checking.arithmetic import DOUBLE, Arithmetic
from adamas.checking.variants import Variant

__all__ = ["Part", "Parts", "Prediction", "Settings", "parts"]

Array = Any

#: How torch's NAdam lets β1 grow, and Keras': the factor of t in 0.96^(factor·t).
_MOMENTUM_DECAY = {"torch schedule": 0.004, "keras schedule": 1.0}


@dataclass(frozen=True)
class Settings:
    """The numbers that an optimizer is made with."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float = 0.0
    eps_root: float = 0.0


class Prediction:
    """The changes that variants make at each step of one run.

    ``gradients`` and ``before`` (the parameters before each step) have shape (steps, arrays,
    elements); ``rates`` is the learning rate at each step, or None where it is that of
    ``settings``.
    """

    def __init__(
        self,
        settings: Settings,
        gradients: Array,
        before: Array,
        rates: Array | None = None,
        arithmetic: Arithmetic = DOUBLE,
    ) -> None:
        self.settings = settings
        self.arithmetic = a = arithmetic
        self.gradients, self.before = a.array(gradients), a.array(before)
        self._rates = None if rates is None else a.array(rates).reshape(-1, 1, 1)
        self._known: dict[tuple[type, Part], Array] = {}

    def of(self, part: Part) -> Array:
        """Return the values of ``part`` at each step."""
        key = type(part), part  # since tuples of two kinds may be equal
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = part(self)
        return found

    def change(self, variant: Variant) -> Array:
        """Return what is subtracted from the parameters at each step."""
        s, a, p = self.settings, self.arithmetic, self.before
        made_of = parts(variant, s)
        update = a.divide(self.of(made_of.numerator), self.of(made_of.denominator))
        lr = a.number(s.lr if variant.lr_fixed is None else variant.lr_fixed)
        if self._rates is not None and variant.lr_fixed is None:
            lr = self._rates
        change = update * -lr if variant.direction == "added" else update * lr
        if s.weight_decay == 0.0:
            return change
        if made_of.clipping is not None:
            lr = lr * self.of(made_of.clipping)
        decay = a.number(s.weight_decay)
        if variant.decay == "decoupled":
            return change + lr * decay * p
        if variant.decay == "without lr":
            return change + decay * p
        if variant.decay == "fully":
            return change + decay * p * (lr / a.number(s.lr))
        if variant.decay.startswith("cautious"):
            by_g = variant.decay == "cautious by g"
            against = self.of(Gradient(variant.direction == "ascent", 0.0)) if by_g else change
            agrees = np.sign(against) * np.sign(p)
            if variant.decay == "cautious, turned":
                agrees = -agrees
            decays = agrees > 0 if variant.decay == "cautious, strict" else agrees >= 0
            return change + lr * decay * p * a.array(np.asarray(decays, dtype=bool))
        if variant.decay == "corrected":
            return change + lr * decay * p * (lr / a.number(s.lr))
        if variant.decay == "after":
            return change + lr * decay * (p - change)
        if variant.decay == "without lr, after":
            return change + decay * (p - change)
        return change


# -- the parts of a step -------------------------------------------------------------------------


#: A part of a step, called with a run: its values at each step, shape (steps, arrays, elements or
#: 1). Parts that are equal have the same values.
Part = Callable[[Prediction], Array]


class Parts(NamedTuple):
    """What a variant's step is made of."""

    mean: Mean
    square: Mean
    numerator: Part
    denominator: Part
    #: What weight decay is multiplied by; the denominator has it already.
    clipping: Part | None


@lru_cache(maxsize=1 << 16)
def parts(variant: Variant, settings: Settings) -> Parts:
    """Return what ``variant`` makes its steps of."""
    s = settings
    first = s.beta1 if variant.beta1_fixed is None else variant.beta1_fixed
    second = s.beta2 if variant.beta2_fixed is None else variant.beta2_fixed
    beta1, beta2 = (second, first) if variant.swapped else (first, second)
    ascends = variant.direction == "ascent"
    of_m = Gradient(ascends, s.weight_decay if variant.decay in ("l2", "l2 in m") else 0.0)
    of_v = Gradient(ascends, s.weight_decay if variant.decay == "l2" else 0.0)
    narrow = variant.float32 in ("take", "all")
    shared = variant.shared in ("m and v", "all")
    stored, _, kind = variant.storage.rpartition(" ")
    mean = Mean(
        of_m,
        beta1,
        variant.mean == "sum",
        shared,
        narrow,
        keeps=variant.memory not in ("nothing", "t", "v and t"),
        stored=kind if stored.startswith("m") else None,
    )
    squared = Squared(variant.square, of_v, mean if variant.square in ("of m", "belief") else None)
    square = Mean(
        squared,
        beta2,
        variant.square == "sum",
        shared,
        narrow,
        keeps=variant.memory not in ("nothing", "t", "m and t"),
        stored=kind if stored.endswith("v") else None,
        largest=variant.largest == "fed back",
    )
    clock = Clock(variant.memory == "nothing", variant.shared in ("t", "all"))
    narrow = variant.float32 in ("correction", "all")
    numerator: Part = of_m
    if variant.mean != "absent":
        correction = Correction(variant.correction1, beta1, clock, narrow)
        numerator = Numerator(mean, of_m, correction, variant.nesterov)
    denominator: Part = One()
    clipping: Part | None = None
    if variant.square != "absent":
        correction = Correction(variant.correction2, beta2, clock, narrow)
        eps = s.eps if variant.eps_fixed is None else variant.eps_fixed
        corrected = Corrected(square, correction, variant.largest)
        divisor = Denominator(corrected, variant.epsilon, eps, s.eps_root, variant.root)
        denominator, rectification = divisor, None
        if variant.rectified != "no":
            rectification = Rectification(beta2, clock, float(variant.rectified[0]))
            denominator = Rectified(divisor, rectification, variant.rectified)
        if variant.clipped != "no":
            clipping = Clipping(of_v, divisor, rectification)
            denominator = Clipped(denominator, clipping)
    return Parts(mean, square, numerator, denominator, clipping)


class One(NamedTuple):
    """What is divided by where there is no square."""

    def __call__(self, run: Prediction) -> Array:
        return run.arithmetic.array(np.ones(run.gradients.shape))


class Gradient(NamedTuple):
    """The gradient, with its sign turned or with L2 weight decay in it."""

    ascends: bool
    decay: float

    def __call__(self, run: Prediction) -> Array:
        g = -run.gradients if self.ascends else run.gradients
        return g + run.before * run.arithmetic.number(self.decay) if self.decay else g


class Squared(NamedTuple):
    """What v is the mean of: the square, or what ``kind`` (as in a variant) has in its place."""

    kind: str
    gradient: Gradient
    #: m, where it takes part.
    mean: Mean | None

    def __call__(self, run: Prediction) -> Array:
        g = run.of(self.gradient)
        if self.kind == "plain":
            return g
        if self.kind == "absolute":
            return abs(g)
        if self.mean is not None:
            m = run.of(self.mean)
            g = m if self.kind == "of m" else g - m
        q = g * g
        if self.kind in ("norm", "mean square"):
            total = q.sum(axis=-1, keepdims=True)
            if self.kind == "mean square":
                total = total / run.arithmetic.number(float(q.shape[-1]))
            q = total + 0 * q
        return q


class Mean(NamedTuple):
    """A moving average, as m and v are, after each step."""

    of: Gradient | Squared
    beta: float
    #: Whether it is a sum: without the factor 1 - β.
    total: bool
    #: Whether all arrays have one.
    shared: bool
    #: Whether 1 - β is taken from β in float32.
    narrow: bool
    #: Whether it is kept from step to step.
    keeps: bool
    #: The small type that it is kept in.
    stored: str | None
    #: Whether it never becomes smaller.
    largest: bool = False

    def __call__(self, run: Prediction) -> Array:
        a, x = run.arithmetic, run.of(self.of)
        keep, one = a.number(self.beta), a.number(1.0)
        take = one if self.total else one - keep
        if self.narrow and not self.total:
            take = one - a.number(float(np.float32(self.beta)))
        if not self.keeps:
            return a.narrow(x * take, self.stored)
        shape = x.shape
        if self.shared:
            x = x.reshape(-1, 1, shape[-1])
        mean = np.empty_like(x)
        last = a.array(np.zeros(x.shape[1:]))
        for t, now in enumerate(x * take):
            new = last * keep + now
            if self.largest:
                new = np.maximum(last, new)
            last = mean[t] = a.narrow(new, self.stored)
        return mean.reshape(shape)


class Clock(NamedTuple):
    """t at each step for each array, shape (steps, arrays, 1)."""

    #: Whether it stays 1, and whether every array counts on.
    stands: bool
    for_each: bool

    def __call__(self, run: Prediction) -> Array:
        steps, arrays, _ = run.gradients.shape
        if self.stands:
            return np.ones((steps, arrays, 1), dtype=np.int64)
        if self.for_each:
            return np.arange(1, steps * arrays + 1).reshape(steps, arrays, 1)
        return np.broadcast_to(np.arange(1, steps + 1).reshape(-1, 1, 1), (steps, arrays, 1))


class Correction(NamedTuple):
    """What m or v is divided by, shape (steps, arrays, 1); ``kind`` is that of a variant."""

    kind: str
    beta: float
    clock: Clock
    #: Whether it is computed from β in float32.
    narrow: bool
    ahead: int = 0

    def __call__(self, run: Prediction) -> Array:
        a, t = run.arithmetic, run.of(self.clock)
        if self.kind == "none":
            return a.array(np.ones(t.shape))
        if self.kind == "first-step":
            t = np.ones_like(t)
        else:
            t = t + self.ahead + {"paper": 0, "t-1": -1, "t+1": 1}[self.kind]
        if self.narrow:
            power = (float(np.float32(self.beta)) ** t.astype(np.float64)).astype(np.float32)
            return a.array((np.float32(1.0) - power).astype(np.float64))
        one, base = a.number(1.0), a.number(self.beta)
        table = [one - base**n for n in range(int(t.max()) + 1)]
        return np.asarray(table, dtype=a.array(np.ones(1)).dtype)[t]


class Rectification(NamedTuple):
    """r_t of Liu et al. (2020, algorithm 2), shape (steps, arrays, 1); 0 where it is off."""

    beta: float
    clock: Clock
    #: Above which ρ_t it is on.
    threshold: float

    def __call__(self, run: Prediction) -> Array:
        a, t = run.arithmetic, run.of(self.clock)
        one, two, four = a.number(1.0), a.number(2.0), a.number(4.0)
        beta = a.number(self.beta)
        longest = two / (one - beta) - one
        table, weights, numbers, power = [one - one], one - one, one - one, one
        for n in range(1, int(t.max()) + 1):
            # ρ_t is 2·k̄ - 1, with k̄ the mean of 1 … t by these weights: nothing cancels.
            weights, numbers, power = weights + power, numbers + power * n, power * beta
            length = two * numbers / weights - one
            square = one - one
            if length > self.threshold:
                square = (length - four) * (length - two) * longest
                square = square / ((longest - four) * (longest - two) * length)
            table.append(square)
        return a.sqrt(np.asarray(table, dtype=a.array(np.ones(1)).dtype))[t]


class Rectified(NamedTuple):
    """What RAdam divides by: √v̂ + ε over r_t, or 1; ``kind`` is that of a variant.

    At rest, it is infinity in place of 1.
    """

    denominator: Denominator
    rectification: Rectification
    kind: str

    def __call__(self, run: Prediction) -> Array:
        a, d, r = run.arithmetic, run.of(self.denominator), run.of(self.rectification)
        is_off, one = r == 0, a.number(1.0)
        over = one if self.kind == "5, no factor" else np.where(is_off, one, r)
        instead = a.number(np.inf) if self.kind == "5, at rest" else one
        return np.where(is_off, instead, d / over)


class Numerator(NamedTuple):
    """m̂, or what Nesterov's form has in its place."""

    mean: Mean
    gradient: Gradient
    correction: Correction
    nesterov: str

    def __call__(self, run: Prediction) -> Array:
        a, m, g = run.arithmetic, run.of(self.mean), run.of(self.gradient)
        if self.nesterov.endswith("schedule"):
            return self._scheduled(run, m, g)
        now = run.of(self.correction)
        if self.nesterov == "no":
            return a.divide(m, now)
        ahead = now
        if self.nesterov == "dozat":
            ahead = run.of(self.correction._replace(ahead=1))
        beta = a.number(self.correction.beta)
        ours = g * (a.number(1.0) - beta)
        return a.divide(m * beta, ahead) + (ours if self.nesterov == "raw" else a.divide(ours, now))

    def _scheduled(self, run: Prediction, m: Array, g: Array) -> Array:
        """Return it with a β1 that grows, and with the product of all so far for its power."""
        a, t = run.arithmetic, run.of(self.correction.clock)
        base, rate = a.number(0.96), a.number(_MOMENTUM_DECAY[self.nesterov])
        beta, one, half = a.number(self.correction.beta), a.number(1.0), a.number(0.5)
        growing = [beta * (one - half * base ** (rate * n)) for n in range(int(t.max()) + 2)]
        growing[0] = one
        table = np.asarray(growing, dtype=m.dtype)
        products = np.multiply.accumulate(table)
        ahead, ours = table[t + 1] * m, (one - table[t]) * g
        if self.correction.kind == "none":
            return ahead + ours
        return a.divide(ahead, one - products[t + 1]) + a.divide(ours, one - products[t])


class Corrected(NamedTuple):
    """v̂; ``largest`` is that of a variant."""

    square: Mean
    correction: Correction
    largest: str

    def __call__(self, run: Prediction) -> Array:
        v = run.of(self.square)
        if self.largest == "then corrected":
            v = self._largest(run, v)
        v = run.arithmetic.divide(v, run.of(self.correction))
        return self._largest(run, v) if self.largest == "corrected first" else v

    def _largest(self, run: Prediction, v: Array) -> Array:
        shape = v.shape
        if self.square.shared:
            v = v.reshape(-1, 1, shape[-1])
        # The largest so far starts at zero, which matters where v is no square.
        zero = run.arithmetic.array(np.zeros(v.shape))
        return np.maximum(np.maximum.accumulate(v, axis=0), zero).reshape(shape)


class Denominator(NamedTuple):
    """√v̂ + ε; ``epsilon`` says where ε stands, as in a variant."""

    corrected: Corrected
    epsilon: str
    eps: float
    eps_root: float
    root: bool

    def __call__(self, run: Prediction) -> Array:
        a, x, eps = run.arithmetic, run.of(self.corrected), self.corrected_eps(run)
        inside = self.epsilon.startswith("inside")
        if inside:
            x = x + eps
        if self.eps_root:
            x = x + a.number(self.eps_root)
        if self.root:
            x = a.sqrt(x)
        return x if inside or self.epsilon == "missing" else x + eps

    def corrected_eps(self, run: Prediction) -> Array:
        """Return what is added."""
        a, eps = run.arithmetic, run.arithmetic.number(self.eps)
        if self.epsilon.endswith("before"):
            correction = run.of(self.corrected.correction)
            eps = a.divide(eps, correction)
            if self.epsilon == "outside before" and self.root:
                # (√v + ε) / √c = √v̂ + ε / √c, and the line above has divided by c.
                eps = eps * a.sqrt(correction)
        return eps


class Clipping(NamedTuple):
    """1 over the root mean square of g / max(√v̂, ε) of an array, where that is above 1."""

    gradient: Gradient
    denominator: Denominator
    rectification: Rectification | None

    def __call__(self, run: Prediction) -> Array:
        a, d, one = run.arithmetic, self.denominator, run.arithmetic.number(1.0)
        if d.epsilon.startswith("outside"):
            least = d.corrected_eps(run)
            divisor = np.maximum(run.of(d._replace(epsilon="missing")), least)
        else:
            divisor = run.of(d)
        updates = a.divide(run.of(self.gradient), divisor)
        size = a.sqrt((updates * updates).sum(-1, keepdims=True) * one / updates.shape[-1])
        is_long = np.asarray(size > one, dtype=bool)
        if self.rectification is not None:  # where it is off nothing is divided, and none clipped
            is_long &= np.asarray(run.of(self.rectification) != 0, dtype=bool)
        return a.divide(one, np.where(is_long, size, one))


class Clipped(NamedTuple):
    """What an update is divided by, where it is clipped besides."""

    denominator: Denominator | Rectified
    clipping: Clipping

    def __call__(self, run: Prediction) -> Array:
        return run.arithmetic.divide(run.of(self.denominator), run.of(self.clipping))
