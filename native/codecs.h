// Small forms of m and v: src/adamas/codecs.py, whose bits these are, and which says what they
// mean. A tile is decoded to scratch memory, stepped there and encoded again. Included by
// target.cpp only.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"
#include "kernels.h"

namespace adamas {
namespace {

// One tile as numbers, and what encoding it needs.
struct Scratch {
    alignas(64) float p[tile_size];
    alignas(64) float g[tile_size];
    alignas(64) float m[tile_size];
    alignas(64) float v[tile_size];
    alignas(64) float y[tile_size];  // m relative to the power of two in √v
    alignas(64) std::uint32_t random[tile_size];
    alignas(64) std::uint8_t bytes[tile_size];
};

inline float power_of_two(int exponent) {
    return float_of(static_cast<std::uint32_t>(127 + exponent) << 23);
}
inline std::int64_t blocks_of(std::int64_t count) { return (count + block_size - 1) / block_size; }

// -- random bits ---------------------------------------------------------------------------------

inline void draw(Key key, std::int64_t first, std::uint32_t* __restrict random,
                 std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        auto index = static_cast<std::uint64_t>(first + i);
        auto high = static_cast<std::uint32_t>(index >> 32);
        std::uint32_t x = static_cast<std::uint32_t>(index) + (key.k1 + high * 0x9e3779b1u);
        x ^= x >> 16;
        x *= 0x21f0aaadu;
        x ^= key.k2;
        x ^= x >> 15;
        x *= 0xd35a2d97u;
        x ^= x >> 15;
        random[i] = x;
    }
}

// -- the size of m beside v ----------------------------------------------------------------------

inline std::uint32_t root_scale_bits(float v) {
    return (((bits_of(v) + 0x00800000u) >> 1) & 0x7f800000u) + (63u << 23);
}

inline void relate(const float* __restrict m, const float* __restrict v, float* __restrict y,
                   std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        float relative = m[i] * float_of((254u << 23) - root_scale_bits(v[i]));
        y[i] = (m[i] == m[i]) & (v[i] != 0) ? relative : 0.0f;
    }
}

// The bits of v, within the normal numbers where it is above 0; 0 for NaN.
inline std::uint32_t clipped(float v) {
    std::uint32_t x = std::min(std::max(bits_of(v), 0x00800000u), 0x7f7fffffu);
    return v > 0 ? x : 0u;
}

// -- bfloat16 ------------------------------------------------------------------------------------

template <bool Stochastic>
inline void encode_bfloat16(const float* __restrict x, const std::uint32_t* __restrict random,
                            int shift, std::uint16_t* __restrict code, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        code[i] = Stochastic ? to_bfloat16_by_chance(x[i], (random[i] << shift) >> 16)
                             : to_bfloat16(x[i]);
    }
}

inline void decode_bfloat16(const std::uint16_t* __restrict code, float* __restrict x,
                            std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        x[i] = from_bfloat16(code[i]);
    }
}

// -- compact -------------------------------------------------------------------------------------

template <bool Stochastic>
inline void encode_squares_compact(const float* __restrict v,
                                   const std::uint32_t* __restrict random,
                                   std::uint16_t* __restrict code, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t x = clipped(v[i]);
        std::uint32_t addend = Stochastic ? random[i] >> 16 : 0x8000u;
        std::uint32_t rounded = std::min((x + addend) >> 16, 0x7f7fu);
        code[i] = static_cast<std::uint16_t>(x > 0 ? rounded : 0u);
    }
}

template <bool Stochastic>
inline void encode_means_compact(const float* __restrict y, const std::uint32_t* __restrict random,
                                 int top, std::uint8_t* __restrict code, std::int64_t count) {
    float most = power_of_two(top), smallest = power_of_two(top - 7);
    float units_of = power_of_two(27 - top);
    auto bias = static_cast<std::uint32_t>((119 + top) << 4);
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t addend = Stochastic ? random[i] & 0xffffu : 0x8000u;
        float size = std::abs(y[i]);
        size = size < most ? size : most;
        std::uint32_t floating = ((bits_of(size) + (addend << 3)) >> 19) - bias;
        float small = size < smallest ? size : smallest;
        std::uint32_t units =
            static_cast<std::uint32_t>(static_cast<std::int32_t>(small * units_of));
        std::uint32_t linear = (units + addend) >> 16;
        std::uint32_t magnitude = std::min(size < smallest ? linear : floating, 127u);
        code[i] = static_cast<std::uint8_t>(magnitude | (y[i] < 0 ? 128u : 0u));
    }
}

inline void decode_means_compact(const std::uint8_t* __restrict code, const float* __restrict v,
                                 int top, float* __restrict m, std::int64_t count) {
    float unit = power_of_two(top - 11);
    auto bias = static_cast<std::uint32_t>(119 + top) << 23;
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t size = code[i] & 127u;
        float linear = static_cast<float>(static_cast<std::int32_t>(size)) * unit;
        float y = size < 16 ? linear : float_of((size << 19) + bias);
        y = code[i] >= 128 ? -y : y;
        m[i] = y * float_of(root_scale_bits(v[i]));
    }
}

// -- 8bit ----------------------------------------------------------------------------------------

// What the codes of v are counted from.
inline std::uint32_t base_of(std::uint32_t highest, std::uint32_t finer) {
    auto counted = static_cast<std::int32_t>((highest + 1) << (finer + 1)) - 256;
    auto least = static_cast<std::int32_t>(8u << finer) - 1;
    return static_cast<std::uint32_t>(std::max(counted, least));
}

// Encodes one block of v; `v` becomes what its codes decode to. Returns K and L of the header.
// Signed integers throughout: of these, compilers know the largest and smallest of a vector.
template <bool Stochastic>
inline std::uint32_t encode_squares_8bit(float* __restrict v,
                                         const std::uint32_t* __restrict random,
                                         std::uint8_t* __restrict code) {
    constexpr std::int32_t none = 0x7fffffff;
    std::int32_t x[block_size], positive[block_size], k[block_size];
    for (int i = 0; i < block_size; ++i) {
        x[i] = static_cast<std::int32_t>(clipped(v[i]));
        positive[i] = x[i] > 0 ? x[i] : none;
    }
    std::int32_t most = 0, least = none;
    for (int i = 0; i < block_size; ++i) {
        most = x[i] > most ? x[i] : most;
    }
    for (int i = 0; i < block_size; ++i) {
        least = positive[i] < least ? positive[i] : least;
    }
    least = most > 0 ? least : 0;
    std::int32_t finer = 0;
    for (std::int32_t more = 1; more <= 3; ++more) {
        std::int32_t s = 20 - more;
        std::int32_t last = (most + ((1 << s) - 1)) >> s;
        finer = last - (least >> s) + (2 << more) <= 255 ? more : finer;
    }
    std::int32_t s = 20 - finer, most_k = (2040 << finer) - 1;
    std::uint32_t mask = (1u << s) - 1;
    std::int32_t half = 1 << (s - 1);
    for (int i = 0; i < block_size; ++i) {
        std::int32_t addend = Stochastic ? static_cast<std::int32_t>(random[i] >> 12 & mask) : half;
        std::int32_t rounded = (x[i] + addend) >> s;
        rounded = rounded < most_k ? rounded : most_k;
        k[i] = x[i] > 0 ? rounded : 0;
    }
    std::int32_t highest = 0;
    for (int i = 0; i < block_size; ++i) {
        highest = k[i] > highest ? k[i] : highest;
    }
    highest >>= finer + 1;
    auto base = static_cast<std::int32_t>(
        base_of(static_cast<std::uint32_t>(highest), static_cast<std::uint32_t>(finer)));
    for (int i = 0; i < block_size; ++i) {
        std::int32_t counted = k[i] - base;
        counted = counted > 1 ? counted : 1;
        counted = x[i] > 0 ? counted : 0;
        std::int32_t bits = (counted + base) << s;
        code[i] = static_cast<std::uint8_t>(counted);
        v[i] = std::bit_cast<float>(counted > 0 ? bits : 0);
    }
    return static_cast<std::uint32_t>(highest | finer << 10);
}

inline void decode_squares_8bit(const std::uint8_t* __restrict code, std::uint32_t header,
                                float* __restrict v) {
    std::uint32_t finer = header >> 10 & 3;
    std::uint32_t base = base_of(header & 1023, finer), shift = 20 - finer;
    for (int i = 0; i < block_size; ++i) {
        std::uint32_t counted = code[i];
        v[i] = float_of(counted > 0 ? (counted + base) << shift : 0u);
    }
}

// Encodes one block of m; returns its scale, in place in the header.
template <bool Stochastic>
inline std::uint32_t encode_means_8bit(const float* __restrict y,
                                       const std::uint32_t* __restrict random, int top,
                                       std::uint8_t* __restrict code) {
    std::int32_t most = 0;
    for (int i = 0; i < block_size; ++i) {
        auto size = static_cast<std::int32_t>(bits_of(y[i]) & 0x7fffffffu);
        most = size > most ? size : most;
    }
    int scale = ((most + 0x1ffff) >> 23) - 126;
    scale = std::min(std::max(scale, top - 15), top);
    float units_of = power_of_two(7 - scale);
    for (int i = 0; i < block_size; ++i) {
        float fraction =
            Stochastic
                ? static_cast<float>(static_cast<std::int32_t>(random[i] & 0xffffu)) * 0x1p-16f
                : 0.5f;
        float q = y[i] * units_of + (128.0f + fraction);
        q = q > 1.0f ? q : 1.0f;
        q = q < 255.0f ? q : 255.0f;
        code[i] = static_cast<std::uint8_t>(static_cast<std::int32_t>(q) - 128);
    }
    return static_cast<std::uint32_t>(top - scale) << 12;
}

inline void decode_means_8bit(const std::uint8_t* __restrict code, std::uint32_t header,
                              const float* __restrict v, int top, float* __restrict m) {
    float unit = power_of_two(top - 7 - static_cast<int>(header >> 12));
    for (int i = 0; i < block_size; ++i) {
        auto q = static_cast<float>(static_cast<std::int8_t>(code[i])) * unit;
        m[i] = q * float_of(root_scale_bits(v[i]));
    }
}

// -- tiles ---------------------------------------------------------------------------------------

template <class T>
inline T* at_element(void* array, std::int64_t at) {
    return static_cast<T*>(array) + at;
}

// Fills scratch with m and v of the tile that begins at element `at`.
inline void decode_tile(const Layout& layout, const Arrays& arrays, std::int64_t at,
                        std::int64_t count, Scratch& scratch) {
    const std::uint16_t* header =
        arrays.header == nullptr ? nullptr : arrays.header + at / block_size;
    auto load_bytes = [&](void* array) {
        std::memcpy(scratch.bytes, at_element<std::uint8_t>(array, at), count);
        std::memset(scratch.bytes + count, 0, blocks_of(count) * block_size - count);
    };
    if (layout.square) {
        if (layout.square_form == Form::plain) {
            std::memcpy(scratch.v, at_element<float>(arrays.v, at), count * sizeof(float));
        } else if (layout.square_form == Form::eight_bit) {
            load_bytes(arrays.v);
            for (std::int64_t b = 0; b < blocks_of(count); ++b) {
                decode_squares_8bit(scratch.bytes + b * block_size, header[b],
                                    scratch.v + b * block_size);
            }
        } else {
            decode_bfloat16(at_element<std::uint16_t>(arrays.v, at), scratch.v, count);
        }
    }
    if (!layout.mean) {
        return;
    }
    if (layout.mean_form == Form::plain) {
        std::memcpy(scratch.m, at_element<float>(arrays.m, at), count * sizeof(float));
    } else if (layout.mean_form == Form::bfloat16) {
        decode_bfloat16(at_element<std::uint16_t>(arrays.m, at), scratch.m, count);
    } else if (layout.mean_form == Form::compact) {
        decode_means_compact(at_element<std::uint8_t>(arrays.m, at), scratch.v, layout.top,
                             scratch.m, count);
    } else {
        load_bytes(arrays.m);
        for (std::int64_t i = count; i < blocks_of(count) * block_size; ++i) {
            scratch.v[i] = 0;
        }
        for (std::int64_t b = 0; b < blocks_of(count); ++b) {
            decode_means_8bit(scratch.bytes + b * block_size, header[b], scratch.v + b * block_size,
                              layout.top, scratch.m + b * block_size);
        }
    }
}

template <bool Stochastic>
void encode_tile(const Layout& layout, const Arrays& arrays, std::int64_t at, std::int64_t count,
                 Scratch& scratch) {
    std::uint16_t* header = arrays.header == nullptr ? nullptr : arrays.header + at / block_size;
    std::int64_t padded = blocks_of(count) * block_size;
    for (std::int64_t i = count; i < padded; ++i) {
        scratch.m[i] = scratch.v[i] = 0;
    }
    if (layout.square && layout.square_form == Form::eight_bit) {
        for (std::int64_t b = 0; b < padded / block_size; ++b) {
            std::int64_t i = b * block_size;
            header[b] = static_cast<std::uint16_t>(encode_squares_8bit<Stochastic>(
                scratch.v + i, scratch.random + i, scratch.bytes + i));
        }
        std::memcpy(at_element<std::uint8_t>(arrays.v, at), scratch.bytes, count);
    } else if (layout.square && layout.square_form == Form::plain) {
        std::memcpy(at_element<float>(arrays.v, at), scratch.v, count * sizeof(float));
    } else if (layout.square) {
        auto code = at_element<std::uint16_t>(arrays.v, at);
        if (layout.square_form == Form::compact) {
            encode_squares_compact<Stochastic>(scratch.v, scratch.random, code, count);
        } else {
            encode_bfloat16<Stochastic>(scratch.v, scratch.random, 0, code, count);
        }
        decode_bfloat16(code, scratch.v, count);
    }
    if (!layout.mean) {
        return;
    }
    if (layout.mean_form == Form::plain) {
        std::memcpy(at_element<float>(arrays.m, at), scratch.m, count * sizeof(float));
        return;
    }
    if (layout.mean_form == Form::bfloat16) {
        encode_bfloat16<Stochastic>(scratch.m, scratch.random, 16,
                                    at_element<std::uint16_t>(arrays.m, at), count);
        return;
    }
    relate(scratch.m, scratch.v, scratch.y, padded);
    if (layout.mean_form == Form::compact) {
        encode_means_compact<Stochastic>(scratch.y, scratch.random, layout.top,
                                         at_element<std::uint8_t>(arrays.m, at), count);
        return;
    }
    for (std::int64_t b = 0; b < padded / block_size; ++b) {
        std::int64_t i = b * block_size;
        std::uint32_t scale = encode_means_8bit<Stochastic>(scratch.y + i, scratch.random + i,
                                                            layout.top, scratch.bytes + i);
        std::uint32_t rest = layout.square_form == Form::eight_bit ? header[b] : 0u;
        header[b] = static_cast<std::uint16_t>(rest | scale);
    }
    std::memcpy(at_element<std::uint8_t>(arrays.m, at), scratch.bytes, count);
}

}  // namespace
}  // namespace adamas
