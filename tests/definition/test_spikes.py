"""Which norms are spikes: OLMo's rule, on a window that rolls over."""

from __future__ import annotations

import copy
import json
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest

import adamas
from adamas import spikes
from adamas.options import MOST_NORMS, Phase


def window_of(norms, size):
    window = spikes.created(size)
    for norm in norms:
        window = spikes.entered(window, float(norm), is_left_out=False)
    return window


def exactly(norms, norm, above):
    """How far a norm lies above what is allowed, relative to it, without rounding.

    Deviation and limit are compared by their squares, which need no root.
    """
    values = [Fraction(float(each)) for each in norms]
    mean = sum(values) / len(values)
    variance = sum((each - mean) ** 2 for each in values) / (len(values) - 1)
    deviation, limit = Fraction(float(norm)) - mean, Fraction(above) ** 2 * variance
    if deviation <= 0:
        return Fraction(-1)
    return deviation**2 / limit - 1 if limit else Fraction(1)


def drawn(random, size):
    """Norms, of the kinds that trainings have, and one to judge."""
    count = int(random.integers(size // 2, 3 * size))
    spread = 10.0 ** random.uniform(-6, 0.5)
    norms = np.exp(spread * random.normal(size=count))
    kept, unit = norms[-size:], 10.0 ** random.integers(-300, 300)
    norm = kept.mean() + 2 * random.uniform() * 3.0 * kept.std(ddof=1)
    return norms * unit, float(norm * unit)


def test_the_verdict_is_that_of_exact_arithmetic_wherever_rounding_does_not_decide():
    random = np.random.default_rng(0)
    found = []
    for case in range(600):
        size = int(random.integers(4, 40))
        norms, norm = drawn(random, size)
        with np.errstate(under="ignore"):
            by = exactly(norms[-size:], norm, 3.0)
            verdict = spikes.is_spike(window_of(norms, size), norm, 3.0)
        if abs(by) > 1e-9:
            assert verdict == (by > 0), (case, size, norms, norm)
            found.append(verdict)
    assert 150 < sum(found) < len(found) - 150
    assert len(found) > 550


def test_it_is_the_rule_of_olmo_from_half_a_window_on():
    """Mean and deviation of what stands in the window alone, the norm left out."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(1)
    size, kept, window = 16, [], spikes.created(16)
    for step in range(200):
        norm = float(np.exp(random.normal()) * (50 if step % 23 == 22 else 1))
        recent = torch.tensor(kept[-size:] if len(kept) > 1 else [1.0, 1.0], dtype=torch.float64)
        std, mean = torch.std_mean(recent)
        expected = len(kept) >= size // 2 and not (norm - mean <= 2.5 * std)
        assert spikes.is_spike(window, norm, 2.5) == bool(expected), step
        window = spikes.entered(window, norm, is_left_out=bool(expected))
        kept.append(norm)
    assert 5 < spikes.left_out(window) < 50


@pytest.mark.parametrize("size", [4, 5, 128])
def test_nothing_leaps_before_half_a_window_is_there(size):
    for count in range(size):
        window = window_of([1.0] * count, size)
        assert spikes.is_spike(window, 1e300, 6.0) == (count >= size // 2), count


def test_a_window_rolls_over_and_takes_up_a_level_that_stays():
    window, left_out = spikes.created(8), []
    for norm in [1.0, 1.1] * 6 + [30.0, 31.0] * 8:
        left_out.append(spikes.is_spike(window, norm, 2.0))
        window = spikes.entered(window, norm, is_left_out=left_out[-1])
    assert left_out[12]
    assert not any(left_out[16:])
    assert sorted(window[:8]) == [30.0] * 4 + [31.0] * 4
    assert not spikes.is_spike(window, 1.0, 2.0)  # what falls is no spike
    assert spikes.left_out(window) == sum(left_out)


def test_above_equal_norms_all_that_is_larger_leaps():
    window = window_of([0.5] * 9, 8)
    assert not spikes.is_spike(window, 0.5, 6.0)
    assert spikes.is_spike(window, math.nextafter(0.5, 1), 6.0)


@pytest.mark.parametrize("norm", [0.0, math.inf, math.nan])
def test_what_is_no_size_of_a_gradient_is_not_judged_and_does_not_enter(norm):
    window = window_of([1.0, 2.0, 1.0, 2.0], 4)
    assert not spikes.is_spike(window, norm, 1e-3)
    assert spikes.entered(window, norm, is_left_out=False).tobytes() == window.tobytes()


def test_norms_at_the_ends_of_float64_are_judged_like_others():
    for unit in (1e-308, 5e-324 * 2**20, 1.0, 2.0**1000):
        window = window_of([unit * each for each in (1.0, 1.5, 1.25, 1.0)], 4)
        assert not spikes.is_spike(window, unit * 2.0, 6.0)
        assert spikes.is_spike(window, unit * 8.0, 6.0)
    assert spikes.is_spike(window_of([1e-300, 2e-300] * 2, 4), 1e300, 1e300)


def test_how_numpy_treats_errors_does_not_concern_a_verdict():
    with np.errstate(all="raise"):
        assert not spikes.is_spike(window_of([1e-300, 1.0] * 2, 4), 1e-300, 3.0)
        assert spikes.is_spike(window_of([1e-300, 2e-300] * 2, 4), 1e300, 3.0)


# ── what is asked for, and what is told ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"skip_above": 0}, ValueError, "skip_above is 0, which would leave out every gradient"),
        ({"skip_above": -1.0}, ValueError, "skip_above is -1.0, but it must be finite and above 0"),
        ({"skip_above": math.inf}, ValueError, "skip_above is inf, but it must be finite"),
        ({"skip_above": math.nan}, ValueError, "skip_above is nan, but it must be finite"),
        ({"skip_above": "6"}, TypeError, "skip_above is '6', but it must be a number. It is text"),
        ({"skip_above": True}, TypeError, "skip_above is True, but it must be a number."),
        ({"skip_window": 3}, ValueError, "skip_window is 3, but it must be a whole number, at"),
        ({"skip_window": 7.5}, ValueError, "skip_window is 7.5, but it must be a whole number"),
        ({"skip_window": None}, ValueError, "skip_window is None, but it must be a whole number"),
        ({"skip_window": MOST_NORMS + 1}, ValueError, "at least 4 and at most 16384."),
    ],
)
def test_what_makes_no_sense_is_refused(given, error, text):
    for make in (Phase, lambda **options: adamas.Adam(np.zeros(2), **options)):
        with pytest.raises(error) as told:
            make(**given)
        assert text in str(told.value)


def test_gradients_are_read_before_a_step_that_may_leap():
    assert not Phase(skip_window=64).reads_first
    assert Phase(skip_above=1).reads_first
    assert Phase(skip_above=1).skip_above == 1.0


def test_what_was_skipped_is_a_number_that_says_what_for():
    skipped = adamas.Skipped(nonfinite=2, spikes=3)
    assert (skipped, skipped.nonfinite, skipped.spikes) == (5, 2, 3)
    assert repr(skipped) == "Skipped(nonfinite=2, spikes=3)"
    assert f"{skipped} {skipped:03d} {skipped!s}" == "5 005 5"
    assert json.dumps({"skipped": skipped}) == '{"skipped": 5}'
    for twin in (copy.deepcopy(skipped), pickle.loads(pickle.dumps(skipped))):
        assert repr(twin) == repr(skipped)
    assert adamas.Skipped() == 0


@pytest.mark.parametrize("count", [0, 3, 8, 21])
def test_what_is_saved_is_loaded_as_it_was(count):
    window = window_of(1.0 + np.arange(count), 8)
    window[spikes.LEFT_OUT] = min(count, 2)
    saved = spikes.saved(window)
    assert bool(saved) == (count > 0)
    if saved:
        norms = saved["spikes"]["norms"]
        assert norms == [*range(1, count + 1)][-8:]  # from the oldest on
        loaded = spikes.loaded(saved, 8)
        assert loaded.tobytes() == window.tobytes()
        told = json.loads(json.dumps(saved))  # as files have it
        assert spikes.loaded(told, 8).tobytes() == window.tobytes()
        as_array = {"spikes": {**saved["spikes"], "norms": np.array(norms)}}
        assert spikes.loaded(as_array, 8).tobytes() == window.tobytes()
