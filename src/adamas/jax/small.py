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

from adamas import codecs
from adamas.codecs import Codes
from adamas.jax.words import Wide, Word
from adamas.storage import Storage, bits_of

__all__ = [
    "CodedState",
    "dtypes",
    "header_shape",
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


def header_shape(array: Any) -> tuple[int]:
    """Return the shape of the header of an array."""
    return (-(-math.prod(jnp.shape(array)) // codecs.BLOCK),)


def zeros(
    storage: Storage, params: Tree, *, mean: bool, square: bool, top: int | None
) -> CodedState:
    """Return the state before the first step; ``top`` is None where there are no codes of m."""
    codes = dtypes(storage)

    def like(dtype: Any) -> Tree:
        return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=dtype), params)

    has_header = storage.has_header(has_mean=mean, has_square=square)
    return CodedState(
        count=jnp.zeros([], jnp.int32),
        mu=like(codes.mean) if mean else (),
        nu=like(codes.square) if square else (),
        header=jax.tree.map(lambda p: jnp.zeros(header_shape(p), codes.header), params)
        if has_header
        else (),
        top=() if top is None else jnp.array(top, jnp.int32),
    )


# -- random bits ---------------------------------------------------------------------------------


def keys(seed: int | Array, step: Array, tensors: int) -> tuple[Word, Word]:
    """Return ``adamas.codecs.key_of`` for the tensors 0, 1, … at ``step`` (uint32)."""
    if isinstance(seed, int):
        z = jax.tree.map(jnp.asarray, Wide.of(seed))
    else:
        z = Wide(jnp.zeros_like(seed, dtype=_U), seed.astype(_U))
    z = codecs.mixed(z)
    z = codecs.mixed(z + Wide(_U(0), step))
    z = codecs.mixed(z + Wide(_U(0), jnp.arange(tensors, dtype=_U)))
    return z.low, z.high


def random_bits(key: tuple[Word, Word], shape: tuple[int, ...]) -> Word:
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
