// A small pool of threads that park when idle.
//
// One call at a time uses the pool. A second Python thread that steps meanwhile does its work
// itself, and so does a process right after fork, whose pool starts empty: nothing ever waits for
// a thread that may not exist. Where the system grants fewer threads than are wanted, those share
// the work.
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

// Calls body(context, i) for each i in 0 … count - 1, on several threads where `threaded`, every
// one of them in the floating-point mode of the contract. Returns when all calls have returned.
void for_each(std::int64_t count, bool threaded, void (*body)(void* context, std::int64_t i),
              void* context);

template <class Body>
void for_each(std::int64_t count, bool threaded, Body& body) {
    for_each(
        count, threaded, [](void* context, std::int64_t i) { (*static_cast<Body*>(context))(i); },
        &body);
}

}  // namespace adamas
