// Marks that are set all at once, and read: src/adamas/marks.py. Steps set them in marking.h.
#pragma once

#include <cstdint>

#include "storage.h"

namespace adamas {

// Marks all elements; bits behind the last one stay 0.
void mark_all(std::uint32_t* marks, std::int64_t elements);

// How many elements are marked.
std::int64_t marked_count(const std::uint32_t* marks, std::int64_t elements);

// Writes the indices of marked elements, ascending; false, with anything written, where they are
// not `room`. `Index` is std::int32_t or std::int64_t.
template <class Index>
bool write_marked(const std::uint32_t* marks, std::int64_t elements, Index* indices,
                  std::int64_t room);

}  // namespace adamas
