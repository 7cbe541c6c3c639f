// The only list of machines, best first: name, flags for GCC and Clang, flags for MSVC, and the
// test that the running processor must pass (a function of dispatch.cpp). CMakeLists.txt reads
// the lines between the markers; every machine must be on a line of its own.
//
// No include guard: dispatch.cpp includes this with different meanings of ADAMAS_TARGET.

#if defined(ADAMAS_X86_64)
// targets: x86_64
ADAMAS_TARGET(avx512, "-mavx512f -mavx512vl -mavx512bw -mavx512dq -mprefer-vector-width=512", "/arch:AVX512", has_avx512())
ADAMAS_TARGET(avx2, "-mavx2 -mfma", "/arch:AVX2", has_avx2())
ADAMAS_TARGET(baseline, "", "", true)
// end
#else
// targets: other
ADAMAS_TARGET(baseline, "", "", true)
// end
#endif
