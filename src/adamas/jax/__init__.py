"""Optimizers for JAX in place of optax's: same names, arguments and state, adamas's bits.

    from adamas.jax import adamw

    optimizer = adamw(3e-4)  # an optax.GradientTransformationExtraArgs
    state = optimizer.init(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)

Eager, under jit, vmap and scan, and on arrays that are sharded over devices, a step gives the bits
of ``adamas.Adam``. ``docs/guides/jax.md`` says what XLA does to subnormal numbers.
"""

from __future__ import annotations

try:
    import jax as _jax
    import optax as _optax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        'adamas.jax needs JAX. Install it with: pip install "adamas[jax]"'
    ) from error

from adamas.jax.small import CodedState
from adamas.jax.transformations import (
    adam,
    adamw,
    amsgrad,
    momentum,
    nadam,
    nadamw,
    radam,
    rmsprop,
    sgd,
)

__all__ = [
    "CodedState",
    "adam",
    "adamw",
    "amsgrad",
    "momentum",
    "nadam",
    "nadamw",
    "radam",
    "rmsprop",
    "sgd",
]

del _jax, _optax
