#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>

#include "float_mode.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif

namespace adamas {
namespace {

struct Job {
    std::int64_t count = 0;
    void (*body)(void*, std::int64_t) = nullptr;
    void* context = nullptr;
};

// Keeps signals from the calling thread, and so from threads that it starts, which inherit the
// mask: signals are for the threads that Python knows. Faults are of the thread that makes them,
// though, and faulthandler wants to tell of them.
class SignalsBlocked {
public:
    SignalsBlocked(const SignalsBlocked&) = delete;
    SignalsBlocked& operator=(const SignalsBlocked&) = delete;

#if defined(_WIN32)
    SignalsBlocked() {}
#else
    SignalsBlocked() {
        sigset_t blocked;
        sigfillset(&blocked);
        for (int fault : {SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGSEGV, SIGTRAP}) {
            sigdelset(&blocked, fault);
        }
        pthread_sigmask(SIG_SETMASK, &blocked, &before_);
    }
    ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
#endif
};

class Pool {
public:
    // Returns false, having done nothing, where another thread is using the pool.
    bool run(const Job& job, int threads) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) {
            return false;
        }
        int wanted = static_cast<int>(std::min<std::int64_t>(threads, job.count)) - 1;
        start_workers(wanted);
        int helpers = std::min(wanted, workers_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            next_.store(0, std::memory_order_relaxed);
            places_ = helpers;
            working_ = 0;
            ++round_;
        }
        wake_.notify_all();
        work(job);
        std::unique_lock<std::mutex> lock(mutex_);
        places_ = 0;  // who has not begun need not
        done_.wait(lock, [&] { return working_ == 0; });
        return true;
    }

private:
    // Starts as many as the system grants. Where it refuses one (limits of the user or of a
    // container, no memory for its stack), it is asked again after a second at the earliest: being
    // refused takes as long as a small step.
    void start_workers(int wanted) {
        using Clock = std::chrono::steady_clock;
        if (workers_ >= wanted || (refused_ && Clock::now() < next_try_)) {
            return;
        }
        SignalsBlocked blocked;
        refused_ = false;
        try {
            for (; workers_ < wanted; ++workers_) {
                std::thread([this] { serve(); }).detach();
            }
        } catch (const std::exception&) {  // std::system_error or std::bad_alloc
            refused_ = true;
            next_try_ = Clock::now() + std::chrono::seconds(1);
        }
    }

    void serve() {
        std::uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return round_ != seen && places_ > 0; });
            seen = round_;
            --places_;
            ++working_;
            Job job = job_;
            lock.unlock();
            work(job);
            lock.lock();
            if (--working_ == 0) {
                done_.notify_one();
            }
        }
    }

    void work(const Job& job) noexcept {  // the job is the caller's, who must not leave it early
        FloatMode mode;
        for (;;) {
            std::int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
            if (i >= job.count) {
                return;
            }
            job.body(job.context, i);
        }
    }

    std::mutex turn_;  // held by the caller whose job is run; guards what follows
    int workers_ = 0;
    bool refused_ = false;  // whether the system refused to start another
    std::chrono::steady_clock::time_point next_try_;

    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_, done_;
    Job job_;
    std::uint64_t round_ = 0;
    int places_ = 0;   // how many workers may still join the round
    int working_ = 0;  // how many have joined and not finished

    std::atomic<std::int64_t> next_{0};
};

// Null until it is needed. Never destroyed: parked threads hold on to it until the process ends.
std::atomic<Pool*> pool{nullptr};

#if defined(_WIN32)
constexpr bool children_start_anew = true;
#else
// The child has none of the parent's threads, and the pool's locks may be held by one. Said when
// the module is loaded: later, a fork could come in between.
const bool children_start_anew = pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }) == 0;
#endif

Pool& the_pool() {
    Pool* current = pool.load();
    if (current == nullptr) {
        Pool* made = new Pool;
        if (pool.compare_exchange_strong(current, made)) {
            return *made;
        }
        delete made;
    }
    return *current;
}

std::atomic<int> wanted_threads{0};
std::atomic<int> usual_threads{std::numeric_limits<int>::max()};

}  // namespace

int processor_count() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        return std::max(1, CPU_COUNT(&allowed));
    }
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

int thread_count() {
    int wanted = wanted_threads.load(std::memory_order_relaxed);
    int usual = usual_threads.load(std::memory_order_relaxed);
    return wanted > 0 ? wanted : std::min(usual, processor_count());
}

void set_thread_count(int count) { wanted_threads.store(count, std::memory_order_relaxed); }

void set_usual_threads(int count) { usual_threads.store(count, std::memory_order_relaxed); }

void for_each(std::int64_t count, bool threaded, void (*body)(void*, std::int64_t), void* context) {
    int threads = threaded && count > 1 && children_start_anew ? thread_count() : 1;
    if (threads > 1 && the_pool().run({count, body, context}, threads)) {
        return;
    }
    FloatMode mode;
    for (std::int64_t i = 0; i < count; ++i) {
        body(context, i);
    }
}

}  // namespace adamas
