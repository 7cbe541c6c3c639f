"""Running means in few bytes: one set of bits on all engines, and what users rely on."""

from __future__ import annotations

import copy
import itertools
import re

import numpy as np
import pytest

import adamas
from adamas import codecs
from adamas import state as states
from adamas.engines import Group, Slot, native, reference
from adamas.options import Options, Phase
from adamas.statistics import TILE
from tests.support.cases import (
    FORMS,
    LARGE,
    PHASES,
    bits,
    differences,
    each_machine,
    ordinary,
    run,
    special,
    wide,
)

SIZES = [0, 1, 31, 32, 33, 255, 256, 290, TILE - 1, TILE, TILE + 1, 3 * TILE + 70]
ROUNDINGS = ["stochastic", "nearest"]
NAMES = ["bfloat16", "compact", "8bit"]


@pytest.fixture(autouse=True)
def _settings_are_put_back():
    target, threads = adamas.target(), adamas.get_num_threads()
    yield
    native.set_target(target)
    adamas.set_num_threads(threads)


def drawn(values, sizes, steps=3, seed=0):
    random = np.random.default_rng(seed)
    parameters = [values(random, size, np.float32) for size in sizes]
    return parameters, [[values(random, size, np.float32) for size in sizes] for _ in range(steps)]


def same(a, b):
    return np.array_equal(bits(a), bits(b))


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("values", [ordinary, wide, special])
@pytest.mark.parametrize("forms", FORMS)
def test_the_native_engine_gives_the_bits_of_the_reference(forms, values, rounding):
    parameters, gradients = drawn(values, SIZES)
    options = Options(lr=0.1, state=forms, rounding=rounding, weight_decay=0.01)
    phase = Phase(seed=5)
    judge = run(reference, options, phase, parameters, gradients)
    for machine in each_machine():
        found = run(native, options, phase, parameters, gradients)
        assert differences(judge, found) == [], machine


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("form", NAMES)
def test_every_phase_gives_the_bits_of_the_reference(form, phase):
    parameters, gradients = drawn(ordinary, SIZES)
    options = Options(lr=0.1, state=form)
    judge = run(reference, options, PHASES[phase], parameters, gradients)
    for machine in each_machine():
        found = run(native, options, PHASES[phase], parameters, gradients)
        assert differences(judge, found) == [], machine


@pytest.mark.parametrize("betas", [(0.5, 0.6), (0.0, 0.9), (0.99, 0.9), (0.9, 0.99999)])
@pytest.mark.parametrize("form", NAMES)
def test_any_betas_give_the_bits_of_the_reference(form, betas):
    parameters, gradients = drawn(ordinary, SIZES)
    options = Options(lr=0.1, state=form, betas=betas)
    judge = run(reference, options, Phase(), parameters, gradients)
    assert differences(judge, run(native, options, Phase(), parameters, gradients)) == []


@pytest.mark.parametrize("form", NAMES)
def test_infinite_parameters_beside_a_rate_below_0_have_the_bits_of_the_reference(form):
    parameters, gradients = [np.ones(TILE, np.float32)], [[np.ones(TILE, np.float32)]]
    parameters[0][[3, 500]] = np.inf, -np.inf
    phase, found = Phase(), {}
    for engine in (reference, native):
        options = Options(state=form, weight_decay=0.01, decay="decoupled")
        state = states.create(parameters[0], options)
        slot = Slot(parameters[0].copy(), state)
        engine.Plan([Group(options, (slot,))], phase).step(gradients[0], 1, [-1e-13])
        found[engine] = [slot.parameter, *state.arrays().values()]
    assert [same(a, b) for a, b in zip(*found.values(), strict=True)] == [True] * len(found[native])


@pytest.mark.parametrize(
    ("betas", "form"),
    [((0.9, None), "bfloat16"), ((None, 0.99), "bfloat16"), ((None, 0.99), "compact"),
     ((None, 0.99), "8bit")],
)  # fmt: skip
def test_methods_with_one_mean_give_the_bits_of_the_reference(betas, form):
    parameters, gradients = drawn(ordinary, SIZES)
    options = Options(lr=0.1, state=form, betas=betas)
    judge = run(reference, options, Phase(), parameters, gradients)
    assert differences(judge, run(native, options, Phase(), parameters, gradients)) == []


@pytest.mark.parametrize("form", NAMES)
def test_amsgrad_may_store_m_in_a_small_form(form):
    parameters, gradients = drawn(ordinary, SIZES)
    options = Options(lr=0.1, state=(form, "float32"), amsgrad=True)
    judge = run(reference, options, Phase(), parameters, gradients)
    assert differences(judge, run(native, options, Phase(), parameters, gradients)) == []


@pytest.mark.parametrize("form", NAMES)
def test_the_number_of_threads_does_not_matter(form):
    parameters, gradients = drawn(ordinary, [LARGE, 77])
    options = Options(lr=0.1, state=form)
    runs = []
    for threads in (1, 2, 5):
        adamas.set_num_threads(threads)
        runs.append(run(native, options, Phase(), parameters, gradients))
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []


@pytest.mark.parametrize("engine", [native, reference])
@pytest.mark.parametrize("form", NAMES)
def test_slices_that_know_their_place_have_the_bits_of_the_whole(form, engine):
    size, cut = 3000, 1056 if form == "8bit" else 1001
    parameters, gradients = drawn(ordinary, [17, size])
    options = Options(lr=0.1, state=form)
    whole = run(engine, options, Phase(), parameters, gradients)
    parts = [slice(0, cut), slice(cut, size)]
    values = [parameters[1][part].copy() for part in parts]
    slots = tuple(
        Slot(p, states.create(p, options), number=1, first=part.start)
        for p, part in zip(values, parts, strict=True)
    )
    plan = engine.Plan([Group(options, slots)], Phase())
    for number, (_, gradient) in enumerate(gradients, 1):
        plan.step([gradient[part].copy() for part in parts], number, [0.1])
    assert same(np.concatenate(values), whole.arrays["1"])
    for name in ("mean", "square"):
        joined = np.concatenate([getattr(slot.state, name) for slot in slots])
        assert same(joined, whole.arrays[f"1.{name}"])


@pytest.mark.parametrize("form", NAMES)
def test_slices_beyond_2_to_the_32_have_the_bits_of_the_reference(form):
    """The high word of the index changes within a strip, at its border, and within the last."""
    options = Options(lr=0.1, state=form)
    for first in (2**32 - 160, 2**32 - 256, 2**32 - 544, 2**40 - 512, 2**63 - 1024):
        (start,), gradients = drawn(ordinary, [560])
        found = []
        for engine in (reference, native):
            value = start.copy()
            slot = Slot(value, states.create(value, options), number=3, first=first)
            plan = engine.Plan([Group(options, (slot,))], Phase())
            for number, gradient in enumerate(gradients, 1):
                plan.step(gradient, number, [0.1])
            found.append((value, slot.state))
        assert same(found[0][0], found[1][0]), first
        assert same(found[0][1].mean, found[1][1].mean), first
        assert same(found[0][1].square, found[1][1].square), first


def test_seeds_tensors_and_steps_have_random_bits_of_their_own():
    def state_after(seed, steps, place):
        gradients = [np.full(999, 0.3, np.float32)] * 2
        parameters = [np.ones(999, np.float32)] * 2
        options = Options(lr=0.1, state="compact")
        done = run(native, options, Phase(seed=seed), parameters, [gradients] * steps)
        return done.arrays[f"{place}.mean"]

    cases = [(0, 3, 0), (1, 3, 0), (0, 3, 1), (0, 4, 0)]
    for one, other in itertools.combinations(cases, 2):
        assert not same(state_after(*one), state_after(*other))
    assert same(state_after(0, 3, 0), state_after(0, 3, 0))


# ── what it is for ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("form", "bytes_"), [("bfloat16", 4), ("compact", 3), ("8bit", 2.0625)])
def test_the_state_takes_as_many_bytes_as_promised(form, bytes_):
    assert adamas.Adam(np.ones(3200, np.float32), state=form).nbytes == 3200 * bytes_


@pytest.mark.parametrize("form", ["compact", "8bit"])
def test_no_update_explodes_where_scales_differ_by_six_decades_within_a_block(form):
    """|u| ≤ C·(1-β1^t)⁻¹·√(1-β2^t) = 7.27 at most for exact state, whatever the gradients.

    Rounding moves √v by 6 % and m by 1/16 or half a unit: 4 is far above what happens, and far
    below the thousands of codes with a scale for each block.
    """
    random = np.random.default_rng(0)
    scales = 10.0 ** random.uniform(-6, 0, 2048)
    p = np.ones(2048, np.float32)
    optimizer = adamas.Adam(p, lr=1e-3, state=form, statistics=True)
    for _ in range(300):
        optimizer.step((random.standard_normal(2048) * scales).astype(np.float32))
        assert next(iter(optimizer.statistics().values())).largest_update < 4


@pytest.mark.parametrize("form", NAMES)
def test_a_quadratic_is_minimised_as_with_float32(form):
    random = np.random.default_rng(1)
    target = random.standard_normal(500).astype(np.float32)
    ends = []
    for state in ("float32", form):
        p = np.zeros(500, np.float32)
        optimizer = adamas.Adam(p, lr=lambda step: 0.1 / (1 + step / 50), state=state)
        for _ in range(500):
            optimizer.step(p - target)
        ends.append(float(np.abs(p - target).max()))
    assert ends[0] < 1e-2
    assert ends[1] < 1e-2


# ── saving and loading ─────────────────────────────────────────────────────────────────────────


def trained(form, steps, **options):
    random = np.random.default_rng(2)
    params = {"a": np.ones((7, 9), np.float32), "b": np.ones(40, np.float32)}
    optimizer = adamas.AdamW(params, lr=0.01, state=form, **options)
    for _ in range(steps):
        optimizer.step({k: random.standard_normal(p.shape).astype(np.float32)
                        for k, p in params.items()})  # fmt: skip
    return params, optimizer


def go_on(params, optimizer, steps=4):
    random = np.random.default_rng(3)
    for _ in range(steps):
        optimizer.step({k: random.standard_normal(p.shape).astype(np.float32)
                        for k, p in params.items()})  # fmt: skip


@pytest.mark.parametrize("how", ["dense", "packed", "pickled", "file"])
@pytest.mark.parametrize("forms", FORMS)
def test_a_resumed_run_gives_the_bits_of_the_unbroken_one(forms, how, tmp_path):
    params, optimizer = trained(forms, 5)
    twin, other = trained(forms, 0)
    if how == "pickled":
        twin, other = copy.deepcopy((params, optimizer))
    elif how == "file":
        adamas.save(tmp_path / "state.safetensors", optimizer)
        adamas.load(tmp_path / "state.safetensors", other)
    else:
        for name, p in params.items():
            twin[name][...] = p
        other.load_state_dict(optimizer.state_dict(packed=how == "packed"))
    go_on(params, optimizer)
    go_on(twin, other)
    for name, p in params.items():
        assert same(p, twin[name])
    a, b = (each.state_dict()["state"] for each in (optimizer, other))
    for name, entries in a.items():
        for entry, array in entries.items():
            assert same(array, b[name][entry])


@pytest.mark.parametrize("form", NAMES)
def test_dense_state_is_float32_and_goes_into_any_form(form):
    _, optimizer = trained(form, 5)
    stored = optimizer.state_dict()
    for entries in stored["state"].values():
        assert {array.dtype for array in entries.values()} == {np.dtype(np.float32)}
        assert set(entries) == {"mean", "square"}
    _, wide_ = trained("float32", 0)
    wide_.load_state_dict(stored)
    assert same(wide_.state_dict()["state"]["a"]["mean"], stored["state"]["a"]["mean"])
    _, again = trained(form, 0)
    again.load_state_dict(wide_.state_dict())
    assert same(again.state_dict()["state"]["a"]["square"], stored["state"]["a"]["square"])


def test_packed_state_is_refused_by_another_form_before_anything_changes():
    _, small = trained("8bit", 3)
    _, other = trained("compact", 2)
    before = other.state_dict(packed=True)
    with pytest.raises(KeyError, match=r"The state of a has the entries header, mean, square"):
        other.load_state_dict(small.state_dict(packed=True))
    for name, entries in other.state_dict(packed=True)["state"].items():
        for entry, array in entries.items():
            assert same(array, before["state"][name][entry])


@pytest.mark.parametrize("betas", [(0.5, 0.999), (0.5, 0.9), (0.95, 0.999)])
@pytest.mark.parametrize("form", NAMES)
def test_other_betas_convert_the_codes_as_decoding_and_encoding_does(form, betas):
    params, optimizer = trained(form, 5)
    before = optimizer.state_dict()["state"]
    optimizer.set_options(betas=betas)
    after = optimizer.state_dict(packed=True)["state"]
    top = codecs.mean_top(*betas)
    for name in params:
        m, v = (before[name][entry].ravel() for entry in ("mean", "square"))
        codes = codecs.encode((form, form), m, v, None, top)
        assert int(after[name]["top"]) == top
        assert same(after[name]["mean"].ravel(), codes.mean)
        assert same(after[name]["square"].ravel(), codes.square)
        assert codes.header is None or same(after[name]["header"], codes.header)


@pytest.mark.parametrize("form", ["compact", "8bit"])
def test_a_run_whose_betas_fall_goes_on_like_the_one_in_float32(form):
    # After the fall m is the last gradients' mean, up to 18 √v, where the codes of the first betas
    # end at 16 √v: without conversion every step of a single large gradient is cut there.
    def run_of(state):
        p = np.zeros(64, np.float32)
        optimizer = adamas.Adam(p, lr=0.1, betas=(0.95, 0.999), state=state)
        for _ in range(3):
            optimizer.step(np.full(64, 1e-3, np.float32))
        optimizer.set_options(betas=(0.5, 0.999))
        before = p.copy()
        optimizer.step(np.ones(64, np.float32))
        stored = optimizer.state_dict()["state"]["x"]
        return p - before, stored["mean"] / np.sqrt(stored["square"])

    (step, ratio), (expected, exact) = run_of(form), run_of("float32")
    assert exact.min() > 15.5
    # The step is made before rounding, from m and v that the codes of three steps have rounded.
    assert np.abs(step / expected - 1).max() < 0.01
    # A unit of m's code is 2^-4 of its size in compact, 2^-7 of the block's largest in 8bit; that
    # of v at most 2^-3, of which the root takes half.
    assert np.abs(ratio / exact - 1).max() < 2**-4 + 2**-4


def test_codes_are_never_read_as_something_else_when_the_form_changes():
    for form, other in itertools.permutations(["float32", *NAMES], 2):
        params, optimizer = trained(form, 5)
        dense = optimizer.state_dict()["state"]
        twin = adamas.Adam({name: p.copy() for name, p in params.items()}, state=other)
        twin.load_state_dict(optimizer.state_dict())
        optimizer.set_options(state=other)
        stored = optimizer.state_dict(packed=True)
        assert stored["groups"][0]["state"] == [other, other]
        for name, entries in twin.state_dict(packed=True)["state"].items():
            assert entries.keys() == stored["state"][name].keys()
            for entry, array in entries.items():
                assert same(array, stored["state"][name][entry])
            assert other != "float32" or same(entries["mean"], dense[name]["mean"])


def test_a_group_keeps_its_parameters_in_float32():
    a, b = np.ones(64, np.float32), np.ones(64, np.float32)
    optimizer = adamas.Adam(
        [{"params": {"a": a}}, {"params": {"b": b}, "state": "float32"}], state="8bit"
    )
    assert optimizer.nbytes == 2 * 64 + 4 + 8 * 64


# ── errors ─────────────────────────────────────────────────────────────────────────────────────

REFUSED = [
    ({"state": "int4"}, ValueError,
     "state is 'int4', but it must be one of \"float32\", \"bfloat16\", \"compact\", \"8bit\"."),
    ({"state": ("8bit",)}, TypeError,
     "state is ('8bit',), but it must be one of \"float32\", "),
    ({"rounding": "up"}, ValueError,
     "rounding is 'up', but it must be one of \"nearest\", \"stochastic\", \"remainder\", "),
    ({"state": "8bit", "amsgrad": True}, ValueError,
     'amsgrad keeps the largest square so far, which the rounding of "8bit" would drive up.'),
    ({"seed": -1}, ValueError,
     "seed is -1, but it must be a whole number, at least 0 and at most 2^64 - 1."),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        adamas.Adam(np.ones(3, np.float32), **options)


def test_momentum_alone_has_no_square_to_store_it_by():
    with pytest.raises(ValueError, match="but this method keeps no second moment"):
        Options(betas=(0.9, None), state="compact")


def test_small_forms_are_for_float32():
    with pytest.raises(ValueError, match="low-bit states are for float32, bfloat16 and float16"):
        adamas.Adam(np.ones(3), state="8bit")


def test_a_block_is_a_part_of_a_tile():
    assert TILE % codecs.BLOCK == 0
