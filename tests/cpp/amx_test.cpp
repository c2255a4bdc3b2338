// The tiles of pairs of bfloat16 in the registers of AMX, which are emulated here, give the bits that the manual of
// their instruction describes: for all shapes, in several threads, and after they are released.
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "types.h"

namespace rnnfast {
namespace amx_emulated {
extern const PairKernels pair_kernels;
}
namespace {

float flushed(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0F, x) : x; }

float multiply_add(float a, float b, float c) { return flushed(std::fma(flushed(a), flushed(b), c)); }

// The numbers of a word, as floats.
struct Pair {
  float first, second;
};

Pair pair_of(float word) {
  std::uint32_t bits, halves[2];
  std::memcpy(&bits, &word, sizeof(bits));
  halves[0] = bits << 16, halves[1] = bits & 0xffff0000;
  Pair pair;
  std::memcpy(&pair, halves, sizeof(pair));
  return pair;
}

struct Kind {
  int lanes, slots, gates;
  Index blocks;
};

class Check {
 public:
  explicit Check(unsigned seed) : generator_(seed) {}

  // A tile of each height; whether it is as it should be.
  bool agrees(const Tiles<float>& tiles, const Kind& kind) {
    for (int M = 1; M <= tiles.most; ++M) {
      // Some products are below the smallest normal number.
      const float scale = draw(0, 3) ? 1.0F : std::ldexp(1.0F, -62);
      const Factors first = factors(kind, M, scale), second = draw(0, 1) ? factors(kind, M, scale) : Factors{};
      const Index vector = kind.slots * kind.lanes, row = vector * kind.blocks + draw(0, 3);
      const bool adds = draw(0, 1), repeats = draw(0, 1), has_init = draw(0, 2) > 0;
      Tile<float> tile = {};
      tile.first = first.operand, tile.first.a = first.a.data(), tile.first.panel = first.panel.data();
      tile.second = second.operand, tile.second.a = second.a.data(), tile.second.panel = second.panel.data();
      const auto init = numbers(M * row, scale), before = numbers(M * row, scale);
      if (!adds && has_init) tile.init = init.data(), tile.init_row = repeats ? 0 : row, tile.init_unit = vector;
      tile.out_row = row, tile.out_unit = vector, tile.add = adds;
      tile.valid = kind.slots == 1 && kind.blocks == 1 ? int(draw(1, kind.lanes)) : kind.lanes;
      auto expected = before, out = before;
      for (int m = 0; m < M; ++m)
        for (Index n = 0; n < vector * kind.blocks; ++n) {
          if (n % kind.lanes >= tile.valid) continue;
          float& sum = expected[std::size_t(m * row + n)];
          if (!adds) sum = tile.init ? init[std::size_t(m * tile.init_row + n)] : 0;
          add(tile.first, kind, kind.slots - kind.gates, m, n, sum);
          add(tile.second, kind, 0, m, n, sum);
        }
      if (draw(0, 3) == 0) amx_emulated::pair_kernels.release();
      tile.out = out.data(), tiles.of_rows[M - 1](tile, 0);
      if (std::memcmp(out.data(), expected.data(), out.size() * sizeof(float)) != 0) {
        std::printf("differs: %d rows, %td blocks, %d slots, %d gates, %d lanes\n", M, kind.blocks, kind.slots,
                    kind.gates, kind.lanes);
        return false;
      }
    }
    return true;
  }

 private:
  struct Factors {
    std::vector<float> a, panel;
    Operand<float> operand = {};
  };

  Index draw(Index first, Index last) { return std::uniform_int_distribution<Index>(first, last)(generator_); }

  std::vector<float> numbers(Index n, float scale) {
    std::uniform_real_distribution<float> real(-2, 2);
    std::vector<float> drawn(static_cast<std::size_t>(n));
    for (float& number : drawn) number = flushed(scale * scale * real(generator_));
    return drawn;
  }

  std::vector<float> words(Index n, float scale) {
    std::uniform_real_distribution<float> real(-2, 2);
    std::vector<float> drawn(static_cast<std::size_t>(n));
    for (float& word : drawn) {
      std::uint32_t bits[2];
      const float pair[] = {scale * real(generator_), scale * real(generator_)};
      std::memcpy(bits, pair, sizeof(bits));
      bits[0] = bits[0] >> 16 | (bits[1] & 0xffff0000);
      std::memcpy(&word, bits, sizeof(word));
    }
    return drawn;
  }

  // One block of k, or some.
  Factors factors(const Kind& kind, int M, float scale) {
    const Index width = kind.gates * kind.lanes, blocks = draw(0, 1) ? 1 : draw(1, 3);
    const Index K = draw(0, 2) ? draw(1, 50) : 16 * draw(1, 3), all = K * blocks;
    return {.a = words(M * all, scale),
            .panel = words(kind.blocks * all * width, scale),
            .operand = {.a = nullptr,
                        .a_row = all,
                        .a_k = 1,
                        .a_block = K,
                        .panel = nullptr,
                        .panel_unit = all * width,
                        .panel_k = width,
                        .panel_block = K * width,
                        .K = K,
                        .blocks = blocks}};
  }

  static void add(const Operand<float>& o, const Kind& kind, int shift, int m, Index n, float& sum) {
    const Index gate = n / kind.lanes % kind.slots - shift;
    if (gate < 0 || gate >= kind.gates) return;
    for (Index block = 0; block < o.blocks; ++block) {
      const float* a = o.a + m * o.a_row + block * o.a_block;
      const float* panel = o.panel + n / (kind.lanes * kind.slots) * o.panel_unit + block * o.panel_block +
                           gate * kind.lanes + n % kind.lanes;
      for (Index k = 0; k < o.K;) {
        Pair sums = {};
        do {
          const Pair one = pair_of(a[k]), other = pair_of(panel[k * o.panel_k]);
          sums.first = multiply_add(one.first, other.first, sums.first);
          sums.second = multiply_add(one.second, other.second, sums.second);
        } while (++k % 16 && k < o.K);
        sum = flushed(sum + flushed(sums.first + sums.second));
      }
    }
  }

  std::mt19937 generator_;
};

std::atomic<int> compared = 0, differing = 0;

void compare(unsigned seed) {
  Check check(seed);
  const PairKernels& kernels = amx_emulated::pair_kernels;
  for (int kind = 0; kind < tile_kind_count; ++kind)
    for (int halvings = 0; halvings < 3; ++halvings)
      for (int log2_blocks = 0; log2_blocks < 4; ++log2_blocks) {
        const Tiles<float>& tiles = kernels.tiles[kind].of[halvings][log2_blocks];
        if (!tiles.of_rows) continue;
        const Kind parts = {
            .lanes = 16 >> halvings, .slots = kind ? kind : 4, .gates = kind ? kind : 3, .blocks = tiles.blocks};
        for (int repeat = 0; repeat < 3; ++repeat, ++compared) differing += !check.agrees(tiles, parts);
      }
  kernels.release();
}

}  // namespace
}  // namespace rnnfast

int main() {
  using namespace rnnfast;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq")) {
    std::puts("no AVX-512: nothing to compare");
    return 0;
  }
  std::thread other(compare, 1);
  compare(2);
  other.join();
  std::printf("%d tiles compared\n", compared.load());
  return compared == 0 || differing ? 1 : 0;
}
