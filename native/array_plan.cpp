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

#include "bindings.h"
#include "buffer.h"
#include "convert.h"
#include "float_mode.h"

namespace nb = nanobind;

namespace adamas {
namespace {

// A plan over arrays of Python objects, and the memory they lend it.
class ArrayPlan {
public:
    ArrayPlan(nb::sequence groups, nb::object phase) {
        std::vector<Tensor> tensors;
        for (nb::handle group : groups) {
            nb::object options = group.attr("options");
            Options own = options_of(options);
            for (nb::handle slot : nb::cast<nb::sequence>(group.attr("slots"))) {
                Tensor tensor = tensor_of(slot, own, options);
                tensor.numbers = options_.size();
                nb::object number = slot.attr("number");
                tensor.number = number.is_none() ? tensors.size() : nb::cast<std::uint64_t>(number);
                tensors.push_back(tensor);
            }
            options_.push_back(own);
        }
        gradients_.resize(tensors.size());
        std::sort(spans_.begin(), spans_.end());
        plan_.emplace(std::move(tensors), phase_of(phase));
    }

    // Returns None, the parts of an Outcome, or NotImplemented where a gradient cannot be read
    // as it is.
    nb::object step(nb::object gradients, std::int64_t number, nb::object rates) {
        return stepped(gradients, 1.0, 1.0, [&]() { number_groups(number, rates); });
    }

    // The same with the numbers of each group as they are given: those of the rule, the weights
    // of the average, the number of the step.
    nb::object step_with(nb::object gradients, nb::object numbers, double loss_scale,
                         double factor) {
        return stepped(gradients, loss_scale, factor, [&]() { take_numbers(numbers); });
    }

    int traverse(visitproc visit, void* arg) const {
        for (const Buffer& buffer : buffers_) {
            Py_VISIT(buffer.view().obj);
        }
        return 0;
    }

    void clear() {
        plan_.emplace(std::vector<Tensor>(), plan_->phase());
        options_.clear();
        parameters_.clear();
        spans_.clear();
        gradients_.clear();
        auto buffers = std::move(buffers_);  // what goes may look at this plan
    }

private:
    template <class Numbering>
    nb::object stepped(nb::handle gradients, double loss_scale, double factor,
                       Numbering put_numbers) {
        if (busy_.exchange(true)) {
            throw std::runtime_error("This optimizer is making a step in another thread.");
        }
        Turn turn{*this};
        FloatMode mode;  // for the numbers of the step too, not for the sweep alone
        if (!borrow(gradients)) {
            return nb::borrow(Py_NotImplemented);
        }
        put_numbers();
        return parts_of(step_released(*plan_, numbers_, loss_scale, factor), plan_->phase());
    }

    // Gives gradients back at the end of a step, however it ends.
    struct Turn {
        ArrayPlan& plan;
        ~Turn() {
            for (Buffer& gradient : plan.gradients_) {
                gradient.release();
            }
            plan.busy_.store(false);
        }
    };

    Tensor tensor_of(nb::handle slot, const Options& own, nb::handle options) {
        nb::object state = slot.attr("state");
        const Py_buffer parameter = hold(slot.attr("parameter"));
        parameters_.push_back(buffers_.size() - 1);
        Tensor tensor{};
        tensor.layout = {dtype_of(parameter).value(), own.has_mean, own.has_square, own.amsgrad};
        nb::object forms = state.attr("forms");
        put_storage(tensor.layout, forms[0], forms[1], options.attr("rounding"),
                    nb::cast<int>(state.attr("top")));
        DType arithmetic = tensor.layout.dtype == DType::float64 ? DType::float64 : DType::float32;
        tensor.count = parameter.len / parameter.itemsize;
        auto entry = [&](const char* name, Form form, std::int64_t width = 1) -> void* {
            nb::object array = state.attr(name);
            if (array.is_none()) {
                return nullptr;
            }
            return form == Form::plain ? hold(array, &parameter, arithmetic).buf
                                       : hold_codes(array, width * tensor.count);
        };
        Form mean = tensor.layout.mean_form, square = tensor.layout.square_form;
        tensor.arrays = {parameter.buf,
                         nullptr,
                         entry("mean", mean, mean == Form::bfloat16 ? 2 : 1),
                         entry("square", square, square == Form::eight_bit ? 1 : 2),
                         entry("largest_square", Form::plain),
                         entry("ema", Form::plain),
                         nullptr,
                         CopyType::bfloat16};
        nb::object header = state.attr("header");
        if (!header.is_none()) {
            std::int64_t blocks = (tensor.count + block_size - 1) / block_size;
            tensor.arrays.header = static_cast<std::uint16_t*>(hold_codes(header, 2 * blocks));
        }
        nb::object remainder = state.attr("remainder");
        if (!remainder.is_none()) {
            std::int64_t width = tensor.layout.rounding == Rounding::remainder ? 2 : 1;
            tensor.arrays.remainder = hold_codes(remainder, width * tensor.count);
        }
        tensor.arrays.offset = nb::cast<std::int64_t>(slot.attr("first"));
        bool wants_m = own.has_mean && tensor.arrays.m == nullptr;
        bool wants_v = own.has_square && tensor.arrays.v == nullptr;
        bool is_8bit = (own.has_mean && tensor.layout.mean_form == Form::eight_bit) ||
                       (own.has_square && tensor.layout.square_form == Form::eight_bit);
        bool wants_remainder = tensor.layout.keeps_remainder() && remainder.is_none();
        if (tensor.count > 0 &&
            (wants_remainder || wants_m || wants_v || (is_8bit && header.is_none()))) {
            throw std::invalid_argument("A plan needs the state that its options speak of.");
        }
        if (tensor.layout.is_small() && arithmetic != DType::float32) {
            throw std::invalid_argument("Small forms of state are not for float64 parameters.");
        }
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

    const Py_buffer& hold(nb::object array, const Py_buffer* like = nullptr,
                          DType dtype = DType::float32) {
        Buffer buffer;
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) || !dtype_of(buffer.view()) ||
            !PyBuffer_IsContiguous(&buffer.view(), 'C') ||
            (like != nullptr &&
             (!same_shape(buffer.view(), *like) || dtype_of(buffer.view()) != dtype))) {
            throw std::invalid_argument(
                "A plan needs writeable C-contiguous arrays of a floating dtype, and state of the "
                "parameter's shape in the dtype of its arithmetic.");
        }
        spans_.emplace_back(start(buffer.view()), end(buffer.view()));
        buffers_.push_back(std::move(buffer));
        return buffers_.back().view();
    }

    bool borrow(nb::handle gradients) {
        PyObject* sequence = gradients.ptr();
        if (!(PyList_Check(sequence) || PyTuple_Check(sequence)) ||
            static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence)) != gradients_.size()) {
            return false;
        }
        for (std::size_t i = 0; i < gradients_.size(); ++i) {
            Buffer& buffer = gradients_[i];
            if (!buffer.acquire(PySequence_Fast_GET_ITEM(sequence, i), PyBUF_RECORDS_RO) ||
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
                numbers_.push_back(
                    numbers_at(options_[given], plan_->phase(), number, nb::cast<double>(rate)));
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
            nb::object number = values[15];
            numbers_.push_back(given_numbers(values, nb::cast<std::uint64_t>(number)));
        }
        if (numbers_.size() != options_.size()) {
            throw std::invalid_argument("A step needs the numbers of each group.");
        }
    }

    std::vector<Buffer> buffers_;          // parameters and their state
    std::vector<std::size_t> parameters_;  // which of them are the parameters
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> spans_;  // of the same, sorted
    std::vector<Buffer> gradients_;                                 // held during a step
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
        .def("step", &ArrayPlan::step, nb::arg("gradients"), nb::arg("step"), nb::arg("rates"),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def("step_with", &ArrayPlan::step_with, nb::arg("gradients"), nb::arg("numbers"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0,
             "Make one step with given numbers: 13 of the rule, 2 of the average, the step's.");
}

}  // namespace adamas
