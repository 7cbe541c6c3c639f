// The window of norms that Python keeps, as an array of float64: adamas.spikes.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <utility>

#include "buffer.h"
#include "plan.h"

namespace adamas {

class Window {
public:
    // Takes None, or what adamas.spikes.created() returns.
    explicit Window(nanobind::handle array) {
        if (array.is_none()) {
            return;
        }
        const Py_buffer& view = memory_.view();
        if (!memory_.acquire(array.ptr(), PyBUF_CONTIG | PyBUF_FORMAT) || view.ndim != 1 ||
            view.shape[0] <= SpikeWindow::extra || dtype_of(view) != DType::float64) {
            throw std::invalid_argument("A window of norms is a writeable array of float64.");
        }
    }
    Window() = default;

    // Has a plan judge by it. Throws ValueError where the phase asks for one that is not there.
    void serve(Plan& plan, const Phase& phase) const {
        if (!memory_.is_held()) {
            if (phase.skips_spikes) {
                throw std::invalid_argument("A plan needs a window of norms for skip_above.");
            }
            return;
        }
        const Py_buffer& view = memory_.view();
        plan.set_spikes({static_cast<double*>(view.buf), view.shape[0] - SpikeWindow::extra});
    }

    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(memory_.view().obj);
        return 0;
    }

    void clear() { memory_.release(); }

private:
    Buffer memory_;
};

}  // namespace adamas
