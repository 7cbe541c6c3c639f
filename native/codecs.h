// Small forms of m and v: src/adamas/codecs.py, whose bits these are, and which says what they
// mean. Included by target.cpp only.
//
// Elements go through in strips of a fixed length, stage by stage: decoded to scratch memory,
// stepped, encoded. So costs of codecs add up, and every stage is a loop of known length over
// values of one width, which compilers vectorise whole. A strip is long enough that a processor
// overlaps the work of many elements, and short enough that memory streams meanwhile.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "half.h"
#include "kernels.h"

namespace adamas {
namespace {

constexpr int strip_size = 256;

// What is the same for all strips of a tensor.
struct Work {
    const Layout& layout;
    Numbers<float> c;
    float ema_keep, ema_take;
    Key key;
};

// One strip as numbers, and the random bits to encode it with.
struct Scratch {
    alignas(64) float p[strip_size];
    alignas(64) float g[strip_size];
    alignas(64) float m[strip_size];
    alignas(64) float v[strip_size];
    alignas(64) std::uint32_t random[strip_size];
};

inline float power_of_two(int exponent) {
    return float_of(static_cast<std::uint32_t>(127 + exponent) << 23);
}

inline std::int32_t larger(std::int32_t a, std::int32_t b) { return a > b ? a : b; }
inline std::int32_t smaller(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

// All ones where a condition holds. Arithmetic rather than a choice where one condition leads to
// several values: compilers would take the cases apart.
inline std::int32_t mask(bool condition) { return -static_cast<std::int32_t>(condition); }

inline std::int32_t signed_bits(float x) { return std::bit_cast<std::int32_t>(x); }
inline float float_of(std::int32_t bits) { return std::bit_cast<float>(bits); }

template <int N, class Code>
inline void store(const std::int32_t* __restrict values, Code* __restrict code) {
    for (int i = 0; i < N; ++i) {
        code[i] = static_cast<Code>(values[i]);
    }
}

// -- random bits ---------------------------------------------------------------------------------

inline std::uint32_t finalised(std::uint32_t x, std::uint32_t k2) {
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= k2;
    x ^= x >> 15;
    x *= 0xd35a2d97u;
    x ^= x >> 15;
    return x;
}

// Draws for `count` elements, below 2³¹, that are consecutive from `first` on in the whole tensor.
inline void draw_run(Key key, std::int64_t first, std::int64_t count,
                     std::uint32_t* __restrict random) {
    auto index = static_cast<std::uint64_t>(first);
    auto low = static_cast<std::uint32_t>(index), n = static_cast<std::uint32_t>(count);
    std::uint32_t k1 = key.k1 + static_cast<std::uint32_t>(index >> 32) * 0x9e3779b1u;
    for (std::uint32_t i = 0; i < n; ++i) {
        random[i] = finalised(low + k1 + i, key.k2);
    }
    if (low > 0xffffffffu - n) {  // the high word changes on the way
        k1 += 0x9e3779b1u;
        for (std::uint32_t i = 0u - low; i < n; ++i) {
            random[i] = finalised(low + k1 + i, key.k2);
        }
    }
}

// The same where they stand in runs, and `first` is in the part.
inline void draw_in_runs(Key key, const Runs* runs, std::int64_t first, std::int64_t count,
                         std::uint32_t* __restrict random) {
    std::int64_t end = first + count;
    while (first < end) {
        while (first >= runs[1].first) {
            ++runs;
        }
        std::int64_t run = (first - runs->first) / runs->length;
        std::int64_t within = (first - runs->first) - run * runs->length;
        std::int64_t place = runs->start + run * runs->pitch + within;
        std::int64_t last = std::min(end, runs[1].first);
        for (std::int64_t left = runs->length - within; first < last; left = runs->length) {
            std::int64_t own = std::min(left, last - first);
            draw_run(key, place, own, random);
            random += own;
            first += own;
            place += runs->pitch - within;
            within = 0;
        }
    }
}

// Draws for the N elements of an array from `at` on.
template <int N>
inline void draw(Key key, const Arrays& arrays, std::int64_t at, std::uint32_t* random) {
    if (arrays.runs != nullptr) [[unlikely]] {
        draw_in_runs(key, arrays.runs, arrays.offset + at, N, random);
    } else {
        draw_run(key, arrays.offset + at, N, random);
    }
}

// What is added below the bits that are kept: `width` random bits, or half a unit.
struct Addend {
    std::uint32_t keep, plus;

    Addend(bool stochastic, int width)
        : keep(stochastic ? (1u << width) - 1 : 0u), plus(stochastic ? 0u : 1u << (width - 1)) {}
    std::uint32_t of(std::uint32_t random) const { return (random & keep) | plus; }
};

// -- the size of m beside v ----------------------------------------------------------------------

inline std::uint32_t root_scale_bits(float v) {
    return (((bits_of(v) + 0x00800000u) >> 1) & 0x7f800000u) + (63u << 23);
}

// m in units of the power of two in √v; 0 where m is NaN or v is 0.
inline float relative(float m, float v) {
    float known = (m == m) & (v != 0) ? m : 0.0f;
    return known * float_of((254u << 23) - root_scale_bits(v));
}

// The bits of v, at most those of the largest finite number; 0 for NaN. The rule leaves no
// subnormal v.
inline std::int32_t clipped(float v) { return smaller(signed_bits(v), 0x7f7fffff) & mask(v > 0); }

// -- bfloat16 ------------------------------------------------------------------------------------

// Random bits are taken `shift` places below the highest.
template <int N>
inline void encode_bfloat16(const float* __restrict x, bool stochastic,
                            const std::uint32_t* __restrict random, int shift,
                            std::uint16_t* __restrict code) {
    if (stochastic) {
        for (int i = 0; i < N; ++i) {
            code[i] = to_bfloat16_by_chance(x[i], (random[i] << shift) >> 16);
        }
    } else {
        for (int i = 0; i < N; ++i) {
            code[i] = to_bfloat16(x[i]);
        }
    }
}

template <int N>
inline void decode_bfloat16(const std::uint16_t* __restrict code, float* __restrict x) {
    for (int i = 0; i < N; ++i) {
        x[i] = from_bfloat16(code[i]);
    }
}

// -- compact -------------------------------------------------------------------------------------

template <int N>
inline void encode_squares_compact(const float* __restrict v, bool stochastic,
                                   const std::uint32_t* __restrict random,
                                   std::uint16_t* __restrict code) {
    Addend addend(stochastic, 16);
    for (int i = 0; i < N; ++i) {
        std::int32_t x = clipped(v[i]);
        auto more = static_cast<std::int32_t>(addend.of(random[i] >> 16));
        code[i] = static_cast<std::uint16_t>(smaller((x + more) >> 16, 0x7f7f) & mask(x > 0));
    }
}

template <int N>
inline void encode_means_compact(const float* __restrict m, const float* __restrict v,
                                 bool stochastic, const std::uint32_t* __restrict random, int top,
                                 std::uint8_t* __restrict code) {
    alignas(64) std::int32_t values[N];
    Addend addend(stochastic, 16);
    std::int32_t most = signed_bits(power_of_two(top)), least = signed_bits(power_of_two(top - 7));
    float units_of = power_of_two(27 - top);
    std::int32_t bias = (119 + top) << 4;
    for (int i = 0; i < N; ++i) {
        std::int32_t y = signed_bits(relative(m[i], v[i]));
        std::int32_t size = smaller(y & 0x7fffffff, most);
        auto more = static_cast<std::int32_t>(addend.of(random[i]));
        std::int32_t floating = ((size + (more << 3)) >> 19) - bias;
        std::int32_t linear = (static_cast<std::int32_t>(float_of(size) * units_of) + more) >> 16;
        std::int32_t magnitude = smaller(size < least ? linear : floating, 127);
        values[i] = magnitude | (y >> 24 & 128);
    }
    store<N>(values, code);
}

template <int N>
inline void decode_means_compact(const std::uint8_t* __restrict code, const float* __restrict v,
                                 int top, float* __restrict m) {
    float unit = power_of_two(top - 11);
    std::int32_t bias = (119 + top) << 23;
    for (int i = 0; i < N; ++i) {
        std::int32_t size = code[i] & 127;
        float linear = static_cast<float>(size) * unit;
        float y = size < 16 ? linear : float_of((size << 19) + bias);
        y = float_of(bits_of(y) | (code[i] & 128u) << 24);
        m[i] = y * float_of(root_scale_bits(v[i]));
    }
}

// -- 8bit ----------------------------------------------------------------------------------------

struct Itself {
    std::int32_t operator()(std::int32_t x) const { return x; }
};
// The smaller x > 0, the larger this; 0 for 0.
struct Depth {
    std::int32_t operator()(std::int32_t x) const {
        return static_cast<std::int32_t>((0u - static_cast<std::uint32_t>(x)) & 0x7fffffffu);
    }
};
struct Size {
    std::int32_t operator()(std::int32_t x) const { return x & 0x7fffffff; }
};

// The largest `of(x)`, which are at least 0, of each block: folded in halves, all blocks at once.
template <int N, class Of>
inline void largest_of_blocks(const std::int32_t* __restrict x, Of of,
                              std::int32_t* __restrict largest) {
    constexpr int blocks = N / block_size;
    alignas(64) std::int32_t halves[blocks * 16], quarters[blocks * 8], eighths[blocks * 4];
    for (int b = 0; b < blocks; ++b) {
        for (int i = 0; i < 16; ++i) {
            halves[16 * b + i] = larger(of(x[32 * b + i]), of(x[32 * b + 16 + i]));
        }
    }
    for (int b = 0; b < blocks; ++b) {
        for (int i = 0; i < 8; ++i) {
            quarters[8 * b + i] = larger(halves[16 * b + i], halves[16 * b + 8 + i]);
        }
    }
    for (int b = 0; b < blocks; ++b) {
        for (int i = 0; i < 4; ++i) {
            eighths[4 * b + i] = larger(quarters[8 * b + i], quarters[8 * b + 4 + i]);
        }
    }
    for (int b = 0; b < blocks; ++b) {
        largest[b] = larger(larger(eighths[4 * b], eighths[4 * b + 1]),
                            larger(eighths[4 * b + 2], eighths[4 * b + 3]));
    }
}

// What the codes of v are counted from.
inline std::int32_t base_of(std::int32_t highest, std::int32_t finer) {
    return larger(((highest + 1) << (finer + 1)) - 256, (8 << finer) - 1);
}

// Encodes v, which becomes what its codes decode to; writes K and L of the headers.
template <int N>
inline void encode_squares_8bit(float* __restrict v, bool stochastic,
                                const std::uint32_t* __restrict random,
                                std::uint8_t* __restrict code, std::uint16_t* __restrict header) {
    constexpr int blocks = N / block_size;
    alignas(64) std::int32_t x[N], k[N];
    std::int32_t most[blocks], depth[blocks], finer[blocks], highest[blocks];
    for (int i = 0; i < N; ++i) {
        x[i] = clipped(v[i]);
    }
    largest_of_blocks<N>(x, Itself(), most);
    largest_of_blocks<N>(x, Depth(), depth);
    for (int b = 0; b < blocks; ++b) {
        std::int32_t least = static_cast<std::int32_t>(
            (0x80000000u - static_cast<std::uint32_t>(depth[b])) & 0x7fffffffu);
        std::int32_t found = 0;
        for (std::int32_t more = 1; more <= 3; ++more) {
            std::int32_t s = 20 - more;
            std::int32_t last = (most[b] + ((1 << s) - 1)) >> s;
            found = last - (least >> s) + (2 << more) <= 255 ? more : found;
        }
        finer[b] = found;
    }
    for (int b = 0; b < blocks; ++b) {
        std::int32_t s = 20 - finer[b], most_k = (2040 << finer[b]) - 1;
        Addend addend(stochastic, s);
        for (int i = block_size * b; i < block_size * (b + 1); ++i) {
            auto more = static_cast<std::int32_t>(addend.of(random[i] >> 12));
            k[i] = smaller((x[i] + more) >> s, most_k);  // 0 where x is 0
        }
    }
    largest_of_blocks<N>(k, Itself(), highest);
    for (int b = 0; b < blocks; ++b) {
        highest[b] >>= finer[b] + 1;
        header[b] = static_cast<std::uint16_t>(highest[b] | finer[b] << 10);
    }
    for (int b = 0; b < blocks; ++b) {
        std::int32_t base = base_of(highest[b], finer[b]), s = 20 - finer[b];
        for (int i = block_size * b; i < block_size * (b + 1); ++i) {
            std::int32_t some = mask(k[i] > 0);
            std::int32_t counted = larger(k[i] - base, 1);
            v[i] = float_of(((counted + base) << s) & some);
            k[i] = counted & some;
        }
    }
    store<N>(k, code);
}

template <int N>
inline void decode_squares_8bit(const std::uint8_t* __restrict code,
                                const std::uint16_t* __restrict header, float* __restrict v) {
    for (int b = 0; b < N / block_size; ++b) {
        std::int32_t finer = header[b] >> 10 & 3;
        std::int32_t base = base_of(header[b] & 1023, finer), s = 20 - finer;
        for (int i = block_size * b; i < block_size * (b + 1); ++i) {
            std::int32_t counted = code[i];
            v[i] = float_of(((counted + base) << s) & mask(counted > 0));
        }
    }
}

// Encodes m; adds the scales to the headers.
template <int N>
inline void encode_means_8bit(const float* __restrict m, const float* __restrict v, bool stochastic,
                              const std::uint32_t* __restrict random, int top,
                              std::uint8_t* __restrict code, std::uint16_t* __restrict header) {
    constexpr int blocks = N / block_size;
    alignas(64) std::int32_t y[N], q[N];
    std::int32_t most[blocks];
    for (int i = 0; i < N; ++i) {
        y[i] = signed_bits(relative(m[i], v[i]));
    }
    largest_of_blocks<N>(y, Size(), most);
    Addend addend(stochastic, 16);
    for (int b = 0; b < blocks; ++b) {
        int scale = std::clamp(((most[b] + 0x1ffff) >> 23) - 126, top - 15, top);
        float units_of = power_of_two(7 - scale);
        std::int32_t limit = signed_bits(127.0f * power_of_two(scale - 7));
        if (most[b] > limit) {  // where the top is too low: of betas whose bound it cannot reach
            for (int i = block_size * b; i < block_size * (b + 1); ++i) {
                std::int32_t sign = y[i] ^ Size()(y[i]);
                y[i] = smaller(Size()(y[i]), limit) | sign;
            }
        }
        for (int i = block_size * b; i < block_size * (b + 1); ++i) {
            // 128 and a fraction of 16 bits, exactly.
            float middle = float_of(0x43000000u | addend.of(random[i]));
            q[i] = static_cast<std::int32_t>(float_of(y[i]) * units_of + middle) - 128;
        }
        header[b] = static_cast<std::uint16_t>(header[b] | (top - scale) << 12);
    }
    store<N>(q, code);
}

template <int N>
inline void decode_means_8bit(const std::uint8_t* __restrict code,
                              const std::uint16_t* __restrict header, const float* __restrict v,
                              int top, float* __restrict m) {
    for (int b = 0; b < N / block_size; ++b) {
        auto exponent = static_cast<std::uint32_t>(top - 7 - (header[b] >> 12)) << 23;
        for (int i = block_size * b; i < block_size * (b + 1); ++i) {
            auto q = static_cast<float>(static_cast<std::int8_t>(code[i]));
            m[i] = q * float_of(root_scale_bits(v[i]) + exponent);
        }
    }
}

// -- strips --------------------------------------------------------------------------------------

// Where m and v of the strip that begins at element `at` are numbers: in scratch, if they are
// codes.
inline float* means_of(const Layout& layout, const Arrays& arrays, std::int64_t at,
                       Scratch& scratch) {
    return layout.mean_form == Form::plain ? arrays.at<float>(arrays.m, at) : scratch.m;
}
inline float* squares_of(const Layout& layout, const Arrays& arrays, std::int64_t at,
                         Scratch& scratch) {
    return layout.square_form == Form::plain ? arrays.at<float>(arrays.v, at) : scratch.v;
}

// Fills scratch with v of that strip, where it is codes.
template <int N>
inline void decode_squares(const Layout& layout, const Arrays& arrays, std::int64_t at,
                           Scratch& scratch) {
    if (layout.square && layout.square_form == Form::eight_bit) {
        auto code = arrays.at<std::uint8_t>(arrays.v, at);
        decode_squares_8bit<N>(code, arrays.header_at(at), scratch.v);
    } else if (layout.square && layout.square_form != Form::plain) {
        decode_bfloat16<N>(arrays.at<std::uint16_t>(arrays.v, at), scratch.v);
    }
}

// Fills scratch with m and v of that strip, where they are codes.
template <int N>
inline void decode_means(const Layout& layout, const Arrays& arrays, std::int64_t at,
                         Scratch& scratch) {
    const std::uint16_t* header = arrays.header_at(at);
    const float* v = squares_of(layout, arrays, at, scratch);
    decode_squares<N>(layout, arrays, at, scratch);
    if (!layout.mean) {
        return;
    }
    if (layout.mean_form == Form::bfloat16) {
        decode_bfloat16<N>(arrays.at<std::uint16_t>(arrays.m, at), scratch.m);
    } else if (layout.mean_form == Form::compact) {
        auto code = arrays.at<std::uint8_t>(arrays.m, at);
        decode_means_compact<N>(code, v, layout.top, scratch.m);
    } else if (layout.mean_form == Form::eight_bit) {
        auto code = arrays.at<std::uint8_t>(arrays.m, at);
        decode_means_8bit<N>(code, header, v, layout.top, scratch.m);
    }
}

template <int N>
inline void encode_means(const Layout& layout, const Arrays& arrays, std::int64_t at,
                         Scratch& scratch) {
    bool stochastic = layout.stochastic;
    const std::uint32_t* random = scratch.random;
    std::uint16_t* header = arrays.header_at(at);
    const float* v = squares_of(layout, arrays, at, scratch);
    if (layout.square && layout.square_form == Form::eight_bit) {
        auto code = arrays.at<std::uint8_t>(arrays.v, at);
        encode_squares_8bit<N>(scratch.v, stochastic, random, code, header);
    } else if (layout.square && layout.square_form != Form::plain) {
        auto code = arrays.at<std::uint16_t>(arrays.v, at);
        if (layout.square_form == Form::compact) {
            encode_squares_compact<N>(scratch.v, stochastic, random, code);
        } else {
            encode_bfloat16<N>(scratch.v, stochastic, random, 0, code);
        }
        decode_bfloat16<N>(code, scratch.v);
    }
    if (!layout.mean) {
        return;
    }
    if (layout.mean_form == Form::bfloat16) {
        auto code = arrays.at<std::uint16_t>(arrays.m, at);
        encode_bfloat16<N>(scratch.m, stochastic, random, 16, code);
    } else if (layout.mean_form == Form::compact) {
        auto code = arrays.at<std::uint8_t>(arrays.m, at);
        encode_means_compact<N>(scratch.m, v, stochastic, random, layout.top, code);
    } else if (layout.mean_form == Form::eight_bit) {
        auto code = arrays.at<std::uint8_t>(arrays.m, at);
        if (!row_of(layout.square_form).has_header) {
            std::fill_n(header, N / block_size, std::uint16_t(0));
        }
        encode_means_8bit<N>(scratch.m, v, stochastic, random, layout.top, code, header);
    }
}

}  // namespace
}  // namespace adamas
