// Strips in AVX-512, by hand: what `step_strip` of sweep.h does, with the same bits, to tensors
// with m and v that both have the same form. Included by target.cpp only, for the targets that have
// it.
//
// There a strip is decoded, stepped and encoded in stages, through memory. Here 32 elements go
// through all of them in registers, so that a processor divides while it decodes and encodes, and
// only blocks of 8bit, which need the largest of their elements, are encoded after the whole strip
// is stepped. Tests compare both ways for all values.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "avx512.h"
#include "avx512_codecs.h"
#include "codecs.h"
#include "half.h"
#include "kernels.h"

namespace adamas {
namespace {

// Puts strips, or the first elements of one, into the order of elements.
template <Order order>
ADAMAS_INLINE void put_in_order(void* x, int count) {
    auto words = static_cast<std::uint32_t*>(x);
    for (int i = 0; i < count; i += 32) {
        store_in_order<order>(words + i,
                              {_mm512_load_si512(words + i), _mm512_load_si512(words + i + 16)});
    }
}

template <Way way>
class Strips {
public:
    static void step(const Work& work, const Arrays& arrays, std::int64_t at, Scratch& scratch) {
        Lanes c(work.c);
        int top = work.layout.top;
        Decoding blocks;
        if constexpr (way.form == Form::eight_bit) {
            read_headers(arrays.header_at(at), top, work.c.keep1, blocks);
        }
        __m512 keep1 = _mm512_mul_ps(c.keep1, _mm512_set1_ps(missing_in_means<way.form>(top)));
        Draws<order> draws(work.key, arrays.offset + at);
        __m512i largest[strip_blocks], smallest[strip_blocks];
        for (int b = 0; b < strip_blocks; ++b) {
            int place = b * static_cast<int>(block_size);
            std::int64_t i = at + place;
            if constexpr (way.form == Form::eight_bit) {
                keep1 = _mm512_set1_ps(blocks.keep1[b]);
            }
            Operands x = stepped<way.neutral>(c, keep1, arrays, i, blocks, b);
            Ints random{};
            if constexpr (way.draws()) {
                random = draws.next();
            }
            if (is_rare<way>(x.p)) [[unlikely]] {
                step_rare(work, keep1, arrays, i, blocks, b, random, x);
            } else {
                store_parameters<way>(arrays, i, x.p, random);
            }
            if constexpr (way.form == Form::eight_bit) {
                keep(scratch, place, x, random);
                __m512i one = every(1);
                largest[b] = _mm512_max_epu32(ints(x.v.a), ints(x.v.b));
                // Of those that are not 0.
                smallest[b] = _mm512_min_epu32(_mm512_sub_epi32(ints(x.v.a), one),
                                               _mm512_sub_epi32(ints(x.v.b), one));
            } else if (!store_state<way>(arrays, i, top, x.m, x.v, random)) [[unlikely]] {
                keep(scratch, 0, x, random);
                encode_rare<block_size>(work, arrays, i, scratch);
            }
        }
        if constexpr (way.form == Form::eight_bit) {
            if (!encode_8bit<order>(arrays, at, top, scratch, largest, smallest)) [[unlikely]] {
                encode_rare<strip_size>(work, arrays, at, scratch);
            }
        }
    }

private:
    static constexpr Order order = way.order();

    template <bool neutral>
    ADAMAS_INLINE static Operands stepped(const Lanes& c, __m512 keep1, const Arrays& arrays,
                                          std::int64_t at, const Decoding& blocks, int block) {
        Operands x;
        x.p = load_parameters<way>(arrays, at);
        x.g = load_gradients<way>(arrays, at);
        load_state<way>(arrays, at, blocks, block, x.m, x.v);
        step_lanes<neutral>(c, keep1, x.p.a, x.g.a, x.m.a, x.v.a);
        step_lanes<neutral>(c, keep1, x.p.b, x.g.b, x.m.b, x.v.b);
        return x;
    }

    // Steps 32 elements by the whole rule, and stores parameters by the generic functions.
    [[gnu::noinline]] static void step_rare(const Work& work, __m512 keep1, const Arrays& arrays,
                                            std::int64_t at, const Decoding& blocks, int block,
                                            Ints random, Operands& x) {
        x = stepped<false>(Lanes(work.c), keep1, arrays, at, blocks, block);
        alignas(64) float p[block_size];
        alignas(64) std::uint32_t drawn[block_size];
        store_in_order<order>(p, ints(x.p));
        store_in_order<order>(drawn, random);
        if constexpr (way.is_half()) {
            encode_parameters(work.layout, arrays, at, p, drawn, nullptr, block_size);
        } else {
            std::copy_n(p, block_size, static_cast<float*>(arrays.p) + at);
        }
    }

    ADAMAS_INLINE static void keep(Scratch& scratch, int place, const Operands& x, Ints random) {
        auto store = [&](void* array, Ints values) {
            auto words = static_cast<std::uint32_t*>(array) + place;
            _mm512_store_si512(words, values.a);
            _mm512_store_si512(words + 16, values.b);
        };
        store(scratch.m, ints(x.m));
        store(scratch.v, ints(x.v));
        store(scratch.random, random);
    }

    // Encodes the first N elements of scratch by the generic functions.
    template <int N>
    [[gnu::noinline]] static void encode_rare(const Work& work, const Arrays& arrays,
                                              std::int64_t at, Scratch& scratch) {
        put_in_order<order>(scratch.m, N);
        put_in_order<order>(scratch.v, N);
        put_in_order<order>(scratch.random, N);
        encode_means<N>(work.layout, arrays, at, scratch);
    }
};

// Steps a strip from an element on.
using StepStrip = void (*)(const Work&, const Arrays&, std::int64_t at, Scratch&);

template <Parameters parameters, Form form>
inline StepStrip by_hand_of(bool neutral) {
    return neutral ? Strips<Way{parameters, form, true}>::step
                   : Strips<Way{parameters, form, false}>::step;
}

template <Parameters parameters>
inline StepStrip by_hand_of(Form form, bool neutral) {
    switch (form) {
        case Form::bfloat16:
            return by_hand_of<parameters, Form::bfloat16>(neutral);
        case Form::compact:
            return by_hand_of<parameters, Form::compact>(neutral);
        case Form::eight_bit:
            return by_hand_of<parameters, Form::eight_bit>(neutral);
        default:
            break;
    }
    if constexpr (parameters == Parameters::float32) {
        return nullptr;  // goes through no strips
    } else {
        return by_hand_of<parameters, Form::plain>(neutral);
    }
}

// Whether the strip from an element on may be drawn for by hand.
ADAMAS_INLINE bool draws_by_hand(const Arrays& arrays, std::int64_t at) {
    return static_cast<std::uint32_t>(arrays.offset + at) <= 0xffffffffu - strip_size;
}

// What steps the strips of a tensor with m and v by hand, and null where nothing does.
inline StepStrip by_hand(const Work& work, const Arrays& arrays) {
    const Layout& layout = work.layout;
    const Numbers<float>& c = work.c;
    bool draws = layout.is_small();
    if (layout.mean_form != layout.square_form || (draws && !layout.stochastic) ||
        arrays.runs != nullptr || !(c.eps > 0)) {
        return nullptr;
    }
    // Times a power of two that codes of m are read too large by, it must stay a normal number.
    if (c.keep1 != 0 && !(c.keep1 > 0x1p-60f)) {
        return nullptr;
    }
    bool neutral = c.l2 == 0 && c.from_g == 0 && c.inner == 0 && c.opposed == c.decay;
    if (layout.dtype == DType::float32) {
        return by_hand_of<Parameters::float32>(layout.square_form, neutral);
    }
    if (layout.dtype != DType::bfloat16) {
        return nullptr;
    }
    switch (layout.rounding) {
        case Rounding::nearest:
            return by_hand_of<Parameters::nearest>(layout.square_form, neutral);
        case Rounding::stochastic:
            return by_hand_of<Parameters::stochastic>(layout.square_form, neutral);
        case Rounding::remainder:
            return by_hand_of<Parameters::remainder>(layout.square_form, neutral);
        default:
            return by_hand_of<Parameters::remainder8>(layout.square_form, neutral);
    }
}

}  // namespace
}  // namespace adamas
