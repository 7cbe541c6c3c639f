"""``clip_update`` in JAX: the bits of the reference engine, by sums of whole numbers of 32 bits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas.jax as ours
from adamas.coefficients import update_factor
from adamas.digits import norm, of_squares
from adamas.jax import updates
from adamas.jax.operands import Operand
from adamas.options import Options, Phase
from tests.support.cases import bits, ordinary
from tests.support.jax_cases import CASES, LR, eager, expected, stepped

CLIPS = Phase(clip_update=0.5)
NAMES = ["adam", "nadamw", "amsgrad", "radam", "rmsprop", "rmsprop-corrected"]
SHAPES = ((5, 7), (40,))


def outgrowing(dtype=np.float32, steps=4, values=ordinary, shapes=SHAPES):
    """Parameters, and gradients of which every second outgrows what is kept of it."""
    random = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        gradients = [
            [
                np.asarray(values(random, shape, dtype) * dtype(8.0**step if i % 2 else 1))
                for i, shape in enumerate(shapes)
            ]
            for step in range(steps)
        ]
    return [np.asarray(ordinary(random, shape, dtype)) for shape in shapes], gradients


def clipped(name, *drawn, **arguments):
    wrapped = arguments.pop("wrapped", jax.jit)
    return stepped(CASES[name].transformation(clip_update=0.5, **arguments), *drawn, wrapped)


# ── the reference engine's bits ────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_clipped_steps_have_the_bits_of_the_reference_engine(name):
    drawn = outgrowing(steps=7 if name == "radam" else 4)
    judge = expected(CASES[name], *drawn, phase=CLIPS)
    assert clipped(name, *drawn).differing(judge) == []
    assert judge.differing(expected(CASES[name], *drawn)) != []


@pytest.mark.slow
def test_eager_steps_have_the_bits_of_the_reference_engine():
    drawn = outgrowing(steps=2, shapes=((), (0,), (3,)))
    judge = expected(CASES["adamw"], *drawn, phase=CLIPS)
    assert clipped("adamw", *drawn, wrapped=eager).differing(judge) == []


@pytest.mark.slow
def test_clipped_steps_in_float64_have_the_bits_of_the_reference_engine():
    with jax.enable_x64(True):
        drawn = outgrowing(np.float64)
        judge = expected(CASES["adam-eps_root"], *drawn, phase=CLIPS)
        assert clipped("adam-eps_root", *drawn).differing(judge) == []


@pytest.mark.slow
@pytest.mark.parametrize("state", ["compact", "8bit"])
def test_codes_are_clipped_by_what_they_stand_for(state):
    drawn = outgrowing(shapes=((8, 64), (33,)))
    forms = {"state": state, "rounding": "nearest"}
    options = Options(lr=LR, weight_decay=0.1, decay="decoupled", **forms)
    found = stepped(ours.adamw(LR, weight_decay=0.1, clip_update=0.5, **forms), *drawn)
    judge = expected(options, *drawn, phase=CLIPS)
    assert all(np.array_equal(bits(found.arrays[i]), bits(judge.arrays[i])) for i in "01")


@pytest.mark.slow
def test_what_is_not_finite_is_in_the_update_of_its_array_and_no_other():
    parameters, gradients = outgrowing(shapes=((40,), (7,), (9,)))
    gradients[-1][0][3], gradients[-1][1][2] = np.nan, np.inf
    judge = expected(CASES["adamw"], parameters, gradients, phase=CLIPS)
    found = clipped("adamw", parameters, gradients)
    assert found.differing(judge) == []
    assert [np.isnan(found.arrays[i]).sum() for i in "012"] == [40, 7, 0]


# ── numbers that are known when the program runs ───────────────────────────────────────────────


@pytest.mark.slow
def test_numbers_that_are_arrays_give_the_bits_of_those_that_are_known():
    bound, lr, decay = 0.5, float(np.float32(0.1)), float(np.float32(0.01))
    known = ours.adamw(lr, weight_decay=decay, clip_update=bound)
    injected = optax.inject_hyperparams(ours.adamw, static_args=("b1", "b2", "eps", "eps_root"))
    given = injected(lr, weight_decay=decay, clip_update=bound)
    parameters, gradients = outgrowing(shapes=((5, 7), (40,)))
    ends = []
    for each in (known, given):
        params = [jnp.asarray(p) for p in parameters]
        state, update = each.init(params), jax.jit(each.update)
        for own in gradients:
            moved, state = update([jnp.asarray(g) for g in own], state, params)
            params = optax.apply_updates(params, moved)
        ends.append([bits(p) for p in params])
    assert all(map(np.array_equal, *ends))


@pytest.mark.slow
def test_updates_have_derivatives_by_the_learning_rate_and_by_gradients():
    """Those of the clipped formula: the learning rate is a factor of it."""
    g = jnp.array([3.0, -0.5, 2.0])

    @functools.partial(jax.jit, static_argnums=0)
    def moved(bound, lr, g):
        optimizer = ours.adam(lr, clip_update=bound)
        update, _ = optimizer.update(g, optimizer.init(g))
        return jnp.sum(update)

    for bound in (0.25, None):
        by_rate = jax.grad(moved, argnums=1)(bound, jnp.float32(0.1), g)
        assert float(by_rate) == pytest.approx(
            float(moved(bound, jnp.float32(0.1), g)) / 0.1, rel=1e-5
        )
    # At the first step all elements are 1 or -1 but for ε, however large gradients are.
    assert np.abs(jax.grad(moved, argnums=2)(0.25, jnp.float32(0.1), g)).max() < 1e-6


# ── exact sums ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (np.float32, (33, 7)),
        pytest.param(np.float32, (3, 70_001), marks=pytest.mark.slow),
        pytest.param(np.float32, (0,), marks=pytest.mark.slow),
        pytest.param(np.float32, (), marks=pytest.mark.slow),
        pytest.param(np.float64, (33, 7), marks=pytest.mark.slow),
    ],
)
def test_factors_are_those_of_the_definition_whatever_is_added_up(dtype, shape):
    random, limits = np.random.default_rng(1), np.finfo(dtype)
    some = random.standard_normal(shape)
    ends = random.uniform(limits.minexp / 2, limits.maxexp / 2 - 1, shape)
    arrays = [
        np.asarray(each, dtype)
        for each in (some, 1e3 * some, 1e-9 * some, np.exp2(ends), np.ones(shape))
    ]
    counts = [each.size for each in arrays]
    with jax.enable_x64(dtype == np.float64):

        @jax.jit
        def factors(*arrays):
            found = [updates.measured(Operand(each)) for each in arrays]
            return updates.factors(found, counts, 0.3, 1.0).size

        found = jax.tree.map(np.asarray, factors(*arrays))
    for i, array in enumerate(arrays):
        whole = (int(found.high[i]) << 32 | int(found.low[i])) >> 11
        factor = update_factor(0.3, norm(of_squares(array)), array.size, 1.0)
        assert math.ldexp(whole, int(found.exponent[i]) - 52) == factor, i


# ── what is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("bound", "error", "text"),
    [
        (0.0, ValueError, "clip_update is 0, which would let no parameter move."),
        (-1.0, ValueError, "clip_update is -1.0, but"),
        ("1", TypeError, "clip_update is"),
        (lambda count: 1.0, TypeError, "clip_update is a function, but only learning_rate"),
    ],
)
def test_a_bound_that_makes_no_sense_is_refused(bound, error, text):
    with pytest.raises(error, match=f"^{text}"):
        ours.adam(0.1, clip_update=bound)


@pytest.mark.parametrize("make", [ours.sgd, ours.momentum])
def test_methods_without_a_second_moment_do_not_have_it(make):
    with pytest.raises(TypeError, match="has the unknown option 'clip_update'"):
        make(0.1, clip_update=1.0)


def test_a_step_that_clips_nothing_is_the_program_that_it_was():
    params = [jnp.ones(3)]

    def program(**arguments):
        optimizer = ours.adam(0.1, **arguments)
        return str(jax.make_jaxpr(optimizer.update)(params, optimizer.init(params)))

    assert program() == program(clip_update=None)
    assert "while" not in program()
    assert "while" in program(clip_update=1.0)


@pytest.mark.slow
def test_within_shard_map_each_device_clips_the_part_that_it_sees():
    optimizer = ours.rmsprop(LR, clip_update=0.5)
    rows = jnp.linspace(-3.0, 5.0, 24).reshape(8, 3)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    cut, state = jax.sharding.PartitionSpec("x"), optimizer.init(rows)
    specs = jax.tree.map(lambda _: cut, state)
    step = jax.shard_map(optimizer.update, mesh=mesh, in_specs=(cut, specs), out_specs=(cut, specs))
    wanted = optimizer.update(rows, state)[0]
    np.testing.assert_array_equal(bits(jax.jit(step)(rows, state)[0]), bits(wanted))
