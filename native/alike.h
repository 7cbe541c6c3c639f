// Many small tensors in one loop. Included by target.cpp only.
//
// A root and a division after it take longer than a processor looks ahead over calls of the kernel
// for each tensor: where each has few elements, it would wait for one tensor before it begins with
// the next.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "rule.h"
#include "sweep.h"
#if defined(ADAMAS_FOR_avx512)
#include "avx512.h"
#endif

namespace adamas {
namespace {

// Steps the last elements of a tensor, fewer than `width`, where the loop leaves them.
template <class T>
struct Rest {
    static constexpr std::int64_t width = 1;

    explicit Rest(const Numbers<T>&) {}
    void step(T*, const T*, T*, T*, std::int64_t) const {}
};

#if defined(ADAMAS_FOR_avx512)

// By hand: `rule` of rule.h with UsualNumbers. Compilers make several turns of it.
template <>
struct Rest<float> {
    static constexpr std::int64_t width = 16;

    Lanes c;

    explicit Rest(const Numbers<float>& numbers) : c(numbers) {}

    ADAMAS_INLINE void step(float* p, const float* g, float* m, float* v,
                            std::int64_t count) const {
        auto there = static_cast<__mmask16>((1u << count) - 1);
        __m512 old_p = _mm512_maskz_loadu_ps(there, p);
        __m512 new_g = _mm512_maskz_loadu_ps(there, g);
        __m512 new_m = _mm512_maskz_loadu_ps(there, m);
        __m512 new_v = _mm512_maskz_loadu_ps(there, v);
        new_g = _mm512_add_ps(new_g, _mm512_sub_ps(old_p, old_p));  // Naught
        Halfway half = halfway<true>(c, c.keep1, old_p, new_g, new_m, new_v);
        _mm512_mask_storeu_ps(p, there, arrived<true>(c, old_p, half));
        _mm512_mask_storeu_ps(m, there, new_m);
        _mm512_mask_storeu_ps(v, there, new_v);
    }
};

#endif

// Steps parts by numbers that step_usually is for.
template <class T, class Scale>
ADAMAS_APART void step_parts(const Numbers<T>& numbers, Scale scale, const Part* parts,
                             std::int64_t count) {
    const UsualNumbers<T, Scale> c(numbers, scale);
    const Rest<T> rest(numbers);
    for (const Part* part = parts; part != parts + count; ++part) {
        const Arrays& arrays = *part->arrays;
        std::int64_t first = part->first, own = part->last - first;
        T* p = Arrays::at<T>(arrays.p, first);
        const T* g = static_cast<const T*>(arrays.g) + first;
        T* m = Arrays::at<T>(arrays.m, first);
        T* v = Arrays::at<T>(arrays.v, first);
        std::int64_t left = own % Rest<T>::width;
        own -= left;
        if (left > 0) {
            rest.step(p + own, g + own, m + own, v + own, left);
        }
        step_dividing<T, true, true, false, Left::nothing>(c, p, g, m, v, static_cast<T*>(nullptr),
                                                           {}, nullptr, own, Quotient(), Alike());
    }
}

// Kernels::sweep_parts.
template <class T>
void sweep_parts(const StepNumbers& numbers, const Part* parts, std::int64_t count) {
    Numbers<T> c = rounded<T>(numbers.rule);
    if (is_usually_stepped(c)) {
        c.grad_scale == 1 ? step_parts(c, One(), parts, count)
                          : step_parts(c, c.grad_scale, parts, count);
        return;
    }
    for (const Part* part = parts; part != parts + count; ++part) {
        sweep_plain<T, true, true, false>(*part->arrays, numbers, part->first, part->last, nullptr);
    }
}

}  // namespace
}  // namespace adamas
