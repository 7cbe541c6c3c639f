#include "below.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "parallel.h"

namespace adamas {
namespace {

// Numbers that one thread takes at once at least.
constexpr std::int64_t chunk_size = 1 << 14;

// How long that takes at least.
constexpr std::int64_t nanoseconds_for_chunk = 1000;

}  // namespace

template <class Number>
std::int64_t count_below(const Number* numbers, std::int64_t count, double bound) {
    auto limit = static_cast<Number>(bound);
    if (static_cast<double>(limit) < bound) {
        limit = std::nextafter(limit, std::numeric_limits<Number>::infinity());
    }
    auto in_range = [&](std::int64_t first, std::int64_t last) {
        std::int32_t found = 0;
        for (std::int64_t i = first; i < last; ++i) {
            found += numbers[i] < limit ? 1 : 0;
        }
        return found;
    };
    if (count <= chunk_size) {
        return in_range(0, count);
    }
    std::vector<std::int32_t> counts((count + chunk_size - 1) / chunk_size);
    auto in_chunk = [&](std::int64_t chunk) {
        std::int64_t first = chunk * chunk_size;
        counts[chunk] = in_range(first, std::min(first + chunk_size, count));
    };
    auto chunks = static_cast<std::int64_t>(counts.size());
    for_each(chunks, chunks * nanoseconds_for_chunk, in_chunk);
    std::int64_t total = 0;
    for (std::int32_t found : counts) {
        total += found;
    }
    return total;
}

template std::int64_t count_below(const float*, std::int64_t, double);
template std::int64_t count_below(const double*, std::int64_t, double);

}  // namespace adamas
