#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(ADAMAS_X86_64) && defined(_MSC_VER)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace adamas {

#define ADAMAS_TARGET(name, gnu_flags, msvc_flags, runs_here) extern const Kernels kernels_##name;
#include "targets.h"
#undef ADAMAS_TARGET

namespace {

#if defined(ADAMAS_X86_64)
#if defined(_MSC_VER)
// CPUID leaf 7 names the instructions, and leaf 1 FMA; XCR0 says whether the system saves the
// registers.
bool has(int ebx_bits, unsigned long long xcr0_bits) {
    int leaf[4];
    __cpuid(leaf, 1);
    if (!(leaf[2] >> 27 & 1) || !(leaf[2] >> 12 & 1) || (_xgetbv(0) & xcr0_bits) != xcr0_bits) {
        return false;
    }
    __cpuidex(leaf, 7, 0);
    return (leaf[1] & ebx_bits) == ebx_bits;
}
bool has_avx2() { return has(1 << 5, 0x6); }
bool has_avx512() { return has(1 << 16 | 1 << 17 | 1 << 30 | 1 << 31, 0xe6); }
#else
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif
#endif

std::atomic<const Target*> chosen{nullptr};

const Target* best() {
    for (const Target& each : targets()) {
        if (each.runs_here) {
            return &each;
        }
    }
    return &targets().back();  // the baseline runs wherever this build does
}

}  // namespace

std::span<const Target> targets() {
    // An array, which has no destructor: threads may step while the process ends.
    static const Target all[] = {
#define ADAMAS_TARGET(name, gnu_flags, msvc_flags, runs_here) \
    Target{#name, &kernels_##name, runs_here},
#include "targets.h"
#undef ADAMAS_TARGET
    };
    return all;
}

const Target& target() {
    const Target* current = chosen.load(std::memory_order_acquire);
    if (current == nullptr) {
        current = best();
        chosen.store(current, std::memory_order_release);
    }
    return *current;
}

void set_target(const std::string& name) {
    for (const Target& each : targets()) {
        if (each.name == name && each.runs_here) {
            chosen.store(&each, std::memory_order_release);
            return;
        }
    }
    throw std::invalid_argument("no such target here: " + name);
}

}  // namespace adamas
