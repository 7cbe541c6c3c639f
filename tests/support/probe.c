/* What Python cannot see: which instructions run, and in which floating-point mode. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

/* The whole mode: rounding, flushing of subnormals, masks and flags of exceptions. */
uint64_t get_mode(void) { return _mm_getcsr(); }
void set_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
const uint64_t round_up = 0x5f80;
const uint64_t round_to_zero = 0x7f80;
const uint64_t flush_subnormals = 0x9fc0;
/* Division by zero, overflow and invalid operations raise SIGFPE. */
const uint64_t trap = 0x1900;
#elif defined(__aarch64__)
uint64_t get_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void set_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
const uint64_t round_up = 1ull << 22;
const uint64_t round_to_zero = 3ull << 22;
const uint64_t flush_subnormals = 1ull << 24;
/* Ignored where the processor cannot trap. */
const uint64_t trap = 7ull << 8;
#endif

#if defined(__linux__) && defined(__x86_64__)
#include <ucontext.h>
#include <x86intrin.h>

enum { trap_flag = 0x100 };

/* Square roots of several numbers that ran since begin(), by the width of their registers in bits:
   128 without a prefix, 256 with VEX, 512 with EVEX. */
static long roots_128, roots_256, roots_512;

/* Runs after each instruction, and looks at the next. */
static void on_instruction(int number, siginfo_t* information, void* context) {
    (void)number, (void)information;
    const ucontext_t* before = context;
    const uint8_t* at = (const uint8_t*)before->uc_mcontext.gregs[REG_RIP];
    if (at[0] == 0x66) {
        ++at; /* sqrtpd, where sqrtps has no such prefix */
    }
    if ((at[0] & 0xf0) == 0x40) {
        ++at; /* REX, where a register is one of the upper eight */
    }
    if (at[0] == 0x0f && at[1] == 0x51) {
        ++roots_128;
    } else if (at[0] == 0xc5 && at[2] == 0x51 && (at[1] & 4)) {
        ++roots_256;
    } else if (at[0] == 0xc4 && at[3] == 0x51 && (at[2] & 4)) {
        ++roots_256;
    } else if (at[0] == 0x62 && at[4] == 0x51 && (at[3] >> 5 & 3) == 2) {
        ++roots_512;
    }
}

/* Runs this thread one instruction at a time until end(). */
void begin(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_instruction;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGTRAP, &action, 0);
    roots_128 = roots_256 = roots_512 = 0;
    __writeeflags(__readeflags() | trap_flag);
}

void end(void) { __writeeflags(__readeflags() & ~(unsigned long long)trap_flag); }

long count_roots(int width) {
    return width == 128 ? roots_128 : width == 256 ? roots_256 : width == 512 ? roots_512 : -1;
}
#endif
