"""``skip_above`` in optimizers of arrays, and a training with bad batches."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import adamas
from adamas import spikes

ABOVE = {"skip_above": 3.0, "skip_window": 6}
SIZES = [1.0, 1.2, 0.9, 1.1, 40.0, 1.0, 0.0, 7.0, 6.0, 6.5, 6.2, 6.1, 6.3, 6.4, 90.0, 6.0]


def made(**options):
    random = np.random.default_rng(0)
    weights = {"w": random.normal(size=(5, 7)).astype(np.float32), "b": random.normal(size=40)}
    return adamas.AdamW(weights, lr=0.05, **options)


def watched(optimizer, sizes=SIZES, first=0):
    """Step along gradients of these sizes; return which steps were left out."""
    left_out = []
    for step, size in enumerate(sizes, first):
        random = np.random.default_rng(100 + step)
        before = optimizer.skipped.spikes
        optimizer.step(
            {
                name: (size * random.normal(size=p.shape)).astype(p.dtype)
                for name, p in optimizer.named_parameters().items()
            }
        )
        left_out.append(optimizer.skipped.spikes > before)
    return left_out


def everything(optimizer):
    saved = {name: repr(value) for name, value in optimizer.state_dict().items()}
    weights = {name: p.tobytes() for name, p in optimizer.named_parameters().items()}
    return saved, weights, repr(optimizer.skipped), optimizer.gradient_norm


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_step_that_leaps_touches_nothing_and_is_counted_apart(engine):
    optimizer = made(engine=engine, on_nonfinite="skip", ema=0.9, statistics=True, **ABOVE)
    watched(optimizer, SIZES[:4])
    before = optimizer.state_dict()
    weights = {name: p.copy() for name, p in optimizer.named_parameters().items()}
    assert watched(optimizer, SIZES[4:5], 4) == [True]
    optimizer.step({"w": np.full((5, 7), np.nan, np.float32), "b": np.zeros(40)})
    after = optimizer.state_dict()
    assert after["step"] == before["step"] == 4
    assert repr(after["state"]) == repr(before["state"])
    for name, p in optimizer.named_parameters().items():
        np.testing.assert_array_equal(p, weights[name])
    assert (after["skipped"], after["spikes"]["skipped"], after["spikes"]["count"]) == (1, 1, 5)
    assert repr(optimizer.skipped) == "Skipped(nonfinite=1, spikes=1)"
    assert optimizer.skipped == 2


def test_a_step_that_leaps_marks_nothing():
    optimizer = made(track_changes=True, **ABOVE)
    watched(optimizer, SIZES[:4])
    assert len(list(optimizer.changes())) == 2
    assert watched(optimizer, SIZES[4:5], 4) == [True]
    changes = optimizer.changes()
    assert changes.last_step == 4
    assert list(changes) == []


def test_a_step_that_leaps_is_no_error_where_those_that_are_not_finite_are():
    optimizer = made(on_nonfinite="raise", **ABOVE)
    assert watched(optimizer, SIZES[:5])[4]
    before = everything(optimizer)
    with pytest.raises(FloatingPointError, match="Gradients are NaN or infinite: b"):
        optimizer.step({"w": np.zeros((5, 7), np.float32), "b": np.full(40, np.inf)})
    assert everything(optimizer)[:3] == before[:3]


def through_state_dict(optimizer, _):
    other = made(**ABOVE)
    other.load_state_dict(optimizer.state_dict(), parameters=optimizer.named_parameters())
    return other


def through_a_file(optimizer, folder):
    other = made(**ABOVE)
    adamas.save(folder / "run.safetensors", optimizer)
    adamas.load(folder / "run.safetensors", other)
    return other


@pytest.mark.parametrize(
    "way",
    [
        through_state_dict,
        through_a_file,
        lambda optimizer, _: pickle.loads(pickle.dumps(optimizer)),
        lambda optimizer, _: copy.deepcopy(optimizer),
    ],
)
def test_a_run_goes_on_with_its_window_and_counts(way, tmp_path):
    unbroken = made(**ABOVE)
    expected = watched(unbroken)
    first = made(**ABOVE)
    found = watched(first, SIZES[:10])
    second = way(first, tmp_path)
    found += watched(second, SIZES[10:], 10)
    assert found == expected
    assert everything(second) == everything(unbroken)
    assert first.skipped.spikes == sum(expected[:10])  # and has a window of its own


def test_options_that_change_and_arrays_that_move_leave_the_window_as_it_is():
    judge, optimizer = made(**ABOVE), made(**ABOVE)
    expected = watched(judge)
    found = watched(optimizer, SIZES[:3])
    optimizer.clip_norm = 1e9
    found += watched(optimizer, SIZES[3:5], 3)
    optimizer.set_options(weight_decay=0.5)
    found += watched(optimizer, SIZES[5:8], 5)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.on_nonfinite = "skip"
    found += watched(optimizer, SIZES[8:], 8)
    assert found == expected
    assert repr(optimizer.state_dict()["spikes"]) == repr(judge.state_dict()["spikes"])


def test_a_window_begins_where_skip_above_is_set():
    optimizer = made(skip_window=6)
    assert not any(watched(optimizer))
    assert "spikes" not in optimizer.state_dict()
    optimizer.skip_above = 3.0
    assert watched(optimizer)[4]
    assert optimizer.state_dict()["phase"] == {"skip_above": 3.0}
    assert "skip_above=3.0" in repr(optimizer)


def test_what_has_a_window_that_no_run_leaves_is_refused_and_nothing_changes():
    optimizer = made(**ABOVE)
    watched(optimizer, SIZES[:6])
    before = everything(optimizer)
    saved = optimizer.state_dict()
    wrong = {**saved["spikes"], "norms": np.array([1.0, np.inf])}
    with pytest.raises(ValueError, match="norms has others than finite ones above 0"):
        optimizer.load_state_dict({**saved, "spikes": wrong})
    assert everything(optimizer) == before
    del saved["spikes"]  # of a run without a window
    optimizer.load_state_dict(saved)
    assert not any(watched(optimizer, [1.0, 1.1, 900.0]))


# ── a training ─────────────────────────────────────────────────────────────────────────────────

STEPS, BAD = 220, (110, 111, 150, 190)


def trained(bad=(), left_out=(), **options):
    """Fit a network with one hidden layer; labels of ``bad`` batches are nonsense, and large."""
    random = np.random.default_rng(0)
    weights = {"in": random.normal(size=(8, 16)) / 3, "out": random.normal(size=16) / 4}
    teacher = random.normal(size=8) / 3
    optimizer = adamas.Momentum(weights, lr=0.1, **options)
    losses = []
    for step in range(STEPS):
        x = np.random.default_rng(step).normal(size=(64, 8))
        hidden = np.tanh(x @ weights["in"])
        error = hidden @ weights["out"] - np.tanh(x @ teacher) - 300.0 * (step in bad)
        losses.append(float(np.mean(error * error)))
        toward = 2 / 64 * error
        back = toward[:, None] * weights["out"] * (1 - hidden * hidden)
        if step not in left_out:
            optimizer.step({"in": x.T @ back, "out": hidden.T @ toward})
    later = [loss for step, loss in enumerate(losses) if step > BAD[0] and step not in BAD]
    return losses, np.mean(later), weights, optimizer


def test_bad_batches_throw_a_run_off_but_not_one_that_leaves_them_out():
    losses, after, weights, optimizer = trained(BAD, skip_above=6.0)
    by_hand, _, expected, _ = trained(BAD, left_out=BAD)
    assert optimizer.skipped.spikes == len(BAD)
    assert losses == by_hand
    for name, p in weights.items():
        np.testing.assert_array_equal(p, expected[name])
    _, same, *_ = trained()
    _, thrown_off, *_ = trained(BAD)
    assert abs(after / same - 1) < 0.1
    assert thrown_off > 100 * same


def test_more_bad_batches_than_a_window_can_tell_are_a_level_that_is_taken_up():
    """Of n norms k are as large: sqrt((n - k) / k), nearly, is how far they lie above the mean."""
    many = tuple(range(110, 130))
    *_, optimizer = trained(many, skip_above=6.0)
    window = spikes.created(128)
    for norm in [1.0] * 100 + [1000.0] * 20:
        leaps = spikes.is_spike(window, norm, 6.0)
        window = spikes.entered(window, norm, is_left_out=leaps)
    assert 0 < optimizer.skipped.spikes < len(many)
    assert spikes.left_out(window) == 3
