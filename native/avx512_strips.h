// Strips in AVX-512, by hand: what `step_strip` of sweep.h does, with the same bits, to tensors
// with m and v that both have the same form. Included by target.cpp only, for the targets that have
// it.
//
// There a strip is decoded, stepped and encoded in stages, through memory. Here 32 elements go
// through all of them in registers; only 8bit, whose blocks need the largest of their elements, is
// encoded after a whole strip is stepped. What is rare is left to the generic functions.
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

// A strip on its way: of 8bit, m and v are encoded after it is stepped.
struct Stage {
    Scratch scratch;
    Decoding decoding;
    Encoding encoding;
    __m512i largest[strip_blocks], smallest[strip_blocks];
    bool usual;
};

template <Way way>
class Strips {
public:
    // Steps `count` strips from an element on.
    static void step(const Work& work, const Arrays& arrays, std::int64_t at, std::int64_t count) {
        Lanes c(work.c);
        Draws<order> draws(work.key, arrays.offset + at);
        if constexpr (way.form == Form::eight_bit) {
            step_8bit(c, work, arrays, at, count, draws);
        } else {
            Stage stage;
            __m512 missing = _mm512_set1_ps(missing_in_means<way.form>(work.layout.top));
            __m512 keep1 = _mm512_mul_ps(c.keep1, missing);
            for (std::int64_t block = 0; block < count * strip_blocks; ++block) {
                step_block(c, work, arrays, at + block * block_size, keep1, draws, stage);
            }
        }
    }

private:
    static constexpr Order order = way.order();

    // Strip by strip: step, codes of v, codes of m. The codes of m of one strip are made within the
    // next one, while the headers of that wait for the largest of its v.
    static void step_8bit(const Lanes& c, const Work& work, const Arrays& arrays, std::int64_t at,
                          std::int64_t count, Draws<order>& draws) {
        int top = work.layout.top;
        Stage stages[2];
        Decoding decoding;
        __m512i added = held(1u << 23), middle = held(0x43000000u);
        std::int64_t end = at + count * strip_size;
        if (at == end) {
            return;
        }
        auto encode_last = [&](std::int64_t from, Stage& stage) {
            for (int b = 0; b < strip_blocks; ++b) {
                encode_means_of<order>(c, middle, arrays, from, b, stage.encoding, stage.scratch);
            }
            if (!stage.usual) [[unlikely]] {
                encode_rare<strip_size>(work, arrays, from, stage.scratch);
            }
        };
        read_headers(arrays.header_at(at), top, work.c.keep1, decoding);
        for (std::int64_t begin = at; at < end; at += strip_size) {
            Stage& stage = stages[(at - begin) / strip_size % 2];
            Stage& before = stages[((at - begin) / strip_size + 1) % 2];
            stage.usual = true;
            Halves halves = begin_block(c, arrays, at, 0, draws, decoding, stage);
            for (int b = 1; b < strip_blocks; ++b) {
                Halves halves_before = halves;
                halves = begin_block(c, arrays, at + b * block_size, b, draws, decoding, stage);
                finish_block(c, work, arrays, at + (b - 1) * block_size, b - 1, halves_before,
                             decoding, stage);
            }
            finish_block(c, work, arrays, at + (strip_blocks - 1) * block_size, strip_blocks - 1,
                         halves, decoding, stage);
            stage.usual &= weigh_squares(stage.largest, stage.smallest, stage.encoding);
            if (at + strip_size < end) {
                read_headers(arrays.header_at(at + strip_size), top, work.c.keep1, decoding);
            }
            if (at > begin) {
                encode_last(at - strip_size, before);
            }
            unsigned carries = 0;
            for (int b = 0; b < strip_blocks; ++b) {
                stage.largest[b] = encode_squares_of<order>(added, arrays, at, b, stage.encoding,
                                                            stage.scratch, carries);
            }
            stage.usual &= weigh_means(arrays, at, top, stage.largest, stage.encoding, carries);
        }
        encode_last(end - strip_size, stages[(count + 1) % 2]);
    }

    // Block b of a strip of 8bit up to its roots; what its codes need is kept.
    ADAMAS_INLINE static Halves begin_block(const Lanes& c, const Arrays& arrays, std::int64_t at,
                                            int b, Draws<order>& draws, const Decoding& decoding,
                                            Stage& stage) {
        Floats p, m, v;
        __m512 keep1 = _mm512_set1_ps(decoding.keep1[b]);
        Halves halves = go_halfway<way.neutral>(c, keep1, arrays, at, decoding, b, p, m, v);
        keep(stage, b, m, v, draws.next(c));
        stage.largest[b] = _mm512_max_epu32(ints(v.a), ints(v.b));
        stage.smallest[b] = _mm512_min_epu32(_mm512_add_epi32(ints(v.a), c.ones),
                                             _mm512_add_epi32(ints(v.b), c.ones));
        return halves;
    }

    // The rest of the step, while the next block is begun: it waits for roots.
    ADAMAS_INLINE static void finish_block(const Lanes& c, const Work& work, const Arrays& arrays,
                                           std::int64_t at, int b, const Halves& halves,
                                           const Decoding& decoding, Stage& stage) {
        const std::uint32_t* drawn = stage.scratch.random + b * static_cast<int>(block_size);
        Ints random{_mm512_load_si512(drawn), _mm512_load_si512(drawn + 16)};
        if (!finished(c, arrays, at, halves, random)) [[unlikely]] {
            __m512 keep1 = _mm512_set1_ps(decoding.keep1[b]);
            Floats m, v;
            step_rare(work, keep1, arrays, at, decoding, b, random, m, v);
            keep(stage, b, m, v, random);
            stage.usual = false;
        }
    }

    // Steps 32 elements of other forms.
    ADAMAS_INLINE static void step_block(const Lanes& c, const Work& work, const Arrays& arrays,
                                         std::int64_t at, __m512 keep1, Draws<order>& draws,
                                         Stage& stage) {
        constexpr Form form = way.form;
        Floats p, m, v;
        Halves halves = go_halfway<way.neutral>(c, keep1, arrays, at, stage.decoding, 0, p, m, v);
        Ints random{};
        if constexpr (way.draws()) {
            random = draws.next(c);
        }
        bool usual = true;
        Codes codes;
        if constexpr (form != Form::plain) {
            usual = encode_state<way>(c, work.layout.top, m, v, random, codes);
        }
        if (!finished(c, arrays, at, halves, random)) [[unlikely]] {
            Floats rare_m, rare_v;  // whose addresses are taken: m and v shall stay in registers
            step_rare(work, keep1, arrays, at, stage.decoding, 0, random, rare_m, rare_v);
            m = rare_m;
            v = rare_v;
            usual = false;
        }
        if constexpr (form == Form::plain) {
            store_numbers(arrays.m, at, m);
            store_numbers(arrays.v, at, v);
        } else if (usual) [[likely]] {
            store_codes<form>(arrays, at, codes);
        } else {
            keep(stage, 0, m, v, random);
            encode_rare<block_size>(work, arrays, at, stage.scratch);
        }
    }

    // Stores the new parameters, if all of them are usual.
    ADAMAS_INLINE static bool finished(const Lanes& c, const Arrays& arrays, std::int64_t at,
                                       const Halves& halves, Ints random) {
        Floats p = load_parameters<way>(c, arrays, at);
        p = {arrived<way.neutral>(c, p.a, halves.a), arrived<way.neutral>(c, p.b, halves.b)};
        if (is_rare<way>(c, p)) [[unlikely]] {
            return false;
        }
        store_parameters<way>(c, arrays, at, p, random);
        return true;
    }

    // Loads 32 elements and begins to step them; p only where it is needed for that.
    template <bool neutral>
    ADAMAS_INLINE static Halves go_halfway(const Lanes& c, __m512 keep1, const Arrays& arrays,
                                           std::int64_t at, const Decoding& blocks, int b,
                                           Floats& p, Floats& m, Floats& v) {
        if constexpr (!neutral) {
            p = load_parameters<way>(c, arrays, at);
        }
        Floats g = load_gradients<way>(c, arrays, at);
        load_state<way>(c, arrays, at, blocks, b, m, v);
        return {halfway<neutral>(c, keep1, p.a, g.a, m.a, v.a),
                halfway<neutral>(c, keep1, p.b, g.b, m.b, v.b)};
    }

    // Steps 32 elements by the whole rule, and stores parameters by the generic functions.
    [[gnu::noinline]] static void step_rare(const Work& work, __m512 keep1, const Arrays& arrays,
                                            std::int64_t at, const Decoding& blocks, int block,
                                            Ints random, Floats& m, Floats& v) {
        Lanes c(work.c);
        Floats x;
        Halves halves = go_halfway<false>(c, keep1, arrays, at, blocks, block, x, m, v);
        alignas(64) float p[block_size];
        alignas(64) std::uint32_t drawn[block_size];
        store_in_order<order>(
            p, ints(Floats{arrived<false>(c, x.a, halves.a), arrived<false>(c, x.b, halves.b)}));
        store_in_order<order>(drawn, random);
        if constexpr (way.is_half()) {
            encode_parameters(work.layout, arrays, at, p, drawn, nullptr, block_size);
        } else {
            std::copy_n(p, block_size, static_cast<float*>(arrays.p) + at);
        }
    }

    ADAMAS_INLINE static void keep(Stage& stage, int b, Floats m, Floats v, Ints random) {
        auto store = [&](void* array, Ints values) {
            auto words = static_cast<std::uint32_t*>(array) + b * block_size;
            _mm512_store_si512(words, values.a);
            _mm512_store_si512(words + 16, values.b);
        };
        store(stage.scratch.m, ints(m));
        store(stage.scratch.v, ints(v));
        store(stage.scratch.random, random);
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

// Steps strips from an element on.
using StepStrips = void (*)(const Work&, const Arrays&, std::int64_t at, std::int64_t count);

template <Parameters parameters, Form form>
inline StepStrips by_hand_of(bool neutral) {
    return neutral ? Strips<Way{parameters, form, true}>::step
                   : Strips<Way{parameters, form, false}>::step;
}

template <Parameters parameters>
inline StepStrips by_hand_of(Form form, bool neutral) {
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

// Whether elements may be drawn for by hand: the high word of their indices must not change.
inline bool draws_by_hand(const Arrays& arrays, std::int64_t first, std::int64_t last) {
    auto begin = static_cast<std::uint64_t>(arrays.offset + first);
    return begin >> 32 == (begin + static_cast<std::uint64_t>(last - first)) >> 32;
}

// What steps the strips of a tensor with m and v by hand, and null where nothing does.
inline StepStrips by_hand(const Work& work, const Arrays& arrays) {
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
    // With a decay below 0 an infinite p would not become NaN.
    bool decays = c.decay >= 0 && c.opposed == c.decay;
    bool neutral = decays && c.l2 == 0 && c.from_g == 0 && c.inner == 0;
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
