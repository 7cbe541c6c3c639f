"""What a form computes from given gradients and parameters, in either arithmetic.

A prediction is of single steps: each starts from the parameters that the subject really had, so
that no error is carried from step to step but that of the state. Intermediate results are kept by
what they depend on, since a search asks for thousands of forms that have most of them in common.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adamas.checking.arithmetic import Arithmetic, Double
from adamas.checking.forms import Form

__all__ = ["Prediction", "Settings"]

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


class _Keys:
    """What each part of a step depends on: those of forms with the same key are the same."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def gradient(self, form: Form, *, of_m: bool) -> tuple[Any, ...]:
        """Return whether the gradient of a form is reversed, and whether it has the decay."""
        decays = ("l2", "l2 in m") if of_m else ("l2",)
        return form.direction == "ascent", form.decay in decays and bool(
            self._settings.weight_decay
        )

    def mean(self, form: Form) -> tuple[Any, ...]:
        """Return what m depends on."""
        return (
            "m",
            *self.gradient(form, of_m=True),
            self.beta(form, 1),
            form.float32 in ("take", "all"),
            form.mean,
            form.memory in ("nothing", "t", "v and t"),
            form.shared in ("m and v", "all"),
            form.storage if form.storage.startswith("m") else None,
        )

    def square(self, form: Form) -> tuple[Any, ...]:
        """Return what v depends on."""
        key = (
            "v",
            *self.gradient(form, of_m=False),
            self.beta(form, 2),
            form.float32 in ("take", "all"),
            form.square,
            form.memory in ("nothing", "t", "m and t"),
            form.shared in ("m and v", "all"),
            form.storage if "v" in form.storage else None,
            form.largest == "fed back",
        )
        return (*key, *self.mean(form)) if form.square in ("of m", "belief") else key

    def clock(self, form: Form) -> tuple[bool, bool]:
        """Return whether steps are not counted, and whether they are for each array."""
        return form.memory == "nothing", form.shared in ("t", "all")

    def top(self, form: Form) -> tuple[Any, ...]:
        """Return what the numerator depends on."""
        if form.mean == "absent":
            return ("top", *self.gradient(form, of_m=True))
        return (
            "top",
            *self.mean(form),
            form.correction1,
            form.nesterov,
            *self.clock(form),
            form.float32 in ("correction", "all"),
        )

    def bottom(self, form: Form) -> tuple[Any, ...]:
        """Return what the denominator depends on."""
        return (
            "bottom",
            *self.square(form),
            form.correction2,
            form.largest,
            form.root,
            form.epsilon,
            form.eps_fixed,
            *self.clock(form),
            form.float32 in ("correction", "all"),
        )

    def beta(self, form: Form, which: int) -> float:
        """Return a decay rate: that of m (1) or of v (2)."""
        s = self._settings
        first = s.beta1 if form.beta1_fixed is None else form.beta1_fixed
        second = s.beta2 if form.beta2_fixed is None else form.beta2_fixed
        return first if (which == 1) != form.swapped else second


class Prediction:
    """The changes that forms make at each step of one run.

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
        arithmetic: Arithmetic | None = None,
    ) -> None:
        """Take over what happened; nothing is computed yet."""
        self.settings = settings
        self._keys = _Keys(settings)
        self._a = arithmetic or Double()
        self._gradients = self._a.array(gradients)
        self._before = self._a.array(before)
        self._steps, self._arrays, _ = self._gradients.shape
        self._rates = None if rates is None else self._a.array(rates).reshape(-1, 1, 1)
        self._known: dict[Any, Any] = {}

    def change(self, form: Form) -> Array:
        """Return what is subtracted from the parameters at each step."""
        s, a = self.settings, self._a
        update = self._update(form)
        lr = a.number(s.lr if form.lr_fixed is None else form.lr_fixed)
        if self._rates is not None and form.lr_fixed is None:
            lr = self._rates
        change = -lr * update if form.direction == "added" else lr * update
        if s.weight_decay != 0.0:
            decay, p = a.number(s.weight_decay), self._before
            if form.decay == "decoupled":
                change = change + lr * decay * p
            elif form.decay == "without lr":
                change = change + decay * p
            elif form.decay == "fully":
                change = change + decay * p * (lr / a.number(s.lr))
            elif form.decay == "after":
                change = change + lr * decay * (p - change)
            elif form.decay == "without lr, after":
                change = change + decay * (p - change)
        return change

    def parts(self, form: Form) -> tuple[Any, Any]:
        """Return what numerator and denominator of the update depend on: keys of two dicts."""
        bottom = None if form.square == "absent" else self._keys.bottom(form)
        return self._keys.top(form), bottom

    def top(self, form: Form) -> Array:
        """Return the numerator of the update."""
        return self._remembered(self._keys.top(form), lambda: self._top(form))

    def bottom(self, form: Form) -> Array:
        """Return the denominator of the update, 1 where there is no square."""
        if form.square == "absent":
            return self._a.array(np.ones(self._gradients.shape))
        return self._remembered(self._keys.bottom(form), lambda: self._bottom(form))

    # -- the parts of a step -----------------------------------------------------------------

    def _update(self, form: Form) -> Array:
        """Return the normalised update: what the learning rate multiplies."""
        top = self.top(form)
        return top if form.square == "absent" else self._a.divide(top, self.bottom(form))

    def _gradient(self, form: Form, *, of_m: bool) -> Array:
        ascends, decays = self._keys.gradient(form, of_m=of_m)
        g = -self._gradients if ascends else self._gradients
        return g + self._a.number(self.settings.weight_decay) * self._before if decays else g

    def mean(self, form: Form) -> Array:
        """Return m after each step."""
        return self._remembered(
            self._keys.mean(form),
            lambda: self._follow(
                form,
                self._gradient(form, of_m=True),
                self._keys.beta(form, 1),
                total=form.mean == "sum",
                keeps=form.memory not in ("nothing", "t", "v and t"),
                kind=form.storage.split()[-1] if form.storage.startswith("m") else None,
            ),
        )

    def square(self, form: Form) -> Array:
        """Return v after each step, or what stands for it."""

        def follow() -> Array:
            return self._follow(
                form,
                self._squared(form),
                self._keys.beta(form, 2),
                total=form.square == "sum",
                keeps=form.memory not in ("nothing", "t", "m and t"),
                kind=form.storage.split()[-1] if "v" in form.storage else None,
                largest=form.largest == "fed back",
            )

        return self._remembered(self._keys.square(form), follow)

    def _squared(self, form: Form) -> Array:
        g = self._gradient(form, of_m=False)
        if form.square == "plain":
            return g
        if form.square == "absolute":
            return abs(g)
        if form.square == "of m":
            g = self.mean(form)
        elif form.square == "belief":
            g = g - self.mean(form)
        q = g * g
        if form.square in ("norm", "mean square"):
            total = q.sum(axis=-1, keepdims=True)
            if form.square == "mean square":
                total = total / self._a.number(float(q.shape[-1]))
            q = total + 0 * q
        return q

    def _follow(
        self,
        form: Form,
        x: Array,
        beta: float,
        *,
        total: bool,
        keeps: bool,
        kind: str | None,
        largest: bool = False,
    ) -> Array:
        """Return the running mean (or ``total``) of ``x`` after each step."""
        a = self._a
        keep = a.number(beta)
        take = a.number(1.0) if total else a.number(1.0) - keep
        if not total and form.float32 in ("take", "all"):
            take = a.number(1.0) - a.number(float(np.float32(beta)))
        if not keeps:
            mean = take * x
            return mean if kind is None else a.narrow(mean, kind)
        shape = x.shape
        if form.shared in ("m and v", "all"):
            x = x.reshape(-1, 1, shape[-1])
        mean = np.empty_like(x)
        last = a.array(np.zeros(x.shape[1:]))
        for t, now in enumerate(take * x):
            new = keep * last + now
            if largest:
                new = np.maximum(last, new)
            last = new if kind is None else a.narrow(new, kind)
            mean[t] = last
        return mean.reshape(shape)

    def _largest(self, form: Form, v: Array) -> Array:
        shape = v.shape
        if form.shared in ("m and v", "all"):
            v = v.reshape(-1, 1, shape[-1])
        # The largest so far starts at zero, which matters where v is no square.
        largest = np.maximum(np.maximum.accumulate(v, axis=0), self._a.array(np.zeros(v.shape)))
        return largest.reshape(shape)

    # -- numerator and denominator -----------------------------------------------------------

    def _top(self, form: Form) -> Array:
        a = self._a
        if form.mean == "absent":
            return self._gradient(form, of_m=True)
        m = self.mean(form)
        if form.nesterov == "no":
            return a.divide(m, self._correction(form, 1))
        g = self._gradient(form, of_m=True)
        if form.nesterov.endswith("schedule"):
            return self._scheduled(form, m, g)
        beta = a.number(self._keys.beta(form, 1))
        now = self._correction(form, 1)
        ahead = self._correction(form, 1, ahead=1) if form.nesterov == "dozat" else now
        ours = (a.number(1.0) - beta) * g
        return a.divide(beta * m, ahead) + (ours if form.nesterov == "raw" else a.divide(ours, now))

    def _scheduled(self, form: Form, m: Array, g: Array) -> Array:
        a, beta = self._a, self._keys.beta(form, 1)
        base, rate = a.number(0.96), a.number(_MOMENTUM_DECAY[form.nesterov])
        t = self._times(self._keys.clock(form))
        one, half = a.number(1.0), a.number(0.5)
        growing = [
            a.number(beta) * (one - half * base ** (rate * n)) for n in range(int(t.max()) + 2)
        ]
        growing[0] = one
        table = np.asarray(growing, dtype=m.dtype)
        products = np.multiply.accumulate(table)
        mu, mu_ahead = table[t], table[t + 1]
        product, product_ahead = products[t], products[t + 1]
        if form.correction1 == "none":
            return mu_ahead * m + (one - mu) * g
        return a.divide(mu_ahead * m, one - product_ahead) + a.divide((one - mu) * g, one - product)

    def _bottom(self, form: Form) -> Array:
        a, s = self._a, self.settings
        corrected = self._remembered(
            (
                "v̂",
                *self._keys.square(form),
                form.correction2,
                form.largest,
                *self._keys.clock(form),
                form.float32 in ("correction", "all"),
            ),
            lambda: self._corrected_square(form),
        )
        eps = a.number(s.eps if form.eps_fixed is None else form.eps_fixed)
        if form.epsilon.endswith("before"):
            eps = a.divide(eps, self._correction(form, 2))
            if form.epsilon == "outside before" and form.root:
                # (√v + ε) / √c = √v̂ + ε / √c, and the line above has divided by c.
                eps = eps * a.sqrt(self._correction(form, 2))
        inside = form.epsilon.startswith("inside")
        x = corrected + eps if inside else corrected
        if s.eps_root:
            x = x + a.number(s.eps_root)
        x = a.sqrt(x) if form.root else x
        return x if inside or form.epsilon == "missing" else x + eps

    def _corrected_square(self, form: Form) -> Array:
        v = self.square(form)
        if form.largest == "then corrected":
            v = self._largest(form, v)
        v = self._a.divide(v, self._correction(form, 2))
        return self._largest(form, v) if form.largest == "corrected first" else v

    # -- numbers -----------------------------------------------------------------------------

    def _correction(self, form: Form, which: int, ahead: int = 0) -> Array:
        """Return what m (1) or v (2) is divided by, shape (steps, arrays, 1)."""
        kind = form.correction1 if which == 1 else form.correction2
        beta = self._keys.beta(form, which)
        narrow = form.float32 in ("correction", "all")
        clock = self._keys.clock(form)
        return self._remembered(
            ("c", kind, beta, ahead, narrow, *clock),
            lambda: self._corrections(kind, beta, ahead, clock, narrow=narrow),
        )

    def _corrections(
        self, kind: str, beta: float, ahead: int, clock: tuple[bool, bool], *, narrow: bool
    ) -> Array:
        a = self._a
        shape = (self._steps, self._arrays, 1)
        if kind == "none":
            return a.array(np.ones(shape))
        t = self._times(clock)
        if kind == "first-step":
            t = np.ones(shape, dtype=np.int64)
        if kind != "first-step":
            t = t + ahead + {"paper": 0, "t-1": -1, "t+1": 1}[kind]
        if narrow:
            power = (float(np.float32(beta)) ** t.astype(np.float64)).astype(np.float32)
            return a.array((np.float32(1.0) - power).astype(np.float64))
        one, base = a.number(1.0), a.number(beta)
        counts = range(int(t.max()) + 1)
        table = np.asarray([one - base**n for n in counts], dtype=a.array(np.ones(1)).dtype)
        return table[t]

    def _times(self, clock: tuple[bool, bool]) -> NDArray[np.int64]:
        """Return t at each step for each array, shape (steps, arrays, 1)."""
        stands, for_each = clock
        shape = (self._steps, self._arrays, 1)
        if stands:
            return np.ones(shape, dtype=np.int64)
        if for_each:
            return np.arange(1, self._steps * self._arrays + 1).reshape(shape)
        return np.broadcast_to(np.arange(1, self._steps + 1).reshape(-1, 1, 1), shape)

    def _remembered(self, key: Any, compute: Callable[[], Array]) -> Array:
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = compute()
        return found
