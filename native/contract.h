// What no flag may take away: every operator rounds once, in the order written, in its own type,
// and code for one machine stays on that machine. cmake/contract.cmake sees to it; where somebody's
// flags get past it, the build ends here rather than with other bits.
#pragma once

#include <cfloat>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    defined(__NO_SIGNED_ZEROS__) || defined(_M_FP_FAST) || defined(_M_FP_CONTRACT) ||          \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "adamas is exact: take -ffast-math, -Ofast, /fp:fast and their like out of CXXFLAGS."
#endif

// 16 is the same for float and double.
#if FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "adamas is exact: take -mfpmath=387 and -ffp-eval-method out of CXXFLAGS."
#endif

#if defined(ADAMAS_X86_64)
#if (defined(__AVX512F__) && !defined(ADAMAS_FOR_avx512)) || \
    (defined(__AVX__) && !defined(ADAMAS_FOR_avx512) && !defined(ADAMAS_FOR_avx2))
#error "adamas picks a machine when it runs: take -march, -mavx and /arch out of CXXFLAGS."
#endif
#endif

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(_MSC_VER)
#pragma fp_contract(off)
#endif
