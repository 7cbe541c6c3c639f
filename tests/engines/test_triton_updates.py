"""Updates that the Triton engine clips (``clip_update``) have the bits of the reference."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from adamas import digits
from adamas import state as states
from adamas.coefficients import at_step, update_factor
from adamas.engines import Group, Slot, reference
from adamas.engines import triton as engine
from adamas.engines.triton import parts
from adamas.engines.triton.jobs import Inputs
from adamas.engines.triton.launches import Launches
from adamas.options import Options, Phase
from adamas.rule import rule, unsmoothed
from tests.support.cases import (
    DECAYS,
    EPSILONS,
    FLOATS,
    FORMS,
    differences,
    every_option,
    ordinary,
    run,
    special,
    wide,
)
from tests.support.triton_cases import CHUNK, FEW, HALVES, IDS, agrees, drawn, same
from tests.support.triton_plans import DEVICE, plan_with

#: Half of what the update of a first step is: some tensors are clipped, some are not.
CLIPS = Phase(clip_update=0.5)


def outgrowing(dtype, kinds, steps=3, seed=0):
    """Parameters and gradients that grow, but for those of every third tensor."""
    parameters, gradients = drawn(dtype, kinds, steps, seed)
    with np.errstate(all="ignore"):
        for step, each in enumerate(gradients):
            for i in range(len(each)):
                if i % 3:
                    each[i] = each[i] * each[i].dtype.type(4.0**step)
    return parameters, gradients


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("dtype", "method"), [(np.float32, "adam"), (np.float64, "rmsprop")])
def test_every_kind_of_decay_and_epsilon_is_clipped_as_by_the_reference(dtype, method):
    options = every_option(method)[:: len(DECAYS) * len(EPSILONS) - 7]
    kinds = [((ordinary, wide, special)[i % 3], 5) for i in range(len(options))]
    clipped = agrees(options, Phase(clip_update=0.7), *outgrowing(dtype, kinds))
    free = run(reference, options, Phase(), *outgrowing(dtype, kinds))
    assert len(differences(clipped, free)) > len(options) // 3


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("forms", FORMS, ids="-".join)
def test_every_form_of_state_is_clipped_by_what_is_stored_of_it(forms):
    options = Options(lr=0.1, state=forms, weight_decay=0.1)
    agrees(options, CLIPS, *outgrowing(np.float32, FEW))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("forms", [("float32", "float32"), ("8bit", "8bit")], ids="-".join)
@pytest.mark.parametrize(("dtype", "rounding"), HALVES, ids=IDS)
def test_every_rounding_of_parameters_is_clipped_as_by_the_reference(dtype, rounding, forms):
    options = Options(lr=0.1, rounding=rounding, weight_decay=0.01, state=forms)
    agrees(options, CLIPS, *drawn(dtype, FEW))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_size_is_clipped_as_by_the_reference(dtype):
    sizes = (0, 1, 1023, 1024, 1025, CHUNK, CHUNK + 70)
    kinds = [(ordinary, size) for size in sizes]
    agrees(Options(lr=0.1, amsgrad=True), CLIPS, *outgrowing(dtype, kinds, steps=2))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "phase",
    [
        Phase(clip_norm=1.0, on_nonfinite="skip", ema=0.9, statistics=True),
        Phase(skip_above=2.0, skip_window=4, statistics=True),
        Phase(ema=0.5, seed=7),
    ],
    ids=["everything", "spikes", "ema"],
)
def test_update_clipping_goes_with_all_else_that_a_phase_may_ask_for(phase):
    options = Options(lr=0.1, weight_decay=0.1, decay="decoupled", state="compact")
    phase = dataclasses.replace(phase, clip_update=0.5)
    agrees(options, phase, *outgrowing(np.float32, [(ordinary, 70), (wide, 40)], steps=5))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_makes_all_of_its_tensor_not_a_number_and_no_other(value):
    parameters, gradients = drawn(np.float32, [(ordinary, 40), (ordinary, 33)], steps=1)
    gradients[0][1][5] = value
    agrees(Options(lr=0.1), CLIPS, parameters, gradients)


def test_steps_that_divide_by_nothing_are_not_clipped():
    """A root of 0 says so: rectified Adam before its fifth step."""
    agrees(Options(lr=0.1, rectify=True), CLIPS, *outgrowing(np.float32, FEW, steps=7))


def test_a_step_that_clips_no_updates_launches_what_it_did(monkeypatch):
    """And one that does launches one pass more, its sums, and what follows from them."""
    launched = []
    launch = parts.Part.launch

    def noted(part, which, kernel, *arguments, **constants):
        launched.append(kernel.fn.__name__)
        return launch(part, which, kernel, *arguments, **constants)

    monkeypatch.setattr(parts.Part, "launch", noted)
    parameters, gradients = drawn(np.float32, [(ordinary, 5)] * 2, steps=1)
    for phase, names in (
        (Phase(), ["number", "sweep"]),
        (CLIPS, ["number", "measure", "collect", "shorten", "sweep"]),
    ):
        launched.clear()
        run(engine, Options(lr=0.1), phase, parameters, gradients)
        assert launched == names


def test_a_parameter_that_is_not_finite_spoils_its_own_element_alone_where_nothing_decays():
    parameters, gradients = drawn(np.float32, [(ordinary, 40)] * 2, steps=1)
    for each in parameters:
        each[3] = np.inf
    options = [Options(lr=0.1), Options(lr=0.1, weight_decay=0.1)]
    left = agrees(options, CLIPS, parameters, gradients)
    assert np.isnan(left.arrays["0"]).sum() == 1
    assert np.isnan(left.arrays["1"]).all()


class Others:
    """Stands for other processes: notes the rows that it is given, and adds some of theirs."""

    def __init__(self, rows):
        self.rows, self.given = rows, []

    def __call__(self, rows):
        assert (rows.dtype, rows.device.type) == (torch.int64, DEVICE.type)
        self.given.append(rows.cpu().numpy().copy())
        rows += torch.from_numpy(self.rows).to(DEVICE)


def test_updates_are_clipped_by_the_sums_of_whole_tensors():
    arrays, (gradients,) = drawn(np.float32, [(ordinary, 33), (ordinary, 0), (ordinary, 70)], 1)
    values = [each.copy() for each in arrays]
    options = Options(lr=0.1, weight_decay=0.1, decay="decoupled")
    slots = tuple(Slot(p, states.create(p, options)) for p in values)
    theirs = np.stack([digits.of_squares(np.full(5, float(i))) for i in range(3)])
    others, counts = Others(theirs), iter((50, 7, 100))
    plan = plan_with(
        [Group(options, slots)],
        CLIPS,
        lambda job: job._replace(whole=next(counts)),
        wholes=others,
    )
    plan.step(gradients, 1, [0.1])
    (given,) = others.given
    numbers = at_step(options, 1, 0.1)
    for before, g, value, row, more, count in zip(
        arrays, gradients, values, given, theirs, (50, 7, 100), strict=True
    ):
        none = np.zeros_like(before)
        c = numbers.rounded(before.dtype)
        assert np.array_equal(row, digits.of_squares(unsmoothed(c, None, g, none)))
        norm = digits.norm(digits.carried(row + more))
        c = numbers.shortened(update_factor(0.5, norm, count, numbers.root)).rounded(before.dtype)
        assert same(value, rule(c, before, g, none, none, None)[0])


def test_sums_are_given_where_this_process_has_nothing_to_step():
    others = Others(np.zeros((0, digits.WIDTH), np.int64))
    launches = Launches([], [Options(lr=0.1)], CLIPS, wholes=others, device=DEVICE)
    skipped = {DEVICE: torch.zeros((), dtype=torch.int64, device=DEVICE)}
    nothing = np.zeros(0, np.int64)
    launches.step(Inputs(nothing, nothing, [0.1]), skipped)
    assert [rows.shape for rows in others.given] == [(0, digits.WIDTH)]
