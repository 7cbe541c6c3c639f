// The parts of the module adamas._native.
#pragma once

#include <nanobind/nanobind.h>

#include "plan.h"

namespace adamas {

void bind_array_plan(nanobind::module_& module);
void bind_tensor_plan(nanobind::module_& module);

// Makes a step, letting other Python threads run where it is long enough to pay.
inline Outcome step_released(Plan& plan, std::vector<StepNumbers>& numbers, double loss_scale = 1.0,
                             double factor = 1.0) {
    if (plan.is_long()) {
        nanobind::gil_scoped_release others_run;
        return plan.step(numbers, loss_scale, factor);
    }
    return plan.step(numbers, loss_scale, factor);
}

}  // namespace adamas
