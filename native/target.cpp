// Compiled once for each machine of targets.h, with that machine's flags and with
// ADAMAS_TARGET_KERNELS naming the table it defines.
#include <algorithm>
#include <type_traits>

#include "codecs.h"
#include "kernels.h"
#include "rule.h"
#include "statistics.h"
#include "sweep.h"

namespace adamas {
namespace {

template <class T, bool Mean, bool Square, bool Largest>
void sweep_tensor(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
                  std::int64_t first, std::int64_t last, TileReport* reports) {
    if constexpr (std::is_same_v<T, float>) {
        if (layout.is_small() || is_half(layout.dtype)) {
            sweep_strips<Mean, Square, Largest>(layout, arrays, numbers, key, first, last, reports);
            return;
        }
    }
    sweep_plain<T, Mean, Square, Largest>(arrays, numbers, first, last, reports);
}

template <class T>
void sweep_layout(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
                  std::int64_t first, std::int64_t last, TileReport* reports) {
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
    sweep(layout, arrays, numbers, key, first, last, reports);
}

void sweep_any(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
               std::int64_t first, std::int64_t last, TileReport* reports) {
    layout.dtype == DType::float64
        ? sweep_layout<double>(layout, arrays, numbers, key, first, last, reports)
        : sweep_layout<float>(layout, arrays, numbers, key, first, last, reports);
}

std::int64_t tile_sums_of_half(DType dtype, const std::uint16_t* x, double scale,
                               std::int64_t first, std::int64_t last, double* sums) {
    float values[tile_size];
    std::int64_t nonfinite = 0;
    for (std::int64_t at = first; at < last; at += tile_size) {
        std::int64_t count = std::min(tile_size, last - at);
        decode_half(dtype, x + at, values, count);
        nonfinite += tile_sums_of(values, scale, 0, count, sums++);
    }
    return nonfinite;
}

std::int64_t tile_sums_any(DType dtype, const void* x, double scale, std::int64_t first,
                           std::int64_t last, double* sums) {
    if (is_half(dtype)) {
        return tile_sums_of_half(dtype, static_cast<const std::uint16_t*>(x), scale, first, last,
                                 sums);
    }
    return dtype == DType::float32
               ? tile_sums_of(static_cast<const float*>(x), scale, first, last, sums)
               : tile_sums_of(static_cast<const double*>(x), scale, first, last, sums);
}

}  // namespace

extern const Kernels ADAMAS_TARGET_KERNELS;
const Kernels ADAMAS_TARGET_KERNELS = {sweep_any, tile_sums_any};

}  // namespace adamas
