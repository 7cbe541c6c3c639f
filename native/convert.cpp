#include "convert.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "dlpack.h"

namespace nb = nanobind;

namespace adamas {
namespace {

constexpr std::int64_t highest_top = 12;  // adamas.codecs.HIGHEST_TOP

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

}  // namespace

Name::Name(const char* text) : text_(PyUnicode_InternFromString(text)) {
    if (text_ == nullptr) {
        throw nb::python_error();
    }
}

nb::object Name::if_any(nb::handle object) const {
    auto found = nb::steal<nb::object>(PyObject_GetAttr(object.ptr(), text_));
    if (!found.is_valid()) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            throw nb::python_error();
        }
        PyErr_Clear();
    }
    return found;
}

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
        choice_of<EpsPlace>(given.attr("eps_place"), {{"corrected", EpsPlace::corrected},
                                                      {"uncorrected", EpsPlace::uncorrected},
                                                      {"inside", EpsPlace::inside}});
    options.eps_root = number_of(nb::object(given.attr("eps_root")), "eps_root");
    options.weight_decay = number_of(nb::object(given.attr("weight_decay")), "weight_decay");
    options.decay =
        choice_of<Decay>(given.attr("decay"), {{"l2", Decay::l2},
                                               {"decoupled", Decay::decoupled},
                                               {"fully-decoupled", Decay::fully_decoupled}});
    if (options.decay == Decay::fully_decoupled) {
        options.lr_max = number_of(nb::object(given.attr("lr_max")), "lr_max");
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
    phase.clip_norm = phase.clips ? number_of(clip_norm, "clip_norm") : 0.0;
    phase.on_nonfinite =
        choice_of<OnNonfinite>(given.attr("on_nonfinite"), {{"propagate", OnNonfinite::propagate},
                                                            {"skip", OnNonfinite::skip},
                                                            {"raise", OnNonfinite::raise}});
    nb::object ema = given.attr("ema");
    phase.averages = !ema.is_none();
    phase.ema = phase.averages ? number_of(ema, "ema") : 0.0;
    phase.statistics = nb::cast<bool>(given.attr("statistics"));
    phase.seed = nb::cast<std::uint64_t>(given.attr("seed"));
    return phase;
}

void put_storage(Layout& layout, nb::handle storage, nb::handle top) {
    static const Name mean("mean"), square("square"), rounding_name("rounding");
    auto form_of = [](nb::handle form) {
        return choice_of<Form>(form, {{"float32", Form::plain},
                                      {"bfloat16", Form::bfloat16},
                                      {"compact", Form::compact},
                                      {"8bit", Form::eight_bit}});
    };
    layout.mean_form = form_of(mean.of(storage));
    layout.square_form = form_of(square.of(storage));
    nb::object rounding = rounding_name.of(storage);
    layout.rounding = rounding.is_none()
                          ? Rounding::nearest
                          : choice_of<Rounding>(rounding, {{"nearest", Rounding::nearest},
                                                           {"stochastic", Rounding::stochastic},
                                                           {"remainder", Rounding::remainder},
                                                           {"remainder8", Rounding::remainder8}});
    layout.stochastic = rounding.is_none() || layout.rounding != Rounding::nearest;
    layout.top = static_cast<int>(whole_number_of(top, "top", 0, highest_top));
}

Element element_of_numbers(DType parameter) {
    return {dlpack::float_code, std::uint8_t(parameter == DType::float64 ? 64 : 32)};
}

Element element_of_mean(const Layout& layout) {
    switch (layout.mean_form) {
        case Form::bfloat16:
            return {dlpack::bfloat_code, 16};
        case Form::compact:
            return {dlpack::uint_code, 8};
        case Form::eight_bit:
            return {dlpack::int_code, 8};
        default:
            return element_of_numbers(layout.dtype);
    }
}

Element element_of_square(const Layout& layout) {
    switch (layout.square_form) {
        case Form::bfloat16:
        case Form::compact:
            return {dlpack::bfloat_code, 16};
        case Form::eight_bit:
            return {dlpack::uint_code, 8};
        default:
            return element_of_numbers(layout.dtype);
    }
}

Element element_of_header() { return {dlpack::int_code, 16}; }

Element element_of_remainder(const Layout& layout) {
    return {dlpack::int_code, std::uint8_t(layout.rounding == Rounding::remainder ? 16 : 8)};
}

std::int64_t header_count(std::int64_t elements) {
    return (elements + block_size - 1) / block_size;
}

void refuse_state() {
    throw std::invalid_argument("A plan needs the state that its options speak of.");
}

void check_state(const Tensor& tensor) {
    const Layout& layout = tensor.layout;
    const Arrays& arrays = tensor.arrays;
    bool is_8bit = (layout.mean && layout.mean_form == Form::eight_bit) ||
                   (layout.square && layout.square_form == Form::eight_bit);
    bool misses = (layout.mean && arrays.m == nullptr) || (layout.square && arrays.v == nullptr) ||
                  (layout.largest && arrays.w == nullptr) ||
                  (is_8bit && arrays.header == nullptr) ||
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

}  // namespace adamas
