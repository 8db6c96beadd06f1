#pragma once

/* The numbers of this compilation: float, or with -DDOUBLE double. Bits is an integer of the same size. */
#ifdef DOUBLE
typedef double Real;
typedef long long Bits;
#else
typedef float Real;
typedef int Bits;
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
