// Plans over objects with the buffer protocol: NumPy arrays.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "array_watch.h"
#include "bindings.h"
#include "buffer.h"
#include "convert.h"
#include "float_mode.h"
#include "record.h"
#include "strided.h"
#include "trees.h"
#include "turn.h"
#include "window.h"
#include "written.h"

namespace nb = nanobind;

namespace adamas {
namespace {

// A plan over arrays of Python objects, and the memory they lend it.
class ArrayPlan {
public:
    ArrayPlan(nb::sequence groups, nb::object phase, bool keep_sums, nb::object spikes)
        : spikes_(spikes) {
        std::vector<Tensor> tensors;
        nb::object ndarray = nb::module_::import_("numpy").attr("ndarray");
        for (nb::handle group : groups) {
            nb::object options = group.attr("options"), storage = options.attr("storage");
            Options own = options_of(options);
            for (nb::handle slot : nb::cast<nb::sequence>(group.attr("slots"))) {
                tensors.push_back(joined(slot, own, storage, ndarray));
            }
            options_.push_back(own);
        }
        plan_ = Plan(std::move(tensors), phase_of(phase));
        spikes_.serve(plan_, plan_.phase());
        if (keep_sums) {
            plan_.keep_sums();
        }
    }

    // Returns None, the parts of an Outcome, or NotImplemented where a gradient cannot be read
    // as it is, or a parameter is no longer what it was.
    nb::object step(nb::object gradients, nb::object given, nb::object rates, nb::object record) {
        std::int64_t number = step_of(given);
        auto find = [&]() { return list(gradients); };
        return stepped(find, 1.0, 1.0, [&]() { compute_numbers(number, rates); }, number, record);
    }

    // The same where `gradients` are built as `like`, the containers that hold the parameters;
    // NotImplemented also where that is not so, or they hold other arrays by now.
    nb::object step_tree(nb::object gradients, nb::object like, nb::object given, nb::object rates,
                         nb::object record) {
        std::int64_t number = step_of(given);
        auto find = [&]() { return gather(gradients, like); };
        return stepped(find, 1.0, 1.0, [&]() { compute_numbers(number, rates); }, number, record);
    }

    // The same with the numbers of each group as they are given.
    nb::object step_with(nb::object gradients, nb::object numbers, double loss_scale,
                         double factor) {
        auto find = [&]() { return list(gradients); };
        return stepped(find, loss_scale, factor, [&]() { take_numbers(numbers); }, 0, nb::none());
    }

    // The sums that step_with would clip updates by, as bytes: a row for each tensor. Changes
    // nothing.
    nb::object measured(nb::object gradients, nb::object numbers, double loss_scale,
                        double factor) {
        Turn<ArrayPlan> turn(*this);
        FloatMode mode;
        if (!list(gradients) || !borrow() || has_changed()) {
            return nb::borrow(Py_NotImplemented);
        }
        take_numbers(numbers);
        copy_twins(&StridedTwin::read);
        std::optional<LockReleased> others_run;
        if (plan_.is_long()) {
            others_run.emplace();
        }
        scale(numbers_, loss_scale, factor);
        plan_.measure(numbers_);
        std::vector<std::int64_t> rows = plan_.update_rows();
        others_run.reset();
        return nb::bytes(rows.data(), rows.size() * sizeof(std::int64_t));
    }

    Turns& turns() { return turns_; }

    // Gives gradients back, at the end of a Turn.
    void let_go() {
        for (Slot& slot : slots_) {
            slot.gradient.release();
            slot.found.reset();
        }
    }

    int traverse(visitproc visit, void* arg) const {
        for (const Slot& slot : slots_) {
            Py_VISIT(slot.parameter.view().obj);
            Py_VISIT(slot.watch.array());
            Py_VISIT(slot.watch.dtype());
        }
        for (const Buffer& entry : entries_) {
            Py_VISIT(entry.view().obj);
        }
        return spikes_.traverse(visit, arg);
    }

    void clear() {
        plan_.clear();
        spikes_.clear();
        options_.clear();
        // Moved away first: what goes may look at this plan.
        auto slots = std::move(slots_);
        auto entries = std::move(entries_);
    }

private:
    // One array that is stepped.
    struct Slot {
        ArrayWatch watch;  // of the user's array
        Buffer parameter;
        std::optional<StridedTwin> twin{};  // where it is not contiguous
        nb::object found{};                 // its gradient, during a step
        Buffer gradient{};                  // the memory of that, held meanwhile
        Span free{};                        // where gradients meet nothing that is written
    };

    template <class Finding, class Numbering>
    nb::object stepped(Finding find_gradients, double loss_scale, double factor,
                       Numbering put_numbers, std::int64_t number, nb::handle record) {
        Turn<ArrayPlan> turn(*this);
        FloatMode mode;  // for the numbers of the step too, not for the sweep alone
        if (!find_gradients() || !borrow()) {
            return nb::borrow(Py_NotImplemented);
        }
        put_numbers();
        Record counts(record, number, plan_.phase());
        // No signal is handled from here on, until the step is made and counted.
        if (has_changed()) {
            return nb::borrow(Py_NotImplemented);
        }
        copy_twins(&StridedTwin::read);
        Outcome outcome = step_released(plan_, numbers_, loss_scale, factor);
        if (outcome.applied) {
            copy_twins(&StridedTwin::write);
        }
        counts.put(outcome);
        nb::object parts = parts_of(outcome, plan_.phase());
        counts.put_outcome(parts);
        return parts;
    }

    // Whether a parameter is no longer what it was.
    bool has_changed() const {
        return std::ranges::any_of(slots_, [](const Slot& slot) { return slot.watch.changed(); });
    }

    void copy_twins(void (StridedTwin::*copy)() const) {
        if (!has_twins_) {
            return;
        }
        std::optional<LockReleased> others_run;
        if (plan_.is_long()) {
            others_run.emplace();
        }
        for (const Slot& slot : slots_) {
            if (slot.twin) {
                (*slot.twin.*copy)();
            }
        }
    }

    // -- making the plan ---------------------------------------------------------------------

    Tensor joined(nb::handle given, const Options& own, nb::handle storage, nb::handle ndarray) {
        nb::object parameter = given.attr("parameter"), state = given.attr("state"),
                   whole = given.attr("array"), number = given.attr("number");
        Buffer memory;
        if (!memory.acquire(parameter.ptr(), PyBUF_RECORDS) || !dtype_of(memory.view())) {
            throw std::invalid_argument("A plan needs writeable arrays of a floating dtype.");
        }
        bool as_bits = !whole.is_none();
        ArrayWatch watch(as_bits ? whole : parameter, memory.view(), ndarray, as_bits);
        Slot& slot = slots_.emplace_back(Slot{std::move(watch), std::move(memory)});
        const Py_buffer& view = slot.parameter.view();
        Tensor tensor{};
        if (PyBuffer_IsContiguous(&view, 'C')) {
            written_.add(span_of(view));
            tensor.arrays.p = view.buf;
        } else {
            tensor.arrays.p = slot.twin.emplace(view).memory();
            has_twins_ = true;
        }
        tensor.count = view.len / view.itemsize;
        tensor.layout = {dtype_of(view).value(), own.has_mean, own.has_square, own.amsgrad};
        put_storage(tensor.layout, storage, nb::object(state.attr("top")));
        if (!nb::object(state.attr("forms")).equal(storage.attr("forms"))) {
            refuse_state();
        }
        put_entries(tensor, [&](const Name& role, Element element, std::int64_t count) -> void* {
            nb::object array = role.of(state);
            bool is_number = element == tensor.layout.number();
            return array.is_none() ? nullptr
                                   : hold(array, element, count, is_number ? &view : nullptr);
        });
        nb::object marks = given.attr("marks");
        if (!marks.is_none()) {
            tensor.arrays.marks = static_cast<std::uint32_t*>(
                hold(marks, marks_element, mark_count(tensor.count), nullptr));
        }
        tensor.arrays.offset = place_of(nb::object(given.attr("first")), "first");
        tensor.put(runs_of(nb::object(given.attr("runs")), tensor.arrays.offset + tensor.count));
        tensor.numbers = options_.size();
        tensor.number = number.is_none() ? slots_.size() - 1 : place_of(number, "number");
        return tensor;
    }

    // Holds an entry of the state: numbers have the parameter's shape, codes as many bytes.
    void* hold(nb::handle array, Element element, std::int64_t count, const Py_buffer* like) {
        Buffer buffer;
        const Py_buffer& view = buffer.view();
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) || !PyBuffer_IsContiguous(&view, 'C') ||
            view.len != element.bytes() * count ||
            (like != nullptr && (!same_shape(view, *like) || !is_of(view, element)))) {
            throw std::invalid_argument(
                "A plan needs state as writeable C-contiguous arrays of the parameter's shape, in "
                "the dtype of its arithmetic or of codes.");
        }
        written_.add(span_of(view));
        return entries_.emplace_back(std::move(buffer)).view().buf;
    }

    // -- gradients ---------------------------------------------------------------------------

    // Finds gradients that come one after the other.
    bool list(nb::handle gradients) {
        PyObject* sequence = gradients.ptr();
        if (!(PyList_Check(sequence) || PyTuple_Check(sequence)) ||
            static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence)) != slots_.size()) {
            return false;
        }
        PyObject** gradient = PySequence_Fast_ITEMS(sequence);
        for (Slot& slot : slots_) {
            slot.found = nb::borrow(*gradient++);
        }
        return true;
    }

    // Finds gradients that are built as `like`, whose leaves must be the arrays that are stepped.
    bool gather(nb::handle gradients, nb::handle like) {
        auto slot = slots_.begin();
        auto leaf = [&](PyObject* array, PyObject* gradient) {
            if (slot == slots_.end() || slot->watch.array() != array) {
                return false;
            }
            slot++->found = nb::borrow(gradient);
            return true;
        };
        return match(like.ptr(), gradients.ptr(), leaf) && slot == slots_.end();
    }

    bool borrow() {
        auto tensor = plan_.tensors().begin();
        for (Slot& slot : slots_) {
            nb::object gradient = slot.watch.readable(slot.found.ptr());
            if (!gradient.is_valid() || !slot.gradient.acquire(gradient.ptr(), PyBUF_RECORDS_RO) ||
                !is_readable(slot, tensor->layout.dtype)) {
                return false;
            }
            tensor++->arrays.g = slot.gradient.view().buf;
        }
        return true;
    }

    bool is_readable(Slot& slot, DType dtype) {
        const Py_buffer &gradient = slot.gradient.view(), &parameter = slot.parameter.view();
        return dtype_of(gradient) == dtype && same_shape(gradient, parameter) &&
               PyBuffer_IsContiguous(&gradient, 'C') &&
               written_.is_apart(span_of(gradient), slot.free);
    }

    // -- the numbers of a step ---------------------------------------------------------------

    void compute_numbers(std::int64_t number, nb::handle rates) {
        auto computed = [&](nb::handle rate, const Options& own) {
            return numbers_at(own, plan_.phase(), number, number_of(rate, "The learning rate"));
        };
        number_groups(rates, computed, "A step needs one learning rate for each group.");
    }

    void take_numbers(nb::handle given) {
        auto taken = [](nb::handle numbers, const Options&) { return step_numbers_of(numbers); };
        number_groups(given, taken, "A step needs the numbers of each group.");
    }

    template <class Numbers>
    void number_groups(nb::handle given, Numbers numbers_of, const char* refusal) {
        numbers_.clear();
        auto own = options_.begin();
        for (nb::handle each : given) {
            if (own == options_.end()) {
                throw std::invalid_argument(refusal);
            }
            numbers_.push_back(numbers_of(each, *own++));
        }
        if (own != options_.end()) {
            throw std::invalid_argument(refusal);
        }
    }

    std::vector<Slot> slots_;
    std::vector<Buffer> entries_;  // of their state
    bool has_twins_ = false;
    Written written_;
    std::vector<Options> options_;      // of each group
    std::vector<StepNumbers> numbers_;  // of the step under way, for each group
    Window spikes_;
    Plan plan_;
    Turns turns_;
};

}  // namespace

void bind_array_plan(nb::module_& module) {
    nb::class_<ArrayPlan>(module, "Plan", nb::type_slots(collected<ArrayPlan>),
                          "A step over fixed arrays: see adamas.engines.")
        .def(nb::init<nb::sequence, nb::object, bool, nb::object>(), nb::arg("groups"),
             nb::arg("phase"), nb::arg("keep_sums") = false, nb::arg("spikes") = nb::none())
        .def("step", &ArrayPlan::step, nb::arg("gradients"), nb::arg("step").none(),
             nb::arg("rates"), nb::arg("record") = nb::none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def("step_tree", &ArrayPlan::step_tree, nb::arg("gradients").none(), nb::arg("like"),
             nb::arg("step").none(), nb::arg("rates"), nb::arg("record"),
             "Make one step with gradients built as the containers of the parameters.")
        .def("step_with", &ArrayPlan::step_with, nb::arg("gradients"), nb::arg("numbers"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0,
             "Make one step with given numbers, adamas.coefficients.StepNumbers of each group.")
        .def("measured", &ArrayPlan::measured, nb::arg("gradients"), nb::arg("numbers"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0,
             "The sums that step_with would clip updates by: rows of adamas.digits as bytes.");
}

}  // namespace adamas
