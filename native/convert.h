// Between Python's objects and the plan's values.
#pragma once

#include <nanobind/nanobind.h>

#include "plan.h"

namespace adamas {

// An adamas.options.Options (its learning rate comes with each step) and an adamas.options.Phase.
Options options_of(nanobind::handle given);
Phase phase_of(nanobind::handle given);

// Takes over how an adamas.state.State stores m and v, and how these Options round.
void put_forms(Layout& layout, nanobind::handle state, nanobind::handle options);

// The parts of an adamas.statistics.Outcome, or None where the phase asks for nothing.
nanobind::object parts_of(const Outcome& outcome, const Phase& phase);

}  // namespace adamas
