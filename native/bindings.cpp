// The Python module adamas._native: plans over objects with the buffer protocol.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

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

#include "dispatch.h"
#include "exact_sum.h"
#include "float_mode.h"
#include "parallel.h"
#include "plan.h"

namespace nb = nanobind;

namespace adamas {
namespace {

// The memory of an array, held for as long as the object lives.
class Buffer {
public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    Buffer(Buffer&& other) noexcept : view_(other.view_), held_(other.held_) {
        other.held_ = false;
    }
    ~Buffer() { release(); }

    // Returns false, with no Python error set, where the object offers no such memory.
    bool acquire(PyObject* object, int flags) {
        release();
        held_ = PyObject_GetBuffer(object, &view_, flags) == 0;
        if (!held_) {
            PyErr_Clear();
        }
        return held_;
    }

    void release() {
        if (held_) {
            PyBuffer_Release(&view_);
            held_ = false;
        }
    }

    const Py_buffer& view() const { return view_; }

private:
    Py_buffer view_{};
    bool held_ = false;
};

std::optional<DType> dtype_of(const Py_buffer& view) {
    if (view.format != nullptr && std::strcmp(view.format, "f") == 0) {
        return DType::float32;
    }
    if (view.format != nullptr && std::strcmp(view.format, "d") == 0) {
        return DType::float64;
    }
    return std::nullopt;
}

bool same_shape(const Py_buffer& a, const Py_buffer& b) {
    return a.ndim == b.ndim &&
           (a.ndim == 0 || std::memcmp(a.shape, b.shape, sizeof(*a.shape) * a.ndim) == 0);
}

std::uintptr_t start(const Py_buffer& view) { return reinterpret_cast<std::uintptr_t>(view.buf); }
std::uintptr_t end(const Py_buffer& view) { return start(view) + view.len; }

template <class Choice>
Choice choice_of(nb::handle value, std::initializer_list<std::pair<const char*, Choice>> choices) {
    auto given = nb::cast<std::string>(value);
    for (auto& [name, choice] : choices) {
        if (given == name) {
            return choice;
        }
    }
    throw std::invalid_argument("unknown choice: " + given);
}

Options options_of(nb::handle given) {
    Options options;
    nb::object betas = given.attr("betas");
    options.has_mean = !betas[0].is_none();
    options.has_square = !betas[1].is_none();
    options.beta1 = options.has_mean ? nb::cast<double>(betas[0]) : 0.0;
    options.beta2 = options.has_square ? nb::cast<double>(betas[1]) : 0.0;
    options.eps = nb::cast<double>(given.attr("eps"));
    options.eps_root = nb::cast<double>(given.attr("eps_root"));
    options.weight_decay = nb::cast<double>(given.attr("weight_decay"));
    options.decay =
        choice_of<Decay>(given.attr("decay"), {{"l2", Decay::l2},
                                               {"decoupled", Decay::decoupled},
                                               {"fully-decoupled", Decay::fully_decoupled}});
    if (options.decay == Decay::fully_decoupled) {
        options.lr_max = nb::cast<double>(given.attr("lr_max"));
    }
    options.bias_correction = choice_of<BiasCorrection>(given.attr("bias_correction"),
                                                        {{"paper", BiasCorrection::paper},
                                                         {"first-step", BiasCorrection::first_step},
                                                         {"none", BiasCorrection::none}});
    options.amsgrad = nb::cast<bool>(given.attr("amsgrad"));
    options.nesterov = nb::cast<bool>(given.attr("nesterov"));
    options.maximize = nb::cast<bool>(given.attr("maximize"));
    return options;
}

Phase phase_of(nb::handle given) {
    Phase phase;
    nb::object clip_norm = given.attr("clip_norm");
    phase.clips = !clip_norm.is_none();
    phase.clip_norm = phase.clips ? nb::cast<double>(clip_norm) : 0.0;
    phase.on_nonfinite =
        choice_of<OnNonfinite>(given.attr("on_nonfinite"), {{"propagate", OnNonfinite::propagate},
                                                            {"skip", OnNonfinite::skip},
                                                            {"raise", OnNonfinite::raise}});
    nb::object ema = given.attr("ema");
    phase.averages = !ema.is_none();
    phase.ema = phase.averages ? nb::cast<double>(ema) : 0.0;
    phase.statistics = nb::cast<bool>(given.attr("statistics"));
    return phase;
}

// A plan over arrays of Python objects, and the memory they lend it.
class ArrayPlan {
public:
    ArrayPlan(nb::sequence groups, nb::object phase) {
        std::vector<Options> options;
        std::vector<Tensor> tensors;
        for (nb::handle group : groups) {
            Options own = options_of(group.attr("options"));
            for (nb::handle slot : nb::cast<nb::sequence>(group.attr("slots"))) {
                tensors.push_back(tensor_of(slot, own, options.size()));
            }
            options.push_back(own);
        }
        gradients_.resize(tensors.size());
        std::sort(spans_.begin(), spans_.end());
        plan_.emplace(std::move(options), std::move(tensors), phase_of(phase));
    }

    // Returns None, the parts of an Outcome, or NotImplemented where a gradient cannot be read
    // as it is.
    nb::object step(nb::object gradients, std::int64_t number, nb::object rates) {
        if (busy_.exchange(true)) {
            throw std::runtime_error("This optimizer is making a step in another thread.");
        }
        Turn turn{*this};
        if (!borrow(gradients)) {
            return nb::borrow(Py_NotImplemented);
        }
        read_rates(rates);
        Outcome outcome;
        if (plan_->is_long()) {
            nb::gil_scoped_release others_run;
            outcome = plan_->step(number, rates_.data());
        } else {
            outcome = plan_->step(number, rates_.data());
        }
        return parts(outcome);
    }

private:
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

    Tensor tensor_of(nb::handle slot, const Options& options, std::size_t group) {
        nb::object state = slot.attr("state");
        const Py_buffer parameter = hold(slot.attr("parameter"));
        parameters_.push_back(buffers_.size() - 1);
        auto entry = [&](const char* name) -> void* {
            nb::object array = state.attr(name);
            return array.is_none() ? nullptr : hold(array, &parameter).buf;
        };
        Tensor tensor{};
        tensor.layout = {dtype_of(parameter).value(), options.has_mean, options.has_square,
                         options.amsgrad};
        tensor.count = parameter.len / parameter.itemsize;
        tensor.group = group;
        tensor.arrays = {parameter.buf,           nullptr,     entry("mean"), entry("square"),
                         entry("largest_square"), entry("ema")};
        return tensor;
    }

    const Py_buffer& hold(nb::object array, const Py_buffer* like = nullptr) {
        Buffer buffer;
        if (!buffer.acquire(array.ptr(), PyBUF_RECORDS) || !dtype_of(buffer.view()) ||
            !PyBuffer_IsContiguous(&buffer.view(), 'C') ||
            (like != nullptr && !same_shape(buffer.view(), *like))) {
            throw std::invalid_argument(
                "A plan needs writeable C-contiguous float32 or float64 arrays, "
                "and state of the parameter's shape.");
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

    void read_rates(nb::handle rates) {
        rates_.clear();
        for (nb::handle rate : rates) {
            rates_.push_back(nb::cast<double>(rate));
        }
        if (rates_.size() != plan_->group_count()) {
            throw std::invalid_argument("A step needs one learning rate for each group.");
        }
    }

    nb::object parts(const Outcome& outcome) const {
        const Phase& phase = plan_->phase();
        if (!phase.reads_first() && !phase.statistics) {
            return nb::none();
        }
        nb::object norm = nb::none(), nonfinite = nb::none(), statistics = nb::none();
        if (phase.reads_first()) {
            norm = nb::cast(outcome.norm);
            nonfinite = nb::tuple(nb::cast(outcome.nonfinite));
        }
        if (phase.statistics && outcome.applied) {
            nb::list all;
            for (const TensorStatistics& s : outcome.statistics) {
                all.append(nb::make_tuple(s.gradient_norm, s.parameter_norm, s.update_norm,
                                          s.largest_update, s.nonfinite, s.unmoved));
            }
            statistics = all;
        }
        return nb::make_tuple(outcome.applied, norm, nonfinite, statistics);
    }

    std::vector<Buffer> buffers_;          // parameters and their state
    std::vector<std::size_t> parameters_;  // which of them are the parameters
    std::vector<std::pair<std::uintptr_t, std::uintptr_t>> spans_;  // of the same, sorted
    std::vector<Buffer> gradients_;                                 // held during a step
    std::vector<double> rates_;
    std::optional<Plan> plan_;
    std::atomic<bool> busy_{false};
};

std::vector<std::string> target_names(bool only_here) {
    std::vector<std::string> names;
    for (const Target& each : targets()) {
        if (each.runs_here || !only_here) {
            names.emplace_back(each.name);
        }
    }
    return names;
}

nb::tuple numbers_of(nb::handle options, std::int64_t step, double lr, double grad_scale) {
    Numbers<double> c = at_step(options_of(options), step, lr, grad_scale);
    return nb::make_tuple(c.grad_scale, c.l2, c.decay, c.keep1, c.take1, c.keep2, c.take2, c.from_m,
                          c.from_g, c.root, c.inner, c.eps, c.step);
}

double exact_sum(const std::vector<double>& numbers) {
    ExactSum sum;
    for (double number : numbers) {
        sum.add(number);
    }
    return sum.value();
}

// Runs the kernels' touch on four equal float32 arrays, on all threads.
void touch(nb::sequence arrays) {
    Buffer held[4];
    for (int i = 0; i < 4; ++i) {
        nb::object array = arrays[i];
        if (!held[i].acquire(array.ptr(), PyBUF_RECORDS) ||
            dtype_of(held[i].view()) != DType::float32 ||
            !PyBuffer_IsContiguous(&held[i].view(), 'C') ||
            held[i].view().len != held[0].view().len) {
            throw std::invalid_argument("touch needs four equal C-contiguous float32 arrays.");
        }
    }
    auto at = [&](int i) { return static_cast<float*>(held[i].view().buf); };
    std::int64_t count = held[0].view().len / 4;
    constexpr std::int64_t chunk = 64 * tile_size;
    auto body = [&](std::int64_t i) {
        std::int64_t first = i * chunk;
        std::int64_t length = count - first < chunk ? count - first : chunk;
        target().kernels->touch(at(0) + first, at(1) + first, at(2) + first, at(3) + first, length);
    };
    nb::gil_scoped_release others_run;
    for_each((count + chunk - 1) / chunk, true, body);
}

}  // namespace
}  // namespace adamas

NB_MODULE(_native, module) {
    using namespace adamas;
    module.doc() = "Compiled steps over arrays; use the front-ends of adamas instead.";
    nb::class_<ArrayPlan>(module, "Plan", "A step over fixed arrays: see adamas.engines.")
        .def(nb::init<nb::sequence, nb::object>(), nb::arg("groups"), nb::arg("phase"))
        .def("step", &ArrayPlan::step, nb::arg("gradients"), nb::arg("step"),
             nb::arg("rates").none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.");
    module.def("target", [] { return std::string(target().name); }, "The machine in use.");
    module.def("targets", &target_names, nb::arg("only_here") = false,
               "The machines this build has code for, best first.");
    module.def("set_target", &set_target, nb::arg("name"), "Change the machine in use.");
    module.def("thread_count", &thread_count, "How many threads a large step uses.");
    module.def("set_thread_count", &set_thread_count, nb::arg("count"),
               "Change it; 0 stands for one per processor.");
    module.def("processor_count", &processor_count, "Processors this process may run on.");
    module.def("numbers", &numbers_of, nb::arg("options"), nb::arg("step"), nb::arg("lr"),
               nb::arg("grad_scale"), "The numbers of the rule, as adamas.coefficients.at_step.");
    module.def("exact_sum", &exact_sum, nb::arg("numbers"),
               "The sum of non-negative numbers, rounded once.");
    module.def("touch", &touch, nb::arg("arrays"),
               "Read four float32 arrays and write three: what memory allows, for benchmarks.");
}
