"""The rule: what one step of Adam, RMSProp or Momentum does to one element.

Everything else in adamas exists to feed this function its numbers, to run it fast, or to check
that a fast version gives the same bits. It is written for arrays of any library that follows the
array API standard, and states the arithmetic contract of ``docs/exactness.md``:

* every operator rounds once, in the order written (no fused multiply-add, no reassociation);
* all arithmetic is binary32, or binary64 where the parameter is float64.

Two transcriptions repeat these lines, for compilers that cannot read them here: ``native/rule.h``
and ``engines/triton/rule.py``. One test compares the texts, others the bits. JAX and torch's own
operations call this function. A new method, or a new option of one, is new numbers in
``coefficients.py`` wherever it can be; only what is no set of numbers is a new line here.

Source: Kingma & Ba, "Adam: a method for stochastic optimization" (ICLR 2015), algorithm 1;
Tieleman & Hinton, COURSERA lecture 6.5 (2012) for RMSProp; Reddi, Kale & Kumar (ICLR 2018) for
AMSGrad; Dozat (ICLR workshop 2016) for Nesterov's form; Loshchilov & Hutter (ICLR 2019) for the
decoupled decay; Chen et al., "Cautious weight decay" (arXiv 2510.12402), for a decay that asks for
the signs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Result", "flush", "maximum", "ratio", "rule", "shrinkage", "smooth", "unsmoothed"]

Array = Any  # an array of any library with __array_namespace__


class Result(NamedTuple):
    """One element after a step: the parameter, its state, and what moved it."""

    p: Array
    m: Array | None
    v: Array | None
    w: Array | None
    #: The normalised update u / d, in units of the learning rate: about 1 for a steady gradient.
    u: Array
    #: What was subtracted from the parameter.
    change: Array


def rule(c: Any, p: Array, g: Array, m: Array = None, v: Array = None, w: Array = None) -> Result:
    """Return parameter and state after one step.

    ``c`` holds the numbers of ``adamas.coefficients.Coefficients``, rounded to the dtype of
    the arrays. ``p`` is the parameter and ``g`` its gradient. ``m`` is the first moment (moving
    average of gradients), or None where the method keeps none (RMSProp); ``v`` the second (moving
    average of squared gradients), or None (Momentum); ``w`` the largest ``v`` so far, or None
    without AMSGrad. All have one shape and one dtype. Nothing is changed in place.
    """
    g = g * c.grad_scale + c.l2 * p
    if m is not None:
        m = flush(c.keep1 * m + c.take1 * g)
    if v is not None:
        v = flush(c.keep2 * v + c.take2 * g * g)
    s = v
    if w is not None:
        w = maximum(w, v)
        s = w
    u = g
    if m is not None:
        u = c.from_m * m + c.from_g * g
    if s is not None:
        d = sqrt(s + c.inner) * c.root + c.eps
        u = ratio(u, d)
    change = c.step * u + shrinkage(c.decay, c.opposed, u, p)
    p = p - change
    return Result(p, m, v, w, u, change)


def unsmoothed(c: Any, p: Array, g: Array, v: Array, w: Array = None) -> Array:
    """Return the update as it would be without a first moment: g / max(√v̂, ε).

    Arguments are those of ``rule``, of the coming step; ``p`` is None where ``c.l2`` is 0, so that
    a parameter that is not finite spoils nothing but itself. About 1 where gradients are as large
    as they were, and up to 1 / √(1 - β2) where they have outgrown ``v``: updates are clipped by it
    (``adamas.Phase.clip_update``). Source: Wortsman et al. (NeurIPS 2023), algorithm 2.
    """
    g = g * c.grad_scale
    if p is not None:
        g = g + c.l2 * p
    v = flush(c.keep2 * v + c.take2 * g * g)
    s = v
    if w is not None:
        w = maximum(w, v)
        s = w
    d = maximum(sqrt(s + c.inner) * c.root, c.eps)
    return ratio(g, d)


def smooth(keep: Any, take: Any, mean: Array, x: Array) -> Array:
    """Return the moving average after one more value: exponential smoothing, flushed."""
    return flush(keep * mean + take * x)


def flush(x: Array) -> Array:
    """Return 0 where ``x`` is subnormal, else ``x``; NaN passes.

    State therefore never holds subnormal numbers: no processor is slowed by them, and engines
    that cannot represent them agree with those that can.
    """
    xp = x.__array_namespace__()
    return xp.where(xp.abs(x) < xp.finfo(x.dtype).smallest_normal, xp.zeros_like(x), x)


def ratio(u: Array, d: Array) -> Array:
    """Return u / d, and 0 where ``d`` is 0, so that ``eps=0`` is usable; NaN passes."""
    xp = d.__array_namespace__()
    still = (d == 0) & (u == u)
    return xp.where(still, xp.zeros_like(u), u / xp.where(still, xp.ones_like(d), d))


def maximum(a: Array, b: Array) -> Array:
    """Return the larger of ``a`` and ``b``, ``b`` where they are equal, NaN where either is."""
    xp = a.__array_namespace__()
    return xp.where((a > b) | (a != a), a, b)


def shrinkage(decay: Any, opposed: Any, u: Array, p: Array) -> Array:
    """Return decay · p, and opposed · p where ``u`` and ``p`` have opposite signs.

    That is Chen et al.'s u·p < 0. Signs are compared, since a product of small numbers may round
    to 0; where both decays are one and the same object, nothing needs to be compared.
    """
    if opposed is decay:
        return decay * p
    xp = p.__array_namespace__()
    differ = ((u < 0) & (p > 0)) | ((u > 0) & (p < 0))
    return xp.where(differ, opposed * p, decay * p)


def sqrt(x: Array) -> Array:
    """Return the correctly rounded square root."""
    return x.__array_namespace__().sqrt(x)
