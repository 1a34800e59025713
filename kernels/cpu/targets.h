// The instruction sets that the CPU operators are compiled for. Included
// before any header of Highway.
#pragma once

// A baseline, AVX2 with FMA, AVX-512 and NEON: few enough to compile quickly.
// Sizeless vectors (SVE, RVV) cannot be in arrays, which the kernels use.
#define HWY_DISABLED_TARGETS                                                \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | \
   HWY_RVV)

// Before a loop over the elements of an array of vectors whose bounds are
// template arguments: unrolled, such an array lives in registers.
#define MOEBIUS_UNROLL _Pragma("GCC unroll 16")
