// The parts of the module adamas._native.
#pragma once

#include <nanobind/nanobind.h>

#include <chrono>
#include <optional>
#include <thread>
#include <vector>

#include "exchange.h"
#include "plan.h"

namespace adamas {

void bind_array_plan(nanobind::module_& module);
void bind_tensor_plan(nanobind::module_& module);
void bind_tensor_watch(nanobind::module_& module);

// The slots of a type that holds Python objects which may hold its instances in turn, and so has
// traverse() and clear().
template <class Type>
const PyType_Slot collected[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(+[](PyObject* self, visitproc visit, void* arg) {
         Py_VISIT(Py_TYPE(self));
         return nanobind::inst_ready(self) ? nanobind::inst_ptr<Type>(self)->traverse(visit, arg)
                                           : 0;
     })},
    {Py_tp_clear, reinterpret_cast<void*>(+[](PyObject* self) {
         if (nanobind::inst_ready(self)) {
             nanobind::inst_ptr<Type>(self)->clear();
         }
         return 0;
     })},
    {0, nullptr}};

// Gives Python's lock away while it lives.
//
// A thread that asks for the lock back when the interpreter is being shut down is ended by CPython
// before 3.14, by unwinding its stack, which C++ does not survive. It waits for the end here
// instead, as CPython does since: it does not ask where the end has begun, and where that begins
// while it asks, it stays where the unwinding is first seen.
class LockReleased {
public:
    LockReleased() : state_(PyEval_SaveThread()) {}
    LockReleased(const LockReleased&) = delete;
    LockReleased& operator=(const LockReleased&) = delete;
    ~LockReleased() {
        while (is_ending()) {
            wait();
        }
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) {
                wait();
            }
        }
    }

private:
    static bool is_ending() {
#if PY_VERSION_HEX >= 0x030d0000
        return Py_IsFinalizing() != 0;
#else
        return _Py_IsFinalizing() != 0;
#endif
    }
    static void wait() { std::this_thread::sleep_for(std::chrono::hours(1)); }

    PyThreadState* state_;
};

// Makes a step. Where the phase reads gradients first, `exchange` is called between, and where it
// clips updates `exchange_updates`, with Python's lock held; the rest lets other Python threads run
// where it is long enough to pay.
inline Outcome step_released(Plan& plan, std::vector<StepNumbers>& numbers, double loss_scale = 1.0,
                             double factor = 1.0, const Exchange& exchange = {},
                             const Exchange& exchange_updates = {}) {
    std::optional<LockReleased> others_run;
    auto release = [&]() {
        if (plan.is_long()) {
            others_run.emplace();
        }
    };
    release();
    plan.read();
    if (plan.phase().reads_first() && !exchange.is_none()) {
        others_run.reset();
        plan.exchange(exchange);
        release();
    }
    Outcome outcome = plan.judge(numbers, loss_scale, factor);
    if (outcome.applied && plan.phase().clips_updates) {
        plan.measure(numbers);
        if (!exchange_updates.is_none()) {
            others_run.reset();
            plan.exchange_updates(exchange_updates, exchange_updates.row_count());
            release();
        }
    }
    plan.apply(numbers, outcome);
    return outcome;
}

}  // namespace adamas
