// The size of updates before they are made, which clip_update bounds: sums of the squares of what
// rule.h calls unsmoothed. Included by target.cpp only.
//
// One more pass over gradient and second moment (and over the parameter, where it is part of the
// gradient), before anything is written. Updates go to scratch memory, block by block, and their
// squares are added as those of gradients are. Codes are decoded in strips, as for a step.
#pragma once

#include <algorithm>
#include <cstdint>

#include "codecs.h"
#include "half.h"
#include "kernels.h"
#include "rule.h"
#include "statistics.h"
#include "sweep.h"

namespace adamas {
namespace {

template <class T, bool Decays, bool Largest, class Division>
inline void measure_dividing(const Numbers<T>& c, const T* __restrict p, const T* __restrict g,
                             const T* __restrict v, const T* __restrict w, T* __restrict r,
                             std::int64_t count, Division ratio) {
    for (std::int64_t i = 0; i < count; ++i) {
        r[i] = unsmoothed<T, Decays, Largest>(c, Decays ? p[i] : T(0), g[i], v[i],
                                              Largest ? w[i] : T(0), ratio);
    }
}

// Puts the updates of `count` elements to `r`. `w` is null without AMSGrad; p is read where there
// is l2 alone.
template <class T>
inline void measure(const Numbers<T>& c, const T* p, const T* g, const T* v, const T* w, T* r,
                    std::int64_t count) {
    auto divide = [&](auto division) {
        bool decays = c.l2 != 0;
        if (w != nullptr) {
            decays ? measure_dividing<T, true, true>(c, p, g, v, w, r, count, division)
                   : measure_dividing<T, false, true>(c, p, g, v, w, r, count, division);
        } else {
            decays ? measure_dividing<T, true, false>(c, p, g, v, w, r, count, division)
                   : measure_dividing<T, false, false>(c, p, g, v, w, r, count, division);
        }
    };
    // What it divides by is at least eps, or NaN.
    if (c.eps > 0) {
        divide(Quotient());
    } else {
        divide(Ratio());
    }
}

// -- as they are ---------------------------------------------------------------------------------

template <class T>
void add_updates_plain(const Layout& layout, const Arrays& arrays, const Numbers<double>& numbers,
                       std::int64_t first, std::int64_t last, Squares& sum) {
    Numbers<T> c = rounded<T>(numbers);
    auto p = static_cast<const T*>(arrays.p);
    auto g = static_cast<const T*>(arrays.g);
    auto v = static_cast<const T*>(arrays.v);
    auto w = static_cast<const T*>(arrays.w);
    alignas(64) T r[block_elements<T>];
    for (std::int64_t at = first; at < last; at += block_elements<T>) {
        std::int64_t count = std::min<std::int64_t>(block_elements<T>, last - at);
        measure(c, p + at, g + at, v + at, layout.largest ? w + at : nullptr, r, count);
        add_squares(r, count, sum);
    }
}

// -- in strips -----------------------------------------------------------------------------------

// Puts the updates of the N elements from `at` on to `r`.
template <int N>
inline void measure_strip(const Layout& layout, const Arrays& arrays, const Numbers<float>& c,
                          std::int64_t at, Scratch& scratch, float* r) {
    const float* p = arrays.at<float>(arrays.p, at);
    const float* g = static_cast<const float*>(arrays.g) + at;
    if (is_half(layout.dtype)) {
        if (c.l2 != 0) {
            decode_parameters(layout, arrays, at, scratch.p, N);
        }
        decode_half(layout.dtype, static_cast<const std::uint16_t*>(arrays.g) + at, scratch.g, N);
        p = scratch.p;
        g = scratch.g;
    }
    decode_squares<N>(layout, arrays, at, scratch);
    const float* v = squares_of(layout, arrays, at, scratch);
    measure(c, p, g, v, layout.largest ? arrays.at<float>(arrays.w, at) : nullptr, r, N);
}

inline void add_updates_in_strips(const Layout& layout, const Arrays& arrays,
                                  const Numbers<double>& numbers, std::int64_t first,
                                  std::int64_t last, Squares& sum) {
    Numbers<float> c = rounded<float>(numbers);
    Scratch scratch;
    alignas(64) float r[block_elements<float>];
    std::int64_t at = first;
    while (at < last) {
        std::int64_t begin = at, end = std::min(at + block_elements<float>, last);
        for (; at + strip_size <= end; at += strip_size) {
            measure_strip<strip_size>(layout, arrays, c, at, scratch, r + (at - begin));
        }
        for (; at + block_size <= end; at += block_size) {
            measure_strip<block_size>(layout, arrays, c, at, scratch, r + (at - begin));
        }
        if (at < end) {
            LastBlock rest(layout, arrays, at, end - at);
            measure_strip<block_size>(layout, rest.arrays(), c, 0, scratch, r + (at - begin));
            at = end;
        }
        add_squares(r, end - begin, sum);
    }
}

void add_updates_any(const Layout& layout, const Arrays& arrays, const Numbers<double>& numbers,
                     std::int64_t first, std::int64_t last, Squares& sum) {
    if (layout.dtype == DType::float64) {
        add_updates_plain<double>(layout, arrays, numbers, first, last, sum);
    } else if (layout.is_small() || is_half(layout.dtype)) {
        add_updates_in_strips(layout, arrays, numbers, first, last, sum);
    } else {
        add_updates_plain<float>(layout, arrays, numbers, first, last, sum);
    }
}

}  // namespace
}  // namespace adamas
