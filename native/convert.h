// Between Python's objects and the plan's values.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>

#include "plan.h"

namespace adamas {

// The name of an attribute, whose text is made once: looking it up takes half the time then. For
// names that live as long as the process.
class Name {
public:
    explicit Name(const char* text);

    nanobind::object of(nanobind::handle object) const {
        auto found = nanobind::steal<nanobind::object>(PyObject_GetAttr(object.ptr(), text_));
        if (!found.is_valid()) {
            throw nanobind::python_error();
        }
        return found;
    }

    // The same, or nothing where there is no such attribute.
    nanobind::object if_any(nanobind::handle object) const;

private:
    PyObject* text_;
};

// Numbers that Python gives; `what` begins the sentence of the error. Throws TypeError where it is
// no number, or no whole one, and ValueError where it is not from `least` to `most`.
double number_of(nanobind::handle given, const char* what);
std::int64_t whole_number_of(nanobind::handle given, const char* what, std::int64_t least,
                             std::int64_t most);

// The same of what counts from 0: the number of a tensor or element, and one below `count`.
std::int64_t place_of(nanobind::handle given, const char* what);
std::size_t index_of(nanobind::handle given, const char* what, std::size_t count);

// The number of a step, 1 first: what adamas.coefficients.check_step takes.
std::int64_t step_of(nanobind::handle given);

// An adamas.options.Options (its learning rate comes with each step) and an adamas.options.Phase.
Options options_of(nanobind::handle given);
Phase phase_of(nanobind::handle given);

// Puts how a tensor is stored into a layout: an adamas.storage.Storage, and what codes of m
// are counted from: adamas.codecs.mean_top.
void put_storage(Layout& layout, nanobind::handle storage, nanobind::handle top);

// What an array of a state consists of, as dlpack.h tells it and tensors have it; NumPy's arrays
// have as many bytes.
struct Element {
    std::uint8_t code, bits;

    std::int64_t bytes() const { return bits / 8; }
};

// What m, v, headers and remainders are stored as: adamas.storage.STORED_AS and REMAINDERS.
// Numbers in the dtype of the arithmetic stand in place of codes in the form `plain`.
Element element_of_numbers(DType parameter);
Element element_of_mean(const Layout& layout);
Element element_of_square(const Layout& layout);
Element element_of_header();
Element element_of_remainder(const Layout& layout);

// How many headers so many elements have.
std::int64_t header_count(std::int64_t elements);

// Throw ValueError: where a tensor has not all of the arrays that its layout speaks of; in any
// case.
void check_state(const Tensor& tensor);
[[noreturn]] void refuse_state();

// An adamas.coefficients.StepNumbers. Throws TypeError for what is none.
StepNumbers step_numbers_of(nanobind::handle given);

// The parts of an adamas.statistics.Outcome, or None where the phase asks for nothing.
nanobind::object parts_of(const Outcome& outcome, const Phase& phase);

}  // namespace adamas
