"""How values are stored in few bits: moments, parameters, and random bits to round with.

A codec encodes m and v of some elements to a few bytes and decodes them to float32. Between the
two everything is the rule's own arithmetic. All of it is integer arithmetic on bit patterns, or
multiplication by powers of two, so that every engine gives the same bits. What is said of m, v and
random bits is written for arrays of NumPy and of JAX alike, and what XLA makes of it has their
bits, though it takes subnormal numbers for 0. ``native/codecs.h`` and ``engines/triton/codecs.py``
repeat it for the compiled engines.

======== ==================== ==================================================================
name     bytes of m and v     stored
======== ==================== ==================================================================
bfloat16 4                    both as bfloat16
compact  3                    v as bfloat16; m as sign, 3 exponent and 4 mantissa bits, relative
                              to the power of two in √v: element-wise, no scales
8bit     2 + 2 / 32           v as logarithmic bytes, m as linear bytes relative to the power of
                              two in √v; a header for each block of 32 elements
======== ==================== ==================================================================

That m is stored relative to √v of the same element is what makes one byte enough: by the
inequality of Cauchy and Schwarz |m| ≤ C·√v (``mean_bound``), so the code cannot overflow, and
a small coordinate keeps its precision beside a large one.

Zero stays zero, and a v that is not zero never becomes zero, so no update explodes. A value above
the largest finite one is stored as the largest. NaN is not kept: it is stored as zero, so that the
other elements of its block stay as they are; the parameter it has reached is NaN already.

Parameters may be float16, or bfloat16, which NumPy lacks: an array of uint16 stands for its bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "HIGHEST_IN_HEADER",
    "HIGHEST_TOP",
    "LOWEST_TOP",
    "Bits",
    "Codes",
    "Key",
    "blocks",
    "decode",
    "decode_bfloat16",
    "decode_parameter",
    "decode_remainder",
    "decode_squares",
    "encode",
    "encode_bfloat16",
    "encode_float16",
    "encode_means",
    "encode_parameter",
    "encode_remainder",
    "encode_remainder8",
    "encode_squares",
    "finalised",
    "has_rows_of_blocks",
    "header_shape",
    "key_of",
    "mean_bound",
    "mean_top",
    "mixed",
    "random_bits",
    "random_bits_at",
    "random_bits_of_parameter",
    "reaching_top",
    "root_scale",
]

Array = Any
Float32 = NDArray[np.float32]  # or such an array of JAX
Bits = NDArray[np.uint32]

#: Elements that share a header of the 8bit codec.
BLOCK = 32

# What does not fit an int32 must say its dtype, as JAX takes plain numbers for that.
_SIGN = np.uint32(0x80000000)
_WORD = 0xFFFFFFFF
_DOUBLE_WORD = 0xFFFFFFFFFFFFFFFF
_SMALLEST = 0x00800000  # the smallest normal number
_LARGEST = 0x7F7FFFFF  # the largest finite number
#: The exponents that mean_top gives, since C is at least 1 (m is √v where all gradients are one);
#: of betas whose bound is beyond the largest, m is clipped.
LOWEST_TOP, HIGHEST_TOP = 2, 12
#: The largest of the 10 bits that headers keep of v: of the largest finite number.
HIGHEST_IN_HEADER = 1019


class Codes(NamedTuple):
    """m and v of some elements as they are stored; None where there is no such mean."""

    mean: Any
    square: Any
    #: One entry for each block, where either is 8bit.
    header: Any = None


# ── random bits ────────────────────────────────────────────────────────────────────────────────


class Key(NamedTuple):
    """Two words that make the random bits of one tensor at one step its own."""

    k1: int
    k2: int


def key_of(seed: int, step: int, tensor: int) -> Key:
    """Return the key for ``step`` of tensor number ``tensor``; all three are taken modulo 2^64.

    Each is mixed in by a round of splitmix64 (Steele, Lea & Flood 2014).
    """
    z = 0
    for number in (seed, step, tensor):
        z = mixed((z + number) & _DOUBLE_WORD)
    return Key(z & _WORD, z >> 32)


def random_bits(key: Key, first: int, count: int) -> Bits:
    """Return the bits of ``count`` elements, the first of which has index ``first`` in its tensor.

    They depend on key and index alone: not on how a tensor is cut for threads or processes.
    """
    return random_bits_at(key, np.arange(first, first + count, dtype=np.uint64))


def random_bits_at(key: Key, index: NDArray[np.uint64]) -> Bits:
    """Return the bits of the elements that stand at ``index`` in their tensor, flattened."""
    low, high = index.astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    return finalised(low + (np.uint32(key.k1) + high * np.uint32(0x9E3779B1)), np.uint32(key.k2))


def finalised(x: Bits, k2: Any) -> Bits:
    """Return the bits of elements: ``x``, which is written over, is their index plus ``k1``.

    That is so for the first 2^32 elements of a tensor.
    """
    x ^= x >> 16
    x *= np.uint32(0x21F0AAAD)
    x ^= k2
    x ^= x >> 15
    x *= np.uint32(0xD35A2D97)
    x ^= x >> 15
    return x


def random_bits_of_parameter(r: Bits) -> Bits:
    """Return the bits for rounding parameters, from those of the state.

    The high half is a stream of its own; the low half is not (the lowest bits are the same).
    """
    return r * np.uint32(0xC2B2AE3D)


def mixed(z: Any) -> Any:
    """Return a round of splitmix64 of a whole number of 64 bits."""
    z = (z + 0x9E3779B97F4A7C15) & _DOUBLE_WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _DOUBLE_WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _DOUBLE_WORD
    return z ^ (z >> 31)


# ── the size of m beside v ─────────────────────────────────────────────────────────────────────


def mean_bound(beta1: float, beta2: float) -> float:
    """Return C with |m| ≤ C·√v for any gradients, infinity where there is none.

    With the weights of both means, |m| = Σ(1-β1)β1^k·|g| and v = Σ(1-β2)β2^k·g², Cauchy-Schwarz
    gives C = (1-β1) / √((1-β2)(1-β1²/β2)).
    """
    if beta1 == 0:
        return 1 / math.sqrt(1 - beta2)
    if beta1 * beta1 >= beta2:
        return math.inf
    return (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1 * beta1 / beta2))


def mean_top(beta1: float, beta2: float) -> int:
    """Return the exponent T of the codes of m: they reach to 31/32·2^T, in units of root_scale.

    √v is less than twice its power of two, so 2C has to be reached: 4 at Adam's defaults.
    """
    bound = mean_bound(beta1, beta2)
    if not bound < 2.0**HIGHEST_TOP / 4:
        return HIGHEST_TOP
    return math.ceil(math.log2(2 * bound * 32 / 31))


def reaching_top(m: Float32, v: Float32, least: int) -> int:
    """Return the least exponent from ``least`` on whose codes reach every finite m.

    ``v`` is as it is read from its codes. It is ``least`` where both means had the decay rates that
    ``least`` was found for; a mean that had others may be larger beside v.
    """
    y = np.abs(_relative_mean(m, v))
    largest = float(np.max(y, initial=0.0, where=np.isfinite(y)))
    while least < HIGHEST_TOP and largest > 2.0**least * 31 / 32:
        least += 1
    return least


def root_scale(v: Float32) -> Float32:
    """Return the power of two in √v: 2^floor(log2 √v), and 2^-64 for 0."""
    return _float((((_bits(v) + _SMALLEST) >> 1) & 0x7F800000) + (63 << 23))


def _relative_mean(m: Float32, v: Float32) -> Float32:
    """Return m in units of root_scale(v), exact but for what is far below a code.

    Where m is NaN or v is 0 it is 0. Its sign is that of m, even if a device flushes it to +0.
    """
    xp = m.__array_namespace__()
    inverse = _float((254 << 23) - _bits(root_scale(v)))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        y = m * inverse
    y = _float(_bits(y) | _bits(m) & _SIGN)
    return xp.where((m != m) | (_bits(v) << 1 == 0), np.float32(0), y)


# ── bfloat16 ───────────────────────────────────────────────────────────────────────────────────


def encode_bfloat16(x: Float32, r: Bits | None) -> NDArray[np.uint16]:
    """Return bfloat16's bits: rounded by the high half of ``r``, or to nearest, ties to even.

    NaN becomes the quiet NaN. Stochastic rounding of a finite number stays finite.
    """
    xp = x.__array_namespace__()
    bits = _bits(x)
    if r is None:
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    else:
        size = bits & 0x7FFFFFFF
        most = xp.where(size <= _LARGEST, np.uint32(0x7F7F), np.uint32(0x7F80))
        rounded = xp.minimum((size + (r >> 16)) >> 16, most) | (bits & _SIGN) >> 16
    return xp.where(x != x, np.uint32(0x7FC0), rounded).astype(np.uint16)


def decode_bfloat16(code: NDArray[np.uint16]) -> Float32:
    """Return the values of bfloat16's bits."""
    return _float(code.astype(np.uint32) << 16)


# ── parameters in half precision ───────────────────────────────────────────────────────────────


def encode_parameter(
    p: Float32, like: NDArray[Any], rounding: str, r: Bits | None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return flat float32 parameters as they are stored, and their remainder or None.

    ``like`` has the dtype to store: float16, or uint16 for bfloat16's bits. ``rounding`` is that
    of ``Storage.parameter_rounding``; ``r`` are bits of the state, where it needs any.
    """
    if rounding == "remainder":
        return encode_remainder(p)
    mine = None if r is None or rounding == "nearest" else random_bits_of_parameter(r)
    if rounding == "remainder8":
        assert mine is not None
        return encode_remainder8(p, mine)
    encode_half = encode_float16 if like.dtype == np.float16 else encode_bfloat16
    return encode_half(p, mine), None


def decode_parameter(code: NDArray[Any], remainder: NDArray[Any] | None = None) -> NDArray[Any]:
    """Return a parameter or gradient in the dtype it is computed in: float32 or float64."""
    if remainder is not None:
        return decode_remainder(code, remainder)
    if code.dtype == np.uint16:
        return decode_bfloat16(code)
    return code.astype(np.float32) if code.dtype == np.float16 else code


def encode_float16(x: Float32, r: Bits | None) -> NDArray[np.float16]:
    """Return float16: rounded by the high half of ``r``, or to nearest, ties to even.

    Stochastic rounding of what is below 2^16 stays finite; from there it is infinite.
    """
    if r is None:
        with np.errstate(over="ignore", invalid="ignore"):
            nearest = x.astype(np.float16)
        return np.where(np.isnan(x), np.float16(np.nan), nearest)
    bits, addend = _bits(x), r >> np.uint32(16)
    sign, size = bits & np.uint32(0x80000000), bits & np.uint32(0x7FFFFFFF)
    floating = (size - np.uint32(112 << 23) + (addend >> np.uint32(3))) >> np.uint32(13)
    normal = np.minimum(floating, np.uint32(0x7BFF))
    small = np.where(size < np.uint32(113 << 23), np.abs(x), np.float32(0))
    units = (small * np.float32(2.0**40)).astype(np.int64).astype(np.uint32)
    code = np.where(size < np.uint32(113 << 23), (units + addend) >> np.uint32(16), normal)
    code = np.where(size >= np.uint32(143 << 23), np.uint32(0x7C00), code)
    code = np.where(np.isnan(x), np.uint32(0x7E00), code | sign >> np.uint32(16))
    return code.astype(np.uint16).view(np.float16)


def encode_remainder(p: Float32) -> tuple[NDArray[np.uint16], NDArray[np.int16]]:
    """Return a parameter as bfloat16's bits (ties away from zero) and what float32 has besides.

    Both together are exactly float32 (but for sign and payload of NaN); the former alone is what a
    model computes with.
    """
    bits = _bits(p)
    high = np.where(np.isnan(p), np.uint32(0x7FC0), (bits + np.uint32(0x8000)) >> np.uint32(16))
    low = (bits - (high << np.uint32(16))).astype(np.uint16).view(np.int16)
    return high.astype(np.uint16), np.where(np.isnan(p), np.int16(0), low)


def encode_remainder8(p: Float32, r: Bits) -> tuple[NDArray[np.uint16], NDArray[np.int8]]:
    """Return a parameter rounded to 24 bits by the high byte of ``r``, taken apart likewise.

    Rounding to nearest instead would lose every update below half of the last of the 24 bits.
    """
    bits = _bits(p)
    sign, size = bits & np.uint32(0x80000000), bits & np.uint32(0x7FFFFFFF)
    most = np.where(size <= _LARGEST, np.uint32(0x7F7FFF), np.uint32(0x7F8000))
    kept = np.minimum((size + (r >> np.uint32(24))) >> np.uint32(8), most) | sign >> np.uint32(8)
    high = (kept + np.uint32(0x80)) >> np.uint32(8)
    low = (kept - (high << np.uint32(8))).astype(np.uint8).view(np.int8)
    high = np.where(np.isnan(p), np.uint32(0x7FC0), high)
    return high.astype(np.uint16), np.where(np.isnan(p), np.int8(0), low)


def decode_remainder(high: NDArray[np.uint16], low: NDArray[Any]) -> Float32:
    """Return the float32 that ``encode_remainder`` or ``encode_remainder8`` took apart.

    Where 0 or infinity was assigned to a parameter, its remainder is of another number and both
    together may be none: then the remainder is 0.
    """
    unit = np.uint32(1 if low.dtype == np.int16 else 256)
    alone = high.astype(np.uint32) << np.uint32(16)
    both = alone + low.astype(np.int32).view(np.uint32) * unit
    is_nan = both & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000)
    return _float(np.where(is_nan, alone, both)).reshape(high.shape)


# ── m and v together ───────────────────────────────────────────────────────────────────────────


def header_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the header of an array, one entry for each block of 32 elements.

    Where rows are of whole blocks it is that of the array, with the last axis divided by 32.
    """
    if has_rows_of_blocks(shape):
        return (*shape[:-1], shape[-1] // BLOCK)
    return (-(-math.prod(shape) // BLOCK),)


def has_rows_of_blocks(shape: tuple[int, ...]) -> bool:
    """Return whether each block of an array's elements lies in one row along its last axis."""
    return len(shape) > 0 and shape[-1] % BLOCK == 0


def encode(
    forms: tuple[str, str], m: Float32 | None, v: Float32 | None, r: Bits | None, top: int
) -> Codes:
    """Return the codes of m and v (v ≥ 0), of their shape, rounded by ``r``, or to nearest.

    ``forms`` are the names of the codecs of m and of v, ``top`` is ``mean_top``. v takes the
    high bits of ``r``, m the low half. With 8bit, the first element begins a block of its tensor,
    flattened; the header has the shape ``header_shape`` of that of m and v.
    """
    mean_form, square_form = forms
    square = header = None
    v_decoded = v
    if v is not None:
        square, header = encode_squares(square_form, v, r)
        v_decoded = decode_squares(square_form, square, header)
    mean = m
    if m is not None:
        mean, scale = encode_means(mean_form, m, v_decoded, r, top)
        if scale is not None:
            header = scale if header is None else header | scale
    return Codes(mean, square, header)


def encode_squares(form: str, v: Float32, r: Bits | None) -> tuple[Any, Any]:
    """Return the codes of v in one form, and what headers keep of it or None."""
    if form == "8bit":
        return _encode_squares_8bit(v, r)
    if form == "float32":
        return v, None
    return (_encode_squares_compact if form == "compact" else encode_bfloat16)(v, r), None


def decode_squares(form: str, codes: Any, header: Any) -> Float32:
    """Return v as it is read from its codes."""
    if form == "8bit":
        return _decode_squares_8bit(codes, header)
    return codes if form == "float32" else decode_bfloat16(codes)


def encode_means(
    form: str, m: Float32, v: Float32 | None, r: Bits | None, top: int
) -> tuple[Any, Any]:
    """Return the codes of m in one form, and what headers keep of it or None.

    ``v`` is as it is read from its codes.
    """
    if form == "float32":
        return m, None
    if form == "bfloat16":
        return encode_bfloat16(m, None if r is None else r << np.uint32(16)), None
    assert v is not None
    y = _relative_mean(m, v)
    if form == "compact":
        return _encode_means_compact(y, r, top), None
    return _encode_means_8bit(y, r, top)


def decode(forms: tuple[str, str], codes: Codes, top: Any) -> tuple[Any, Any]:
    """Return m and v, float32, for what ``encode`` returned; None where it is None.

    ``top`` is an int, or an array of int32.
    """
    mean_form, square_form = forms
    top = np.int32(top) if isinstance(top, int) else top
    v = codes.square
    if v is not None:
        v = decode_squares(square_form, v, codes.header)
    m = codes.mean
    if m is not None and mean_form == "bfloat16":
        m = decode_bfloat16(m)
    elif m is not None and mean_form in ("compact", "8bit"):
        assert v is not None
        if mean_form == "compact":
            y = _decode_means_compact(m, top)
        else:
            assert codes.header is not None
            y = _decode_means_8bit(m, codes.header, top)
        m = y * root_scale(v)
    return m, v


# ── compact ────────────────────────────────────────────────────────────────────────────────────


def _encode_squares_compact(v: Float32, r: Bits | None) -> NDArray[np.uint16]:
    xp = v.__array_namespace__()
    x = _clipped(v)
    code = xp.minimum((x + (0x8000 if r is None else r >> 16)) >> 16, 0x7F7F)
    return xp.where(x > 0, code, np.uint32(0)).astype(np.uint16)


def _encode_means_compact(y: Float32, r: Bits | None, top: int) -> NDArray[np.uint8]:
    xp = y.__array_namespace__()
    addend = 0x8000 if r is None else r & 0xFFFF
    size = xp.minimum(xp.abs(y), np.float32(2.0**top))
    # From 2^(top - 7) the code is that of a float with 4 mantissa bits, below it is linear.
    floating = ((_bits(size) + (addend << 3)) >> 19) - ((119 + top) << 4)
    units = (size * np.float32(2.0 ** (27 - top))).astype(np.int32).astype(np.uint32)
    linear = (units + addend) >> 16
    code = xp.where(size < np.float32(2.0 ** (top - 7)), linear, floating)
    return (xp.minimum(code, 127) | _bits(y) >> 31 << 7).astype(np.uint8)


def _decode_means_compact(code: NDArray[Any], top: Any) -> Float32:
    xp = code.__array_namespace__()
    size = (code & 127).astype(np.uint32)
    floating = _float((size << 19) + _bits(_power_of_two(top - 8)))
    linear = size.astype(np.float32) * _power_of_two(top - 11)
    y = xp.where(size < 16, linear, floating)
    return xp.where(code >= 128, -y, y)


# ── 8bit ───────────────────────────────────────────────────────────────────────────────────────


def _encode_squares_8bit(
    v: Float32, r: Bits | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return the codes of v, and K and L of the headers."""
    xp = v.__array_namespace__()
    x = blocks(_clipped(v))
    # As many mantissa bits as the range of the block allows.
    most = x.max(axis=-1)
    least = xp.where(x > 0, x, np.uint32(_WORD)).min(axis=-1)
    least = xp.where(most > 0, least, np.uint32(0))
    more = xp.arange(4, dtype=np.uint32)
    s = 20 - more
    last = (most[..., None] + ((1 << s) - 1)) >> s
    fits = last - (least[..., None] >> s) + (2 << more) <= 255
    finer = xp.where(fits, more, np.uint32(0)).max(axis=-1)
    s = 20 - finer[..., None]
    addend = 1 << (s - 1) if r is None else blocks(r) >> 12 & ((1 << s) - 1)
    k = xp.minimum((x + addend) >> s, (2040 << finer[..., None]) - 1)
    k = xp.where(x > 0, k, np.uint32(0))
    highest = k.max(axis=-1) >> (finer + 1)
    code = xp.maximum(k.astype(np.int32) - _base(highest, finer)[..., None], 1)
    code = xp.where(x > 0, code, np.int32(0)).astype(np.uint8)
    return _unblocked(code, v.shape), (highest | finer << 10).astype(np.uint16)


def _decode_squares_8bit(code: NDArray[Any], header: NDArray[np.uint16]) -> Float32:
    xp = code.__array_namespace__()
    bits = header.astype(np.uint32)
    finer = bits >> 10 & 3
    counted = blocks(code).astype(np.int32)
    base = _base(bits & 1023, finer)[..., None]
    values = (counted + base).astype(np.uint32) << (20 - finer[..., None])
    return _unblocked(_float(xp.where(counted > 0, values, np.uint32(0))), code.shape)


def _encode_means_8bit(
    y: Float32, r: Bits | None, top: int
) -> tuple[NDArray[np.int8], NDArray[np.uint16]]:
    """Return the codes of m, and the scales of the headers."""
    xp = y.__array_namespace__()
    rows = blocks(y)
    largest = (_bits(rows) & 0x7FFFFFFF).max(axis=-1)
    scale = xp.clip(((largest + 0x1FFFF) >> 23).astype(np.int32) - 126, top - 15, top)
    fraction = np.float32(0.5)
    if r is not None:
        fraction = (blocks(r) & 0xFFFF).astype(np.float32) * np.float32(2.0**-16)
    with np.errstate(over="ignore"):
        q = rows * _power_of_two(7 - scale)[..., None] + (np.float32(128) + fraction)
    code = xp.clip(q, np.float32(1), np.float32(255)).astype(np.int32) - 128
    return _unblocked(code.astype(np.int8), y.shape), ((top - scale) << 12).astype(np.uint16)


def _decode_means_8bit(code: NDArray[Any], header: NDArray[np.uint16], top: Any) -> Float32:
    unit = _power_of_two(top - 7 - (header >> 12).astype(np.int32))
    return _unblocked(blocks(code).astype(np.float32) * unit[..., None], code.shape)


def _base(highest: Array, finer: Array) -> NDArray[np.int32]:
    """Return what the codes of v are counted from in each block."""
    high, more = highest.astype(np.int32), finer.astype(np.int32)
    base = ((high + 1) << (more + 1)) - 256
    return base.__array_namespace__().maximum(base, (8 << more) - 1)


def blocks(x: NDArray[Any]) -> NDArray[Any]:
    """Return ``x`` with blocks along a new last axis; the last block is filled up with zeros."""
    if has_rows_of_blocks(x.shape):
        return x.reshape(*x.shape[:-1], x.shape[-1] // BLOCK, BLOCK)
    flat, missing = x.ravel(), -x.size % BLOCK
    if missing:
        flat = x.__array_namespace__().pad(flat, (0, missing))
    return flat.reshape(-1, BLOCK)


def _unblocked(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if has_rows_of_blocks(shape):
        return rows.reshape(shape)
    return rows.ravel()[: math.prod(shape)].reshape(shape)


# ── bit patterns ───────────────────────────────────────────────────────────────────────────────


def _bits(x: Array) -> Array:
    return x.view(np.uint32)


def _float(bits: Array) -> Array:
    return bits.view(np.float32)


def _power_of_two(exponent: Array) -> Float32:
    """Return 2^exponent for an array of int32, where that is a normal number."""
    return _float((exponent + 127).astype(np.uint32) << 23)


def _clipped(v: Float32) -> Bits:
    """Return the bits of v, within the normal numbers where it is above 0; 0 for NaN."""
    xp, bits = v.__array_namespace__(), _bits(v)
    # In integers: for XLA a subnormal number is not above 0.
    is_positive = bits - 1 < 0x7F800000
    return xp.where(is_positive, xp.clip(bits, _SMALLEST, _LARGEST), np.uint32(0))
