"""Steps of JAX arrays under jit, beside optax."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from benchmarks.checks import LR, ROUNDINGS, Array, require_close
from benchmarks.ratios import Pair
from benchmarks.shapes import MLP
from benchmarks.tables import Row


def rows() -> list[Row]:
    """Return the rows of JAX."""
    needs = ("jax", "optax")
    large = ((1 << 24,),)
    return [
        Row("JAX step, 16 M in 1 array", "optax.adam", 1, _jax(large, "adam"), needs),
        Row("JAX step, 16 M in 1 array", "optax.adamw", 1, _jax(large, "adamw"), needs),
        Row("JAX step, 5,702 in 6 arrays", "optax.adam", 1, _jax(MLP, "adam"), needs),
    ]


def _jax(shapes: Iterable[tuple[int, ...]], name: str) -> Callable[[bool], Pair]:
    """Return update and apply_updates in one program, which may write over what it is given."""

    def make(quick: bool) -> Pair:
        import jax
        import jax.numpy as jnp
        import optax

        import adamas.jax

        random = np.random.default_rng(0)
        arrays = [
            random.standard_normal(tuple(min(side, 64) for side in shape) if quick else shape)
            for shape in shapes
        ]
        gradients = [jnp.asarray(each + np.copysign(0.1, each), jnp.float32) for each in arrays]

        def contender(module: Any) -> tuple[Callable[[], object], Callable[[], list[Array]]]:
            optimizer: Any = getattr(module, name)(LR)
            params = [jnp.asarray(each, jnp.float32) for each in arrays]
            kept = [params, optimizer.init(params)]

            def program(params: Any, state: Any, gradients: Any) -> Any:
                updates, state = optimizer.update(gradients, state, params)
                return optax.apply_updates(params, updates), state

            compiled = jax.jit(program, donate_argnums=(0, 1))

            def step() -> None:
                kept[:] = jax.block_until_ready(compiled(*kept, gradients))

            return step, lambda: [np.asarray(each) for each in kept[0]]

        (ours, mine), (other, theirs) = contender(adamas.jax), contender(optax)

        def check() -> None:
            for _ in range(3):
                ours()
                other()
            for a, b in zip(mine(), theirs(), strict=True):
                bound = 3 * (LR * ROUNDINGS + 2 * float(np.finfo(np.float32).eps) * np.abs(a).max())
                require_close(a, b, float(bound), f"three steps of {name}")

        return Pair(ours, other, check)

    return make
