// Which machine's kernels answer.
#pragma once

#include <span>
#include <string>

#include "kernels.h"

namespace adamas {

struct Target {
    const char* name;
    const Kernels* kernels;
    bool runs_here;
};

// All machines this build has code for, best first.
std::span<const Target> targets();

// The machine in use: at first the best that runs here.
const Target& target();

// Changes the machine in use. `name` must be one that runs here.
void set_target(const std::string& name);

}  // namespace adamas
