"""Running means in few bytes: :mod:`adamas.codecs` for JAX, to the bit.

All is arithmetic of integers, products with powers of two, and comparisons; none of it is left to
XLA to simplify. Forms other than 8bit are element-wise, so they stay where their parameter is; with
8bit, 32 elements of the flattened array share a header.
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
from adamas.jax import words
from adamas.jax.words import Word
from adamas.storage import Storage, bits_of

__all__ = [
    "CodedState",
    "decode",
    "dtypes",
    "encode",
    "header_shape",
    "keys",
    "random_bits",
    "zeros",
]

Array = Any
Tree = Any

_U = np.uint32
_F = np.float32
_SIGN, _SIZE = _U(0x80000000), _U(0x7FFFFFFF)
_SMALLEST, _LARGEST = _U(0x00800000), _U(0x7F7FFFFF)  # the smallest normal, the largest finite


class CodedState(NamedTuple):
    """Running means as codes, under the names that optax has for them; trees like the parameters.

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
    """Return :func:`adamas.codecs.key_of` for the tensors 0, 1, … at ``step`` (uint32)."""
    if isinstance(seed, int):
        high, low = jnp.asarray(_U(seed >> 32)), jnp.asarray(_U(seed & 0xFFFFFFFF))
    else:
        high, low = jnp.zeros_like(seed, dtype=_U), seed.astype(_U)
    high, low = _mixed(high, low)
    high, low = _mixed(*_plus(high, low, _U(0), step))
    high, low = _mixed(*_plus(high, low, _U(0), jnp.arange(tensors, dtype=_U)))
    return low, high


def random_bits(key: tuple[Word, Word], shape: tuple[int, ...]) -> Word:
    """Return the bits of all elements of an array, by their index in it."""
    if math.prod(shape) > 1 << 32:
        raise ValueError(
            f"An array has the shape {shape}, but small states in JAX count elements in 32 bits. "
            "Give arrays of up to 2^32 elements, or round to nearest."
        )
    index = jnp.zeros(shape, _U)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) & 0xFFFFFFFF
        index = index + lax.broadcasted_iota(_U, shape, axis) * _U(stride)
    x = index + key[0]
    x = (x ^ x >> _U(16)) * _U(0x21F0AAAD)
    x = x ^ key[1]
    x = (x ^ x >> _U(15)) * _U(0xD35A2D97)
    return x ^ x >> _U(15)


def _mixed(high: Word, low: Word) -> tuple[Word, Word]:
    """Return a round of splitmix64 (Steele, Lea & Flood 2014)."""
    high, low = _plus(high, low, _U(0x9E3779B9), _U(0x7F4A7C15))
    high, low = _times(*_xor_shifted(high, low, 30), 0xBF58476D, 0x1CE4E5B9)
    high, low = _times(*_xor_shifted(high, low, 27), 0x94D049BB, 0x133111EB)
    return _xor_shifted(high, low, 31)


def _plus(high: Word, low: Word, more_high: Word, more_low: Word) -> tuple[Word, Word]:
    low, carry = words.sum_of(low, more_low)
    return high + more_high + carry, low


def _times(high: Word, low: Word, by_high: int, by_low: int) -> tuple[Word, Word]:
    top, bottom = words.product_of(low, _U(by_low))
    return top + high * _U(by_low) + low * _U(by_high), bottom


def _xor_shifted(high: Word, low: Word, by: int) -> tuple[Word, Word]:
    return high ^ high >> _U(by), low ^ (low >> _U(by) | high << _U(32 - by))


# -- m and v together ----------------------------------------------------------------------------


def encode(
    forms: tuple[str, str], m: Array | None, v: Array | None, r: Word | None, top: int
) -> Codes:
    """Return :func:`adamas.codecs.encode` of float32 arrays, of their shape."""
    mean_form, square_form = forms
    mean, square, header = m, v, None
    decoded = v
    if v is not None and square_form == "8bit":
        square, header = _encode_squares_8bit(v, r)
        decoded = _decode_squares_8bit(square, header)
    elif v is not None and square_form != "float32":
        compact = square_form == "compact"
        square = _encode_squares_compact(v, r) if compact else _encode_bfloat16(v, r)
        decoded = _decode_bfloat16(square)
    if m is not None and mean_form == "bfloat16":
        mean = _encode_bfloat16(m, None if r is None else r << _U(16))
    elif m is not None and mean_form == "compact":
        mean = _encode_means_compact(*_relative_mean(m, decoded), r, top)
    elif m is not None and mean_form == "8bit":
        mean, scale = _encode_means_8bit(_relative_mean(m, decoded)[0], r, top)
        header = scale if header is None else header | scale
    return Codes(mean, square, header)


def decode(
    forms: tuple[str, str], codes: Codes, top: int | Array
) -> tuple[Array | None, Array | None]:
    """Return m and v as float32 arrays."""
    mean_form, square_form = forms
    m, v = codes.mean, codes.square
    if v is not None and square_form == "8bit":
        v = _decode_squares_8bit(v, codes.header)
    elif v is not None and square_form != "float32":
        v = _decode_bfloat16(v)
    if m is not None and mean_form == "bfloat16":
        m = _decode_bfloat16(m)
    elif m is not None and mean_form == "compact":
        m = _decode_means_compact(m, top) * _float(_root_scale(v))
    elif m is not None and mean_form == "8bit":
        m = _decode_means_8bit(m, codes.header, top) * _float(_root_scale(v))
    return m, v


def _root_scale(v: Array) -> Word:
    """Return the bits of the power of two in √v."""
    return ((_bits(v) + _SMALLEST >> _U(1)) & _U(0x7F800000)) + _U(63 << 23)


def _relative_mean(m: Array, v: Array) -> tuple[Array, Array]:
    """Return m in units of the power of two in √v, and whether its sign is set.

    The sign is that of m: where the quotient is subnormal XLA takes it for 0.
    """
    y = m * _float(_U(254 << 23) - _root_scale(v))
    known = ~((m != m) | (v == 0))
    return jnp.where(known, y, _F(0)), known & (_bits(m) >= _SIGN)


# -- bfloat16 ------------------------------------------------------------------------------------


def _encode_bfloat16(x: Array, r: Word | None) -> Array:
    bits = _bits(x)
    if r is None:
        rounded = bits + _U(0x7FFF) + (bits >> _U(16) & _U(1)) >> _U(16)
    else:
        size = bits & _SIZE
        most = jnp.where(size <= _LARGEST, _U(0x7F7F), _U(0x7F80))
        rounded = jnp.minimum(size + (r >> _U(16)) >> _U(16), most) | (bits & _SIGN) >> _U(16)
    return jnp.where(x != x, _U(0x7FC0), rounded).astype(jnp.uint16)


def _decode_bfloat16(code: Array) -> Array:
    return _float(code.astype(_U) << _U(16))


# -- compact -------------------------------------------------------------------------------------


def _encode_squares_compact(v: Array, r: Word | None) -> Array:
    x = _clipped(v)
    addend = _U(0x8000) if r is None else r >> _U(16)
    code = jnp.minimum(x + addend >> _U(16), _U(0x7F7F))
    return jnp.where(x > 0, code, _U(0)).astype(jnp.uint16)


def _encode_means_compact(y: Array, negative: Array, r: Word | None, top: int) -> Array:
    addend = _U(0x8000) if r is None else r & _U(0xFFFF)
    size = jnp.minimum(jnp.abs(y), _F(2.0**top))
    floating = (_bits(size) + (addend << _U(3)) >> _U(19)) - _U((119 + top) << 4)
    units = (size * _F(2.0 ** (27 - top))).astype(jnp.int32).astype(_U)
    linear = units + addend >> _U(16)
    code = jnp.where(size < _F(2.0 ** (top - 7)), linear, floating)
    return (jnp.minimum(code, _U(127)) | jnp.where(negative, _U(128), _U(0))).astype(jnp.uint8)


def _decode_means_compact(code: Array, top: int | Array) -> Array:
    size = (code & np.uint8(127)).astype(_U)
    floating = _float((size << _U(19)) + _exponent(119 + top))
    linear = size.astype(jnp.float32) * _float(_exponent(127 + top - 11))
    y = jnp.where(size < 16, linear, floating)
    return jnp.where(code >= 128, -y, y)


# -- 8bit ----------------------------------------------------------------------------------------


def _encode_squares_8bit(v: Array, r: Word | None) -> tuple[Array, Array]:
    """Return the codes of v, and K and L of the headers."""
    x = _blocks(_clipped(v))
    most = x.max(axis=1)
    least = jnp.where(x > 0, x, _U(0xFFFFFFFF)).min(axis=1)
    least = jnp.where(most > 0, least, _U(0))
    finer = jnp.zeros_like(most)
    for more in (1, 2, 3):
        s = _U(20 - more)
        last = most + _U((1 << (20 - more)) - 1) >> s
        fits = last - (least >> s) + _U(2 << more) <= 255
        finer = jnp.where(fits, _U(more), finer)
    s, one = (_U(20) - finer)[:, None], _U(1)
    if r is None:
        addend = jnp.broadcast_to(one << (s - one), x.shape)
    else:
        addend = _blocks(r) >> _U(12) & ((one << s) - one)
    k = jnp.minimum(x + addend >> s, (_U(2040) << finer[:, None]) - one)
    k = jnp.where(x > 0, k, _U(0))
    highest = k.max(axis=1) >> (finer + one)
    code = jnp.maximum(k.astype(jnp.int32) - _base(highest, finer)[:, None], 1)
    code = jnp.where(x > 0, code, 0).astype(jnp.uint8)
    return _unblocked(code, v.shape), (highest | finer << _U(10)).astype(jnp.uint16)


def _decode_squares_8bit(code: Array, header: Array) -> Array:
    bits = header.astype(_U)
    finer = bits >> _U(10) & _U(3)
    counted = _blocks(code).astype(jnp.int32)
    base = _base(bits & _U(1023), finer)[:, None]
    values = (counted + base).astype(_U) << (_U(20) - finer[:, None])
    return _unblocked(_float(jnp.where(counted > 0, values, _U(0))), code.shape)


def _encode_means_8bit(y: Array, r: Word | None, top: int) -> tuple[Array, Array]:
    """Return the codes of m, and the scales of the headers."""
    rows = _blocks(y)
    largest = (_bits(rows) & _SIZE).max(axis=1)
    scale = jnp.clip((largest + _U(0x1FFFF) >> _U(23)).astype(jnp.int32) - 126, top - 15, top)
    fraction = _F(0.5)
    if r is not None:
        fraction = (_blocks(r) & _U(0xFFFF)).astype(jnp.float32) * _F(2.0**-16)
    unit = _float((134 - scale).astype(_U) << _U(23))[:, None]
    q = rows * unit + (_F(128) + fraction)
    code = (jnp.clip(q, _F(1), _F(255)).astype(jnp.int32) - 128).astype(jnp.int8)
    return _unblocked(code, y.shape), ((top - scale) << 12).astype(jnp.uint16)


def _decode_means_8bit(code: Array, header: Array, top: int | Array) -> Array:
    exponent = (127 + top - 7) - (header >> np.uint16(12)).astype(jnp.int32)
    unit = _float(exponent.astype(_U) << _U(23))
    return _unblocked(_blocks(code).astype(jnp.float32) * unit[:, None], code.shape)


def _base(highest: Word, finer: Word) -> Array:
    """Return what the codes of v are counted from in each block."""
    high, more = highest.astype(jnp.int32), finer.astype(jnp.int32)
    return jnp.maximum(((high + 1) << (more + 1)) - 256, (jnp.int32(8) << more) - 1)


def _blocks(x: Array) -> Array:
    """Return ``x`` in rows of one block, filled up with zeros."""
    return jnp.pad(x.ravel(), (0, -x.size % codecs.BLOCK)).reshape(-1, codecs.BLOCK)


def _unblocked(rows: Array, shape: tuple[int, ...]) -> Array:
    return rows.ravel()[: math.prod(shape)].reshape(shape)


# -- bit patterns --------------------------------------------------------------------------------


def _bits(x: Array) -> Word:
    return lax.bitcast_convert_type(x, jnp.uint32)


def _float(bits: Word) -> Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def _exponent(biased: int | Array) -> Word:
    """Return the bits of a power of two."""
    return jnp.asarray(biased, jnp.int32).astype(_U) << _U(23)


def _clipped(v: Array) -> Word:
    """Return the bits of v, within the normal numbers where it is above 0; 0 for NaN."""
    return jnp.where(v > 0, jnp.clip(_bits(v), _SMALLEST, _LARGEST), _U(0))
