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
#include <immintrin.h>
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
#if defined(__AVX2__)  // where one instruction does it, which compilers do not find
    auto loaded = _mm256_load_si256(reinterpret_cast<const __m256i*>(flags));
    return static_cast<std::uint32_t>(_mm256_movemask_epi8(loaded));
#elif defined(ADAMAS_X86_64)
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

// Marks some elements, a tile at most, that a step has changed: by flags that are written with
// codes (of the copy, or of a parameter in half precision), or by the differences of their bits.
template <class T>
class Marking {
public:
    // Begins with the elements from `at` on.
    void begin(const Arrays& arrays, std::int64_t at, std::int64_t count) {
        marks_ = arrays.marks == nullptr ? nullptr : arrays.marks + at / marks_in_word;
        count_ = count;
    }

    // Where they go; null where those are not wanted.
    std::uint8_t* flags_of_copy(const Arrays& arrays) {
        return arrays.marks != nullptr && arrays.copy != nullptr ? flags_ : nullptr;
    }
    std::uint8_t* flags_of_codes(const Arrays& arrays) {
        return arrays.marks != nullptr && arrays.copy == nullptr ? flags_ : nullptr;
    }
    Bits<T>* differences(const Arrays& arrays, DType dtype) {
        bool wanted = arrays.marks != nullptr && arrays.copy == nullptr && !is_half(dtype);
        return wanted ? differences_ : nullptr;
    }

    // Turns differences into flags; those of parameters `before` where a step has recorded them in
    // their place.
    void compare(const Arrays& arrays, DType dtype, const T* before, const T* p) {
        const Bits<T>* differ = differences(arrays, dtype);
        if (differ == nullptr) {
            return;
        }
        if (before == nullptr) {
            flag([=](std::int64_t i) { return differ[i] != 0; });
        } else {
            flag([=](std::int64_t i) { return difference(before[i], p[i]) != 0; });
        }
    }

    // Adds the marks of elements that are flagged.
    void end() {
        if (marks_ == nullptr) {
            return;
        }
        std::uint32_t* __restrict marks = marks_;
        std::int64_t count = count_, words = mark_count(count);
        for (std::int64_t i = count; i < words * marks_in_word; ++i) {
            flags_[i] = 0;
        }
        for (std::int64_t i = 0; i < words; ++i) {
            marks[i] |= gathered(flags_ + marks_in_word * i);
        }
        marks_ = nullptr;
    }

private:
    template <class Differs>
    void flag(Differs differs) {
        std::uint8_t* __restrict flags = flags_;
        std::int64_t count = count_;  // bytes that are written may be those of any member
        for (std::int64_t i = 0; i < count; ++i) {
            flags[i] = differs(i) ? 255 : 0;
        }
    }

    std::uint32_t* marks_ = nullptr;
    std::int64_t count_ = 0;
    alignas(64) Bits<T> differences_[tile_size];
    alignas(64) std::uint8_t flags_[tile_size];
};

}  // namespace
}  // namespace adamas
