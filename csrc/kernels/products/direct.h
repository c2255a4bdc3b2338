// Forward of few rows, as of a cell's one step. It meets each weight once or a few times: packing the weights would
// cost more than the products. Here they stay as the caller has them, and are transposed in registers on their way to
// the multiply-adds. Each sum is the chain of the packed form (gemm.h), so that the bits are the same.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Which products of a step come together.
enum class Products { input, recurrent, both };

// At most so many rows: with more, the transposes are better done once for several tiles.
constexpr Index most_direct_rows = 4;

// out = init + a w^T for the units of one block and one gate, whose rows of w [units,K] lie one after the other.
template <class Real>
struct DirectBlock {
  View<const Real> a;
  const Real* w;
  Index K;
  int units;
  const Real* init;  // strides of rows; 0 repeats a row
  Index init_row;
  Real* out;
  Index out_row;
};

template <class S, int M>
__attribute__((noinline)) void multiply_direct(const DirectBlock<typename S::Real>& b) {
  using V = typename S::V;
  const Index chains = chain_count(b.K), length = (b.K + chains - 1) / chains;
  // The first quarter of each row of the next block is asked for on the way. The processor foresees the rest of a row
  // by itself, with more loads under way than one could ask for.
  constexpr Index cache_line = 64 / Index(sizeof(typename S::Real)), asked_at_once = S::lanes * S::lanes / 4;
  const typename S::Real* next = b.w + S::lanes * b.K;
  Index asked = 0;
  for (Index chain = 0; chain < chains; ++chain) {
    const Index last = min_index((chain + 1) * length, b.K);
    V acc[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) acc[m] = chain ? V{} : S::load(b.init + m * b.init_row);
    for (Index k = min_index(chain * length, b.K); k < last; k += S::lanes) {
      const int columns = int(min_index(S::lanes, last - k));
      const typename S::Real* from = b.w + k;
      V tile[S::lanes];
#pragma GCC unroll 4
      for (Index i = 0; i < asked_at_once; i += cache_line) __builtin_prefetch(next + asked + i, 0, 2);
      asked += asked_at_once;
      if (4 * asked >= b.K) asked = 0, next += b.K;
      if (columns == S::lanes && b.units == S::lanes) {
        load_transposed<S>(from, b.K, tile);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < S::lanes; ++i) tile[i] = i < b.units ? load_lanes<S>(from + i * b.K, columns) : V{};
        transpose<S>(tile);
      }
      const typename S::Real* a = b.a.data + k;
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i) {
        if (i >= columns) break;
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) acc[m] = fma(S::broadcast(a[m * b.a.stride + i]), tile[i], acc[m]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      typename S::Real* to = b.out + m * b.out_row;
      S::store(to, chain ? acc[m] + S::load(to) : acc[m]);
    }
  }
}

template <class S>
RNNFAST_INLINE void multiply_direct(const DirectBlock<typename S::Real>& b, Index rows) {
  static_assert(most_direct_rows == 4);
  if (rows == 1) return multiply_direct<S, 1>(b);
  if (rows == 2) return multiply_direct<S, 2>(b);
  if (rows == 3) return multiply_direct<S, 3>(b);
  multiply_direct<S, 4>(b);
}

// One product of a step, of all gates: those of w from `gate` on go to the slots from `slot` on.
template <class Real>
struct DirectProduct {
  View<const Real> a;
  GateRows<const Real> w;
  int gate, slot, gates;
};

// The slots [slot, slot + count) of some rows, [unit block][row][slot x lanes], and what their sums start from.
template <class Real>
struct DirectSlots {
  Gates<Real> gates;
  Index row, rows;
  int slots, slot, count;
  const Real* bias;  // [unit block][slot x lanes]
  Blocks units;
  Span span;
};

// gates = bias + first, then + second, or one of them: w goes by in the order in which it lies, gate by gate.
template <class Real>
void multiply_direct(const DirectSlots<Real>& s, Products products, const DirectProduct<Real>& first,
                     const DirectProduct<Real>& second, const Team& team) {
  const auto each_block = [&](int slot, auto&& f) {
    for_each_block<Real>(s.units, s.span, [&]<class S>(const BlockRange& range) {
      const Index row = s.slots * S::lanes;
      Real* const out = gates_at(s.gates, range.unit, s.row, S::lanes, s.slots) + slot * S::lanes;
      f.template operator()<S>(range, s.bias + range.unit * s.slots + slot * S::lanes, out, row);
    });
  };
  const auto pass = [&](const DirectProduct<Real>& p, bool from_bias) {
    for (int gate = 0; gate < p.gates; ++gate)
      each_block(p.slot + gate, [&]<class S>(const BlockRange& range, const Real* bias, Real* out, Index row) {
        if (skips(team, s.rows, p.w.K)) return;
        multiply_direct<S>({.a = p.a,
                            .w = p.w.data + (p.w.order[p.gate + gate] * p.w.H + range.unit) * p.w.K,
                            .K = p.w.K,
                            .units = range.valid,
                            .init = from_bias ? bias : out,
                            .init_row = from_bias ? 0 : row,
                            .out = out,
                            .out_row = row},
                           s.rows);
      });
  };
  // A slot without a part in one product is what the packed form makes of it: later chains add zeros.
  const auto skip = [&](int begin, int end, bool from_bias, Index chains) {
    for (int slot = begin; slot < end; ++slot)
      each_block(slot, [&]<class S>(const BlockRange&, const Real* bias, Real* out, Index row) {
        for (Index m = 0; m < s.rows; ++m, out += row) {
          const typename S::V v = S::load(from_bias ? bias : out);
          S::store(out, chains > 1 ? v + typename S::V{} : v);
        }
      });
  };
  if (products != Products::recurrent) {
    skip(s.slot, first.slot, true, chain_count(first.w.K));
    pass(first, true);
  }
  if (products == Products::input) return;
  pass(second, false);
  if (products == Products::both) skip(second.slot + second.gates, s.slot + s.count, false, chain_count(second.w.K));
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
