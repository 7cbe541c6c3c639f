"""Exponential smoothing is what pandas computes, and Adam's mean of a gradient."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pandas as pd
import pytest

import adamas

SERIES = {
    "noise": np.random.default_rng(1).standard_normal(500),
    "trend": np.linspace(-5, 100, 300),
    "one value": np.array([3.0]),
    "nothing": np.zeros(0),
}


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("debias", [True, False])
def test_smoothing_is_pandas_ewm(series, beta, debias):
    """pandas sums weights where we multiply a mean: both round a few times for each entry.

    Errors made at one entry fade with β as the mean does, so that they stay below
    4·2^-52 / (1 - β) of the largest value.
    """
    x = SERIES[series]
    expected = pd.Series(x).ewm(alpha=1 - beta, adjust=debias).mean().to_numpy()
    bound = 4 * 2.0**-52 / (1 - beta) * np.abs(x).max(initial=0.0)
    assert np.abs(adamas.ema(x, beta, debias=debias) - expected).max(initial=0.0) <= bound


def test_the_debiased_mean_is_adams():
    gradients = np.random.default_rng(2).standard_normal(50)
    p = np.zeros(1)
    optimizer = adamas.Momentum(p, lr=1.0, beta=0.9, bias_correction="paper")
    for step, smoothed in enumerate(adamas.ema(gradients, 0.9)):
        before = p.copy()
        optimizer.step(gradients[step : step + 1])
        assert before - p == pytest.approx(smoothed, rel=0, abs=1e-14)  # of sums of size 10


def test_other_axes_are_smoothed_side_by_side():
    x = np.random.default_rng(3).standard_normal((40, 3, 2))
    together = adamas.ema(x, 0.7)
    assert together.shape == x.shape
    for i in range(3):
        for j in range(2):
            assert (together[:, i, j] == adamas.ema(x[:, i, j], 0.7)).all()


def test_any_sequence_of_numbers_is_taken_and_left_alone():
    given = [1, 2, 4]
    assert adamas.ema(given, 0.5, debias=False).tolist() == [1.0, 1.5, 2.75]
    assert given == [1, 2, 4]


def test_a_gap_stays_from_where_it_stands():
    smoothed = adamas.ema([1.0, np.nan, 3.0], 0.5)
    assert np.isnan(smoothed).tolist() == [False, True, True]


def test_what_cannot_be_smoothed_is_refused():
    message = "values is a single number, but smoothing needs a series along axis 0."
    with pytest.raises(ValueError, match=re.escape(message)):
        adamas.ema(3.0)  # type: ignore[arg-type]
    message = "beta is 1.0, but a decay rate must be at least 0 and less than 1."
    with pytest.raises(ValueError, match=re.escape(message)):
        adamas.ema([1.0], 1.0)


@pytest.mark.parametrize("values", [["a"], [1j], [[1.0], [1.0, 2.0]], [object()], "12", [b"1"]])
def test_what_is_no_series_of_real_numbers_is_refused_by_name(values):
    message = f"values is {values!r:.80}, but it must be a series of real numbers: one along"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        adamas.ema(values)


def test_a_masked_series_is_refused_with_a_way_out():
    message = (
        "values is a MaskedArray, whose arithmetic is not that of plain arrays. Give "
        "numpy.asarray() of it, or .filled(0.0) where a mask counts."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        adamas.ema(np.ma.array([1.0, 2.0], mask=[True, False]))


@pytest.mark.parametrize("dtype", [np.int8, bool, object, np.float16, ml_dtypes.bfloat16])
def test_numbers_of_any_dtype_are_smoothed(dtype):
    assert adamas.ema(np.ones(2, dtype), 0.5).tolist() == [1.0, 1.0]


def test_debias_is_true_or_false():
    with pytest.raises(TypeError, match=r"^debias is 'no', but it must be True or False\.$"):
        adamas.ema([1.0], debias="no")  # type: ignore[arg-type]
