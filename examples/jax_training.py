"""A training with JAX: one line for adamas, and the bits of NumPy's step to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import adamas
from adamas.jax import adamw  # was: from optax import adamw

random = np.random.default_rng(0)
inputs = random.standard_normal((256, 8)).astype(np.float32)
targets = np.sin(inputs @ random.standard_normal(8)).astype(np.float32)
params = {
    "first": random.standard_normal((8, 32)).astype(np.float32) / 3,
    "second": random.standard_normal(32).astype(np.float32) / 6,
}


def loss(params):
    return jnp.mean((jnp.tanh(inputs @ params["first"]) @ params["second"] - targets) ** 2)


def training(optimizer, params, steps):
    """The whole training as one program."""

    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), (value, gradients)

    return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)


STEPS = 300
(trained, _), (losses, gradients) = jax.jit(training, static_argnums=(0, 2))(
    adamw(0.01, weight_decay=0.01), params, STEPS
)
print(f"loss: {losses[0]:.3f}, after {STEPS} steps {losses[-1]:.3f}")
assert losses[-1] < losses[0] / 5

# The same gradients, one by one, on NumPy arrays.
twin = {name: value.copy() for name, value in params.items()}
optimizer = adamas.AdamW(twin, 0.01, weight_decay=0.01)
for i in range(STEPS):
    optimizer.step({name: np.asarray(series[i]) for name, series in gradients.items()})
for name, value in trained.items():
    assert np.array_equal(value, twin[name]), name
print("NumPy arrays and the compiled program of JAX: the same bits")

# Codes of one byte instead of float32.
(_, small), (losses, _) = jax.jit(training, static_argnums=(0, 2))(
    adamw(0.01, weight_decay=0.01, state="8bit"), params, STEPS
)
size = sum(codes.nbytes for codes in jax.tree.leaves(small))
print(f"with {size} bytes of state instead of {8 * 288}: {losses[-1]:.3f}")
assert losses[-1] < losses[0] / 5
