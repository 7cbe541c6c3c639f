"""The Triton engine gives the bits of the reference: without a GPU in Triton's interpreter.

Where what is covered: all options, early and late steps: ``every_combination``; sizes and forms:
``every_form``; half precision: ``every_rounding``; phases: ``every_phase`` and what follows it.
Copies and what a step is given are in ``test_triton_given``, exact sums in
``test_triton_sums``. ``test_triton_compiled`` looks at the compiled kernels.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from adamas import state as states
from adamas.engines import Group, Slot, reference
from adamas.engines import triton as engine
from adamas.engines.triton import tables
from adamas.options import Options, Phase
from adamas.statistics import TILE, norm
from tests.support.cases import (
    FLOATS,
    FORMS,
    METHODS,
    PHASES,
    Run,
    differences,
    every_option,
    ordinary,
    run,
    special,
    wide,
)
from tests.support.triton_cases import (
    BFLOAT16,
    CHUNK,
    DTYPES,
    FEW,
    HALVES,
    IDS,
    agrees,
    as_stored,
    copied,
    copy_of,
    drawn,
    same,
)
from tests.support.triton_plans import plan_with, shifted, with_copy

# ── options ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(1)
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


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_every_form_of_state_gives_the_bits_of_the_reference(forms, rounding):
    options = Options(lr=0.1, state=forms, rounding=rounding)
    agrees(options, Phase(seed=2**63 + 5), *drawn(np.float32, KINDS))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_size_gives_the_bits_of_the_reference(dtype):
    agrees(Options(lr=0.1, amsgrad=True), Phase(ema=0.9), *drawn(dtype, KINDS))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("betas", [(None, 0.99), (0.9, None), (0.5, 0.9), (0.999, 0.9)])
def test_forms_of_other_methods_give_the_bits_of_the_reference(betas):
    """With these the tops of m differ, and one of the two may be missing."""
    both = None not in betas
    for form in ("compact", "8bit") if both else ("bfloat16", "8bit" if betas[1] else "bfloat16"):
        options = Options(lr=0.1, betas=betas, state=form)
        agrees(options, Phase(), *drawn(np.float32, FEW, steps=3))


# ── half precision ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("forms", [("float32", "float32"), *FORMS], ids="-".join)
@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_every_rounding_of_parameters_gives_the_bits_of_the_reference(dtype, rounding, forms):
    options = Options(lr=0.1, rounding=rounding, weight_decay=0.01, state=forms)
    agrees(options, Phase(seed=5), *drawn(dtype, FEW))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_whole_chunks_of_half_precision_give_the_bits_of_the_reference(dtype, rounding):
    kinds = [(ordinary, CHUNK + 70), (wide, CHUNK), (special, CHUNK)]
    agrees(Options(lr=0.1, rounding=rounding, amsgrad=True), Phase(ema=0.5), *drawn(dtype, kinds))


@pytest.mark.parametrize("rounding", ["remainder", "remainder8"])
def test_remainders_of_other_numbers_give_the_bits_of_the_reference(rounding):
    """Zeros and infinities among others, assigned over the remainders farthest from 0."""
    code = np.array([0, 0x8000, 1, 0x8001, 0x3F80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0], np.uint16)
    limits = np.iinfo(np.int16 if rounding == "remainder" else np.int8)
    starts = [
        {"mean": 0, "square": 0, "remainder": each} for each in (limits.min, -1, 1, limits.max)
    ]
    gradients = [[np.full(code.size, 0x3F80, np.uint16)] * 4] * 2
    options = Options(lr=0.1, rounding=rounding)
    agrees(options, Phase(), [code] * 4, gradients, starts=starts)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_steps_half_precision_with_the_bits_of_the_reference(method):
    for dtype, rounding in HALVES[2:5]:
        options = Options(lr=0.1, rounding=rounding, **METHODS[method])
        agrees(options, Phase(), *drawn(dtype, FEW[:2]))


# ── phases ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("dtype", "rounding"), DTYPES)
def test_every_phase_gives_the_bits_of_the_reference(dtype, rounding, phase):
    options = Options(lr=0.1, rounding=rounding, state="float32")
    kinds = [(ordinary, 0), (ordinary, 33), (ordinary, TILE + 70)]
    found = agrees(options, PHASES[phase], *drawn(dtype, kinds))
    assert (found.outcomes[0] is None) == (phase in ("plain", "ema"))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("dtype", FLOATS)
def test_statistics_of_any_numbers_and_whole_chunks_give_the_bits_of_the_reference(dtype):
    kinds = [(wide, 70), (special, 70), (ordinary, CHUNK + TILE + 1)]
    agrees(Options(lr=0.1, eps=0.0), Phase(statistics=True), *drawn(dtype, kinds, steps=1))


@pytest.mark.slow
@pytest.mark.parametrize("state", ["8bit", ("compact", "bfloat16")])
def test_statistics_of_small_forms_give_the_bits_of_the_reference(state):
    kinds = [(ordinary, 33), (ordinary, TILE + 70)]
    agrees(Options(lr=0.1, state=state), PHASES["all"], *drawn(np.float32, kinds))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("policy", ["propagate", "skip", "raise"])
def test_gradients_that_are_not_finite_do_what_they_do_in_the_reference(policy, bad):
    parameters, gradients = drawn(np.float32, [(ordinary, 33), (ordinary, TILE + 70)], steps=3)
    gradients[1][1][TILE + 69] = bad
    phase = Phase(on_nonfinite=policy, clip_norm=1.0, statistics=policy == "skip")
    found = agrees(Options(lr=0.1), phase, parameters, gradients)
    assert [each.applied for each in found.outcomes] == [True, policy == "propagate", True]
    assert found.outcomes[1].nonfinite == (0, 1)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("size", [2.0**1000, 2.0**-1000, 2.0**-1060, 2.0**510, 0.0, 1.0])
def test_norms_that_leave_float64_clip_as_they_do_in_the_reference(size):
    parameters, gradients = drawn(np.float64, [(ordinary, 33), (ordinary, TILE + 70)])
    gradients = [[each * size for each in step] for step in gradients]
    for clip in (1.0, 1e-300):
        found = agrees(Options(lr=0.1), Phase(clip_norm=clip), parameters, gradients)
        expected = norm(gradients[0])
        assert found.outcomes[0].norm == expected
        assert (0 < expected < math.inf) == (size > 0)


@pytest.mark.slow
def test_tensors_of_all_dtypes_have_one_norm_and_their_own_bits():
    random = np.random.default_rng(3)
    dtypes = [np.float32, np.float64, BFLOAT16, np.float16, np.float64, np.float32]

    def arrays():
        return [as_stored(ordinary(random, 40 + i, np.float32), each)
                for i, each in enumerate(dtypes)]  # fmt: skip

    options = [Options(lr=0.1 * i, state="8bit" if i in (0, 2) else "float32") for i in range(6)]
    found = agrees(options, PHASES["all"], arrays(), [arrays(), arrays()])
    assert len(found.outcomes[0].statistics) == 6


def test_elements_that_are_not_there_are_not_counted_where_all_numbers_are_nan():
    """A norm that is NaN makes the clip factor NaN, and so all that is computed."""
    phase = Phase(clip_norm=1.0, statistics=True)
    parameters, gradients = drawn(np.float32, [(ordinary, 5)], steps=1)
    gradients[0][0][2] = np.nan
    judge = run(reference, Options(), phase, parameters, gradients)
    found = run(engine, Options(), phase, parameters, gradients)
    assert differences(judge, found) == []
    assert found.outcomes[0].statistics[0].unmoved == 0.0


# ── where elements are ─────────────────────────────────────────────────────────────────────────

#: Where slices of tensors begin: also so that 2^32 is within them.
FIRSTS = (32, 2**32 - 32, 2**32 - 64 * 9, 2**32, 2**40 + 96)


@pytest.mark.quick_cases(1)
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
    arrays = (job.parameter, *job.entries, job.copy)
    for tensor, column in zip(arrays, tables.ADDRESSES, strict=True):
        if tensor is not None:
            elements = offset // 32 if column is tables.HEADER else offset
            row[column.value] -= elements * tensor.element_size()
    row[tables.COUNT.value] += offset
    for launch in part.chunks:
        launch.chunks.add_(offset // CHUNK)
        launch.pieces.add_(offset // CHUNK)
    step = plan.launches.step

    def shifted(inputs, skipped):
        before = offset * job.parameter.element_size()
        return step(inputs._replace(gradients=inputs.gradients - before), skipped)

    plan.launches.step = shifted


@pytest.mark.quick_cases(2)
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


@pytest.mark.quick_cases(1)
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
    are_moved = everything or what == "state"

    def changed(job):
        if everything or what == "parameter":
            job = job._replace(parameter=shifted(job.parameter))
        header = job.entries.header
        entries = job.entries.map(shifted)._replace(header=header) if are_moved else job.entries
        return job._replace(entries=entries)

    judge = run(reference, options, Phase(), parameters, gradients)
    p = parameters[0].copy()
    slot = Slot(p, states.create(p, options))
    plan = plan_with([Group(options, (slot,))], Phase(), changed)
    (job,) = plan.jobs
    assert (job.parameter.data_ptr() % 16 != 0) == (everything or what == "parameter")
    addresses = [each.data_ptr() for each in job.entries._replace(header=None) if each is not None]
    assert all(address % 16 for address in addresses) == are_moved
    for number, (gradient,) in enumerate(gradients, 1):
        is_moved = everything or what == "gradient"
        plan.step([moved(gradient) if is_moved else gradient], number, [0.1])
    arrays = {"0": p, **{f"0.{k}": x for k, x in slot.state.arrays().items()}}
    assert differences(judge, Run(arrays, judge.outcomes)) == []
