// What adds the sums of other processes to those of this one.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "buffer.h"
#include "kernels.h"

namespace adamas {

// A function of Python that adds to rows in place, and the array that it is given; or none.
class Exchange {
public:
    Exchange() = default;
    Exchange(nanobind::object function, std::size_t rows)
        : function_(std::move(function)), row_count_(rows) {
        if (function_.is_none()) {
            return;
        }
        if (PyCallable_Check(function_.ptr()) == 0) {
            throw std::invalid_argument("The exchange of a plan must be a function of its rows.");
        }
        nanobind::object numpy = nanobind::module_::import_("numpy");
        array_ = numpy.attr("zeros")(nanobind::make_tuple(rows, row_width), numpy.attr("int64"));
        memory_.acquire(array_.ptr(), PyBUF_CONTIG);
    }

    std::size_t row_count() const { return row_count_; }
    bool is_none() const { return !function_.is_valid() || function_.is_none(); }

    void operator()(std::vector<std::int64_t>& rows) const {
        auto* shared = static_cast<std::int64_t*>(memory_.view().buf);
        std::copy(rows.begin(), rows.end(), shared);
        function_(array_);
        std::copy_n(shared, rows.size(), rows.begin());
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(function_.ptr());
        Py_VISIT(array_.ptr());
        return 0;
    }

    void clear() {
        memory_.release();
        array_.reset();
        function_.reset();
    }

private:
    nanobind::object function_, array_;
    std::size_t row_count_ = 0;
    Buffer memory_;
};

}  // namespace adamas
