"""Steps of arrays that are sharded over meshes of 4 devices.

    jax_meshes.py resumed|laid_out
    jax_meshes.py of_two_processes RANK PORT

Gradients are a function of the step and of the place in the whole array, so all that may differ
between meshes is the step itself. All is compared byte by byte.
"""

from __future__ import annotations

import math
import re
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adamas.jax as ours
from tests.support.jax_cases import stepper

#: Rows of whole blocks of 8bit, rows that are not, and one row.
SHAPES = {"whole": (16, 64), "cut": (8, 20), "row": (128,), "number": ()}
MESHES = ((1,), (4,), (2, 2))
SPECS = {
    1: {"whole": P("a"), "cut": P(None, "a"), "row": P("a"), "number": P()},
    2: {"whole": P("a", "b"), "cut": P("b", "a"), "row": P(("b", "a")), "number": P()},
}
OPTIMIZERS = {
    "adam": lambda: ours.adam(0.01),
    "adamw compact": lambda: ours.adamw(0.01, weight_decay=0.1, state="compact", seed=3),
    "adamw 8bit": lambda: ours.adamw(0.01, weight_decay=0.1, state="8bit"),
    "adamw clipped": lambda: ours.adamw(0.01, weight_decay=0.1, clip_update=0.5),
}


def mesh_of(shape, kind=AxisType.Auto):
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, ("a", "b")[: len(shape)], axis_types=(kind,) * len(shape))


def layout(mesh):
    specs = SPECS[len(mesh.shape)]
    fits = {"cut": 20 % mesh.devices.shape[0] == 0}  # JAX has no uneven shards
    return {
        name: NamedSharding(mesh, spec if fits.get(name, True) else P())
        for name, spec in specs.items()
    }


def drawn(seed):
    random = np.random.default_rng(seed)
    return {n: random.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}


def trained(step, params, state, steps):
    homes = jax.tree.map(lambda each: each.sharding, params)
    for i in steps:
        params, state = step(params, state, jax.device_put(drawn(1 + i), homes))
    return params, state


def bytes_of(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def pinned_step(optimizer, params, state):
    """Return a step under jit whose results stay where its arguments are."""
    homes = jax.tree.map(lambda each: each.sharding, (params, state))
    return jax.jit(stepper(optimizer), out_shardings=homes, donate_argnums=(0, 1))


def begun(optimizer, mesh):
    params = jax.device_put(drawn(0), layout(mesh))
    state = optimizer.init(params)
    return params, state, pinned_step(optimizer, params, state)


def resumed():
    """4 devices, then 2 × 2, then one, by way of orbax: as without a break on one."""
    import orbax.checkpoint as ocp

    for name, make in OPTIMIZERS.items():
        optimizer = make()
        params, state, step = begun(optimizer, mesh_of((1,)))
        wanted = bytes_of(trained(step, params, state, range(20)))
        with tempfile.TemporaryDirectory() as folder, ocp.StandardCheckpointer() as checkpointer:
            for i, shape in enumerate(((4,), (2, 2), (1,))):
                params, state, step = begun(optimizer, mesh_of(shape))
                if i:
                    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
                    params, state = checkpointer.restore(Path(folder) / str(i - 1), like)
                    homes = jax.tree.map(lambda each: each.sharding, like)
                    assert jax.tree.map(lambda each: each.sharding, (params, state)) == homes
                params, state = trained(step, params, state, range(5 * i, (5, 10, 20)[i]))
                checkpointer.save(Path(folder) / str(i), (params, state))
                checkpointer.wait_until_finished()
        found = bytes_of((params, state))
        different = [each for each in wanted if found[each] != wanted[each]]
        assert found.keys() == wanted.keys()
        assert not different, (name, different)


def laid_out():
    mapped()
    for name, make in OPTIMIZERS.items():
        for kind in (AxisType.Auto, AxisType.Explicit):
            check(name, make(), kind)
            stay(name, make(), kind)


def check(name, optimizer, kind):
    wanted = None
    for shape in MESHES:
        mesh, about = mesh_of(shape, kind), (name, kind, shape)
        params, state, step = begun(optimizer, mesh)
        for each in (state[0].mu, state[0].nu):
            for leaf, home in zip(jax.tree.leaves(each), jax.tree.leaves(params), strict=True):
                assert leaf.sharding.is_equivalent_to(home.sharding, leaf.ndim), about
        if "8bit" in name:
            header = state[0].header["whole"]
            assert header.shape == (16, 2), about
            assert header.sharding.is_equivalent_to(params["whole"].sharding, 2), about
        before = jax.tree.leaves((params, state))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of donated buffers that are not used
            params, state = trained(step, params, state, range(3))
        assert all(each.is_deleted() for each in before), about
        assert step._cache_size() == 1, about
        found = bytes_of((params, state))
        wanted = wanted or found
        different = [each for each in wanted if found[each] != wanted[each]]
        assert not different, (about, different)


def stay(name, optimizer, kind):
    """Rows of whole blocks are stepped where they are, by one program, whatever is said of it."""
    for shape in MESHES[1:]:
        home = NamedSharding(
            mesh_of(shape, kind), P(*("a", "b")[: len(shape)], *(None,) * (2 - len(shape)))
        )
        whole = {"whole": jax.device_put(drawn(0)["whole"], home)}
        state, step = optimizer.init(whole), jax.jit(stepper(optimizer))
        text = step.lower(whole, state, whole).compile().as_text()
        moved = set(re.findall(r"all-\w+|collective-\w+", text))
        if "clipped" in name:  # sums move
            sizes = re.findall(r"\w+\[([\d,]*)\][^=]* (?:all|collective)-\w+\(", text)
            assert max(math.prod(map(int, filter(None, each.split(",")))) for each in sizes) <= 4
            moved = set()
        assert not moved, (name, kind, shape, moved)
        params = whole
        for _ in range(3):
            params, state = step(params, state, whole)
        assert step._cache_size() == 1, (name, kind, shape)
        for leaf in jax.tree.leaves((params, state[0].mu, state[0].nu)):
            assert leaf.sharding.is_equivalent_to(home, 2), (name, kind, shape)


def mapped():
    """Within ``shard_map`` parts whose blocks are whole, rounded to nearest, have the same bits."""
    optimizer = ours.adamw(0.01, state="8bit", rounding="nearest")
    mesh = mesh_of((4,))
    whole = {"whole": drawn(0)["whole"]}
    ends = []
    for sharded in (False, True):
        params = jax.device_put(whole, NamedSharding(mesh, P("a") if sharded else P()))
        state, step = optimizer.init(params), stepper(optimizer)
        if sharded:
            specs = jax.tree.map(lambda each: each.sharding.spec, (params, state))
            step = jax.shard_map(step, mesh=mesh, in_specs=(*specs, specs[0]), out_specs=specs)
        step = jax.jit(step)
        for _ in range(3):
            params, state = step(params, state, jax.device_put(whole, params["whole"].sharding))
        ends.append(bytes_of((params, state)))
    assert ends[0] == ends[1]


def of_two_processes(rank, port):
    """Two processes with two devices each: the same bits, by one program."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(rank))
    assert len(jax.devices()) == 4
    optimizer = OPTIMIZERS["adamw 8bit"]()
    alone = jax.sharding.Mesh(jax.local_devices()[:1], ("a",), axis_types=(AxisType.Auto,))
    ends = []
    for mesh in (mesh_of((4,)), alone):
        homes = layout(mesh)
        params = put(drawn(0), homes)
        state = optimizer.init(params)
        step = pinned_step(optimizer, params, state)
        for i in range(3):
            params, state = step(params, state, put(drawn(1 + i), homes))
        assert step._cache_size() == 1
        ends.append(jax.tree_util.tree_leaves_with_path((params, state)))
    for (path, sharded), (_, whole) in zip(*ends, strict=True):
        for shard in sharded.addressable_shards:
            own = np.asarray(whole)[shard.index]
            same = np.asarray(shard.data).tobytes() == own.tobytes()
            assert same, (jax.tree_util.keystr(path), shard.index)
    jax.distributed.shutdown()


def put(arrays, homes):
    """Return arrays that all processes have, as sharded ones."""
    return {
        name: jax.make_array_from_callback(each.shape, homes[name], each.__getitem__)
        for name, each in arrays.items()
    }


if __name__ == "__main__":
    {"resumed": resumed, "laid_out": laid_out, "of_two_processes": of_two_processes}[sys.argv[1]](
        *sys.argv[2:]
    )
    sys.stdout.write("same\n")
