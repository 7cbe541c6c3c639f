"""RAdam's numbers as Liu et al. (2020, algorithm 2) write them, nothing rounded."""

from __future__ import annotations

import mpmath

__all__ = ["ROUNDINGS", "length", "rectification"]

#: What ``adamas.coefficients.rectification`` may be off by, in units of 2^-53, for each bit of t.
#:
#: Terms are positive. A doubling or an addition rounds at most five times, and none of these counts
#: for more than once in a sum. A power is as accurate as its q while q is at most 1/2; from then on
#: each square doubles its error, but with x = t(1 - β) its term is at most e^-x·(1 + x) of the sum:
#: 0.85, 0.6, 0.24, 0.03 at the first squares, times 2, 4, 8, 16, and so on: below 8. So sums are
#: off by at most 5·(1 + 8) for each bit, their quotient by twice as much, ρ = 2k̄ - 1 from 5 on by
#: 6/5 of it. r² has ρ - 4, ρ - 2 and ρ: 5 + 5/3 + 1 times that of ρ, and r half of this; the
#: last ten roundings are less than what is rounded up here.
ROUNDINGS = 450


def length(beta, t):
    """Return ρ_t as the paper has it, with digits enough for what cancels."""
    with mpmath.workprec(600):
        beta = mpmath.mpf(beta)
        power = beta**t
        return 2 / (1 - beta) - 1 - 2 * t * power / (1 - power)


def rectification(beta, t):
    """Return r_t, or 0 where ρ_t is at most 5: 4 in the paper, 5 in its code."""
    with mpmath.workprec(600):
        rho, longest = length(beta, t), 2 / (1 - mpmath.mpf(beta)) - 1
        if rho <= 5:
            return mpmath.mpf(0)
        now, last = (rho - 4) * (rho - 2), (longest - 4) * (longest - 2)
        return mpmath.sqrt(now * longest / (last * rho))
