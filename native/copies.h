// Low-precision copies of parameters, rounded to nearest, ties to even. Included by target.cpp
// only.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels.h"

namespace adamas {
namespace {

inline std::uint16_t to_bfloat16(float x) {
    auto bits = std::bit_cast<std::uint32_t>(x);
    std::uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<std::uint16_t>(x != x ? 0x7fc0 : rounded);
}

inline std::uint16_t to_float16(float x) {
    constexpr std::uint32_t overflow = 143u << 23;     // 2^16: infinity from here
    constexpr std::uint32_t subnormal = 113u << 23;    // 2^-14: fixed point below
    constexpr std::uint32_t fixed_point = 126u << 23;  // adding 0.5 shifts by the right amount
    auto bits = std::bit_cast<std::uint32_t>(x);
    std::uint32_t sign = bits >> 16 & 0x8000;
    std::uint32_t size = bits & 0x7fffffff;
    float shifted = std::bit_cast<float>(size) + std::bit_cast<float>(fixed_point);
    std::uint32_t small = std::bit_cast<std::uint32_t>(shifted) - fixed_point;
    std::uint32_t normal = (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13;
    std::uint32_t large = size > 0x7f800000 ? 0x7e00 : 0x7c00;
    std::uint32_t magnitude = size >= overflow ? large : size < subnormal ? small : normal;
    return static_cast<std::uint16_t>(sign | magnitude);
}

template <class T>
inline void write_copy(CopyType type, std::uint16_t* __restrict copy, const T* __restrict p,
                       std::int64_t count) {
    if (type == CopyType::bfloat16) {
        for (std::int64_t i = 0; i < count; ++i) {
            copy[i] = to_bfloat16(static_cast<float>(p[i]));
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            copy[i] = to_float16(static_cast<float>(p[i]));
        }
    }
}

}  // namespace
}  // namespace adamas
