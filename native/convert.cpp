#include "convert.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace adamas {
namespace {

constexpr std::int64_t highest_top = 12;  // adamas.codecs.HIGHEST_TOP

const char* name_of(const char* name) { return name; }
const char* name_of(const StoredAs& row) { return row.name; }
const char* name_of(const RoundedAs& row) { return row.name; }

// The choice whose name is given; `rows` have the names, in the order of the choices.
template <class Choice, class Row, std::size_t count>
Choice choice_of(nb::handle value, const Row (&rows)[count]) {
    auto given = nb::cast<std::string>(value);
    for (std::size_t i = 0; i < count; ++i) {
        if (given == name_of(rows[i])) {
            return static_cast<Choice>(i);
        }
    }
    throw std::invalid_argument("unknown choice: " + given);
}

// Where Python could not convert: takes the error back, unless it is about something else.
void forget_conversion() {
    if (!PyErr_ExceptionMatches(PyExc_TypeError) && !PyErr_ExceptionMatches(PyExc_ValueError) &&
        !PyErr_ExceptionMatches(PyExc_OverflowError)) {
        throw nb::python_error();
    }
    PyErr_Clear();
}

[[noreturn]] void refuse(PyObject* error, const char* what, nb::handle given,
                         const std::string& possible) {
    PyErr_Format(error, "%s is %R, but it must be %s.", what, given.ptr(), possible.c_str());
    throw nb::python_error();
}

// Whole numbers as a tuple; most of these are 0, which Python has already.
nb::object tuple_of(const std::vector<std::int64_t>& numbers) {
    nb::object made = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(numbers.size())));
    if (!made.is_valid()) {
        throw nb::python_error();
    }
    for (std::size_t i = 0; i < numbers.size(); ++i) {
        PyObject* each = PyLong_FromLongLong(numbers[i]);
        if (each == nullptr) {
            throw nb::python_error();
        }
        PyTuple_SET_ITEM(made.ptr(), static_cast<Py_ssize_t>(i), each);
    }
    return made;
}

}  // namespace

double number_of(nb::handle given, const char* what) {
    double number = PyFloat_AsDouble(given.ptr());
    if (number == -1.0 && PyErr_Occurred()) {
        forget_conversion();
        refuse(PyExc_TypeError, what, given, "a number");
    }
    return number;
}

std::int64_t whole_number_of(nb::handle given, const char* what, std::int64_t least,
                             std::int64_t most) {
    auto number = PyLong_Check(given.ptr()) ? nb::borrow(given)
                                            : nb::steal<nb::object>(PyNumber_Index(given.ptr()));
    if (!number.is_valid()) {
        forget_conversion();
        refuse(PyExc_TypeError, what, given, "a whole number");
    }
    int beyond = 0;
    std::int64_t found = PyLong_AsLongLongAndOverflow(number.ptr(), &beyond);
    if (beyond != 0 || found < least || found > most) {
        refuse(PyExc_ValueError, what, given,
               "from " + std::to_string(least) + " to " + std::to_string(most));
    }
    return found;
}

std::int64_t place_of(nb::handle given, const char* what) {
    return whole_number_of(given, what, 0, std::numeric_limits<std::int64_t>::max());
}

std::size_t index_of(nb::handle given, const char* what, std::size_t count) {
    return static_cast<std::size_t>(
        whole_number_of(given, what, 0, static_cast<std::int64_t>(count) - 1));
}

std::int64_t step_of(nb::handle given) {
    int beyond = 0;
    std::int64_t step = 0;
    if (PyLong_CheckExact(given.ptr())) {
        step = PyLong_AsLongLongAndOverflow(given.ptr(), &beyond);
    }
    if (beyond != 0 || step < 1 || step > static_cast<std::int64_t>(most_steps)) {
        // Where it is said for all engines what else is a number of a step, and what is none.
        nb::object check = nb::module_::import_("adamas.coefficients").attr("check_step");
        step = nb::cast<std::int64_t>(check(given));
    }
    return step;
}

Options options_of(nb::handle given) {
    Options options;
    nb::object betas = given.attr("betas");
    options.has_mean = !betas[0].is_none();
    options.has_square = !betas[1].is_none();
    options.beta1 = options.has_mean ? number_of(nb::object(betas[0]), "betas[0]") : 0.0;
    options.beta2 = options.has_square ? number_of(nb::object(betas[1]), "betas[1]") : 0.0;
    options.eps = number_of(nb::object(given.attr("eps")), "eps");
    options.eps_place =
        choice_of<EpsPlace>(given.attr("eps_place"), {"corrected", "uncorrected", "inside"});
    options.eps_root = number_of(nb::object(given.attr("eps_root")), "eps_root");
    options.weight_decay = number_of(nb::object(given.attr("weight_decay")), "weight_decay");
    options.decay = choice_of<Decay>(
        given.attr("decay"), {"l2", "decoupled", "fully-decoupled", "cautious", "corrected"});
    if (options.decay == Decay::fully_decoupled || options.decay == Decay::corrected) {
        options.lr_max = number_of(nb::object(given.attr("lr_max")), "lr_max");
    }
    options.bias_correction =
        choice_of<BiasCorrection>(given.attr("bias_correction"), {"paper", "first-step", "none"});
    options.amsgrad = nb::cast<bool>(given.attr("amsgrad"));
    options.nesterov = nb::cast<bool>(given.attr("nesterov"));
    options.rectify = nb::cast<bool>(given.attr("rectify"));
    options.maximize = nb::cast<bool>(given.attr("maximize"));
    return options;
}

Phase phase_of(nb::handle given) {
    Phase phase;
    nb::object clip_norm = given.attr("clip_norm");
    phase.clips = !clip_norm.is_none();
    phase.clip_norm = phase.clips ? number_of(clip_norm, "clip_norm") : 0.0;
    phase.on_nonfinite =
        choice_of<OnNonfinite>(given.attr("on_nonfinite"), {"propagate", "skip", "raise"});
    nb::object ema = given.attr("ema");
    phase.averages = !ema.is_none();
    phase.ema = phase.averages ? number_of(ema, "ema") : 0.0;
    phase.statistics = nb::cast<bool>(given.attr("statistics"));
    phase.seed = nb::cast<std::uint64_t>(given.attr("seed"));
    nb::object skip_above = given.attr("skip_above");
    phase.skips_spikes = !skip_above.is_none();
    phase.skip_above = phase.skips_spikes ? number_of(skip_above, "skip_above") : 0.0;
    nb::object clip_update = given.attr("clip_update");
    phase.clips_updates = !clip_update.is_none();
    phase.clip_update = phase.clips_updates ? number_of(clip_update, "clip_update") : 0.0;
    return phase;
}

std::vector<Runs> runs_of(nb::handle given, std::int64_t count) {
    static const struct {
        Name first{"first"}, start{"start"}, length{"length"}, pitch{"pitch"};
    } of;
    std::vector<Runs> runs;
    std::int64_t least = 0, most = 0;  // of the next first one
    for (nb::handle each : given) {
        std::int64_t first = whole_number_of(of.first.of(each), "first", least, most);
        runs.push_back({first, place_of(of.start.of(each), "start"),
                        whole_number_of(of.length.of(each), "length", 1,
                                        std::numeric_limits<std::int64_t>::max()),
                        place_of(of.pitch.of(each), "pitch")});
        least = first + 1;
        most = count - 1;
    }
    return runs;
}

void put_storage(Layout& layout, nb::handle storage, nb::handle top) {
    static const Name mean("mean"), square("square"), rounding_name("rounding");
    layout.mean_form = choice_of<Form>(mean.of(storage), forms);
    layout.square_form = choice_of<Form>(square.of(storage), forms);
    nb::object rounding = rounding_name.of(storage);
    layout.rounding =
        rounding.is_none() ? Rounding::nearest : choice_of<Rounding>(rounding, roundings);
    layout.stochastic = rounding.is_none() || layout.rounding != Rounding::nearest;
    layout.top = static_cast<int>(whole_number_of(top, "top", 0, highest_top));
}

const Roles& roles() {
    static const Roles all;
    return all;
}

void refuse_state() {
    throw std::invalid_argument("A plan needs the state that its options speak of.");
}

void check_state(const Tensor& tensor) {
    const Layout& layout = tensor.layout;
    const Arrays& arrays = tensor.arrays;
    bool misses = (layout.mean && arrays.m == nullptr) || (layout.square && arrays.v == nullptr) ||
                  (layout.largest && arrays.w == nullptr) ||
                  (layout.has_header() && arrays.header == nullptr) ||
                  (layout.keeps_remainder() && arrays.remainder == nullptr);
    if (tensor.count > 0 && misses) {
        refuse_state();
    }
    if (layout.is_small() && layout.dtype == DType::float64) {
        throw std::invalid_argument("Small forms of state are not for float64 parameters.");
    }
}

StepNumbers step_numbers_of(nb::handle given) {
    static const struct {
        Name name;
        double Numbers<double>::* number;
    } of_rule[] = {
        {Name("grad_scale"), &Numbers<double>::grad_scale},
        {Name("l2"), &Numbers<double>::l2},
        {Name("decay"), &Numbers<double>::decay},
        {Name("opposed"), &Numbers<double>::opposed},
        {Name("keep1"), &Numbers<double>::keep1},
        {Name("take1"), &Numbers<double>::take1},
        {Name("keep2"), &Numbers<double>::keep2},
        {Name("take2"), &Numbers<double>::take2},
        {Name("from_m"), &Numbers<double>::from_m},
        {Name("from_g"), &Numbers<double>::from_g},
        {Name("root"), &Numbers<double>::root},
        {Name("inner"), &Numbers<double>::inner},
        {Name("eps"), &Numbers<double>::eps},
        {Name("step"), &Numbers<double>::step},
    };
    static const Name rule_name("rule"), keep("keep"), take("take"), step("step");
    auto found = [&](const Name& name, nb::handle object) {
        nb::object value = name.if_any(object);
        if (!value.is_valid()) {
            PyErr_Format(PyExc_TypeError,
                         "The numbers of a step are %R, but they must be an "
                         "adamas.coefficients.StepNumbers.",
                         given.ptr());
            throw nb::python_error();
        }
        return value;
    };
    auto number = [&](const Name& name, nb::handle object) {
        return number_of(found(name, object), "A number of the step");
    };
    StepNumbers own{};
    nb::object rule = found(rule_name, given);
    for (auto& each : of_rule) {
        own.rule.*each.number = number(each.name, rule);
    }
    own.ema_keep = number(keep, given);
    own.ema_take = number(take, given);
    own.number = static_cast<std::uint64_t>(step_of(found(step, given)));
    return own;
}

nb::object parts_of(const Outcome& outcome, const Phase& phase) {
    if (!phase.reads_first() && !phase.statistics) {
        return nb::none();
    }
    nb::object norm = nb::none(), nonfinite = nb::none(), statistics = nb::none();
    if (phase.reads_first()) {
        norm = nb::cast(outcome.norm);
        nonfinite = tuple_of(outcome.nonfinite);
    }
    if (phase.statistics && outcome.applied) {
        nb::list all;
        for (const TensorStatistics& s : outcome.statistics) {
            all.append(nb::make_tuple(s.gradient_norm, s.parameter_norm, s.update_norm,
                                      s.largest_update, s.nonfinite, s.unmoved));
        }
        statistics = all;
    }
    if (outcome.sums.empty()) {
        return nb::make_tuple(outcome.applied, norm, nonfinite, statistics, outcome.spike);
    }
    nb::bytes sums(outcome.sums.data(), outcome.sums.size() * sizeof(std::int64_t));
    return nb::make_tuple(outcome.applied, norm, nonfinite, statistics, outcome.spike, sums);
}

}  // namespace adamas
