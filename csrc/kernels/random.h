// Random bits as a function of a key and a place: who draws what, and when, never matters.
//
// The counter-based generator is Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2,
// 3", SC 2011). Units 4k to 4k + 3 of a row have the four words at the counter (k, t, b, place): a unit's bit is 1
// where its word is at least rate·2^32.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Counters that are worked on at once: one for each lane of some vectors, which hide the latency of products. A word of
// a counter is the low half of its lane, whatever the high half is.
constexpr int philox_vectors = 2, philox_lanes = Widest<double>::lanes,
              units_at_once = 4 * philox_lanes * philox_vectors;
using Words = Words64[philox_vectors];

// The high half of a product lands in one word, the low half in the other.
RNNFAST_INLINE void philox(Words (&c)[4], std::uint64_t key) {
  constexpr int rounds = 10;
  std::uint32_t keys[2] = {std::uint32_t(key), std::uint32_t(key >> 32)};
#pragma GCC unroll 10
  for (int round = 0; round < rounds; ++round) {
#pragma GCC unroll 2
    for (int i = 0; i < philox_vectors; ++i) {
      const Words64 a = multiply_halves(c[0][i], Words64{} + 0xd2511f53);
      const Words64 b = multiply_halves(c[2][i], Words64{} + 0xcd9e8d57);
      c[0][i] = (b >> 32) ^ c[1][i] ^ keys[0], c[1][i] = b;
      c[2][i] = (a >> 32) ^ c[3][i] ^ keys[1], c[3][i] = a;
    }
    keys[0] += 0x9e3779b9, keys[1] += 0xbb67ae85;
  }
}

// Bits of n units, the lowest of a byte first: 0 with the probability rate < 1.
void draw_bits(std::uint64_t key, const std::uint32_t (&row)[3], double rate, Index n, unsigned char* bits) {
  constexpr std::uint64_t low_half = 0xffffffff;
  const auto least = std::uint64_t(rate * 4294967296.0);
  Words64 k, ones;  // the counters of a vector; where the first bit of each lane goes
  for (int i = 0; i < philox_lanes; ++i) k[i] = std::uint64_t(i), ones[i] = std::uint64_t{1} << (4 * i);
  for (Index unit = 0; unit < n; unit += units_at_once) {
    Words words[4];
#pragma GCC unroll 2
    for (int i = 0; i < philox_vectors; ++i, k += philox_lanes) {
      words[0][i] = k;
      for (int j = 0; j < 3; ++j) words[j + 1][i] = Words64{} + row[j];
    }
    philox(words, key);
    std::uint64_t all = 0;
#pragma GCC unroll 2
    for (int i = 0; i < philox_vectors; ++i) {
      Words64 of_lanes{};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) of_lanes |= Words64((words[j][i] & low_half) >= Words64{} + least) & (ones << j);
      std::uint64_t sum = 0;
#pragma GCC unroll 8
      for (int j = 0; j < philox_lanes; ++j) sum |= of_lanes[j];
      all |= sum << (4 * philox_lanes * i);
    }
    if (n - unit < units_at_once) all &= (std::uint64_t{1} << (n - unit)) - 1;
    const Index bytes = (min_index(units_at_once, n - unit) + 7) / 8;
    for (Index byte = 0; byte < bytes; ++byte) bits[unit / 8 + byte] = static_cast<unsigned char>(all >> (8 * byte));
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
