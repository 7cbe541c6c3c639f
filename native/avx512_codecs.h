// Codecs in AVX-512, by hand: functions of codecs.h and half.h for the numbers that are usual, each
// named with the one it stands for. What is rare (NaN, infinity, the largest numbers) is told, and
// left to those. Included by target.cpp only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "avx512.h"
#include "codecs.h"
#include "half.h"
#include "kernels.h"

namespace adamas {
namespace {

// -- how a tensor is stored ----------------------------------------------------------------------

// Of vrangeps, without the sign.
constexpr int smaller_magnitude = 0x0a, larger_magnitude = 0x0b;

enum class Parameters { float32, nearest, stochastic, remainder, remainder8 };

struct Way {
    Parameters parameters;
    Form form;  // of m and v
    bool neutral;

    constexpr bool is_half() const { return parameters != Parameters::float32; }
    constexpr bool draws() const {
        return form != Form::plain || parameters == Parameters::stochastic ||
               parameters == Parameters::remainder8;
    }
    constexpr Order order() const {
        return is_half() && form != Form::plain ? Order::alternating : Order::consecutive;
    }
};

ADAMAS_INLINE __mmask16 is_nan(__m512 x) { return _mm512_fpclass_ps_mask(x, 0x81); }

// Where 16 bits that are added to |x| may reach infinity, and where x is NaN or infinite.
ADAMAS_INLINE __mmask16 is_large(const Patterns& patterns, __m512 x) {
    __m512i doubled = _mm512_add_epi32(ints(x), ints(x));
    return _mm512_cmpge_epu32_mask(doubled, patterns.large_doubled);
}
// The same of v, which is positive or NaN.
ADAMAS_INLINE __mmask16 is_large_square(const Patterns& patterns, __m512 v) {
    return _mm512_cmpge_epu32_mask(ints(v), patterns.large);
}

// Two masks at once, for one branch.
ADAMAS_INLINE bool any(__mmask16 a, __mmask16 b) { return !_kortestz_mask16_u8(a, b); }

// Parameters as numbers: `decode_parameters` of half.h.
template <Way way>
ADAMAS_INLINE Floats load_parameters([[maybe_unused]] const Patterns& patterns,
                                     const Arrays& arrays, std::int64_t at) {
    constexpr Order order = way.order();
    if constexpr (way.parameters == Parameters::float32) {
        auto p = static_cast<const float*>(arrays.p) + at;
        return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)};
    } else {
        Ints code =
            load_high_words<order>(patterns, static_cast<const std::uint16_t*>(arrays.p) + at);
        Ints rest{};
        if constexpr (way.parameters == Parameters::remainder) {
            rest = load_high_words<order>(patterns,
                                          static_cast<const std::int16_t*>(arrays.remainder) + at);
            rest = {_mm512_srai_epi32(rest.a, 16), _mm512_srai_epi32(rest.b, 16)};
        } else if constexpr (way.parameters == Parameters::remainder8) {
            rest = load_bytes<order, 3>(patterns,
                                        static_cast<const std::int8_t*>(arrays.remainder) + at);
            rest = {_mm512_srai_epi32(rest.a, 16), _mm512_srai_epi32(rest.b, 16)};
        } else {
            return floats(code);
        }
        auto joined = [](__m512i high, __m512i low) {
            __m512i both = _mm512_add_epi32(high, low);
            return floats(_mm512_mask_mov_epi32(both, is_nan(floats(both)), high));
        };
        return {joined(code.a, rest.a), joined(code.b, rest.b)};
    }
}

template <Way way>
ADAMAS_INLINE Floats load_gradients([[maybe_unused]] const Patterns& patterns, const Arrays& arrays,
                                    std::int64_t at) {
    if constexpr (way.is_half()) {
        return floats(load_high_words<way.order()>(
            patterns, static_cast<const std::uint16_t*>(arrays.g) + at));
    } else {
        auto g = static_cast<const float*>(arrays.g) + at;
        return {_mm512_loadu_ps(g), _mm512_loadu_ps(g + 16)};
    }
}

ADAMAS_INLINE void store_numbers(void* array, std::int64_t at, Floats x) {
    auto to = static_cast<float*>(array) + at;
    _mm512_storeu_ps(to, x.a);
    _mm512_storeu_ps(to + 16, x.b);
}

// Stores bfloat16, to nearest, of what is not NaN: `to_bfloat16` of half.h.
template <Order order>
ADAMAS_INLINE void store_nearest(std::uint16_t* code, Floats x) {
    auto rounded = [](__m512 given) {
        __m512i last = _mm512_and_si512(_mm512_srli_epi32(ints(given), 16), every(1));
        return _mm512_add_epi32(_mm512_add_epi32(ints(given), every(0x7fff)), last);
    };
    store_words<order, 1>(code, {rounded(x.a), rounded(x.b)});
}

// Whether any of 32 new parameters is stored by the generic functions; every NaN is.
template <Way way>
ADAMAS_INLINE bool is_rare([[maybe_unused]] const Patterns& patterns, Floats p) {
    if constexpr (way.parameters == Parameters::stochastic ||
                  way.parameters == Parameters::remainder8) {
        return any(is_large(patterns, p.a), is_large(patterns, p.b));
    } else {
        return _mm512_cmp_ps_mask(p.a, p.b, _CMP_UNORD_Q) != 0;
    }
}

// `encode_parameters` of half.h, of what is not rare.
template <Way way>
ADAMAS_INLINE void store_parameters([[maybe_unused]] const Patterns& patterns, const Arrays& arrays,
                                    std::int64_t at, Floats p, Ints random) {
    constexpr Order order = way.order();
    auto code = static_cast<std::uint16_t*>(arrays.p) + at;
    [[maybe_unused]] auto own = [&](__m512i r) {
        return _mm512_mullo_epi32(r, patterns.parameter_factor);
    };
    if constexpr (way.parameters == Parameters::float32) {
        store_numbers(arrays.p, at, p);
    } else if constexpr (way.parameters == Parameters::nearest) {
        store_nearest<order>(code, p);
    } else if constexpr (way.parameters == Parameters::stochastic) {
        auto rounded = [&](__m512 x, __m512i r) {
            return _mm512_add_epi32(ints(x), _mm512_srli_epi32(own(r), 16));
        };
        store_words<order, 1>(code, {rounded(p.a, random.a), rounded(p.b, random.b)});
    } else if constexpr (way.parameters == Parameters::remainder) {
        auto up = [](__m512 x) { return _mm512_add_epi32(ints(x), every(0x8000)); };
        store_words<order, 1>(code, {up(p.a), up(p.b)});
        store_words<order, 0>(static_cast<std::int16_t*>(arrays.remainder) + at, ints(p));
    } else {
        auto kept = [&](__m512 x, __m512i r) {
            return _mm512_add_epi32(ints(x), _mm512_srli_epi32(own(r), 24));
        };
        Ints both{kept(p.a, random.a), kept(p.b, random.b)};
        store_words<order, 1>(code, {_mm512_add_epi32(both.a, every(0x8000)),
                                     _mm512_add_epi32(both.b, every(0x8000))});
        store_half(static_cast<std::int8_t*>(arrays.remainder) + at, bytes_of<order, 1>(both));
    }
}

// -- m beside v ----------------------------------------------------------------------------------

// `root_scale_bits` of codecs.h, of v that is not negative.
ADAMAS_INLINE __m512i root_scale(const Patterns& patterns, __m512i v) {
    __m512i halved = _mm512_srli_epi32(_mm512_add_epi32(v, patterns.bias), 1);
    return _mm512_and_si512(halved, patterns.exponent);
}

constexpr int strip_blocks = strip_size / static_cast<int>(block_size);

// What is known of the blocks of a strip before it is stepped; for 8bit it says how to decode.
struct Decoding {
    alignas(32) std::uint32_t base[strip_blocks], shift[strip_blocks];
    alignas(32) float keep1[strip_blocks];
};

ADAMAS_INLINE __m256i every8(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
ADAMAS_INLINE __m256i load8(const std::uint32_t* x) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(x));
}
ADAMAS_INLINE void store8(std::uint32_t* x, __m256i values) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(x), values);
}

// `base_of` of codecs.h.
ADAMAS_INLINE __m256i bases_of(__m256i highest, __m256i finer) {
    __m256i more = _mm256_add_epi32(finer, every8(1));
    __m256i base = _mm256_sub_epi32(_mm256_sllv_epi32(_mm256_add_epi32(highest, every8(1)), more),
                                    every8(256));
    return _mm256_max_epi32(base, _mm256_sub_epi32(_mm256_sllv_epi32(every8(8), finer), every8(1)));
}

ADAMAS_INLINE void read_headers(const std::uint16_t* header, int top, float keep1,
                                Decoding& blocks) {
    __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(header)));
    __m256i finer = _mm256_and_si256(_mm256_srli_epi32(bits, 10), every8(3));
    store8(blocks.base, bases_of(_mm256_and_si256(bits, every8(1023)), finer));
    store8(blocks.shift, _mm256_sub_epi32(every8(20), finer));
    // Codes of m are read 2^24 times too large.
    auto highest = static_cast<std::uint32_t>(127 + top - 7 - 24) << 23;
    __m256i below = _mm256_slli_epi32(_mm256_srli_epi32(bits, 12), 23);
    __m256 unit = _mm256_castsi256_ps(_mm256_sub_epi32(every8(highest), below));
    _mm256_store_ps(blocks.keep1, _mm256_mul_ps(_mm256_set1_ps(keep1), unit));
}

// By which power of two m of `load_state` is too small.
template <Form form>
ADAMAS_INLINE float missing_in_means(int top) {
    return form == Form::compact ? power_of_two(top + 7) : 1.0f;
}

// `decode_means` of codecs.h, but for powers of two of m.
template <Way way>
ADAMAS_INLINE void load_state([[maybe_unused]] const Patterns& patterns, const Arrays& arrays,
                              std::int64_t at, const Decoding& blocks, int block, Floats& m,
                              Floats& v) {
    constexpr Order order = way.order();
    if constexpr (way.form == Form::plain) {
        auto load = [&](void* array) {
            auto x = static_cast<const float*>(array) + at;
            return Floats{_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16)};
        };
        m = load(arrays.m);
        v = load(arrays.v);
    } else if constexpr (way.form == Form::bfloat16) {
        m = floats(
            load_high_words<order>(patterns, static_cast<const std::uint16_t*>(arrays.m) + at));
        v = floats(
            load_high_words<order>(patterns, static_cast<const std::uint16_t*>(arrays.v) + at));
    } else if constexpr (way.form == Form::compact) {
        v = floats(
            load_high_words<order>(patterns, static_cast<const std::uint16_t*>(arrays.v) + at));
        // Codes are those of float16 with fewer bits of exponent and mantissa, and 2^(top + 7)
        // times as large: shifted to their places, in which the sign was copied.
        auto code = static_cast<const std::uint8_t*>(arrays.m) + at;
        __m512i halves = _mm512_srai_epi16(load_bytes_of_words<order>(code), 2);
        halves = _mm512_and_si512(halves, _mm512_set1_epi16(static_cast<short>(0x9fc0)));
        auto relative = [&](__m256i sixteen, __m512 square) {
            return _mm512_mul_ps(_mm512_cvtph_ps(sixteen),
                                 floats(root_scale(patterns, ints(square))));
        };
        m = {relative(_mm512_castsi512_si256(halves), v.a),
             relative(_mm512_extracti64x4_epi64(halves, 1), v.b)};
    } else {
        __m512i base = every(blocks.base[block]), shift = every(blocks.shift[block]);
        Ints counted =
            load_bytes<order, 0>(patterns, static_cast<const std::uint8_t*>(arrays.v) + at);
        Ints q = load_bytes<order, 3>(patterns, static_cast<const std::uint8_t*>(arrays.m) + at);
        auto square = [&](__m512i c) {
            __mmask16 some = _mm512_test_epi32_mask(c, c);
            return floats(_mm512_maskz_sllv_epi32(some, _mm512_add_epi32(c, base), shift));
        };
        auto mean = [&](__m512i code, __m512 of) {
            return _mm512_mul_ps(_mm512_cvtepi32_ps(code), floats(root_scale(patterns, ints(of))));
        };
        v = {square(counted.a), square(counted.b)};
        m = {mean(q.a, v.a), mean(q.b, v.b)};
    }
}

// Codes of 32 elements in the order in which they are stored.
struct Codes {
    __m512i v, m;
};

// `encode_means` of codecs.h for bfloat16 and compact; false where anything is unusual.
template <Way way>
ADAMAS_INLINE bool encode_state(const Patterns& patterns, int top, Floats m, Floats v, Ints random,
                                Codes& codes) {
    constexpr Order order = way.order();
    if constexpr (way.form == Form::bfloat16) {
        // `to_bfloat16_by_chance`.
        auto high = [](__m512 x, __m512i r) {
            return _mm512_add_epi32(ints(x), _mm512_srli_epi32(r, 16));
        };
        auto low = [&](__m512 x, __m512i r) {
            return _mm512_add_epi32(ints(x), _mm512_and_si512(r, patterns.low_half));
        };
        codes.v = words_of<order, 1>({high(v.a, random.a), high(v.b, random.b)});
        codes.m = words_of<order, 1>({low(m.a, random.a), low(m.b, random.b)});
        return !any(is_large(patterns, m.a), is_large(patterns, m.b)) &&
               !any(is_large_square(patterns, v.a), is_large_square(patterns, v.b));
    } else {
        // `encode_means_compact`, with sizes twice as large: above the largest code none is
        // rounded up, below `least` adding it has the bits of fixed point, cut off.
        __m512 least = _mm512_set1_ps(power_of_two(top - 6));
        auto bias = static_cast<std::uint32_t>(120 + top) << 4;
        __m512 most = floats(every((bias + 127) << 19));
        Ints square, mean;
        auto encode = [&](__m512 mean_given, __m512 given, __m512i r, __m512i& w) {
            // `encode_squares_compact`.
            __mmask16 some = _mm512_test_epi32_mask(ints(given), ints(given));
            w = _mm512_maskz_add_epi32(some, ints(given), _mm512_srli_epi32(r, 16));
            __m512i halved = _mm512_srli_epi32(_mm512_add_epi32(w, patterns.bias), 1);
            __m512 inverse = floats(_mm512_andnot_si512(halved, patterns.exponent));
            __m512 y = _mm512_maskz_mul_ps(some, mean_given, inverse);
            __m512 size = _mm512_range_ps(y, most, smaller_magnitude);
            __mmask16 linear = _mm512_cmp_ps_mask(size, least, _CMP_LT_OQ);
            size = _mm512_mask_add_round_ps(size, linear, size, least,
                                            _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC);
            __m512i more = _mm512_and_si512(_mm512_slli_epi32(r, 3), every(0x7fff8));
            __m512i code = _mm512_srli_epi32(_mm512_add_epi32(ints(size), more), 19);
            code = _mm512_sub_epi32(code, every(bias));
            code = _mm512_mask_sub_epi32(code, linear, code, every(16));
            return _mm512_ternarylogic_epi32(code, _mm512_srli_epi32(ints(y), 24), every(128),
                                             first_or_second_and_third);
        };
        mean.a = encode(m.a, v.a, random.a, square.a);
        mean.b = encode(m.b, v.b, random.b, square.b);
        codes.v = words_of<order, 1>(square);
        codes.m = _mm512_castsi256_si512(bytes_of<order, 0>(mean));
        return !any(is_large_square(patterns, v.a), is_large_square(patterns, v.b));
    }
}

template <Form form>
ADAMAS_INLINE void store_codes(const Arrays& arrays, std::int64_t at, const Codes& codes) {
    _mm512_storeu_si512(static_cast<std::uint16_t*>(arrays.v) + at, codes.v);
    if constexpr (form == Form::bfloat16) {
        _mm512_storeu_si512(static_cast<std::uint16_t*>(arrays.m) + at, codes.m);
    } else {
        store_half(static_cast<std::uint8_t*>(arrays.m) + at, _mm512_castsi512_si256(codes.m));
    }
}

// -- blocks of 8bit ------------------------------------------------------------------------------

struct Larger {
    ADAMAS_INLINE __m512i operator()(__m512i a, __m512i b) const { return _mm512_max_epu32(a, b); }
    ADAMAS_INLINE __m256i operator()(__m256i a, __m256i b) const { return _mm256_max_epu32(a, b); }
};
struct Smaller {
    ADAMAS_INLINE __m512i operator()(__m512i a, __m512i b) const { return _mm512_min_epu32(a, b); }
};

// Folds each of eight registers to one of the lanes that are returned.
template <class Of>
ADAMAS_INLINE __m256i folded(const __m512i* x, Of of) {
    static_assert(strip_blocks == 8);
    static constexpr Table<std::uint64_t, 8> quarters([](int i) {
        constexpr int from[] = {0, 1, 8, 9, 4, 5, 12, 13};
        return from[i];
    });
    static constexpr Table<std::uint64_t, 8> others([](int i) {
        constexpr int from[] = {2, 3, 10, 11, 6, 7, 14, 15};
        return from[i];
    });
    __m512i halves[4], eighths[2];
    for (int i = 0; i < 4; ++i) {
        halves[i] = of(_mm512_mask_blend_epi64(0xf0, x[i], x[i + 4]),
                       _mm512_alignr_epi64(x[i + 4], x[i], 4));
    }
    for (int i = 0; i < 2; ++i) {
        eighths[i] = of(_mm512_permutex2var_epi64(halves[i], quarters.load(), halves[i + 2]),
                        _mm512_permutex2var_epi64(halves[i], others.load(), halves[i + 2]));
    }
    __m512i pairs = of(_mm512_unpacklo_epi64(eighths[0], eighths[1]),
                       _mm512_unpackhi_epi64(eighths[0], eighths[1]));
    __m512i each = of(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_CDAB));
    return _mm512_cvtepi64_epi32(each);
}

// How the blocks of a strip are encoded.
struct Encoding {
    alignas(32) std::uint32_t shift[strip_blocks], left[strip_blocks], keep[strip_blocks],
        carry[strip_blocks], exponents[strip_blocks], base[2][strip_blocks], least[2][strip_blocks],
        units[strip_blocks];
    __m128i headers[2];
};

// `encode_squares_8bit` up to L of the headers, and all that follows from it; false where a v is
// unusual. The registers given have the largest v of each block, and the smallest but 0, less 1, in
// any lane.
inline bool weigh_squares(const __m512i* largest, const __m512i* smallest, Encoding& blocks) {
    __m256i most = folded(largest, Larger());
    __m256i least = _mm256_add_epi32(folded(smallest, Smaller()), every8(1));
    __m256i finer = _mm256_setzero_si256();
    for (int more = 1; more <= 3; ++more) {
        int s = 20 - more;
        __m256i last = _mm256_srli_epi32(_mm256_add_epi32(most, every8((1u << s) - 1)), s);
        __m256i range = _mm256_sub_epi32(last, _mm256_srli_epi32(least, s));
        __mmask8 fits = _mm256_cmple_epi32_mask(range, every8(255u - (2u << more)));
        finer = _mm256_mask_mov_epi32(finer, fits, every8(static_cast<std::uint32_t>(more)));
    }
    // K is that of the largest v, or one more where random bits carry into it.
    __m256i s = _mm256_sub_epi32(every8(20), finer), highest = _mm256_srli_epi32(most, 21);
    __m256i up = _mm256_add_epi32(highest, every8(1));
    store8(blocks.shift, s);
    store8(blocks.keep, _mm256_sub_epi32(_mm256_sllv_epi32(every8(1), s), every8(1)));
    // 2^23 is added to v, which rounds its exponent up for the root.
    store8(blocks.carry, _mm256_add_epi32(_mm256_slli_epi32(up, 21), every8(1u << 23)));
    __m256i added = _mm256_sllv_epi32(every8(8), finer), fine = _mm256_slli_epi32(finer, 10);
    // 8 bits above the lowest 4 + L, and by how many these stand below those of float32.
    store8(blocks.exponents, _mm256_sllv_epi32(every8(0xff0), finer));
    store8(blocks.left, _mm256_sub_epi32(s, every8(1)));
    auto store_bases = [&](int carried, __m256i of) {
        __m256i base = _mm256_add_epi32(bases_of(of, finer), added);
        store8(blocks.base[carried], base);
        store8(blocks.least[carried], _mm256_add_epi32(base, every8(1)));
    };
    store_bases(0, highest);
    store_bases(1, up);
    blocks.headers[0] = _mm256_cvtepi32_epi16(_mm256_or_si256(highest, fine));
    blocks.headers[1] = _mm256_cvtepi32_epi16(_mm256_or_si256(up, fine));
    return _mm256_cmpge_epu32_mask(most, every8(0x7f700000u)) == 0;
}

// The rest of `encode_squares_8bit`, for block b of a strip in scratch in the order given, and
// `relative` of codecs.h, times 2^64, in the place of gradients. Returns the largest of that, in
// any lane, and adds a bit to `carries` where random bits carry into K.
template <Order order>
ADAMAS_INLINE __m512i encode_squares_of(__m512i added, const Arrays& arrays, std::int64_t at, int b,
                                        const Encoding& blocks, Scratch& scratch,
                                        unsigned& carries) {
    int i = b * static_cast<int>(block_size);
    __m512i shift = every(blocks.shift[b]), kept = every(blocks.keep[b]);
    auto summed = [&](int place) {
        __m512i r = _mm512_srli_epi32(_mm512_load_si512(scratch.random + place), 12);
        __m512i more = _mm512_ternarylogic_epi32(r, kept, added, first_and_second_or_third);
        return _mm512_add_epi32(_mm512_load_si512(scratch.v + place), more);
    };
    Ints sum{summed(i), summed(i + 16)};
    __m512i carry = every(blocks.carry[b]);
    int carried = any(_mm512_cmpge_epu32_mask(sum.a, carry), _mm512_cmpge_epu32_mask(sum.b, carry));
    carries |= static_cast<unsigned>(carried) << b;
    __m512i base = every(blocks.base[carried][b]), least = every(blocks.least[carried][b]);
    __m512i exponents = every(blocks.exponents[b]), left = every(blocks.left[b]);
    auto encode = [&](__m512i with, int place, __m512& y) {
        __m512i v = _mm512_load_si512(scratch.v + place);
        __mmask16 some = _mm512_test_epi32_mask(v, v);
        __m512i k = _mm512_max_epi32(_mm512_srlv_epi32(with, shift), least);
        __m512 inverse = floats(_mm512_sllv_epi32(_mm512_andnot_si512(k, exponents), left));
        y = _mm512_maskz_mul_ps(some, _mm512_load_ps(scratch.m + place), inverse);
        _mm512_store_ps(scratch.g + place, y);
        return _mm512_maskz_sub_epi32(some, k, base);
    };
    Floats y;
    Ints code{encode(sum.a, i, y.a), encode(sum.b, i + 16, y.b)};
    store_half(static_cast<std::uint8_t*>(arrays.v) + at + i, bytes_of<order, 0>(code));
    return ints(_mm512_range_ps(y.a, y.b, larger_magnitude));
}

// `encode_means_8bit` up to the scales, for what `encode_squares_of` returns; false where
// the top is too low.
inline bool weigh_means(const Arrays& arrays, std::int64_t at, int top, const __m512i* largest,
                        Encoding& blocks, unsigned carries) {
    __m256i most = folded(largest, Larger());
    auto limit = static_cast<std::uint32_t>(signed_bits(127.0f * power_of_two(top - 7)));
    // Exponents of the scales, with the bias of float32.
    auto highest = static_cast<std::uint32_t>(top + 126 + 64);
    __m256i scale = _mm256_srli_epi32(_mm256_add_epi32(most, every8(0x1ffff)), 23);
    scale = _mm256_min_epi32(_mm256_max_epi32(scale, every8(highest - 15)), every8(highest));
    __m128i header =
        _mm_mask_mov_epi16(blocks.headers[0], static_cast<__mmask8>(carries), blocks.headers[1]);
    __m256i depth = _mm256_slli_epi32(_mm256_sub_epi32(every8(highest), scale), 12);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(arrays.header_at(at)),
                     _mm_or_si128(header, _mm256_cvtepi32_epi16(depth)));
    // 2^(7 - scale - 64).
    store8(blocks.units, _mm256_slli_epi32(_mm256_sub_epi32(every8(127 + 7 + 126), scale), 23));
    return _mm256_cmpgt_epu32_mask(most, every8(limit + (64u << 23))) == 0;
}

// The rest of `encode_means_8bit`, for block b. `middle_bits` are those of 128, in whose fraction
// 16 random bits are put.
template <Order order>
ADAMAS_INLINE void encode_means_of(const Patterns& patterns, __m512i middle_bits,
                                   const Arrays& arrays, std::int64_t at, int b,
                                   const Encoding& blocks, const Scratch& scratch) {
    int i = b * static_cast<int>(block_size);
    __m512 unit = floats(every(blocks.units[b]));
    auto encode = [&](int place) {
        __m512 middle = floats(_mm512_ternarylogic_epi32(_mm512_load_si512(scratch.random + place),
                                                         patterns.low_half, middle_bits,
                                                         first_and_second_or_third));
        __m512 scaled = _mm512_mul_ps(_mm512_load_ps(scratch.g + place), unit);
        return _mm512_cvttps_epi32(_mm512_add_ps(scaled, middle));
    };
    __m256i code = bytes_of<order, 0>({encode(i), encode(i + 16)});
    store_half(static_cast<std::uint8_t*>(arrays.m) + at + i,
               _mm256_xor_si256(code, _mm256_set1_epi8(-128)));
}

}  // namespace
}  // namespace adamas
