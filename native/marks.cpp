#include "marks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <vector>

#include "parallel.h"

namespace adamas {
namespace {

// Words that one thread takes at once at least.
constexpr std::int64_t chunk_words = 1 << 13;

// How long that takes at least.
constexpr std::int64_t nanoseconds_for_chunk = 2000;

std::int64_t chunk_count(std::int64_t words) { return (words + chunk_words - 1) / chunk_words; }

// Calls body(chunk, first, last) for all words.
template <class Body>
void for_each_chunk(std::int64_t words, Body body) {
    auto at = [&](std::int64_t chunk) {
        std::int64_t first = chunk * chunk_words;
        body(chunk, first, std::min(first + chunk_words, words));
    };
    std::int64_t chunks = chunk_count(words);
    for_each(chunks, chunks * nanoseconds_for_chunk, at);
}

// How many bits are 1, by operations that every machine has for vectors.
std::uint32_t ones(std::uint32_t word) {
    word -= word >> 1 & 0x55555555u;
    word = (word & 0x33333333u) + (word >> 2 & 0x33333333u);
    word = (word + (word >> 4)) & 0x0f0f0f0fu;
    word += word >> 8;
    word += word >> 16;
    return word & 63u;
}

// Which bits of a byte are 1, the lowest first, and how many.
struct Byte {
    std::uint8_t places[8];
    std::uint8_t count;
};

constexpr std::array<Byte, 256> bytes = [] {
    std::array<Byte, 256> all{};
    for (int value = 0; value < 256; ++value) {
        for (std::uint8_t place = 0; place < 8; ++place) {
            if ((value >> place & 1) != 0) {
                all[value].places[all[value].count++] = place;
            }
        }
    }
    return all;
}();

// Writes the indices of a word's elements, the first of which is `element`; returns where they end.
template <class Index>
Index* write_few(std::uint32_t word, Index element, Index* into, const Index* end) {
    for (; word != 0 && into != end; word &= word - 1) {
        *into++ = element + static_cast<Index>(std::countr_zero(word));
    }
    return into;
}

// The same without a branch, for many; what stands behind them is overwritten, up to eight places.
template <class Index>
Index* write_many(std::uint32_t word, Index element, Index* into) {
    for (int shift = 0; shift < marks_in_word; shift += 8) {
        const Byte& byte = bytes[word >> shift & 255];
        for (int i = 0; i < 8; ++i) {
            into[i] = element + static_cast<Index>(shift + byte.places[i]);
        }
        into += byte.count;
    }
    return into;
}

// How many elements each chunk has marked.
std::vector<std::int64_t> counts_of(const std::uint32_t* marks, std::int64_t words) {
    std::vector<std::int64_t> counts(chunk_count(words));
    for_each_chunk(words, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
        std::uint32_t count = 0;
        for (std::int64_t i = first; i < last; ++i) {
            count += ones(marks[i]);
        }
        counts[chunk] = count;
    });
    return counts;
}

}  // namespace

void mark_all(std::uint32_t* marks, std::int64_t elements) {
    std::int64_t whole = elements / marks_in_word, rest = elements % marks_in_word;
    std::fill_n(marks, whole, ~0u);
    if (rest != 0) {
        marks[whole] = (1u << rest) - 1;
    }
}

std::int64_t marked_count(const std::uint32_t* marks, std::int64_t elements) {
    std::int64_t total = 0;
    for (std::int64_t count : counts_of(marks, mark_count(elements))) {
        total += count;
    }
    return total;
}

template <class Index>
bool write_marked(const std::uint32_t* marks, std::int64_t elements, Index* indices,
                  std::int64_t room) {
    std::int64_t words = mark_count(elements);
    // The indices of each chunk end where those of the next one begin.
    std::vector<std::int64_t> ends = counts_of(marks, words);
    std::partial_sum(ends.begin(), ends.end(), ends.begin());
    if ((ends.empty() ? 0 : ends.back()) != room) {
        return false;
    }
    for_each_chunk(words, [&](std::int64_t chunk, std::int64_t first, std::int64_t last) {
        Index* into = indices + (chunk == 0 ? 0 : ends[chunk - 1]);
        const Index* end = indices + ends[chunk];
        bool are_many = end - into > 2 * (last - first);
        for (std::int64_t i = first; i < last; ++i) {
            auto element = static_cast<Index>(i * marks_in_word);
            // Not beyond the end, whoever writes marks meanwhile.
            bool has_room = end - into >= marks_in_word + 8;
            into = are_many && has_room ? write_many(marks[i], element, into)
                                        : write_few(marks[i], element, into, end);
        }
    });
    return true;
}

template bool write_marked(const std::uint32_t*, std::int64_t, std::int32_t*, std::int64_t);
template bool write_marked(const std::uint32_t*, std::int64_t, std::int64_t*, std::int64_t);

}  // namespace adamas
