"""adamas.jax gives the bits of the reference engine, in whatever way JAX runs it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas
import adamas.jax as ours
from adamas.jax import operands
from tests.support.cases import bits, ordinary, python, special, wide
from tests.support.jax_cases import (
    CASES,
    LR,
    Ended,
    eager,
    ended,
    expected,
    flushed_steps,
    one_by_one,
    same,
    stepped,
    stepper,
)

SHAPES = ((5, 7), (), (0,))


def drawn(dtype=np.float32, steps=4, shapes=SHAPES, seed=0, values=ordinary):
    random = np.random.default_rng(seed)
    return (
        [np.asarray(values(random, shape, dtype)) for shape in shapes],
        [[np.asarray(values(random, shape, dtype)) for shape in shapes] for _ in range(steps)],
    )


def uneven(random, shape, dtype):
    """Numbers of a few magnitudes, many of them 0; none so small that its square is subnormal."""
    size = 10.0 ** random.integers(-6, 6, shape)
    kept = random.random(shape) < 0.8
    return (random.standard_normal(shape) * size * kept).astype(dtype)


# ── the reference engine's bits ────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("name", CASES)
def test_a_step_under_jit_has_the_bits_of_the_reference_engine(name):
    parameters, gradients = drawn(values=ordinary)
    gradients += drawn(values=uneven)[1]
    found = stepped(CASES[name].transformation(), parameters, gradients)
    assert found.differing(expected(CASES[name], parameters, gradients)) == []


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ["adam", "nadamw", "amsgrad", "rmsprop", "momentum-nesterov"])
def test_an_eager_step_has_the_bits_of_the_reference_engine(name):
    parameters, gradients = drawn(steps=2, values=uneven)
    found = stepped(CASES[name].transformation(), parameters, gradients, eager)
    assert found.differing(expected(CASES[name], parameters, gradients)) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["nadamw", "rmsprop"])
def test_operations_compiled_one_by_one_have_the_bits_of_the_reference_engine(name):
    parameters, gradients = drawn(steps=1, shapes=((9,),), values=uneven)
    found = stepped(CASES[name].transformation(), parameters, gradients, one_by_one)
    assert found.differing(expected(CASES[name], parameters, gradients)) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["adam-eps0", "nadamw", "momentum"])
def test_a_step_in_float64_has_the_bits_of_the_reference_engine(name):
    with jax.enable_x64(True):
        parameters, gradients = drawn(np.float64, values=uneven)
        found = stepped(CASES[name].transformation(), parameters, gradients)
        assert found.arrays["0"].dtype == np.float64
        assert found.differing(expected(CASES[name], parameters, gradients)) == []


def test_float32_keeps_its_bits_where_x64_is_on():
    parameters, gradients = drawn()
    with jax.enable_x64(True):
        found = stepped(CASES["adamw"].transformation(), parameters, gradients)
    assert found.differing(expected(CASES["adamw"], parameters, gradients)) == []


def test_a_scan_has_the_bits_of_the_reference_engine():
    parameters, gradients = drawn(steps=30)
    optimizer = ours.adamw(LR, weight_decay=0.1)
    step = stepper(optimizer)
    series = [jnp.stack(list(each)) for each in zip(*gradients, strict=True)]

    @jax.jit
    def scanned(params):
        start = (params, optimizer.init(params))
        return jax.lax.scan(lambda carry, g: (step(*carry, g), None), start, series)[0]

    params, state = scanned([jnp.asarray(p) for p in parameters])
    assert ended(params, state).differing(expected(CASES["adamw"], parameters, gradients)) == []
    assert state[0].count == 30


def test_a_loop_unrolled_in_one_program_has_the_bits_of_the_reference_engine():
    """Constants from ``init`` and gradients made on the way invite XLA to simplify."""
    parameters, _ = drawn(shapes=((33,), (5, 7)))
    optimizer = ours.nadamw(LR, weight_decay=0.1)
    step = stepper(optimizer)

    def gradients_of(params):
        return [p * jnp.float32(0.3) for p in params]

    @jax.jit
    def three(params):
        state = optimizer.init(params)
        for _ in range(3):
            params, state = step(params, state, gradients_of(params))
        return params, state

    found = ended(*three([jnp.asarray(p) for p in parameters]))
    judge = [p.copy() for p in parameters]
    reference = adamas.AdamW(judge, LR, weight_decay=0.1, nesterov=True, engine="reference")
    for _ in range(3):
        reference.step([p * np.float32(0.3) for p in judge])
    np.testing.assert_array_equal(bits(found.arrays["0"]), bits(judge[0]))
    np.testing.assert_array_equal(bits(found.arrays["1"]), bits(judge[1]))


def test_vmap_over_optimizers_at_different_steps_has_the_bits_of_each():
    counts = [0, 7, 40_000]
    random = np.random.default_rng(0)
    p, m, g = random.standard_normal((3, len(counts), 50)).astype(np.float32)
    v = (m * m).astype(np.float32)
    optimizer = ours.nadam(LR)
    fresh = jax.vmap(optimizer.init)(jnp.asarray(p))
    moments = fresh[0]._replace(
        count=jnp.array(counts, jnp.int32), mu=jnp.asarray(m), nu=jnp.asarray(v)
    )
    params, state = jax.jit(jax.vmap(stepper(optimizer)))(
        jnp.asarray(p), (moments, *fresh[1:]), jnp.asarray(g)
    )
    for i, count in enumerate(counts):
        starts = [{"mean": m[i], "square": v[i]}]
        judge = expected(CASES["nadam"], [p[i]], [[g[i]]], first=count + 1, starts=starts)
        found = {
            "0": np.asarray(params[i]),
            "0.mean": np.asarray(state[0].mu[i]),
            "0.square": np.asarray(state[0].nu[i]),
        }
        assert Ended(found).differing(judge) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["adam", "nadamw", "rmsprop-corrected"])
def test_a_late_step_has_the_bits_of_the_reference_engine(name):
    (p, m, g), _ = drawn(shapes=((100,),) * 3)
    v = (m * m).astype(np.float32)
    case = CASES[name]
    optimizer = case.transformation()
    step = jax.jit(stepper(optimizer))
    fresh = optimizer.init([jnp.asarray(p)])
    entries = {"mu": [jnp.asarray(m)], "nu": [jnp.asarray(v)]}
    for count in (9, 999, 16_000, 20_000, 5_000_000, 2**31 - 3):
        kept = {name: value for name, value in entries.items() if name in fresh[0]._fields}
        moments = fresh[0]._replace(count=jnp.int32(count), **kept)
        found = ended(*step([jnp.asarray(p)], (moments, *fresh[1:]), [jnp.asarray(g)]))
        starts = [{"mean": m, "square": v}]
        judge = expected(case, [p], [[g]], first=count + 1, starts=starts)
        assert found.differing(judge) == [], count


def test_a_count_stays_at_the_largest_int32():
    optimizer = ours.adam(LR)
    p = jnp.ones(3)
    state = optimizer.init(p)
    most = jnp.int32(2**31 - 1)
    _, state = optimizer.update(p, (state[0]._replace(count=most), *state[1:]))
    assert state[0].count == most


def test_learning_rates_from_a_schedule_have_the_bits_of_the_reference_engine():
    rates = np.array([0.1, 0.03, 0.0, 1e-7, 0.5], np.float32)
    parameters, gradients = drawn(steps=len(rates))
    optimizer = ours.adamw(lambda count: jnp.asarray(rates)[count], weight_decay=0.1)
    found = stepped(optimizer, parameters, gradients)
    judge = [p.copy() for p in parameters]
    schedule = lambda step: float(rates[step - 1])  # noqa: E731
    reference = adamas.AdamW(judge, schedule, weight_decay=0.1, engine="reference")
    for each in gradients:
        reference.step(each)
    for i, array in enumerate(judge):
        np.testing.assert_array_equal(bits(found.arrays[f"{i}"]), bits(array))


def test_a_negative_learning_rate_ascends():
    parameters, gradients = drawn(shapes=((40,),))
    found = stepped(ours.adam(-LR), parameters, gradients)
    options = dataclasses.replace(CASES["adam"].options, maximize=True)
    judge = expected(options, parameters, gradients)
    np.testing.assert_array_equal(found.arrays["0"], judge.arrays["0"])


def test_a_learning_rate_of_zero_moves_nothing_but_the_state():
    parameters, gradients = drawn(steps=1)
    found = stepped(ours.adam(0.0), parameters, gradients)
    judge = expected(CASES["adam"].options.replace(lr=0.0), parameters, gradients)
    assert found.differing(judge) == []
    updates, _ = ours.adam(0.0).update(jnp.ones(2), ours.adam(0.0).init(jnp.ones(2)))
    assert (updates.dtype, updates.shape) == (jnp.float32, (2,))


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("name", [name for name in CASES if "adamw" not in name])  # which decays
def test_gradients_of_zero_do_not_move_a_parameter(name):
    p = np.array([1.0, -2.0, 0.0, -0.0], np.float32)
    found = stepped(CASES[name].transformation(), [p], [[np.zeros(4, np.float32)]] * 3)
    np.testing.assert_array_equal(bits(found.arrays["0"]), bits(p))


# ── the pins ───────────────────────────────────────────────────────────────────────────────────


def xla_fuses():
    random = np.random.default_rng(0)
    a, b, c = random.standard_normal((3, 1000)).astype(np.float32)
    return bool((np.asarray(jax.jit(lambda a, b, c: a * b + c)(a, b, c)) != a * b + c).any())


@pytest.fixture
def unpinned(monkeypatch):
    """Programs made anew, without pins."""
    monkeypatch.setattr(operands, "pinned", lambda x: x)
    jax.clear_caches()
    yield
    monkeypatch.undo()
    jax.clear_caches()


@pytest.mark.quick_cases(2)
@pytest.mark.skipif(not xla_fuses(), reason="this machine has no fused multiply-add")
@pytest.mark.parametrize("name", ["adam", "nadamw", "rmsprop-corrected", "momentum"])
def test_without_pins_these_tests_would_fail(name, unpinned):
    parameters, gradients = drawn()
    found = stepped(CASES[name].transformation(), parameters, gradients)
    assert found.differing(expected(CASES[name], parameters, gradients)) != []


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_pin_changes_nothing_but_one_nan(dtype):
    with jax.enable_x64(True):
        integer = np.dtype(f"u{jnp.dtype(dtype).itemsize}")
        random = np.random.default_rng(0)
        patterns = random.integers(0, np.iinfo(integer).max, 100_000, integer, endpoint=True)
        greatest = np.iinfo(integer).max >> 1
        patterns = np.append(patterns[patterns != greatest], [greatest - 1, 0, greatest + 1])
        x = patterns.astype(integer).view(jnp.dtype(dtype))
        pinned = np.asarray(jax.jit(operands.pinned)(x))
        np.testing.assert_array_equal(pinned.view(integer), patterns.astype(integer))
        (special,) = np.asarray(operands.pinned(jnp.array([greatest], integer).view(dtype)))
        assert np.isnan(special)


def test_no_product_of_the_rule_is_left_to_a_fused_operation():
    """Between a product and the sum it goes into stands an integer operation, in the program."""
    p = jnp.ones(8)
    optimizer = ours.nadamw(LR, weight_decay=0.1, eps_root=1e-3)
    program = jax.make_jaxpr(stepper(optimizer))(p, optimizer.init(p), p)
    made = {}
    products = 0
    for equation in flat(program.jaxpr):
        made.update(dict.fromkeys(map(id, equation.outvars), equation.primitive.name))
        if equation.primitive.name in ("add", "sub") and equation.outvars[0].aval.shape == (8,):
            sources = [made.get(id(each)) for each in equation.invars]
            assert "mul" not in sources, equation
        products += equation.primitive.name == "mul" and equation.outvars[0].aval.shape == (8,)
    assert products >= 8


def flat(jaxpr):
    """The operations of a program, those of its parts too, each part's own names kept apart."""
    for equation in jaxpr.eqns:
        given = jax.tree.leaves(list(equation.params.values()))  # branches are a tuple
        inner = [
            value.jaxpr if hasattr(value, "jaxpr") else value
            for value in given
            if hasattr(value, "eqns") or hasattr(value, "jaxpr")
        ]
        if not inner:
            yield equation
        for part in inner:
            yield from flat(part)


# ── what XLA takes for zero, and infinities ────────────────────────────────────────────────────


def without_subnormals(end):
    """What is not moved by an update of 0 may stay subnormal: optax adds it."""
    p = end.arrays["0"]
    smallest = np.finfo(p.dtype).smallest_normal
    return Ended({**end.arrays, "0": np.where(np.abs(p) < smallest, p.dtype.type(0), p)})


@pytest.mark.quick_cases(3)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="XLA flushes on CPUs")
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("adam-eps0", np.float32),
        ("nadamw", np.float32),
        ("rmsprop", np.float64),
        ("amsgrad", np.float32),
        ("rmsprop", np.float32),
        ("momentum", np.float32),
    ],
)
@pytest.mark.parametrize("values", [wide, special])
def test_on_a_cpu_subnormal_numbers_count_as_zero_and_nothing_else_differs(name, dtype, values):
    case = CASES[name]
    with jax.enable_x64(dtype == np.float64):
        (parameter,), gradients = drawn(dtype, shapes=((3000,),), values=values)
        found = stepped(case.transformation(), [parameter], gradients)
        model = flushed_steps(case.options, parameter, [g for (g,) in gradients])
        assert without_subnormals(found).differing(without_subnormals(model)) == []
        if dtype == np.float32:
            judge = expected(case, [parameter], gradients)
            assert found.differing(judge) != [], "the cases hold no subnormal number"


def test_an_infinite_or_nan_gradient_reaches_its_element_alone():
    p = np.ones(4, np.float32)
    g = np.array([1.0, np.inf, -np.inf, np.nan], np.float32)
    found = stepped(ours.adam(LR), [p], [[g]])
    assert np.isnan(found.arrays["0"]).tolist() == [False, True, True, True]
    assert found.differing(expected(CASES["adam"], [p], [[g]])) == []


def test_an_infinite_parameter_does_not_reach_the_state_of_adam():
    """Its product with a weight decay of 0 is left out, where the reference gives NaN."""
    p = np.array([1.0, np.inf], np.float32)
    g = np.ones(2, np.float32)
    found = stepped(ours.adam(LR), [p], [[g]])
    assert np.isinf(found.arrays["0"][1])
    assert np.isfinite(found.arrays["0.mean"]).all()
    assert np.isnan(expected(CASES["adam"], [p], [[g]]).arrays["0.mean"][1])


# ── derivatives ────────────────────────────────────────────────────────────────────────────────


def loss_after(optimizer_of, steps=3):
    """The loss at the end of a short training, for what the training depends on."""

    def loss(p):
        return jnp.sum((p - jnp.array([1.0, -2.0, 0.5])) ** 2 * jnp.array([1.0, 10.0, 0.1]))

    def after(p, numbers):
        optimizer = optimizer_of(numbers)
        step = stepper(optimizer)

        def once(carry, _):
            return step(*carry, jax.grad(loss)(carry[0])), None

        (p, _), _ = jax.lax.scan(once, (p, optimizer.init(p)), length=steps)
        return loss(p)

    return after


START = (0.3, 0.7, -0.4)
HYPER = {"learning_rate": 0.1, "b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1}
RATES = {"b1": 0.8, "b2": 0.95, "eps_root": 1e-3}


@pytest.mark.slow
def test_derivatives_through_steps_are_those_of_finite_differences():
    with jax.enable_x64(True):
        after = jax.jit(
            loss_after(lambda numbers: ours.adamw(**{**HYPER, **numbers}, nesterov=True))
        )
        numbers = {name: jnp.float64(value) for name, value in RATES.items()}
        p = np.array(START)
        slopes = jax.jit(jax.grad(after, argnums=(0, 1)))(p, numbers)
        h = 1e-6
        for i, direction in enumerate(np.eye(3)):
            slope = (after(p + h * direction, numbers) - after(p - h * direction, numbers)) / (
                2 * h
            )
            assert slopes[0][i] == pytest.approx(float(slope), rel=1e-5, abs=1e-7)
        for name, value in numbers.items():
            ends = [after(p, {**numbers, name: value + sign * h * 0.1}) for sign in (1, -1)]
            slope = (ends[0] - ends[1]) / (2 * h * 0.1)
            assert slopes[1][name] == pytest.approx(float(slope), rel=1e-4, abs=1e-7), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_derivatives_with_respect_to_a_number_are_near_those_of_optax(name):
    slopes = [
        jax.jit(jax.grad(loss_after(lambda x, make=make: make(**{**HYPER, name: x})), argnums=1))(
            jnp.array(START), jnp.float32(HYPER[name])
        )
        for make in (ours.adamw, optax.adamw)
    ]
    assert slopes[0] == pytest.approx(float(slopes[1]), rel=1e-3)


@pytest.mark.slow
def test_derivatives_are_the_same_forward_and_backward_and_near_those_of_optax():
    p = jnp.array(START)
    both = [
        jacobian(lambda p, make=make: loss_after(lambda _: make(0.1))(p, None))(p)
        for make, jacobian in [
            (ours.adam, jax.grad),
            (ours.adam, jax.jacfwd),
            (optax.adam, jax.grad),
        ]
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5)
    np.testing.assert_allclose(both[0], both[2], rtol=1e-3)


def test_the_derivative_at_a_gradient_of_zero_is_that_of_the_first_step():
    """g / (|g| + ε) has the slope 1/ε at 0; its formula, differentiated blindly, gives NaN."""
    optimizer = ours.adam(1.0, eps=1e-2)

    def update(g):
        return optimizer.update(g, optimizer.init(g))[0]

    slope = jax.jacobian(update)(jnp.zeros(2))
    np.testing.assert_allclose(slope, -100 * np.eye(2), rtol=1e-5)
    without = ours.adam(1.0, eps=0.0)
    flat = jax.jacobian(lambda g: without.update(g, without.init(g))[0])(jnp.zeros(2))
    np.testing.assert_array_equal(flat, np.zeros((2, 2)))


def test_derivatives_do_not_change_the_value():
    parameters, (gradients, *_) = drawn()
    step = stepper(ours.adamw(LR, weight_decay=0.1))
    params = [jnp.asarray(p) for p in parameters]
    state = ours.adamw(LR).init(params)

    def total(gradients):
        moved, _ = step(params, state, gradients)
        return sum(map(jnp.sum, moved)), moved

    (_, moved), _ = jax.jit(jax.value_and_grad(total, has_aux=True))(
        [jnp.asarray(g) for g in gradients]
    )
    judge = expected(CASES["adamw"], parameters, [gradients])
    for i, each in enumerate(moved):
        np.testing.assert_array_equal(bits(each), bits(judge.arrays[f"{i}"]))


# ── several devices ────────────────────────────────────────────────────────────────────────────

SHARDED = """
import sys
import numpy as np
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

import adamas.jax as ours
from tests.support.jax_cases import CASES, ended, expected, stepper

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("rows", "columns"))
random = np.random.default_rng(0)
shapes = [(8, 6), (16,), ()]
specs = [P("rows", "columns"), P(("rows", "columns")), P()]
p = [np.asarray(random.standard_normal(s), np.float32) for s in shapes]
gs = [[np.asarray(random.standard_normal(s), np.float32) for s in shapes] for _ in range(3)]


def spread(arrays):
    return [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs)]


is_eager = sys.argv[1] == "eager"
name, wrapped = ("amsgrad", lambda step: step) if is_eager else ("nadamw", jax.jit)
optimizer = CASES[name].transformation()
params = spread(p)
state = jax.jit(optimizer.init)(params) if wrapped is jax.jit else optimizer.init(params)
step = wrapped(stepper(optimizer))
for each in gs:
    params, state = step(params, state, spread(each))
for each, spec in zip(params, specs):
    assert each.sharding.is_equivalent_to(NamedSharding(mesh, spec), each.ndim), each.sharding
for each, spec in zip(state[0].nu, specs):
    assert each.sharding.is_equivalent_to(NamedSharding(mesh, spec), each.ndim), each.sharding
assert ended(params, state).differing(expected(CASES[name], p, gs)) == []

if not is_eager:
    optimizer = CASES["adamw"].transformation()
    step = jax.jit(
        jax.shard_map(
            stepper(optimizer),
            mesh=mesh,
            in_specs=(specs, (type(optimizer.init(p)[0])(P(), specs, specs), P(), P()), specs),
            out_specs=(specs, (type(optimizer.init(p)[0])(P(), specs, specs), P(), P())),
        )
    )
    params, state = spread(p), optimizer.init(spread(p))
    for each in gs:
        params, state = step(params, state, spread(each))
    assert ended(params, state).differing(expected(CASES["adamw"], p, gs)) == []
    text = jax.jit(stepper(optimizer)).lower(params, state, spread(gs[0])).compile().as_text()
    assert "all-" not in text and "collective" not in text, "a step needs no other device"

explicit = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
with jax.set_mesh(explicit):
    q = jnp.ones((2, 8, 4), jnp.float16, out_sharding=NamedSharding(explicit, P(None, "x")))
    for optimizer in (ours.adamw(1.0), ours.amsgrad(1.0), ours.rmsprop(1.0), ours.momentum(1.0)):
        before = optimizer.init(q)
        _, after = (optimizer.update if is_eager else jax.jit(optimizer.update))(q, before, q)
        assert jax.tree.map(jax.typeof, before) == jax.tree.map(jax.typeof, after)
print("same")
"""


@pytest.mark.parametrize("way", ["jit", pytest.param("eager", marks=pytest.mark.slow)])
def test_arrays_spread_over_eight_devices_have_the_bits_of_the_reference_engine(way):
    done = python(SHARDED, way, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


# ── counts ─────────────────────────────────────────────────────────────────────────────────────


def test_a_count_beyond_int32_is_a_step_of_a_run_that_has_converged():
    with jax.enable_x64(True):
        optimizer = ours.nadam(LR, b2=0.99999999)
        p = jnp.ones(3, jnp.float32)
        state = optimizer.init(p)
        ends = [
            optimizer.update(p, (state[0]._replace(count=count), *state[1:]))
            for count in (jnp.int64(2**31 - 1), jnp.int64(2**32 + 3))
        ]
        same(ends[0][0], ends[1][0])
        assert [int(end[1][0].count) for end in ends] == [2**31, 2**32 + 4]


def test_derivatives_at_the_greatest_count_are_finite():
    def update(rate):
        optimizer = ours.adam(LR, b1=rate)
        state = optimizer.init(jnp.ones(2))
        most = state[0]._replace(count=jnp.int32(2**31 - 1), nu=jnp.ones(2))
        return optimizer.update(jnp.ones(2), (most, *state[1:]))[0].sum()

    assert np.isfinite(jax.grad(update)(jnp.float32(0.9)))
