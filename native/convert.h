// Between Python's objects and the plan's values.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "name.h"
#include "plan.h"

namespace adamas {

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

// A sequence of adamas.engines.Runs, of a part of `count` elements. Throws ValueError where they do
// not begin with its first one, or do not ascend.
std::vector<Runs> runs_of(nanobind::handle given, std::int64_t count);

// Puts how a tensor is stored into a layout: an adamas.storage.Storage, and what codes of m
// are counted from: adamas.codecs.mean_top.
void put_storage(Layout& layout, nanobind::handle storage, nanobind::handle top);

// The roles of adamas.state.Entries.
struct Roles {
    Name mean{"mean"}, square{"square"}, largest_square{"largest_square"}, ema{"ema"},
        header{"header"}, remainder{"remainder"};
};
const Roles& roles();

// Throw ValueError: where a tensor has not all of the arrays that its layout speaks of; in any
// case.
void check_state(const Tensor& tensor);
[[noreturn]] void refuse_state();

// Puts the state of a tensor, whose layout and count stand, among its arrays. found(role, element,
// count) gives the memory of an entry, null where there is none. Throws as check_state().
template <class Found>
void put_entries(Tensor& tensor, Found found) {
    const Layout& layout = tensor.layout;
    const Roles& role = roles();
    Arrays& arrays = tensor.arrays;
    std::int64_t count = tensor.count;
    arrays.m = found(role.mean, layout.mean_element(), count);
    arrays.v = found(role.square, layout.square_element(), count);
    arrays.w = found(role.largest_square, layout.number(), count);
    arrays.ema = found(role.ema, layout.number(), count);
    arrays.header = found(role.header, header_element, header_count(count));
    arrays.remainder = found(role.remainder, layout.remainder_element(), count);
    check_state(tensor);
}

// An adamas.coefficients.StepNumbers. Throws TypeError for what is none.
StepNumbers step_numbers_of(nanobind::handle given);

// The parts of an adamas.statistics.Outcome, or None where the phase asks for nothing.
nanobind::object parts_of(const Outcome& outcome, const Phase& phase);

}  // namespace adamas
