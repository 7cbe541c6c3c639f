"""Moments in few bytes: the state that keeps their codes, and random bits to round with.

Codes are made and read by ``adamas.codecs``. Forms other than 8bit are element-wise, so they
stay where their parameter is; with 8bit, 32 elements of the flattened array share a header.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

from adamas import codecs
from adamas.codecs import Codes
from adamas.jax.words import Wide, Word
from adamas.storage import Storage, bits_of

__all__ = [
    "CodedState",
    "back",
    "dtypes",
    "everywhere",
    "header_shape",
    "home_of_cut_blocks",
    "keys",
    "random_bits",
    "zeros",
]

Array = Any
Tree = Any

_U = np.uint32


class CodedState(NamedTuple):
    """Moments as codes, under the names that optax has for them; trees like the parameters.

    ``header`` has uint16 for each block of 32 elements where a form is 8bit; ``top`` is the
    exponent that codes of m are counted from. What is not kept is an empty tuple.
    """

    count: Array
    mu: Tree = ()
    nu: Tree = ()
    header: Tree = ()
    top: Array | tuple[()] = ()


def dtypes(storage: Storage) -> Codes:
    """Return the dtypes that m, v and headers are stored in."""
    codes = (bits_of(code or "float32") for code in storage.codes)
    return Codes(*codes)


def header_shape(array: Any) -> tuple[int, ...]:
    """Return the shape of the header of an array."""
    return codecs.header_shape(jnp.shape(array))


def zeros(
    storage: Storage, params: Tree, *, mean: bool, square: bool, top: int | None
) -> CodedState:
    """Return the state before the first step; ``top`` is None where there are no codes of m."""
    codes = dtypes(storage)

    def like(dtype: Any) -> Tree:
        return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)

    def headers(codes: Array) -> Array:  # sharded as blocks are
        codes = everywhere(codes, home_of_cut_blocks(codes))
        header = codecs.blocks(codes).max(axis=-1)
        if isinstance(codes, Tracer) or header.ndim != codes.ndim:
            return header
        if header.sharding == codes.sharding:  # what is put somewhere is bound to stay there
            return header
        # The same in the same words, as a step has it: another word is another program.
        is_alike = header.sharding.is_equivalent_to(codes.sharding, header.ndim)
        return jax.device_put(header, codes.sharding) if is_alike else header

    has_header = storage.has_header(has_mean=mean, has_square=square)
    return CodedState(
        count=jnp.zeros([], jnp.int32),
        mu=like(codes.mean) if mean else (),
        nu=like(codes.square) if square else (),
        header=jax.tree.map(headers, like(codes.header)) if has_header else (),
        top=() if top is None else jnp.array(top, jnp.int32),
    )


# -- meshes whose axes are explicit --------------------------------------------------------------


def home_of_cut_blocks(array: Array) -> NamedSharding | None:
    """Return how an array is sharded where that cuts blocks of 8bit, or may; else None.

    Only where axes of the mesh are explicit: there a program has to say what is moved. Elsewhere
    XLA sees to it.
    """
    if not hasattr(jax.sharding, "reshard"):  # a JAX before there were explicit axes
        return None
    sharding = getattr(jax.typeof(array), "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return None
    if jax.sharding.AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    cuts = {axis: names for axis, names in enumerate(sharding.spec) if names is not None}
    if codecs.has_rows_of_blocks(array.shape):
        blocks, cut = array.shape[-1] // codecs.BLOCK, cuts.get(array.ndim - 1)
    else:  # blocks follow one another through rows
        blocks, cut = array.size // codecs.BLOCK, cuts.pop(0, None)
        if cuts or (cut is not None and array.size % codecs.BLOCK):
            return sharding
    names = cut if isinstance(cut, tuple) else (cut,)
    parts = math.prod(sharding.mesh.shape[name] for name in names if name is not None)
    return None if blocks % parts == 0 else sharding


def everywhere(array: Array, home: NamedSharding | None) -> Array:
    """Return an array as a whole on all devices, if it has a ``home`` to go back to."""
    return (
        array
        if home is None
        else jax.sharding.reshard(array, NamedSharding(home.mesh, PartitionSpec()))
    )


def back(array: Array, home: NamedSharding | None) -> Array:
    """Return an array sharded as at home."""
    return array if home is None else jax.sharding.reshard(array, home)


# -- random bits ---------------------------------------------------------------------------------


def keys(seed: int | Array, step: Array, tensors: int) -> Word:
    """Return ``adamas.codecs.key_of`` for the tensors 0, 1, … at ``step`` (uint32), in rows."""
    if isinstance(seed, int):
        z = jax.tree.map(jnp.asarray, Wide.of(seed))
    else:
        z = Wide(jnp.zeros_like(seed, dtype=_U), seed.astype(_U))
    z = codecs.mixed(z)
    z = codecs.mixed(z + Wide(_U(0), step))
    z = codecs.mixed(z + Wide(_U(0), jnp.arange(tensors, dtype=_U)))
    return jnp.stack([z.low, z.high], -1)


def random_bits(key: Word, shape: tuple[int, ...]) -> Word:
    """Return the bits of all elements of an array, by their index in it."""
    if math.prod(shape) > 1 << 32:
        raise ValueError(
            f"An array has the shape {shape}, but small states in JAX count elements in 32 bits. "
            "Give arrays of up to 2^32 elements, or round to nearest."
        )
    # Axis by axis, so that each device counts the elements of its own part of the array.
    index = jnp.zeros(shape, _U)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) & 0xFFFFFFFF
        index = index + lax.broadcasted_iota(_U, shape, axis) * _U(stride)
    return codecs.finalised(index + key[0], key[1])
