"""Clipped updates: one set of bits on all engines, and the factor that StableAdamW names."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import adamas
from adamas import state as states
from adamas.coefficients import StepNumbers, at_step, update_factor
from adamas.digits import norm as norm_of_row
from adamas.engines import Group, Slot, native, reference
from adamas.options import Options, Phase
from adamas.rule import unsmoothed
from adamas.statistics import TILE, norm
from tests.support.cases import (
    DECAYS,
    EPSILONS,
    FLOATS,
    FORMS,
    LARGE,
    METHODS,
    bits,
    differences,
    each_machine,
    ordinary,
    run,
    special,
    wide,
)

SIZES = [0, 1, 31, 32, 33, 255, 256, 290, TILE - 1, TILE, 4096, 5 * TILE + 70]
WITH_SQUARES = [name for name, given in METHODS.items() if given["betas"][1] is not None]
#: What a step may be asked for besides.
BESIDES: dict[str, dict[str, Any]] = {
    "alone": {},
    "clip": {"clip_norm": 1.0},
    "skip": {"on_nonfinite": "skip"},
    "spikes": {"skip_above": 1.0, "skip_window": 4},
    "all": {"clip_norm": 1.0, "on_nonfinite": "skip", "ema": 0.9, "statistics": True, "seed": 3},
}


@pytest.fixture(autouse=True)
def _settings_are_put_back():
    target, threads = adamas.target(), adamas.get_num_threads()
    yield
    native.set_target(target)
    adamas.set_num_threads(threads)


def drawn(values, sizes, dtype, *, steps=3, seed=0):
    """Parameters, and gradients that grow: so updates are clipped."""
    random = np.random.default_rng(seed)
    parameters = [values(random, size, dtype) for size in sizes]
    with np.errstate(all="ignore"):
        gradients = [
            [(values(random, size, dtype) * dtype(3**step)).astype(dtype) for size in sizes]
            for step in range(steps)
        ]
    return parameters, gradients


def check(options, phase, parameters, gradients, **more):
    """Compare all machines with the reference; return what that leaves."""
    judge = run(reference, options, phase, parameters, gradients, **more)
    for machine in each_machine():
        found = run(native, options, phase, parameters, gradients, **more)
        assert differences(judge, found) == [], (machine, options, phase)
    return judge


def does_clip(options, phase, parameters, gradients):
    """Whether clipping has changed what is left."""
    plain = dataclasses.replace(phase, clip_update=None)
    one, other = (run(native, options, x, parameters, gradients) for x in (phase, plain))
    return differences(one, other) != []


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", WITH_SQUARES)
def test_every_option_gives_the_bits_of_the_reference(method, dtype):
    rectifies = "rectify" in METHODS[method]  # from the sixth step on
    parameters, gradients = drawn(ordinary, [67, 5], dtype, steps=8 if rectifies else 3)
    phase = Phase(clip_update=0.5)
    for decay in DECAYS:
        for epsilon in EPSILONS:
            for correction in ("paper",) if rectifies else ("paper", "none"):
                more = {**METHODS[method], **decay, **epsilon, "bias_correction": correction}
                options = Options(lr=0.1, maximize=correction == "none", **more)
                check(options, phase, parameters, gradients)
                assert does_clip(options, phase, parameters, gradients)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("values", [ordinary, wide, special])
@pytest.mark.parametrize("besides", BESIDES)
def test_every_phase_gives_the_bits_of_the_reference(besides, values):
    phase = Phase(clip_update=0.25, **BESIDES[besides])
    for dtype in FLOATS:
        parameters, gradients = drawn(values, SIZES, dtype)
        for more in ({}, {"amsgrad": True}, {"weight_decay": 0.1, "eps": 0.0}):
            check(Options(lr=0.1, **more), phase, parameters, gradients)


@pytest.mark.quick_cases(8)
@pytest.mark.parametrize("values", [ordinary, wide, special])
@pytest.mark.parametrize("forms", FORMS)
def test_updates_are_measured_by_what_small_states_hold(forms, values):
    parameters, gradients = drawn(values, SIZES, np.float32)
    options = Options(lr=0.1, state=forms, weight_decay=0.01)
    check(options, Phase(clip_update=0.5, seed=5), parameters, gradients)
    check(
        dataclasses.replace(options, weight_decay=0.0),
        Phase(clip_update=0.5),
        parameters,
        gradients,
    )


@pytest.mark.parametrize("rounding", [None, "stochastic", "remainder", "remainder8"])
@pytest.mark.parametrize("state", ["float32", "8bit", "compact"])
def test_parameters_in_half_precision_are_read_as_they_are_computed_with(state, rounding):
    dtypes = [np.uint16] if rounding and rounding.startswith("rem") else [np.uint16, np.float16]
    for dtype in dtypes:
        parameters, gradients = drawn(ordinary, SIZES, np.float32)
        if dtype is np.uint16:

            def stored(x):
                return x.astype(ml_dtypes.bfloat16).view(np.uint16)
        else:

            def stored(x):
                return x.astype(np.float16)

        parameters = [stored(p) for p in parameters]
        gradients = [[stored(g) for g in each] for each in gradients]
        for more in ({}, {"weight_decay": 0.3}):
            options = Options(lr=0.1, state=state, rounding=rounding, **more)
            check(options, Phase(clip_update=0.5, ema=0.9), parameters, gradients)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_drawn_cases_give_the_bits_of_the_reference(data):
    draw = data.draw
    dtype = draw(st.sampled_from(FLOATS))
    values = draw(st.sampled_from([ordinary, wide, special]))
    sizes = draw(st.lists(st.integers(0, 300), min_size=1, max_size=4))
    method = {**METHODS[draw(st.sampled_from(WITH_SQUARES))]}
    options = [
        Options(
            lr=draw(st.sampled_from([0.0, 1e-3, 0.5])),
            maximize=draw(st.booleans()),
            **method,
            **draw(st.sampled_from(DECAYS)),
            **draw(st.sampled_from(EPSILONS)),
        )
        for _ in sizes
    ]
    phase = Phase(
        clip_update=draw(st.sampled_from([1e-300, 1e-3, 0.5, 1.0, 2.0, 1e300])),
        **draw(st.sampled_from([*BESIDES.values()])),
    )
    parameters, gradients = drawn(values, sizes, dtype, seed=draw(st.integers(0, 2**32 - 1)))
    number = draw(st.sampled_from([1, 2, 1000, 2**40]))
    one, other = (
        run(engine, options, phase, parameters, gradients, first=number)
        for engine in (reference, native)
    )
    assert differences(one, other) == []


@pytest.mark.parametrize("form", ["float32", "8bit"])
def test_the_number_of_threads_does_not_matter(form):
    parameters, gradients = drawn(ordinary, [LARGE, 77, 3], np.float32, steps=2)
    options = Options(lr=0.1, state=form)
    runs = []
    for threads in (1, 2, 5):
        adamas.set_num_threads(threads)
        runs.append(run(native, options, Phase(clip_update=0.5), parameters, gradients))
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []
    assert does_clip(options, Phase(clip_update=0.5), parameters, gradients)


def test_what_is_not_finite_spoils_its_own_tensor_alone():
    ones = np.ones(7, np.float32)
    bad = ones.copy()
    bad[3] = np.nan
    judge = check(Options(lr=0.1), Phase(clip_update=1.0), [ones, ones], [[bad, ones]])
    assert np.isnan(judge.arrays["0"]).all()
    assert np.isfinite(judge.arrays["1"]).all()
    # A parameter that is none, where it is no part of the gradient, spoils itself.
    judge = check(Options(lr=0.1), Phase(clip_update=1.0), [bad], [[ones]])
    assert np.isnan(judge.arrays["0"]).sum() == 1
    judge = check(Options(lr=0.1, weight_decay=0.1), Phase(clip_update=1.0), [bad], [[ones]])
    assert np.isnan(judge.arrays["0"]).all()


def test_the_sums_of_a_plan_whose_numbers_are_given_are_those_of_its_slots():
    parameters, gradients = drawn(ordinary, [300, 7], np.float32, steps=1)
    options = Options(lr=0.1, weight_decay=0.1)
    slots = [Slot(p.copy(), states.create(p, options)) for p in parameters]
    for slot in slots:
        slot.state.square[...] = 0.5
    before = [bits(slot.parameter) for slot in slots]
    plan = native.Plan([Group(options, tuple(slots))], Phase(clip_update=1.0))
    numbers = StepNumbers.averaging(at_step(options, 3, 0.1), None, 3)
    rows = plan.measured(gradients[0], [numbers], 8.0, 0.5)
    c = at_step(options, 3, 0.1, 0.5 / 8.0).rounded(np.dtype(np.float32))
    for row, slot, p, g in zip(rows, slots, parameters, gradients[0], strict=True):
        v = np.full_like(p, 0.5)
        assert norm_of_row(row) == norm([unsmoothed(c, p, g, v)])
        assert slot.state.square.tobytes() == v.tobytes()
    assert all(map(np.array_equal, before, [bits(slot.parameter) for slot in slots]))


# ── what it is ─────────────────────────────────────────────────────────────────────────────────


def test_one_step_is_that_of_stable_adamw_in_200_bits():
    """Algorithm 2 of Wortsman et al., with β as the paper corrects it: v̂ of the usual form."""
    random = np.random.default_rng(1)
    p, m, v = random.normal(size=9), random.normal(size=9), random.uniform(0.1, 1, 9)
    g = random.normal(size=9) * 20
    betas, lr, weight_decay, eps, step = (0.9, 0.99), 0.05, 0.1, 1e-6, 7
    options = Options(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decay="decoupled")
    for engine in (reference, native):
        slot = Slot(p.copy(), states.create(p, options))
        slot.state.mean[...], slot.state.square[...] = m, v
        engine.Plan([Group(options, (slot,))], Phase(clip_update=1.0)).step([g], step, [lr])
        with mpmath.workprec(200):
            b1, b2 = map(mpmath.mpf, betas)
            u = [
                (b2 * a + (1 - b2) * mpmath.mpf(x) ** 2) / (1 - b2**step)
                for a, x in zip(v, g, strict=True)
            ]
            rms = mpmath.sqrt(
                sum(
                    mpmath.mpf(x) ** 2 / max(a, mpmath.mpf(eps) ** 2)
                    for a, x in zip(u, g, strict=True)
                )
                / 9
            )
            assert rms > 1.5
            rate = mpmath.mpf(lr) / max(1, rms)
            for i in range(9):
                hat = (b1 * m[i] + (1 - b1) * mpmath.mpf(g[i])) / (1 - b1**step)
                wanted = p[i] - rate * (weight_decay * p[i] + hat / (mpmath.sqrt(u[i]) + eps))
                assert abs(slot.parameter[i] - wanted) < 2**-50 * abs(p[i])


@pytest.mark.parametrize(
    ("norm_of", "count", "root", "factor"),
    [
        (2.0, 4, 1.0, 1.0),
        (4.0, 4, 1.0, 0.5),
        (3.0, 9, 2.0, 1.0),
        (0.0, 0, 1.0, 1.0),
        (4.0, 4, 0.0, 1.0),
        (math.inf, 4, 1.0, 0.0),
    ],
)
def test_the_factor_brings_the_root_mean_square_down_to_the_bound(norm_of, count, root, factor):
    assert update_factor(1.0, norm_of, count, root) == factor
    assert math.isnan(update_factor(1.0, math.nan, 4, 1.0))


def test_updates_below_the_bound_leave_every_bit():
    parameters, gradients = drawn(ordinary, SIZES, np.float32)
    options = Options(lr=0.1, weight_decay=0.1, decay="decoupled")
    assert not does_clip(options, Phase(clip_update=1e30), parameters, gradients)


def trained(**more):
    """Losses of a run whose gradients grow 10,000 times: the largest before, and after."""
    random = np.random.default_rng(0)
    weights = np.zeros(64)
    optimizer = adamas.Adam(weights, lr=0.01, betas=(0.9, 0.9997), **more)
    losses = []
    for step in range(4000):
        curvature = 1e-4 if step < 2000 else 1.0
        optimizer.step(curvature * (weights + random.normal(size=64) * 0.3))
        losses.append(float(np.square(weights).mean()))
    return max(losses[:2000]), max(losses[2000:])


def test_a_second_moment_that_lags_behind_makes_updates_explode_and_clipping_tames_them():
    usual, worst = trained()
    assert worst > 5 * usual
    usual, worst = trained(clip_update=1.0)
    assert worst < 1.25 * usual
