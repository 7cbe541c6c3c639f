// What src/adamas/statistics.py takes of some elements. Included by target.cpp only.
//
// Squares are added in float64 without error, block by block. Of the numbers of a block each is
// x = n · 2^k with whole n; where k varies little, all squares are multiples of one small unit, and
// their sum has 100 bits or so. It is held by a few float64 accumulators, each of which counts in
// units of its own: it starts at 2^52 units, so that float64 rounds what is added to whole ones.
//
//     sum' = sum + x²                   rounded
//     rest = x² - (sum' - sum)          exact, at most half a unit: for the next accumulator
//
// The last one counts in units that all squares of the block are multiples of, and so rounds
// nothing. In the end the bits of each accumulator tell how many units were added: a whole number
// for the digits of exact_sum.h. Where the numbers of a block vary too much for that, the small
// ones are left for another round.
//
// Blocks of float32 are read once, with units that fit the block before. In the end the first
// accumulators show whether the numbers were too large for these, and a largest value, taken on the
// way, whether one was too small. Such a block is added anew, with units of its own.
//
// Since all sums are exact, lanes and blocks may be any, and here alone x·x + sum may be one
// operation: the code stands in a section of its own, outside of which nothing is fused.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#if defined(ADAMAS_FOR_avx512)
#include <immintrin.h>
#endif

#include "exact_sum.h"
#include "kernels.h"
#include "rule.h"

namespace adamas {
namespace {

#if defined(__ELF__)
#define ADAMAS_FUSING [[gnu::section("adamas_fused"), gnu::noinline, gnu::flatten]]
#else
#define ADAMAS_FUSING
#endif

#if defined(ADAMAS_FOR_avx512)
constexpr int lane_count = 32;
#else
constexpr int lane_count = 16;
#endif

// What is read twice comes from the first-level cache the second time.
template <class T>
constexpr int block_elements = 16384 / sizeof(T);

// Of the number of elements that one lane has in a block.
template <class T>
constexpr int lane_bits = std::bit_width(static_cast<unsigned>(block_elements<T> / lane_count)) - 1;

// Has the processor fetch what comes a block later, wherever that is.
template <class T>
inline void prefetch_next_block(const T* x) {
#if defined(__GNUC__)
    constexpr std::uintptr_t line = 64;
    auto next = reinterpret_cast<std::uintptr_t>(x) + block_elements<T> * sizeof(T);
    for (std::uintptr_t at = 0; at < lane_count * sizeof(T); at += line) {
        __builtin_prefetch(reinterpret_cast<const void*>(next + at));
    }
#endif
}

// Calls body(group, lane) for all elements, the last group filled up with zeros.
template <bool Prefetches = false, class T, class Body>
inline void for_each_lane(const T* x, std::int64_t count, Body body) {
    std::int64_t at = 0;
    for (; at + lane_count <= count; at += lane_count) {
        if constexpr (Prefetches) {
            prefetch_next_block(x + at);
        }
        for (int lane = 0; lane < lane_count; ++lane) {
            body(x[at + lane], lane);
        }
    }
    if (at < count) {
        T rest[lane_count] = {};
        std::copy(x + at, x + count, rest);
        for (int lane = 0; lane < lane_count; ++lane) {
            body(rest[lane], lane);
        }
    }
}

// -- magnitudes, as bits -------------------------------------------------------------------------

template <class T>
using Bits = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;

template <class T>
constexpr int fraction_bits = std::numeric_limits<T>::digits - 1;

template <class T>
constexpr Bits<T> infinite_bits = std::bit_cast<Bits<T>>(std::numeric_limits<T>::infinity());

template <class T>
inline Bits<T> magnitude(T x) {
    return std::bit_cast<Bits<T>>(x) & (~Bits<T>{0} >> 1);
}

// The biased exponent; subnormal numbers have that of the smallest normal ones.
template <class T>
inline int field_of(Bits<T> magnitude) {
    return std::max(static_cast<int>(magnitude >> fraction_bits<T>), 1);
}

// The largest magnitude, and the smallest but 0, less 1; those above `ceiling` are none if Bounded.
template <class T>
struct Extremes {
    Bits<T> largest, smallest_less_1;

    bool is_zero() const { return largest == 0; }
    int spread() const { return field_of<T>(largest) - field_of<T>(smallest_less_1 + 1); }
};

template <bool Bounded, class T>
inline Extremes<T> extremes(const T* x, std::int64_t count, Bits<T> ceiling) {
    Bits<T> largest[lane_count] = {}, smallest[lane_count];
    std::fill_n(smallest, lane_count, ~Bits<T>{0});
    for_each_lane(x, count, [&](T each, int lane) {
        Bits<T> own = magnitude(each);
        if constexpr (Bounded) {
            own = own <= ceiling ? own : 0;
        }
        largest[lane] = std::max(largest[lane], own);
        smallest[lane] = std::min(smallest[lane], static_cast<Bits<T>>(own - 1));
    });
    for (int half = lane_count / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            largest[lane] = std::max(largest[lane], largest[lane + half]);
            smallest[lane] = std::min(smallest[lane], smallest[lane + half]);
        }
    }
    return {largest[0], smallest[0]};
}

// -- squares -------------------------------------------------------------------------------------

inline double fused(double a, double b, double c) {
#if defined(__FP_FAST_FMA)
    return std::fma(a, b, c);
#else
    return a * b + c;  // the same where a · b is exact
#endif
}

// What a · a is more than its rounded value.
inline double error_of_square(double a, double square) {
#if defined(__FP_FAST_FMA)
    return std::fma(a, a, -square);
#else
    double shifted = 134217729.0 * a;  // 2^27 + 1: high has 26 bits of a, low the others
    double high = shifted - (shifted - a), low = a - high;
    return ((high * high - square) + 2.0 * (high * low)) + low * low;
#endif
}

inline double power_of_2(int exponent) {
    return std::bit_cast<double>(static_cast<std::uint64_t>(exponent + 1023) << 52);
}

// How far apart exponents of a block may be that so many accumulators take.
template <class T>
constexpr int terms = std::is_same_v<T, float> ? 1 : 2;  // a square of float64 is a sum of two

template <class T>
constexpr int unit_of(int level) {
    return lane_bits<T> - 52 + level * (lane_bits<T> + terms<T> - 1 - 52);
}

template <class T, int Levels>
constexpr int reach = (-unit_of<T>(Levels - 1) - 2 * std::numeric_limits<T>::digits) / 2;

template <int Levels>
struct Accumulators {
    double at[Levels][lane_count];

    // Adds a number from one level on.
    template <int Level>
    void add(double x, int lane) {
        double before = at[Level][lane];
        double after = before + x;
        at[Level][lane] = after;
        if constexpr (Level + 1 < Levels) {
            add<Level + 1>(x - (after - before), lane);
        }
    }

    void add_square(double x, int lane) {
        double before = at[0][lane];
        double after = fused(x, x, before);
        at[0][lane] = after;
        add<1>(fused(x, x, before - after), lane);
    }
};

// Adds the squares of a block whose largest magnitude has the biased exponent `field`; those out of
// bounds are taken for 0 if Bounded.
template <int Levels, bool Bounded, class T>
inline void add_block(const T* x, std::int64_t count, int field, Bits<T> floor, Bits<T> ceiling,
                      Squares& sum) {
    constexpr bool is_exact = std::is_same_v<T, float>;
    int exponent = field + 2 - std::numeric_limits<T>::max_exponent;  // all are below its power
    int scaled_by = is_exact ? 0 : std::clamp(exponent, -1000, 1000);
    double scale = power_of_2(-scaled_by);
    int units[Levels];
    double start[Levels];
    Accumulators<Levels> sums;
    for (int level = 0; level < Levels; ++level) {
        units[level] = 2 * (exponent - scaled_by) + unit_of<T>(level);
        // From the second on, numbers below 0 are added, too.
        start[level] = power_of_2(units[level] + 52) * (level == 0 ? 1.0 : 1.5);
        std::fill_n(sums.at[level], lane_count, start[level]);
    }
    for_each_lane<true>(x, count, [&](T each, int lane) {
        if constexpr (Bounded) {
            Bits<T> own = magnitude(each);
            each = (own >= floor) & (own <= ceiling) ? each : T(0);
        }
        double value = static_cast<double>(each);
        if constexpr (is_exact) {
            sums.add_square(value, lane);
        } else {
            value = value * scale;
            double square = value * value;
            sums.template add<0>(square, lane);
            sums.template add<1>(error_of_square(value, square), lane);
        }
    });
    for (int level = 0; level < Levels; ++level) {
        std::int64_t found = 0, none = std::bit_cast<std::int64_t>(start[level]);
        for (int lane = 0; lane < lane_count; ++lane) {
            found += std::bit_cast<std::int64_t>(sums.at[level][lane]) - none;
        }
        add(sum, found, units[level] + 2 * scaled_by);
    }
}

// The same of a block that has anything, in as many rounds as that takes.
template <int Levels, class T>
void add_mixed_block(const T* x, std::int64_t count, Squares& sum) {
    Bits<T> ceiling = infinite_bits<T> - 1;
    for (std::int64_t i = 0; i < count; ++i) {
        sum.row[infinite_entry] += magnitude(x[i]) == infinite_bits<T>;
        sum.row[nan_entry] += magnitude(x[i]) > infinite_bits<T>;
    }
    for (;;) {
        Extremes<T> found = extremes<true>(x, count, ceiling);
        if (found.is_zero()) {
            return;
        }
        int field = field_of<T>(found.largest), least = field - reach<T, Levels>;
        Bits<T> floor = least > 1 ? static_cast<Bits<T>>(least) << fraction_bits<T> : 0;
        add_block<Levels, true>(x, count, field, floor, ceiling, sum);
        if (floor == 0) {
            return;
        }
        ceiling = floor - 1;
    }
}

// Adds the squares of a block in units of its own; returns its extremes.
template <class T>
inline Extremes<T> add_any_block(const T* x, std::int64_t count, Squares& sum) {
    constexpr int few = terms<T> + 1, many = few + 1;
    Extremes<T> found = extremes<false, T>(x, count, 0);
    if (found.is_zero()) {
        return found;
    }
    int field = field_of<T>(found.largest);
    if (found.largest >= infinite_bits<T> || found.spread() > reach<T, many>) {
        add_mixed_block<many>(x, count, sum);
    } else if (found.spread() > reach<T, few>) {
        add_block<many, false, T>(x, count, field, 0, 0, sum);
    } else {
        add_block<few, false, T>(x, count, field, 0, 0, sum);
    }
    return found;
}

inline void add_blocks(const double* x, std::int64_t count, Squares& sum) {
    for (; count > 0; x += block_elements<double>, count -= block_elements<double>) {
        add_any_block(x, std::min<std::int64_t>(block_elements<double>, count), sum);
    }
}

// -- float32, read once --------------------------------------------------------------------------

// The exponents of units for two accumulators: the first ones count in 2^first.
class Units {
public:
    Units() = default;
    explicit Units(int first) : first_(first), are_known_(true) {}
    // Those for blocks whose largest magnitude is about this, or none where it is 0 or infinite.
    static Units of_largest(Bits<float> largest) {
        if (largest == 0 || largest >= infinite_bits<float>) {
            return {};
        }
        // All squares are below the power of two, and so many in one lane below 2^52 units.
        int power = 2 * (field_of<float>(largest) + 2 - std::numeric_limits<float>::max_exponent);
        return Units(power + lane_bits<float> - 52);
    }

    // Goes on to those for blocks like one that has added so many units. All lanes together have,
    // so each has room for some times that. Where these still do nothing changes: then the next
    // block need not wait for this one.
    void follow(std::uint64_t found) {
        int bits = std::bit_width(found);
        if ((bits < wanted_bits - 1 || bits > wanted_bits + 2) && bits > 0) [[unlikely]] {
            first_ += bits - wanted_bits;
        }
    }

    bool are_known() const { return are_known_; }
    int first() const { return first_; }
    // What rounding leaves, at most half a unit each time, takes half of what this one holds.
    int second() const { return first_ + lane_bits<float> - 52; }

    // The bits of the smallest number whose square is a whole number of the second units, and with
    // it those of all larger ones; 0 where it is of all.
    Bits<float> floor() const {
        constexpr int digits = std::numeric_limits<float>::digits;
        int lowest = (second() + 1) >> 1;  // of the bits that a number may have
        int field = lowest + digits - 2 + std::numeric_limits<float>::max_exponent;
        return field > 1 ? static_cast<Bits<float>>(field) << fraction_bits<float> : 0;
    }

private:
    static constexpr int wanted_bits = 51;  // of 52 that one lane has, and more that all have

    int first_ = 0;
    bool are_known_ = false;
};

// What a block adds up to, read once, and the largest of what tells that a number is below a floor:
// twice its bits are without the sign, and less twice the floor what is below that, but for 0,
// comes out above what 0 does, and all others below.
struct ReadOnce {
    Accumulators<2> sums;
    Bits<float> largest[lane_count] = {};

    ReadOnce(double first, double second) {
        std::fill_n(sums.at[0], lane_count, first);
        std::fill_n(sums.at[1], lane_count, second);
    }

    void add(const float* x, std::int64_t count, Bits<float> twice_floor) {
        std::int64_t whole = 0;
#if defined(ADAMAS_FOR_avx512)
        whole = count / lane_count * lane_count;
        if (whole > 0) {
            add_whole(x, whole, twice_floor);
        }
#endif
        for_each_lane(x + whole, count - whole, [&](float each, int lane) {
            Bits<float> twice = 2 * std::bit_cast<Bits<float>>(each);
            largest[lane] = std::max(largest[lane], static_cast<Bits<float>>(twice - twice_floor));
            sums.add_square(static_cast<double>(each), lane);
        });
    }

#if defined(ADAMAS_FOR_avx512)
    // The same for numbers that fill all lanes, by hand. Compilers read 16 at once and then take
    // the upper half from there, and all differences would wait for the units that add, while those
    // that multiply, too, have room for some.
    void add_whole(const float* x, std::int64_t count, Bits<float> twice_floor) {
        constexpr int parts = lane_count / 8;
        __m512d first[parts], second[parts], one = _mm512_set1_pd(1.0);
#if defined(__GNUC__)
        asm("" : "+v"(one));  // else it knows what that is, and does not multiply
#endif
        __m512i most[parts / 2], floor = _mm512_set1_epi32(static_cast<int>(twice_floor));
        for (int i = 0; i < parts; ++i) {
            first[i] = _mm512_loadu_pd(sums.at[0] + 8 * i);
            second[i] = _mm512_loadu_pd(sums.at[1] + 8 * i);
        }
        for (int i = 0; i < parts / 2; ++i) {
            most[i] = _mm512_loadu_si512(largest + 16 * i);
        }
        for (std::int64_t at = 0; at < count; at += lane_count) {
            for (int i = 0; i < parts / 2; ++i) {
                __m512i bits = _mm512_loadu_si512(x + at + 16 * i);
                __m512i above = _mm512_sub_epi32(_mm512_add_epi32(bits, bits), floor);
                most[i] = _mm512_max_epu32(most[i], above);
            }
            for (int i = 0; i < parts; ++i) {
                __m512d value = _mm512_cvtps_pd(_mm256_loadu_ps(x + at + 8 * i));
                __m512d before = first[i];
                first[i] = _mm512_fmadd_pd(value, value, before);
                __m512d left = i % 2 == 0 ? _mm512_fmsub_pd(before, one, first[i])
                                          : _mm512_sub_pd(before, first[i]);
                second[i] = _mm512_add_pd(second[i], _mm512_fmadd_pd(value, value, left));
            }
        }
        for (int i = 0; i < parts; ++i) {
            _mm512_storeu_pd(sums.at[0] + 8 * i, first[i]);
            _mm512_storeu_pd(sums.at[1] + 8 * i, second[i]);
        }
        for (int i = 0; i < parts / 2; ++i) {
            _mm512_storeu_si512(largest + 16 * i, most[i]);
        }
    }
#endif
};

// Adds the squares of a block in these units, and lets them fit what was found; returns false,
// having added nothing, where that would not be exact.
inline bool add_in_units(const float* x, std::int64_t count, Units& units, Squares& sum) {
    double starts[2] = {power_of_2(units.first() + 52), 1.5 * power_of_2(units.second() + 52)};
    ReadOnce read(starts[0], starts[1]);
    Bits<float> twice_floor = 2 * units.floor();
    read.add(x, count, twice_floor);
    std::uint64_t first = 0, second = 0, all = 0;
    Bits<float> most = 0;
    for (int lane = 0; lane < lane_count; ++lane) {
        std::uint64_t own = std::bit_cast<std::uint64_t>(read.sums.at[0][lane]) -
                            std::bit_cast<std::uint64_t>(starts[0]);
        first += own;
        all |= own;
        second += std::bit_cast<std::uint64_t>(read.sums.at[1][lane]) -
                  std::bit_cast<std::uint64_t>(starts[1]);
        most = std::max(most, read.largest[lane]);
    }
    bool is_too_small = twice_floor != 0 && most > Bits<float>{0} - twice_floor;
    if ((all >> 52) != 0 || is_too_small) {
        return false;
    }
    add(sum, static_cast<std::int64_t>(first), units.first());
    add(sum, static_cast<std::int64_t>(second), units.second());
    units.follow(first);
    return true;
}

inline void add_blocks(const float* x, std::int64_t count, Squares& sum) {
    Bits<float> sample = 0;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(lane_count, count); ++i) {
        sample = std::max(sample, magnitude(x[i]));
    }
    Units units = Units::of_largest(sample);
    for (; count > 0; x += block_elements<float>, count -= block_elements<float>) {
        std::int64_t own = std::min<std::int64_t>(block_elements<float>, count);
        if (!units.are_known() || !add_in_units(x, own, units, sum)) {
            Extremes<float> found = add_any_block(x, own, sum);
            bool is_wide = !found.is_zero() && found.spread() > reach<float, 2>;
            units = is_wide ? Units() : Units::of_largest(found.largest);
        }
    }
}

ADAMAS_FUSING void add_squares(const float* x, std::int64_t count, Squares& sum) {
    add_blocks(x, count, sum);
}

ADAMAS_FUSING void add_squares(const double* x, std::int64_t count, Squares& sum) {
    add_blocks(x, count, sum);
}

// -- the rest ------------------------------------------------------------------------------------

template <class T>
inline double largest_magnitude(const T* x, std::int64_t count) {
    T lanes[lane_count] = {};
    for_each_lane(x, count,
                  [&](T each, int lane) { lanes[lane] = maximum(std::abs(each), lanes[lane]); });
    T largest = 0;
    for (T lane : lanes) {
        largest = maximum(lane, largest);
    }
    return static_cast<double>(largest);
}

template <class T>
inline std::int64_t count_different(const T* a, const T* b, std::int64_t count) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        found += a[i] != b[i];
    }
    return found;
}

}  // namespace
}  // namespace adamas
