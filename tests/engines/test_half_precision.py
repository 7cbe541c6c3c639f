"""Parameters in bfloat16 and float16: one set of bits on all engines, and what rounding keeps."""

from __future__ import annotations

import math

import ml_dtypes
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
    METHODS,
    PHASES,
    bits,
    differences,
    each_machine,
    ordinary,
    run,
    special,
    wide,
)

SIZES = [0, 1, 31, 32, 33, TILE - 1, TILE, TILE + 1, 3 * TILE + 70]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
#: Every dtype with every rounding it can have.
CASES = [
    *((BFLOAT16, rounding) for rounding in ("nearest", "stochastic", "remainder", "remainder8")),
    *((np.dtype(np.float16), rounding) for rounding in ("nearest", "stochastic")),
]
IDS = [f"{dtype}-{rounding}" for dtype, rounding in CASES]


@pytest.fixture(autouse=True)
def _settings_are_put_back():
    target, threads = adamas.target(), adamas.get_num_threads()
    yield
    native.set_target(target)
    adamas.set_num_threads(threads)


def as_stored(values, dtype):
    """Round to the dtype; bfloat16 as its bits."""
    with np.errstate(all="ignore"):
        rounded = values.astype(dtype)
    return rounded.view(np.uint16) if dtype == BFLOAT16 else rounded


def drawn(values, sizes, dtype, steps=3, seed=0):
    random = np.random.default_rng(seed)

    def arrays():
        return [as_stored(values(random, size, np.float32), dtype) for size in sizes]

    return arrays(), [arrays() for _ in range(steps)]


def same(a, b):
    return np.array_equal(bits(a), bits(b))


def agrees(options, phase, parameters, gradients):
    """Assert that the native engine gives the bits of the reference on every machine."""
    judge = run(reference, options, phase, parameters, gradients)
    for machine in each_machine():
        found = run(native, options, phase, parameters, gradients)
        assert differences(judge, found) == [], machine


# ── bits ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("values", [ordinary, wide, special])
@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_the_native_engine_gives_the_bits_of_the_reference(dtype, rounding, values):
    for forms in (("float32", "float32"), *FORMS):
        options = Options(lr=0.1, rounding=rounding, weight_decay=0.01, state=forms)
        agrees(options, Phase(seed=5), *drawn(values, SIZES, dtype))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_every_phase_gives_the_bits_of_the_reference(dtype, rounding, phase):
    for values in (ordinary, special):
        options = Options(lr=0.1, rounding=rounding)
        agrees(options, PHASES[phase], *drawn(values, SIZES, dtype))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_every_method_gives_the_bits_of_the_reference(dtype, rounding, method):
    options = Options(lr=0.1, rounding=rounding, **METHODS[method])
    agrees(options, Phase(), *drawn(ordinary, SIZES, dtype))


@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_the_number_of_threads_does_not_matter(dtype, rounding):
    case = drawn(ordinary, [LARGE, 77], dtype)
    phase = Phase(clip_norm=1.0)
    runs = []
    for threads in (1, 2, 5):
        adamas.set_num_threads(threads)
        runs.append(run(native, Options(lr=0.1, rounding=rounding), phase, *case))
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []


@pytest.mark.parametrize("engine", [native, reference])
@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_slices_that_know_their_place_have_the_bits_of_the_whole(dtype, rounding, engine):
    size, cut = 3000, 1001
    parameters, gradients = drawn(ordinary, [17, size], dtype)
    options = Options(lr=0.1, rounding=rounding)
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


# ── what rounding keeps ────────────────────────────────────────────────────────────────────────


def every_half(dtype):
    """All 65,536 numbers of a dtype, as stored."""
    codes = np.arange(2**16, dtype=np.uint16)
    return codes if dtype == BFLOAT16 else codes.view(dtype)


@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_numbers_that_need_no_rounding_stay_themselves(dtype, rounding):
    stored = every_half(dtype)
    x = codecs.decode_parameter(stored)
    wanted = stored.view(dtype).astype(np.float32)
    assert same(x, wanted)
    random = codecs.random_bits(codecs.key_of(1, 2, 3), 0, x.size)
    code, remainder = codecs.encode_parameter(x, stored, rounding, random)
    assert same(codecs.decode_parameter(code), wanted)
    assert remainder is None or not remainder.any()


@pytest.mark.parametrize("dtype", [BFLOAT16, np.dtype(np.float16)])
def test_nearest_is_the_rounding_of_other_libraries(dtype):
    random = np.random.default_rng(0)
    x = np.concatenate([f(random, 20_000, np.float32) for f in (ordinary, wide, special)])
    code, _ = codecs.encode_parameter(x, np.empty(0, as_stored(x, dtype).dtype), "nearest", None)
    assert same(codecs.decode_parameter(code), as_stored(x, dtype).view(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "rounding", "unit"),
    [(BFLOAT16, "stochastic", 2.0**-7), (np.dtype(np.float16), "stochastic", 2.0**-10),
     (BFLOAT16, "remainder8", 2.0**-15)],
)  # fmt: skip
def test_rounding_by_chance_is_unbiased(dtype, rounding, unit):
    """Each value lies a part f of the way between neighbours; the mean of n roundings is within
    5 standard deviations, at most 5·unit/(2√n), and the granularity of the random bits."""
    n = 1 << 14
    like = np.empty(0, np.uint16 if dtype == BFLOAT16 else dtype)
    for i, x in enumerate([1.0 + unit / 3, 1.25 + unit / 7, -1.5 - unit * 0.9, 1.1]):
        values = np.full(n, x, np.float32)
        random = codecs.random_bits(codecs.key_of(0, 1, i), 0, n)
        code, remainder = codecs.encode_parameter(values, like, rounding, random)
        found = codecs.decode_parameter(code, remainder).astype(np.float64)
        assert set(np.abs(found - np.float32(x)) < unit) == {True}
        granularity = unit / 256 if rounding == "remainder8" else unit / 2**13
        bound = 5 * unit / (2 * math.sqrt(n)) + granularity
        assert abs(found.mean() - np.float64(np.float32(x))) < bound


def test_small_float16_is_unbiased_too():
    unit = 2.0**-24  # of subnormal numbers
    n = 1 << 14
    for i, x in enumerate([0.3 * unit, 5.7 * unit, -900.5 * unit]):
        random = codecs.random_bits(codecs.key_of(0, 2, i), 0, n)
        values = np.full(n, x, np.float32)
        code, _ = codecs.encode_parameter(values, np.empty(0, np.float16), "stochastic", random)
        error = abs(code.astype(np.float64).mean() - np.float64(np.float32(x)))
        assert error < 5 * unit / (2 * math.sqrt(n)) + unit / 2**13


@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_with_a_remainder_bfloat16_trains_as_float32_bit_for_bit(state):
    random = np.random.default_rng(0)
    start = random.standard_normal(5000).astype(BFLOAT16)
    half, full = start.copy(), start.astype(np.float32)
    ours = adamas.AdamW(half, lr=1e-3, rounding="remainder", state=state)
    theirs = adamas.AdamW(full, lr=1e-3, state=state)  # whose state is rounded by chance, too
    for _ in range(200):
        gradient = random.standard_normal(5000).astype(BFLOAT16)
        ours.step(gradient)
        theirs.step(gradient.astype(np.float32))
    remainder = next(iter(ours.state_dict()["state"].values()))["remainder"]
    assert same(codecs.decode_parameter(half.view(np.uint16), remainder), full)
    # What is stored is within half a unit of the last place, as rounding to nearest is.
    assert (np.abs(half.astype(np.float32) - full) <= np.abs(full) * 2.0**-8).all()


@pytest.mark.parametrize("rounding", ["remainder", "remainder8"])
def test_remainders_of_other_numbers_give_the_bits_of_the_reference(rounding):
    """Every bfloat16, as if it had been assigned, over the remainders farthest from 0."""
    options, code = Options(lr=0.1, rounding=rounding), every_half(BFLOAT16)
    limits = np.iinfo(np.int16 if rounding == "remainder" else np.int8)
    starts = [
        {"mean": 0, "square": 0, "remainder": each} for each in (limits.min, -1, 1, limits.max)
    ]
    gradients = [[np.full(code.size, 0x3F80, np.uint16)] * 4] * 2
    for target in each_machine():
        found = [
            run(engine, options, Phase(), [code] * 4, gradients, starts=starts)
            for engine in (reference, native)
        ]
        assert differences(*found) == [], target
    zeros = (code & 0x7FFF) == 0
    for i in range(4):
        stepped = found[1].arrays[f"{i}"][zeros].view(BFLOAT16).astype(np.float32)
        assert (np.abs(stepped + 0.2) < 0.002).all()


@pytest.mark.parametrize("rounding", ["stochastic", "remainder", "remainder8"])
def test_steps_that_nearest_loses_add_up(rounding):
    """A step of lr = 1e-4 is far below half a unit of bfloat16 at 1, 2^-8."""
    p, lost = np.ones(4000, BFLOAT16), np.ones(4000, BFLOAT16)
    optimizer = adamas.Adam(p, lr=1e-4, rounding=rounding)
    other = adamas.Adam(lost, lr=1e-4)
    for _ in range(1000):
        optimizer.step(np.ones(4000, BFLOAT16))
        other.step(np.ones(4000, BFLOAT16))
    assert (lost == 1).all()
    # The standard deviation of the mean: √(1000 · 1e-4 · 2^-8 / 4000) = 3e-4 for "stochastic".
    assert float(p.astype(np.float64).mean()) == pytest.approx(0.9, abs=3e-3)


# ── NumPy arrays ───────────────────────────────────────────────────────────────────────────────


def trained(dtype, rounding, steps, engine="native", **options):
    random = np.random.default_rng(2)
    params = {
        "a": np.ones((7, 9), dtype), "b": np.asfortranarray(np.ones((4, 8), dtype)),
        "c": np.ones(5, np.float32), "d": np.ones((), dtype),
    }  # fmt: skip
    optimizer = adamas.AdamW(params, lr=0.01, rounding=rounding, engine=engine, **options)
    go_on(params, optimizer, steps, random)
    return params, optimizer


def go_on(params, optimizer, steps, random):
    for _ in range(steps):
        optimizer.step({k: np.asarray(random.standard_normal(p.shape)).astype(p.dtype)
                        for k, p in params.items()})  # fmt: skip


@pytest.mark.parametrize(("dtype", "rounding"), CASES[:4], ids=IDS[:4])
def test_both_engines_step_arrays_of_all_dtypes_together(dtype, rounding):
    runs = [trained(dtype, rounding, 4, engine, state="8bit") for engine in ("native", "reference")]
    for name in runs[0][0]:
        assert same(*(params[name].astype(np.float32) for params, _ in runs))
        assert (runs[0][0][name] != 1).any()


@pytest.mark.parametrize("how", ["dense", "packed", "file"])
@pytest.mark.parametrize(("dtype", "rounding"), CASES, ids=IDS)
def test_a_resumed_run_gives_the_bits_of_the_unbroken_one(dtype, rounding, how, tmp_path):
    params, optimizer = trained(dtype, rounding, 5, ema=0.9, state="compact")
    twin, other = trained(dtype, rounding, 0, ema=0.9, state="compact")
    if how == "file":
        adamas.save(tmp_path / "state.safetensors", optimizer)
        adamas.load(tmp_path / "state.safetensors", other)
    else:
        for name, p in params.items():
            twin[name][...] = p
        other.load_state_dict(optimizer.state_dict(packed=how == "packed"))
    for run_ in ((params, optimizer), (twin, other)):
        go_on(*run_, 4, np.random.default_rng(3))
    for name, p in params.items():
        assert same(p.astype(np.float32), twin[name].astype(np.float32))


def test_averages_are_float32_and_come_in_place_rounded():
    params, optimizer = trained(BFLOAT16, "remainder", 5, ema=0.5)
    kept = params["a"].copy()
    average = optimizer.state_dict()["state"]["a"]["ema"]
    assert average.dtype == np.float32
    with optimizer.ema_weights():
        assert (params["a"] == average.astype(BFLOAT16)).all()
    assert (params["a"] == kept).all()


def test_a_run_without_remainders_goes_on_with_them():
    params, optimizer = trained(BFLOAT16, None, 5)
    twin, other = trained(BFLOAT16, "remainder", 0)
    for name, p in params.items():
        twin[name][...] = p
    other.load_state_dict(optimizer.state_dict())
    assert not other.state_dict()["state"]["a"]["remainder"].any()
    with pytest.raises(KeyError, match="has the entries mean, remainder, square"):
        optimizer.load_state_dict(other.state_dict())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="in bfloat16, but they have dtype float16"):
        adamas.Adam(np.ones(3, np.float16), rounding="remainder")
    p = np.ones(3, BFLOAT16)
    optimizer = adamas.Adam(p, rounding="remainder")
    with pytest.raises(ValueError, match="keeps its remainders accordingly"):
        optimizer.set_options(rounding="stochastic")
    for wrong in (np.ones(3, np.float32), np.ones(3, np.uint16), np.ones(3, np.float16)):
        with pytest.raises(TypeError, match="but the parameter has dtype bfloat16"):
            optimizer.step(wrong)
    assert (p == 1).all()
    with pytest.raises(TypeError, match="must be float32, float64, float16 or ml_dtypes' bfloat16"):
        adamas.Adam(np.ones(3, np.uint16))
