// Plans over the parameters of a torch.optim.Optimizer.
//
// A TensorWatch sees whether all is as it was; where it is not, a step answers NotImplemented.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "bindings.h"
#include "buffer.h"
#include "convert.h"
#include "float_mode.h"
#include "marks.h"
#include "tensor_watch.h"
#include "window.h"

namespace nb = nanobind;

namespace adamas {
namespace {

std::optional<DType> dtype_of(const View& view) {
    for (std::size_t i = 0; i < std::size(dtypes); ++i) {
        if (view.is(dtypes[i])) {
            return static_cast<DType>(i);
        }
    }
    return std::nullopt;
}

// A count of steps in a tensor's memory.
struct Count {
    void* at = nullptr;  // null where none is kept
    bool is_double = false;

    bool is_kept() const { return at != nullptr; }

    // The steps that were made, 0 where they are not counted; NaN, which is no number of a step,
    // where float32 cannot count on: the front-end goes on in float64.
    double made() const {
        if (!is_kept()) {
            return 0;
        }
        if (is_double) {
            return *static_cast<const double*>(at);
        }
        float made = *static_cast<const float*>(at);
        return made < 0x1p24f ? made : std::numeric_limits<double>::quiet_NaN();
    }

    void add_one() const {
        if (is_double) {
            *static_cast<double*>(at) += 1;
        } else if (is_kept()) {
            *static_cast<float*>(at) += 1;
        }
    }
};

// What is kept for a parameter beside its tensors.
struct Member {
    Count steps;
    std::size_t cohort;
    std::int64_t* version = nullptr;  // that the last step left, where changes are tracked
};

// Parameters of one group. Where the numbers of their steps are given, all are at the same step.
struct Cohort {
    std::size_t group;
    std::optional<Options> options{};  // where the numbers come from options
    Count steps{};                     // of its first member
    // Of the step under way: which numbers a member had last, and how many steps it had made.
    std::size_t numbers = 0;
    double made = unknown;

    // Unlike every count, one that is out of range among them.
    static constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
};

// Sets of processes that parameters are spread over; a bound, so that a mistake takes no memory.
constexpr std::int64_t most_rows = 1 << 16;

// The same of tensors whose updates are measured.
std::size_t count_of(nb::handle update_rows) {
    constexpr std::int64_t most = 1 << 24;
    return static_cast<std::size_t>(whole_number_of(update_rows, "update_rows", 0, most));
}

class TensorPlan {
public:
    // `groups` are the optimizer's own dicts, `slots` and `cohorts` the TensorSlot and Cohort of
    // adamas.engines.native. `idle` are parameters that must not have a gradient. Gradients are
    // summed up in `rows` sums; exchange(array), where there is one, is called between reading and
    // stepping, with an int64 array of them, and adds in place what is not there. With `keep_sums`
    // an outcome has the sums of its statistics, too. exchange_updates(array) likewise adds to sums
    // of updates, where the phase clips these: an array of `update_rows` of them, one for each
    // tensor that other processes have parts of. `versions`, where changes are tracked, is an
    // array with one int64 for each number of a slot, the version that the last step has left, and
    // one more: the number of steps, which goes on.
    TensorPlan(nb::type_object tensor_type, nb::type_object parameter_type, nb::list groups,
               nb::sequence slots, nb::sequence cohorts, nb::sequence idle, nb::object phase,
               nb::object increment_version, nb::object rows, nb::object exchange,
               nb::object distributed, bool keep_sums, nb::object spikes, nb::object versions,
               nb::object update_rows, nb::object exchange_updates)
        : watch_(tensor_type, parameter_type, std::move(groups), std::move(idle), distributed),
          increment_version_(std::move(increment_version)),
          row_count_(static_cast<std::size_t>(whole_number_of(rows, "rows", 1, most_rows))),
          exchange_(std::move(exchange), row_count_),
          exchange_updates_(std::move(exchange_updates), count_of(update_rows)),
          spikes_(spikes) {
        bool has_versions = !versions.is_none();
        if (has_versions &&
            (!versions_.acquire(versions.ptr(), PyBUF_RECORDS) ||
             !PyBuffer_IsContiguous(&versions_.view(), 'C') || !is_int64(versions_.view()))) {
            throw std::invalid_argument("Versions are a writeable contiguous array of int64.");
        }
        if (has_versions) {
            steps_ = version_at(versions_.view().len / sizeof(std::int64_t) - 1);
        }
        for (nb::handle cohort : cohorts) {
            nb::object options = cohort.attr("options");
            cohorts_.push_back(
                {index_of(nb::object(cohort.attr("group")), "group", watch_.group_count()),
                 options.is_none() ? std::nullopt : std::optional(options_of(options))});
            numbered_ += options.is_none();
        }
        rates_.resize(watch_.group_count());
        most_.resize(watch_.group_count(), std::numeric_limits<double>::infinity());
        for (const Cohort& cohort : cohorts_) {
            if (cohort.options && knows_greatest(cohort.options->decay)) {
                most_[cohort.group] = cohort.options->lr_max * 1.000001;  // schedules round
            }
        }
        std::vector<Tensor> tensors;
        for (nb::handle slot : slots) {
            tensors.push_back(joined(slot));
        }
        plan_ = Plan(std::move(tensors), phase_of(phase), row_count_);
        spikes_.serve(plan_, plan_.phase());
        if (keep_sums) {
            plan_.keep_sums();
        }
        list_changed();
    }

    // Makes a step; returns None or the parts of an Outcome, or NotImplemented, having changed
    // nothing, where the plan does not fit what is there. `numbers` are those of the cohorts
    // without options, in order.
    nb::object step(nb::handle groups, nb::handle state, double loss_scale, double factor,
                    nb::object numbers) {
        Turn<TensorWatch> turn(watch_);
        return made(groups, state, loss_scale, factor, numbers);
    }

    // The same for anybody, at any time: NotImplemented, too, where the plan is closed, another
    // call is in flight, or there is no gradient at all, which somebody should look into.
    nb::object step_if_open(nb::handle groups, nb::handle state) {
        Turn<TensorWatch> turn(watch_, std::nothrow);
        if (!turn.is_taken()) {
            return nb::borrow(Py_NotImplemented);
        }
        nb::object outcome = made(groups, state, 1.0, 1.0, nb::none());
        return changed_.size() == 0 ? nb::borrow(Py_NotImplemented) : outcome;
    }

    // Steps as `phase` says from now on; what it keeps must be what was kept before.
    void set_phase(nb::object phase) {
        Turn<TensorWatch> turn(watch_);
        Phase given = phase_of(phase);
        if (given.averages != plan_.phase().averages) {
            throw std::invalid_argument("A plan goes on with the averages that it was made for.");
        }
        spikes_.serve(plan_, given);
        plan_.set_phase(given);
    }

    Turns& turns() { return watch_.turns(); }

    bool is_fast() const { return watch_.is_fast(); }

    std::size_t stepped() const { return changed_.size(); }
    nb::list parameters() const { return nb::list(changed_); }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(increment_version_.ptr());
        Py_VISIT(changed_.ptr());
        Py_VISIT(versions_.view().obj);
        for (int found : {exchange_.traverse(visit, arg), exchange_updates_.traverse(visit, arg),
                          spikes_.traverse(visit, arg)}) {
            if (found != 0) {
                return found;
            }
        }
        return watch_.traverse(visit, arg);
    }

    void clear() {
        rates_.clear();
        cohorts_.clear();
        members_.clear();
        plan_.clear();
        changed_ = nb::list();
        exchange_.clear();
        exchange_updates_.clear();
        steps_ = nullptr;
        versions_.release();
        spikes_.clear();
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
        mark_written();
        Outcome outcome =
            step_released(plan_, numbers_, loss_scale, factor, exchange_, exchange_updates_);
        if (outcome.applied) {
            count_step();
            if (steps_ != nullptr && changed_.size() > 0) {  // else the front-end looks into it
                ++*steps_;
            }
        }
        keep_versions();
        return parts_of(outcome, plan_.phase());
    }

    // -- making the plan ---------------------------------------------------------------------

    Tensor joined(nb::handle slot) {
        static const struct {
            Name parameter{"parameter"}, state{"state"}, step{"step"}, names{"names"},
                storage{"storage"}, top{"top"}, number{"number"}, copy{"copy"}, cohort{"cohort"},
                row{"row"}, runs{"runs"}, marks{"marks"}, whole{"whole"}, update_row{"update_row"};
        } of;
        auto state = nb::cast<nb::dict>(of.state.of(slot));
        nb::object names = of.names.of(slot);
        Member member{{}, index_of(of.cohort.of(slot), "cohort", cohorts_.size())};
        Cohort& cohort = cohorts_[member.cohort];
        // A cohort without options looks at the steps of its first member, come what may.
        View parameter = watch_.add(of.parameter.of(slot), state, !cohort.options);
        std::optional<DType> dtype = dtype_of(parameter);
        if (!dtype) {
            throw std::invalid_argument("A plan needs contiguous floating CPU tensors.");
        }
        auto keeps = [&](const Name& role) { return !role.of(names).is_none(); };
        Tensor tensor{};
        tensor.count = parameter.count;
        tensor.layout = {*dtype, keeps(roles().mean), keeps(roles().square),
                         keeps(roles().largest_square)};
        put_storage(tensor.layout, of.storage.of(slot), of.top.of(slot));
        tensor.arrays.p = parameter.data;
        put_entries(tensor, [&](const Name& role, Element element, std::int64_t count) -> void* {
            nb::object name = role.of(names);
            return name.is_none() ? nullptr : kept(state[name], element, count);
        });
        add_copy(tensor, of.copy.of(slot));
        nb::object marks = of.marks.of(slot);
        if (!marks.is_none()) {
            tensor.arrays.marks =
                static_cast<std::uint32_t*>(kept(marks, marks_element, mark_count(tensor.count)));
        }
        nb::object step = of.step.of(slot);
        if (!step.is_none()) {
            member.steps = counted(state[step]);
            if (!cohort.steps.is_kept()) {
                cohort.steps = member.steps;
            }
        }
        tensor.numbers = member.cohort;
        tensor.number = static_cast<std::uint64_t>(place_of(of.number.of(slot), "number"));
        if (!marks.is_none() && versions_.is_held()) {
            member.version = version_at(tensor.number);
        }
        tensor.row = index_of(of.row.of(slot), "row", row_count_);
        nb::object whole = of.whole.of(slot), update_row = of.update_row.of(slot);
        if (!whole.is_none()) {
            tensor.whole = place_of(whole, "whole");
        }
        if (!update_row.is_none()) {
            tensor.update_row = static_cast<std::int64_t>(
                index_of(update_row, "update_row", exchange_updates_.row_count()));
        }
        tensor.put(runs_of(of.runs.of(slot), tensor.count));
        members_.push_back(member);
        return tensor;
    }

    void add_copy(Tensor& tensor, nb::object copy) {
        if (!copy.is_none()) {
            bool is_bfloat16 = watch_.read(copy).element == elements::bfloat16;
            DType type = is_bfloat16 ? DType::bfloat16 : DType::float16;
            tensor.arrays.copy =
                static_cast<std::uint16_t*>(kept(copy, row_of(type), tensor.count));
            tensor.arrays.copy_type = type;
        }
    }

    std::int64_t* version_at(std::uint64_t number) {
        if (number >= static_cast<std::uint64_t>(versions_.view().len) / sizeof(std::int64_t)) {
            throw std::invalid_argument("There must be a version for each number of a slot.");
        }
        return static_cast<std::int64_t*>(versions_.view().buf) + number;
    }

    Count counted(nb::object tensor) {
        bool is_double = watch_.read(tensor).element.bits == 64;
        return {kept(tensor, is_double ? elements::float64 : elements::float32, 1), is_double};
    }

    void* kept(nb::object tensor, Element element, std::int64_t count) {
        View view = watch_.keep(tensor);
        if (!view.is(element) || view.count != count) {
            throw std::invalid_argument("A plan needs state that fits its parameter.");
        }
        return view.data;
    }

    // -- the numbers of a step ---------------------------------------------------------------

    // Reads the learning rates of the groups; false where one has none that can be stepped by, for
    // the front-end to say what is wrong.
    bool read_rates() {
        static const Name lr_name("lr");
        for (std::size_t i = 0; i < rates_.size(); ++i) {
            PyObject* lr = PyDict_GetItemWithError(watch_.group(i).ptr(), lr_name.text());
            if (lr == nullptr) {
                return false;
            }
            rates_[i] = PyFloat_AsDouble(lr);  // takes a tensor of one element, too
            // A schedule that ends at 0 may end beside it. None goes above the greatest rate that
            // was named.
            if (!(rates_[i] >= -1e-12) || rates_[i] > most_[i]) {
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
            cohort.made = Cohort::unknown;
            if (!cohort.options) {
                double made = cohort.steps.made();
                if (!is_count(made)) {
                    return false;
                }
                StepNumbers own = step_numbers_of(nb::object(given[next++]));
                if (cohort.steps.is_kept() && own.number != static_cast<std::uint64_t>(made) + 1) {
                    return false;
                }
                add_numbers(cohort, made, own);
            }
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (!watch_.has_gradient(i)) {
                continue;
            }
            const Count& steps = members_[i].steps;
            Cohort& cohort = cohorts_[members_[i].cohort];
            double made = steps.made();
            if (made != cohort.made && (steps.is_kept() || cohort.options) &&
                !renumber(cohort, made)) {
                return false;
            }
            plan_.tensors()[i].numbers = cohort.numbers;
        }
        return true;
    }

    // Lets a cohort go on with the numbers of members that have made `made` steps.
    bool renumber(Cohort& cohort, double made) {
        if (!cohort.options || !is_count(made)) {
            return false;  // the front-end says whose it is
        }
        constexpr std::size_t looked_at = 16;
        for (std::size_t i = numbers_.size(); i-- > 0 && i + looked_at >= numbers_.size();) {
            if (owners_[i] == &cohort &&
                numbers_[i].number == static_cast<std::uint64_t>(made) + 1) {
                cohort.numbers = i;
                cohort.made = made;
                return true;
            }
        }
        auto step = static_cast<std::int64_t>(made) + 1;
        add_numbers(cohort, made,
                    numbers_at(*cohort.options, plan_.phase(), step, rates_[cohort.group]));
        return true;
    }

    void add_numbers(Cohort& cohort, double made, const StepNumbers& numbers) {
        cohort.numbers = numbers_.size();
        cohort.made = made;
        numbers_.push_back(numbers);
        owners_.push_back(&cohort);
    }

    void take_gradients() {
        bool as_before = true;
        for (std::size_t i = 0; i < members_.size(); ++i) {
            adamas::Tensor& tensor = plan_.tensors()[i];
            bool is_present = watch_.has_gradient(i);
            as_before = as_before && tensor.is_present == is_present;
            tensor.is_present = is_present;
            tensor.arrays.g = is_present ? watch_.gradient(i) : nullptr;
        }
        if (!as_before) {
            plan_.cut();
            list_changed();
        }
    }

    void list_changed() {
        changed_ = nb::list();
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (plan_.tensors()[i].is_present) {
                changed_.append(watch_.parameter(i));
            }
        }
    }

    // -- versions ------------------------------------------------------------------------------

    // Marks all elements of members that something else than a step has written to.
    void mark_written() {
        if (!versions_.is_held()) {
            return;
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            const adamas::Tensor& tensor = plan_.tensors()[i];
            if (members_[i].version == nullptr || !tensor.is_present) {
                continue;
            }
            std::int64_t version = watch_.version(i);
            if (version != *members_[i].version) {
                mark_all(tensor.arrays.marks, tensor.count);
                *members_[i].version = version;
            }
        }
    }

    void keep_versions() {
        if (!versions_.is_held()) {
            return;
        }
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (members_[i].version != nullptr && plan_.tensors()[i].is_present) {
                *members_[i].version = watch_.version(i);
            }
        }
    }

    // -- after the sweep ---------------------------------------------------------------------

    void count_step() {
        for (std::size_t i = 0; i < members_.size(); ++i) {
            if (plan_.tensors()[i].is_present) {
                members_[i].steps.add_one();
            }
        }
        if (!watch_.bump(changed_)) {
            increment_version_(changed_);
        }
    }

    TensorWatch watch_;
    nb::object increment_version_;  // tells autograd that the members changed
    std::size_t row_count_;
    Exchange exchange_, exchange_updates_;  // add what other processes read, and measured
    Window spikes_;
    Buffer versions_;                // that the last step has left, of all parameters
    std::int64_t* steps_ = nullptr;  // behind them: how many were made
    std::vector<double> rates_;      // of the groups, at the step under way
    std::vector<double> most_;       // of the groups, what these may be at most
    std::vector<Cohort> cohorts_;
    std::size_t numbered_ = 0;  // how many of them have no options
    std::vector<Member> members_;
    nb::list changed_;                   // the parameters of the members that had gradients last
    std::vector<StepNumbers> numbers_;   // of the step under way
    std::vector<const Cohort*> owners_;  // of these, whose they are
    Plan plan_;
};

}  // namespace

void bind_tensor_plan(nb::module_& module) {
    nb::class_<TensorPlan>(module, "TensorPlan", nb::type_slots(collected<TensorPlan>),
                           "A step over the parameters of a torch.optim.Optimizer.")
        .def(nb::init<nb::type_object, nb::type_object, nb::list, nb::sequence, nb::sequence,
                      nb::sequence, nb::object, nb::object, nb::object, nb::object, nb::object,
                      bool, nb::object, nb::object, nb::object, nb::object>(),
             nb::arg("tensor_type"), nb::arg("parameter_type"), nb::arg("groups"), nb::arg("slots"),
             nb::arg("cohorts"), nb::arg("idle"), nb::arg("phase"), nb::arg("increment_version"),
             nb::arg("rows") = 1, nb::arg("exchange") = nb::none(),
             nb::arg("distributed") = nb::none(), nb::arg("keep_sums") = false,
             nb::arg("spikes") = nb::none(), nb::arg("versions") = nb::none(),
             nb::arg("update_rows") = 0, nb::arg("exchange_updates") = nb::none())
        .def("step", &TensorPlan::step, nb::arg("groups"), nb::arg("state"),
             nb::arg("loss_scale") = 1.0, nb::arg("factor") = 1.0, nb::arg("numbers") = nb::none(),
             "Make one step; None, the parts of an Outcome, or NotImplemented.")
        .def("step_if_open", &TensorPlan::step_if_open, nb::arg("groups"), nb::arg("state"),
             "Make one step; NotImplemented, too, where the plan is closed or in use.")
        .def("set_phase", &TensorPlan::set_phase, nb::arg("phase"),
             "Step by another phase from now on, which keeps the same averages.")
        .def(
            "open", [](TensorPlan& plan) { plan.turns().open(); }, "Let anybody step.")
        .def(
            "close", [](TensorPlan& plan) { return plan.turns().close(); },
            "Let nobody step that asks; false while such a step is in flight.")
        .def_prop_ro(
            "is_called_here", [](TensorPlan& plan) { return plan.turns().is_called_here(); },
            "Whether a step of this thread is in flight.")
        .def_prop_ro("stepped", &TensorPlan::stepped,
                     "How many parameters the last step was about: those with a gradient.")
        .def_prop_ro("parameters", &TensorPlan::parameters, "Those parameters.")
        .def_prop_ro("is_fast", &TensorPlan::is_fast,
                     "Whether addresses come through the DLPack exchange API.");
}

}  // namespace adamas
