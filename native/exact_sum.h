// A sum of non-negative float64 numbers that loses nothing and is rounded once: what math.fsum
// gives, in any order of addition.
//
// The whole range of float64 is laid out as one fixed-point number in digits of 32 bits, each held
// in 64, so that additions need no carry until the value is read.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace adamas {

class ExactSum {
public:
    void add(double x) {
        if (!(x <= std::numeric_limits<double>::max())) {
            special_ += x;  // infinity, or NaN for good
            return;
        }
        auto bits = std::bit_cast<std::uint64_t>(x);
        auto exponent = static_cast<unsigned>(bits >> 52 & 0x7ff);
        std::uint64_t mantissa = bits & 0xfffffffffffffULL;
        if (exponent == 0) {
            exponent = 1;  // subnormal: no hidden bit, same unit as exponent 1
        } else {
            mantissa |= 1ULL << 52;
        }
        unsigned place = exponent - 1;  // the lowest bit of the mantissa weighs 2^(place - 1074)
        unsigned digit = place / 32;
        unsigned shift = place % 32;
        std::uint64_t low = (mantissa & low_half) << shift;
        std::uint64_t high = (mantissa >> 32) << shift;
        digits_[digit] += low & low_half;
        digits_[digit + 1] += (low >> 32) + (high & low_half);
        digits_[digit + 2] += high >> 32;
        if (++additions_ == most_additions) {
            carry();
        }
    }

    // Returns the sum, rounded to nearest, ties to even.
    double value() {
        if (!(special_ == 0)) {
            return special_;
        }
        carry();
        int top = digit_count - 1;
        while (top > 0 && digits_[top] == 0) {
            --top;
        }
        int highest = 32 * top + std::bit_width(digits_[top]) - 1;
        if (highest < 53) {
            return std::ldexp(static_cast<double>(bits_from(0)), lowest_exponent);
        }
        int lowest = highest - 52;  // of the 53 bits that are kept
        std::uint64_t kept = bits_from(lowest) & ((1ULL << 53) - 1);
        bool half = bit(lowest - 1);
        if (half && (kept % 2 == 1 || any_below(lowest - 1))) {
            ++kept;
        }
        return std::ldexp(static_cast<double>(kept), lowest + lowest_exponent);
    }

private:
    static constexpr std::uint64_t low_half = 0xffffffffULL;
    static constexpr int lowest_exponent = -1074;
    static constexpr int digit_count = 68;  // 2,098 bits of float64 and room for 2^64 additions
    static constexpr std::uint32_t most_additions = 1u << 30;

    void carry() {
        for (int i = 0; i + 1 < digit_count; ++i) {
            digits_[i + 1] += digits_[i] >> 32;
            digits_[i] &= low_half;
        }
        additions_ = 0;
    }

    bool bit(int place) const { return digits_[place / 32] >> (place % 32) & 1; }

    bool any_below(int place) const {
        for (int i = 0; i < place / 32; ++i) {
            if (digits_[i] != 0) {
                return true;
            }
        }
        return (digits_[place / 32] & ((1ULL << (place % 32)) - 1)) != 0;
    }

    // The 64 bits from `place` upwards; needs carried digits.
    std::uint64_t bits_from(int place) const {
        int digit = place / 32;
        int shift = place % 32;
        std::uint64_t result = digits_[digit] >> shift;
        for (int i = 1; i <= 2 && digit + i < digit_count; ++i) {
            int left = 32 * i - shift;
            if (left < 64) {
                result |= digits_[digit + i] << left;
            }
        }
        return result;
    }

    std::array<std::uint64_t, digit_count> digits_{};
    std::uint32_t additions_ = 0;
    double special_ = 0;
};

}  // namespace adamas
