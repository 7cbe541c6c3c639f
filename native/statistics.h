// The sums of src/adamas/statistics.py over one tile. Included by target.cpp only.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "rule.h"

namespace adamas {
namespace {

// Calls body(index of element, lane) in the order that the sums prescribe.
template <class Body>
inline void for_each_lane(std::int64_t count, Body body) {
    std::int64_t row = 0;
    for (; row + lane_count <= count; row += lane_count) {
        for (int lane = 0; lane < lane_count; ++lane) {
            body(row + lane, lane);
        }
    }
    for (int lane = 0; row + lane < count; ++lane) {
        body(row + lane, lane);
    }
}

inline double folded(double (&lanes)[lane_count]) {
    for (int half = lane_count / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
            lanes[lane] = lanes[lane] + lanes[lane + half];
        }
    }
    return lanes[0];
}

template <class T>
inline double tile_sum(const T* x, double scale, std::int64_t count) {
    double lanes[lane_count] = {};
    for_each_lane(count, [&](std::int64_t i, int lane) {
        double value = static_cast<double>(x[i]) * scale;
        lanes[lane] = lanes[lane] + value * value;
    });
    return folded(lanes);
}

template <class T>
inline Squares squares(const T* x, std::int64_t count) {
    double plain = tile_sum(x, scales[0], count);
    if constexpr (std::is_same_v<T, float>) {
        return {plain, plain, plain};
    } else {
        return {plain, tile_sum(x, scales[1], count), tile_sum(x, scales[2], count)};
    }
}

template <class T>
inline std::int64_t count_nonfinite(const T* x, std::int64_t count) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        found += !(std::abs(x[i]) <= std::numeric_limits<T>::max());
    }
    return found;
}

template <class T>
inline double largest_magnitude(const T* x, std::int64_t count) {
    T lanes[lane_count] = {};
    for_each_lane(count, [&](std::int64_t i, int lane) {
        lanes[lane] = maximum(std::abs(x[i]), lanes[lane]);
    });
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

template <class T>
inline std::int64_t tile_sums_of(const T* x, double scale, std::int64_t first, std::int64_t last,
                                 double* sums) {
    std::int64_t nonfinite = 0;
    for (std::int64_t at = first; at < last; at += tile_size) {
        std::int64_t count = last - at < tile_size ? last - at : tile_size;
        double sum = tile_sum(x + at, scale, count);
        if (!(sum <= std::numeric_limits<double>::max())) {
            nonfinite += count_nonfinite(x + at, count);
        }
        *sums++ = sum;
    }
    return nonfinite;
}

}  // namespace
}  // namespace adamas
