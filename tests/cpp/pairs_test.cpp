// The tiles of pairs of bfloat16 that have an instruction for them, here emulated, give the bits of those in loops.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "types.h"

#define RNNFAST_PAIRS(isa)               \
  namespace isa {                        \
  extern const PairKernels pair_kernels; \
  }

namespace rnnfast {
RNNFAST_PAIRS(avx2)
RNNFAST_PAIRS(avx2bf16)
RNNFAST_PAIRS(avx512)
RNNFAST_PAIRS(avx512bf16)
namespace {

std::mt19937 generator(1);

Index draw(Index first, Index last) { return std::uniform_int_distribution<Index>(first, last)(generator); }

std::vector<float> words(Index n) {
  std::uniform_real_distribution<float> real(-2, 2);
  std::vector<float> drawn(static_cast<std::size_t>(n));
  for (float& word : drawn) {
    std::uint32_t bits[2];
    const float pair[] = {real(generator), real(generator)};
    std::memcpy(bits, pair, sizeof(bits));
    bits[0] = bits[0] >> 16 | (bits[1] & 0xffff0000);
    std::memcpy(&word, bits, sizeof(word));
  }
  return drawn;
}

std::vector<float> numbers(Index n) {
  std::uniform_real_distribution<float> real(-2, 2);
  std::vector<float> drawn(static_cast<std::size_t>(n));
  for (float& number : drawn) number = real(generator);
  return drawn;
}

// A tile of each height, with one operand or two; whether both kernels give the same bits.
bool agree(const Tiles<float>& first, const Tiles<float>& second, int lanes, int slots, int gates) {
  const Index blocks = first.blocks, K = draw(1, 40), more = draw(0, 2);
  const bool is_one = slots == 1 && blocks == 1;
  for (int M = 1; M <= first.most; ++M) {
    const Index width = gates * lanes, row = slots * lanes * blocks;
    const auto a = words(M * K), panel = words(blocks * K * width), init = numbers(M * row);
    const auto others = words(M * more), other_panel = words(blocks * more * width);
    const auto operand = [&](const std::vector<float>& rows, const std::vector<float>& of, Index k) {
      return Operand<float>{.a = rows.data(),
                            .a_row = k,
                            .a_k = 1,
                            .a_block = 0,
                            .panel = of.data(),
                            .panel_unit = k * width,
                            .panel_k = width,
                            .panel_block = 0,
                            .K = k,
                            .blocks = 1};
    };
    Tile<float> tile = {};
    tile.first = operand(a, panel, K);
    if (more) tile.second = operand(others, other_panel, more);
    if (draw(0, 1)) tile.init = init.data(), tile.init_row = row, tile.init_unit = slots * lanes;
    tile.out_row = row, tile.out_unit = slots * lanes;
    tile.valid = is_one ? int(draw(1, lanes)) : lanes;
    tile.add = draw(0, 1);
    auto one = init, other = init;
    tile.out = one.data(), first.of_rows[M - 1](tile, 0);
    tile.out = other.data(), second.of_rows[M - 1](tile, 0);
    if (std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) != 0) {
      std::printf("differ: %d rows, %td blocks, %d slots, %d gates, %d lanes\n", M, blocks, slots, gates, lanes);
      return false;
    }
  }
  return true;
}

int compare(const PairKernels& loops, const PairKernels& tiles, int widest) {
  if (!loops.emulates || tiles.emulates) {
    std::puts("the two kernels are one");
    return -1;
  }
  int compared = 0;
  for (int kind = 0; kind < tile_kind_count; ++kind)
    for (int halvings = 0; widest >> halvings >= 4; ++halvings)
      for (int log2_blocks = 0; log2_blocks < 4; ++log2_blocks) {
        const Tiles<float>& first = loops.tiles[kind].of[halvings][log2_blocks];
        const Tiles<float>& second = tiles.tiles[kind].of[halvings][log2_blocks];
        if (!first.of_rows) continue;
        const int slots = kind ? kind : 4, gates = kind ? kind : 3;
        for (int repeat = 0; repeat < 10; ++repeat, ++compared)
          if (!agree(first, second, widest >> halvings, slots, gates)) return -1;
      }
  return compared;
}

}  // namespace
}  // namespace rnnfast

int main() {
  using namespace rnnfast;
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("no AVX2: nothing to compare");
    return 0;
  }
  int compared = compare(avx2::pair_kernels, avx2bf16::pair_kernels, 8);
  if (compared > 0 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    const int more = compare(avx512::pair_kernels, avx512bf16::pair_kernels, 16);
    compared = more < 0 ? more : compared + more;
  }
  std::printf("%d tiles compared\n", compared);
  return compared > 0 ? 0 : 1;
}
