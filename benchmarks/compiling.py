"""Processor time in which XLA compiles a step of JAX arrays, beside optax."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.checks import LR, ROUNDINGS, require_close
from benchmarks.ratios import Pair, Ratios
from benchmarks.shapes import GPT2, THREE_KINDS, Shapes, gpt2
from benchmarks.tables import Row, Run

_NEEDS = ("jax", "optax")


@dataclass(frozen=True)
class Compiling(Ratios):
    """Rows that compile. All threads count, and nothing is taken over from one time to the next."""

    def times(self, pair: Pair, run: Run) -> list[tuple[float, float]]:
        return [(_taken(pair.ours), _taken(pair.other)) for _ in range(1 if run.quick else 3)]


def _taken(work: Callable[[], object]) -> float:
    import jax

    jax.clear_caches()
    begin = time.process_time()
    work()
    return time.process_time() - begin


def rows() -> list[Row]:
    """Return the rows. A goal of 1/3 allows three times the time of the other."""
    made: list[Row] = []
    for name, shapes, forms in (
        ("GPT-2, 148 arrays", GPT2, ("float32", "bfloat16", "compact", "8bit")),
        ("24 arrays of 3 kinds", THREE_KINDS, ("float32", "8bit")),
    ):
        for form in forms:
            goal = 1 / 3 if form == "float32" else 1 / 6
            make = _beside_optax(shapes, form)
            made.append(
                Row(f"compile, {name}, {form}", "optax.adamw", round(goal, 2), make, _NEEDS)
            )
    made.append(
        Row(
            "compile, 24 arrays of 3 kinds, clip_update",
            "optax.adamw",
            None,
            _beside_optax(THREE_KINDS, "float32", clip_update=1.0),
            _NEEDS,
        )
    )
    made += [
        Row(f"compile, GPT-2 of 24 layers, {form}", "12 layers", 0.45, _doubled(form), _NEEDS)
        for form in ("float32", "8bit")
    ]
    return made


def _beside_optax(shapes: Shapes, form: Any, **options: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import optax

        import adamas.jax

        some = shapes[-3:] if quick else shapes
        ours = adamas.jax.adamw(LR, state=form, **options)
        return Pair(
            _compiling(ours, some),
            _compiling(optax.adamw(LR), some),
            lambda: _check(ours, optax.adamw(LR), some),
        )

    return make


def _doubled(form: Any) -> Callable[[bool], Pair]:
    def make(quick: bool) -> Pair:
        import optax

        import adamas.jax

        once, twice = (
            gpt2(layers)[-layers // 3 :] if quick else gpt2(layers) for layers in (12, 24)
        )
        ours = adamas.jax.adamw(LR, state=form)
        return Pair(
            _compiling(ours, twice),
            _compiling(ours, once),
            lambda: _check(ours, optax.adamw(LR), twice),
        )

    return make


def _compiling(optimizer: Any, shapes: Shapes) -> Callable[[], object]:
    """Return what traces, lowers and compiles an update; no array is made for it."""
    import jax
    import jax.numpy as jnp

    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    state = jax.eval_shape(optimizer.init, params)
    return lambda: jax.jit(optimizer.update).lower(params, state, params).compile()


def _check(ours: Any, other: Any, shapes: Shapes) -> None:
    """Compare first updates of arrays of so many axes, which do not depend on how m is stored."""
    # The bias correction 1 - β2 loses digits in float32, and half of that goes into the root.
    bound = LR * (ROUNDINGS + float(np.finfo(np.float32).eps) / (1 - 0.999))
    import jax
    import jax.numpy as jnp

    random = np.random.default_rng(0)
    drawn = [random.standard_normal([min(side, 32) for side in shape]) for shape in shapes]
    params = [jnp.asarray(each, jnp.float32) for each in drawn]
    gradients = [jnp.asarray(each + np.copysign(0.1, each), jnp.float32) for each in drawn]
    found, wanted = (
        jax.jit(each.update)(gradients, each.init(params), params)[0] for each in (ours, other)
    )
    for a, b in zip(found, wanted, strict=True):
        require_close(np.asarray(a), np.asarray(b), bound, "the first update")
