"""RAdam for JAX: the numbers at every count, the bits of the definition, optax's values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas
import adamas.jax as ours
from adamas.coefficients import rectification
from adamas.jax import binary64, numbers
from adamas.jax.binary64 import Binary64
from adamas.options import Options
from tests.jax.test_numbers import check, choices_of
from tests.support.cases import bits
from tests.support.jax_cases import eager, stepped, stepper

BETAS = (0.0, 0.5, 0.68, 0.75, 0.9, 0.99, 0.999, 0.9999, 0.9999999, 1 - 2.0**-53)
COUNTS = np.concatenate(
    [np.arange(1, 400), 2 ** np.arange(31), np.random.default_rng(0).integers(1, 2**31, 99)]
)


def drawn(steps=9, dtype=np.float32):
    random = np.random.default_rng(7)
    return random.standard_normal(20).astype(dtype), random.standard_normal((steps, 20)).astype(
        dtype
    )


def judged(p, gradients, **options):
    twin = p.copy()
    optimizer = adamas.RAdam(twin, engine="reference", **options)
    for g in gradients:
        optimizer.step(g)
    return twin


# ── r_t ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("beta", [beta for beta in BETAS if beta <= 0.999])
def test_the_table_has_the_bits_of_the_definition_at_every_count(beta):
    table = numbers.rectifications(beta, 5.0)
    assert len(table) < 50_000
    r = (table[:, 0].astype(np.uint64) << np.uint64(32) | table[:, 1]).view(np.float64)
    wanted = [rectification(beta, int(t)) for t in COUNTS]
    assert r[np.minimum(COUNTS, len(r)) - 1].tolist() == wanted


def test_a_table_is_made_only_where_it_is_short():
    assert numbers.rectifications(0.9999, 5.0) is None


@pytest.mark.slow
def test_what_has_no_table_is_computed_to_the_bits_of_the_definition():
    steps = jnp.asarray(COUNTS.astype(np.uint32))
    with jax.enable_x64(True):
        compute = jax.jit(binary64.rectification)
        for beta in BETAS:
            given = (
                Binary64(*(jnp.full(COUNTS.shape, x) for x in binary64.from_float(each)))
                for each in (beta, 5.0)
            )
            found = np.asarray(
                binary64.to_array(compute(next(given), steps, next(given)), np.float64)
            )
            assert found.tolist() == [rectification(beta, int(t)) for t in COUNTS], beta


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99995)])
def test_all_numbers_are_those_of_the_definition(betas, dtype):
    options = Options(
        lr=1e-3, betas=betas, rectify=True, eps_root=1e-7, weight_decay=0.1, decay="decoupled"
    )
    with jax.enable_x64(True):
        check(options, choices_of(options, threshold=5.0), COUNTS[COUNTS < 2**31 - 1], dtype)


# ── steps ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("wrapped", [jax.jit, eager])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ({}, {}),
        ({"b2": 0.75, "eps": 0.0}, {"betas": (0.9, 0.75), "eps": 0.0}),
        ({"nesterov": True, "eps_root": 1e-4}, {"nesterov": True, "eps_root": 1e-4}),
    ],
)
def test_steps_have_the_bits_of_the_definition_across_the_switch(arguments, options, wrapped):
    p, gradients = drawn()
    assert len(gradients) > 6  # the first that is rectified, with β2 = 0.999
    found = stepped(ours.radam(0.01, **arguments), [p], [[g] for g in gradients], wrapped)
    wanted = judged(p, gradients, lr=0.01, **options)
    assert np.array_equal(bits(found.arrays["0"]), bits(wanted))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("wrapped", [jax.jit, eager])
def test_a_schedule_gives_the_rate_of_each_step(wrapped):
    p, gradients = drawn()
    found = stepped(
        ours.radam(lambda count: jnp.float32(0.1) / (count + 1)),
        [p],
        [[g] for g in gradients],
        wrapped,
    )
    wanted = judged(p, gradients, lr=lambda step: float(np.float32(0.1) / np.float32(step)))
    assert np.array_equal(bits(found.arrays["0"]), bits(wanted))


@pytest.mark.slow
def test_injected_numbers_give_the_bits_of_their_values():
    p, gradients = drawn()
    optimizer = optax.inject_hyperparams(ours.radam)(0.01, b2=0.99, threshold=5.0)
    step, params = jax.jit(stepper(optimizer)), jnp.asarray(p)
    found, _ = _run(step, params, optimizer.init(params), gradients)
    lr, eps, *betas = (float(np.float32(x)) for x in (0.01, 1e-8, 0.9, 0.99))
    wanted = judged(p, gradients, lr=lr, eps=eps, betas=betas)
    assert np.array_equal(bits(found), bits(wanted))


@pytest.mark.parametrize("state", ["compact", pytest.param("8bit", marks=pytest.mark.slow)])
def test_small_states_have_the_bits_of_the_definition(state):
    p, gradients = drawn()
    found = stepped(ours.radam(0.01, state=state, seed=3), [p], [[g] for g in gradients])
    wanted = judged(p, gradients, lr=0.01, state=state, seed=3)
    assert np.array_equal(bits(found.arrays["0"]), bits(wanted))


def test_a_threshold_moves_the_switch():
    """ρ_t approaches t from below as β2 approaches 1."""
    p, gradients = drawn()
    for threshold, first in ((4.0, 5), (5.0, 6), (6.5, 7)):
        for steps in range(1, 9):
            ends = [
                stepped(make, [p], [[g] for g in gradients[:steps]], eager).arrays["0"]
                for make in (
                    ours.radam(0.01, b1=0.0, b2=0.999, threshold=threshold),
                    ours.sgd(0.01),
                )
            ]
            assert np.array_equal(*ends) == (steps < first), (threshold, steps)


@pytest.mark.slow
def test_every_step_is_optaxs_but_for_rounding_in_float64():
    """Nine steps; optax's ρ_t is a difference of numbers of size ρ_∞ = 1999, as torch's is.

    r_t is off by at most 4·(4·ρ_∞/ρ_t) ≤ 16·400 units of 2^-53, all else by some 30 of an update of
    at most 3 learning rates and of parameters of size 4.
    """
    lr = 0.01
    with jax.enable_x64(True):
        p, gradients = drawn(dtype=np.float64)
        for arguments in ({}, {"nesterov": True, "eps_root": 1e-4}, {"eps": 0.1, "b1": 0.0}):
            ends = [
                stepped(module.radam(lr, **arguments), [p], [[g] for g in gradients]).arrays["0"]
                for module in (ours, optax)
            ]
            bound = 9 * 2.0**-53 * ((16 * 400 + 30) * 3 * lr + 30 * 4)
            assert np.abs(ends[0] - ends[1]).max() <= bound


def test_a_run_of_optax_goes_on_with_its_state():
    p, gradients = drawn()
    step = {each: jax.jit(stepper(each.radam(0.01))) for each in (ours, optax)}
    whole, _ = _run(step[ours], jnp.asarray(p), ours.radam(0.01).init(jnp.asarray(p)), gradients)
    for cut in (4, 6):
        params, state = _run(
            step[optax], jnp.asarray(p), optax.radam(0.01).init(jnp.asarray(p)), gradients[:cut]
        )
        params, state = _run(step[ours], params, state, gradients[cut:])
        assert int(optax.tree.get(state, "count")) == 9
        # optax computes r_t in float32: 2000/5 times an ulp, four times over, of 9 updates.
        assert np.abs(params - whole).max() <= 9 * 0.03 * 4 * 400 * np.finfo(np.float32).eps


def _run(step, params, state, gradients):
    for g in gradients:
        params, state = step(params, state, jnp.asarray(g))
    return params, state


def test_derivatives_are_those_of_the_formulas():
    """By the learning rate: the update over it, with the sign of a difference quotient."""
    p, gradients = drawn()

    def end(lr):
        optimizer = ours.radam(lr)
        params, state = jnp.asarray(p), optimizer.init(jnp.asarray(p))
        for g in gradients[:7]:
            params, state = stepper(optimizer)(params, state, jnp.asarray(g))
        return params

    lr = jnp.float32(0.01)
    _, slope = jax.jvp(end, (lr,), (jnp.float32(1.0),))
    # Gradients are given, so parameters are linear in the rate.
    quotient = (end(lr) - jnp.asarray(p)) / lr
    assert np.allclose(slope, quotient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("threshold", [3.9, 0.0, -1.0])
def test_a_threshold_below_4_is_refused(threshold):
    text = (
        f"threshold is {threshold!r}, but it must be at least 4: below, r_t is no real number. Liu "
        "et al. (2020) have 4 in the paper and 5 in their code."
    )
    for make in (
        lambda: ours.radam(1e-3, threshold=threshold),
        lambda: ours.radam(1e-3, threshold=jnp.float32(threshold)).init(jnp.ones(1)),
    ):
        with pytest.raises(ValueError, match="threshold is") as refused:
            make()
        assert str(refused.value).partition(", but")[2] == text.partition(", but")[2]
