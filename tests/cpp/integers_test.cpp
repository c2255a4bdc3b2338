// The integer kernels of AVX2 and of AVX-VNNI give the same bits; the instructions of the second are emulated.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "types.h"

namespace rnnfast {
namespace avx2 {
extern const IntegerKernels integer_kernels;
}
namespace avxvnni {
extern const IntegerKernels integer_kernels;
}
namespace {

std::mt19937 generator(1);

Index draw(Index first, Index last) { return std::uniform_int_distribution<Index>(first, last)(generator); }

template <class Number>
std::vector<Number> room(Index n) {
  return std::vector<Number>(static_cast<std::size_t>(n));
}

float real() { return std::uniform_real_distribution<float>(-1, 1)(generator); }

// Some rows by the panels of some unit blocks; whether both kernels give the same bits.
bool agree(Index rows, Index words, int blocks, int gates, int halvings, bool listed) {
  const Index lanes = 8 >> halvings, width = gates * lanes, columns = blocks * width, vectors = blocks * gates;
  auto a = room<std::int8_t>(rows * words * 4), w = room<std::int8_t>(words * columns * 4);
  for (auto& number : a) number = std::int8_t(draw(-127, 127));
  for (auto& number : w) number = std::int8_t(draw(-127, 127));
  if (draw(0, 1)) std::memset(w.data(), 127, w.size()), std::memset(a.data(), draw(0, 1) ? 127 : -127, a.size());
  std::vector<std::uint8_t> shifted(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) shifted[i] = std::uint8_t(a[i] + 128);
  auto offsets = room<std::int32_t>(columns);
  for (Index block = 0; block < blocks; ++block)
    for (Index word = 0; word < words; ++word)
      for (Index i = 0; i < width * 4; ++i)
        offsets[std::size_t(block * width + i / 4)] += 128 * w[std::size_t((block * words + word) * width * 4 + i)];
  auto places = room<Column>(words * vectors);
  for (auto& place : places) place = Column(draw(0, words - 1));
  auto a_scales = room<float>(rows), scales = room<float>(columns), init = room<float>(rows * columns);
  for (auto* numbers : {&a_scales, &scales, &init})
    for (float& number : *numbers) number = real();
  std::vector<float> panel(w.size() / 4);
  std::memcpy(panel.data(), w.data(), w.size());
  const auto result = [&](const IntegerKernels& kernels) {
    auto operand = room<std::uint32_t>(rows * words);
    std::memcpy(operand.data(), kernels.adds_128 ? static_cast<const void*>(shifted.data()) : a.data(), a.size());
    std::vector<float> out(init.size());
    kernels.multiply({.a = operand.data(),
                      .a_row = words,
                      .a_scales = a_scales.data(),
                      .rows = rows,
                      .words = words,
                      .panel = panel.data(),
                      .panel_unit = words * width,
                      .panel_word = width,
                      .scales = scales.data(),
                      .offsets = offsets.data(),
                      .column_unit = width,
                      .places = listed ? places.data() : nullptr,
                      .blocks = blocks,
                      .gates = gates,
                      .halvings = halvings,
                      .valid = int(lanes),
                      .init = init.data(),
                      .init_row = columns,
                      .init_unit = width,
                      .out = out.data(),
                      .out_row = columns,
                      .out_unit = width});
    return out;
  };
  const auto first = result(avx2::integer_kernels), second = result(avxvnni::integer_kernels);
  return std::memcmp(first.data(), second.data(), first.size() * sizeof(float)) == 0;
}

}  // namespace
}  // namespace rnnfast

int main() {
  using namespace rnnfast;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    std::puts("no AVX2: nothing to compare");
    return 0;
  }
  if (avx2::integer_kernels.adds_128 || !avxvnni::integer_kernels.adds_128) {
    std::puts("the two kernels are one");
    return 1;
  }
  int compared = 0;
  for (int gates = 1; gates <= 4; ++gates)
    for (int blocks = 1; blocks * gates <= 8; blocks *= 2)
      for (int halvings = 0; halvings < (blocks == 1 ? 2 : 1); ++halvings)
        for (Index rows = 1; rows <= 14; ++rows)
          for (const bool listed : {false, true}) {
            const int group = gates > 2 ? 1 : 4 / gates;  // unit blocks with lists
            if (listed && (blocks != group || halvings)) continue;
            for (const Index words : {Index(1), Index(2), draw(3, 60)}) {
              if (!agree(rows, words, blocks, gates, halvings, listed)) {
                std::printf("differ: %td rows, %td words, %d blocks, %d gates, %d halvings, lists %d\n", rows, words,
                            blocks, gates, halvings, listed);
                return 1;
              }
              ++compared;
            }
          }
  std::printf("%d products compared\n", compared);
  return 0;
}
