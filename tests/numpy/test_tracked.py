"""What optimizers of arrays tell of the elements that steps have changed: that of a comparison."""

from __future__ import annotations

import copy
import pickle
import re
from functools import partial

import ml_dtypes
import numpy as np
import pytest

import adamas
from adamas.groups import Parameters
from tests.support.interrupts import interrupted_at, whole_or_nothing
from tests.support.runs import everything
from tests.support.told import bits_of

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SHAPES = [(5, 7), (33,), (), (0,), (64,), (2, 3, 4), (1025,)]
METHODS = [
    (adamas.Adam, {"amsgrad": True}),
    (adamas.AdamW, {"weight_decay": 0.1}),
    (adamas.Adam, {"state": "8bit"}),
    (adamas.Momentum, {"nesterov": True}),
    (adamas.RMSProp, {"state": "bfloat16"}),
]
KINDS = [
    (np.dtype(np.float32), {}),
    (np.dtype(np.float64), {"state": "float32"}),
    (np.dtype(np.float16), {"rounding": "stochastic"}),
    *((BFLOAT16, {"rounding": each}) for each in (None, "stochastic", "remainder", "remainder8")),
]


def flat_bits(array):
    return bits_of(np.ascontiguousarray(array).reshape(-1))


def laid_out(array, random):
    """The same values as they lie, in steps, or turned."""
    kind = random.integers(3)
    if kind == 0 or array.ndim < 2:
        return array
    if kind == 1:
        return np.asfortranarray(array)
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


class Followed:
    """A training, what must be marked of it by now, and a reader that takes changes over."""

    def __init__(self, seed, engine="native"):
        self.random = random = np.random.default_rng(seed)
        method, options = METHODS[random.integers(len(METHODS))]
        dtype, stored = KINDS[random.integers(len(KINDS))]
        self.weights = [
            {
                "params": {
                    f"w{i}": laid_out(random.standard_normal(shape).astype(dtype), random)
                    for i, shape in enumerate(SHAPES)
                    if random.random() < 0.7 or shape == (33,)
                }
            }
            for _ in range(2)
        ]
        rate = [1e-2, 1e-4, 3e-6][random.integers(3)]
        self.optimizer = method(
            self.weights, lr=rate, on_nonfinite="skip", ema=0.9, track_changes=True, engine=engine,
            **{**options, **stored},
        )  # fmt: skip
        self.marked = {name: np.zeros(p.size, bool) for name, p in self.named.items()}
        self.reader = {name: flat_bits(p).copy() for name, p in self.named.items()}
        self.first = 1

    @property
    def named(self):
        return self.optimizer.named_parameters()

    def gradients(self):
        return [
            {name: np.asarray(self.drawn(p.shape), p.dtype) for name, p in group["params"].items()}
            for group in self.trees
        ]

    @property
    def trees(self):
        return [{"params": each.tree} for each in self.optimizer.groups]

    def drawn(self, shape):
        values = self.random.standard_normal(shape) * (self.random.random(shape) < 0.3)
        return np.where(self.random.random(shape) < 0.02, -0.0, values)

    # -- what happens --------------------------------------------------------------------------

    def step(self):
        before = {name: flat_bits(p).copy() for name, p in self.named.items()}
        self.optimizer.step(self.gradients())
        for name, p in self.named.items():
            self.marked[name] |= flat_bits(p) != before[name]

    def step_left_out(self):
        gradients = self.gradients()
        gradients[0]["w1"][3] = np.nan
        self.optimizer.step(gradients)

    def set_options(self):
        self.optimizer.set_options(lr=2e-4)

    def load(self):
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        self.marked = {name: np.ones(p.size, bool) for name, p in self.named.items()}
        self.first = self.optimizer.steps + 1

    def average(self):
        with (
            self.optimizer.ema_weights(),
            pytest.raises(RuntimeError, match="The EMA weights are swapped in, so what steps have"),
        ):
            self.optimizer.changes()

    def pickled(self):
        self.optimizer = pickle.loads(pickle.dumps(self.optimizer))

    def copied(self):
        self.optimizer = copy.deepcopy(self.optimizer)

    def look(self, *, clear=False):
        changes = self.optimizer.changes(clear=clear)
        assert (changes.first_step, changes.last_step) == (self.first, self.optimizer.steps)
        assert changes.is_whole == all(each.all() for each in self.marked.values())
        found = list(changes)
        names = [name for name in self.named if self.marked[name].any()]
        assert [each.name for each in found] == names
        for name, indices, values, shape in found:
            p = self.named[name]
            assert (indices.dtype, values.dtype, shape) == (np.int32, p.dtype, p.shape)
            assert np.array_equal(indices, np.flatnonzero(self.marked[name]))
            if clear:
                self.reader[name][indices] = bits_of(values)
        if clear:
            self.marked = {name: np.zeros(p.size, bool) for name, p in self.named.items()}
            self.first = self.optimizer.steps + 1
            for name, p in self.named.items():
                assert np.array_equal(self.reader[name], flat_bits(p))

    def take_over(self):
        self.look(clear=True)


EVENTS = [
    *[Followed.step] * 6,
    Followed.step_left_out,
    Followed.set_options,
    Followed.load,
    Followed.average,
    Followed.pickled,
    Followed.copied,
    Followed.look,
    *[Followed.take_over] * 2,
]


@pytest.mark.parametrize(
    "block", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 11))]
)
def test_what_has_changed_is_what_a_comparison_finds_whatever_happens(block):
    for seed in range(100 * block, 100 * block + (100 if block else 20)):
        training = Followed(seed)
        for event in training.random.integers(len(EVENTS), size=10):
            EVENTS[event](training)
        training.take_over()


def test_the_reference_marks_what_a_comparison_finds():
    for seed in range(5):
        training = Followed(seed, "reference")
        for event in training.random.integers(len(EVENTS), size=8):
            EVENTS[event](training)
        training.take_over()


def test_the_kernels_mark_what_the_native_engine_marks(monkeypatch):
    pytest.importorskip("triton", reason="the kernels are Triton's")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    random = np.random.default_rng(0)
    start = [random.standard_normal(700).astype(np.float32), random.standard_normal((3, 5))]
    told = []
    for engine in ("native", "triton"):
        weights = copy.deepcopy(start)
        optimizer = adamas.Adam(weights, lr=3e-8, track_changes=True, engine=engine)
        drawn = np.random.default_rng(1)
        for _ in range(2):
            optimizer.step([drawn.standard_normal(p.shape).astype(p.dtype) for p in weights])
        told.append([(name, i.tobytes(), v.tobytes()) for name, i, v, _ in optimizer.changes()])
    assert told[0] == told[1]
    assert 0 < len(told[0][0][1]) < 4 * 700


def made(engine="native"):
    weights = {"a": np.zeros(70, np.float32), "b": np.zeros((6, 10))[:, ::2]}
    optimizer = adamas.Adam(weights, lr=0.5, track_changes=True, engine=engine)
    return weights, optimizer


def like(weights, value=1.0):
    return {name: np.full_like(p, value, order="C") for name, p in weights.items()}


def indices_of(optimizer, *, clear=False):
    return {each.name: each.indices.tolist() for each in optimizer.changes(clear=clear)}


def test_before_the_first_step_nothing_has_changed():
    _, optimizer = made()
    assert list(optimizer.changes()) == []
    assert repr(optimizer.changes()) == "<Changes: what has changed after step 0, without a step>"
    assert not optimizer.changes().is_whole


def test_bits_are_compared_and_not_values():
    weights = np.array([0.0, np.nan, 1.0, -0.0], np.float32)
    optimizer = adamas.Adam({"w": weights}, lr=1e-9, track_changes=True)
    optimizer.step({"w": np.array([0.0, 1.0, 1e-30, 1.0], np.float32)})
    assert indices_of(optimizer) == {"w": [3]}  # and not the NaN that is the same
    signs = np.array([-0.0, 1.0], np.float32)
    optimizer = adamas.Momentum({"w": signs}, lr=0.0, track_changes=True)
    optimizer.step({"w": np.full(2, -1.0, np.float32)})
    assert not np.signbit(signs[0])
    assert indices_of(optimizer) == {"w": [0]}


def test_who_stops_half_way_loses_nothing():
    weights, optimizer = made()
    optimizer.step(like(weights))
    for _ in optimizer.changes():
        break
    assert [*indices_of(optimizer, clear=True)] == ["a", "b"]
    assert indices_of(optimizer) == {}


@pytest.mark.parametrize("read", [0, 1, 2])
@pytest.mark.parametrize("event", ["step", "load", "other changes"])
def test_a_step_or_a_load_between_ends_the_telling_and_loses_nothing(event, read):
    weights, optimizer = made()
    optimizer.step(like(weights))
    telling = iter(optimizer.changes())
    for _ in range(read):
        next(telling)
    if event == "step":
        optimizer.step(like(weights))
    elif event == "load":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        list(optimizer.changes())
    why = "These changes have been told already|A step, a load, an added group or other changes"
    with pytest.raises(RuntimeError, match=why):
        list(telling)
    assert [*indices_of(optimizer)] == ([] if event == "other changes" else ["a", "b"])


def test_changes_are_refused_where_none_are_tracked():
    optimizer = adamas.Adam(np.ones(3))
    with pytest.raises(RuntimeError) as told:
        optimizer.changes()
    assert str(told.value) == (
        "Changes are not tracked. Create the optimizer with track_changes=True, and load the "
        "state_dict() of this one to go on."
    )
    with pytest.raises(TypeError, match=re.escape("clear is 1, but it must be True or False.")):
        made()[1].changes(clear=1)


def test_a_copy_keeps_marks_of_its_own():
    weights, optimizer = made()
    optimizer.step(like(weights))
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert indices_of(twin, clear=True) == indices_of(optimizer)
        assert indices_of(twin) == {}
    assert [*indices_of(optimizer)] == ["a", "b"]


@pytest.mark.parametrize("is_stepped", [False, True])
def test_all_has_changed_of_an_array_that_lies_elsewhere(is_stepped):
    weights = {"a": np.zeros((300, 400), np.float32), "b": np.zeros(40, np.float32)}
    optimizer = adamas.Adam(weights, track_changes=True)
    optimizer.step(like(weights, 0.0))
    assert indices_of(optimizer) == {}
    place, kept = weights["a"].ctypes.data, []
    for factor in range(2, 40):  # until there is no room behind it
        weights["a"].resize((300 * factor, 400), refcheck=False)
        weights["a"].resize((300, 400), refcheck=False)
        kept.append(np.ones((300, 400), np.float32))
        if weights["a"].ctypes.data != place:
            break
    assert weights["a"].ctypes.data != place
    if is_stepped:
        optimizer.step(like(weights, 0.0))
    assert indices_of(optimizer, clear=True) == {"a": list(range(120_000))}
    optimizer.step(like(weights, 0.0))
    assert indices_of(optimizer) == {}


@pytest.mark.parametrize("engine", ["native", "reference"])
def test_an_interrupted_step_leaves_marks_and_arrays_together(engine):
    def make():
        weights, optimizer = made(engine)
        optimizer.step(like(weights))
        indices_of(optimizer, clear=True)
        gradients = like(weights)
        return (
            lambda: optimizer.step(gradients),
            lambda: (everything(optimizer), indices_of(optimizer)),
        )

    assert whole_or_nothing(make, most=60) == {"nothing", "whole"}


def told(optimizer):
    return list(optimizer.changes())


def test_an_interrupted_telling_has_told_all_or_loses_nothing():
    place, seen = 0, set()
    while True:
        weights, optimizer = made()
        optimizer.step(like(weights))
        all_of_it, follows = indices_of(optimizer), optimizer.changes(clear=False).follows
        work = partial(told, optimizer)
        if not interrupted_at(place, work, KeyboardInterrupt):
            break
        left = optimizer.changes()
        found = {each.name: each.indices.tolist() for each in left}
        assert found in ({}, all_of_it)
        assert left.first_step == (1 if found else 2)
        assert (left.follows == follows) is bool(found)
        seen.add(bool(found))
        optimizer.step(like(weights))
        place += 1
    assert True in seen


@pytest.mark.parametrize("method", [adamas.Adam, adamas.AdamW, adamas.Momentum, adamas.RMSProp])
def test_tracking_changes_no_bit_of_anything_else(method):
    random = np.random.default_rng(0)
    start = [random.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    left = []
    for tracks in (False, True):
        weights = copy.deepcopy(start)
        optimizer = method(weights, ema=0.9, statistics=True, track_changes=tracks)
        drawn = np.random.default_rng(1)
        for _ in range(3):
            optimizer.step([drawn.standard_normal(p.shape).astype(np.float32) for p in weights])
        left.append((everything(optimizer), repr(optimizer.statistics())))
    assert left[0] == left[1]


def test_names_are_gathered_once_for_all_that_is_told(monkeypatch):
    """Once for each of thousands of arrays took minutes."""
    gathered = []
    named = Parameters.named.fget
    monkeypatch.setattr(Parameters, "named", property(lambda p: gathered.append(p) or named(p)))
    counts = []
    for length in (2, 40):
        optimizer = adamas.Adam([np.zeros(3) for _ in range(length)], track_changes=True)
        optimizer.step([np.ones(3)] * length)
        gathered.clear()
        assert len(list(optimizer.changes())) == length
        counts.append(len(gathered))
    assert counts[0] == counts[1] < 4
