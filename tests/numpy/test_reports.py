"""What optimizers of arrays tell of a step as a whole, and whom they tell that it was made."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest

import adamas
from adamas import statistics

ENGINES = ["native", "reference"]

SHAPES = {"matrix": (40, 37), "row": (1, 1029), "one": (), "none": (0,)}


def arrays(seed, scale=1.0, dtype=np.float32):
    random = np.random.default_rng(seed)
    made = {name: scale * random.standard_normal(shape) for name, shape in SHAPES.items()}
    return {name: np.asarray(each, dtype) for name, each in made.items()}


def scalars(optimizer):
    return optimizer.statistics(summary=True)


# ── statistics(summary=True) ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_norms_of_the_whole_step_are_those_of_all_arrays_as_one_vector(dtype, engine):
    weights, gradients = arrays(0, dtype=dtype), arrays(1, 3.0, dtype)
    before = {name: each.copy() for name, each in weights.items()}
    optimizer = adamas.AdamW(weights, lr=0.01, statistics=True, engine=engine)
    optimizer.step(gradients)
    told = scalars(optimizer)
    assert told["gradient_norm"] == statistics.norm(gradients.values())
    assert told["parameter_norm"] == statistics.norm(before.values())
    each = optimizer.statistics()
    rounded = math.sqrt(sum(one.update_norm**2 for one in each.values()))
    assert told["update_norm"] == pytest.approx(rounded, rel=1e-15)
    assert told["update_ratio"] == told["update_norm"] / told["parameter_norm"]
    assert told["largest_update"] == max(one.largest_update for one in each.values())


def test_counts_of_the_whole_step_weigh_elements_and_not_arrays():
    weights = {"small": np.zeros(2, np.float32), "large": np.zeros(62, np.float32)}
    optimizer = adamas.Adam(weights, lr=0.1, statistics=True)
    one = np.zeros(62, np.float32)
    one[:3] = 1.0, np.inf, np.nan
    optimizer.step({"small": np.ones(2, np.float32), "large": one})
    told = scalars(optimizer)
    assert told["unmoved"] == 59 / 64
    assert told["nonfinite"] == 2
    assert math.isnan(told["largest_update"])
    assert math.isnan(told["gradient_norm"])


def test_a_summary_is_a_dozen_plain_numbers_that_loggers_take():
    optimizer = adamas.Adam(arrays(0), lr=0.1, clip_norm=1e-3, statistics=True)
    optimizer.step(arrays(1))
    told = scalars(optimizer)
    assert {type(value) for value in told.values()} == {float}
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert sorted(told) == [
        *("clip_factor", "gradient_norm", "largest_update", "lr", "nonfinite", "parameter_norm"),
        *("skipped", "skipped_nonfinite", "skipped_spikes", "unmoved", "update_norm"),
        "update_ratio",
    ]
    assert told["clip_factor"] == optimizer.clip_factor == 1e-3 / told["gradient_norm"]
    assert told["lr"] == 0.1


def test_the_rate_of_a_summary_is_that_of_the_last_step():
    optimizer = adamas.Adam(arrays(0), lr=lambda step: 1 / step, statistics=True)
    for number in (1, 2, 3):
        optimizer.step(arrays(1))
        assert scalars(optimizer)["lr"] == 1 / number


def test_a_summary_of_a_step_that_was_left_out_has_what_is_known():
    optimizer = adamas.Adam(arrays(0), lr=0.1, on_nonfinite="skip", clip_norm=1.0, statistics=True)
    with pytest.raises(RuntimeError, match="There are no statistics"):
        scalars(optimizer)
    optimizer.step({**arrays(1), "one": np.float32(np.inf)[...]})
    assert scalars(optimizer) == {
        "gradient_norm": math.inf,
        "lr": 0.1,
        "skipped": 1.0,
        "skipped_nonfinite": 1.0,
        "skipped_spikes": 0.0,
    }
    with pytest.raises(RuntimeError, match="There are no statistics"):
        optimizer.statistics()


def test_a_summary_without_statistics_says_how_to_get_them():
    optimizer = adamas.Adam(arrays(0))
    optimizer.step(arrays(1))
    with pytest.raises(RuntimeError, match="Create the optimizer with statistics=True"):
        scalars(optimizer)


# ── clip_factor ────────────────────────────────────────────────────────────────────────────────


def test_the_clip_factor_is_that_of_the_last_step():
    weights, gradient = np.zeros(2), np.array([3.0, 4.0])
    optimizer = adamas.Adam(weights)
    optimizer.step(gradient)
    assert optimizer.clip_factor is None
    optimizer.clip_norm = 2.5
    assert optimizer.clip_factor is None
    optimizer.step(gradient)
    assert optimizer.clip_factor == 0.5
    optimizer.clip_norm = 1.0
    optimizer.clip_norm = None
    assert optimizer.clip_factor == 0.5
    optimizer.clip_norm = 10.0
    optimizer.step(gradient)
    assert optimizer.clip_factor == 1.0
    optimizer.on_nonfinite = "skip"
    optimizer.step(np.array([np.nan, 1.0]))
    assert optimizer.clip_factor is None


# ── register_step_post_hook ────────────────────────────────────────────────────────────────────


def test_hooks_are_called_in_order_after_each_step_with_what_it_was_given():
    weights, gradient, seen = np.zeros(3), np.ones(3), []
    optimizer = adamas.Adam(weights, lr=0.1)
    first = optimizer.register_step_post_hook(
        lambda *given: seen.append((*given, optimizer.steps, weights[0]))
    )
    optimizer.register_step_post_hook(lambda *_: seen.append("second"))
    optimizer.step(gradient)
    (stepped, args, kwargs, steps, value), second = seen
    assert (stepped, kwargs, steps, second) == (optimizer, {}, 1, "second")
    assert args[0] is optimizer
    assert args[1] is gradient
    assert value == weights[0] < 0
    first.remove()
    first.remove()
    optimizer.step(gradient)
    assert seen[2:] == ["second"]


def test_a_hook_may_take_itself_away_and_ask_the_optimizer_anything():
    optimizer = adamas.Adam(np.zeros(3), lr=0.1)
    seen = []

    def once(stepped, args, kwargs):
        handle.remove()
        stepped.lr = 0.2
        seen.append(stepped.state_dict()["step"])

    handle = optimizer.register_step_post_hook(once)
    optimizer.step(np.ones(3))
    optimizer.step(np.ones(3))
    assert seen == [1]
    assert optimizer.lr == 0.2


def test_what_a_hook_raises_the_step_raises_and_the_step_is_made():
    optimizer = adamas.Adam(np.zeros(3), lr=0.1)

    def fail(*_):
        raise KeyError("mine")

    with optimizer.register_step_post_hook(fail), pytest.raises(KeyError, match="mine"):
        optimizer.step(np.ones(3))
    assert optimizer.steps == 1
    optimizer.step(np.ones(3))
    assert optimizer.steps == 2


def test_no_hook_is_called_where_a_step_is_refused():
    optimizer = adamas.Adam(np.zeros(3), lr=0.1, on_nonfinite="raise")
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    for gradient in (np.ones(4), np.array([1.0, np.nan, 1.0])):
        with pytest.raises((ValueError, FloatingPointError)):
            optimizer.step(gradient)
    assert seen == []


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))]
)
def test_copies_have_no_hooks(copied):
    optimizer = adamas.Adam(np.zeros(3), lr=0.1)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))
    copied(optimizer).step(np.ones(3))
    assert seen == []
    optimizer.step(np.ones(3))
    assert seen == [1]
