#include "parallel.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <vector>

#include "float_mode.h"

#if defined(__linux__)
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(ADAMAS_X86_64)
#include <immintrin.h>
#elif defined(_M_ARM64)
#include <intrin.h>
#endif

namespace adamas {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t microsecond = 1000;

// Work below this is not worth any other thread, awake or not.
constexpr std::int64_t least_work = 20 * microsecond;

// For what less than this a thread that is awake does not join.
constexpr std::int64_t least_share = 8 * microsecond;

// What waking a thread is taken to cost at most, however busy the machine was when it was measured.
constexpr std::int64_t most_to_wake = 50 * microsecond;

// How many numbers a thread takes at once, at most.
constexpr std::int64_t longest_run = 8;

std::int64_t nanoseconds_since(Clock::time_point begin) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - begin).count();
}

// Tells the processor that this thread is waiting for another one.
inline void relax() {
#if defined(ADAMAS_X86_64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#elif defined(_M_ARM64)
    __isb(_ARM64_BARRIER_SY);
#endif
}

// Asks again and again until is_so() or until the time is over, and returns whether it is so.
template <class Condition>
bool spin(std::int64_t nanoseconds, Condition is_so) {
    if (is_so()) {
        return true;
    }
    for (Clock::time_point begin = Clock::now(); nanoseconds_since(begin) < nanoseconds;) {
        for (int i = 0; i < 8; ++i) {
            relax();
            if (is_so()) {
                return true;
            }
        }
    }
    return false;
}

struct Job {
    std::int64_t count = 0;
    void (*body)(void*, std::int64_t, std::int64_t) = nullptr;
    void* context = nullptr;
    int threads = 1;  // that may share it, the caller included
};

void alone(const Job& job) {
    FloatMode mode;
    job.body(job.context, 0, job.count);
}

// A thread, and the processor it runs on, as far as the system tells them.
struct Caller {
    int thread = -1, processor = -1;

    static Caller here() {
#if defined(__linux__)
        return {static_cast<int>(syscall(SYS_gettid)), sched_getcpu()};
#else
        return {};
#endif
    }
};

// Keeps a thread of the pool off the processor of who has woken it. Linux wakes a thread beside
// the one that wakes it where all other processors seem busy, and in a virtual machine a processor
// that is halted seems so: both would take turns on one. A thread that finds itself there moves
// away, to where the caller might be, and stays away.
void keep_off([[maybe_unused]] Caller caller) {
#if defined(__linux__)
    int processor = caller.processor;
    if (processor < 0 || processor >= CPU_SETSIZE || processor != sched_getcpu()) {
        return;
    }
    // That of the caller, which changes as whoever limits the process likes, or else what is left
    // of the thread's own: a caller may be bound to one processor.
    for (int thread : {caller.thread, 0}) {
        cpu_set_t others;
        if (sched_getaffinity(thread, sizeof others, &others) != 0) {
            continue;
        }
        CPU_CLR(processor, &others);
        if (CPU_COUNT(&others) > 0 && sched_setaffinity(0, sizeof others, &others) == 0) {
            return;
        }
    }
#endif
}

// Who may join a round, and who has: the number of the round, how many threads may still join it,
// and how many have joined and not finished.
class Gate {
public:
    void open(int places) {
        std::uint64_t round = (gate_.load(std::memory_order_relaxed) >> round_shift) + 1;
        gate_.store(round << round_shift | static_cast<std::uint64_t>(places) << place_shift);
    }

    // Returns whether a thread that has `seen` a round has joined a later one; the thread has seen
    // that then.
    bool join(std::uint64_t& seen) {
        std::uint64_t gate = gate_.load(std::memory_order_relaxed);
        while (is_open(gate, seen)) {
            if (gate_.compare_exchange_weak(gate, gate - one_place + 1)) {
                seen = gate >> round_shift;
                return true;
            }
        }
        return false;
    }
    bool is_open_for(std::uint64_t seen) const { return is_open(gate_.load(), seen); }

    // Who has not joined need not.
    void close() { gate_.fetch_and(~(place_mask << place_shift)); }

    // Returns whether nobody is left and nobody may join.
    bool leave() { return (gate_.fetch_sub(1) & low_mask) == 1; }

    bool is_anybody_left() const { return (gate_.load() & place_mask) != 0; }

private:
    static constexpr int place_shift = 12, round_shift = 24;
    static constexpr std::uint64_t place_mask = (1u << place_shift) - 1;
    static constexpr std::uint64_t low_mask = (1u << round_shift) - 1;
    static constexpr std::uint64_t one_place = 1u << place_shift;

    static bool is_open(std::uint64_t gate, std::uint64_t seen) {
        return gate >> round_shift != seen && (gate >> place_shift & place_mask) != 0;
    }

    std::atomic<std::uint64_t> gate_{0};
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

// The numbers that one thread has before it helps others. It takes them from the front, and others
// from the back: so it has nearly the same ones when the same job comes again, and finds what they
// stand for in its own cache.
class Share {
public:
    static constexpr std::int64_t largest = 0xffffffff;  // number

    void put(std::int64_t first, std::int64_t last) {
        span_.store(packed(first, last), std::memory_order_relaxed);
    }

    bool is_empty() const {
        std::uint64_t span = span_.load(std::memory_order_relaxed);
        return first_of(span) >= last_of(span);
    }

    // Takes runs that become shorter to the end: a thread that comes late, or is kept from running,
    // then keeps the others waiting for a short one. Returns false where nothing is left.
    bool take(bool is_own, std::int64_t& first, std::int64_t& last) {
        std::uint64_t span = span_.load(std::memory_order_relaxed), left;
        do {
            first = first_of(span);
            last = last_of(span);
            if (first >= last) {
                return false;
            }
            std::int64_t size = std::clamp<std::int64_t>((last - first) / 2, 1, longest_run);
            left = is_own ? packed(first + size, last) : packed(first, last - size);
            is_own ? last = first + size : first = last - size;
        } while (!span_.compare_exchange_weak(span, left, std::memory_order_relaxed));
        return true;
    }

private:
    static std::uint64_t packed(std::int64_t first, std::int64_t last) {
        return static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint64_t>(last);
    }
    static std::int64_t first_of(std::uint64_t span) {
        return static_cast<std::int64_t>(span >> 32);
    }
    static std::int64_t last_of(std::uint64_t span) {
        return static_cast<std::int64_t>(span & largest);
    }

    alignas(64) std::atomic<std::uint64_t> span_{0};
};

class Pool {
public:
    // Returns false, having done nothing, where another thread is using the pool.
    bool run(Job job, std::int64_t nanoseconds, int threads, int processors) {
        std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) {
            return false;
        }
        int wanted = static_cast<int>(std::min<std::int64_t>(threads, job.count)) - 1;
        start_workers(wanted);
        if (to_wake_one_ == 0 && workers_ > 0) {
            to_wake_one_ = measured();
        }
        // Where there are more threads than processors, who asks again and again keeps one from the
        // thread that is waited for.
        patience_.store(threads <= processors ? to_wake_one_ : 0, std::memory_order_relaxed);
        followed_ = nanoseconds_since(end_) < patience() ? followed_ + 1 : 0;
        int helpers = worth(nanoseconds, std::min(wanted, workers_));
        if (helpers == 0) {
            alone(job);
        } else {
            job.threads = helpers + 1;
            open(job, helpers);
            work(job, 0);
            close();
        }
        end_ = Clock::now();
        return true;
    }

private:
    // Starts as many as the system grants. Where it refuses one (limits of the user or of a
    // container, no memory for its stack), it is asked again after a second at the earliest: being
    // refused takes as long as a small step.
    void start_workers(int wanted) {
        if (workers_ >= wanted || (refused_ && Clock::now() < next_try_)) {
            return;
        }
        SignalsBlocked blocked;
        refused_ = false;
        try {
            if (static_cast<std::size_t>(wanted) >= shares_.size()) {
                shares_ = std::vector<Share>(wanted + 1);  // nobody works now
            }
            for (; workers_ < wanted; ++workers_) {
                std::thread([this, number = workers_] { serve(number); }).detach();
            }
        } catch (const std::exception&) {  // std::system_error or std::bad_alloc
            refused_ = true;
            next_try_ = Clock::now() + std::chrono::seconds(1);
        }
    }

    // How many of so many others are worth having for some work. Two threads take half of it, and
    // half of what it costs to wake one: they are to save a quarter at least. Where one job follows
    // on the other, more than the passes of a step, who is woken once is awake for all of them.
    int worth(std::int64_t nanoseconds, int others) const {
        if (others == 0) {
            return 0;
        }
        std::int64_t at_most = nanoseconds / least_share;
        if (followed_ < 4) {
            std::int64_t awake = workers_ - parked_.load(std::memory_order_relaxed);
            at_most = std::max(std::min(awake, at_most), nanoseconds / (2 * to_wake_one_));
        }
        return static_cast<int>(std::min<std::int64_t>(others, at_most));
    }

    // What it costs to have a parked worker: the time of the caller, and the time until it begins.
    std::int64_t measured() {
        std::array<std::int64_t, 5> costs;
        for (std::int64_t& cost : costs) {
            // The processor of a worker that has just parked may not be at rest yet.
            spin(10 * most_to_wake, [&] { return parked_.load() == workers_; });
            spin(most_to_wake / 2, [] { return false; });
            Clock::time_point begin = Clock::now();
            auto nothing = [](void*, std::int64_t, std::int64_t) {};
            open({1, nothing, nullptr, 2}, 1);
            std::int64_t own = nanoseconds_since(begin);
            spin(most_to_wake, [&] { return shares_[1].is_empty(); });
            cost = own + nanoseconds_since(begin);
            close();
        }
        // Whatever else runs meanwhile adds to it.
        std::nth_element(costs.begin(), costs.begin() + 1, costs.end());
        return std::clamp(costs[1], microsecond, most_to_wake);
    }

    // How long those who wait ask again and again before they park, in nanoseconds.
    std::int64_t patience() const { return patience_.load(std::memory_order_relaxed); }

    void open(const Job& job, int places) {
        job_ = job;
        for (std::int64_t i = 0; i < job.threads; ++i) {
            shares_[i].put(job.count * i / job.threads, job.count * (i + 1) / job.threads);
        }
        Caller caller = Caller::here();
        thread_.store(caller.thread, std::memory_order_relaxed);
        processor_.store(caller.processor, std::memory_order_relaxed);
        gate_.open(places);
        // Each worker is counted here, or sees that the gate is open before it parks.
        to_wake_.store(places - (workers_ - parked_.load()));
        wake_two();
    }

    // Wakes workers, who wake others, until there are enough.
    void wake_two() {
        for (int i = 0; i < 2 && to_wake_.load(std::memory_order_relaxed) > 0; ++i) {
            if (to_wake_.fetch_sub(1) > 0) {
                {
                    std::lock_guard<std::mutex> lock(mutex_);
                }
                wake_.notify_one();
            }
        }
    }

    // Returns when everybody who has joined the round has finished.
    void close() {
        gate_.close();
        if (spin(patience(), [&] { return !gate_.is_anybody_left(); })) {
            return;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        is_awaited_.store(true);
        done_.wait(lock, [&] { return !gate_.is_anybody_left(); });
        is_awaited_.store(false);
    }

    void serve(int number) {
        std::uint64_t seen = 0;
        for (;;) {
            // Who is woken too late for one pass of a step may be in time for the next.
            if (!spin(patience(), [&] { return gate_.join(seen); })) {
                park(seen);
                keep_off({thread_.load(std::memory_order_relaxed),
                          processor_.load(std::memory_order_relaxed)});
                continue;
            }
            Job job = job_;
            wake_two();
            work(job, 1 + number % (job.threads - 1));
            if (gate_.leave() && is_awaited_.load()) {
                {
                    std::lock_guard<std::mutex> lock(mutex_);
                }
                done_.notify_one();
            }
        }
    }

    void park(std::uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        parked_.fetch_add(1);
        if (!gate_.is_open_for(seen)) {
            wake_.wait(lock);
        }
        parked_.fetch_sub(1);
    }

    // Works on one share, then on what is left of the others.
    void work(const Job& job, int own) noexcept {  // the job is the caller's, who waits for all
        FloatMode mode;
        std::int64_t first, last;
        for (int i = 0; i < job.threads; ++i) {
            Share& share = shares_[(own + i) % job.threads];
            while (share.take(i == 0, first, last)) {
                job.body(job.context, first, last);
            }
        }
    }

    std::mutex turn_;  // held by the caller whose job is run; guards what follows
    int workers_ = 0;
    std::int64_t to_wake_one_ = 0;  // in nanoseconds, once it is measured
    Clock::time_point end_;         // of the last job
    std::int64_t followed_ = 0;     // how many jobs, without a break, began soon after the last one
    bool refused_ = false;          // whether the system refused to start another
    Clock::time_point next_try_;

    Gate gate_;
    Job job_;  // of those who have joined
    std::vector<Share> shares_;
    std::atomic<std::int64_t> patience_{0};
    std::atomic<int> thread_{-1}, processor_{-1};  // of the caller

    std::mutex mutex_;  // of those who park
    std::condition_variable wake_, done_;
    std::atomic<int> parked_{0};   // how many workers
    std::atomic<int> to_wake_{0};  // how many are still to be woken
    std::atomic<bool> is_awaited_{false};
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

namespace {

int thread_count(int processors) {
    int wanted = wanted_threads.load(std::memory_order_relaxed);
    int usual = usual_threads.load(std::memory_order_relaxed);
    return wanted > 0 ? wanted : std::min(usual, processors);
}

}  // namespace

int thread_count() { return thread_count(processor_count()); }

void set_thread_count(int count) { wanted_threads.store(count, std::memory_order_relaxed); }

void set_usual_threads(int count) { usual_threads.store(count, std::memory_order_relaxed); }

void for_each_run(std::int64_t count, std::int64_t nanoseconds,
                  void (*body)(void*, std::int64_t, std::int64_t), void* context) {
    if (count == 0) {
        return;
    }
    Job job{count, body, context};
    if (count > 1 && count <= Share::largest && nanoseconds >= least_work && children_start_anew) {
        int processors = processor_count(), threads = thread_count(processors);
        if (threads > 1 && the_pool().run(job, nanoseconds, threads, processors)) {
            return;
        }
    }
    alone(job);
}

}  // namespace adamas
