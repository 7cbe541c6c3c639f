// Compiled once for each machine of targets.h, with that machine's flags and with
// ADAMAS_TARGET_KERNELS naming the table it defines.
#include <algorithm>
#include <type_traits>

#include "alike.h"
#include "codecs.h"
#include "kernels.h"
#include "rule.h"
#include "statistics.h"
#include "sweep.h"
#include "unsmoothed.h"

namespace adamas {
namespace {

template <class T, bool Mean, bool Square, bool Largest>
void sweep_tensor(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
                  std::int64_t first, std::int64_t last, Report* report) {
    if constexpr (std::is_same_v<T, float>) {
        if (layout.is_small() || is_half(layout.dtype)) {
            sweep_strips<Mean, Square, Largest>(layout, arrays, numbers, key, first, last, report);
            return;
        }
    }
    sweep_plain<T, Mean, Square, Largest>(arrays, numbers, first, last, report);
}

template <class T>
void sweep_layout(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
                  std::int64_t first, std::int64_t last, Report* report) {
    auto sweep = sweep_tensor<T, false, false, false>;
    if (layout.mean && layout.square) {
        sweep =
            layout.largest ? sweep_tensor<T, true, true, true> : sweep_tensor<T, true, true, false>;
    } else if (layout.square) {
        sweep = layout.largest ? sweep_tensor<T, false, true, true>
                               : sweep_tensor<T, false, true, false>;
    } else if (layout.mean) {
        sweep = sweep_tensor<T, true, false, false>;
    }
    sweep(layout, arrays, numbers, key, first, last, report);
}

void sweep_any(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
               std::int64_t first, std::int64_t last, Report* report) {
    layout.dtype == DType::float64
        ? sweep_layout<double>(layout, arrays, numbers, key, first, last, report)
        : sweep_layout<float>(layout, arrays, numbers, key, first, last, report);
}

void sweep_parts_any(DType dtype, const StepNumbers& numbers, const Part* parts,
                     std::int64_t count) {
    dtype == DType::float64 ? sweep_parts<double>(numbers, parts, count)
                            : sweep_parts<float>(numbers, parts, count);
}

void add_squares_of_half(DType dtype, const std::uint16_t* x, std::int64_t count, Squares& sum) {
    float values[tile_size];
    for (std::int64_t at = 0; at < count; at += tile_size) {
        std::int64_t own = std::min(tile_size, count - at);
        decode_half(dtype, x + at, values, own);
        add_squares(values, own, sum);
    }
}

void add_squares_any(DType dtype, const void* x, std::int64_t first, std::int64_t last,
                     Squares& sum) {
    std::int64_t count = last - first;
    if (is_half(dtype)) {
        add_squares_of_half(dtype, static_cast<const std::uint16_t*>(x) + first, count, sum);
    } else if (dtype == DType::float32) {
        add_squares(static_cast<const float*>(x) + first, count, sum);
    } else {
        add_squares(static_cast<const double*>(x) + first, count, sum);
    }
}

}  // namespace

extern const Kernels ADAMAS_TARGET_KERNELS;
const Kernels ADAMAS_TARGET_KERNELS = {sweep_any, sweep_parts_any, add_squares_any,
                                       add_updates_any};

}  // namespace adamas
