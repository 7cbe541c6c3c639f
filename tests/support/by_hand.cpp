// Compares codecs by hand (native/avx512_codecs.h) with the generic functions they stand for, over
// all values, and says what differs. Compiled as the target is. The argument
// is by how many bits there are fewer values than all, evenly chosen.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "codecs.h"
#include "half.h"
#include "rule.h"
#include "statistics.h"
#include "sweep.h"

namespace adamas {
namespace {

constexpr int block = static_cast<int>(block_size);
int fewer = 0;
std::uint64_t seen = 0, rare = 0;

std::uint32_t drawn(std::uint32_t i, std::uint32_t key) { return finalised(i + key * 77777u, key); }

// Every value of 32 bits but for `fewer` bits of them, in an order without neighbours.
template <class F>
void each_value(F f) {
    std::uint64_t count = std::uint64_t(1) << (32 - fewer);
    alignas(64) std::uint32_t values[block];
    for (std::uint64_t n = 0; n < count; n += block) {
        for (int i = 0; i < block; ++i) {
            values[i] = static_cast<std::uint32_t>(n + i) * 0x9e3779b1u;
        }
        f(values, static_cast<std::uint32_t>(n));
    }
}

[[noreturn]] void differ(const char* what, std::uint32_t value) {
    std::printf("%s differs at %08x\n", what, value);
    std::exit(1);
}

void require(bool same, const char* what, std::uint32_t value) {
    if (!same) {
        differ(what, value);
    }
}

template <Order order>
Ints lanes_of(const std::uint32_t* values) {
    alignas(64) std::uint32_t lanes[block];
    for (int i = 0; i < block; ++i) {
        lanes[lane_of<order>(i)] = values[i];
    }
    return {_mm512_load_si512(lanes), _mm512_load_si512(lanes + 16)};
}

bool is_subnormal(std::uint32_t x) { return (x & 0x7f800000u) == 0; }

// What the rule leaves: no subnormal number, and of v none below 0.
std::uint32_t of_mean(std::uint32_t x) { return is_subnormal(x) ? 0 : x; }
std::uint32_t of_square(std::uint32_t x) {
    x = of_mean(x);
    return (x & 0x7fffffffu) > 0x7f800000u ? x : x & 0x7fffffffu;
}

// A mean whose size is that of the root of v, times at most 2^highest and down to 2^-20 of that.
std::uint32_t mean_beside(std::uint32_t v, std::uint32_t r, int highest) {
    std::uint32_t exponent =
        ((v >> 23) + 127) / 2 + static_cast<std::uint32_t>(highest) - (r >> 9) % 20;
    return of_mean((r & 0x807fffffu) | exponent << 23);
}

template <Parameters parameters, Form form>
void compare_parameters(const char* name, Rounding rounding) {
    constexpr Way way{parameters, form, true};
    constexpr Order order = way.order();
    Layout layout{DType::bfloat16, true, true, false, form, form, true, 4, rounding};
    Patterns patterns;
    each_value([&](const std::uint32_t* x, std::uint32_t n) {
        alignas(64) std::uint32_t random[block];
        for (int i = 0; i < block; ++i) {
            random[i] = drawn(n + i, 5);
        }
        alignas(64) std::uint16_t code[2][block];
        alignas(64) std::uint16_t rest[2][block] = {};
        Arrays mine{}, judge{};
        mine.p = code[0], mine.remainder = rest[0];
        judge.p = code[1], judge.remainder = rest[1];
        alignas(64) float numbers[block], back[2][block];
        std::memcpy(numbers, x, sizeof numbers);
        encode_parameters(layout, judge, 0, numbers, random, nullptr, block);
        Floats p = floats(lanes_of<order>(x));
        seen += block;
        bool left_out = is_rare<way>(patterns, p);
        bool expected = false;
        for (int i = 0; i < block; ++i) {
            std::uint32_t size = x[i] & 0x7fffffffu;
            bool is_nan = size > 0x7f800000u;
            expected |= is_nan || size >= 0x7f7f0000u;
            require(!is_nan || left_out, name, x[i]);
        }
        require(expected || !left_out, name, x[0]);
        rare += left_out;
        if (left_out) {  // one at a time, beside ones
            for (int i = 0; i < block; ++i) {
                alignas(64) std::uint32_t alone[block];
                std::fill_n(alone, block, 0x3f800000u);
                alone[i] = x[i];
                Floats q = floats(lanes_of<order>(alone));
                if (!is_rare<way>(patterns, q)) {
                    store_parameters<way>(patterns, mine, 0, q, lanes_of<order>(random));
                    require(code[0][i] == code[1][i], name, x[i]);
                }
            }
            return;
        }
        store_parameters<way>(patterns, mine, 0, p, lanes_of<order>(random));
        require(std::memcmp(code[0], code[1], sizeof code[0]) == 0, name, x[0]);
        require(std::memcmp(rest[0], rest[1], sizeof rest[0]) == 0, name, x[0]);
        decode_parameters(layout, judge, 0, back[1], block);
        store_in_order<order>(back[0], ints(load_parameters<way>(patterns, mine, 0)));
        require(std::memcmp(back[0], back[1], sizeof back[0]) == 0, name, x[0]);
    });
}

// Codes of all remainders beside all of bfloat16 are joined alike.
template <Parameters parameters>
void compare_joined(const char* name, Rounding rounding) {
    constexpr Way way{parameters, Form::compact, true};
    Layout layout{DType::bfloat16, true, true, false,   Form::compact,
                  Form::compact,   true, 4,    rounding};
    Patterns patterns;
    each_value([&](const std::uint32_t* x, std::uint32_t) {
        alignas(64) std::uint16_t code[block], rest[block];
        alignas(64) std::int8_t rest8[block];
        for (int i = 0; i < block; ++i) {
            code[i] = static_cast<std::uint16_t>(x[i] >> 16);
            rest[i] = static_cast<std::uint16_t>(x[i]);
            rest8[i] = static_cast<std::int8_t>(x[i]);
        }
        Arrays arrays{};
        arrays.p = code;
        arrays.remainder = parameters == Parameters::remainder ? static_cast<void*>(rest) : rest8;
        alignas(64) float back[2][block];
        decode_parameters(layout, arrays, 0, back[1], block);
        store_in_order<way.order()>(back[0], ints(load_parameters<way>(patterns, arrays, 0)));
        require(std::memcmp(back[0], back[1], sizeof back[0]) == 0, name, x[0]);
        seen += block;
    });
}

// Codes of m and v: each value once as v, with a mean beside it, and once as m.
template <Parameters parameters, Form form>
void compare_codes(const char* name, int top) {
    constexpr Way way{parameters, form, true};
    constexpr Order order = way.order();
    Layout layout{DType::float32, true, true, false, form, form, true, top, Rounding::nearest};
    Patterns patterns;
    static Scratch scratch;
    for (bool as_square : {true, false}) {
        each_value([&](const std::uint32_t* x, std::uint32_t n) {
            alignas(64) std::uint32_t m[block], v[block], random[block];
            for (int i = 0; i < block; ++i) {
                std::uint32_t r = drawn(n + i, 11);
                random[i] = drawn(n + i, 3);
                v[i] = of_square(as_square ? x[i] : r & 0x7effffffu);
                m[i] = as_square ? mean_beside(v[i], r, top + 1) : of_mean(x[i]);
                if ((v[i] & 0x7fffffffu) > 0x7f800000u) {
                    m[i] = v[i];  // NaN comes from gradients, and reaches both
                } else if (form == Form::compact && (m[i] & 0x7fffffffu) > 0x7f800000u) {
                    v[i] = m[i];
                }
            }
            auto as_stored = [&](Codes& found) {
                return encode_state<way>(patterns, top, floats(lanes_of<order>(m)),
                                         floats(lanes_of<order>(v)), lanes_of<order>(random),
                                         found);
            };
            Codes found;
            if (!as_stored(found)) {  // what is usual beside the rest, among ones
                ++rare;
                for (int i = 0; i < block; ++i) {
                    if ((v[i] & 0x7fffffffu) >= 0x7f7f0000u ||
                        (m[i] & 0x7fffffffu) >= 0x7f7f0000u) {
                        m[i] = v[i] = 0x3f800000u;
                    }
                }
                require(as_stored(found), name, x[0]);
            }
            seen += block;
            std::memcpy(scratch.m, m, sizeof m);
            std::memcpy(scratch.v, v, sizeof v);
            std::memcpy(scratch.random, random, sizeof random);
            alignas(64) std::uint16_t codes[4][block] = {};
            Arrays judge{}, mine{};
            judge.m = codes[0], judge.v = codes[1], mine.m = codes[2], mine.v = codes[3];
            encode_means<block>(layout, judge, 0, scratch);
            store_codes<form>(mine, 0, found);
            require(std::memcmp(codes[0], codes[2], sizeof codes[0]) == 0, name, x[0]);
            require(std::memcmp(codes[1], codes[3], sizeof codes[0]) == 0, name, x[0]);
            decode_means<block>(layout, mine, 0, scratch);
            Floats a, b;
            Decoding none;
            load_state<way>(patterns, mine, 0, none, 0, a, b);
            __m512 missing = _mm512_set1_ps(missing_in_means<form>(top));
            a = {_mm512_mul_ps(a.a, missing), _mm512_mul_ps(a.b, missing)};
            alignas(64) float back[2][block];
            store_in_order<order>(back[0], ints(a));
            store_in_order<order>(back[1], ints(b));
            require(std::memcmp(back[0], scratch.m, sizeof back[0]) == 0, name, x[0]);
            require(std::memcmp(back[1], scratch.v, sizeof back[1]) == 0, name, x[0]);
        });
    }
}

// Strips of 8bit, encoded and decoded again: blocks of all ranges, each value once as v, and all
// headers with all codes.
template <Parameters parameters>
void compare_8bit(const char* name, int top) {
    constexpr Way way{parameters, Form::eight_bit, true};
    constexpr Order order = way.order();
    constexpr int N = strip_size;
    Layout layout{DType::float32,   true, true, false, Form::eight_bit, Form::eight_bit, true, top,
                  Rounding::nearest};
    Patterns patterns;
    static Scratch own, generic;
    alignas(64) static std::uint8_t codes[4][N];
    alignas(64) static std::uint16_t headers[2][N / block];
    Arrays judge{}, mine{};
    judge.m = codes[0], judge.v = codes[1], judge.header = headers[0];
    mine.m = codes[2], mine.v = codes[3], mine.header = headers[1];
    auto decoded = [&](std::uint32_t value) {
        decode_means<N>(layout, judge, 0, generic);
        Decoding blocks;
        read_headers(headers[0], top, 1.0f, blocks);
        for (int b = 0; b < strip_blocks; ++b) {
            Floats m, v;
            load_state<way>(patterns, judge, b * block, blocks, b, m, v);
            __m512 unit = _mm512_set1_ps(blocks.keep1[b]);
            m = {_mm512_mul_ps(m.a, unit), _mm512_mul_ps(m.b, unit)};
            alignas(64) float back[2][block];
            store_in_order<order>(back[0], ints(m));
            store_in_order<order>(back[1], ints(v));
            require(std::memcmp(back[0], generic.m + b * block, sizeof back[0]) == 0, name, value);
            require(std::memcmp(back[1], generic.v + b * block, sizeof back[1]) == 0, name, value);
        }
    };
    int place = 0;
    each_value([&](const std::uint32_t* x, std::uint32_t n) {
        // The exponents of a block lie within a range of its own.
        std::uint32_t lowest = drawn(n, 9) % 254 + 1, range = drawn(n, 10) % 40 + 1;
        bool whole = drawn(n, 12) % 4 == 0;
        for (int i = 0; i < block; ++i) {
            std::uint32_t r = drawn(n + i, 7), v = of_square(x[i]);
            std::uint32_t exponent = std::min(lowest + r % range, 253u);
            v = v >= 0x7f700000u && r % 65536 != 0 ? 0x3f800000u : v;  // few rare strips
            v = whole ? v : r % 16 == 0 ? 0 : (v & 0x007fffffu) | exponent << 23;
            std::uint32_t m = mean_beside(v, drawn(n + i, 8), top - 2);
            float numbers[2];
            m = (v & 0x7fffffffu) > 0x7f800000u ? v : m;
            std::memcpy(&numbers[0], &m, 4);
            std::memcpy(&numbers[1], &v, 4);
            int at = place + i, lane = place + lane_of<order>(i);
            generic.m[at] = own.m[lane] = numbers[0];
            generic.v[at] = own.v[lane] = numbers[1];
            generic.random[at] = own.random[lane] = drawn(n + i, 3);
        }
        place += block;
        if (place < N) {
            return;
        }
        place = 0;
        seen += N;
        __m512i largest[strip_blocks], smallest[strip_blocks];
        for (int b = 0; b < strip_blocks; ++b) {
            __m512i first = _mm512_load_si512(own.v + b * block);
            __m512i second = _mm512_load_si512(own.v + b * block + 16);
            largest[b] = _mm512_max_epu32(first, second);
            smallest[b] = _mm512_min_epu32(_mm512_add_epi32(first, patterns.ones),
                                           _mm512_add_epi32(second, patterns.ones));
        }
        encode_means<N>(layout, judge, 0, generic);
        Encoding blocks;
        bool usual = weigh_squares(largest, smallest, blocks);
        unsigned carries = 0;
        for (int b = 0; b < strip_blocks; ++b) {
            largest[b] = encode_squares_of<order>(held(1u << 23), mine, 0, b, blocks, own, carries);
        }
        usual &= weigh_means(mine, 0, top, largest, blocks, carries);
        for (int b = 0; b < strip_blocks; ++b) {
            encode_means_of<order>(patterns, held(0x43000000u), mine, 0, b, blocks, own);
        }
        decoded(x[0]);
        rare += !usual;
        if (usual) {
            require(std::memcmp(headers[0], headers[1], sizeof headers[0]) == 0, name, x[0]);
            require(std::memcmp(codes[0], codes[2], N) == 0, name, x[0]);
            require(std::memcmp(codes[1], codes[3], N) == 0, name, x[0]);
        }
    });
    each_value([&](const std::uint32_t* x, std::uint32_t) {
        for (int i = 0; i < block; ++i) {
            codes[0][place + i] = static_cast<std::uint8_t>(x[i]);
            codes[1][place + i] = static_cast<std::uint8_t>(x[i] >> 8);
        }
        std::uint32_t highest = (x[0] >> 16 & 1023u) % 1020u;
        headers[0][place / block] = static_cast<std::uint16_t>(highest | (x[0] >> 16 & 0xfc00u));
        place = (place + block) % N;
        if (place == 0) {
            decoded(x[0]);
        }
    });
}

void compare_all() {
    using P = Parameters;
    compare_parameters<P::nearest, Form::plain>("nearest", Rounding::nearest);
    compare_parameters<P::nearest, Form::compact>("nearest, alternating", Rounding::nearest);
    compare_parameters<P::stochastic, Form::compact>("stochastic", Rounding::stochastic);
    compare_parameters<P::remainder, Form::compact>("remainder", Rounding::remainder);
    compare_parameters<P::remainder8, Form::compact>("remainder8", Rounding::remainder8);
    compare_joined<P::remainder>("joined remainder", Rounding::remainder);
    compare_joined<P::remainder8>("joined remainder8", Rounding::remainder8);
    compare_codes<P::float32, Form::bfloat16>("bfloat16", 4);
    compare_codes<P::nearest, Form::bfloat16>("bfloat16, alternating", 4);
    for (int top : {4, 2, 12}) {
        compare_codes<P::float32, Form::compact>("compact", top);
        compare_8bit<P::float32>("8bit", top);
    }
    compare_codes<P::nearest, Form::compact>("compact, alternating", 4);
    compare_8bit<P::nearest>("8bit, alternating", 4);
    std::printf("%llu values, %llu rare blocks\n", static_cast<unsigned long long>(seen),
                static_cast<unsigned long long>(rare));
}

}  // namespace
}  // namespace adamas

int main(int, char** arguments) {
    adamas::fewer = std::atoi(arguments[1]);
    adamas::compare_all();
}
