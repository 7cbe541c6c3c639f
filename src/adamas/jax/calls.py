"""Calls: what XLA's compiler for CPUs compiles as a computation of its own.

XLA puts all operations of a program together and fuses those that follow one another. Where a
value has several uses, what it is made from is computed anew in each of them, and the program
grows with the product of both. A call ends that: what goes into it, and what comes out of it, are
arrays in memory. Fused operations that are the same but for the arrays that they take are compiled
once, however many there are; so a number that tells arrays apart has to go into a call, too.

A call is a hint. Where it is not known (on other devices, in other versions, and where arrays are
sharded over a mesh) the same operations stand in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core, lax

try:
    from jax.experimental import xla_metadata
    from jax.extend.core import jaxpr_as_fun
except ImportError:  # a JAX that is older
    xla_metadata: Any = None
    jaxpr_as_fun: Any = None

__all__ = ["SMALL", "called", "each", "has_mesh", "held", "row", "together", "type_of"]

Array = Any
Tree = Any

#: Elements of an array of which a copy costs nothing, and of all that are put together.
SMALL, _MOST_TOGETHER = 1 << 14, 1 << 20


def called(function: Callable[..., Tree], *args: Tree) -> Tree:
    """Return ``function(*args)``, of trees of arrays, made by a call where that is possible."""
    flat = jax.tree.leaves(args)
    if not _has_calls(flat):
        return function(*args)
    # Traced once for all devices.
    program, made = jax.make_jaxpr(function, return_shape=True)(*args)
    plain = jaxpr_as_fun(program)

    @jax.jit
    def inside(*flat: Array) -> list[Array]:
        with xla_metadata.set_xla_metadata(inlineable="true"):
            return plain(*flat)

    def outside(*flat: Array) -> list[Array]:
        with xla_metadata.set_xla_metadata(inlineable="false"):
            return inside(*flat)

    found = lax.platform_dependent(*flat, cpu=outside, default=plain)
    return jax.tree.unflatten(jax.tree.structure(made), found)


def held(values: Tree) -> Tree:
    """Return arrays that nothing that follows is computed together with."""
    return called(lambda values: values, values)


def together(values: Tree) -> Tree:
    """Return arrays that XLA makes at one time, if this JAX has that under ``vmap``."""
    return lax.optimization_barrier(values) if hasattr(jax, "typeof") else values


def each(
    function: Callable[[Tree, Tree, Array | None], Tree],
    common: Tree,
    rows: Sequence[Tree],
    table: Array | None,
    places: Sequence[int],
    *,
    stacked: bool,
    goes_on_stacked: bool = False,
) -> list[Tree]:
    """Return ``function(common, row, entry)`` for each of many trees of arrays that are alike.

    ``entry`` is the one of ``table`` at the place of the row. Small arrays are put together if they
    may be ``stacked``, for one computation of all; large ones are not copied for that. What is put
    together again at once (it ``goes_on_stacked``) is taken apart by plain slices, which XLA leaves
    out then.
    """
    part_of = _slice if goes_on_stacked else row
    largest = max(array.size for array in jax.tree.leaves(rows))
    count = min(len(rows), _MOST_TOGETHER // max(largest, 1))
    if not stacked or count < 2 or largest > SMALL or not _has_calls(jax.tree.leaves(rows)):
        entries = [None if table is None else row(table, i) for i in places]
        return [function(common, *pair) for pair in zip(rows, entries, strict=True)]
    made: list[Tree] = []
    for first in range(0, len(rows), count):
        part = slice(first, first + count)
        entries = None if table is None else table[np.asarray(places[part])]
        of_all = jax.vmap(function, in_axes=(None, 0, 0))
        found = of_all(common, called(_stacked, rows[part]), entries)
        made += [part_of(found, i) for i in range(len(rows[part]))]
    return made


def _stacked(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def _slice(table: Tree, i: int) -> Tree:
    return jax.tree.map(lambda rows: rows[i], table)


def row(table: Tree, i: int) -> Tree:
    """Return row ``i`` of the arrays of a tree, by operations that are the same for each row."""
    return _row(table, np.int32(i))


@jax.jit
def _row(table: Tree, i: Any) -> Tree:
    # The barrier hides the number from the passes that would make it a part of the operations.
    return called(_indexed, table, lax.optimization_barrier(i))


def _indexed(table: Tree, i: Any) -> Tree:
    return jax.tree.map(lambda rows: lax.dynamic_index_in_dim(rows, i, keepdims=False), table)


def _has_calls(arrays: Sequence[Array]) -> bool:
    return xla_metadata is not None and not any(map(has_mesh, arrays))


def has_mesh(array: Any) -> bool:
    """Return whether an array may be sharded over the devices of a mesh."""
    mesh = getattr(getattr(type_of(array), "sharding", None), "mesh", None)
    return mesh is not None and mesh.size > 1


def type_of(array: Any) -> Any:
    """Return what is known of an array when a program is made."""
    if hasattr(jax, "typeof"):
        return jax.typeof(array)
    older: Any = core
    return older.raise_to_shaped(older.get_aval(array))
