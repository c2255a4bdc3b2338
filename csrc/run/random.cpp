#include "run/random.h"

#include <algorithm>

namespace rnnfast {
namespace {

// Counters that are worked on at once, so that the compiler makes vectors of them.
constexpr int width = 16;

// The words of some counters, each word of all of them side by side.
using Words = std::uint32_t[4][width];

// The high half of a product lands in one word, the low half in the other.
void mix(std::uint32_t factor, std::uint32_t (&word)[width], std::uint32_t (&low)[width]) {
  for (int i = 0; i < width; ++i) {
    const std::uint64_t product = std::uint64_t{factor} * word[i];
    word[i] = std::uint32_t(product >> 32), low[i] = std::uint32_t(product);
  }
}

void philox(Words& c, Key key) {
  constexpr int rounds = 10;
  for (int round = 0; round < rounds; ++round) {
    std::uint32_t low[2][width];
    mix(0xd2511f53, c[0], low[0]);
    mix(0xcd9e8d57, c[2], low[1]);
    for (int i = 0; i < width; ++i) {
      const std::uint32_t high[2] = {c[0][i], c[2][i]};
      c[0][i] = high[1] ^ c[1][i] ^ key[0], c[1][i] = low[1][i];
      c[2][i] = high[0] ^ c[3][i] ^ key[1], c[3][i] = low[0][i];
    }
    key[0] += 0x9e3779b9, key[1] += 0xbb67ae85;
  }
}

}  // namespace

void draw_bits(const Key& key, const std::array<std::uint32_t, 3>& row, double rate, Index n, unsigned char* bits) {
  const auto least = std::uint32_t(rate * 4294967296.0);
  for (Index unit = 0; unit < n; unit += 4 * width) {
    Words words;
    for (int i = 0; i < width; ++i) {
      words[0][i] = std::uint32_t(unit / 4 + i);
      for (std::size_t k = 0; k < 3; ++k) words[k + 1][i] = row[k];
    }
    philox(words, key);
    std::uint32_t four[width];  // bits of a counter's units
    for (int i = 0; i < width; ++i)
      four[i] = std::uint32_t(words[0][i] >= least) | std::uint32_t(words[1][i] >= least) << 1 |
                std::uint32_t(words[2][i] >= least) << 2 | std::uint32_t(words[3][i] >= least) << 3;
    const Index here = std::min<Index>(n - unit, 4 * width);
    for (Index byte = 0; byte < (here + 7) / 8; ++byte) {
      const unsigned all = here - 8 * byte < 8 ? (1u << (here - 8 * byte)) - 1 : 0xff;
      bits[unit / 8 + byte] = static_cast<unsigned char>((four[2 * byte] | four[2 * byte + 1] << 4) & all);
    }
  }
}

}  // namespace rnnfast
