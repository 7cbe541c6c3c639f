// What target.cpp offers for each machine: the interface between code compiled once per machine and
// the rest.
#pragma once

#include <cstdint>

#include "contract.h"
#include "storage.h"

namespace adamas {

// Sums are taken over tiles of the flattened tensor; see src/adamas/statistics.py.
constexpr std::int64_t tile_size = 1024;
constexpr int lane_count = 16;

// What makes the random bits of one tensor at one step its own.
struct Key {
    std::uint32_t k1, k2;
};

// The numbers of the rule: src/adamas/coefficients.py.
template <class T>
struct Numbers {
    T grad_scale, l2, decay, keep1, take1, keep2, take2, from_m, from_g, root, inner, eps, step;
};

// The arrays of one tensor, all of one length; null where the tensor has none. Parameter and
// gradient have its dtype; w, the average, and m and v but in a small form the dtype of arithmetic.
struct Arrays {
    void* p;
    const void* g;
    void* m;
    void* v;
    void* w;
    void* ema;
    std::uint16_t* copy;  // of the new parameter, in half precision
    DType copy_type;
    void* header;         // one for each block, where a form of m or v has them
    void* remainder;      // where rounding keeps it
    std::int64_t offset;  // of the first element, in the whole tensor

    template <class T>
    static T* at(void* array, std::int64_t element) {
        return static_cast<T*>(array) + element;
    }
    // Where the header of the block stands that begins at an element.
    std::uint16_t* header_at(std::int64_t element) const {
        return header == nullptr ? nullptr : at<std::uint16_t>(header, element / block_size);
    }
};

// The numbers of one step.
struct StepNumbers {
    Numbers<double> rule;
    double ema_keep, ema_take;
    std::uint64_t number;  // of the step, 1 first
};

// Exact factors for sums of squares: as it is, and for float64 what over- or underflows.
constexpr double scales[] = {1.0, 0x1p-600, 0x1p+600};
constexpr double smallest_sum = 0x1p-900;

// The sums of squares of one quantity over one tile, at each of the scales. For float32 all are the
// plain sum: it leaves float64's range only where it is 0 or infinite, as it is at every scale.
struct Squares {
    double at[3];
};

// What one step did to one tile.
struct TileReport {
    Squares gradient, parameter, update;
    double largest;  // of |u|
    std::int64_t nonfinite, moved;
};

// A machine's functions. `first` and `last` are element indices; `first` is a multiple of the
// tile size.
struct Kernels {
    // Steps elements first to last. `reports`, where not null, takes one entry per tile.
    void (*sweep)(const Layout&, const Arrays&, const StepNumbers&, Key, std::int64_t first,
                  std::int64_t last, TileReport* reports);
    // Writes the sum of squares of x·scale for each tile of first to last; returns the number of
    // elements that are not finite.
    std::int64_t (*tile_sums)(DType, const void* x, double scale, std::int64_t first,
                              std::int64_t last, double* sums);
};

}  // namespace adamas
