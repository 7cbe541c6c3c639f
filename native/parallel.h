// A small pool of threads that park when idle.
//
// One call at a time uses the pool. A second Python thread that steps meanwhile does its work
// itself, and so does a process right after fork, whose pool starts empty: nothing ever waits for
// a thread that has not begun. Where the system grants fewer threads than are wanted, those share
// the work.
//
// To wake a parked thread takes some microseconds, or some tens of them in a virtual machine. So
// the pool measures that once, wakes no more threads than the work is worth, and has threads look
// for more work about as long before they park: steps that follow each other at once, and the
// passes of one step, find them awake.
#pragma once

#include <cstdint>

namespace adamas {

// How many threads a large step uses where the system grants them, the caller included.
int thread_count();
void set_thread_count(int count);

// How many it uses at most where nobody has set the number; never more than there are processors.
void set_usual_threads(int count);

// How many processors this process may run on.
int processor_count();

// Calls body(context, first, last) for runs of 0 … count - 1 until all are done, every call in the
// floating-point mode of the contract: on several threads where `nanoseconds`, what all of it takes
// one thread at least, are worth it. Returns when all calls have returned.
void for_each_run(std::int64_t count, std::int64_t nanoseconds,
                  void (*body)(void* context, std::int64_t first, std::int64_t last),
                  void* context);

template <class Body>
void for_each_run(std::int64_t count, std::int64_t nanoseconds, Body& body) {
    for_each_run(
        count, nanoseconds,
        [](void* context, std::int64_t first, std::int64_t last) {
            (*static_cast<Body*>(context))(first, last);
        },
        &body);
}

// The same, one number at a time.
template <class Body>
void for_each(std::int64_t count, std::int64_t nanoseconds, Body& body) {
    auto run = [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t i = first; i < last; ++i) {
            body(i);
        }
    };
    for_each_run(count, nanoseconds, run);
}

}  // namespace adamas
