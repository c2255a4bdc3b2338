// Backward of few rows, as of a cell's one step. It meets each weight about once: packing the weights, and keeping
// their gradients in panels, would cost more than the products. Here both stay as the caller has them. Each sum is
// the chain of the packed form (gradients.h), so that the bits are the same.
//
// Vectors are of one width, to keep the library small.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// At most so many rows leave the weights as they are; their sums are one chain. Steps, which read w_hh each, do where
// they are a few, or their rows.
constexpr Index most_unpacked_rows = 3 * chain_length / 2 - 1, least_unpacked_rows = 16, few_unpacked_steps = 4;

// So many rows and more read the columns of w, x and h' from panels: rows of a matrix are often a power of two apart,
// and share few lines of the first cache level. With fewer registers, the tiles without panels are lower.
constexpr Index least_strip_rows = vector_registers;

// A row of gradients takes as long to write as so many rows to multiply. To be added to, they are finished once begun.
constexpr Index rows_to_write = 3;

// A tile: rows that share the loads of w, and vectors of columns.
constexpr int unpacked_tile_rows = vector_registers == 32 ? 4 : 2, unpacked_tile_vectors = 4;

// f<rows>(first) for n rows.
template <class F>
RNNFAST_INLINE void for_each_tile_row(Index n, F&& f) {
  Index row = 0;
  for (; row + unpacked_tile_rows <= n; row += unpacked_tile_rows) f.template operator()<unpacked_tile_rows>(row);
  for (; row < n; ++row) f.template operator()<1>(row);
}

// f<vectors>(first, lanes of the last vector that are columns) for columns [first, last).
template <class S, class F>
RNNFAST_INLINE void for_each_tile_column(Index first, Index last, F&& f) {
  constexpr Index wide = unpacked_tile_vectors * S::lanes;
  for (; first + wide <= last; first += wide) f.template operator()<unpacked_tile_vectors>(first, S::lanes);
  for (; first < last; first += S::lanes) f.template operator()<1>(first, int(min_index(S::lanes, last - first)));
}

// What lies behind the last vector of a row may be beyond the array.
template <class S, int vectors>
RNNFAST_INLINE typename S::V load_column(const typename S::Real* p, int valid) {
  return vectors == 1 ? load_lanes<S>(p, valid) : S::load(p);
}

template <class S, int vectors>
RNNFAST_INLINE void store_column(typename S::Real* p, typename S::V v, int valid) {
  if (vectors == 1)
    store_lanes<S>(p, v, valid);
  else
    S::store(p, v);
}

// Whether some gates of a matrix fill more than the second cache level.
template <class Real>
bool is_far(int gates, const GateRows<Real>& w) {
  return gates * w.H * w.K * Index(sizeof(Real)) > cache_sizes.near;
}

// out = or += init + dgates w over the unit blocks of a span, some rows by some columns.
template <class Real>
struct UnpackedTile {
  GateRows<const Real> w;
  Factor factor;
  Blocks units;
  Span span;
  Gates<Real> dgates;
  int slots;
  View<const Real> init;  // null: zeros
  View<Real> out;
  bool add;
  bool far;  // w comes from beyond the second cache level
};

// Where a tile stands: its first row, its first column, and how many lanes of its last vector are columns.
struct Corner {
  Index gate_row, row, column;
  int valid;
};

// If it asks, the next column's parts of w are fetched on the way: they lie too far apart for the processor to foresee.
template <class S, int M, int N, bool asks>
__attribute__((noinline)) void multiply_tile(const UnpackedTile<typename S::Real>& t, const Corner& corner) {
  using Real = typename S::Real;
  typename S::V acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const Real* from = t.init.data + (corner.row + m) * t.init.stride + corner.column;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
      acc[m][n] = t.init.data ? load_column<S, N>(from + n * S::lanes, corner.valid) : typename S::V{};
  }
  for (Index block = t.span.first; block < t.span.last; ++block) {
    const BlockWidth width = width_of<Real>(t.units, block);
    const Index a_row = t.slots * width.lanes;
    const Real* a = t.dgates.data + width.unit * t.dgates.rows * t.slots + (corner.gate_row + corner.row) * a_row +
                    t.factor.slot * width.lanes;
    for (int gate = 0; gate < t.factor.gates; ++gate, a += width.lanes) {
      const Index first = t.w.order[t.factor.gate + gate] * t.w.H + width.unit;
      const Real* w = t.w.data + first * t.w.K + corner.column;
      for (Index unit = 0; unit < width.valid; ++unit, w += t.w.K) {
        typename S::V held[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) held[n] = load_column<S, N>(w + n * S::lanes, corner.valid);
        if (asks)
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) __builtin_prefetch(w + (N + n) * S::lanes, 0, 2);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
          const typename S::V passing = S::broadcast(a[m * a_row + unit]);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) acc[m][n] = fma(passing, held[n], acc[m][n]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    Real* to = t.out.data + (corner.row + m) * t.out.stride + corner.column;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n, to += S::lanes) {
      if (t.add) acc[m][n] = acc[m][n] + load_column<S, N>(to, corner.valid);
      store_column<S, N>(to, acc[m][n], corner.valid);
    }
  }
}

// f(vectors, first, lanes of the last vector that are columns) for columns [first, last), up to four vectors at a time.
template <class S, class F>
RNNFAST_INLINE void for_each_strip(Index first, Index last, F&& f) {
  while (first < last) {
    const Index whole = min_index((last - first) / S::lanes, unpacked_tile_vectors);
    f(int(max_index(whole, 1)), first, int(whole ? S::lanes : last - first));
    first += max_index(whole, 1) * S::lanes;
  }
}

// The tiles for a strip.
template <class Real>
RNNFAST_INLINE const Tiles<Real>& tiles_of_strip(int vectors) {
  return tiles_of<Real>(vectors, vectors, BlockRange{.block = 0, .blocks = 1, .unit = 0, .valid = 0});
}

// Some columns of w over the unit blocks of a span, as a panel: [block][gate][unit][vector], zeros for padding.
template <class S>
__attribute__((noinline)) void pack_strip(const UnpackedTile<typename S::Real>& t, int vectors, Index column, int valid,
                                          typename S::Real* to) {
  for (Index block = t.span.first; block < t.span.last; ++block) {
    const BlockWidth width = width_of<typename S::Real>(t.units, block);
    for (int gate = 0; gate < t.factor.gates; ++gate) {
      const Index first = t.w.order[t.factor.gate + gate] * t.w.H + width.unit;
      const typename S::Real* from = t.w.data + first * t.w.K + column;
      for (Index unit = 0; unit < width.lanes; ++unit, from += t.w.K) {
        for (int n = 0; t.far && n < vectors; ++n) __builtin_prefetch(from + (vectors + n) * S::lanes, 0, 2);
        for (int n = 0; n < vectors; ++n, to += S::lanes)
          S::store(to, unit < width.valid ? load_lanes<S>(from + n * S::lanes, valid) : typename S::V{});
      }
    }
  }
}

// The product of all tiles, from a panel of w for each column.
template <class S>
__attribute__((noinline)) void multiply_strips(const UnpackedTile<typename S::Real>& u, Index gate_row, Index rows,
                                               Span columns, const Team& team) {
  using Real = typename S::Real;
  alignas(64) Real panel[3 * chain_length / 2 * unpacked_tile_vectors * S::lanes];
  const BlockWidth width = width_of<Real>(u.units, u.span.first);
  Tile<Real> t = {};
  t.first.a = gates_at(u.dgates, width.unit, gate_row, width.lanes, u.slots) + u.factor.slot * width.lanes;
  t.first.a_row = u.slots * width.lanes, t.first.a_k = 1, t.first.a_block = width.lanes * u.dgates.rows * u.slots;
  t.first.panel = panel, t.first.K = u.factor.gates * width.lanes, t.first.blocks = u.span.last - u.span.first;
  t.out_row = u.out.stride, t.init_row = u.init.stride, t.add = u.add;
  for_each_strip<S>(columns.first, columns.last, [&](int vectors, Index column, int valid) {
    if (skips(team, rows)) return;
    pack_strip<S>(u, vectors, column, valid, panel);
    t.first.panel_k = vectors * S::lanes, t.first.panel_block = t.first.K * t.first.panel_k;
    t.out = u.out.data + column, t.valid = valid;
    if (u.init.data) t.init = u.init.data + column;
    tile_column(tiles_of_strip<Real>(vectors), t, rows, NoEpilogue());
  });
}

// multiply() with w as the caller has it. A chain's rows of w stay in the cache while tile after tile passes over them.
template <class Real>
__attribute__((noinline)) void multiply_unpacked(const Product<Real>& p, const Factor& factor, int slots,
                                                 const GateRows<const Real>& w, const Team& team) {
  using S = Widest<Real>;
  const Blocks units = blocks_of<Real>(w.H);
  const Index chains = chain_count(units.full * S::lanes * factor.gates);
  const Index length = (units.full + chains - 1) / chains;
  UnpackedTile<Real> t = {.w = w,
                          .factor = factor,
                          .units = units,
                          .span = {},
                          .dgates = p.dgates,
                          .slots = slots,
                          .init = p.init,
                          .out = p.out,
                          .add = false,
                          .far = is_far(factor.gates, w)};
  const Span columns = {.first = p.columns.first * S::lanes, .last = min_index(p.columns.last * S::lanes, w.K)};
  const auto pass = [&] {
    if (p.rows >= least_strip_rows) return multiply_strips<S>(t, p.gate_row, p.rows, columns, team);
    for_each_tile_column<S>(columns.first, columns.last, [&]<int N>(Index column, int valid) {
      for_each_tile_row(p.rows, [&]<int M>(Index row) {
        constexpr bool is_whole = M > 1 && N > 1;
        const Corner corner = {.gate_row = p.gate_row, .row = row, .column = column, .valid = valid};
        if (is_whole && t.far && row == 0)
          multiply_tile<S, M, N, is_whole>(t, corner);
        else
          multiply_tile<S, M, N, false>(t, corner);
      });
    });
  };
  for (Index chain = 0; chain < chains; ++chain) {
    t.span = {.first = min_index(chain * length, units.full), .last = min_index((chain + 1) * length, units.full)};
    t.add = chain > 0;
    if (t.add) t.init = {};
    pass();
    if (skips(team, p.rows, w.K)) return;
  }
  if (!units.tail) return;
  t.span = {.first = units.full, .last = units.full + 1}, t.init = read_only(p.out), t.add = false;
  pass();
}

// dw = or += sum over rows, in descending order, of dgates^T columns, and db of dgates: gates of dw from `gate` on and
// slots of dgates from `slot` on.
template <class Real>
struct UnpackedWeightProduct {
  Gates<Real> dgates;
  int slots, slot, gate, gates;
  const Real* columns[most_unpacked_rows];  // rows of x or h'
  Index rows;
  GateRows<Real> dw;
  Real* db;  // may be null
  bool add;
};

// M rows of dw, whose dgates lie at `a`, `a_row` apart from row to row.
template <class S, int M, int N>
RNNFAST_INLINE void gradient_tile(const UnpackedWeightProduct<typename S::Real>& p, const typename S::Real* a,
                                  Index a_row, typename S::Real* dw, Index column, int valid) {
  // To be written, the part of dw has to come first: it does while the sums are made.
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) __builtin_prefetch(dw + m * p.dw.K + column + n * S::lanes, 1, 3);
  typename S::V acc[M][N] = {};
  for (Index row = p.rows; row-- > 0;) {
    typename S::V held[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) held[n] = load_column<S, N>(p.columns[row] + column + n * S::lanes, valid);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const typename S::V passing = S::broadcast(a[row * a_row + m]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = fma(passing, held[n], acc[m][n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      typename S::Real* to = dw + m * p.dw.K + column + n * S::lanes;
      if (p.add) acc[m][n] = acc[m][n] + load_column<S, N>(to, valid);
      store_column<S, N>(to, acc[m][n], valid);
    }
}

// f(unit block, its dgates, the first of its rows of dw) for each gate.
template <class Real, class F>
RNNFAST_INLINE void for_each_gradient_gate(const UnpackedWeightProduct<Real>& p, Span span, F&& f) {
  const Blocks units = blocks_of<Real>(p.dw.H);
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(units, block);
    const Real* a = p.dgates.data + width.unit * p.dgates.rows * p.slots + p.slot * width.lanes;
    for (int gate = p.gate; gate < p.gate + p.gates; ++gate, a += width.lanes)
      f(width, a, p.dw.order[gate] * p.dw.H + width.unit);
  }
}

// As multiply_strips() does it: columns of all rows as panels, [strip][row][vector]. One strip stays in the first cache
// level; where dw goes to memory, there are as many as have room, so that more of a row of dw is written at once.
template <class Real>
__attribute__((noinline)) void multiply_gradient_strips(const UnpackedWeightProduct<Real>& p, Span span,
                                                        const Team& team) {
  using S = Widest<Real>;
  constexpr Index wide = unpacked_tile_vectors * S::lanes, room = most_unpacked_rows * wide;
  alignas(64) Real panels[room];
  const bool far = is_far(p.gates, p.dw);
  const Index at_once = far ? room / (p.rows * wide) * wide : wide;
  const Index most = tiles_of_strip<Real>(int(max_index(min_index(p.dw.K / S::lanes, unpacked_tile_vectors), 1))).most;
  Tile<Real> t = {};
  t.first.a_row = 1, t.first.K = p.rows, t.first.blocks = 1, t.out_row = p.dw.K, t.add = p.add;
  for (Index begin = 0; begin < p.dw.K; begin += at_once) {
    const Index end = min_index(begin + at_once, p.dw.K);
    if (begin > 0 && !p.add && skips(team, p.rows, p.gates * (span.last - span.first))) return;
    for_each_strip<S>(begin, end, [&](int vectors, Index column, int valid) {
      Real* to = panels + (column - begin) * p.rows;
      for (Index row = 0; row < p.rows; ++row)
        for (int n = 0; n < vectors; ++n, to += S::lanes)
          S::store(to, load_lanes<S>(p.columns[row] + column + n * S::lanes, valid));
    });
    for_each_gradient_gate(p, span, [&](const BlockWidth& width, const Real* a, Index first) {
      t.first.a_k = -p.slots * width.lanes, t.first.a = a - (p.rows - 1) * t.first.a_k;
      const Index tiles = (width.valid + most - 1) / most;
      for (Index i = 0; i < tiles; ++i) {
        const Index unit = share(width.valid, i, tiles), next = share(width.valid, i + 1, tiles);
        for_each_strip<S>(begin, end, [&](int vectors, Index column, int valid) {
          const Index row = vectors * S::lanes;
          t.first.panel = panels + (column - begin + row) * p.rows - row, t.first.panel_k = -row;
          t.out = p.dw.data + first * p.dw.K + column, t.valid = valid;
          // To be written, the part of dw has to come first: it does while the sums are made.
          for (Index m = far ? unit : next; m < next; ++m)
            for (int n = 0; n < vectors; ++n) __builtin_prefetch(t.out + m * p.dw.K + n * S::lanes, 1, 3);
          tiles_of_strip<Real>(vectors).of_rows[next - unit - 1](t, unit);
        });
      }
    });
  }
}

template <class Real>
__attribute__((noinline)) void multiply_gradients(const UnpackedWeightProduct<Real>& p, Span span, const Team& team) {
  using S = Widest<Real>;
  const bool by_strips = p.rows >= least_strip_rows;
  if (by_strips) multiply_gradient_strips(p, span, team);
  for_each_gradient_gate(p, span, [&](const BlockWidth& width, const Real* a, Index first) {
    if (!by_strips && !p.add && skips(team, p.rows + rows_to_write, p.dw.K)) return;
    const Index a_row = p.slots * width.lanes;
    for_each_tile_row(by_strips ? 0 : width.valid, [&]<int M>(Index unit) {
      Real* dw = p.dw.data + (first + unit) * p.dw.K;
      for_each_tile_column<S>(0, p.dw.K, [&]<int N>(Index column, int valid) {
        gradient_tile<S, M, N>(p, a + unit, a_row, dw, column, valid);
      });
    });
    if (!p.db) return;
    for_each_vector<Real>(width.lanes, [&]<class Some>(Index unit) {
      const int valid = int(min_index(Some::lanes, width.valid - unit));
      if (valid <= 0) return;
      typename Some::V sum = {};
      for (Index row = p.rows; row-- > 0;) sum = sum + Some::load(a + row * a_row + unit);
      Real* const to = p.db + first + unit;
      store_lanes<Some>(to, p.add ? sum + load_lanes<Some>(to, valid) : sum, valid);
    });
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
