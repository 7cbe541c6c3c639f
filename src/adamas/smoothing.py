"""Exponential smoothing of any series: the moving average that the optimizers are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adamas.checks import check_flag, check_plain, check_rate

__all__ = ["ema"]


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
