// The memory that a step writes, from which gradients must be apart.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

namespace adamas {

struct Span {
    std::uintptr_t start = 0, end = 0;
};

class Written {
public:
    void add(Span span) {
        spans_.push_back(span);
        is_sorted_ = false;
    }

    // Whether what is read shares nothing with what is written. `known` is free memory around it,
    // found here by an earlier call: most gradients stay where they were, or near.
    bool is_apart(Span read, Span& known) {
        if ((known.start <= read.start && read.end <= known.end) || read.start == read.end)
            [[likely]] {
            return true;
        }
        sort();
        auto after = std::partition_point(spans_.begin(), spans_.end(),
                                          [&](const Span& span) { return span.end <= read.start; });
        if (after != spans_.end() && after->start < read.end) {
            return false;
        }
        known.start = after == spans_.begin() ? 0 : std::prev(after)->end;
        known.end = after == spans_.end() ? UINTPTR_MAX : after->start;
        return true;
    }

private:
    // Puts the spans in order, and what meets together.
    void sort() {
        if (is_sorted_) {
            return;
        }
        std::sort(spans_.begin(), spans_.end(),
                  [](const Span& a, const Span& b) { return a.start < b.start; });
        std::vector<Span> apart;
        for (const Span& span : spans_) {
            if (span.start == span.end) {
                continue;
            }
            if (!apart.empty() && span.start <= apart.back().end) {
                apart.back().end = std::max(apart.back().end, span.end);
            } else {
                apart.push_back(span);
            }
        }
        spans_ = std::move(apart);
        is_sorted_ = true;
    }

    std::vector<Span> spans_;  // apart and in order once they are sorted
    bool is_sorted_ = true;
};

}  // namespace adamas
