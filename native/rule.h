// The rule: what one step does to one element. The lines are those of src/adamas/rule.py, and a
// test compares the two; read that file for what the letters mean and where they come from.
//
// Included by target.cpp only, which compiles it once per machine: everything here has internal
// linkage, so that no machine's code can replace another's at link time.
#pragma once

#include <cmath>
#include <limits>

#include "kernels.h"

namespace adamas {
namespace {

// The numbers in the arithmetic T of the parameter, each rounded once.
template <class T>
inline Numbers<T> rounded(const Numbers<double>& c) {
    return {T(c.grad_scale), T(c.l2),    T(c.decay), T(c.opposed), T(c.keep1),
            T(c.take1),      T(c.keep2), T(c.take2), T(c.from_m),  T(c.from_g),
            T(c.root),       T(c.inner), T(c.eps),   T(c.step)};
}

template <class T>
struct Result {
    T p, m, v, w, u, change;
};

template <class T>
ADAMAS_INLINE T flush(T x) {
    return std::abs(x) < std::numeric_limits<T>::min() ? T(0) : x;
}

template <class T>
ADAMAS_INLINE T ratio(T u, T d) {
    bool still = (d == 0) & (u == u);
    return still ? T(0) : u / d;
}

// The two ways to divide: any d, and one that is known not to be 0, where both are the same.
struct Ratio {
    template <class T>
    T operator()(T u, T d) const {
        return ratio(u, d);
    }
};
struct Quotient {
    template <class T>
    T operator()(T u, T d) const {
        return u / d;
    }
};

// Numbers that are known: 1, and 0 where its term changes nothing.
struct One {
    template <class T>
    ADAMAS_INLINE friend T operator*(T x, One) {
        return x;
    }
};
struct Nothing {
    template <class T>
    ADAMAS_INLINE friend Nothing operator*(Nothing, T) {
        return {};
    }
    template <class T>
    ADAMAS_INLINE friend T operator+(T x, Nothing) {
        return x;
    }
};
// 0 times x, but for the sign of that: still NaN where x is not finite.
struct Naught {
    template <class T>
    ADAMAS_INLINE friend T operator*(Naught, T x) {
        return x - x;
    }
};

// The numbers of most steps of methods with a mean and a square, whose neutral terms are left out.
//
// No bit depends on it, whatever the elements are. The sign of a zero gradient is lost in m, which
// is flushed, and in v, where it is squared. So m is no -0, and with from_m >= 1 neither is the
// first term of u: a second one of either zero adds nothing. Where that would be NaN, as g is
// infinite, m and v are not finite, and so u is NaN, too. Under the root there is no -0 either. All
// of that is about g after it was scaled, by One or, where gradients are clipped, by a number.
template <class T, class Scale>
struct UsualNumbers {
    UsualNumbers(const Numbers<T>& c, Scale scale)
        : grad_scale(scale),
          decay(c.decay),
          opposed(c.opposed),
          keep1(c.keep1),
          take1(c.take1),
          keep2(c.keep2),
          take2(c.take2),
          from_m(c.from_m),
          root(c.root),
          eps(c.eps),
          step(c.step) {}

    Scale grad_scale;
    Naught l2;
    T decay, opposed, keep1, take1, keep2, take2, from_m;
    Nothing from_g;
    T root;
    Nothing inner;
    T eps, step;
};

// Whether they are these.
template <class T>
inline bool are_usual(const Numbers<T>& c) {
    bool are_neutral = c.l2 == 0 && c.from_g == 0 && c.inner == 0;
    return are_neutral && c.take1 > 0 && c.take2 > 0 && c.from_m >= 1;
}

template <class T>
ADAMAS_INLINE T maximum(T a, T b) {
    return (a > b) | (a != a) ? a : b;
}

template <class T>
ADAMAS_INLINE T shrinkage(T decay, T opposed, T u, T p) {
    bool differ = ((u < 0) & (p > 0)) | ((u > 0) & (p < 0));
    return differ ? opposed * p : decay * p;
}

// The two ways to decay: by the signs of update and parameter, and where both numbers are one.
struct BySigns {
    template <class T>
    ADAMAS_INLINE T operator()(T decay, T opposed, T u, T p) const {
        return shrinkage(decay, opposed, u, p);
    }
};
struct Alike {
    template <class T>
    ADAMAS_INLINE T operator()(T decay, T, T, T p) const {
        return decay * p;
    }
};

template <class T>
ADAMAS_INLINE T smooth(T keep, T take, T mean, T x) {
    return flush(keep * mean + take * x);
}

template <class T, bool Decays, bool Largest, class Division>
inline T unsmoothed(const Numbers<T>& c, T p, T g, T v, T w, Division ratio) {
    using std::sqrt;
    g = g * c.grad_scale;
    if constexpr (Decays) {
        g = g + c.l2 * p;
    }
    v = flush(c.keep2 * v + c.take2 * g * g);
    T s = v;
    if constexpr (Largest) {
        w = maximum(w, v);
        s = w;
    }
    T d = maximum(sqrt(s + c.inner) * c.root, c.eps);
    return ratio(g, d);
}

template <class T, bool Mean, bool Square, bool Largest, class OwnNumbers, class Division,
          class Decaying>
ADAMAS_INLINE Result<T> rule(const OwnNumbers& c, T p, T g, T m, T v, T w, Division ratio,
                             Decaying shrinkage) {
    using std::sqrt;
    g = g * c.grad_scale + c.l2 * p;
    if constexpr (Mean) {
        m = flush(c.keep1 * m + c.take1 * g);
    }
    if constexpr (Square) {
        v = flush(c.keep2 * v + c.take2 * g * g);
    }
    T s = v;
    if constexpr (Largest) {
        w = maximum(w, v);
        s = w;
    }
    T u = g;
    if constexpr (Mean) {
        u = c.from_m * m + c.from_g * g;
    }
    if constexpr (Square) {
        T d = sqrt(s + c.inner) * c.root + c.eps;
        u = ratio(u, d);
    }
    T change = c.step * u + shrinkage(c.decay, c.opposed, u, p);
    p = p - change;
    return {p, m, v, w, u, change};
}

}  // namespace
}  // namespace adamas
