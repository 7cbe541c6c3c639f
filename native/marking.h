// Marks of what a step changes: one bit for each element, in words of 32, the lowest bit first;
// src/adamas/marks.py says what they mean. Included by target.cpp only.
//
// Bits are compared while elements are in a register or in the first-level cache, so no memory is
// read for it but the words.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#if defined(ADAMAS_X86_64)
#include <emmintrin.h>
#endif

#include "half.h"
#include "kernels.h"
#include "statistics.h"

namespace adamas {
namespace {

// 0 where both have the same bits: the same NaN is the same, and 0 with another sign is not.
template <class T>
inline Bits<T> difference(T before, T after) {
    return std::bit_cast<Bits<T>>(before) ^ std::bit_cast<Bits<T>>(after);
}

// Turns 32 bytes, which are 0 or 255, into 32 bits.
inline std::uint32_t gathered(const std::uint8_t* flags) {
#if defined(ADAMAS_X86_64)  // where one instruction does it, which compilers do not find
    auto sixteen = [&](int i) {
        auto loaded = _mm_load_si128(reinterpret_cast<const __m128i*>(flags + 16 * i));
        return static_cast<std::uint32_t>(_mm_movemask_epi8(loaded));
    };
    return sixteen(0) | sixteen(1) << 16;
#else
    // The lowest bit of each byte of eight, moved to the highest byte of a product.
    constexpr bool is_little = std::endian::native == std::endian::little;
    constexpr std::uint64_t places = is_little ? 0x0102040810204080u : 0x8040201008040201u;
    std::uint32_t word = 0;
    for (int i = 0; i < 4; ++i) {
        std::uint64_t eight;
        std::memcpy(&eight, flags + 8 * i, 8);
        word |= static_cast<std::uint32_t>((eight & 0x0101010101010101u) * places >> 56) << 8 * i;
    }
    return word;
#endif
}

// Adds the marks of elements for which differs(i) holds: of a tile at most.
template <class Differs>
inline void mark_where(std::int64_t count, std::uint32_t* __restrict marks, Differs differs) {
    alignas(64) std::uint8_t flags[tile_size];
    for (std::int64_t i = 0; i < count; ++i) {
        flags[i] = differs(i) ? 255 : 0;
    }
    std::int64_t words = mark_count(count);
    std::memset(flags + count, 0, words * marks_in_word - count);
    for (std::int64_t i = 0; i < words; ++i) {
        marks[i] |= gathered(flags + marks_in_word * i);
    }
}

// Where the codes stand that are marked, of the elements from `at` on: those of the copy, or of a
// parameter in half precision. Null where none are marked, or not codes.
inline const std::uint16_t* marked_codes(const Arrays& arrays, DType dtype, std::int64_t at) {
    if (arrays.marks == nullptr) {
        return nullptr;
    }
    if (arrays.copy != nullptr) {
        return arrays.copy + at;
    }
    return is_half(dtype) ? static_cast<const std::uint16_t*>(arrays.p) + at : nullptr;
}

}  // namespace
}  // namespace adamas
