// Exact sums of squares: the rows of src/adamas/digits.py, and what is read from them.
//
// Included by target.cpp, too, which is compiled once per machine: everything here has internal
// linkage, so that no machine's code can replace another's at link time.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace adamas {
namespace {

constexpr int digit_bits = 48;
constexpr std::int64_t digit_mask = (std::int64_t{1} << digit_bits) - 1;

// Each addition adds less than 2^48 to a digit: so many leave room in 63 bits.
constexpr int most_additions = 1 << 14;

// Brings all digits down to 48 bits. The sum of all of them is not negative, so neither is what the
// last one takes.
inline void carry(Squares& sum) {
    for (int i = sum.first; i < sum.end && i + 1 < digit_count; ++i) {
        std::int64_t rest = sum.row[i] >> digit_bits;
        sum.row[i] &= digit_mask;
        sum.row[i + 1] += rest;
        if (i + 1 == sum.end && rest != 0) {
            ++sum.end;
        }
    }
    sum.additions = 0;
}

inline void reset(Squares& sum) {
    for (int i = sum.first; i < sum.end; ++i) {
        sum.row[i] = 0;
    }
    sum.row[infinite_entry] = sum.row[nan_entry] = 0;
    sum.first = digit_count;
    sum.end = sum.additions = 0;
}

inline void count_addition(Squares& sum, int first, int end) {
    sum.first = std::min(sum.first, first);
    sum.end = std::max(sum.end, end);
    if (++sum.additions == most_additions) {
        carry(sum);
    }
}

// Adds value · 2^exponent, a multiple of the unit. A value below 0 takes away from what was added.
inline void add(Squares& sum, std::int64_t value, int exponent) {
    int place = exponent - lowest_exponent;
    if (place < 0) {
        value = place > -64 ? value >> -place : 0;
        place = 0;
    }
    int digit = place / digit_bits, shift = place % digit_bits;
    int kept = digit_bits - shift;
    sum.row[digit] += (value & ((std::int64_t{1} << kept) - 1)) << shift;
    std::int64_t rest = value >> kept;
    int end = digit + 1;
    if (rest != 0) {
        sum.row[digit + 1] += rest & digit_mask;
        end = digit + 2;
        if ((rest >> digit_bits) != 0) {
            sum.row[digit + 2] += rest >> digit_bits;
            end = digit + 3;
        }
    }
    count_addition(sum, digit, end);
}

// Adds a sum, whose digits are carried on the way.
inline void add(Squares& sum, Squares& other) {
    carry(other);
    for (int i = other.first; i < other.end; ++i) {
        sum.row[i] += other.row[i];
    }
    sum.row[infinite_entry] += other.row[infinite_entry];
    sum.row[nan_entry] += other.row[nan_entry];
    count_addition(sum, other.first, other.end);
}

// Adds a row whose digits are carried.
inline void add_row(Squares& sum, const std::int64_t* row) {
    for (int i = 0; i < row_width; ++i) {
        sum.row[i] += row[i];
    }
    count_addition(sum, 0, digit_count);
}

inline std::int64_t nonfinite_of(const Squares& sum) {
    return sum.row[infinite_entry] + sum.row[nan_entry];
}

// The 64 bits of a carried sum from `place` upwards.
inline std::uint64_t bits_from(const Squares& sum, int place) {
    int digit = place / digit_bits, shift = place % digit_bits;
    std::uint64_t result = static_cast<std::uint64_t>(sum.row[digit]) >> shift;
    for (int i = 1; i <= 2 && digit + i < digit_count; ++i) {
        int left = digit_bits * i - shift;
        if (left < 64) {
            result |= static_cast<std::uint64_t>(sum.row[digit + i]) << left;
        }
    }
    return result;
}

// Whether any bit of a carried sum below `place` is set.
inline bool any_below(const Squares& sum, int place) {
    int digit = place / digit_bits;
    for (int i = sum.first; i < digit; ++i) {
        if (sum.row[i] != 0) {
            return true;
        }
    }
    return (sum.row[digit] & ((std::int64_t{1} << place % digit_bits) - 1)) != 0;
}

// The root of the sum, which is rounded to 53 bits, ties to even, whatever its exponent.
inline double norm_of(Squares& sum) {
    if (nonfinite_of(sum) > 0) {
        return sum.row[nan_entry] > 0 ? std::numeric_limits<double>::quiet_NaN()
                                      : std::numeric_limits<double>::infinity();
    }
    carry(sum);
    int top = sum.end - 1;
    while (top >= sum.first && sum.row[top] == 0) {
        --top;
    }
    if (top < sum.first) {
        return 0.0;
    }
    int highest = digit_bits * top + std::bit_width(static_cast<std::uint64_t>(sum.row[top])) - 1;
    int lowest = std::max(highest - 52, 0);  // of the bits that are kept
    std::uint64_t number = bits_from(sum, lowest) & ((std::uint64_t{1} << 53) - 1);
    if (lowest > 0 && (bits_from(sum, lowest - 1) & 1) != 0 &&
        (number % 2 == 1 || any_below(sum, lowest - 1))) {
        ++number;
    }
    if (lowest % 2 == 1) {
        number *= 2;
        --lowest;
    }
    return std::ldexp(std::sqrt(static_cast<double>(number)), (lowest + lowest_exponent) / 2);
}

}  // namespace
}  // namespace adamas
