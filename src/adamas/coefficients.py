"""From options and a step number to the few numbers the rule needs.

Every dialect of Adam is a different set of these numbers in the same rule. They are computed in
float64 with additions, multiplications, divisions and square roots only, no library power, so
that every machine gets the same bits, and are rounded to the parameter's dtype once.

Where the step number or the rates are known only while a program runs, the same numbers are taken
there: ``native/coefficients.h`` repeats this file for the compiled engine,
``engines/triton/numbers.py`` for numbers that live on a GPU, ``jax/numbers.py`` for traced ones.
Tests compare the bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from adamas.checks import MOST_STEPS, check_count
from adamas.options import Options

__all__ = [
    "Coefficients",
    "StepNumbers",
    "at_step",
    "check_step",
    "clip_factor",
    "ema_weights",
    "is_count",
    "one_minus_power",
    "rectification",
    "update_factor",
]


class Coefficients(NamedTuple):
    """The numbers of the rule at one step, in the order of ``docs/the-rule.md``."""

    grad_scale: Any
    l2: Any
    decay: Any
    #: The decay where the update and the parameter have opposite signs.
    opposed: Any
    keep1: Any
    take1: Any
    keep2: Any
    take2: Any
    from_m: Any
    from_g: Any
    root: Any
    inner: Any
    eps: Any
    step: Any

    def rounded(self, dtype: np.dtype[Any]) -> Coefficients:
        """Return the numbers as scalars of ``dtype``, each rounded once."""
        return Coefficients(*(dtype.type(number) for number in self)).with_shared_decay()

    def with_shared_decay(self) -> Coefficients:
        """Return the numbers with one object for ``decay`` and ``opposed``, where they are equal.

        By that the rule knows that it need not compare signs.
        """
        return self._replace(opposed=self.decay) if self.opposed == self.decay else self

    def shortened(self, factor: float) -> Coefficients:
        """Return the numbers of an update that is so much smaller, its decay with it."""
        return self._replace(
            decay=self.decay * factor, opposed=self.opposed * factor, step=self.step * factor
        )


class StepNumbers(NamedTuple):
    """All numbers of one step that engines may be given, in place of options they follow from."""

    rule: Coefficients
    #: What the averaged parameters keep and take; 0 and 0 where no average is kept.
    keep: float
    take: float
    #: The number of the step, 1 first.
    step: int

    @classmethod
    def averaging(cls, rule: Coefficients, ema: float | None, step: int) -> StepNumbers:
        """Return the numbers of ``step``; ``ema`` is that of ``adamas.Phase``."""
        keep, take = (0.0, 0.0) if ema is None else ema_weights(ema, step)
        return cls(rule, keep, take, step)


def at_step(options: Options, step: int, lr: float, grad_scale: float = 1.0) -> Coefficients:
    """Return the numbers for ``step`` (1 first) at learning rate ``lr``, in float64.

    ``grad_scale`` multiplies the gradients: the clip factor over the loss scale. Raises ValueError
    where ``step`` is no number of a step.
    """
    step = check_step(step)
    beta1, beta2 = options.betas
    weight_decay = options.weight_decay
    l2 = decay = 0.0
    if options.decay == "l2":
        l2 = weight_decay
    elif options.decay in ("decoupled", "cautious"):
        decay = lr * weight_decay
    else:
        assert options.lr_max is not None
        decay = weight_decay * (lr / options.lr_max)
        if options.decay == "corrected":
            decay = lr * decay
    from_m, from_g = (1.0, 0.0) if beta1 is None else _mean_weights(options, beta1, step)
    unbias2 = 1.0 if beta2 is None else _unbias(options, beta2, step)
    root = 1.0 / math.sqrt(unbias2)
    eps, inside = options.eps, options.eps_root
    if options.eps_place == "uncorrected":
        eps = eps * root
    elif options.eps_place == "inside":
        eps, inside = 0.0, inside + eps
    rate = lr
    if options.rectify:
        assert beta2 is not None
        rectified = rectification(beta2, step)
        if rectified == 0.0:  # no division: sqrt(v)·0 + 1 is 1
            root, eps = 0.0, 1.0
        else:
            rate = lr * rectified
    return Coefficients(
        grad_scale=-grad_scale if options.maximize else grad_scale,
        l2=l2,
        decay=decay,
        opposed=0.0 if options.decay == "cautious" else decay,
        keep1=0.0 if beta1 is None else beta1,
        take1=1.0 if beta1 is None else 1.0 - beta1,
        keep2=0.0 if beta2 is None else beta2,
        take2=1.0 if beta2 is None else 1.0 - beta2,
        from_m=from_m,
        from_g=from_g,
        root=root,
        inner=inside * unbias2,
        eps=eps,
        step=rate,
    )


def check_step(step: Any) -> int:
    """Return the number of a step, for the compiled engine too; raise ValueError for all else."""
    return check_count("The number of the step", step, least=1)


def one_minus_power(beta: float, exponent: int) -> float:
    """Return 1 - beta**exponent, accurate to a few units in the last place.

    With q(n) = 1 - β^n:  q(2n) = q(n)·(2 - q(n))  and  q(a + b) = q(a) + q(b)·(1 - q(a)). All
    terms are positive, so nothing cancels, and neither step enlarges a relative error: doubling
    has the condition number 2(1-q)/(2-q), at most 1, and an addition weighs the errors of its
    parts with weights that sum to at most 1. ``1 - beta**t`` would lose what a β near 1 leaves.
    """
    if exponent < 0:
        raise ValueError(f"exponent is {exponent}, but it must be at least 0.")
    total, q = 0.0, 1.0 - beta  # q is that of the power of two which the lowest bit stands for
    while True:
        if exponent & 1:
            total = total + q * (1.0 - total)
        exponent >>= 1
        if exponent == 0:
            return total
        q = q * (2.0 - q)


def rectification(beta: float, step: int) -> float:
    """Return r_t of Liu et al. (2020, algorithm 2), or 0 where ρ_t is not above 5.

    The paper begins above 4, its code and others at 5.

    ρ_t = ρ_∞ − 2tβ^t/(1 − β^t) loses at small t all that a β near 1 leaves. It is also 2k̄ − 1,
    where k̄ is the mean of 1, 2, … t with weights 1, β, … β^(t−1). Sums of these weights and of the
    weighted numbers, both times 1 − β, are put together as the bits of t say: a + b terms are a,
    and β^a times b whose numbers are greater by a. All terms are positive, so nothing cancels.
    """
    weights, numbers = 0.0, 0.0
    q, of_numbers, power, terms = 1.0 - beta, 1.0 - beta, beta, 1.0  # of a power of two of terms
    while True:
        if step & 1:
            numbers = of_numbers + power * (terms * weights + numbers)
            weights = q + power * weights
        step >>= 1
        if step == 0:
            break
        of_numbers = of_numbers + power * (terms * q + of_numbers)
        q = q + power * q
        # 1 − q loses what is left of a small power; a square doubles the error of a large one.
        power = 1.0 - q if q <= 0.5 else power * power
        terms = terms + terms
    length = 2.0 * (numbers / weights) - 1.0
    if not length > 5.0:
        return 0.0
    longest = 2.0 / (1.0 - beta) - 1.0
    now, last = (length - 4.0) * (length - 2.0), (longest - 4.0) * (longest - 2.0)
    return math.sqrt(now * longest / (last * length))


def is_count(done: float) -> bool:
    """Return whether a number can be that of the steps made so far, with another to come."""
    return 0 <= done < MOST_STEPS and done == int(done)


def clip_factor(clip_norm: float, norm: float) -> float:
    """Return the factor that brings gradients of ``norm`` down to ``clip_norm``, at most 1.

    A norm that is not a number gives NaN, as gradients that hold one would.
    """
    return clip_norm / norm if not norm <= clip_norm else 1.0


def update_factor(clip_update: float, norm: float, count: int, root: float) -> float:
    """Return what the update of a tensor is multiplied by, at most 1.

    ``norm`` is that of ``adamas.rule.unsmoothed``, over all ``count`` elements of the whole tensor.
    A ``root`` of 0, which is given to ``rule``, says that the step divides by nothing: then nothing
    is clipped.
    """
    if count == 0 or root == 0:
        return 1.0
    return clip_factor(clip_update, norm / math.sqrt(count))


def ema_weights(beta: float, step: int) -> tuple[float, float]:
    """Return what the averaged parameters keep and take at ``step``: the first step copies."""
    return (0.0, 1.0) if step == 1 else (beta, 1.0 - beta)


def _unbias(options: Options, beta: float, step: int) -> float:
    if options.bias_correction == "none":
        return 1.0
    return one_minus_power(beta, step if options.bias_correction == "paper" else 1)


def _mean_weights(options: Options, beta: float, step: int) -> tuple[float, float]:
    """Return from_m and from_g: plain, or Nesterov's look at the next step (Dozat 2016)."""
    now = _unbias(options, beta, step)
    if not options.nesterov:
        return 1.0 / now, 0.0
    return beta / _unbias(options, beta, step + 1), (1.0 - beta) / now
