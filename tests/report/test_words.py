"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from adamas.report.words import counted, date, percent, short


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (1, "1"), (0.01234, "0.0123"), (0.001, "0.001"), (0.00012, "1.2e-4"),
     (12345.6, "12,300"), (1e6, "1e6"), (-1.5e-9, "-1.5e-9"), (1e-8, "1e-8"), (math.inf, "∞"),
     (-math.inf, "−∞"), (math.nan, "NaN")],
)  # fmt: skip
def test_a_number_has_three_digits(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [(0, "0 %"), (1, "100 %"), (0.999, "> 99 %"), (0.5, "50 %"), (0.0123, "1.2 %"),
     (2**-8, "0.39 %"), (0.00005, "0.005 %"), (1e-7, "1e-5 %"), (12.0, "1200 %")],
)  # fmt: skip
def test_a_fraction_is_told_in_percent_and_never_as_all_where_it_is_not(fraction, text):
    assert percent(fraction) == text


def test_one_thing_is_one_and_two_are_several():
    assert counted(1, "step") == "1 step"
    assert counted(1200, "step") == "1,200 steps"


@pytest.mark.parametrize("time", [None, "soon", math.nan, 1e300])
def test_what_is_no_time_is_not_told(time):
    assert date(time) == ""
    assert date(0) == "1970-01-01 00:00 UTC"
