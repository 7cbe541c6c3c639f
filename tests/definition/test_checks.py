"""What users give is checked in one place, and its errors offer a way out."""

from __future__ import annotations

import math
import re
from collections import UserList

import numpy as np
import pytest

import adamas
from adamas import checks
from adamas.options import Options, Phase

OPTIONS = (
    "lr",
    "betas",
    "eps",
    "weight_decay",
    "decay",
    "clip_norm",
    "clip_update",
    "on_nonfinite",
    "skip_above",
    "skip_window",
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("weigth_decay", "weight_decay"),
        ("Weight-Decay", "weight_decay"),
        ("clip_nrom", "clip_norm"),
        ("learning_rate", "lr"),
        ("epsilon", "eps"),
        ("beta1", "betas"),
        ("max_grad_norm", "clip_norm"),
        ("clip_threshold", "clip_update"),
        ("sigma_factor", "skip_above"),
        ("rolling_interval_length", "skip_window"),
    ],
)
def test_a_misspelled_or_foreign_name_is_taken_for_the_near_one(name, meant):
    assert checks.near(name, OPTIONS) == f" Did you mean {meant!r}?"


@pytest.mark.parametrize("name", ["colour", "", 5, "momentum"])
def test_a_name_that_is_near_to_none_gets_no_offer(name):
    assert checks.near(name, OPTIONS) == ""


def test_an_unknown_option_is_refused_by_the_name_of_the_class_that_is_made():
    class First:
        @checks.with_known_options
        def __init__(self, lr=1.0, *, weight_decay=0.0):
            self.given = (lr, weight_decay)

    class Second(First):
        pass

    message = (
        "Second() has the unknown option 'weigth_decay'. Did you mean 'weight_decay'? "
        "Possible are lr, weight_decay."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        Second(weigth_decay=0.1)  # type: ignore[call-arg]
    assert Second(2.0, weight_decay=3.0).given == (2.0, 3.0)


@pytest.mark.parametrize(
    ("check", "value", "error", "message"),
    [
        (checks.check_amount, "1e-3", TypeError,
         "x is '1e-3', but it must be a number. It is text: give float('1e-3')."),
        (checks.check_amount, "fast", TypeError, "x is 'fast', but it must be a number."),
        (checks.check_amount, b"1", TypeError, "x is b'1', but it must be a number."),
        (checks.check_amount, np.True_, TypeError, "x is np.True_, but it must be a number."),
        (checks.check_amount, np.ones(1), TypeError,
         "x is array([1.]), but it must be a number."),
        (checks.check_amount, 10**400, ValueError,
         "x is inf, but it must be finite and at least 0."),
        (checks.check_amount, 1j, TypeError, "x is 1j, but it must be a number."),
        (checks.check_count, 2.5, ValueError,
         "x is 2.5, but it must be a whole number, at least 0 and at most 2^53."),
        (checks.check_count, 2**53 + 1, ValueError,
         "x is 9007199254740993, but it must be a whole number, at least 0 and at most 2^53."),
        (checks.check_flag, 1, TypeError, "x is 1, but it must be True or False."),
    ],
)  # fmt: skip
def test_what_is_no_such_value_is_refused_with_a_way_out(check, value, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        check("x", value)


@pytest.mark.parametrize("value", [True, np.True_])
def test_a_truth_value_of_numpy_is_a_flag(value):
    options, phase = Options(amsgrad=value), Phase(statistics=value)
    assert options.amsgrad is True
    assert phase.statistics is True
    array = np.ones(3, np.float32)
    adamas.Adam(array, amsgrad=value, statistics=value).step(np.ones(3, np.float32))
    assert (array < 1).all()


@pytest.mark.parametrize(
    "value", [10_000, 1e4, np.int64(10_000), np.float32(1e4), np.array(10_000), np.array(1e4)]
)
def test_a_whole_number_of_any_kind_is_taken_as_int(value):
    assert checks.check_count("x", value) == 10_000
    assert type(checks.check_count("x", value)) is int
    assert Phase(seed=value) == Phase(seed=10_000)


@pytest.mark.parametrize("value", [True, np.True_, "4", 1.5, math.inf, math.nan, None, -1, 2**64])
def test_what_is_no_whole_number_is_no_seed(value):
    with pytest.raises(ValueError, match=r"^seed is .*, but it must be a whole number, at least 0"):
        Phase(seed=value)


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), np.int64(2), 1, 0.0])
def test_a_number_of_any_kind_is_taken_as_float(value):
    assert type(checks.check_amount("x", value)) is float
    assert checks.check_amount("x", value) == value


def test_a_pair_says_what_a_pair_is():
    pair = "it must be a pair of decay rates (β1, β2). Give for example (0.9, 0.999)."
    message = f"betas is 0.9, but {pair}"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        checks.check_betas(0.9)
    message = 'state is 8, but it must be one of "float32", "8bit", or a pair of them (m, v).'
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        checks.check_forms(8, ("float32", "8bit"))
    message = "state is '8-bit', but it must be one of \"float32\", \"8bit\". Did you mean '8bit'?"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checks.check_forms(["8-bit", "float32"], ("float32", "8bit"))
    assert checks.check_forms(["8bit", "float32"], ("float32", "8bit")) == ("8bit", "float32")


def test_a_pair_may_stand_in_any_sequence_as_configurations_have_them():
    betas, state = UserList([0.8, 0.9]), UserList(["bfloat16", "8bit"])
    options = Options(betas=betas, state=state)
    assert (options.betas, options.state) == ((0.8, 0.9), ("bfloat16", "8bit"))
    with pytest.raises(TypeError, match=r"^betas is b'ab', but it must be a pair"):
        checks.check_betas(b"ab")
    with pytest.raises(ValueError, match=r"^state is '88', but it must be one of"):
        checks.check_forms("88", ["8bit"])
