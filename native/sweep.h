// The only loop. Included by target.cpp only.
//
// The step of a tensor without extras is one loop over its elements. Where the phase asks for
// more (averaged weights, a low-precision copy, statistics), the same loop runs tile by tile and
// the extras follow while the tile is in the first-level cache. So do small forms of m and v and
// parameters in half precision, which are decoded to scratch memory before and encoded after.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "codecs.h"
#include "half.h"
#include "kernels.h"
#include "rule.h"
#include "statistics.h"

namespace adamas {
namespace {

// What a recorded tile leaves behind besides its new values.
template <class T>
struct Record {
    alignas(64) T before[tile_size];
    alignas(64) T u[tile_size];
    alignas(64) T change[tile_size];
};

template <class T, bool Mean, bool Square, bool Largest, bool Recorded>
inline void step_elements(const Numbers<T>& c, T* __restrict p, const T* __restrict g,
                          T* __restrict m, T* __restrict v, T* __restrict w,
                          Record<T>* __restrict record, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        Result<T> result = rule<T, Mean, Square, Largest>(
            c, p[i], g[i], Mean ? m[i] : T(0), Square ? v[i] : T(0), Largest ? w[i] : T(0));
        if constexpr (Recorded) {
            record->before[i] = p[i];
            record->u[i] = result.u;
            record->change[i] = result.change;
        }
        p[i] = result.p;
        if constexpr (Mean) {
            m[i] = result.m;
        }
        if constexpr (Square) {
            v[i] = result.v;
        }
        if constexpr (Largest) {
            w[i] = result.w;
        }
    }
}

template <class T>
inline void average(T keep, T take, T* __restrict mean, const T* __restrict p, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        mean[i] = smooth(keep, take, mean[i], p[i]);
    }
}

template <class T>
inline TileReport reported(const Record<T>& record, const T* p, const T* g, std::int64_t count) {
    return {squares(g, count),
            squares(record.before, count),
            squares(record.change, count),
            largest_magnitude(record.u, count),
            count_nonfinite(g, count),
            count_different(p, record.before, count)};
}

template <class T, bool Mean, bool Square, bool Largest>
void sweep(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
           std::int64_t first, std::int64_t last, TileReport* reports) {
    Numbers<T> c = rounded<T>(numbers.rule);
    T ema_keep = static_cast<T>(numbers.ema_keep);
    T ema_take = static_cast<T>(numbers.ema_take);
    auto p = static_cast<T*>(arrays.p);
    auto g = static_cast<const T*>(arrays.g);
    auto m = static_cast<T*>(arrays.m);
    auto v = static_cast<T*>(arrays.v);
    auto w = static_cast<T*>(arrays.w);
    auto ema = static_cast<T*>(arrays.ema);
    constexpr bool has_codes = std::is_same_v<T, float>;
    bool is_small = has_codes && layout.is_small(), half = has_codes && is_half(layout.dtype);
    bool follows = ema != nullptr || arrays.copy != nullptr || reports != nullptr;
    bool by_tile = follows || is_small || half;
    Scratch scratch;
    std::int64_t stride = by_tile ? tile_size : last - first;
    for (std::int64_t at = first; at < last; at += stride) {
        std::int64_t count = std::min(stride, last - at);
        T* parameter = half ? nullptr : p + at;
        const T* gradient = half ? nullptr : g + at;
        T* mean = Mean && !is_small ? m + at : nullptr;
        T* square = Square && !is_small ? v + at : nullptr;
        if constexpr (has_codes) {
            if (half) {
                decode_parameters(layout, arrays, at, scratch.p, count);
                decode_half(layout.dtype, static_cast<const std::uint16_t*>(arrays.g) + at,
                            scratch.g, count);
                parameter = scratch.p;
                gradient = scratch.g;
            }
            if (is_small) {
                decode_tile(layout, arrays, at, count, scratch);
                mean = scratch.m;
                square = scratch.v;
            }
        }
        T* largest = Largest ? w + at : nullptr;
        Record<T> record;
        if (reports != nullptr) {
            step_elements<T, Mean, Square, Largest, true>(c, parameter, gradient, mean, square,
                                                          largest, &record, count);
        } else {
            step_elements<T, Mean, Square, Largest, false>(c, parameter, gradient, mean, square,
                                                           largest, nullptr, count);
        }
        if constexpr (has_codes) {
            if (layout.draws()) {
                draw(key, arrays.offset + at, scratch.random, blocks_of(count) * block_size);
            }
            if (half) {
                encode_parameters(layout, arrays, at, scratch.p, scratch.random, count);
                if (follows) {
                    decode_parameters(layout, arrays, at, scratch.p, count);
                }
            }
            if (is_small) {
                layout.stochastic ? encode_tile<true>(layout, arrays, at, count, scratch)
                                  : encode_tile<false>(layout, arrays, at, count, scratch);
            }
        }
        if (reports != nullptr) {
            *reports++ = reported(record, parameter, gradient, count);
        }
        if (ema != nullptr) {
            average(ema_keep, ema_take, ema + at, parameter, count);
        }
        if (arrays.copy != nullptr) {
            write_copy(arrays.copy_type, arrays.copy + at, parameter, count);
        }
    }
}

}  // namespace
}  // namespace adamas
