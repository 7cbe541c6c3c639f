// Elements in AVX-512: codes to lanes and back, random bits, and the rule. Included by target.cpp
// only; avx512_strips.h says what for.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels.h"

namespace adamas {
namespace {

// 32 elements: those in a come first, or are the even ones.
struct Ints {
    __m512i a, b;
};
struct Floats {
    __m512 a, b;
};

// Parameters in bfloat16 are alternately in a and b: half of a register's words stand where
// float32 has them.
enum class Order { consecutive, alternating };

ADAMAS_INLINE __m512i every(std::uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
ADAMAS_INLINE __m512i ints(__m512 x) { return _mm512_castps_si512(x); }
ADAMAS_INLINE __m512 floats(__m512i x) { return _mm512_castsi512_ps(x); }
ADAMAS_INLINE Ints ints(Floats x) { return {ints(x.a), ints(x.b)}; }
ADAMAS_INLINE Floats floats(Ints x) { return {floats(x.a), floats(x.b)}; }

// A pattern of bits in all lanes that is kept in a register or in memory: compilers would rather
// make it anew in every round, which takes the units that are busiest.
ADAMAS_INLINE __m512i held(std::uint32_t x) {
    __m512i lanes = every(x);
#if defined(__GNUC__)
    asm("" : "+v"(lanes));
#endif
    return lanes;
}

struct Patterns {
    __m512i exponent = held(0x7f800000u), bias = held(127u << 23), ones = held(0xffffffffu),
            low_half = held(0xffffu), high_half = held(0xffff0000u), low_byte = held(0xffu),
            high_byte = held(0xff000000u), large = held(0x7f7f0000u),
            large_doubled = held(0xfefe0000u), first_factor = held(0x21f0aaadu),
            second_factor = held(0xd35a2d97u), parameter_factor = held(0xc2b2ae3du),
            width = held(32);
};

// Truth tables of vpternlogd.
constexpr int xor_of_three = 0x96, first_and_second_or_third = 0xea,
              first_or_second_and_third = 0xf8;

// -- codes to lanes, and back --------------------------------------------------------------------

// The element that stands in lane `lane` of 32.
template <Order order>
constexpr int element_of(int lane) {
    return order == Order::consecutive ? lane : lane % 16 * 2 + lane / 16;
}
// The lane in which an element stands.
template <Order order>
constexpr int lane_of(int element) {
    return order == Order::consecutive ? element : element % 2 * 16 + element / 2;
}

template <class T, int count>
struct Table {
    alignas(64) T values[count];

    template <class F>
    explicit constexpr Table(F f) : values{} {
        for (int i = 0; i < count; ++i) {
            values[i] = static_cast<T>(f(i));
        }
    }
    ADAMAS_INLINE __m512i load(int i = 0) const { return _mm512_load_si512(values + i); }
};

template <Order order>
constexpr Table<std::uint32_t, 32> elements_in_order(element_of<order>);

ADAMAS_INLINE __m256i load_half(const void* x) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(x));
}
ADAMAS_INLINE void store_half(void* x, __m256i value) {
    _mm256_storeu_si256(static_cast<__m256i*>(x), value);
}

// 32 words, each in the high half of a lane, over zeros.
template <Order order>
ADAMAS_INLINE Ints load_high_words([[maybe_unused]] const Patterns& patterns, const void* x) {
    if constexpr (order == Order::alternating) {
        __m512i both = _mm512_loadu_si512(x);
        return {_mm512_slli_epi32(both, 16), _mm512_and_si512(both, patterns.high_half)};
    } else {
        auto words = static_cast<const std::uint16_t*>(x);
        auto high = [](const std::uint16_t* sixteen) {
            return _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(sixteen)), 16);
        };
        return {high(words), high(words + 16)};
    }
}

// The high (1) or the low (0) half of each lane.
template <Order order, int half>
ADAMAS_INLINE __m512i words_of(Ints lanes) {
    static constexpr Table<std::uint16_t, 32> from(
        [](int i) { return lane_of<order>(i) * 2 + half; });
    return _mm512_permutex2var_epi16(lanes.a, from.load(), lanes.b);
}
template <Order order, int half>
ADAMAS_INLINE void store_words(void* x, Ints lanes) {
    _mm512_storeu_si512(x, words_of<order, half>(lanes));
}

// 32 bytes, each at byte `place` of a lane, over zeros.
template <Order order, int place>
ADAMAS_INLINE Ints load_bytes([[maybe_unused]] const Patterns& patterns, const void* x) {
    static_assert(place == 0 || place == 3);
    if constexpr (order == Order::alternating && place == 0) {
        __m512i both = _mm512_cvtepu16_epi32(load_half(x));
        return {_mm512_and_si512(both, patterns.low_byte), _mm512_srli_epi32(both, 8)};
    } else if constexpr (order == Order::alternating) {
        __m512i both = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(x)), 16);
        return {_mm512_slli_epi32(both, 8), _mm512_and_si512(both, patterns.high_byte)};
    } else {
        auto bytes = static_cast<const __m128i*>(x);
        auto sixteen = [](const __m128i* each) {
            return _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_loadu_si128(each)), 8 * place);
        };
        return {sixteen(bytes), sixteen(bytes + 1)};
    }
}

// Byte `place` of each lane; of the lowest ones, nothing may stand above them.
template <Order order, int place>
ADAMAS_INLINE __m256i bytes_of(Ints lanes) {
    auto low = [](__m512i x) { return _mm512_srli_epi32(x, 8 * place); };
    if constexpr (order == Order::alternating) {
        __m512i first = place == 0 ? lanes.a : _mm512_and_si512(low(lanes.a), every(0xffu));
        __m512i second = _mm512_slli_epi32(low(lanes.b), 8);
        return _mm512_cvtepi32_epi16(_mm512_or_si512(first, second));
    } else {
        return _mm256_set_m128i(_mm512_cvtepi32_epi8(low(lanes.b)),
                                _mm512_cvtepi32_epi8(low(lanes.a)));
    }
}

// 32 bytes, each the high one of a word, in the order of lanes.
template <Order order>
ADAMAS_INLINE __m512i load_bytes_of_words(const void* x) {
    static constexpr Table<std::uint16_t, 32> from(element_of<order>);
    __m512i words = _mm512_slli_epi16(_mm512_cvtepu8_epi16(load_half(x)), 8);
    return order == Order::consecutive ? words : _mm512_permutexvar_epi16(from.load(), words);
}

// Puts 32 lanes in the order of elements into memory.
template <Order order>
ADAMAS_INLINE void store_in_order(void* x, Ints lanes) {
    auto to = static_cast<std::uint32_t*>(x);
    if constexpr (order == Order::alternating) {
        static constexpr Table<std::uint32_t, 32> from(lane_of<order>);
        __m512i a = lanes.a;
        lanes.a = _mm512_permutex2var_epi32(a, from.load(), lanes.b);
        lanes.b = _mm512_permutex2var_epi32(a, from.load(16), lanes.b);
    }
    _mm512_storeu_si512(to, lanes.a);
    _mm512_storeu_si512(to + 16, lanes.b);
}

// -- random bits ---------------------------------------------------------------------------------

// Draws of codecs.h for consecutive elements, 32 at a time.
template <Order order>
class Draws {
public:
    // The high word of the index must not change within a strip: `draws_by_hand`.
    Draws(Key key, std::int64_t first) {
        auto index = static_cast<std::uint64_t>(first);
        std::uint32_t k1 = key.k1 + static_cast<std::uint32_t>(index >> 32) * 0x9e3779b1u;
        const auto& places = elements_in_order<order>;
        __m512i start = every(static_cast<std::uint32_t>(index) + k1);
        next_ = {_mm512_add_epi32(start, places.load()), _mm512_add_epi32(start, places.load(16))};
        second_ = every(key.k2 ^ key.k2 >> 15);
    }

    ADAMAS_INLINE Ints next(const Patterns& patterns) {
        Ints drawn{finalised(patterns, next_.a), finalised(patterns, next_.b)};
        next_ = {_mm512_add_epi32(next_.a, patterns.width),
                 _mm512_add_epi32(next_.b, patterns.width)};
        return drawn;
    }

private:
    // x ^ k2 ^ (x ^ k2) >> 15, with one exclusive or of three.
    ADAMAS_INLINE __m512i finalised(const Patterns& patterns, __m512i x) const {
        x = _mm512_xor_si512(x, _mm512_srli_epi32(x, 16));
        x = _mm512_mullo_epi32(x, patterns.first_factor);
        x = _mm512_ternarylogic_epi32(x, _mm512_srli_epi32(x, 15), second_, xor_of_three);
        x = _mm512_mullo_epi32(x, patterns.second_factor);
        return _mm512_xor_si512(x, _mm512_srli_epi32(x, 15));
    }

    Ints next_;
    __m512i second_;
};

// -- the rule ------------------------------------------------------------------------------------

// Numbers of the rule in all lanes, and patterns.
struct Lanes : Patterns {
    __m512 grad_scale, l2, decay, opposed, keep1, take1, keep2, take2, from_m, from_g, root, inner,
        eps, step;

    explicit Lanes(const Numbers<float>& c)
        : grad_scale(_mm512_set1_ps(c.grad_scale)),
          l2(_mm512_set1_ps(c.l2)),
          decay(_mm512_set1_ps(c.decay)),
          opposed(_mm512_set1_ps(c.opposed)),
          keep1(_mm512_set1_ps(c.keep1)),
          take1(_mm512_set1_ps(c.take1)),
          keep2(_mm512_set1_ps(c.keep2)),
          take2(_mm512_set1_ps(c.take2)),
          from_m(_mm512_set1_ps(c.from_m)),
          from_g(_mm512_set1_ps(c.from_g)),
          root(_mm512_set1_ps(c.root)),
          inner(_mm512_set1_ps(c.inner)),
          eps(_mm512_set1_ps(c.eps)),
          step(_mm512_set1_ps(c.step)) {}
};

// `flush` of rule.h.
ADAMAS_INLINE __m512 flushed(const Patterns& patterns, __m512 x) {
    __mmask16 normal = _mm512_test_epi32_mask(ints(x), patterns.exponent);
    return _mm512_maskz_mov_ps(normal, x);
}

// 16 elements within the rule: what it divides, and the root in what it divides by.
struct Halfway {
    __m512 u, root;
};
struct Halves {
    Halfway a, b;
};

// The rule of rule.h up to the root; `arrived` is the rest of it, with Quotient. Between the two
// there should be other work, for a root takes long. `keep1` is that number times what m is still
// to be multiplied by, a power of two. If `neutral`, l2, from_g and inner are 0 and their terms
// left out, which changes nothing where the new p is not NaN: but for NaN they add 0 to what is not
// 0, or to a 0 whose sign the next flush, or the 0 beside it, takes away. And both
// decays are one.
template <bool neutral>
ADAMAS_INLINE Halfway halfway(const Lanes& c, __m512 keep1, __m512 p, __m512 g, __m512& m,
                              __m512& v) {
    g = _mm512_mul_ps(g, c.grad_scale);
    if constexpr (!neutral) {
        g = _mm512_add_ps(g, _mm512_mul_ps(c.l2, p));
    }
    __m512 square = _mm512_mul_ps(_mm512_mul_ps(c.take2, g), g);
    v = flushed(c, _mm512_add_ps(_mm512_mul_ps(c.keep2, v), square));
    __m512 root = _mm512_sqrt_ps(neutral ? v : _mm512_add_ps(v, c.inner));
    m = flushed(c, _mm512_add_ps(_mm512_mul_ps(keep1, m), _mm512_mul_ps(c.take1, g)));
    __m512 u = _mm512_mul_ps(c.from_m, m);
    if constexpr (!neutral) {
        u = _mm512_add_ps(u, _mm512_mul_ps(c.from_g, g));
    }
    return {u, root};
}

// `shrinkage` of rule.h.
ADAMAS_INLINE __m512 shrinkage_of(const Lanes& c, __m512 u, __m512 p) {
    __m512 zero = _mm512_setzero_ps();
    __mmask16 up = _mm512_cmp_ps_mask(u, zero, _CMP_LT_OQ);
    __mmask16 down = _mm512_cmp_ps_mask(u, zero, _CMP_GT_OQ);
    __mmask16 differ = _mm512_mask_cmp_ps_mask(up, p, zero, _CMP_GT_OQ) |
                       _mm512_mask_cmp_ps_mask(down, p, zero, _CMP_LT_OQ);
    return _mm512_mask_mul_ps(_mm512_mul_ps(c.decay, p), differ, c.opposed, p);
}

// The new p.
template <bool neutral>
ADAMAS_INLINE __m512 arrived(const Lanes& c, __m512 p, Halfway from) {
    __m512 d = _mm512_add_ps(_mm512_mul_ps(from.root, c.root), c.eps);
    __m512 u = _mm512_div_ps(from.u, d);
    __m512 shrinkage = neutral ? _mm512_mul_ps(c.decay, p) : shrinkage_of(c, u, p);
    return _mm512_sub_ps(p, _mm512_add_ps(_mm512_mul_ps(c.step, u), shrinkage));
}

}  // namespace
}  // namespace adamas
