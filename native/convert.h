// Between Python's objects and the plan's values.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

#include "plan.h"

namespace adamas {

// Numbers that Python gives; `what` begins the sentence of the error. Throws TypeError where it is
// no number, or no whole one, and ValueError where it is not from `least` to `most`.
double number_of(nanobind::handle given, const char* what);
std::int64_t whole_number_of(nanobind::handle given, const char* what, std::int64_t least,
                             std::int64_t most);

// The number of a step, 1 first.
std::int64_t step_of(nanobind::handle given);

// An adamas.options.Options (its learning rate comes with each step) and an adamas.options.Phase.
Options options_of(nanobind::handle given);
Phase phase_of(nanobind::handle given);

// Puts how a tensor is stored into a layout: the forms of m and v by their names, the option
// `rounding`, and what codes of m are counted from: adamas.codecs.mean_top.
void put_storage(Layout& layout, nanobind::handle mean, nanobind::handle square,
                 nanobind::handle rounding, nanobind::handle top);

// The numbers of a step as a tuple has them: those of the rule, then the weights of the average.
StepNumbers given_numbers(nanobind::handle given, std::uint64_t step);

// The parts of an adamas.statistics.Outcome, or None where the phase asks for nothing.
nanobind::object parts_of(const Outcome& outcome, const Phase& phase);

}  // namespace adamas
