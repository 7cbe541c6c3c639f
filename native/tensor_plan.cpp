// Plans over the parameters of a torch.optim.Optimizer.
//
// A TensorWatch sees whether all is as it was; where it is not, a step answers NotImplemented.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.h"
#include "convert.h"
#include "dlpack.h"
#include "float_mode.h"
#include "tensor_watch.h"

namespace nb = nanobind;

namespace adamas {
namespace {

std::optional<DType> dtype_of(const View& view) {
    if (view.is(dlpack::float_code, 32)) {
        return DType::float32;
    }
    if (view.is(dlpack::float_code, 64)) {
        return DType::float64;
    }
    if (view.is(dlpack::bfloat_code, 16)) {
        return DType::bfloat16;
    }
    return view.is(dlpack::float_code, 16) ? std::optional(DType::float16) : std::nullopt;
}

// What is kept for a parameter beside its tensors.
struct Member {
    void* step = nullptr;  // null where none is kept
    bool step_is_double = false;
    std::size_t cohort = 0;
};

// Parameters of one group. Where the numbers of their steps are given, all are at the same step.
struct Cohort {
    std::size_t group;
    std::optional<Options> options;  // where the numbers come from options
    void* step = nullptr;            // of its first member
    bool step_is_double = false;
    // Of the step under way: which numbers a member had last, and how many steps it had made.
    std::size_t numbers = 0;
    double done = -1;
};

// The steps that were made; NaN, which is no number of a step, where float32 cannot count on: the
// front-end goes on in float64.
double number_at(const void* step, bool is_double) {
    if (is_double) {
        return *static_cast<const double*>(step);
    }
    float done = *static_cast<const float*>(step);
    return done < 0x1p24f ? done : std::numeric_limits<double>::quiet_NaN();
}

class TensorPlan {
public:
    // `groups` are the optimizer's own dicts, `slots` and `cohorts` the TensorSlot and Cohort of
    // adamas.engines.native. `idle` are parameters that must not have a gradient.
    TensorPlan(nb::type_object tensor_type, nb::type_object parameter_type, nb::list groups,
               nb::sequence slots, nb::sequence cohorts, nb::sequence idle, nb::object phase,
               nb::object increment_version)
        : watch_(tensor_type, parameter_type, std::move(groups), std::move(idle)),
          increment_version_(std::move(increment_version)),
          lr_(nb::steal<nb::str>(PyUnicode_InternFromString("lr"))) {
        for (nb::handle cohort : cohorts) {
            nb::object options = cohort.attr("options");
            cohorts_.push_back(
                {index_of(nb::object(cohort.attr("group")), "group", watch_.group_count()),
                 options.is_none() ? std::nullopt : std::optional(options_of(options))});
            numbered_ += options.is_none();
        }
        rates_.resize(watch_.group_count());
        std::vector<Tensor> tensors;
        for (nb::handle slot : slots) {
            tensors.push_back(joined(slot));
        }
        plan_.emplace(std::move(tensors), phase_of(phase));
        list_changed();
    }

    // Makes a step; returns None or the parts of an Outcome, or NotImplemented, having changed
    // nothing, where the plan does not fit what is there. `numbers` are those of the cohorts
    // without options, in order.
    nb::object step(nb::handle groups, nb::handle state, double loss_scale, double factor,
                    nb::object numbers) {
        TensorWatch::Turn turn(watch_);
        return made(groups, state, loss_scale, factor, numbers);
    }

    // The same for anybody, at any time: NotImplemented, too, where the plan is closed, or another
    // call is in flight.
    nb::object step_if_open(nb::handle groups, nb::handle state) {
        TensorWatch::Turn turn(watch_, std::nothrow);
        if (!turn.is_taken()) {
            return nb::borrow(Py_NotImplemented);
        }
        return made(groups, state, 1.0, 1.0, nb::none());
    }

    // Steps as `phase` says from now on; what it keeps must be what was kept before.
    void set_phase(nb::object phase) {
        TensorWatch::Turn turn(watch_);
        Phase given = phase_of(phase);
        if (given.averages != plan_->phase().averages) {
            throw std::invalid_argument("A plan goes on with the averages that it was made for.");
        }
        plan_->set_phase(given);
    }

    void open() { watch_.open(); }
    bool close() { return watch_.close(); }
    bool is_called_here() const { return watch_.is_called_here(); }

    bool is_fast() const { return watch_.is_fast(); }

    std::size_t stepped() const { return changed_.size(); }
    nb::list parameters() const { return nb::list(changed_); }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(increment_version_.ptr());
        Py_VISIT(changed_.ptr());
        return watch_.traverse(visit, arg);
    }

    void clear() {
        rates_.clear();
        cohorts_.clear();
        members_.clear();
        Phase phase = plan_->phase();  // emplace() ends the old plan before it makes the new one
        plan_.emplace(std::vector<Tensor>(), phase);
        changed_ = nb::list();
        watch_.clear();
    }

private:
    // Makes a step in a turn.
    nb::object made(nb::handle groups, nb::handle state, double loss_scale, double factor,
                    const nb::object& numbers) {
        FloatMode mode;  // for the numbers of the step too, not for the sweep alone
        if (!watch_.same_groups(groups) || !read_rates() || !watch_.same_state(state) ||
            !watch_.same_tensors() || !number(numbers)) {
            return nb::borrow(Py_NotImplemented);
        }
        take_gradients();
        Outcome outcome = step_released(*plan_, numbers_, loss_scale, factor);
        if (outcome.applied) {
            count_step();
        }
        return parts_of(outcome, plan_->phase());
    }

    // -- making the plan ---------------------------------------------------------------------

    Tensor joined(nb::handle slot) {
        static const struct {
            Name parameter{"parameter"}, state{"state"}, step{"step"}, names{"names"},
                storage{"storage"}, top{"top"}, number{"number"}, copy{"copy"}, cohort{"cohort"};
        } of;
        static const struct {
            Name mean{"mean"}, square{"square"}, largest_square{"largest_square"}, ema{"ema"},
                header{"header"}, remainder{"remainder"};
        } role;
        Member member;
        auto state = nb::cast<nb::dict>(of.state.of(slot));
        member.cohort = index_of(of.cohort.of(slot), "cohort", cohorts_.size());
        Cohort& cohort = cohorts_[member.cohort];
        // A cohort without options looks at the steps of its first member, come what may.
        View parameter = watch_.add(of.parameter.of(slot), state, !cohort.options);
        std::optional<DType> dtype = dtype_of(parameter);
        if (!dtype) {
            throw std::invalid_argument("A plan needs contiguous floating CPU tensors.");
        }
        nb::object names = of.names.of(slot);
        nb::object mean = role.mean.of(names), square = role.square.of(names),
                   largest_square = role.largest_square.of(names);
        Layout layout{*dtype, !mean.is_none(), !square.is_none(), !largest_square.is_none()};
        put_storage(layout, of.storage.of(slot), of.top.of(slot));
        Element number = element_of_numbers(*dtype);
        auto entry = [&](const nb::object& name, Element element, std::int64_t count) -> void* {
            return name.is_none() ? nullptr : kept(state[name], element.code, element.bits, count);
        };
        Tensor tensor{};
        tensor.count = parameter.count;
        tensor.layout = layout;
        tensor.arrays = {parameter.data,
                         nullptr,
                         entry(mean, element_of_mean(layout), tensor.count),
                         entry(square, element_of_square(layout), tensor.count),
                         entry(largest_square, number, tensor.count),
                         entry(role.ema.of(names), number, tensor.count),
                         nullptr,
                         CopyType::bfloat16};
        tensor.arrays.header = static_cast<std::uint16_t*>(
            entry(role.header.of(names), element_of_header(), header_count(tensor.count)));
        tensor.arrays.remainder =
            entry(role.remainder.of(names), element_of_remainder(layout), tensor.count);
        check_state(tensor);
        add_copy(tensor, of.copy.of(slot), parameter.count);
        add_step(member, state, of.step.of(slot), cohort);
        tensor.numbers = member.cohort;
        tensor.number = static_cast<std::uint64_t>(place_of(of.number.of(slot), "number"));
        members_.push_back(member);
        return tensor;
    }

    void add_copy(Tensor& tensor, nb::object copy, std::int64_t count) {
        if (copy.is_none()) {
            return;
        }
        View view = watch_.read(copy);
        bool is_bfloat16 = view.code == dlpack::bfloat_code;
        tensor.arrays.copy = static_cast<std::uint16_t*>(
            kept(copy, is_bfloat16 ? dlpack::bfloat_code : dlpack::float_code, 16, count));
        tensor.arrays.copy_type = is_bfloat16 ? CopyType::bfloat16 : CopyType::float16;
    }

    void add_step(Member& member, nb::dict state, nb::object name, Cohort& cohort) {
        if (name.is_none()) {
            return;
        }
        nb::object tensor = state[name];
        View view = watch_.read(tensor);
        member.step_is_double = view.bits == 64;
        member.step = kept(tensor, dlpack::float_code, view.bits == 64 ? 64 : 32, 1);
        if (cohort.step == nullptr) {
            cohort.step = member.step;
            cohort.step_is_double = member.step_is_double;
        }
    }

    void* kept(nb::object tensor, std::uint8_t code, std::uint8_t bits, std::int64_t count) {
        View view = watch_.keep(tensor);
        if (!view.is(code, bits) || view.count != count) {
            throw std::invalid_argument("A plan needs state that fits its parameter.");
        }
        return view.data;
    }

    // -- the numbers of a step ---------------------------------------------------------------

    // Reads the learning rates of the groups; false where one has none that can be stepped by, for
    // the front-end to say what is wrong.
    bool read_rates() {
        for (std::size_t i = 0; i < rates_.size(); ++i) {
            PyObject* lr = PyDict_GetItemWithError(watch_.group(i).ptr(), lr_.ptr());
            if (lr == nullptr) {
                return false;
            }
            rates_[i] = PyFloat_AsDouble(lr);  // takes a tensor of one element, too
            if (!(rates_[i] >= -1e-12)) {      // a schedule that ends at 0 may end beside it
                PyErr_Clear();
                return false;
            }
        }
        return true;
    }

    // Computes the numbers of all members; false where those of a cohort whose numbers are given
    // are no longer in step, or none can be at such a step.
    bool number(nb::handle given) {
        numbers_.clear();
        owners_.clear();
        std::size_t next = 0;
        if (given.is_none() ? numbered_ > 0 : nb::len(given) != numbered_) {
            throw std::invalid_argument("A step needs the numbers of each cohort without options.");
        }
        for (Cohort& cohort : cohorts_) {
            cohort.done = -1;
            if (!cohort.options) {
                double done =
                    cohort.step == nullptr ? 0 : number_at(cohort.step, cohort.step_is_double);
                if (!is_count(done)) {
                    return false;
                }
                StepNumbers own = step_numbers_of(nb::object(given[next++]));
                if (cohort.step != nullptr && own.number != static_cast<std::uint64_t>(done) + 1) {
                    return false;
                }
                add_numbers(cohort, done, own);
            }
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (!watch_.has_gradient(i)) {
                continue;
            }
            const Member& member = members_[i];
            Cohort& cohort = cohorts_[member.cohort];
            double done =
                member.step == nullptr ? 0 : number_at(member.step, member.step_is_double);
            if (done != cohort.done && (member.step != nullptr || cohort.options) &&
                !renumber(cohort, done)) {
                return false;
            }
            plan_->tensors()[i].numbers = cohort.numbers;
        }
        return true;
    }

    // Lets a cohort go on with the numbers of members that have made `done` steps.
    bool renumber(Cohort& cohort, double done) {
        if (!cohort.options || !is_count(done)) {
            return false;  // the front-end says whose it is
        }
        constexpr std::size_t looked_at = 16;
        for (std::size_t i = numbers_.size(); i-- > 0 && i + looked_at >= numbers_.size();) {
            if (owners_[i] == &cohort &&
                numbers_[i].number == static_cast<std::uint64_t>(done) + 1) {
                cohort.numbers = i;
                cohort.done = done;
                return true;
            }
        }
        auto step = static_cast<std::int64_t>(done) + 1;
        add_numbers(cohort, done,
                    numbers_at(*cohort.options, plan_->phase(), step, rates_[cohort.group]));
        return true;
    }

    void add_numbers(Cohort& cohort, double done, const StepNumbers& numbers) {
        cohort.numbers = numbers_.size();
        cohort.done = done;
        numbers_.push_back(numbers);
        owners_.push_back(&cohort);
    }

    void take_gradients() {
        bool as_before = true;
        for (std::size_t i = 0; i < members_.size(); ++i) {
            adamas::Tensor& tensor = plan_->tensors()[i];
            bool is_present = watch_.has_gradient(i);
            as_before = as_before && tensor.is_present == is_present;
            tensor.is_present = is_present;
            tensor.arrays.g = is_present ? watch_.gradient(i) : nullptr;
        }
        if (!as_before) {
            plan_->cut();
            list_changed();
        }
    }

    void list_changed() {
        changed_ = nb::list();
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (plan_->tensors()[i].is_present) {
                changed_.append(watch_.parameter(i));
            }
        }
    }

    // -- after the sweep ---------------------------------------------------------------------

    void count_step() {
        for (std::size_t i = 0; i < members_.size(); ++i) {
            const Member& member = members_[i];
            if (member.step == nullptr || !plan_->tensors()[i].is_present) {
                continue;
            }
            if (member.step_is_double) {
                *static_cast<double*>(member.step) += 1;
            } else {
                *static_cast<float*>(member.step) += 1;
            }
        }
        increment_version_(changed_);
    }

    TensorWatch watch_;
    nb::object increment_version_;  // tells autograd that the members changed
    nb::str lr_;
    std::vector<double> rates_;  // of the groups, at the step under way
    std::vector<Cohort> cohorts_;
    std::size_t numbered_ = 0;  // how many of them have no options
    std::vector<Member> members_;
    nb::list changed_;                   // the parameters of the members that had gradients last
    std::vector<StepNumbers> numbers_;   // of the step under way
    std::vector<const Cohort*> owners_;  // of these, whose they are
    std::optional<Plan> plan_;
};

}  // namespace

void bind_tensor_plan(nb::module_& module) {
    nb::class_<TensorPlan>(module, "TensorPlan", nb::type_slots(collected<TensorPlan>),
                           "A step over the parameters of a torch.optim.Optimizer.")
        .def(nb::init<nb::type_object, nb::type_object, nb::list, nb::sequence, nb::sequence,
                      nb::sequence, nb::object, nb::object>(),
             nb::arg("tensor_type"), nb::arg("parameter_type"), nb::arg("groups"), nb::arg("slots"),
             nb::arg("cohorts"), nb::arg("idle"), nb::arg("phase"), nb::arg("increment_version"))
        .def("step", &TensorPlan::step, nb::arg("groups"), nb::arg("state"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0, nb::arg("numbers") = nb::none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def("step_if_open", &TensorPlan::step_if_open, nb::arg("groups"), nb::arg("state"),
             "Make one step; NotImplemented, too, where the plan is closed or in use.")
        .def("set_phase", &TensorPlan::set_phase, nb::arg("phase"),
             "Step by another phase from now on, which keeps the same averages.")
        .def("open", &TensorPlan::open, "Let anybody step.")
        .def("close", &TensorPlan::close,
             "Let nobody step that asks; false while such a step is in flight.")
        .def_prop_ro("is_called_here", &TensorPlan::is_called_here,
                     "Whether a step of this thread is in flight.")
        .def_prop_ro("stepped", &TensorPlan::stepped,
                     "How many parameters the last step was about: those with a gradient.")
        .def_prop_ro("parameters", &TensorPlan::parameters, "Those parameters.")
        .def_prop_ro("is_fast", &TensorPlan::is_fast,
                     "Whether addresses come through the DLPack exchange API.");
}

}  // namespace adamas
