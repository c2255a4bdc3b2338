// Numbers rounded to bfloat16, to nearest even, two in a word: factors of products whose sums are float.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Words of neighbours, half as many as there are numbers; memory behind the last of them is not touched.
template <class S>
RNNFAST_INLINE void store_neighbours(typename S::Real* words, typename S::V v, int count = S::lanes) {
  const typename S::Halves halves = __builtin_convertvector(rounded<S>(v) >> 16, typename S::Halves);
  if (count == S::lanes) {
    __builtin_memcpy(words, &halves, sizeof(halves));
    return;
  }
  auto* const to = reinterpret_cast<unsigned char*>(words);
  for (int i = 0; i < count + count % 2; ++i) {
    const std::uint16_t half = halves[i];
    __builtin_memcpy(to + 2 * i, &half, sizeof(half));
  }
}

// Numbers that stay as they are in memory, n of them.
template <class Real>
__attribute__((noinline)) void round_numbers(Real* numbers, Index n) {
  using S = Widest<Real>;
  if constexpr (has_formats<Real>)
    for (Index i = 0; i < n; i += S::lanes) {
      const int valid = int(min_index(S::lanes, n - i));
      store_lanes<S>(numbers + i, nearest<S>(load_lanes<S>(numbers + i, valid)), valid);
    }
}

// Rows of words, of K numbers each; an odd last one is paired with zero.
template <class Real>
View<Real> take_pairs(Arena<Real>& arena, Index rows, Index K) {
  const Index stride = words_of(K, 1);
  return {.data = take(arena, rows * stride), .stride = stride};
}

// Rows of neighbours.
template <class Real>
__attribute__((noinline)) void pair_neighbours(const View<const Real>& rows, Index count, Index K,
                                               const View<Real>& to) {
  using S = Widest<Real>;
  if constexpr (has_formats<Real>)
    for (Index row = 0; row < count; ++row)
      for (Index k = 0; k < K; k += S::lanes) {
        const int valid = int(min_index(S::lanes, K - k));
        store_neighbours<S>(at(to, row).data + k / 2, load_lanes<S>(at(rows, row).data + k, valid), valid);
      }
}

// The same of slots [slot, slot + count) of rows of some unit blocks, which lie likewise in `to`.
template <class Real>
__attribute__((noinline)) void pair_neighbours(const Gates<Real>& gates, const Blocks& units, Span span, int slots,
                                               int slot, int count, const RowRange& rows, const Gates<Real>& to) {
  if constexpr (has_formats<Real>)
    for_each_block<Real>(units, span, [&]<class S>(const BlockRange& range) {
      for (Index row = rows.first; row < rows.first + rows.count; ++row) {
        const Real* const from = gates_at(gates, range.unit, row, S::lanes, slots) + slot * S::lanes;
        Real* const words = gates_at(to, range.unit / 2, row, S::lanes / 2, slots) + slot * (S::lanes / 2);
        for (int i = 0; i < count; ++i) store_neighbours<S>(words + i * (S::lanes / 2), S::load(from + i * S::lanes));
      }
    });
}

// Rows by twos, as words [unit block][two rows][slot x lanes]: `rows` rows of the gates from `from` on, to those from
// `place` on. An odd last one is paired with zeros.
template <class Real>
void pair_rows(const Gates<Real>& gates, const Blocks& units, Span span, int slots, const RowRange& rows, Index place,
               const Gates<Real>& to) {
  if constexpr (has_formats<Real>)
    for_each_block<Real>(units, span, [&]<class S>(const BlockRange& range) {
      const Index width = slots * S::lanes;
      const Real* from = gates_at(gates, range.unit, rows.first, S::lanes, slots);
      Real* words = gates_at(to, range.unit, place, S::lanes, slots);
      for (Index row = 0; row < rows.count; row += 2, from += 2 * width, words += width)
        for (Index i = 0; i < width; i += S::lanes) {
          const typename S::V second = row + 1 < rows.count ? S::load(from + width + i) : typename S::V{};
          S::store(words + i, pairs_of<S>(S::load(from + i), second));
        }
    });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
