// The only loop. Included by target.cpp only.
//
// The step of a tensor without extras is one loop over its elements. Where the phase asks for
// more (EMA of the weights, a low-precision copy, statistics, marks of what changes), the same loop
// runs tile by tile and the extras follow while the tile is in the first-level cache. Tensors with
// small forms of m or v or with parameters in half precision go through it in strips, which are
// decoded before and encoded after (codecs.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "codecs.h"
#include "half.h"
#include "kernels.h"
#include "marking.h"
#include "rule.h"
#include "statistics.h"
#if defined(ADAMAS_FOR_avx512)
#include "avx512_strips.h"
#endif

namespace adamas {
namespace {

// What some elements of a recorded tile leave behind besides their new values.
template <class T>
struct Record {
    T *before, *u, *change;
    T *p, *g;  // parameter and gradient, where they are not in memory as numbers
};

template <class T>
struct RecordedTile {
    alignas(64) T before[tile_size];
    alignas(64) T u[tile_size];
    alignas(64) T change[tile_size];
    alignas(64) T p[tile_size];
    alignas(64) T g[tile_size];

    Record<T> from(std::int64_t element) {
        return {before + element, u + element, change + element, p + element, g + element};
    }
};

// What the loop leaves behind besides new values: nothing, a Record, or the differences of the
// parameters' bits.
enum class Left { nothing, record, differences };

template <class T, bool Mean, bool Square, bool Largest, Left left, class OwnNumbers,
          class Division, class Decaying>
inline void step_dividing(const OwnNumbers c, T* __restrict p, const T* __restrict g,
                          T* __restrict m, T* __restrict v, T* __restrict w, Record<T> record,
                          Bits<T>* __restrict differences, std::int64_t count, Division ratio,
                          Decaying shrinkage) {
    T* __restrict before = record.before;
    T* __restrict u = record.u;
    T* __restrict change = record.change;
    for (std::int64_t i = 0; i < count; ++i) {
        Result<T> result =
            rule<T, Mean, Square, Largest>(c, p[i], g[i], Mean ? m[i] : T(0), Square ? v[i] : T(0),
                                           Largest ? w[i] : T(0), ratio, shrinkage);
        if constexpr (left == Left::record) {
            before[i] = p[i];
            u[i] = result.u;
            change[i] = result.change;
        } else if constexpr (left == Left::differences) {
            differences[i] = difference(p[i], result.p);
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

// Steps by the signs of update and parameter; the rest is as in step_elements. It is a function of
// its own, which takes the numbers by value, so that compilers treat the loops of all other decays
// as if it were not there.
template <class T, bool Mean, bool Square, bool Largest>
ADAMAS_APART void step_by_signs(Numbers<T> c, T* p, const T* g, T* m, T* v, T* w,
                                const Record<T>* record, Bits<T>* differences, std::int64_t count) {
    if (record != nullptr) {
        step_dividing<T, Mean, Square, Largest, Left::record>(c, p, g, m, v, w, *record, nullptr,
                                                              count, Ratio(), BySigns());
    } else if (differences != nullptr) {
        step_dividing<T, Mean, Square, Largest, Left::differences>(
            c, p, g, m, v, w, {}, differences, count, Ratio(), BySigns());
    } else {
        step_dividing<T, Mean, Square, Largest, Left::nothing>(c, p, g, m, v, w, {}, nullptr, count,
                                                               Ratio(), BySigns());
    }
}

// Steps `count` elements by numbers that are usual and an eps above 0. A function of its own: put
// where it is called, it would push the other loops out of there, and GCC would not vectorise them.
template <class T, class Scale>
ADAMAS_APART void step_usually(const Numbers<T>& c, Scale scale, T* p, const T* g, T* m, T* v,
                               std::int64_t count) {
    UsualNumbers<T, Scale> usual(c, scale);
    step_dividing<T, true, true, false, Left::nothing>(usual, p, g, m, v, static_cast<T*>(nullptr),
                                                       {}, nullptr, count, Quotient(), Alike());
}

// Whether step_usually is for these numbers.
template <class T>
inline bool is_usually_stepped(const Numbers<T>& c) {
    return c.opposed == c.decay && c.eps > 0 && are_usual(c);
}

// Steps by any numbers.
template <class T, bool Mean, bool Square, bool Largest>
inline void step_in_general(const Numbers<T> c, T* p, const T* g, T* m, T* v, T* w,
                            const Record<T>* record, Bits<T>* differences, std::int64_t count) {
    if (c.opposed != c.decay) {
        step_by_signs<T, Mean, Square, Largest>(c, p, g, m, v, w, record, differences, count);
        return;
    }
    auto divide = [&](auto division) {
        if (record != nullptr) {
            step_dividing<T, Mean, Square, Largest, Left::record>(
                c, p, g, m, v, w, *record, nullptr, count, division, Alike());
        } else if (differences != nullptr) {
            step_dividing<T, Mean, Square, Largest, Left::differences>(
                c, p, g, m, v, w, {}, differences, count, division, Alike());
        } else {
            step_dividing<T, Mean, Square, Largest, Left::nothing>(c, p, g, m, v, w, {}, nullptr,
                                                                   count, division, Alike());
        }
    };
    // d is a root, times a positive number, plus eps: with eps > 0 it is positive, or NaN.
    if (!Square || c.eps > 0) {
        divide(Quotient());
    } else {
        divide(Ratio());
    }
}

// Steps `count` elements; `record` is null where nothing is recorded. `differences` are written
// where they are not null and nothing is recorded. Copies of the numbers would take as long as a
// step of some tens of elements.
template <class T, bool Mean, bool Square, bool Largest>
inline void step_elements(const Numbers<T>& c, T* p, const T* g, T* m, T* v, T* w,
                          const Record<T>* record, Bits<T>* differences, std::int64_t count) {
    if constexpr (Mean && Square && !Largest) {
        if (record == nullptr && differences == nullptr && is_usually_stepped(c)) {
            c.grad_scale == 1 ? step_usually(c, One(), p, g, m, v, count)
                              : step_usually(c, c.grad_scale, p, g, m, v, count);
            return;
        }
    }
    step_in_general<T, Mean, Square, Largest>(c, p, g, m, v, w, record, differences, count);
}

template <class T>
inline void average(T keep, T take, T* __restrict mean, const T* __restrict p, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        mean[i] = smooth(keep, take, mean[i], p[i]);
    }
}

template <class T>
inline void add_to(Report& report, const RecordedTile<T>& tile, const T* p, const T* g,
                   std::int64_t count) {
    add_squares(g, count, report.gradient);
    add_squares(tile.before, count, report.parameter);
    add_squares(tile.change, count, report.update);
    report.largest = maximum(largest_magnitude(tile.u, count), report.largest);
    report.moved += count_different(p, tile.before, count);
}

// -- as they are ---------------------------------------------------------------------------------

template <class T, bool Mean, bool Square, bool Largest>
void sweep_plain(const Arrays& arrays, const StepNumbers& numbers, std::int64_t first,
                 std::int64_t last, Report* report) {
    Numbers<T> c = rounded<T>(numbers.rule);
    T ema_keep = static_cast<T>(numbers.ema_keep);
    T ema_take = static_cast<T>(numbers.ema_take);
    auto p = static_cast<T*>(arrays.p);
    auto g = static_cast<const T*>(arrays.g);
    auto m = static_cast<T*>(arrays.m);
    auto v = static_cast<T*>(arrays.v);
    auto w = static_cast<T*>(arrays.w);
    auto ema = static_cast<T*>(arrays.ema);
    bool by_tile =
        ema != nullptr || arrays.copy != nullptr || arrays.marks != nullptr || report != nullptr;
    // In parts that are this short, memory is read for the next one while this one is computed.
    constexpr std::int64_t short_part = 256;
    std::int64_t part = arrays.marks != nullptr || report != nullptr ? tile_size : short_part;
    std::int64_t stride = by_tile ? part : last - first;
    Marking<T> marking;
    RecordedTile<T> tile;
    Record<T> record = tile.from(0);
    for (std::int64_t at = first; at < last; at += stride) {
        std::int64_t count = std::min(stride, last - at);
        if (arrays.marks != nullptr) {
            marking.begin(arrays, at, count, DType::float32);
        }
        step_elements<T, Mean, Square, Largest>(
            c, p + at, g + at, Mean ? m + at : nullptr, Square ? v + at : nullptr,
            Largest ? w + at : nullptr, report == nullptr ? nullptr : &record,
            marking.of_numbers(arrays, DType::float32), count);
        if (report != nullptr) {
            add_to(*report, tile, p + at, g + at, count);
        }
        if (ema != nullptr) {
            average(ema_keep, ema_take, ema + at, p + at, count);
        }
        if (arrays.copy != nullptr) {
            write_copy(arrays.copy_type, arrays.copy + at, p + at, marking.of_copy(arrays), count);
        }
        if (arrays.marks != nullptr) {
            if (report != nullptr) {
                marking.compare(tile.before, p + at);
            }
            marking.end();
        }
    }
}

// -- in strips -----------------------------------------------------------------------------------

#if defined(ADAMAS_FOR_avx512)
using ByHand = StepStrips;
#else
using ByHand = std::nullptr_t;
#endif

// What steps whole strips of a tensor by hand; null where they go through the stages below.
template <bool Mean, bool Square, bool Largest>
inline ByHand step_by_hand([[maybe_unused]] const Work& work, [[maybe_unused]] const Arrays& arrays,
                           [[maybe_unused]] const Report* report) {
#if defined(ADAMAS_FOR_avx512)
    if constexpr (Mean && Square && !Largest) {
        return report == nullptr ? by_hand(work, arrays) : nullptr;
    }
#endif
    return nullptr;
}

// What N elements need after their step: averages, copies and statistics of the new parameters.
// `differences` are of the copy.
template <int N>
inline void follow(const Work& work, const Arrays& arrays, std::int64_t at, Scratch& scratch,
                   const Record<float>* record, std::uint16_t* differences) {
    auto ema = static_cast<float*>(arrays.ema);
    bool half = is_half(work.layout.dtype);
    if (ema == nullptr && arrays.copy == nullptr && record == nullptr) {
        return;
    }
    if (half) {
        decode_parameters(work.layout, arrays, at, scratch.p, N);
    }
    const float* p = half ? scratch.p : arrays.at<float>(arrays.p, at);
    if (ema != nullptr) {
        average(work.ema_keep, work.ema_take, ema + at, p, N);
    }
    if (arrays.copy != nullptr) {
        write_copy(arrays.copy_type, arrays.copy + at, p, differences, N);
    }
    if (record != nullptr && half) {
        std::copy_n(p, N, record->p);
        std::copy_n(scratch.g, N, record->g);
    }
}

// Steps the N elements from `at` on. `record` is null where nothing is recorded.
template <int N, bool Mean, bool Square, bool Largest>
inline void step_strip(const Work& work, const Arrays& arrays, std::int64_t at, Scratch& scratch,
                       const Record<float>* record, Marking<float>& marking) {
    const Layout& layout = work.layout;
    float* p = arrays.at<float>(arrays.p, at);
    const float* g = static_cast<const float*>(arrays.g) + at;
    bool half = is_half(layout.dtype);
    if (half) {
        decode_parameters(layout, arrays, at, scratch.p, N);
        decode_half(layout.dtype, static_cast<const std::uint16_t*>(arrays.g) + at, scratch.g, N);
        p = scratch.p;
        g = scratch.g;
    }
    if (layout.is_small()) {
        decode_means<N>(layout, arrays, at, scratch);
    }
    float* m = means_of(layout, arrays, at, scratch);
    float* v = squares_of(layout, arrays, at, scratch);
    float* w = Largest ? arrays.at<float>(arrays.w, at) : nullptr;
    step_elements<float, Mean, Square, Largest>(work.c, p, g, m, v, w, record,
                                                marking.of_numbers(arrays, layout.dtype), N);
    // The codes of the strip before: a processor compares them while it divides.
    marking.end();
    marking.begin(arrays, at, N, layout.dtype);
    if (record != nullptr) {
        marking.compare(record->before, p);
    }
    if (!marking.is_by_codes()) {
        marking.end();
    }
    if (layout.draws()) {
        draw<N>(work.key, arrays, at, scratch.random);
    }
    if (layout.is_small()) {
        encode_means<N>(layout, arrays, at, scratch);
    }
    if (half) {
        encode_parameters(layout, arrays, at, scratch.p, scratch.random, marking.of_codes(arrays),
                          N);
    }
    follow<N>(work, arrays, at, scratch, record, marking.of_copy(arrays));
}

#if defined(ADAMAS_FOR_avx512)

// The same for `count` whole strips of a tile by hand, and with nothing to record.
inline void step_strips_by_hand(ByHand step, const Work& work, const Arrays& arrays,
                                std::int64_t at, std::int64_t count, Scratch& scratch,
                                Marking<float>& marking) {
    DType dtype = work.layout.dtype;
    marking.end();
    marking.begin(arrays, at, count * strip_size, dtype);
    marking.keep(arrays, at, dtype);
    step(work, arrays, at, count);
    marking.compare_kept(arrays, at, dtype);
    if (!marking.is_by_codes()) {
        marking.end();
    }
    std::uint16_t* differences = marking.of_copy(arrays);
    for (std::int64_t i = 0; i < count * strip_size; i += strip_size) {
        follow<strip_size>(work, arrays, at + i, scratch, nullptr,
                           differences == nullptr ? nullptr : differences + i);
    }
}

#endif

// The last elements of a tensor, fewer than a block, filled up with zeros.
class LastBlock {
public:
    LastBlock(const Layout& layout, const Arrays& arrays, std::int64_t at, std::int64_t count)
        : at_(at), count_(count), block_(arrays) {
        std::int64_t number = layout.number().bytes(), whole = row_of(layout.dtype).bytes();
        block_.p = loaded(arrays.p, whole);
        block_.m = loaded(arrays.m, layout.mean_element().bytes());
        block_.v = loaded(arrays.v, layout.square_element().bytes());
        block_.w = loaded(arrays.w, number);
        block_.ema = loaded(arrays.ema, number);
        block_.copy = static_cast<std::uint16_t*>(loaded(arrays.copy, sizeof *arrays.copy));
        block_.remainder = loaded(arrays.remainder, layout.remainder_element().bytes());
        written_ = loaded_;
        block_.g = loaded(const_cast<void*>(arrays.g), whole);
        block_.header = arrays.header_at(at);
        block_.offset = arrays.offset + at;
        if (arrays.marks != nullptr) {
            block_.marks = &word_;
            marks_ = arrays.marks + at / marks_in_word;
        }
    }

    const Arrays& arrays() const { return block_; }

    void put_back() {
        for (int i = 0; i < written_; ++i) {
            std::memcpy(places_[i].data, bytes_[i], count_ * places_[i].width);
        }
        if (marks_ != nullptr) {
            *marks_ |= word_ & ((1u << count_) - 1);
        }
    }

private:
    // Where an array has the elements, and the bytes of each.
    struct Place {
        char* data;
        std::int64_t width;
    };

    void* loaded(void* array, std::int64_t width) {
        if (array == nullptr) {
            return nullptr;
        }
        Place place{static_cast<char*>(array) + at_ * width, width};
        char* bytes = bytes_[loaded_];
        places_[loaded_++] = place;
        std::memset(bytes, 0, block_size * width);
        std::memcpy(bytes, place.data, count_ * width);
        return bytes;
    }

    std::int64_t at_, count_;
    int loaded_ = 0, written_ = 0;  // how many there are; how many of them are put back
    Place places_[8];
    alignas(64) char bytes_[8][block_size * 4];
    std::uint32_t word_ = 0;          // of marks
    std::uint32_t* marks_ = nullptr;  // where it is added
    Arrays block_;
};

template <bool Mean, bool Square, bool Largest>
void sweep_strips(const Layout& layout, const Arrays& arrays, const StepNumbers& numbers, Key key,
                  std::int64_t first, std::int64_t last, Report* report) {
    Work work{layout, rounded<float>(numbers.rule), static_cast<float>(numbers.ema_keep),
              static_cast<float>(numbers.ema_take), key};
    [[maybe_unused]] ByHand by_hand = step_by_hand<Mean, Square, Largest>(work, arrays, report);
    Scratch scratch;
    RecordedTile<float> recorded;
    Marking<float> marking;
#if defined(ADAMAS_FOR_avx512)
    bool nothing_follows =
        arrays.ema == nullptr && arrays.copy == nullptr && arrays.marks == nullptr;
    if (by_hand != nullptr && nothing_follows && draws_by_hand(arrays, first, last)) {
        std::int64_t tiles = (last - first) / tile_size;
        by_hand(work, arrays, first, tiles * (tile_size / strip_size));
        first += tiles * tile_size;
    }
#endif
    for (std::int64_t tile = first; tile < last; tile += tile_size) {
        std::int64_t end = std::min(tile + tile_size, last), at = tile;
        Record<float> record;
        auto recording = [&]() {
            record = recorded.from(at - tile);
            return report == nullptr ? nullptr : &record;
        };
#if defined(ADAMAS_FOR_avx512)
        if (by_hand != nullptr && draws_by_hand(arrays, at, end)) {
            std::int64_t strips = (end - at) / strip_size;
            step_strips_by_hand(by_hand, work, arrays, at, strips, scratch, marking);
            at += strips * strip_size;
        }
#endif
        for (; at + strip_size <= end; at += strip_size) {
            step_strip<strip_size, Mean, Square, Largest>(work, arrays, at, scratch, recording(),
                                                          marking);
        }
        for (; at + block_size <= end; at += block_size) {
            step_strip<block_size, Mean, Square, Largest>(work, arrays, at, scratch, recording(),
                                                          marking);
        }
        if (at < end) {
            LastBlock rest(layout, arrays, at, end - at);
            step_strip<block_size, Mean, Square, Largest>(work, rest.arrays(), 0, scratch,
                                                          recording(), marking);
            marking.end();
            rest.put_back();
        }
        if (report != nullptr) {
            bool half = is_half(layout.dtype);
            const float* p = half ? recorded.p : arrays.at<float>(arrays.p, tile);
            const float* g = half ? recorded.g : static_cast<const float*>(arrays.g) + tile;
            add_to(*report, recorded, p, g, end - tile);
        }
    }
    marking.end();
}

}  // namespace
}  // namespace adamas
