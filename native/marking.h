// Marks of what a step changes: one bit for each element, in words of 32, the lowest bit first;
// src/adamas/marks.py says what they mean. Included by target.cpp only.
//
// Bits are compared while elements are in a register or in the first-level cache, so no memory is
// read for it but the words.
#pragma once

#include <algorithm>
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

#if !defined(__AVX512BW__)

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

#endif

// Turns 32 differences into a word: a bit is 1 where they are not 0.
template <class Bits>
inline std::uint32_t word_of(const Bits* differences) {
#if defined(__AVX512BW__)  // where one instruction does it, which compilers do not find
    constexpr int lanes = 64 / sizeof(Bits);
    std::uint32_t word = 0;
    for (int i = 0; i < marks_in_word; i += lanes) {
        __m512i loaded = _mm512_load_si512(differences + i);
        std::uint32_t part;
        if constexpr (lanes == 32) {
            part = _mm512_test_epi16_mask(loaded, loaded);
        } else if constexpr (lanes == 16) {
            part = _mm512_test_epi32_mask(loaded, loaded);
        } else {
            part = _mm512_test_epi64_mask(loaded, loaded);
        }
        word |= part << i;
    }
    return word;
#else
    alignas(32) std::uint8_t flags[marks_in_word];
    for (int i = 0; i < marks_in_word; ++i) {
        flags[i] = differences[i] != 0 ? 255 : 0;
    }
    return gathered(flags);
#endif
}

// Marks some elements, a tile at most, that a step has changed: by the differences of codes (of the
// copy, or of a parameter in half precision), or of the parameters' bits.
template <class T>
class Marking {
public:
    // Begins with the elements from `at` on.
    void begin(const Arrays& arrays, std::int64_t at, std::int64_t count, DType dtype) {
        marks_ = arrays.marks == nullptr ? nullptr : arrays.marks + at / marks_in_word;
        count_ = count;
        by_codes_ = arrays.copy != nullptr || is_half(dtype);
    }

    // Whether codes tell what changes: only then may `end` wait for the next elements' numbers.
    bool is_by_codes() const { return by_codes_; }

    // Where the differences go; null where those are not wanted.
    std::uint16_t* of_copy(const Arrays& arrays) {
        return arrays.marks != nullptr && arrays.copy != nullptr ? codes_ : nullptr;
    }
    std::uint16_t* of_codes(const Arrays& arrays) {
        return arrays.marks != nullptr && arrays.copy == nullptr ? codes_ : nullptr;
    }
    Bits<T>* of_numbers(const Arrays& arrays, DType dtype) {
        bool wanted = arrays.marks != nullptr && arrays.copy == nullptr && !is_half(dtype);
        return wanted ? numbers_ : nullptr;
    }

    // Takes the differences from parameters `before`, where a step has recorded these in their
    // place.
    void compare(const T* __restrict before, const T* __restrict p) {
        if (marks_ == nullptr || by_codes_) {
            return;
        }
        Bits<T>* __restrict numbers = numbers_;
        std::int64_t count = count_;
        for (std::int64_t i = 0; i < count; ++i) {
            numbers[i] = difference(before[i], p[i]);
        }
    }

    // Keeps what the step that follows overwrites, for `compare_kept` to find what it has changed.
    void keep(const Arrays& arrays, std::int64_t at, DType dtype) {
        if (std::uint16_t* codes = of_codes(arrays); codes != nullptr && is_half(dtype)) {
            std::copy_n(static_cast<const std::uint16_t*>(arrays.p) + at, count_, codes);
        } else if (Bits<T>* numbers = of_numbers(arrays, dtype)) {
            std::memcpy(numbers, static_cast<const T*>(arrays.p) + at, count_ * sizeof(T));
        }
    }
    void compare_kept(const Arrays& arrays, std::int64_t at, DType dtype) {
        if (std::uint16_t* codes = of_codes(arrays); codes != nullptr && is_half(dtype)) {
            auto now = static_cast<const std::uint16_t*>(arrays.p) + at;
            for (std::int64_t i = 0; i < count_; ++i) {
                codes[i] ^= now[i];
            }
        } else if (Bits<T>* numbers = of_numbers(arrays, dtype)) {
            auto now = static_cast<const T*>(arrays.p) + at;
            for (std::int64_t i = 0; i < count_; ++i) {
                numbers[i] ^= std::bit_cast<Bits<T>>(now[i]);
            }
        }
    }

    // Adds the marks of elements that differ.
    void end() {
        if (marks_ == nullptr) {
            return;
        }
        if (by_codes_) {
            add(codes_);
        } else {
            add(numbers_);
        }
        marks_ = nullptr;
    }

private:
    template <class Each>
    void add(Each* differences) {
        std::uint32_t* __restrict marks = marks_;
        std::int64_t words = mark_count(count_);
        std::fill(differences + count_, differences + words * marks_in_word, Each(0));
        for (std::int64_t i = 0; i < words; ++i) {
            marks[i] |= word_of(differences + marks_in_word * i);
        }
    }

    std::uint32_t* marks_ = nullptr;
    std::int64_t count_ = 0;
    bool by_codes_ = false;
    alignas(64) std::uint16_t codes_[tile_size];
    alignas(64) Bits<T> numbers_[tile_size];
};

}  // namespace
}  // namespace adamas
