"""Marks of the elements that steps change: those of a comparison of all bits, on every machine."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from adamas import marks, state
from adamas.arrays import as_bits
from adamas.engines import Group, Slot, native, reference
from adamas.options import Options, Phase

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SIZES = [0, 1, 31, 32, 33, 255, 256, 257, 1023, 1024, 1025, 3000]
FORMS = ["float32", "bfloat16", "compact", "8bit", ("8bit", "float32"), ("float32", "bfloat16")]
#: Dtype of the parameters, and how they are rounded; the forms are all possible with it.
STORED = [
    (np.dtype(np.float32), None),
    (np.dtype(np.float64), None),
    (np.dtype(np.float16), None),
    (np.dtype(np.float16), "stochastic"),
    (BFLOAT16, "nearest"),
    (BFLOAT16, "stochastic"),
    (BFLOAT16, "remainder"),
    (BFLOAT16, "remainder8"),
]
BETAS = [(0.9, 0.999), (0.9, None), (None, 0.9)]


@pytest.fixture(params=[name for name, runs in native.targets().items() if runs])
def machine(request):
    before = native.target()
    native.set_target(request.param)
    yield request.param
    native.set_target(before)


def drawn(random, size, dtype):
    """Values of every kind: of all sizes, NaN, zeros of both signs, subnormal ones."""
    values = random.standard_normal(size) * 10.0 ** random.integers(-8, 3, size)
    kinds = random.random(size)
    values[kinds < 0.05] = 0.0
    values[(kinds > 0.05) & (kinds < 0.1)] = -0.0
    values[(kinds > 0.1) & (kinds < 0.12)] = np.nan
    values[(kinds > 0.12) & (kinds < 0.15)] = 1e-42
    with np.errstate(all="ignore"):
        return values.astype(dtype)


class Case:
    """Arrays, how they are stored and stepped, and marks of them."""

    def __init__(self, seed, size=None, **given):
        self.random = random = np.random.default_rng(seed)
        drawn_kind = STORED[random.integers(len(STORED))]
        dtype, rounding = given.get("stored", drawn_kind)
        form = FORMS[random.integers(len(FORMS))] if dtype != np.float64 else "float32"
        betas = BETAS[random.integers(len(BETAS))]
        if betas[1] is None and form != "float32":
            form = "bfloat16"
        can_keep_largest = betas[1] is not None and form in ("float32", ("8bit", "float32"))
        self.options = Options(
            lr=1e-3, betas=betas, state=form, rounding=rounding,
            amsgrad=can_keep_largest and bool(random.integers(2)),
        )  # fmt: skip
        is_described = bool(random.integers(2))
        self.phase = Phase(
            ema=0.9 if random.integers(2) else None,
            statistics=is_described,
            on_nonfinite="skip",
            clip_norm=1.0 if random.integers(2) else None,
        )
        self.dtype = dtype
        self.size = int(random.choice(SIZES)) if size is None else size
        self.start = drawn(random, self.size, self.dtype)

    def gradient(self):
        values = self.random.standard_normal(self.size) * (self.random.random(self.size) < 0.5)
        return (values * 10.0 ** self.random.integers(-4, 2)).astype(self.dtype)

    def plan(self, engine, *, tracks=True):
        p = self.start.copy()
        bits = as_bits(p)
        kept = state.create(bits, self.options, ema=self.phase.ema is not None)
        words = marks.none(self.size) if tracks else None
        slot = Slot(bits, kept, array=None if bits is p else p, marks=words)
        made = engine.Plan([Group(self.options, (slot,))], self.phase)
        return made, bits, kept, words


def check(seed, **given):
    """Step one case by both engines; each must have marked what its bits say."""
    case = Case(seed, **given)
    gradients = [case.gradient() for _ in range(3)]
    rates = [[1e-2], [1e-5], [3e-8]]
    if case.size and seed % 3 == 0:
        gradients[1][case.size // 2] = np.inf  # this step is left out
    found = []
    for engine in (native, reference):
        plan, bits, kept, words = case.plan(engine)
        untracked, other, other_kept, _ = case.plan(engine, tracks=False)
        expected = marks.none(case.size)
        for number, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
            before = bits.copy()
            for each in (plan, untracked):
                assert each.step([gradient], number, rate) is not NotImplemented
            expected |= marks.between(before, bits)
            assert words.tobytes() == expected.tobytes(), (seed, engine, number)
        assert bits.tobytes() == other.tobytes()
        for entry, twin in zip(kept.entries, other_kept.entries, strict=True):
            assert (entry is None) == (twin is None)
            assert entry is None or entry.tobytes() == twin.tobytes()
        found.append(words.tobytes())
    assert found[0] == found[1], seed


@pytest.mark.parametrize(
    "block", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 3))]
)
def test_marks_are_what_a_comparison_of_all_bits_finds(machine, block):
    for seed in range(1000 * block, 1000 * block + (1000 if block else 60)):
        check(seed)


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_marks_are_right_at_every_edge_of_words_strips_and_tiles(machine, stored):
    for size in SIZES:
        check(size, size=size, stored=stored)


def test_threads_change_no_mark():
    before = native.get_num_threads()
    size = 1 << 19
    found = []
    for threads in (1, 2, 7):
        native.set_num_threads(threads)
        try:
            case = Case(7, size=size, stored=STORED[0])
            plan, bits, _, words = case.plan(native)
            gradient = case.gradient()
            start = bits.copy()
            for number in (1, 2):
                plan.step([gradient], number, [1e-7])
            assert words.tobytes() == marks.between(start, bits).tobytes()
            found.append(words.tobytes())
        finally:
            native.set_num_threads(before)
    assert len({*found}) == 1
    assert 0 < native.marked_count(words, size) < size


def test_a_plan_refuses_marks_that_do_not_fit():
    case = Case(1, size=100, stored=STORED[0])
    p = case.start.copy()
    kept = state.create(p, case.options, ema=case.phase.ema is not None)
    for words in (np.zeros(3, np.int32), np.zeros(8, np.int32)[::2], np.zeros(5, np.int32)):
        with pytest.raises(ValueError, match="A plan needs"):
            native.Plan([Group(case.options, (Slot(p, kept, marks=words),))], case.phase)


@pytest.mark.parametrize("size", [*SIZES, 40_000, 3_000_000])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_indices_are_those_of_the_bits(size, share):
    flags = np.random.default_rng(size).random(size) < share
    words = marks.between(np.zeros(size, np.float32), flags.astype(np.float32))
    assert np.array_equal(flags, unpacked(words, size))
    indices = native.marked(words, size)
    assert indices.dtype == np.int32
    assert np.array_equal(indices, np.flatnonzero(flags))
    assert native.marked_count(words, size) == flags.sum()


def unpacked(words, size):
    little = words.astype("<i4").view(np.uint8)
    flags = np.unpackbits(little, bitorder="little").astype(bool)
    assert not flags[size:].any()
    return flags[:size]


@pytest.mark.parametrize("size", SIZES)
def test_all_are_marked_and_none(size):
    assert unpacked(marks.every(size), size).all()
    assert not unpacked(marks.none(size), size).any()
    assert native.marked_count(marks.every(size), size) == size


def test_bits_are_compared_and_not_values():
    before = np.array([0.0, np.nan, 1.0, 0.0], np.float32)
    after = np.array([-0.0, np.nan, 1.0, 1e-45], np.float32)
    assert native.marked(marks.between(before, after), 4).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("words", "count", "told"),
    [
        (np.zeros(3, np.int32), 200, "Marks are a C-contiguous array of int32"),
        (np.zeros(3, np.int64), 96, "Marks are a C-contiguous array of int32"),
        (np.zeros(6, np.int32)[::2], 96, "Marks are a C-contiguous array of int32"),
        (np.zeros(3, np.int32), -1, "count is -1, but it must be from 0 to"),
    ],
)
def test_marks_that_do_not_fit_are_refused(words, count, told):
    for read in (native.marked, native.marked_count):
        with pytest.raises(ValueError, match=re.escape(told)):
            read(words, count)
