// The Python module adamas._native.
#include "bindings.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "below.h"
#include "buffer.h"
#include "convert.h"
#include "dispatch.h"
#include "float_mode.h"
#include "marks.h"
#include "parallel.h"

namespace nb = nanobind;

namespace adamas {
namespace {

std::vector<std::string> target_names(bool only_here) {
    std::vector<std::string> names;
    for (const Target& each : targets()) {
        if (each.runs_here || !only_here) {
            names.emplace_back(each.name);
        }
    }
    return names;
}

nb::tuple numbers_of(nb::handle options, nb::handle step, double lr, double grad_scale) {
    Numbers<double> c = at_step(options_of(options), step_of(step), lr, grad_scale);
    return nb::make_tuple(c.grad_scale, c.l2, c.decay, c.opposed, c.keep1, c.take1, c.keep2,
                          c.take2, c.from_m, c.from_g, c.root, c.inner, c.eps, c.step);
}

// Adds the squares of an array to a row of adamas.digits.
void add_squares_of(nb::handle array, nb::handle row) {
    Buffer elements, sum;
    if (!elements.acquire(array.ptr(), PyBUF_RECORDS_RO) || !dtype_of(elements.view()) ||
        !PyBuffer_IsContiguous(&elements.view(), 'C')) {
        throw std::invalid_argument(
            "Squares are added of a C-contiguous array of float32, float64, float16, or uint16, "
            "the bits of bfloat16.");
    }
    if (!sum.acquire(row.ptr(), PyBUF_RECORDS) || !PyBuffer_IsContiguous(&sum.view(), 'C') ||
        !is_int64(sum.view()) || sum.view().len != row_width * 8) {
        throw std::invalid_argument("A row is a writeable contiguous array of 91 int64.");
    }
    const Py_buffer& view = elements.view();
    std::int64_t count = view.len / view.itemsize;
    auto* digits = static_cast<std::int64_t*>(sum.view().buf);
    std::optional<LockReleased> others_run;
    if (count >= 16 * tile_size) {
        others_run.emplace();
    }
    add_squares(dtype_of(view).value(), view.buf, count, digits);
}

// How many numbers of each array are below a bound.
nb::list counts_below_of(nb::list arrays, nb::list bounds) {
    if (arrays.size() != bounds.size()) {
        throw std::invalid_argument("Each array needs a bound.");
    }
    FloatMode mode;
    nb::list counts;
    for (std::size_t i = 0; i < arrays.size(); ++i) {
        Buffer numbers;
        const Py_buffer& view = numbers.view();
        std::optional<DType> dtype;
        if (numbers.acquire(nb::handle(arrays[i]).ptr(), PyBUF_RECORDS_RO) &&
            PyBuffer_IsContiguous(&view, 'C')) {
            dtype = dtype_of(view);
        }
        if (dtype != DType::float32 && dtype != DType::float64) {
            throw std::invalid_argument("Numbers are C-contiguous arrays of float32 or float64.");
        }
        auto bound = nb::cast<double>(bounds[i]);
        std::int64_t count = view.len / view.itemsize, found;
        {
            std::optional<LockReleased> others_run;
            if (count >= 16 * tile_size) {
                others_run.emplace();
            }
            found = dtype == DType::float32
                        ? count_below(static_cast<const float*>(view.buf), count, bound)
                        : count_below(static_cast<const double*>(view.buf), count, bound);
        }
        counts.append(found);
    }
    return counts;
}

// The words of marks of `count` elements; `memory` holds them.
const std::uint32_t* words_of(nb::handle marks, std::int64_t count, Buffer& memory) {
    if (!memory.acquire(marks.ptr(), PyBUF_RECORDS_RO) ||
        !PyBuffer_IsContiguous(&memory.view(), 'C') || memory.view().itemsize != 4 ||
        memory.view().len != mark_count(count) * 4) {
        throw std::invalid_argument(
            "Marks are a C-contiguous array of int32, one for 32 elements.");
    }
    return static_cast<const std::uint32_t*>(memory.view().buf);
}

std::int64_t marked_count_of(nb::handle marks, nb::handle count) {
    Buffer memory;
    std::int64_t elements = place_of(count, "count");
    const std::uint32_t* words = words_of(marks, elements, memory);
    std::optional<LockReleased> others_run;
    if (memory.view().len >= 16 * tile_size) {
        others_run.emplace();
    }
    return marked_count(words, elements);
}

void write_marked_of(nb::handle marks, nb::handle count, nb::handle indices) {
    Buffer memory, into;
    std::int64_t elements = place_of(count, "count");
    const std::uint32_t* words = words_of(marks, elements, memory);
    const Py_buffer& view = into.view();
    if (!into.acquire(indices.ptr(), PyBUF_RECORDS) || !PyBuffer_IsContiguous(&view, 'C') ||
        (view.itemsize != 4 && !is_int64(view))) {
        throw std::invalid_argument("Indices are a writeable contiguous array of int32 or int64.");
    }
    bool is_written;
    {
        std::optional<LockReleased> others_run;
        if (memory.view().len >= 16 * tile_size) {
            others_run.emplace();
        }
        std::int64_t room = view.len / view.itemsize;
        is_written =
            view.itemsize == 4
                ? write_marked(words, elements, static_cast<std::int32_t*>(view.buf), room)
                : write_marked(words, elements, static_cast<std::int64_t*>(view.buf), room);
    }
    if (!is_written) {
        throw std::invalid_argument("There must be one index for each element that is marked.");
    }
}

// Advice for the whole pages among `size` bytes from `address`; what comes of it is the system's.
void ask_for_huge_pages([[maybe_unused]] std::uintptr_t address,
                        [[maybe_unused]] std::size_t size) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    std::uintptr_t page = sysconf(_SC_PAGESIZE), end = (address + size) / page * page;
    std::uintptr_t first = (address + page - 1) / page * page;
    if (first < end) {
        madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
    }
#endif
}

}  // namespace
}  // namespace adamas

NB_MODULE(_native, module) {
    using namespace adamas;
    module.doc() = "Compiled steps over arrays; use the front-ends of adamas instead.";
    // Where a hook of a tensor holds an optimizer, torch keeps both until the process ends, which
    // is after nanobind looks for instances that are left and takes them for leaks.
    nb::set_leak_warnings(false);
    target();  // chosen now: a fork in the midst of choosing would leave the child waiting for ever
    bind_array_plan(module);
    bind_tensor_plan(module);
    bind_tensor_watch(module);
    module.def("marked_count", &marked_count_of, nb::arg("marks"), nb::arg("count"),
               "How many of `count` elements are marked.");
    module.def("write_marked", &write_marked_of, nb::arg("marks"), nb::arg("count"),
               nb::arg("indices"), "Write the indices of the marked elements.");
    module.def("counts_below", &counts_below_of, nb::arg("arrays"), nb::arg("bounds"),
               "How many numbers of each array of float32 or float64 are below its bound.");
    module.def("target", [] { return std::string(target().name); }, "The machine in use.");
    module.def("targets", &target_names, nb::arg("only_here") = false,
               "The machines this build has code for, best first.");
    module.def("set_target", &set_target, nb::arg("name"), "Change the machine in use.");
    module.def("thread_count", &thread_count, "How many threads a large step uses.");
    module.def("set_thread_count", &set_thread_count, nb::arg("count"),
               "Change it; 0 stands for the usual number.");
    module.def("set_usual_threads", &set_usual_threads, nb::arg("count"),
               "Change how many it uses at most where nobody has set the number.");
    module.def("processor_count", &processor_count, "Processors this process may run on.");
    module.def("ask_for_huge_pages", &ask_for_huge_pages, nb::arg("address"), nb::arg("size"),
               "Ask the system for huge pages where memory of this process has whole ones.");
    module.def("numbers", &numbers_of, nb::arg("options"), nb::arg("step").none(), nb::arg("lr"),
               nb::arg("grad_scale"), "The numbers of the rule, as adamas.coefficients.at_step.");
    module.def("add_squares", &add_squares_of, nb::arg("array"), nb::arg("row"),
               "Add the squares of all elements to a row of adamas.digits, in place.");
}
