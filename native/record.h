// The record of a run, which a step brings up to date together with the arrays.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <utility>

#include "plan.h"

namespace adamas {

// A list of the steps that were made, of those that were left out, and the last outcome; or none.
class Record {
public:
    // Makes all that is needed, so that `put` cannot fail.
    Record(nanobind::handle record, std::int64_t number, const Phase& phase) : list_(record) {
        if (record.is_none()) {
            return;
        }
        if (!PyList_CheckExact(record.ptr()) || PyList_GET_SIZE(record.ptr()) != places) {
            throw std::invalid_argument("A record is a list of steps, skipped and outcome.");
        }
        steps_ = nanobind::int_(number);
        if (phase.on_nonfinite == OnNonfinite::skip) {
            skipped_ = nanobind::int_(nanobind::cast<std::int64_t>(record[skipped]) + 1);
        }
    }

    void put(const Outcome& outcome) {
        if (outcome.applied) {
            set(steps, steps_);
        } else if (!outcome.spike && skipped_.is_valid()) {
            set(skipped, skipped_);
        }
        set(last_outcome, nanobind::none());
    }

    void put_outcome(nanobind::object parts) { set(last_outcome, std::move(parts)); }

private:
    // As in adamas.engines.
    static constexpr Py_ssize_t steps = 0, skipped = 1, last_outcome = 2, places = 3;

    void set(Py_ssize_t place, nanobind::object value) {
        if (!list_.is_none()) {
            PyList_SetItem(list_.ptr(), place, value.release().ptr());
        }
    }

    nanobind::handle list_;
    nanobind::object steps_, skipped_;
};

}  // namespace adamas
