// Half precision: copies of parameters, and parameters and gradients themselves, whose bits are
// those of src/adamas/codecs.py. Included by target.cpp only.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels.h"

namespace adamas {
namespace {

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }

// -- to nearest, ties to even --------------------------------------------------------------------

inline std::uint16_t to_bfloat16(float x) {
    std::uint32_t bits = bits_of(x);
    std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded);
}

inline std::uint16_t to_float16(float x) {
    constexpr std::uint32_t overflow = 143u << 23;     // 2^16: infinity from here
    constexpr std::uint32_t subnormal = 113u << 23;    // 2^-14: fixed point below
    constexpr std::uint32_t fixed_point = 126u << 23;  // adding 0.5 shifts by the right amount
    std::uint32_t bits = bits_of(x);
    std::uint32_t sign = bits >> 16 & 0x8000;
    std::uint32_t size = bits & 0x7fffffff;
    float shifted = float_of(size) + float_of(fixed_point);
    std::uint32_t small = bits_of(shifted) - fixed_point;
    std::uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    std::uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    std::uint32_t magnitude = size >= overflow ? large : size < subnormal ? small : normal;
    return static_cast<std::uint16_t>(sign | magnitude);
}

// Writes the code of an element; with `Compared` also its difference from the code before.
template <bool Compared>
inline void put_code(std::uint16_t& code, std::uint32_t given,
                     std::uint16_t* __restrict differences, std::int64_t i) {
    auto now = static_cast<std::uint16_t>(given);
    if constexpr (Compared) {
        differences[i] = now ^ code;
    }
    code = now;
}

template <bool Compared, class T>
inline void write_nearest(DType type, std::uint16_t* __restrict copy, const T* __restrict p,
                          std::uint16_t* __restrict differences, std::int64_t count) {
    if (type == DType::bfloat16) {
        for (std::int64_t i = 0; i < count; ++i) {
            put_code<Compared>(copy[i], to_bfloat16(static_cast<float>(p[i])), differences, i);
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            put_code<Compared>(copy[i], to_float16(static_cast<float>(p[i])), differences, i);
        }
    }
}

// Writes codes, and their differences from those before where these are wanted: not null.
template <class T>
inline void write_copy(DType type, std::uint16_t* copy, const T* p, std::uint16_t* differences,
                       std::int64_t count) {
    if (differences == nullptr) {
        write_nearest<false>(type, copy, p, differences, count);
    } else {
        write_nearest<true>(type, copy, p, differences, count);
    }
}

// -- stochastic rounding: the addend has 16 random bits ------------------------------------------

inline std::uint16_t to_bfloat16_by_chance(float x, std::uint32_t addend) {
    std::uint32_t bits = bits_of(x);
    std::uint32_t size = bits & 0x7fffffffu;
    std::uint32_t most = size <= 0x7f7fffffu ? 0x7f7fu : 0x7f80u;
    std::uint32_t rounded = std::min((size + addend) >> 16, most) | (bits & 0x80000000u) >> 16;
    return static_cast<std::uint16_t>(x != x ? 0x7fc0u : rounded);
}

inline std::uint16_t to_float16_by_chance(float x, std::uint32_t addend) {
    std::uint32_t bits = bits_of(x);
    std::uint32_t size = bits & 0x7fffffffu;
    std::uint32_t normal = std::min((size - (112u << 23) + (addend >> 3)) >> 13, 0x7bffu);
    bool is_small = size < 113u << 23;
    float fixed = (is_small ? float_of(size) : 0.0f) * 0x1p40f;
    std::uint32_t units = static_cast<std::uint32_t>(static_cast<std::int32_t>(fixed));
    std::uint32_t rounded = is_small ? (units + addend) >> 16 : normal;
    rounded = size >= 143u << 23 ? 0x7c00u : rounded;
    return static_cast<std::uint16_t>(x != x ? 0x7e00u : rounded | (bits & 0x80000000u) >> 16);
}

// -- parameters and gradients --------------------------------------------------------------------

inline float from_bfloat16(std::uint16_t code) {
    return float_of(static_cast<std::uint32_t>(code) << 16);
}

inline float from_float16(std::uint16_t code) {
    std::uint32_t size = code & 0x7fffu;
    float subnormal = static_cast<float>(static_cast<std::int32_t>(size)) * 0x1p-24f;
    float finite = size < 0x0400u ? subnormal : float_of((size << 13) + (112u << 23));
    std::uint32_t bits = size >= 0x7c00u ? (size << 13) | 0x7f800000u : bits_of(finite);
    return float_of(bits | (code & 0x8000u) << 16);
}

inline void decode_half(DType dtype, const std::uint16_t* __restrict code, float* __restrict x,
                        std::int64_t count) {
    if (dtype == DType::bfloat16) {
        for (std::int64_t i = 0; i < count; ++i) {
            x[i] = from_bfloat16(code[i]);
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            x[i] = from_float16(code[i]);
        }
    }
}

// A remainder of another number, over which 0 or infinity was assigned, counts as 0 where both
// together would be NaN.
template <class Remainder>
inline void join_remainder(const std::uint16_t* __restrict code, const Remainder* __restrict rest,
                           float* __restrict x, std::int64_t count) {
    constexpr std::uint32_t unit = sizeof(Remainder) == 2 ? 1 : 256;
    for (std::int64_t i = 0; i < count; ++i) {
        auto low = static_cast<std::uint32_t>(static_cast<std::int32_t>(rest[i])) * unit;
        std::uint32_t alone = static_cast<std::uint32_t>(code[i]) << 16;
        std::uint32_t both = alone + low;
        x[i] = float_of((both & 0x7fffffffu) > 0x7f800000u ? alone : both);
    }
}

// The bits for rounding parameters, from those of the state.
inline std::uint32_t random_bits_of_parameter(std::uint32_t r) { return r * 0xc2b2ae3du; }

inline void split_remainder(const float* __restrict x, std::uint16_t* __restrict code,
                            std::int16_t* __restrict rest, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits = bits_of(x[i]);
        bool is_nan = x[i] != x[i];
        std::uint32_t high = is_nan ? 0x7fc0u : (bits + 0x8000u) >> 16;
        code[i] = static_cast<std::uint16_t>(high);
        rest[i] = static_cast<std::int16_t>(is_nan ? 0u : bits - (high << 16));
    }
}

// Puts codes in the place of others, and leaves the differences in their own.
inline void exchange(std::uint16_t* __restrict code, std::uint16_t* __restrict codes,
                     std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint16_t now = codes[i];
        codes[i] = now ^ code[i];
        code[i] = now;
    }
}

template <bool Compared>
inline void split_remainder8(const float* __restrict x, const std::uint32_t* __restrict random,
                             std::uint16_t* __restrict code, std::int8_t* __restrict rest,
                             std::uint16_t* __restrict differences, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::uint32_t bits = bits_of(x[i]);
        std::uint32_t size = bits & 0x7fffffffu;
        std::uint32_t most = size <= 0x7f7fffffu ? 0x7f7fffu : 0x7f8000u;
        std::uint32_t addend = random_bits_of_parameter(random[i]) >> 24;
        std::uint32_t kept = std::min((size + addend) >> 8, most) | (bits & 0x80000000u) >> 8;
        std::uint32_t high = (kept + 0x80u) >> 8;
        bool is_nan = x[i] != x[i];
        put_code<Compared>(code[i], is_nan ? 0x7fc0u : high, differences, i);
        rest[i] = static_cast<std::int8_t>(is_nan ? 0u : kept - (high << 8));
    }
}

template <bool Compared>
inline void encode_as(const Layout& layout, const Arrays& arrays, std::int64_t at,
                      const float* __restrict x, const std::uint32_t* __restrict random,
                      std::uint16_t* __restrict differences, std::int64_t count) {
    std::uint16_t* __restrict code = static_cast<std::uint16_t*>(arrays.p) + at;
    if (layout.rounding == Rounding::remainder) {
        auto rest = static_cast<std::int16_t*>(arrays.remainder) + at;
        // Together in one loop this takes longer.
        split_remainder(x, Compared ? differences : code, rest, count);
        if constexpr (Compared) {
            exchange(code, differences, count);
        }
    } else if (layout.rounding == Rounding::remainder8) {
        auto rest = static_cast<std::int8_t*>(arrays.remainder) + at;
        split_remainder8<Compared>(x, random, code, rest, differences, count);
    } else if (layout.rounding == Rounding::nearest) {
        write_nearest<Compared>(layout.dtype, code, x, differences, count);
    } else if (layout.dtype == DType::bfloat16) {
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint32_t addend = random_bits_of_parameter(random[i]) >> 16;
            put_code<Compared>(code[i], to_bfloat16_by_chance(x[i], addend), differences, i);
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            std::uint32_t addend = random_bits_of_parameter(random[i]) >> 16;
            put_code<Compared>(code[i], to_float16_by_chance(x[i], addend), differences, i);
        }
    }
}

// Writes float32 parameters from element `at` on as they are stored, and the differences of their
// codes where these are not null.
inline void encode_parameters(const Layout& layout, const Arrays& arrays, std::int64_t at,
                              const float* x, const std::uint32_t* random,
                              std::uint16_t* differences, std::int64_t count) {
    if (differences == nullptr) {
        encode_as<false>(layout, arrays, at, x, random, differences, count);
    } else {
        encode_as<true>(layout, arrays, at, x, random, differences, count);
    }
}

inline void decode_parameters(const Layout& layout, const Arrays& arrays, std::int64_t at,
                              float* __restrict x, std::int64_t count) {
    const std::uint16_t* code = static_cast<const std::uint16_t*>(arrays.p) + at;
    if (layout.rounding == Rounding::remainder) {
        join_remainder(code, static_cast<const std::int16_t*>(arrays.remainder) + at, x, count);
    } else if (layout.rounding == Rounding::remainder8) {
        join_remainder(code, static_cast<const std::int8_t*>(arrays.remainder) + at, x, count);
    } else {
        decode_half(layout.dtype, code, x, count);
    }
}

}  // namespace
}  // namespace adamas
