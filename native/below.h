// How many numbers are below a bound: src/adamas/epsilon.py.
#pragma once

#include <cstdint>

namespace adamas {

// The bound is compared as it is, not rounded to `Number`, which is float or double.
template <class Number>
std::int64_t count_below(const Number* numbers, std::int64_t count, double bound);

}  // namespace adamas
