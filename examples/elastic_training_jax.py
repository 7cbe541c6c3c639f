"""A training on a mesh of 4 devices goes on on 2 × 2, then on one, and ends with the same bits.

    python examples/elastic_training_jax.py

A small language model of bytes, its parameters and 8-bit state sharded over a mesh, is trained on
4 devices; its process is killed. Another one takes up the last checkpoint (orbax) on a mesh of
2 × 2 and stops; a third ends on one device. Then the same training runs without a break on one.
Parameters and state are compared byte by byte.

The step of adamas has the same bits on any mesh. Gradients must have them, too, which is up to the
training: each batch is cut into 12 virtual shards, whatever the number of devices; each device
computes gradients of its shards one at a time, so that products have the same shapes; they are
added in the order of the shards (``gradients_of``), not by an all-reduce. What is not in here is
``optax.clip_by_global_norm``: XLA adds the squares of a sharded array in an order that depends on
the mesh. Rows of 8-bit arrays have whole blocks of 32 elements, so nothing moves for a step.
"""

import os
import pydoc_data.topics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS, EVERY, SHARDS, EXAMPLES = 30, 5, 12, 16
CONTEXT, WIDTH, HIDDEN = 8, 32, 384
LIMIT = 600  # seconds


def train(folder, shape, until):
    """Train on a mesh up to a step: from the last checkpoint in ``folder``, if there is one."""
    import jax
    import jax.numpy as jnp
    import optax
    import orbax.checkpoint as ocp
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P

    from adamas.jax import adamw

    names = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))
    rows = NamedSharding(mesh, P(names[0]))
    layout = {"bytes": rows, "up": rows, "down": rows, "scale": NamedSharding(mesh, P())}
    if len(names) > 1:
        layout["up"] = NamedSharding(mesh, P("data", "model"))

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "bytes": jax.random.normal(keys[0], (256, WIDTH)) / 4,
        "up": jax.random.normal(keys[1], (CONTEXT * WIDTH, HIDDEN)) / 16,
        "down": jax.random.normal(keys[2], (HIDDEN, 256)) / 20,
        "scale": jnp.ones(HIDDEN),
    }
    params = jax.device_put(params, layout)
    optimizer = adamw(optax.cosine_decay_schedule(1e-2, STEPS), weight_decay=0.1, state="8bit")
    state = optimizer.init(params)  # sharded as the parameters are

    topics = pydoc_data.topics.topics
    text = "\n".join(topics[name] for name in sorted(topics)).encode()
    text = jnp.frombuffer(text, jnp.uint8)

    def batch_of(step):
        """Return the examples of a step, which follow from its number alone."""
        begins = jax.random.randint(
            jax.random.fold_in(jax.random.key(1), step), (SHARDS, EXAMPLES, 1), 0, len(text) - 8
        )
        return text[begins + jnp.arange(CONTEXT + 1)].astype(jnp.int32)

    def loss(params, examples):
        x = params["bytes"][examples[:, :-1]].reshape(EXAMPLES, -1)
        logits = (jnp.tanh(x @ params["up"]) * params["scale"]) @ params["down"]
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, examples[:, -1]
        ).mean()

    def gradients_of(params, batch):
        """Return the losses of virtual shards, and the sum of their gradients in their order."""

        def of_own_shards(params, shards):  # on each device, one after the other
            # Else JAX adds gradients of what all devices have, by an all-reduce.
            params = jax.lax.pcast(params, names, to="varying")
            return jax.lax.map(lambda examples: jax.value_and_grad(loss)(params, examples), shards)

        losses, each = jax.shard_map(
            of_own_shards, mesh=mesh, in_specs=(P(), P(names)), out_specs=P(names)
        )(params, batch)

        def added(gradients, home):
            # All devices get all of them here; for a large model exchange parts (all_to_all).
            gradients = jax.lax.with_sharding_constraint(gradients, NamedSharding(mesh, P()))
            total = gradients[0]
            for shard in range(1, SHARDS):
                total = total + gradients[shard]
            return jax.lax.with_sharding_constraint(total / SHARDS, home)

        return losses, jax.tree.map(added, each, layout)

    def step_once(params, state, step):
        losses, gradients = gradients_of(params, batch_of(step))
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, losses

    step_once = jax.jit(step_once, donate_argnums=(0, 1))

    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(folder, options=options) as checkpoints:
        begin = checkpoints.latest_step() or 0
        if begin:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
            restored = checkpoints.restore(begin, args=ocp.args.StandardRestore(like))
            params, state = restored
        for step in range(begin, until):
            params, state, losses = step_once(params, state, step)
            if (step + 1) % EVERY == 0:
                checkpoints.save(step + 1, args=ocp.args.StandardSave((params, state)))
                print(f"  step {step + 1:3}   loss {sum(losses.tolist()) / SHARDS:.6f}", flush=True)
    if until == STEPS:
        import numpy as np

        leaves = jax.tree_util.tree_leaves_with_path((params, state))
        np.savez(folder / "end", **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})


def started(folder, shape, until):
    """Return a process that trains on as many devices as ``shape`` has."""
    count = 1
    for length in shape:
        count *= length
    print(f"on a mesh of {' × '.join(map(str, shape))}, up to step {until}:", flush=True)
    flags = f"--xla_force_host_platform_device_count={count} --xla_cpu_multi_thread_eigen=false"
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), "x".join(map(str, shape)), str(until)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    )


def run(folder, shape, until):
    with started(folder, shape, until) as training:
        try:
            code = training.wait(LIMIT)
        finally:
            training.kill()
    assert code == 0, f"the training ended with exit code {code}"


def run_and_kill(folder, shape, step):
    """Train until the checkpoint of a step is there, and kill the process."""
    with started(folder, shape, STEPS) as training:
        try:
            end = time.monotonic() + LIMIT
            while not (folder / str(step)).exists():
                assert training.poll() is None, f"the training did not come to step {step}"
                assert time.monotonic() < end, f"the training has not come to step {step}"
                time.sleep(0.01)
        finally:
            training.kill()
    print("  killed", flush=True)


def prove(directory):
    import numpy as np

    broken, unbroken = directory / "broken", directory / "unbroken"
    broken.mkdir()
    unbroken.mkdir()
    run_and_kill(broken, (4,), 2 * EVERY)
    run(broken, (2, 2), 4 * EVERY)
    run(broken, (1,), STEPS)
    print("without a break,", end=" ")
    run(unbroken, (1,), STEPS)
    with np.load(broken / "end.npz") as one, np.load(unbroken / "end.npz") as other:
        assert one.files == other.files
        different = [name for name in one.files if one[name].tobytes() != other[name].tobytes()]
        size = sum(one[name].nbytes for name in one.files)
    assert not different, f"NOT EQUAL: {different}"
    print(f"equal: parameters and state, {len(one.files)} arrays, {size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), tuple(map(int, sys.argv[2].split("x"))), int(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as directory:
            prove(Path(directory))
