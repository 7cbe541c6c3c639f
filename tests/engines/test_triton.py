"""The Triton engine gives the bits of the reference: without a GPU in Triton's interpreter.

Where what is covered: all options, early and late steps: ``every_combination``; sizes and forms:
``every_form``; half precision: ``every_rounding``; phases: ``every_phase`` and what follows it;
exact sums: ``the_exact_sum``. :mod:`test_triton_compiled` looks at the compiled kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import random as plain_random

import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from adamas import codecs
from adamas import state as states
from adamas.coefficients import StepNumbers, at_step, clip_factor, ema_weights
from adamas.engines import Group, Slot, reference
from adamas.engines import triton as engine
from adamas.engines.triton import sums, tables
from adamas.engines.triton.rule import OPTIONS
from adamas.options import Options, Phase
from adamas.rule import rule
from adamas.statistics import TILE, norm
from tests.support.cases import (
    FLOATS,
    FORMS,
    METHODS,
    PHASES,
    Run,
    bits,
    differences,
    every_option,
    ordinary,
    run,
    special,
    wide,
)
from tests.support.triton_plans import DEVICE, plan_with, shifted, with_copy

CHUNK = tables.CHUNK.value
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Every dtype of half precision with every rounding it can have.
HALVES = [
    *((BFLOAT16, rounding) for rounding in ("nearest", "stochastic", "remainder", "remainder8")),
    *((np.dtype(np.float16), rounding) for rounding in ("nearest", "stochastic")),
]
IDS = [f"{dtype}-{rounding}" for dtype, rounding in HALVES]


def as_stored(values, dtype):
    """Round to the dtype; bfloat16 as its bits."""
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
    return rounded.view(np.uint16) if dtype == BFLOAT16 else rounded


def drawn(dtype, kinds, steps=2, seed=0):
    """Parameters and gradients: ``kinds`` are pairs of how numbers are drawn and how many."""
    random = np.random.default_rng(seed)
    own = np.float64 if dtype == np.float64 else np.float32

    def arrays():
        return [as_stored(values(random, size, own), dtype) for values, size in kinds]

    return arrays(), [arrays() for _ in range(steps)]


def agrees(options, phase, parameters, gradients, **more):
    """Assert that both engines leave the same bits; return what they leave."""
    judge = run(reference, options, phase, parameters, gradients, **more)
    found = run(engine, options, phase, parameters, gradients, **more)
    assert differences(judge, found) == []
    return judge


# ── options ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_combination_of_options_gives_the_bits_of_the_reference(dtype, method):
    options = every_option(method)
    # Numbers of a step are float64 for both dtypes, so that one may take early steps, one late.
    late = (10**6, 2**24 - 2)[len(method) % 2]
    first = 1 if dtype == np.float32 else late
    kinds = [((ordinary, wide, special)[i % 3], 5) for i in range(len(options))]
    agrees(options, Phase(), *drawn(dtype, kinds), first=first)


# ── sizes and forms ────────────────────────────────────────────────────────────────────────────

SIZES = (0, 1, 31, 32, 33, TILE - 1, TILE, TILE + 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 70)
KINDS = [*((ordinary, size) for size in SIZES), (wide, TILE + 33), (special, TILE + 33)]
FEW = [(ordinary, 33), (wide, TILE + 70), (special, TILE + 70)]


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_every_form_of_state_gives_the_bits_of_the_reference(forms, rounding):
    options = Options(lr=0.1, state=forms, rounding=rounding)
    agrees(options, Phase(seed=2**63 + 5), *drawn(np.float32, KINDS))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_size_gives_the_bits_of_the_reference(dtype):
    agrees(Options(lr=0.1, amsgrad=True), Phase(ema=0.9), *drawn(dtype, KINDS))


@pytest.mark.parametrize("betas", [(None, 0.99), (0.9, None), (0.5, 0.9), (0.999, 0.9)])
def test_forms_of_other_methods_give_the_bits_of_the_reference(betas):
    """With these the tops of m differ, and one of the two may be missing."""
    both = None not in betas
    for form in ("compact", "8bit") if both else ("bfloat16", "8bit" if betas[1] else "bfloat16"):
        options = Options(lr=0.1, betas=betas, state=form)
        agrees(options, Phase(), *drawn(np.float32, FEW, steps=3))


# ── half precision ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("forms", [("float32", "float32"), *FORMS], ids="-".join)
@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_every_rounding_of_parameters_gives_the_bits_of_the_reference(dtype, rounding, forms):
    options = Options(lr=0.1, rounding=rounding, weight_decay=0.01, state=forms)
    agrees(options, Phase(seed=5), *drawn(dtype, FEW))


@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_whole_chunks_of_half_precision_give_the_bits_of_the_reference(dtype, rounding):
    kinds = [(ordinary, CHUNK + 70), (wide, CHUNK), (special, CHUNK)]
    agrees(Options(lr=0.1, rounding=rounding, amsgrad=True), Phase(ema=0.5), *drawn(dtype, kinds))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_steps_half_precision_with_the_bits_of_the_reference(method):
    for dtype, rounding in HALVES[2:5]:
        options = Options(lr=0.1, rounding=rounding, **METHODS[method])
        agrees(options, Phase(), *drawn(dtype, FEW[:2]))


# ── phases ─────────────────────────────────────────────────────────────────────────────────────

DTYPES = [(np.float32, None), (np.float64, None), HALVES[0], HALVES[3], HALVES[5]]


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("dtype", "rounding"), DTYPES)
def test_every_phase_gives_the_bits_of_the_reference(dtype, rounding, phase):
    options = Options(lr=0.1, rounding=rounding, state="float32")
    kinds = [(ordinary, 0), (ordinary, 33), (ordinary, TILE + 70)]
    found = agrees(options, PHASES[phase], *drawn(dtype, kinds))
    assert (found.outcomes[0] is None) == (phase in ("plain", "ema"))


@pytest.mark.parametrize("dtype", FLOATS)
def test_statistics_of_any_numbers_and_whole_chunks_give_the_bits_of_the_reference(dtype):
    kinds = [(wide, 70), (special, 70), (ordinary, CHUNK + TILE + 1)]
    agrees(Options(lr=0.1, eps=0.0), Phase(statistics=True), *drawn(dtype, kinds, steps=1))


@pytest.mark.parametrize("state", ["8bit", ("compact", "bfloat16")])
def test_statistics_of_small_forms_give_the_bits_of_the_reference(state):
    kinds = [(ordinary, 33), (ordinary, TILE + 70)]
    agrees(Options(lr=0.1, state=state), PHASES["all"], *drawn(np.float32, kinds))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_gradients_that_are_not_finite_do_what_they_do_in_the_reference(policy, bad):
    parameters, gradients = drawn(np.float32, [(ordinary, 33), (ordinary, TILE + 70)], steps=3)
    gradients[1][1][TILE + 69] = bad
    phase = Phase(on_nonfinite=policy, clip_norm=1.0, statistics=policy == "skip")
    found = agrees(Options(lr=0.1), phase, parameters, gradients)
    assert [each.applied for each in found.outcomes] == [True, policy == "propagate", True]
    assert found.outcomes[1].nonfinite == (0, 1)


@pytest.mark.parametrize("size", [2.0**1000, 2.0**-1000, 2.0**-1060, 2.0**510, 0.0, 1.0])
def test_norms_that_leave_float64_clip_as_they_do_in_the_reference(size):
    parameters, gradients = drawn(np.float64, [(ordinary, 33), (ordinary, TILE + 70)])
    gradients = [[each * size for each in step] for step in gradients]
    for clip in (1.0, 1e-300):
        found = agrees(Options(lr=0.1), Phase(clip_norm=clip), parameters, gradients)
        expected = norm(gradients[0])
        assert found.outcomes[0].norm == expected
        assert (0 < expected < math.inf) == (size > 0)


def test_tensors_of_all_dtypes_have_one_norm_and_their_own_bits():
    random = np.random.default_rng(3)
    dtypes = [np.float32, np.float64, BFLOAT16, np.float16, np.float64, np.float32]

    def arrays():
        return [as_stored(ordinary(random, 40 + i, np.float32), each)
                for i, each in enumerate(dtypes)]  # fmt: skip

    options = [Options(lr=0.1 * i, state="8bit" if i in (0, 2) else "float32") for i in range(6)]
    found = agrees(options, PHASES["all"], arrays(), [arrays(), arrays()])
    assert len(found.outcomes[0].statistics) == 6


# ── where elements are ─────────────────────────────────────────────────────────────────────────

#: Where slices of tensors begin: also so that 2^32 is within them.
FIRSTS = (32, 2**32 - 32, 2**32 - 64 * 9, 2**32, 2**40 + 96)


@pytest.mark.parametrize("forms", ["8bit", "compact", "bfloat16"])
def test_slices_know_their_place_as_in_the_reference(forms):
    size = 70 * 9
    for dtype, rounding in ((np.float32, None), *HALVES[1:4:2]):
        options = Options(lr=0.1, state=forms, rounding=rounding)
        parameters, gradients = drawn(dtype, [(ordinary, size)] * len(FIRSTS))
        runs = []
        for each in (reference, engine):
            values = [p.copy() for p in parameters]
            slots = tuple(
                Slot(p, states.create(p, options), number=7 + 2**33, first=first)
                for p, first in zip(values, FIRSTS, strict=True)
            )
            plan = each.Plan([Group(options, slots)], Phase(seed=9))
            for number, step in enumerate(gradients, 1):
                plan.step(step, number, [0.1])
            arrays = {f"{i}": p for i, p in enumerate(values)}
            arrays |= {f"{i}.{k}": x for i, slot in enumerate(slots)
                       for k, x in slot.state.arrays().items()}  # fmt: skip
            runs.append(Run(arrays, []))
        assert differences(*runs) == []


def beyond(plan, offset):
    """Let a plan of one tensor find its elements ``offset`` further on in arrays that begin
    ``offset`` elements earlier, and only the chunks that are there."""
    (part,) = plan.launches.parts
    job, row = plan.jobs[0], part.table[0]
    for name, column in tables.ADDRESSES.items():
        tensor = getattr(job, name)
        if tensor is not None:
            elements = offset // 32 if name == "header" else offset
            row[column.value] -= elements * tensor.element_size()
    row[tables.COUNT.value] += offset
    row[tables.FIRST_TILE.value] -= offset // TILE
    for launch in part.chunks:
        launch.chunks.add_(offset // CHUNK)
    step = plan.launches.step

    def shifted(inputs, skipped):
        before = offset * job.parameter.element_size()
        addresses = inputs.gradients - before
        moved = inputs._replace(gradients=addresses, ordered_gradients=addresses)
        return step(moved, skipped)

    plan.launches.step = shifted


@pytest.mark.parametrize("offset", [2**31, 2**32 + 5 * CHUNK])
@pytest.mark.parametrize(
    ("dtype", "options", "copy"),
    [
        (np.float32, Options(lr=0.1, amsgrad=True), "bfloat16"),
        (np.float64, Options(lr=0.1, amsgrad=True), "float16"),
        (np.float32, Options(lr=0.1, state="8bit"), None),
        (BFLOAT16, Options(lr=0.1, state="compact", rounding="remainder8"), None),
        (BFLOAT16, Options(lr=0.1, state="bfloat16", rounding="remainder"), "bfloat16"),
        (np.dtype(np.float16), Options(lr=0.1, state="8bit", rounding="stochastic"), "float16"),
    ],
)
def test_arrays_may_have_more_than_2_to_the_31_elements(dtype, options, copy, offset):
    """All arrays that a kernel reads or writes: none would be where a 32-bit offset points to."""
    size = CHUNK + TILE + 70
    parameters, (gradient,) = drawn(dtype, [(ordinary, size)], steps=1)
    phase = Phase(clip_norm=1.0, ema=0.9)
    runs = []
    for each in (reference, with_copy(copy)):
        p = parameters[0].copy()
        # Random bits belong to places: the reference is told, the kernels are there.
        first = offset if each is reference else 0
        slot = Slot(p, states.create(p, options, ema=True), first=first)
        plan = each.Plan([Group(options, (slot,))], phase)
        if each is not reference:
            beyond(plan, offset)
        outcome = plan.step([gradient[0]], 1, [0.1])
        runs.append(Run({"p": p, **slot.state.arrays()}, [outcome]))
    assert differences(*runs) == []
    assert not np.array_equal(runs[0].arrays["p"], parameters[0])
    if copy is not None:
        state = slot.state
        assert same(copied(p, state.remainder, copy), copy_of(plan, 0))


def test_statistics_may_be_of_more_than_2_to_the_31_elements():
    parameters, (gradient,) = drawn(np.float64, [(ordinary, TILE + 70)], steps=1)
    options, phase, offset, found = Options(lr=0.1), Phase(statistics=True), 2**33, []
    for each in (reference, engine):
        p = parameters[0].copy()
        plan = each.Plan([Group(options, (Slot(p, states.create(p, options)),))], phase)
        if each is engine:
            beyond(plan, offset)
        found.append(plan.step(gradient, 1, [0.1]).statistics[0])
    # All elements have moved but those that are not there.
    unmoved = offset / (offset + TILE + 70)
    assert dataclasses.replace(found[0], unmoved=unmoved) == found[1]


@pytest.mark.parametrize("what", ["parameter", "gradient", "state", "everything"])
@pytest.mark.parametrize(("dtype", "rounding"), [DTYPES[0], DTYPES[1], HALVES[3]])
def test_addresses_need_not_be_multiples_of_16(dtype, rounding, what):
    options = Options(lr=0.1, rounding=rounding, state="float32" if dtype == np.float64 else "8bit")
    parameters, gradients = drawn(dtype, [(ordinary, CHUNK + 70)])

    def moved(array):
        """The same elements: torch takes them where they are, if it computes on the CPU."""
        memory = np.zeros(array.size + 32, array.dtype)
        start = -memory.ctypes.data % 16 // array.itemsize + 1
        memory[start : start + array.size] = array.ravel()
        return memory[start : start + array.size].reshape(array.shape)

    everything = what == "everything"
    names = ["parameter"] if everything or what == "parameter" else []
    names += ["mean", "square", "remainder"] if everything or what == "state" else []

    def changed(job):
        tensors = {name: getattr(job, name) for name in names}
        return job._replace(
            **{name: shifted(each) for name, each in tensors.items() if each is not None}
        )

    judge = run(reference, options, Phase(), parameters, gradients)
    p = parameters[0].copy()
    slot = Slot(p, states.create(p, options))
    plan = plan_with([Group(options, (slot,))], Phase(), changed)
    for name in names:
        assert getattr(plan.jobs[0], name) is None or getattr(plan.jobs[0], name).data_ptr() % 16
    for number, (gradient,) in enumerate(gradients, 1):
        is_moved = everything or what == "gradient"
        plan.step([moved(gradient) if is_moved else gradient], number, [0.1])
    arrays = {"0": p, **{f"0.{k}": x for k, x in slot.state.arrays().items()}}
    assert differences(judge, Run(arrays, judge.outcomes)) == []


# ── copies ─────────────────────────────────────────────────────────────────────────────────────


def same(a, b):
    return np.array_equal(bits(a), bits(b))


def copied(stored, remainder, dtype):
    """Parameters rounded to nearest, as float32."""
    value = codecs.decode_parameter(stored, remainder)
    with np.errstate(all="ignore"):
        rounded = value.astype(np.float32).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    return rounded.astype(np.float32)


def copy_of(plan, index):
    return plan.jobs[index].copy.float().cpu().numpy()


@pytest.mark.parametrize("copy", ["bfloat16", "float16"])
@pytest.mark.parametrize(("dtype", "rounding"), [*DTYPES, HALVES[2]])
def test_copies_are_parameters_rounded_to_nearest(dtype, rounding, copy):
    options = Options(lr=1e-3, rounding=rounding)
    parameters, (gradients,) = drawn(dtype, [*FEW, (ordinary, CHUNK)], steps=1)
    slots = tuple(Slot(p, states.create(p, options)) for p in parameters)
    plan = with_copy(copy).Plan([Group(options, slots)], Phase())
    plan.step(gradients, 1, [1e-3])
    for i, slot in enumerate(slots):
        assert same(copied(slot.parameter, slot.state.remainder, copy), copy_of(plan, i))


# ── what a step is given ───────────────────────────────────────────────────────────────────────


def on_device(number, dtype=torch.float32, shape=()):
    return torch.full(shape, number, dtype=dtype, device=DEVICE)


class Given:
    """One tensor that both the rule itself and the engine step."""

    options = Options(lr=0.1, weight_decay=0.01)

    def __init__(self, phase=None, **replaced):
        phase = phase or Phase()
        (p,), self.gradients = drawn(np.float32, [(ordinary, 50)], steps=3)
        self.expected = (p, np.zeros_like(p), np.zeros_like(p))
        self.found = p.copy()
        self.state = states.create(p, self.options, ema=phase.ema is not None)
        slot = Slot(self.found, self.state)
        self.plan = plan_with(
            [Group(self.options, (slot,))], phase, lambda job: job._replace(**replaced)
        )
        #: Steps, steps left out, last outcome.
        self.record = [0, 0, None]

    def expect(self, step, lr=0.1, grad_scale=1.0):
        """Step by the rule."""
        c = at_step(self.options, step, lr, grad_scale).rounded(np.dtype(np.float32))
        p, m, v = self.expected
        self.expected = rule(c, p, self.gradients[step - 1][0], m, v)[:3]

    def step(self, step, lr=0.1, **extra):
        """Step by the engine, and compare."""
        outcome = self.plan.step(self.gradients[step - 1], step, [lr], self.record, **extra)
        for a, b in zip(self.expected, (self.found, *self.state.means()), strict=True):
            assert same(a, b), step
        return outcome


def test_gradients_are_divided_by_the_loss_scale_and_multiplied_by_a_factor():
    case = Given()
    # Of the last pair float32 sees whether it is divided first: a half of a unit lies between.
    pairs = [(3.0, 1.0), (65536.0, 0.3), (59.311223540272614, 63.406763343496706)]
    for step, (scale, factor) in enumerate(pairs, 1):
        case.expect(step, grad_scale=1.0 / scale * factor)
        assert case.step(step, loss_scale=scale, factor=factor) is None
    assert np.float32(1.0 / scale * factor) != np.float32(factor / scale)


def test_norms_are_of_gradients_divided_by_the_loss_scale():
    case = Given(Phase(clip_norm=0.5))
    for step, (scale, factor) in enumerate([(3.0, 0.9), (1e3, 1.0), (7.0, 1.0)], 1):
        total = norm(case.gradients[step - 1]) / scale
        case.expect(step, grad_scale=1.0 / scale * (factor * clip_factor(0.5, total)))
        assert case.step(step, loss_scale=scale, factor=factor).norm == total
    assert clip_factor(0.5, norm(case.gradients[1]) / 1e3) == 1.0


@pytest.mark.parametrize("shape", [(), (1,)])
def test_the_loss_scale_may_be_on_the_device(shape):
    case = Given()
    for step, scale in enumerate([3.0, 1024.0, 0.5], 1):
        case.expect(step, grad_scale=1.0 / scale)
        case.step(step, scale_on_device=on_device(scale, shape=shape))


@pytest.mark.parametrize("phase", [Phase(), Phase(on_nonfinite="skip", clip_norm=1e9)])
def test_nothing_changes_where_a_scaler_has_found_infinity(phase):
    case = Given(phase)
    for step, found in enumerate([0.0, 1.0, 0.0], 1):
        if not found:
            case.expect(step)
        outcome = case.step(step, found_inf=on_device(found))
        assert outcome is None or outcome.applied == (not found)
    # Counted are steps that the engine itself has left out.
    assert case.record[:2] == [3, 0]


def test_skipped_steps_are_counted():
    case = Given(Phase(on_nonfinite="skip"))
    case.gradients[1][0][7] = np.inf
    for step in (1, 2, 3):
        if step != 2:
            case.expect(step)
        case.step(step)
    assert case.record[:2] == [3, 1]


@pytest.mark.parametrize("first", [1, 2**24 - 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_may_be_counted_on_the_device(dtype, first):
    steps = on_device(first - 1, dtype)
    case = Given(step=steps)
    for step in (1, 2, 3):
        at = first + step - 1
        c = at_step(case.options, at, 0.1).rounded(np.dtype(np.float32))
        p, m, v = case.expected
        case.expected = rule(c, p, case.gradients[step - 1][0], m, v)[:3]
        case.step(step)
        assert float(steps) == at


def test_steps_that_are_left_out_are_not_counted_on_the_device():
    steps = on_device(0)
    case = Given(Phase(on_nonfinite="skip"), step=steps)
    case.gradients[0][0][7] = np.nan
    case.step(1)
    assert float(steps) == 0.0
    case.gradients[0] = case.gradients[1]
    case.expect(1)
    case.step(1)
    assert float(steps) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_learning_rate_may_be_on_the_device(dtype):
    rate = on_device(0.0, dtype)
    case = Given(lr=rate)
    for step, lr in enumerate([0.1, 0.03, 0.7], 1):
        rate.fill_(lr)
        case.expect(step, lr=float(rate))
        case.step(step, lr=1e9)


def test_numbers_may_be_given():
    case = Given(Phase(ema=0.75), is_given=True)
    average = np.zeros_like(case.found)
    for step, (lr, scale, factor) in enumerate(
        [(0.1, 3.0, 1.0), (0.5, 1.0, 0.3), (0.2, 7.0, 0.9)], 1
    ):
        numbers = at_step(case.options, step, lr)
        keep, take = ema_weights(0.75, step)
        case.expect(step, lr, grad_scale=1.0 / scale * factor)
        other = numbers._replace(step=99.0)  # the learning rate is that of the step
        given = [StepNumbers(other, keep, take, step)]
        case.step(step, lr, loss_scale=scale, factor=factor, given=given)
        keep, take = np.float32(keep), np.float32(take)
        average = keep * average + take * case.found
        assert same(average, case.state.ema)


# ── the exact sum ──────────────────────────────────────────────────────────────────────────────


@triton.jit
def write_sum(rows, ranges, found):
    """Write the sum of a range of rows."""
    place = tl.program_id(0)
    first, last = tl.load(ranges + place), tl.load(ranges + place + 1)
    tl.store(found + place, sums.rounded(sums.added_rows(rows, first, last, 0, 1, 8)))


def exact_sums(lists, row_size=40):
    """The sums of some lists of numbers, each of which makes a row of every ``row_size``."""
    starts, firsts, total = [], [0], 0
    for each in lists:
        starts += range(total, total + len(each), row_size)
        total += len(each)
        firsts.append(len(starts))
    flat = np.array([x for each in lists for x in each] or [0.0])
    values = torch.from_numpy(flat).to(DEVICE)
    counts = torch.zeros(len(flat), dtype=torch.int64, device=DEVICE)
    ranges = torch.tensor([*starts, total], dtype=torch.int64, device=DEVICE)
    row_ranges = torch.tensor(firsts, dtype=torch.int32, device=DEVICE)
    rows = torch.zeros((max(len(starts), 1), sums.ROW), dtype=torch.int64, device=DEVICE)
    found = torch.zeros(len(lists), dtype=torch.float64, device=DEVICE)
    with np.errstate(all="ignore"):
        if starts:
            sums.collect[(len(starts), 1)](
                values, counts, ranges, rows, len(flat),
                HAS_COUNTS=False, BLOCK=32, **OPTIONS,
            )  # fmt: skip
        write_sum[(len(lists),)](rows, row_ranges, found, **OPTIONS)
    return found.tolist()


def fsum(numbers):
    try:
        return math.fsum(numbers)
    except OverflowError:
        return math.inf


NONNEGATIVE = st.floats(0, allow_nan=False, allow_infinity=False, allow_subnormal=True)


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(NONNEGATIVE, max_size=100), min_size=4, max_size=8))
def test_the_exact_sum_is_fsum(lists):
    assert exact_sums(lists) == [fsum(each) for each in lists]


LEAST, MOST = 5e-324, float(np.finfo(np.float64).max)


def hard_lists():
    half = 2.0**-53
    for high in (1.0, 1.0 + 2.0**-52, 2.0**-1022, 2.0**-1022 + LEAST, 2.0**970, 2.0**1023):
        for low in (half / 2, half, 1.5 * half, half - half * 2.0**-52):
            for tiny in ([], [LEAST], [half * 2.0**-60] * 3):
                yield [high, high * low, *tiny]
    # Each digit is all ones, and the least addition carries through all of them.
    ones = [math.ldexp(2.0**53 - 1, 53 * k - 1074) for k in range(37)]
    yield from (ones, [*ones, LEAST], [*ones, LEAST, LEAST], ones * 50)
    yield from ([LEAST] * 100, [2.0**-1022 - LEAST, LEAST], [2.0**-1022 - LEAST] * 3)
    ulp = 2.0**971
    yield from ([MOST], [MOST, ulp / 4], [MOST, ulp / 2], [MOST, ulp / 2 * (1 - 2.0**-53), LEAST])
    yield from ([MOST / 2] * 2, [MOST / 2] * 3, [2.0**1023] * 2, [2.0**1000] * 2000)
    yield from ([], [0.0], [0.0] * 50, [LEAST], [math.inf], [1.0, math.inf, MOST, MOST])
    shuffled = plain_random.Random(4)
    many = [shuffled.random() * 2.0 ** shuffled.randint(-1070, 1000) for _ in range(2000)]
    yield from (many, many[::-1], sorted(many))


def test_the_exact_sum_of_hard_numbers_is_fsum():
    lists = list(hard_lists())
    found = exact_sums(lists)
    for each, one in zip(lists, found, strict=True):
        assert one == fsum(each), each[:5]
    assert {math.inf, 0.0, MOST, LEAST, 2.0**-1022} <= set(found)
    # Adding one after another would give something else.
    plain = [functools.reduce(operator.add, each, 0.0) for each in lists]
    assert sum(a != b for a, b in zip(plain, found, strict=True)) > 5


def test_the_exact_sum_of_nan_is_nan_whatever_else_is_added():
    nan = math.nan
    minus = math.copysign(nan, -1.0)  # as processors of the x86 family make it
    lists = [[nan], [minus], [1.0, nan, math.inf], [math.inf, minus], [MOST, MOST, nan]]
    assert all(map(math.isnan, exact_sums(lists)))


def test_elements_that_are_not_there_are_not_counted_where_all_numbers_are_nan():
    """A norm that is NaN makes the clip factor NaN, and so all that is computed."""
    phase = Phase(clip_norm=1.0, statistics=True)
    parameters, gradients = drawn(np.float32, [(ordinary, 5)], steps=1)
    gradients[0][0][2] = np.nan
    judge = run(reference, Options(), phase, parameters, gradients)
    found = run(engine, Options(), phase, parameters, gradients)
    assert differences(judge, found) == []
    assert found.outcomes[0].statistics[0].unmoved == 0.0
