"""The rule for Triton: the lines of ``adamas.rule``, which says what the letters mean.

Triton compiles the text of a function, so the functions that the rule calls must be Triton's own
and the lines must stand here again; a test compares the two texts, others the bits. Division and
square root are the correctly rounded ones, and kernels are compiled without fused multiply-add
(``OPTIONS``): then every operator rounds once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas.rule import Result

__all__ = [
    "OPTIONS",
    "flush",
    "maximum",
    "ratio",
    "rule",
    "shrinkage",
    "smooth",
    "sqrt",
    "unsmoothed",
]

#: What every kernel that computes must be compiled with: products keep their own rounding.
OPTIONS = {"enable_fp_fusion": False}

SMALLEST_32: tl.constexpr = tl.constexpr(2.0**-126)
SMALLEST_64: tl.constexpr = tl.constexpr(2.0**-1022)


@triton.jit
def rule(c, p, g, m, v, w):
    """Return parameter and state after one step; see ``adamas.rule.rule``.

    What is None on the way in means nothing on the way out.
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
    return Result(p, some(m, p), some(v, p), some(w, p), u, change)


@triton.jit
def unsmoothed(c, p, g, v, w):
    """Return the update as it would be without a first moment; see ``adamas.rule.unsmoothed``."""
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


@triton.jit
def some(x, other):
    """Return ``x``, or ``other`` where it is None, which Triton before 3.7 does not return."""
    if x is None:
        return other
    else:
        return x


@triton.jit
def smooth(keep, take, mean, x):
    """Return the moving average after one more value; see ``adamas.rule.smooth``."""
    return flush(keep * mean + take * x)


@triton.jit
def flush(x):
    """Return 0 where ``x`` is subnormal, else ``x``; NaN passes."""
    smallest_normal: tl.constexpr = SMALLEST_64 if x.dtype == tl.float64 else SMALLEST_32
    return tl.where(tl.abs(x) < smallest_normal, tl.zeros_like(x), x)


@triton.jit
def ratio(u, d):
    """Return u / d, and 0 where ``d`` is 0; NaN passes."""
    still = (d == 0) & (u == u)
    return tl.where(still, tl.zeros_like(u), divided(u, d))


@triton.jit
def maximum(a, b):
    """Return the larger of ``a`` and ``b``, ``b`` where they are equal, NaN where either is."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def shrinkage(decay, opposed, u, p):
    """Return decay · p, and opposed · p where ``u`` and ``p`` have opposite signs."""
    differ = ((u < 0) & (p > 0)) | ((u > 0) & (p < 0))
    return tl.where(differ, opposed * p, decay * p)


@triton.jit
def sqrt(x):
    """Return the correctly rounded square root."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def divided(u, d):
    """Return the correctly rounded quotient."""
    if u.dtype == tl.float64:
        return u / d
    else:
        return tl.div_rn(u, d)
