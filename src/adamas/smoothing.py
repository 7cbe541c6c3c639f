"""Exponential smoothing of any series: the moving average that the optimizers are made of.

How long it remembers is a decay rate to the optimizers, and a half-life to people.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adamas.checks import check_flag, check_number, check_plain, check_rate

if TYPE_CHECKING:
    from decimal import Context

__all__ = ["beta_for", "ema", "half_life"]


def ema(values: ArrayLike, beta: float = 0.9, *, debias: bool = True) -> NDArray[np.float64]:
    """Return the exponentially smoothed series, float64, of the shape of ``values``.

    The first axis of ``values`` is time; entry t of the result has seen entries 0 to t. With
    ``debias`` the mean starts at zero and each entry is divided by 1 - β^(t+1), Adam's bias
    correction (Kingma & Ba 2015, section 3), so that entry t is the weighted average with
    weights β^0, β^1, … into the past; pandas calls this ``ewm(alpha=1-beta, adjust=True)``.
    Without, the mean starts at the first value (``adjust=False``). NaN stays from where it
    stands. Raises ValueError where ``beta`` is not in [0, 1), TypeError where values are no real
    numbers.
    """
    keep = check_rate("beta", beta)
    take = 1.0 - keep
    check_flag("debias", debias)
    series = _as_series(values)
    if series.ndim == 0:
        raise ValueError("values is a single number, but smoothing needs a series along axis 0.")
    smoothed = np.empty_like(series)
    mean: Any = np.zeros(series.shape[1:])
    missing = 1.0
    for t, value in enumerate(series):
        if debias:
            mean = keep * mean + take * value
            missing *= keep
            smoothed[t] = mean / (1.0 - missing)
        else:
            mean = value if t == 0 else keep * mean + take * value
            smoothed[t] = mean
    return smoothed


def _as_series(values: ArrayLike) -> NDArray[np.float64]:
    check_plain("values", values)
    try:
        given = np.asarray(values)
        if given.dtype.kind in "buifVO":  # V: bfloat16, which NumPy itself lacks
            return np.array(given, dtype=np.float64)
    except (TypeError, ValueError):  # objects that are no numbers, rows of different lengths
        pass
    raise TypeError(
        f"values is {values!r:.80}, but it must be a series of real numbers: one along axis 0, or "
        "an array for each time, all of one shape."
    )


def beta_for(half_life: float, every: float = 1) -> float:
    """Return the decay rate at which a value counts half as much after ``half_life``.

    ``every`` is how much passes from one step to the next, in the same unit: 1 where half-lives are
    in steps; the tokens or samples of a batch where they are in those. So the memory of a moment
    stays when the batch changes: β = 2^(-every / half_life), as Marek et al. (2025, arXiv
    2507.07101) choose β2. It is the float64 nearest to that, on every machine. Raises TypeError or
    ValueError where they are no numbers that are finite and above 0, or where β would be 1.
    """
    context = _digits()
    life, step = (
        _decimal(context, _span(name, value))
        for name, value in (("half_life", half_life), ("every", every))
    )
    beta = float(context.power(2, context.minus(context.divide(step, life))))
    if beta == 1:
        raise ValueError(
            f"half_life is {half_life!r} and every is {every!r}, so that the decay rate is 1 in "
            "float64 and nothing would be forgotten. Give a half-life of less than 10^16 steps."
        )
    return beta


def half_life(beta: float, every: float = 1) -> float:
    """Return after how much a value counts half as much at the decay rate ``beta``.

    The inverse of ``beta_for``, in the unit of ``every``: 0.95 has a half-life of 13.5 steps, or of
    3,459 samples where each step has 256. Raises ValueError where ``beta`` is not in [0, 1), or
    where the half-life is larger or smaller than any number of float64.
    """
    rate, step = check_rate("beta", beta), _span("every", every)
    if rate == 0:
        return 0.0
    context = _digits()
    lives = context.divide(context.ln(2), context.minus(context.ln(_decimal(context, rate))))
    life = float(context.multiply(lives, _decimal(context, step)))
    if not 0 < life < math.inf:
        beyond, unit = (
            ("above the largest", "larger") if life else ("below the smallest", "smaller")
        )
        raise ValueError(
            f"beta is {beta!r} and every is {every!r}, so that the half-life is {beyond} number of "
            f"float64. Give every in a {unit} unit."
        )
    return life


def _span(name: str, value: Any) -> float:
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} is {number!r}, but it must be finite and above 0.")
    return number


def _digits() -> Context:
    """Return arithmetic of more digits than float64 has, in which every machine agrees."""
    from decimal import Context

    return Context(prec=50)


def _decimal(context: Context, number: float) -> Any:
    return context.create_decimal_from_float(number)
