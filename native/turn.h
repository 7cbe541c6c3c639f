// One call of a plan at a time.
#pragma once

#include <Python.h>

#include <atomic>
#include <new>
#include <stdexcept>

namespace adamas {

class Turns {
public:
    // Lets turns be taken that ask whether they may. At first none may.
    void open() { is_closed_.store(false); }

    // Lets none begin that asks; false while one is in flight, to be asked again.
    bool close() {
        is_closed_.store(true);
        return caller_.load() == 0;
    }

    // Whether a call of this thread is in flight.
    bool is_called_here() const { return caller_.load() == PyThread_get_thread_ident(); }

    bool take() {
        unsigned long nobody = 0;
        return caller_.compare_exchange_strong(nobody, PyThread_get_thread_ident());
    }

    // Who closes it marks it first and looks for calls then; a call does it the other way round. So
    // one of them sees the other.
    bool take_if_open() {
        bool is_taken = take();
        if (is_taken && is_closed_.load()) {
            give_back();
            return false;
        }
        return is_taken;
    }

    void give_back() { caller_.store(0); }

private:
    std::atomic<unsigned long> caller_{0};  // the thread that has its turn; 0: none
    std::atomic<bool> is_closed_{true};
};

// The turn of a call, which ends with the owner's let_go(), however it ends.
template <class Owner>
class Turn {
public:
    // Throws std::runtime_error where another call is in flight.
    explicit Turn(Owner& owner) : owner_(owner), is_taken_(owner.turns().take()) {
        if (!is_taken_) {
            throw std::runtime_error("This optimizer is making a step in another thread.");
        }
    }

    // Is not taken where another call is in flight, or turns are closed.
    Turn(Owner& owner, std::nothrow_t) : owner_(owner), is_taken_(owner.turns().take_if_open()) {}

    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    ~Turn() {
        if (is_taken_) {
            owner_.let_go();
            owner_.turns().give_back();
        }
    }

    bool is_taken() const { return is_taken_; }

private:
    Owner& owner_;
    bool is_taken_;
};

}  // namespace adamas
