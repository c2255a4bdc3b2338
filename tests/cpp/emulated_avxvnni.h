// The two instructions of AVX-VNNI that csrc/kernels/integers.cpp has, for processors without them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd<__m256i>
#define _mm_dpbusd_avx_epi32 emulated_dpbusd<__m128i>

// To each word of `sum`, the products of the four bytes of a, which have no sign, and of w, which have one.
template <class Vector>
static inline Vector emulated_dpbusd(Vector sum, Vector a, Vector w) {
  constexpr int n = sizeof(Vector);
  std::int32_t sums[n / 4];
  std::uint8_t of_a[n];
  std::int8_t of_w[n];
  std::memcpy(sums, &sum, n), std::memcpy(of_a, &a, n), std::memcpy(of_w, &w, n);
  for (int i = 0; i < n; ++i) sums[i / 4] += of_a[i] * of_w[i];
  std::memcpy(&sum, sums, n);
  return sum;
}
