"""``adamw(decay=…)``: the bits of the NumPy step, with schedules, masks and injected numbers."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import adamas
import adamas.jax as ours

LR, MOST, AMOUNT = (float(np.float32(x)) for x in (0.05, 0.125, 0.3))
DECAYS = {
    "decoupled": {},
    "fully-decoupled": {"lr_max": MOST},
    "cautious": {},
    "corrected": {"lr_max": MOST},
}


def drawn(seed=0):
    random = np.random.default_rng(seed)
    return {
        name: random.standard_normal(shape).astype(np.float32)
        for name, shape in (("a", 33), ("b", (8, 64)), ("c", (1,)))
    }


def rate(count):
    return jnp.float32(LR) / (1 + count)


def both(optimizer, schedule=None, **options):
    """Parameters after five steps of JAX and of NumPy."""
    params, state = drawn(), optimizer.init(drawn())
    twin = drawn()
    steps = adamas.AdamW(twin, lr=LR, weight_decay=AMOUNT, **options)
    update = jax.jit(optimizer.update)
    for t in range(5):
        gradients = drawn(t + 1)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        if schedule is not None:
            steps.lr = float(schedule(t))
        steps.step(gradients)
    return params, twin


def same(found, wanted):
    return all(np.array_equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("schedule", [None, rate])
@pytest.mark.parametrize("decay", DECAYS)
def test_each_decay_has_the_bits_of_numpy(decay, schedule):
    options = {"decay": decay, **DECAYS[decay]}
    optimizer = ours.adamw(schedule or LR, weight_decay=AMOUNT, **options)
    assert same(*both(optimizer, schedule, **options))


@pytest.mark.slow
def test_codes_decay_in_the_same_way():
    coded = ours.adamw(LR, weight_decay=AMOUNT, state="8bit", decay="cautious")
    assert same(*both(coded, state="8bit", decay="cautious"))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("decay", ["cautious", "corrected"])
def test_injected_numbers_decay_in_the_same_way(decay):
    options = {"decay": decay, **DECAYS[decay]}
    injected = optax.inject_hyperparams(ours.adamw, static_args=("b1", "b2", "eps"))
    assert same(*both(injected(LR, weight_decay=AMOUNT, **options), **options))


def test_what_a_mask_leaves_out_does_not_decay_and_complex_parts_have_signs_of_their_own():
    optimizer = ours.adamw(LR, weight_decay=AMOUNT, decay="cautious", mask={"a": True, "b": False})
    p = {"a": jnp.array([1 - 2j, -1 - 2j]), "b": jnp.array([2.0])}
    g = {"a": jnp.array([1 + 1j, 1 - 1j]), "b": jnp.array([1.0])}
    updates, _ = optimizer.update(g, optimizer.init(p), p)
    plain = ours.adamw(LR, weight_decay=0.0)
    free, _ = plain.update(g, plain.init(p), p)
    shrunk = np.asarray(free["a"] - updates["a"]) / (LR * AMOUNT)
    np.testing.assert_allclose(shrunk, [1 + 0j, 0 - 2j], atol=1e-5)
    assert np.array_equal(updates["b"], free["b"])


def test_a_fixed_rate_is_its_own_greatest():
    """There a corrected decay is a decoupled one."""
    corrected = ours.adamw(LR, weight_decay=AMOUNT, decay="corrected")
    assert same(*both(corrected, decay="decoupled"))


REFUSED = [
    ({"decay": "l2"}, 'decay is \'l2\', but it must be one of "decoupled", "fully-decoupled", '),
    ({"lr_max": 0.5}, "lr_max is 0.5, but decay is 'decoupled': lr_max has a meaning with decay="),
    ({"decay": "cautious", "lr_max": 0.5}, "lr_max is 0.5, but decay is 'cautious': lr_max has a"),
    ({"decay": "corrected", "lr_max": 0.0}, "lr_max is 0.0, but weight decay is divided by it."),
    (
        {"decay": "corrected", "learning_rate": rate},
        "decay is 'corrected', but with a schedule for learning_rate its greatest value cannot be "
        "known. Give lr_max.",
    ),
    (
        {"decay": "corrected", "learning_rate": 0.5, "lr_max": 0.25},
        'learning_rate is 0.5, but lr_max is 0.25, which decay="corrected" takes for the greatest '
        "learning rate of the run. Give the greatest as lr_max.",
    ),
]


@pytest.mark.parametrize(("options", "text"), REFUSED)
def test_what_makes_no_sense_is_refused(options, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        ours.adamw(**{"learning_rate": 0.1, **options})
