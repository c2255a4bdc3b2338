// Random bits as a function of a key and a place: who draws what, and when, never matters.
#pragma once

#include <array>
#include <cstdint>

#include "types.h"

namespace rnnfast {

// The words of a counter and of a key, the lowest first.
using Counter = std::array<std::uint32_t, 4>;
using Key = std::array<std::uint32_t, 2>;

// A bit for each of n units, the lowest of a byte first: 0 with probability `rate` < 1, by the counter-based generator
// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). Units 4k to
// 4k + 3 have the four words at the counter (k, row): the bit is 1 where the word is at least rate·2^32.
void draw_bits(const Key& key, const std::array<std::uint32_t, 3>& row, double rate, Index n, unsigned char* bits);

}  // namespace rnnfast
