// The instruction of AVX512_BF16 that csrc/kernels/pairs.cpp has, for processors without it: to each sum are added the
// products of two pairs of numbers, the second first, each rounded once.
#pragma once

#include <immintrin.h>

#define __AVX512BF16__ 1
#define _mm_dpbf16_ps emulated_dpbf16<__m128, __m128i>
#define _mm256_dpbf16_ps emulated_dpbf16<__m256, __m256i>
#define _mm512_dpbf16_ps emulated_dpbf16<__m512, __m512i>

template <class Floats, class Words, class Pairs>
static inline Floats emulated_dpbf16(Floats sum, Pairs a, Pairs w) {
  typedef unsigned Bits __attribute__((vector_size(sizeof(Floats))));
  const Bits of_a = reinterpret_cast<Bits>(a), of_w = reinterpret_cast<Bits>(w);
  const auto add = [&](Bits x, Bits y) {
    for (unsigned i = 0; i < sizeof(Floats) / sizeof(float); ++i)
      sum[i] = __builtin_fmaf(reinterpret_cast<Floats>(x)[i], reinterpret_cast<Floats>(y)[i], sum[i]);
  };
  add(of_a & 0xffff0000, of_w & 0xffff0000);
  add(of_a << 16, of_w << 16);
  return sum;
}
