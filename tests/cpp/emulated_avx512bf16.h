// The instruction of AVX512_BF16 that csrc/kernels/pairs.cpp has, for processors without it: to each sum are added the
// products of two pairs of numbers, the second first, each rounded once.
#pragma once

#include <immintrin.h>

#define __AVX512BF16__ 1
#define _mm_dpbf16_ps emulated_dpbf16<__m128>
#define _mm256_dpbf16_ps emulated_dpbf16<__m256>
#define _mm512_dpbf16_ps emulated_dpbf16<__m512>

static inline __m128 multiply_add(__m128 a, __m128 b, __m128 c) { return _mm_fmadd_ps(a, b, c); }
static inline __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
#if defined(__AVX512F__)
static inline __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
#endif

template <class Floats, class Pairs>
static inline Floats emulated_dpbf16(Floats sum, Pairs a, Pairs w) {
  typedef unsigned Bits __attribute__((vector_size(sizeof(Floats))));
  const Bits of_a = reinterpret_cast<Bits>(a), of_w = reinterpret_cast<Bits>(w);
  sum = multiply_add(reinterpret_cast<Floats>(of_a & 0xffff0000), reinterpret_cast<Floats>(of_w & 0xffff0000), sum);
  return multiply_add(reinterpret_cast<Floats>(of_a << 16), reinterpret_cast<Floats>(of_w << 16), sum);
}
