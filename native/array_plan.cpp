// Plans over objects with the buffer protocol: NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "array_watch.h"
#include "bindings.h"
#include "buffer.h"
#include "convert.h"
#include "float_mode.h"
#include "strided.h"

namespace nb = nanobind;

namespace adamas {
namespace {

// A plan over arrays of Python objects, and the memory they lend it.
class ArrayPlan {
public:
    ArrayPlan(nb::sequence groups, nb::object phase) {
        std::vector<Tensor> tensors;
        nb::object ndarray = nb::module_::import_("numpy").attr("ndarray");
        for (nb::handle group : groups) {
            nb::object options = group.attr("options"), storage = options.attr("storage");
            Options own = options_of(options);
            for (nb::handle slot : nb::cast<nb::sequence>(group.attr("slots"))) {
                Tensor tensor = tensor_of(slot, own, storage);
                nb::object parameter = slot.attr("parameter"), whole = slot.attr("array");
                bool as_bits = !whole.is_none();
                watches_.emplace_back(as_bits ? whole : parameter,
                                      buffers_[parameters_.back()].view(), ndarray, as_bits);
                tensor.numbers = options_.size();
                nb::object number = slot.attr("number");
                tensor.number = number.is_none() ? tensors.size() : place_of(number, "number");
                tensors.push_back(tensor);
            }
            options_.push_back(own);
        }
        gradients_.resize(tensors.size());
        found_.reserve(tensors.size());
        std::sort(spans_.begin(), spans_.end());
        plan_.emplace(std::move(tensors), phase_of(phase));
    }

    // Returns None, the parts of an Outcome, or NotImplemented where a gradient cannot be read
    // as it is, or a parameter is no longer what it was.
    nb::object step(nb::object gradients, nb::object given, nb::object rates, nb::object record) {
        std::int64_t number = step_of(given);
        auto find = [&]() { return list(gradients); };
        return stepped(find, 1.0, 1.0, [&]() { number_groups(number, rates); }, number, record);
    }

    // The same where `gradients` are built as `like`, the containers that hold the parameters;
    // NotImplemented also where that is not so, or they hold other arrays by now.
    nb::object step_tree(nb::object gradients, nb::object like, nb::object given, nb::object rates,
                         nb::object record) {
        std::int64_t number = step_of(given);
        auto find = [&]() {
            found_.clear();
            return gather(gradients.ptr(), like.ptr(), 0) && found_.size() == gradients_.size();
        };
        return stepped(find, 1.0, 1.0, [&]() { number_groups(number, rates); }, number, record);
    }

    // The same with the numbers of each group as they are given.
    nb::object step_with(nb::object gradients, nb::object numbers, double loss_scale,
                         double factor) {
        auto find = [&]() { return list(gradients); };
        return stepped(find, loss_scale, factor, [&]() { take_numbers(numbers); }, 0, nb::none());
    }

    int traverse(visitproc visit, void* arg) const {
        for (const Buffer& buffer : buffers_) {
            Py_VISIT(buffer.view().obj);
        }
        for (const ArrayWatch& watch : watches_) {
            Py_VISIT(watch.array());
            Py_VISIT(watch.dtype());
        }
        return 0;
    }

    void clear() {
        Phase phase = plan_->phase();  // emplace() ends the old plan before it makes the new one
        plan_.emplace(std::vector<Tensor>(), phase);
        options_.clear();
        parameters_.clear();
        spans_.clear();
        gradients_.clear();
        twins_.clear();
        // What goes may look at this plan.
        auto watches = std::move(watches_);
        auto buffers = std::move(buffers_);
    }

private:
    template <class Finding, class Numbering>
    nb::object stepped(Finding find_gradients, double loss_scale, double factor,
                       Numbering put_numbers, std::int64_t number, nb::handle record) {
        if (busy_.exchange(true)) {
            throw std::runtime_error("This optimizer is making a step in another thread.");
        }
        Turn turn{*this};
        FloatMode mode;  // for the numbers of the step too, not for the sweep alone
        if (!find_gradients() || !borrow()) {
            return nb::borrow(Py_NotImplemented);
        }
        put_numbers();
        Record counts(record, number, plan_->phase());
        // No signal is handled from here on, until the step is made and counted.
        for (const ArrayWatch& watch : watches_) {
            if (watch.changed()) {
                return nb::borrow(Py_NotImplemented);
            }
        }
        copy_twins(&StridedTwin::read);
        Outcome outcome = step_released(*plan_, numbers_, loss_scale, factor);
        if (outcome.applied) {
            copy_twins(&StridedTwin::write);
        }
        counts.put(outcome);
        nb::object parts = parts_of(outcome, plan_->phase());
        counts.put_outcome(parts);
        return parts;
    }

    void copy_twins(void (StridedTwin::*copy)() const) {
        std::optional<LockReleased> others_run;
        if (!twins_.empty() && plan_->is_long()) {
            others_run.emplace();
        }
        for (const StridedTwin& twin : twins_) {
            (twin.*copy)();
        }
    }

    // A list of a run's steps, steps left out and last outcome, brought up to date.
    class Record {
    public:
        // Makes all that is needed, so that `put` cannot fail.
        Record(nb::handle record, std::int64_t number, const Phase& phase) : list_(record) {
            if (record.is_none()) {
                return;
            }
            if (!PyList_CheckExact(record.ptr()) || PyList_GET_SIZE(record.ptr()) != places) {
                throw std::invalid_argument("A record is a list of steps, skipped and outcome.");
            }
            steps_ = nb::int_(number);
            if (phase.on_nonfinite == OnNonfinite::skip) {
                skipped_ = nb::int_(nb::cast<std::int64_t>(record[skipped]) + 1);
            }
        }

        void put(const Outcome& outcome) {
            if (list_.is_none()) {
                return;
            }
            if (outcome.applied) {
                set(steps, steps_);
            } else if (skipped_.is_valid()) {
                set(skipped, skipped_);
            }
            set(last_outcome, nb::none());
        }

        void put_outcome(nb::object parts) {
            if (!list_.is_none()) {
                set(last_outcome, std::move(parts));
            }
        }

    private:
        // As in adamas.engines.
        static constexpr Py_ssize_t steps = 0, skipped = 1, last_outcome = 2, places = 3;

        void set(Py_ssize_t place, nb::object value) {
            PyList_SetItem(list_.ptr(), place, value.release().ptr());
        }

        nb::handle list_;
        nb::object steps_, skipped_;
    };

    // Gives gradients back at the end of a step, however it ends.
    struct Turn {
        ArrayPlan& plan;
        ~Turn() {
            for (Buffer& gradient : plan.gradients_) {
                gradient.release();
            }
            plan.found_.clear();
            plan.busy_.store(false);
        }
    };

    Tensor tensor_of(nb::handle slot, const Options& own, nb::handle storage) {
        nb::object state = slot.attr("state");
        void* memory = hold_parameter(slot.attr("parameter"));
        const Py_buffer parameter = buffers_[parameters_.back()].view();
        Tensor tensor{};
        tensor.layout = {dtype_of(parameter).value(), own.has_mean, own.has_square, own.amsgrad};
        put_storage(tensor.layout, storage, nb::object(state.attr("top")));
        if (!nb::object(state.attr("forms")).equal(storage.attr("forms"))) {
            refuse_state();
        }
        tensor.count = parameter.len / parameter.itemsize;
        DType arithmetic = tensor.layout.dtype == DType::float64 ? DType::float64 : DType::float32;
        auto numbers = [&](const char* name) -> void* {
            nb::object array = state.attr(name);
            return array.is_none() ? nullptr : hold(array, &parameter, arithmetic).buf;
        };
        auto codes = [&](const char* name, Element element, std::int64_t count) -> void* {
            nb::object array = state.attr(name);
            return array.is_none() ? nullptr : hold_codes(array, element.bytes() * count);
        };
        auto mean_of = [&](const char* name, Form form, Element element) {
            return form == Form::plain ? numbers(name) : codes(name, element, tensor.count);
        };
        const Layout& layout = tensor.layout;
        tensor.arrays = {memory,
                         nullptr,
                         mean_of("mean", layout.mean_form, element_of_mean(layout)),
                         mean_of("square", layout.square_form, element_of_square(layout)),
                         numbers("largest_square"),
                         numbers("ema"),
                         nullptr,
                         CopyType::bfloat16};
        tensor.arrays.header = static_cast<std::uint16_t*>(
            codes("header", element_of_header(), header_count(tensor.count)));
        tensor.arrays.remainder = codes("remainder", element_of_remainder(layout), tensor.count);
        tensor.arrays.offset = place_of(nb::object(slot.attr("first")), "first");
        check_state(tensor);
        return tensor;
    }

    // Holds an array of codes of so many bytes.
    void* hold_codes(nb::object array, std::int64_t bytes) {
        Buffer buffer;
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) || buffer.view().len != bytes ||
            !PyBuffer_IsContiguous(&buffer.view(), 'C')) {
            throw std::invalid_argument(
                "A plan needs codes of its small state as writeable C-contiguous arrays.");
        }
        spans_.emplace_back(start(buffer.view()), end(buffer.view()));
        buffers_.push_back(std::move(buffer));
        return buffers_.back().view().buf;
    }

    // Holds a parameter; returns its memory, or that of its twin where it is not contiguous.
    void* hold_parameter(nb::object array) {
        Buffer buffer;
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) || !dtype_of(buffer.view())) {
            throw std::invalid_argument("A plan needs writeable arrays of a floating dtype.");
        }
        void* memory = buffer.view().buf;
        if (PyBuffer_IsContiguous(&buffer.view(), 'C')) {
            spans_.emplace_back(start(buffer.view()), end(buffer.view()));
        } else {
            memory = twins_.emplace_back(buffer.view()).memory();
        }
        parameters_.push_back(buffers_.size());
        buffers_.push_back(std::move(buffer));
        return memory;
    }

    const Py_buffer& hold(nb::object array, const Py_buffer* like, DType dtype) {
        Buffer buffer;
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) ||
            !PyBuffer_IsContiguous(&buffer.view(), 'C') || !same_shape(buffer.view(), *like) ||
            dtype_of(buffer.view()) != dtype) {
            throw std::invalid_argument(
                "A plan needs state as writeable C-contiguous arrays of the parameter's shape, in "
                "the dtype of its arithmetic.");
        }
        spans_.emplace_back(start(buffer.view()), end(buffer.view()));
        buffers_.push_back(std::move(buffer));
        return buffers_.back().view();
    }

    // Finds gradients that come one after the other.
    bool list(nb::handle gradients) {
        PyObject* sequence = gradients.ptr();
        if (!(PyList_Check(sequence) || PyTuple_Check(sequence)) ||
            static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence)) != gradients_.size()) {
            return false;
        }
        PyObject** items = PySequence_Fast_ITEMS(sequence);
        found_.clear();
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            found_.push_back(nb::borrow(items[i]));
        }
        return true;
    }

    // Finds the leaves of `gradients` in the order of those of `like`, which must be the arrays
    // that are stepped. Takes lists and tuples, and dicts that are asked as dicts are (OrderedDict
    // too: gradients are found by their keys, in whatever order); others may run anything.
    bool gather(PyObject* gradients, PyObject* like, int depth) {
        if (depth > 100) {
            return false;
        }
        if (is_plain_dict(like)) {
            if (!is_plain_dict(gradients) || PyDict_GET_SIZE(gradients) != PyDict_GET_SIZE(like)) {
                return false;
            }
            Py_ssize_t at = 0;
            PyObject *key, *branch;
            while (PyDict_Next(like, &at, &key, &branch)) {
                if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) {
                    return false;
                }
                PyObject* gradient = PyDict_GetItemWithError(gradients, key);
                if (gradient == nullptr) {
                    PyErr_Clear();
                    return false;
                }
                if (!gather(gradient, branch, depth + 1)) {
                    return false;
                }
            }
            return true;
        }
        if (PyList_CheckExact(like) || PyTuple_CheckExact(like)) {
            Py_ssize_t length = PySequence_Fast_GET_SIZE(like);
            if (!(PyList_CheckExact(gradients) || PyTuple_CheckExact(gradients)) ||
                PySequence_Fast_GET_SIZE(gradients) != length) {
                return false;
            }
            for (Py_ssize_t i = 0; i < length; ++i) {
                if (!gather(PySequence_Fast_GET_ITEM(gradients, i),
                            PySequence_Fast_GET_ITEM(like, i), depth + 1)) {
                    return false;
                }
            }
            return true;
        }
        std::size_t place = found_.size();
        if (place == watches_.size() || watches_[place].array() != like) {
            return false;
        }
        found_.push_back(nb::borrow(gradients));
        return true;
    }

    static bool is_plain_dict(PyObject* object) {
        return PyDict_CheckExact(object) ||
               (PyDict_Check(object) && Py_TYPE(object)->tp_as_mapping->mp_subscript ==
                                            PyDict_Type.tp_as_mapping->mp_subscript);
    }

    bool borrow() {
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            Buffer& buffer = gradients_[i];
            nb::object gradient = watches_[i].readable(found_[i].ptr());
            if (!gradient.is_valid() || !buffer.acquire(gradient.ptr(), PyBUF_RECORDS_RO) ||
                !readable(buffer.view(), i)) {
                return false;
            }
            plan_->tensors()[i].arrays.g = buffer.view().buf;
        }
        return true;
    }

    bool readable(const Py_buffer& gradient, std::size_t i) const {
        const Py_buffer& parameter = buffers_[parameters_[i]].view();
        return dtype_of(gradient) == dtype_of(parameter) && same_shape(gradient, parameter) &&
               PyBuffer_IsContiguous(&gradient, 'C') && !overlaps_any(gradient);
    }

    // Whether a gradient lies in memory that the step will write.
    bool overlaps_any(const Py_buffer& gradient) const {
        auto next = std::upper_bound(spans_.begin(), spans_.end(),
                                     std::pair(start(gradient), end(gradient)));
        return (next != spans_.end() && next->first < end(gradient)) ||
               (next != spans_.begin() && std::prev(next)->second > start(gradient));
    }

    void number_groups(std::int64_t number, nb::handle rates) {
        numbers_.clear();
        std::size_t given = 0;
        for (nb::handle rate : rates) {
            if (given < options_.size()) {
                numbers_.push_back(numbers_at(options_[given], plan_->phase(), number,
                                              number_of(rate, "The learning rate")));
            }
            ++given;
        }
        if (given != options_.size()) {
            throw std::invalid_argument("A step needs one learning rate for each group.");
        }
    }

    void take_numbers(nb::handle given) {
        numbers_.clear();
        for (nb::handle values : given) {
            numbers_.push_back(step_numbers_of(values));
        }
        if (numbers_.size() != options_.size()) {
            throw std::invalid_argument("A step needs the numbers of each group.");
        }
    }

    std::vector<Buffer> buffers_;          // parameters and their state
    std::vector<std::size_t> parameters_;  // which of them are the parameters
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> spans_;  // of the same, sorted
    std::vector<StridedTwin> twins_;                                // of parameters with strides
    std::vector<ArrayWatch> watches_;                               // of the user's arrays
    std::vector<nb::object> found_;                                 // gradients, during a step
    std::vector<Buffer> gradients_;                                 // their memory, held meanwhile
    std::vector<Options> options_;                                  // of each group
    std::vector<StepNumbers> numbers_;  // of the step under way, for each group
    std::optional<Plan> plan_;
    std::atomic<bool> busy_{false};
};

}  // namespace

void bind_array_plan(nb::module_& module) {
    nb::class_<ArrayPlan>(module, "Plan", nb::type_slots(collected<ArrayPlan>),
                          "A step over fixed arrays: see adamas.engines.")
        .def(nb::init<nb::sequence, nb::object>(), nb::arg("groups"), nb::arg("phase"))
        .def("step", &ArrayPlan::step, nb::arg("gradients"), nb::arg("step").none(),
             nb::arg("rates"), nb::arg("record") = nb::none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def("step_tree", &ArrayPlan::step_tree, nb::arg("gradients").none(), nb::arg("like"),
             nb::arg("step").none(), nb::arg("rates"), nb::arg("record"),
             "Make one step with gradients built as the containers of the parameters.")
        .def("step_with", &ArrayPlan::step_with, nb::arg("gradients"), nb::arg("numbers"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0,
             "Make one step with given numbers, adamas.coefficients.StepNumbers of each group.");
}

}  // namespace adamas
