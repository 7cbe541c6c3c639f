"""Marks of the Triton engine are a bitwise comparison of what was stored before and after."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adamas import state as states
from adamas.engines import Group, Slot, native, reference, triton
from adamas.engines.triton.marks import marked
from adamas.marks import every, none
from adamas.options import Options, Phase
from tests.support.cases import ordinary, special, wide
from tests.support.triton_cases import BFLOAT16, CHUNK, FEW, HALVES, IDS, copied, drawn, same
from tests.support.triton_plans import DEVICE, plan_with, shifted, step_with

#: Around a word, the elements that a program steps at a time, and a chunk.
SIZES = (0, 1, 31, 32, 33, 511, 513, CHUNK + 1)
KINDS = [*((ordinary, size) for size in SIZES), (special, 700), (wide, 33)]
STORED = [(np.dtype(np.float32), None), (np.dtype(np.float64), None), *HALVES]
STORED_IDS = ["float32", "float64", *IDS]
#: All that is stored by a plain step, and some of it where all else is done besides.
STEPPED = [(*each, Phase()) for each in STORED]
STEPPED += [(*each, Phase(statistics=True, clip_norm=1.0, ema=0.9)) for each in STORED[::3]]
STEPPED_IDS = [*STORED_IDS, *(f"{each}-phase" for each in STORED_IDS[::3])]


def raw(array):
    """The bits that are stored: other bits of the same NaN are a change, too."""
    return np.array(array, order="C").reshape(-1).view(f"u{array.itemsize}")


def are_set(marks, count):
    """Which elements are marked; the bits behind the last one are 0."""
    bits = np.unpackbits(marks.cpu().numpy().view(np.uint8), bitorder="little")
    assert not bits[count:].any()
    return bits[:count].astype(bool)


class Tracked:
    """Arrays that are stepped with marks, and without, and what a comparison finds."""

    def __init__(self, options, phase, parameters, copy=None, *, is_aligned=True):
        words = [-(-p.size // 32) for p in parameters]
        self.marks = [torch.zeros(n, dtype=torch.int32, device=DEVICE) for n in words]
        if not is_aligned:
            self.marks = [shifted(each) for each in self.marks]
        self.found = [np.zeros(p.size, bool) for p in parameters]
        dtype = None if copy is None else getattr(torch, copy)

        def changed(is_tracked):
            remaining = iter(self.marks)

            def change(job):
                p = job.parameter if is_aligned else shifted(job.parameter)
                low = None if dtype is None else torch.full_like(p, -3.0, dtype=dtype)
                marks = next(remaining) if is_tracked else None
                return job._replace(parameter=p, copy=low, marks=marks)

            return change

        self.slots, self.plans = [], []
        for is_tracked in (True, False):
            own = tuple(
                Slot(p.copy(), states.create(p, options, ema=phase.ema is not None))
                for p in parameters
            )
            self.slots.append(own)
            plan = plan_with([Group(options, own)], phase, changed(is_tracked))
            self.plans.append(plan)

    def stored(self):
        """The bits of what is compared: parameters, or their copies."""
        jobs = self.plans[0].jobs
        if jobs[0].copy is None:
            return [raw(slot.parameter) for slot in self.slots[0]]
        return [raw(job.copy.view(torch.int16).cpu().numpy()) for job in jobs]

    def step(self, gradients, step, **extra):
        """Step both, and compare."""
        before = self.stored()
        for plan in self.plans:
            step_with(plan, gradients, step, [1e-3], **extra)
        for found, old, new in zip(self.found, before, self.stored(), strict=True):
            np.logical_or(found, old != new, out=found)
        for found, marks in zip(self.found, self.marks, strict=True):
            assert np.array_equal(are_set(marks, found.size), found)
        for tracked, plain in zip(*self.slots, strict=True):
            assert same(tracked.parameter, plain.parameter)
            for name, array in tracked.state.arrays().items():
                assert same(array, plain.state.arrays()[name])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("dtype", "rounding", "phase"), STEPPED, ids=STEPPED_IDS)
def test_marks_are_of_the_elements_that_are_stored_as_other_bits(dtype, rounding, phase):
    options = Options(lr=1e-3, rounding=rounding)
    parameters, gradients = drawn(dtype, KINDS, steps=2)
    tracked = Tracked(options, phase, parameters)
    for step, each in enumerate(gradients, 1):
        tracked.step(each, step)
    share = tracked.found[-3].mean()
    assert share > 0.9 if dtype.itemsize > 2 else share > 0.2


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("copy", ["bfloat16", "float16"])
@pytest.mark.parametrize(("dtype", "rounding"), [*STORED[:2], HALVES[2]], ids=str)
def test_marks_of_what_has_a_copy_are_of_the_copy(dtype, rounding, copy):
    """Its memory before is what counts: the first step writes all of this one."""
    parameters, gradients = drawn(dtype, [*FEW, (ordinary, CHUNK + 40)], steps=2)
    tracked = Tracked(Options(lr=1e-3, rounding=rounding), Phase(), parameters, copy)
    tracked.step(gradients[0], 1)
    assert tracked.found[-1].all()
    for found, marks in zip(tracked.found, tracked.marks, strict=True):
        found[:] = False
        marks.zero_()
    tracked.step(gradients[1], 2)
    slot, job = tracked.slots[0][-1], tracked.plans[0].jobs[-1]
    expected = copied(slot.parameter, slot.state.remainder, copy)
    assert same(expected, job.copy.float().cpu().numpy())
    assert 0.0 < tracked.found[-1].mean() < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("state", ["bfloat16", "compact", "8bit", ("float32", "8bit")], ids=str)
@pytest.mark.parametrize(("dtype", "rounding"), STORED[::3], ids=STORED_IDS[::3])
def test_marks_do_not_depend_on_the_form_of_the_state(dtype, rounding, state):
    parameters, gradients = drawn(dtype, [*FEW, (ordinary, CHUNK + 40)], steps=2)
    tracked = Tracked(Options(lr=1e-3, rounding=rounding, state=state), Phase(seed=3), parameters)
    for step, each in enumerate(gradients, 1):
        tracked.step(each, step)


@pytest.mark.slow
@pytest.mark.parametrize("copy", [None, "bfloat16"])
def test_marks_and_arrays_may_have_any_addresses(copy):
    parameters, gradients = drawn(np.float32, [*FEW, (ordinary, CHUNK + 40)], steps=2)
    tracked = Tracked(Options(lr=1e-3), Phase(), parameters, copy, is_aligned=False)
    assert all(each.data_ptr() % 16 for each in tracked.marks)
    for step, each in enumerate(gradients, 1):
        tracked.step(each, step)


def test_a_step_that_is_left_out_marks_nothing():
    parameters, gradients = drawn(np.float32, [(ordinary, 50), (ordinary, 40)], steps=3)
    gradients[0][1][7] = np.inf
    tracked = Tracked(Options(lr=1e-3), Phase(on_nonfinite="skip"), parameters)
    tracked.step(gradients[0], 1)
    tracked.step(gradients[1], 1, found_inf=torch.ones((), device=DEVICE))
    assert not any(found.any() for found in tracked.found)
    tracked.step(gradients[2], 1)
    assert all(found.all() for found in tracked.found)


def test_an_element_that_comes_back_to_its_bits_stays_marked():
    options = Options(lr=1.0, betas=(None, None))
    tracked = Tracked(options, Phase(), [np.array([1.0, 2.0, 3.0], np.float32)])
    sign = np.array([1.0, 0.0, 0.0], np.float32)
    for step, gradient in enumerate([sign, -sign], 1):
        tracked.step([gradient], step)
    assert tracked.slots[0][0].parameter.tolist() == [1.0, 2.0, 3.0]
    assert tracked.found[0].tolist() == [True, False, False]


def test_a_zero_of_another_sign_is_marked_and_a_nan_that_stays_is_not():
    options = Options(lr=2.0**-149, betas=(None, None))
    code = np.array([0.0, 1.0, np.nan], BFLOAT16).view(np.uint16)
    tracked = Tracked(options, Phase(), [code.copy()])
    gradient = np.ones(3, BFLOAT16).view(np.uint16)
    tracked.plans[0].step([gradient], 1, [2.0**-149])
    (after,) = tracked.stored()
    assert after.tolist() == [0x8000, *code[1:].tolist()]
    assert are_set(tracked.marks[0], 3).tolist() == [True, False, False]


# ── beside the other engines ───────────────────────────────────────────────────────────────────


def marked_by(engine, dtype, rounding, phase):
    """What the steps of an engine's plan mark in arrays of which some are marked already."""
    parameters, gradients = drawn(dtype, [*FEW, (ordinary, 1500), (ordinary, 0)], steps=2)
    options = Options(lr=1e-3, rounding=rounding)
    slots = [
        Slot(p, states.create(p, options, ema=phase.ema is not None), marks=none(p.size))
        for p in parameters
    ]
    slots[3].marks[[2, 46]] = 0b1010
    plan = engine.Plan([Group(options, tuple(slots))], phase)
    for step, each in enumerate(gradients, 1):
        plan.step(each, step, [1e-3])
    return [slot.marks for slot in slots]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("dtype", "rounding", "phase"), STEPPED, ids=STEPPED_IDS)
def test_plans_mark_what_those_of_other_engines_mark(dtype, rounding, phase):
    judge = marked_by(reference, dtype, rounding, phase)
    for engine in (native, triton):
        found = marked_by(engine, dtype, rounding, phase)
        # Of NaNs IEEE 754 leaves open which bits they have; so the array of them is left out.
        pairs = [pair for i, pair in enumerate(zip(judge, found, strict=True)) if i != 2]
        assert all(np.array_equal(*pair) for pair in pairs)
    assert judge[3].any()


def test_a_plan_whose_step_is_left_out_leaves_marks_as_they_were():
    p = np.ones(40, np.float32)
    options = Options()
    slot = Slot(p, states.create(p, options), marks=every(40))
    slot.marks[0] = 5
    plan = triton.Plan([Group(options, (slot,))], Phase(on_nonfinite="skip"))
    plan.step([np.full(40, np.nan, np.float32)], 1, [0.1])
    assert slot.marks.tolist() == [5, 255]
    plan.step([np.ones(40, np.float32)], 1, [0.1])
    assert slot.marks.tolist() == every(40).tolist()


# ── where marks are set ────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(9)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("words", [0, 1, 63, 64, 65, 1023, 1024, 1025, 2500])
def test_places_of_marks_are_those_of_their_bits(words, share):
    random = np.random.default_rng(words)
    bits = random.random(32 * words) < share
    packed = np.packbits(bits, bitorder="little").view(np.int32)
    marks = torch.from_numpy(packed).to(DEVICE)
    for dtype in (torch.int32, torch.int64):
        places = marked(marks, dtype)
        assert (places.dtype, places.device) == (dtype, DEVICE)
        assert np.array_equal(places.cpu().numpy(), bits.nonzero()[0])
