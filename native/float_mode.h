// The floating-point mode of the contract: round to nearest, subnormals as they are, no traps.
// The caller's mode, flags included, is back when the object goes.
#pragma once

#if defined(ADAMAS_X86_64)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#elif defined(_M_ARM64)
#include <intrin.h>
#endif

namespace adamas {

class FloatMode {
public:
    FloatMode(const FloatMode&) = delete;
    FloatMode& operator=(const FloatMode&) = delete;

#if defined(ADAMAS_X86_64)
    FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
    ~FloatMode() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    FloatMode() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
    }
    ~FloatMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

private:
    std::uint64_t saved_;
#elif defined(_M_ARM64)
    FloatMode() : saved_(_ReadStatusReg(ARM64_FPCR)) { _WriteStatusReg(ARM64_FPCR, 0); }
    ~FloatMode() { _WriteStatusReg(ARM64_FPCR, saved_); }

private:
    __int64 saved_;
#else
#error "adamas does not know how to set the floating-point mode of this processor."
#endif
};

}  // namespace adamas
