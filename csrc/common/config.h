// Annotations shared by host and device code.
#pragma once

#if defined(__CUDACC__)
#define FK_HD __host__ __device__
#define FK_INLINE __forceinline__
#else
#define FK_HD
#define FK_INLINE inline __attribute__((always_inline))
#endif

// Hardware fused multiply-add: always on a GPU and on 64-bit Arm, on x86 when the unit is compiled for it.
#if defined(__CUDACC__) || defined(__FMA__) || defined(__aarch64__)
#define FK_HAS_FMA 1
#else
#define FK_HAS_FMA 0
#endif
