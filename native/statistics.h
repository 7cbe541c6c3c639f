// What src/adamas/statistics.py takes of some elements. Included by target.cpp only.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "exact_sum.h"
#include "kernels.h"
#include "rule.h"

namespace adamas {
namespace {

// Splits a number into significand · 2^exponent. False where it is not finite.
inline bool split(double x, std::int64_t& significand, int& exponent) {
    auto bits = std::bit_cast<std::uint64_t>(x);
    auto field = static_cast<int>(bits >> 52 & 0x7ff);
    significand = static_cast<std::int64_t>(bits & 0xfffffffffffffULL);
    if (field > 0) {
        significand |= std::int64_t{1} << 52;
    } else {
        field = 1;
    }
    exponent = field - 1075;
    return field != 0x7ff;
}

template <class T>
inline void add_squares(const T* x, std::int64_t count, Squares& sum) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::int64_t significand;
        int exponent;
        if (!split(static_cast<double>(x[i]), significand, exponent)) {
            ++sum.row[x[i] == x[i] ? infinite_entry : nan_entry];
            continue;
        }
        std::int64_t high = significand >> 27, low = significand & ((1 << 27) - 1);
        add(sum, low * low, 2 * exponent);
        add(sum, 2 * high * low, 2 * exponent + 27);
        add(sum, high * high, 2 * exponent + 54);
    }
}

template <class T>
inline double largest_magnitude(const T* x, std::int64_t count) {
    constexpr int lane_count = 16;
    T lanes[lane_count] = {};
    std::int64_t row = 0;
    for (; row + lane_count <= count; row += lane_count) {
        for (int lane = 0; lane < lane_count; ++lane) {
            lanes[lane] = maximum(std::abs(x[row + lane]), lanes[lane]);
        }
    }
    for (int lane = 0; row + lane < count; ++lane) {
        lanes[lane] = maximum(std::abs(x[row + lane]), lanes[lane]);
    }
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
