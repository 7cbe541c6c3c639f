"""The native engine: the bits of the reference, on every machine, and nothing else touched."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import adamas
from adamas import _native
from adamas import state as states
from adamas.coefficients import StepNumbers, at_step, ema_weights
from adamas.engines import Group, Slot, native, reference
from adamas.options import Decay, Options, Phase
from adamas.statistics import TILE, Outcome
from tests.support.cases import (
    EPSILONS,
    FLOATS,
    LARGE,
    METHODS,
    PHASES,
    Run,
    differences,
    each_machine,
    every_option,
    every_phase,
    ordinary,
    run,
    special,
    special_values,
    wide,
)

Array = np.ndarray[Any, Any]

DECOUPLED = {"weight_decay": 0.01, "decay": "decoupled"}


@pytest.fixture(autouse=True)
def _settings_are_put_back():
    target, threads = adamas.target(), adamas.get_num_threads()
    yield
    native.set_target(target)
    adamas.set_num_threads(threads)


def drawn(values: Any, sizes: Any, dtype: Any, *, steps: int = 2, seed: int = 0):
    """Parameters, and gradients for some steps, of the given sizes or shapes."""
    random = np.random.default_rng(seed)
    parameters = [values(random, size, dtype) for size in sizes]
    gradients = [[values(random, size, dtype) for size in sizes] for _ in range(steps)]
    return parameters, gradients


def disagreements(options: Any, phase: Phase, parameters: Any, gradients: Any, **more: Any):
    """What each machine's code computes otherwise than the reference."""
    judge = run(reference, options, phase, parameters, gradients, **more)
    return {
        machine: found
        for machine in each_machine()
        if (found := differences(judge, run(native, options, phase, parameters, gradients, **more)))
    }


# ── the comparison ─────────────────────────────────────────────────────────────────────────────


def test_the_comparison_sees_each_single_bit_of_each_array():
    parameters, gradients = drawn(ordinary, [5, 3], np.float32)
    options = Options(amsgrad=True)
    judge = run(reference, options, PHASES["all"], parameters, gradients)
    again = run(reference, options, PHASES["all"], parameters, gradients)
    assert differences(judge, again) == []
    assert len(again.arrays) == 10
    for name, array in again.arrays.items():
        for i, bit in itertools.product(range(array.size), range(32)):
            array.view(np.uint32)[i] ^= np.uint32(1 << bit)
            assert differences(judge, again) == [name]
            array.view(np.uint32)[i] ^= np.uint32(1 << bit)


def test_the_comparison_sees_each_number_of_an_outcome():
    parameters, gradients = drawn(ordinary, [5], np.float64)
    judge = run(reference, Options(), PHASES["all"], parameters, gradients)
    last = judge.outcomes[-1]
    assert last is not None
    assert last.statistics is not None
    assert last.norm is not None
    changed: list[Any] = [
        dataclasses.replace(last, applied=False),
        dataclasses.replace(last, nonfinite=(1,)),
        dataclasses.replace(last, norm=math.nextafter(last.norm, 0)),
        dataclasses.replace(last, statistics=None),
        None,
    ]
    for name, value in dataclasses.asdict(last.statistics[0]).items():
        other = value + 1 if isinstance(value, int) else math.nextafter(value, math.inf)
        statistics = (dataclasses.replace(last.statistics[0], **{name: other}),)
        changed.append(dataclasses.replace(last, statistics=statistics))
    for outcome in changed:
        assert differences(judge, Run(judge.arrays, [*judge.outcomes[:-1], outcome])) != []


def test_the_comparison_tells_the_zeros_apart_but_not_the_nans():
    def of(*values: float) -> Run:
        return Run({"0": np.array(values)}, [])

    quiet, negative, payload = np.array(
        [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000123], np.uint64
    ).view(np.float64)
    assert differences(of(0.0), of(-0.0)) == ["0"]
    assert differences(of(quiet, quiet), of(negative, payload)) == []
    assert differences(of(quiet), of(math.inf)) == ["0"]


# ── bits ───────────────────────────────────────────────────────────────────────────────────────

# The loops that are compiled differ by dtype, method, and by whether weights are averaged or
# statistics taken; all other options are numbers in them. So the options are crossed with one
# another, the phases with the methods, and both with dtypes and machines.


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_every_option_gives_the_bits_of_the_reference(method, dtype):
    parameters, gradients = drawn(ordinary, [67], dtype, steps=3)
    for options in every_option(method):
        assert disagreements(options, Phase(), parameters, gradients) == {}, options


@pytest.mark.quick_cases(12)
@pytest.mark.parametrize("values", [ordinary, special], ids=["finite", "special"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_every_phase_gives_the_bits_of_the_reference(method, dtype, values):
    parameters, gradients = drawn(values, [TILE + 3, 5], dtype)
    options = Options(lr=0.1, weight_decay=0.01, **METHODS[method])
    for phase in every_phase():
        assert disagreements(options, phase, parameters, gradients) == {}, phase


@pytest.mark.quick_cases(6)
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_size_gives_the_bits_of_the_reference(dtype, phase):
    beside_tiles = [TILE - 1, TILE, TILE + 1, 2 * TILE + 501, 64 * TILE - 1, 64 * TILE + 1]
    for values in (ordinary, wide):
        for size in (*range(71), *beside_tiles):
            parameters, gradients = drawn(values, [size], dtype, steps=1)
            found = disagreements(Options(), PHASES[phase], parameters, gradients)
            assert found == {}, (size, values)


def test_every_shape_gives_the_bits_of_the_reference():
    shapes = [(), (1,), (3, 0), (4, 5, 6), (1, 1), (2, 3, 1, 2)]
    parameters, gradients = drawn(ordinary, shapes, np.float32)
    assert disagreements(Options(), PHASES["all"], parameters, gradients) == {}


@pytest.mark.parametrize("epsilon", EPSILONS, ids=repr)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("method", METHODS)
def test_special_values_in_all_combinations_give_the_bits_of_the_reference(method, dtype, epsilon):
    values = special_values(dtype)
    p, g, m, v = (x.ravel() for x in np.meshgrid(values, values, values[::2], values))
    starts = [{"mean": m, "square": v, "largest_square": np.flip(v), "ema": np.flip(m)}]
    options = Options(lr=0.1, weight_decay=0.01, **METHODS[method], **epsilon)
    assert disagreements(options, Phase(ema=0.5), [p], [[g]], starts=starts, first=2) == {}


@pytest.mark.parametrize("decay", [{}, {"weight_decay": -0.0}, DECOUPLED], ids=repr)
@pytest.mark.parametrize("dtype", FLOATS)
def test_terms_that_are_neutral_may_be_left_out_whatever_the_values_are(dtype, decay):
    values = special_values(dtype)
    p, g, m, v = (x.ravel() for x in np.meshgrid(values, values, values, values))
    kept = np.isfinite(g)  # for a factor that is not NaN, where gradients are clipped
    for correction, sign in itertools.product(("paper", "none"), (False, True)):
        own = {"bias_correction": correction, "maximize": sign, **METHODS["adam"], **decay}
        options = Options(lr=0.1, **own)
        assert at_step(options, 2, 0.1, 1.0).l2 == 0
        starts = [{"mean": m, "square": v}]
        assert disagreements(options, Phase(), [p], [[g]], starts=starts, first=2) == {}
        clipped, starts = Phase(clip_norm=0.5), [{"mean": m[kept], "square": v[kept]}]
        given, scaled = [p[kept]], [[g[kept]]]
        assert disagreements(options, clipped, given, scaled, starts=starts, first=2) == {}


@pytest.mark.parametrize("dtype", FLOATS)
def test_norms_of_special_values_are_those_of_the_reference(dtype):
    values = special_values(dtype)
    finite = values[np.isfinite(values)]
    for g in (*values, *itertools.combinations(finite, 2), finite, values):
        gradient = np.resize(np.array(g, dtype), TILE + 7)
        parameters, gradients = [gradient], [[gradient]]
        found = disagreements(Options(), PHASES["all"], parameters, gradients)
        assert found == {}, g


@pytest.mark.parametrize("phase", ["plain", "all"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_tensors_and_groups_of_all_kinds_in_one_step_give_the_bits_of_the_reference(dtype, phase):
    other = next(each for each in FLOATS if each is not dtype)
    random = np.random.default_rng(5)
    sizes = [TILE + 1, 0, 70 * TILE + 3, 1, (3, 5), 40 * TILE]
    kinds = [dtype, other, dtype, other, dtype, other]

    def draw() -> list[Array]:
        return [ordinary(random, s, kind) for s, kind in zip(sizes, kinds, strict=True)]

    changes = [*METHODS.values()][: len(sizes)]
    several = [Options(lr=0.1 * (i + 1), **each) for i, each in enumerate(changes)]
    parameters, gradients = draw(), [draw(), draw()]
    for options in (Options(lr=0.1), several):
        assert disagreements(options, PHASES[phase], parameters, gradients) == {}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("dtype", "phase", "method"), [
    (np.float32, "plain", "adam"),
    (np.float32, "all", "nadam-amsgrad"),
    (np.float32, "statistics", "momentum"),
    (np.float64, "plain", "rmsprop-amsgrad"),
    (np.float64, "clip", "adam"),
    (np.float64, "ema", "descent"),
])  # fmt: skip
def test_every_number_of_threads_gives_the_bits_of_the_reference(dtype, phase, method):
    # The second tensor is small and the third empty: chunks of several are handed out.
    parameters, gradients = drawn(ordinary, [LARGE, 5, 0, LARGE // 3], dtype)
    options = Options(lr=0.1, **METHODS[method])
    for threads in (1, 2, 3, 8):
        adamas.set_num_threads(threads)
        found = disagreements(options, PHASES[phase], parameters, gradients)
        assert found == {}, threads


def test_millions_of_parameters_get_the_bits_of_the_reference():
    parameters, gradients = drawn(wide, [3_000_017], np.float32, steps=1)
    assert disagreements(Options(), PHASES["all"], parameters, gradients) == {}


OPTIMIZERS = [
    (adamas.Adam, {"amsgrad": True, "clip_norm": 1.0}),
    (adamas.AdamW, {"lr": lambda step: 1 / step, "nesterov": True}),
    (adamas.Momentum, {"ema": 0.5, "decay": "decoupled", "weight_decay": 0.1}),
    (adamas.RMSProp, {"statistics": True, "eps": 0.0, "maximize": True}),
]


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_optimizers_with_either_engine_end_with_the_same_bits(optimizer, options):
    def end(engine: str) -> Run:
        random = np.random.default_rng(3)
        params = {
            "plain": ordinary(random, (7, 9), np.float32),
            "turned": ordinary(random, (9, 7), np.float64).T,
            "none": ordinary(random, (0, 2), np.float64),
        }
        made = optimizer(params, engine=engine, **options)
        for _ in range(3):
            made.step({name: ordinary(random, p.shape, p.dtype) for name, p in params.items()})
        states = made.state_dict()["state"]
        kept = {f"{name}.{e}": array for name in params for e, array in states[name].items()}
        taken = tuple(made.statistics().values()) if "statistics" in options else None
        applied, norm = made.skipped == 0, made.gradient_norm
        return Run({**params, **kept}, [Outcome(applied, norm, None, taken)])

    for _ in each_machine():
        assert differences(end("reference"), end("native")) == []


@pytest.mark.parametrize("shape", [(0,), (0, 2), (2, 0), (3, 0, 4)])
def test_an_array_without_elements_is_stepped_in_company_and_alone(shape):
    for phase in PHASES.values():
        more = {f.name: getattr(phase, f.name) for f in dataclasses.fields(phase)}
        for params in ({"a": np.ones(shape)}, {"a": np.ones(shape), "b": np.ones(3)}):
            optimizer = adamas.Adam(params, **more)
            optimizer.step({name: np.ones_like(p) for name, p in params.items()})
            assert optimizer.steps == 1


rates = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 0.9, 0.999, 1 - 2**-53])
amounts = st.floats(0, 1e3) | st.sampled_from([0.0, 1e-8, 1e-30, 5e-324])
choices = st.fixed_dictionaries(
    {
        "lr": amounts,
        "eps": amounts,
        "eps_root": amounts,
        "eps_place": st.sampled_from(["corrected", "uncorrected", "inside"]),
        "weight_decay": amounts,
        "bias_correction": st.sampled_from(["paper", "first-step", "none"]),
        "maximize": st.booleans(),
    }
)


@st.composite
def some_options(draw: Any) -> Options:
    method = dict(draw(st.sampled_from([*METHODS.values()])))
    method["betas"] = tuple(b if b is None else draw(rates) for b in method["betas"])
    decay = draw(st.sampled_from(get_args(Decay)))
    needs_most = decay in ("fully-decoupled", "corrected")
    more = {"lr_max": draw(st.floats(1e-3, 1e3))} if needs_most else {}
    drawn = draw(choices)
    if "rectify" in method:
        drawn["bias_correction"] = "paper"
    return Options(**drawn, **method, decay=decay, **more)


some_phases = st.builds(
    Phase,
    clip_norm=st.none() | st.floats(1e-30, 1e30),
    on_nonfinite=st.sampled_from(["propagate", "skip", "raise"]),
    ema=st.none() | rates,
    statistics=st.booleans(),
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    options=some_options(),
    phase=some_phases,
    dtype=st.sampled_from(FLOATS),
    values=st.sampled_from([ordinary, wide, special]),
    sizes=st.lists(st.integers(0, 2 * TILE), min_size=1, max_size=3),
    first=st.integers(1, 100) | st.integers(1, 2**53 - 1),  # two steps are made
    seed=st.integers(0, 2**32 - 1),
)
def test_any_options_and_values_give_the_bits_of_the_reference(
    options, phase, dtype, values, sizes, first, seed
):
    parameters, gradients = drawn(values, sizes, dtype, seed=seed)
    random = np.random.default_rng(seed)
    starts = [{name: values(random, s, dtype) for name in states.ENTRIES} for s in sizes]
    more = {"first": first, "starts": starts}
    assert disagreements(options, phase, parameters, gradients, **more) == {}


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    options=some_options(),
    step=st.integers(1, 100) | st.integers(1, 2**53),
    lr=amounts,
    scale=st.floats(0, 1e30),
)
@example(options=Options(), step=2**53, lr=1.0, scale=1.0)
def test_the_numbers_of_the_rule_are_those_of_the_definition(options, step, lr, scale):
    with np.errstate(all="ignore"):
        wanted = at_step(options, step, lr, scale)
    given = _native.numbers(options, step, lr, scale)
    assert np.array(given).tobytes() == np.array(wanted).tobytes()


# ── memory ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_a_step_writes_parameters_and_state_in_place_and_nothing_beside_them(dtype, phase):
    options = Options(amsgrad=True)
    for _, size in itertools.product(each_machine(), (1, 33, TILE + 1, LARGE)):
        # One block holds all arrays, unaligned to any register, with a margin around each.
        codes = ("header", "remainder")
        kept = [name for name in states.ENTRIES if name not in codes]
        names = ("parameter", *kept, "gradient")
        # All are so small that every entry of the state grows.
        block = np.full((len(names), size + 7), 2.0**-40, dtype)
        views = {name: row[3:-4] for name, row in zip(names, block, strict=True)}
        views["gradient"][...] = 2
        before = block.copy()
        entries = {name: views[name] for name in kept}
        if PHASES[phase].ema is None:
            del entries["ema"]
        slot = Slot(views["parameter"], states.State(**entries))
        plan = native.Plan([Group(options, (slot,))], PHASES[phase])
        plan.step([views["gradient"]], 2, [0.1])
        written = {"parameter", *entries}
        for name, row, old in zip(names, block, before, strict=True):
            assert (row[3:-4] != old[3:-4]).all() if name in written else (row == old).all(), name
            assert (row[:3] == old[:3]).all(), name
            assert (row[-4:] == old[-4:]).all(), name


def test_a_step_reads_gradients_that_may_not_be_written():
    p, g = np.ones(9, np.float32), np.full(9, 2, np.float32)
    g.flags.writeable = False
    adamas.Adam(p, lr=0.5).step(g)
    assert (p < 1).all()
    assert (g == 2).all()


def test_a_step_that_is_left_out_touches_nothing():
    for method in METHODS.values():
        for position in (0, LARGE - 1):
            parameters, gradients = drawn(ordinary, [LARGE], np.float32, steps=1)
            gradients[0][0][position] = np.nan
            phase = Phase(on_nonfinite="skip", ema=0.9, statistics=True)
            options = Options(**method)
            before = run(native, options, phase, parameters, [])
            after = run(native, options, phase, parameters, gradients)
            assert differences(before, Run(after.arrays, [])) == []
            assert after.outcomes[0] is not None
            assert after.outcomes[0].nonfinite == (1,)


# ── which gradients are read as they are ───────────────────────────────────────────────────────


def test_the_native_engine_declines_gradients_in_memory_that_it_writes():
    block = np.ones(40, np.float32)
    p, q = block[0:10], block[20:30]
    options = Options()
    state = states.create(p, options)
    slots = (Slot(p, state), Slot(q, states.create(q, options)))
    plan = native.Plan([Group(options, slots)], Phase())
    free = block[10:20]
    for overlapping in (p, q, block[9:19], block[11:21], block[1:11], block[29:39], state.mean):
        assert plan.step([free, overlapping], 1, [0.1]) is NotImplemented
        assert plan.step([overlapping, free], 1, [0.1]) is NotImplemented
    assert (block == 1).all()
    assert plan.step([free, block[30:40]], 1, [0.1]) is None


def test_a_plan_refuses_memory_that_it_cannot_step():
    options = Options()
    good = np.ones((4, 6), np.float32)
    fixed = good.copy()
    fixed.flags.writeable = False
    for p in (good.astype(np.int32), good.astype(">f4"), fixed):
        slot = Slot(p, states.create(p, options))
        with pytest.raises(ValueError, match="needs writeable arrays of a floating dtype"):
            native.Plan([Group(options, (slot,))], Phase())
    slot = Slot(good, states.create(good[:2], options))
    with pytest.raises(ValueError, match="arrays of the parameter's shape"):
        native.Plan([Group(options, (slot,))], Phase())


def test_a_step_needs_a_rate_for_each_group():
    p = np.ones(3, np.float32)
    options = Options()
    plan = native.Plan([Group(options, (Slot(p, states.create(p, options)),))], Phase())
    for wrong in ([], [0.1, 0.1]):
        with pytest.raises(ValueError, match="one learning rate for each group"):
            plan.step([np.ones(3, np.float32)], 1, wrong)
    assert (p == 1).all()


@pytest.mark.parametrize("number", [0, -1, -5, 2**53 + 1, 2**63, 2**64, -(2**63), 10**30])
def test_a_number_that_no_step_has_is_refused_before_anything_is_touched(number):
    p, options = np.ones(3, np.float32), Options(nesterov=True)
    state = states.create(p, options)
    plan = native.Plan([Group(options, (Slot(p, state),))], Phase())
    gradients = [np.ones(3, np.float32)]
    numbers = [numbers_of(options, Phase(), 1, 0.1)._replace(step=number)]
    message = (
        f"The number of the step is {number}, but it must be a whole number, at least 1 and at "
        "most 2^53."
    )
    message = f"^{re.escape(message)}$"
    with pytest.raises(ValueError, match=message):
        plan.step(gradients, number, [0.1])
    with pytest.raises(ValueError, match=message):
        plan.step_with(gradients, numbers)
    with pytest.raises(ValueError, match=message):
        _native.numbers(options, number, 0.1, 1.0)
    assert (p == 1).all()
    assert not any(entry.any() for entry in state.arrays().values())
    plan.step(gradients, 2**53, [0.1])
    assert (p < 1).all()


@pytest.mark.parametrize("wrong", ["0.1", None, [0.1], np.ones(2)], ids=repr)
def test_what_is_no_number_is_refused_before_anything_is_touched(wrong):
    p, options = np.ones(3, np.float32), Options()
    plan = native.Plan([Group(options, (Slot(p, states.create(p, options)),))], Phase())
    gradients = [np.ones(3, np.float32)]
    own = numbers_of(options, Phase(), 1, 0.1)
    said = f" is {wrong!r}, but it must be a {{}}."
    with pytest.raises(TypeError) as caught:
        plan.step(gradients, 1, [wrong])
    assert str(caught.value) == "The learning rate" + said.format("number")
    with pytest.raises(ValueError, match=r"^The number of the step is ") as caught:
        plan.step(gradients, wrong, [0.1])
    assert repr(wrong) in str(caught.value)
    with pytest.raises(TypeError) as caught:
        plan.step_with(gradients, [own._replace(rule=own.rule._replace(inner=wrong))])
    assert str(caught.value) == "A number of the step" + said.format("number")
    assert (p == 1).all()


@pytest.mark.parametrize("top", [-1, 13, 10**6, 2**40, 2**70])
def test_a_plan_refuses_codes_that_are_counted_from_where_none_can_be(top):
    p, options = np.ones(3, np.float32), Options(state="8bit")
    state = states.create(p, options)
    state = dataclasses.replace(state, top=top)
    with pytest.raises(ValueError, match=f"^top is {top}, but it must be from 0 to 12.$"):
        native.Plan([Group(options, (Slot(p, state),))], Phase())


def test_steps_whose_numbers_are_refused_leave_the_plan_to_the_next_one():
    p, options = np.ones(3, np.float32), Options()
    plan = native.Plan([Group(options, (Slot(p, states.create(p, options)),))], Phase())
    for wrong in ("1", 0, 2**70):
        with pytest.raises((TypeError, ValueError), match="The number of the step"):
            plan.step([np.ones(3, np.float32)], wrong, [0.1])
    plan.step([np.ones(3, np.float32)], np.int64(1), [np.float32(0.1)])
    assert (p < 1).all()


# ── numbers that are given ─────────────────────────────────────────────────────────────────────


def numbers_of(options, phase, step, lr):
    """The numbers of a step as step_with takes them."""
    return StepNumbers(at_step(options, step, lr), *ema_weights(phase.ema or 0.0, step), step)


def stepped_with(phase, form, by_numbers):
    """Three steps of two groups, in the one way or the other; return all arrays."""
    random = np.random.default_rng(5)
    options = [Options(state=form, nesterov=True), Options(betas=(None, 0.9), weight_decay=0.1)]
    ps = [random.standard_normal(2000).astype(np.float32) for _ in options]
    kept = [
        states.create(p, each, ema=phase.ema is not None)
        for p, each in zip(ps, options, strict=True)
    ]
    groups = [
        Group(each, (Slot(p, state),)) for each, p, state in zip(options, ps, kept, strict=True)
    ]
    plan = native.Plan(groups, phase)
    outcomes = []
    for step in (1, 2, 3):
        gradients = [random.standard_normal(2000).astype(np.float32) for _ in options]
        if by_numbers:
            numbers = [
                numbers_of(each, phase, step, lr)
                for each, lr in zip(options, (0.1, 0.2), strict=True)
            ]
            gradients = [np.float32(8) * each for each in gradients]
            outcomes.append(plan.step_with(gradients, numbers, 16.0, 2.0))
        else:
            outcomes.append(plan.step(gradients, step, [0.1, 0.2]))
    return [*ps, *(array for state in kept for array in state.arrays().values())], outcomes


@pytest.mark.parametrize("form", ["float32", "8bit"])
@pytest.mark.parametrize("phase", [Phase(), Phase(ema=0.9, seed=3)])
def test_a_step_with_given_numbers_has_the_bits_of_one_that_computes_them(phase, form):
    """Gradients are eight times as large, and divided by sixteen times a half: all of it exact."""
    (plain, _), (numbered, _) = (stepped_with(phase, form, each) for each in (False, True))
    for a, b in zip(plain, numbered, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_with_given_numbers_reports_as_ever():
    (_, plain), (_, numbered) = (
        stepped_with(Phase(statistics=True), "float32", each) for each in (False, True)
    )
    for a, b in zip(plain, numbered, strict=True):
        for one, other in zip(a.statistics, b.statistics, strict=True):
            assert one.update_norm == other.update_norm
            assert one.gradient_norm * 8 == other.gradient_norm


def test_a_step_needs_the_numbers_of_each_group():
    p, options = np.ones(3, np.float32), Options()
    plan = native.Plan([Group(options, (Slot(p, states.create(p, options)),))], Phase())
    own = numbers_of(options, Phase(), 1, 0.1)
    for wrong in ([], [own, own]):
        with pytest.raises(ValueError, match="the numbers of each group"):
            plan.step_with([np.ones(3, np.float32)], wrong)
    for wrong in (tuple(own), own.rule, own._replace(rule=tuple(own.rule)), None):
        with pytest.raises(TypeError) as caught:
            plan.step_with([np.ones(3, np.float32)], [wrong])
        assert str(caught.value) == (
            f"The numbers of a step are {wrong!r}, but they must be an "
            "adamas.coefficients.StepNumbers."
        )
    assert plan.step_with([np.ones(4, np.float32)], [own]) is NotImplemented
    assert (p == 1).all()
    assert plan.step_with([np.ones(3, np.float32)], [own]) is None
