"""Arrays that are alike share one computation, with the bits that each has alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adamas.jax as ours
from tests.support.cases import bits
from tests.support.jax_cases import stepper


def parts(arrays, **options):
    """How many functions the program has that steps so many arrays."""
    optimizer = ours.adamw(0.1, **options)
    p = [jnp.ones((200, 96))] * arrays  # too large to be put together
    text = jax.jit(optimizer.update).lower(p, optimizer.init(p), p).as_text()
    return text.count("func.func")


@pytest.mark.parametrize("state", ["float32", "8bit"])
def test_the_program_has_no_more_functions_for_more_arrays_that_are_alike(state):
    assert parts(2, state=state) == parts(5, state=state)


def test_arrays_put_together_have_the_bits_that_each_has_alone():
    """With rounding to nearest: random bits depend on the place in the tree."""
    random = np.random.default_rng(0)
    p, g = jnp.asarray(random.standard_normal((2, 3, 40)), jnp.float32)
    optimizer = ours.adamw(0.1, state="8bit", rounding="nearest", weight_decay=0.1)
    step = jax.jit(stepper(optimizer))
    together = step(list(p), optimizer.init(list(p)), list(g))
    for i in range(3):
        alone = step([p[i]], optimizer.init([p[i]]), [g[i]])
        np.testing.assert_array_equal(bits(together[0][i]), bits(alone[0][0]))
        for name in ("mu", "nu", "header"):
            found, wanted = (getattr(each[1][0], name) for each in (together, alone))
            np.testing.assert_array_equal(bits(found[i]), bits(wanted[0]))


def test_what_is_donated_is_written_over():
    optimizer = ours.adamw(0.1, state="8bit")
    p = {"a": jnp.ones((64, 64)), "b": jnp.ones((300, 320))}
    state = optimizer.init(p)
    step = jax.jit(stepper(optimizer), donate_argnums=(0, 1))
    memory = step.lower(p, state, p).compile().memory_analysis()
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves((p, state)))
    assert memory.alias_size_in_bytes == kept
