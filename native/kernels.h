// What target.cpp offers for each machine: the interface between code compiled once per machine and
// the rest.
#pragma once

#include <cstdint>

#include "contract.h"
#include "storage.h"

// For functions that are slow where a compiler leaves them out of the loops they stand in: beyond
// some size of a source file it may. And for functions that make others slow where they are not
// left out.
#if defined(_MSC_VER)
#define ADAMAS_INLINE __forceinline
#define ADAMAS_APART __declspec(noinline)
#else
#define ADAMAS_INLINE [[gnu::always_inline]] inline
#define ADAMAS_APART [[gnu::noinline]]
#endif

namespace adamas {

// How many elements go through all that a step does to them, while they are in the first-level
// cache.
constexpr std::int64_t tile_size = 1024;

// What makes the random bits of one tensor at one step its own.
struct Key {
    std::uint32_t k1, k2;
};

// The numbers of the rule: src/adamas/coefficients.py.
template <class T>
struct Numbers {
    T grad_scale, l2, decay, opposed, keep1, take1, keep2, take2, from_m, from_g, root, inner, eps,
        step;
};

// Elements of a part of a tensor that stand in runs of one length in the whole tensor; both are
// flattened. They reach to the first of the next Runs.
struct Runs {
    std::int64_t first, start;  // the first element, in the part and in the whole tensor
    std::int64_t length;
    std::int64_t pitch;  // from one run to the next in the whole tensor
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
    void* header;          // one for each block, where a form of m or v has them
    void* remainder;       // where rounding keeps it
    std::int64_t offset;   // of the first element, in the whole tensor; with runs, in the part
    const Runs* runs;      // where elements are not consecutive in the whole tensor, else null
    std::uint32_t* marks;  // a bit for each element that changes, of the copy where there is one

    template <class T>
    static T* at(void* array, std::int64_t element) {
        return static_cast<T*>(array) + element;
    }
    // Where the header of the block stands that begins at an element.
    std::uint16_t* header_at(std::int64_t element) const {
        return header == nullptr ? nullptr : at<std::uint16_t>(header, element / block_size);
    }
};

// Whether a tensor is plain: Adam's, with numbers that nothing follows.
inline bool is_plain(const Layout& layout, const Arrays& arrays) {
    bool is_adam = layout.mean && layout.square && !layout.largest;
    bool nothing_follows =
        arrays.ema == nullptr && arrays.copy == nullptr && arrays.marks == nullptr;
    return is_adam && nothing_follows && !layout.is_small() && !is_half(layout.dtype);
}

// The numbers of one step.
struct StepNumbers {
    Numbers<double> rule;
    double ema_keep, ema_take;
    std::uint64_t number;  // of the step, 1 first
};

// The rows of src/adamas/digits.py: digits of 48 bits, then counts of infinite and of NaN elements.
constexpr int digit_count = 89;
constexpr int lowest_exponent = -2148;  // of the unit of digit 0
constexpr int infinite_entry = digit_count, nan_entry = digit_count + 1;
constexpr int row_width = digit_count + 2;

// A sum of squares. Its functions stand in exact_sum.h.
struct Squares {
    std::int64_t row[row_width] = {};
    int first = digit_count, end = 0;  // digits outside are 0
    int additions = 0;                 // since digits were carried
};

// Some elements of one tensor.
struct Part {
    const Arrays* arrays;
    std::int64_t first, last;
};

// What a step did to some elements of one tensor.
struct Report {
    Squares gradient, parameter, update;
    double largest = 0;  // of |u|; NaN if any is
    std::int64_t moved = 0;
};

// A machine's functions. `first` and `last` are element indices; `first` is a multiple of the
// tile size.
struct Kernels {
    // Steps elements first to last, and adds to `report` where it is not null.
    void (*sweep)(const Layout&, const Arrays&, const StepNumbers&, Key, std::int64_t first,
                  std::int64_t last, Report* report);
    // Steps parts of tensors that are plain, by the same numbers.
    void (*sweep_parts)(DType, const StepNumbers&, const Part* parts, std::int64_t count);
    // Adds the squares of elements first to last.
    void (*add_squares)(DType, const void* x, std::int64_t first, std::int64_t last, Squares& sum);
    // Adds those of their updates without a first moment: rule.h's unsmoothed.
    void (*add_updates)(const Layout&, const Arrays&, const Numbers<double>&, std::int64_t first,
                        std::int64_t last, Squares& sum);
};

}  // namespace adamas
