"""Small forms of m, v and parameters for Triton: ``adamas.codecs``, whose bits these are.

Functions take and return one-dimensional blocks of elements. With 8bit, each run of 32 elements of
a block is a block of the codec. Codes are handled as the unsigned or signed integers that
``adamas.codecs`` stores. ``top`` is ``adamas.codecs.mean_top``, a scalar.
"""

from __future__ import annotations

import triton
import triton.language as tl

from adamas.codecs import BLOCK

__all__ = [
    "decode_bfloat16",
    "decode_means_8bit",
    "decode_means_compact",
    "decode_remainder",
    "decode_squares_8bit",
    "encode_bfloat16",
    "encode_float16",
    "encode_means_8bit",
    "encode_means_compact",
    "encode_remainder",
    "encode_remainder8",
    "encode_squares_8bit",
    "encode_squares_compact",
    "key_of",
    "random_bits",
    "random_bits_at",
    "random_bits_of_parameter",
    "relative_mean",
    "root_scale",
]

_BLOCK: tl.constexpr = tl.constexpr(BLOCK)
_SMALLEST: tl.constexpr = tl.constexpr(0x00800000)  # the smallest normal number
_LARGEST: tl.constexpr = tl.constexpr(0x7F7FFFFF)  # the largest finite number


# ── bit patterns ───────────────────────────────────────────────────────────────────────────────


@triton.jit
def word(high: tl.constexpr, low: tl.constexpr):
    """Return an unsigned 32-bit number given by its halves.

    Triton takes integers from 2^31 on for 64 bits wide in some versions.
    """
    return (tl.cast(high, tl.uint32) << 16) | tl.cast(low, tl.uint32)


@triton.jit
def double_word(a: tl.constexpr, b: tl.constexpr, c: tl.constexpr, d: tl.constexpr):
    """Return an unsigned 64-bit number given by its four parts of 16 bits."""
    return (word(a, b).to(tl.uint64) << 32) | word(c, d).to(tl.uint64)


@triton.jit
def bits_of(x):
    """Return the bit pattern of float32, unsigned."""
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def float_of(bits):
    """Return the float32 of a bit pattern."""
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def power_of_two(exponent):
    """Return 2^exponent as float32, for the exponents of normal numbers."""
    return ((exponent + 127) << 23).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def is_nan(x):
    """Return where ``x`` is not a number."""
    return x != x


# ── random bits ────────────────────────────────────────────────────────────────────────────────


@triton.jit
def key_of(seed, step, tensor):
    """Return the key of a tensor at a step as one number: k1 its low word, k2 the high one."""
    z = mixed(seed)
    z = mixed(z + step)
    return mixed(z + tensor)


@triton.jit
def mixed(z):
    """Return a round of splitmix64."""
    z = z + double_word(0x9E37, 0x79B9, 0x7F4A, 0x7C15)
    z = (z ^ (z >> 30)) * double_word(0xBF58, 0x476D, 0x1CE4, 0xE5B9)
    z = (z ^ (z >> 27)) * double_word(0x94D0, 0x49BB, 0x1331, 0x11EB)
    return z ^ (z >> 31)


@triton.jit
def random_bits(key, first, offset):
    """Return the bits of the elements ``first`` (64 bits) plus ``offset`` (32 bits, a block)."""
    start = first.to(tl.uint32)
    low = start + offset.to(tl.uint32)
    high = (first >> 32).to(tl.uint32) + (low < start).to(tl.uint32)
    return bits_of_index(key, low, high)


@triton.jit
def random_bits_at(key, index):
    """Return the bits of the elements with these numbers (64 bits, a block)."""
    return bits_of_index(key, index.to(tl.uint32), (index >> 32).to(tl.uint32))


@triton.jit
def bits_of_index(key, low, high):
    """Return the bits of elements whose numbers have these halves."""
    x = low + (key.to(tl.uint32) + high * word(0x9E37, 0x79B1))
    x = x ^ (x >> 16)
    x = x * word(0x21F0, 0xAAAD)
    x = x ^ (key >> 32).to(tl.uint32)
    x = x ^ (x >> 15)
    x = x * word(0xD35A, 0x2D97)
    return x ^ (x >> 15)


@triton.jit
def random_bits_of_parameter(r):
    """Return the bits for rounding parameters, from those of the state."""
    return r * word(0xC2B2, 0xAE3D)


# ── the size of m beside v ─────────────────────────────────────────────────────────────────────


@triton.jit
def root_scale(v):
    """Return the bits of the power of two in √v: 2^floor(log2 √v), and 2^-64 for 0."""
    return (((bits_of(v) + _SMALLEST) >> 1) & 0x7F800000) + (63 << 23)


@triton.jit
def relative_mean(m, v):
    """Return m in units of root_scale(v), and 0 where m is NaN or v is 0."""
    inverse = float_of(word(0x7F00, 0) - root_scale(v))  # 254 << 23
    y = m * inverse
    return tl.where(is_nan(m) | (v == 0), 0.0, y)


# ── half precision ─────────────────────────────────────────────────────────────────────────────


@triton.jit
def encode_bfloat16(x, r):
    """Return bfloat16's bits in the low half: rounded by the high half of ``r``, or to nearest."""
    bits = bits_of(x)
    if r is None:
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    else:
        size = bits & 0x7FFFFFFF
        most = tl.where(size <= _LARGEST, 0x7F7F, 0x7F80).to(tl.uint32)
        rounded = tl.minimum((size + (r >> 16)) >> 16, most)
        rounded = rounded | ((bits >> 31) << 15)
    return tl.where(is_nan(x), 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def decode_bfloat16(code):
    """Return the values of bfloat16's bits."""
    return float_of(code.to(tl.uint32) << 16)


@triton.jit
def encode_float16(x, r):
    """Return float16's bits: rounded by the high half of ``r``, or to nearest."""
    bits = bits_of(x)
    if r is None:
        code = x.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)
    else:
        addend = r >> 16
        size = bits & 0x7FFFFFFF
        floating = ((size - (112 << 23)) + (addend >> 3)) >> 13
        normal = tl.minimum(floating, tl.full(floating.shape, 0x7BFF, tl.uint32))
        is_small = size < (113 << 23)
        small = tl.where(is_small, tl.abs(x), 0.0)
        units = (small * 1099511627776.0).to(tl.int32).to(tl.uint32)  # 2^40
        code = tl.where(is_small, (units + addend) >> 16, normal)
        code = tl.where(size >= (143 << 23), 0x7C00, code).to(tl.uint32)
        code = code | ((bits >> 31) << 15)
    return tl.where(is_nan(x), 0x7E00, code).to(tl.uint16)


@triton.jit
def encode_remainder(p):
    """Return bfloat16's bits of a parameter, ties away from zero, and what float32 has besides."""
    bits = bits_of(p)
    high = tl.where(is_nan(p), 0x7FC0, (bits + 0x8000) >> 16).to(tl.uint32)
    low = tl.where(is_nan(p), 0, bits - (high << 16)).to(tl.uint32)
    return high.to(tl.uint16), low.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def encode_remainder8(p, r):
    """Return a parameter rounded to 24 bits by the high byte of ``r``, taken apart likewise."""
    bits = bits_of(p)
    size = bits & 0x7FFFFFFF
    most = tl.where(size <= _LARGEST, 0x7F7FFF, 0x7F8000).to(tl.uint32)
    kept = tl.minimum((size + (r >> 24)) >> 8, most) | ((bits >> 31) << 23)
    high = (kept + 0x80) >> 8
    low = tl.where(is_nan(p), 0, kept - (high << 8)).to(tl.uint32)
    high = tl.where(is_nan(p), 0x7FC0, high).to(tl.uint32)
    return high.to(tl.uint16), low.to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def decode_remainder(high, low):
    """Return the float32 that either of the two took apart; the width of ``low`` says which.

    ``high`` alone where a remainder of another number would make it NaN.
    """
    unit: tl.constexpr = 1 if low.dtype == tl.int16 else 256
    alone = high.to(tl.uint32) << 16
    both = alone + (low.to(tl.int32) * unit).to(tl.uint32, bitcast=True)
    return float_of(tl.where((both & 0x7FFFFFFF) > 0x7F800000, alone, both))


# ── compact ────────────────────────────────────────────────────────────────────────────────────


@triton.jit
def encode_squares_compact(v, r):
    """Return bfloat16's bits of v: rounded by the high half of ``r``, or half up."""
    x = clipped(v)
    code = (x + half_addend(r, x)) >> 16
    code = tl.minimum(code, tl.full(code.shape, 0x7F7F, tl.uint32))
    return tl.where(x > 0, code, 0).to(tl.uint16)


@triton.jit
def encode_means_compact(y, r, top):
    """Return bytes of y, the relative mean: rounded by the low half of ``r``, or half up."""
    if r is None:
        addend = tl.full(y.shape, 0x8000, tl.uint32)
    else:
        addend = r & 0xFFFF
    size = tl.minimum(tl.abs(y), power_of_two(top))
    # From 2^(top - 7) the code is that of a float with 4 mantissa bits, below it is linear.
    floating = ((bits_of(size) + (addend << 3)) >> 19) - ((119 + top) << 4).to(tl.uint32)
    units = (size * power_of_two(27 - top)).to(tl.int32).to(tl.uint32)
    linear = (units + addend) >> 16
    code = tl.where(size < power_of_two(top - 7), linear, floating)
    code = tl.minimum(code, tl.full(code.shape, 127, tl.uint32))
    return (code | ((bits_of(y) >> 31) << 7)).to(tl.uint8)


@triton.jit
def decode_means_compact(code, top):
    """Return the relative mean of its bytes."""
    size = code.to(tl.uint32) & 127
    floating = float_of((size << 19) + ((119 + top) << 23).to(tl.uint32))
    linear = size.to(tl.float32) * power_of_two(top - 11)
    y = tl.where(size < 16, linear, floating)
    return tl.where(code.to(tl.uint32) >= 128, -y, y)


# ── 8bit ───────────────────────────────────────────────────────────────────────────────────────


@triton.jit
def encode_squares_8bit(v, r):
    """Return bytes of v, and K and L of the headers, one for each 32 elements."""
    blocks: tl.constexpr = v.shape[0] // _BLOCK
    x = clipped(v).to(tl.int32).reshape(blocks, _BLOCK)
    most = tl.max(x, axis=1)
    least = tl.min(tl.where(x > 0, x, 0x7FFFFFFF), axis=1)
    least = tl.where(most > 0, least, 0)
    finer = tl.zeros_like(most)
    # As many mantissa bits as the range of the block allows.
    for more in tl.static_range(1, 4):
        last = (most + ((1 << (20 - more)) - 1)) >> (20 - more)
        fits = last - (least >> (20 - more)) + (2 << more) <= 255
        finer = tl.where(fits, more, finer)
    s = (20 - finer)[:, None]
    one = tl.full(s.shape, 1, tl.int32)
    if r is None:
        addend = one << (s - 1)
    else:
        addend = (r >> 12).to(tl.int32).reshape(blocks, _BLOCK) & ((one << s) - 1)
    k = tl.minimum((x + addend) >> s, ((2040 * one) << finer[:, None]) - 1)
    k = tl.where(x > 0, k, 0)
    highest = tl.max(k, axis=1) >> (finer + 1)
    code = tl.maximum(k - base_of(highest, finer)[:, None], 1)
    code = tl.where(x > 0, code, 0)
    return code.reshape(v.shape[0]).to(tl.uint8), highest | (finer << 10)


@triton.jit
def decode_squares_8bit(code, header):
    """Return v of its bytes and headers."""
    blocks: tl.constexpr = code.shape[0] // _BLOCK
    finer = (header >> 10) & 3
    counted = code.to(tl.int32).reshape(blocks, _BLOCK)
    values = (counted + base_of(header & 1023, finer)[:, None]) << (20 - finer)[:, None]
    return float_of(tl.where(counted > 0, values, 0).reshape(code.shape[0]))


@triton.jit
def encode_means_8bit(y, r, top):
    """Return bytes of y, the relative mean, and the scales of the headers."""
    blocks: tl.constexpr = y.shape[0] // _BLOCK
    most = tl.max(bits_of(tl.abs(y)).to(tl.int32).reshape(blocks, _BLOCK), axis=1)
    scale = ((most + 0x1FFFF) >> 23) - 126
    scale = tl.minimum(tl.maximum(scale, top - 15), top)
    if r is None:
        fraction = tl.full(y.shape, 0.5, tl.float32)
    else:
        fraction = (r & 0xFFFF).to(tl.float32) * 0.0000152587890625  # 2^-16
    unit = tl.broadcast_to(power_of_two(7 - scale)[:, None], (blocks, _BLOCK)).reshape(y.shape[0])
    q = y * unit + (128.0 + fraction)
    code = tl.minimum(tl.maximum(q, 1.0), 255.0).to(tl.int32) - 128
    return code.to(tl.int8), (top - scale) << 12


@triton.jit
def decode_means_8bit(code, header, top):
    """Return the relative mean of its bytes and headers."""
    blocks: tl.constexpr = code.shape[0] // _BLOCK
    unit = power_of_two(top - 7 - (header >> 12))[:, None]
    return (code.to(tl.float32).reshape(blocks, _BLOCK) * unit).reshape(code.shape[0])


@triton.jit
def base_of(highest, finer):
    """Return what the codes of v are counted from in each block."""
    one = tl.full(highest.shape, 1, tl.int32)
    return tl.maximum(((highest + 1) << (finer + 1)) - 256, ((8 * one) << finer) - 1)


@triton.jit
def clipped(v):
    """Return the bits of v, within the normal numbers where it is above 0; 0 for NaN."""
    x = tl.minimum(tl.maximum(bits_of(v).to(tl.int32), _SMALLEST), _LARGEST)
    return tl.where(v > 0, x, 0).to(tl.uint32)


@triton.jit
def half_addend(r, like):
    """Return what is added to round off 16 bits: the high half of ``r``, or a half."""
    if r is None:
        return tl.full(like.shape, 0x8000, tl.uint32)
    else:
        return r >> 16
