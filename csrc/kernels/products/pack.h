// Weights as the microkernel reads them, and back.
#pragma once

#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// A [G·H,K] matrix of the caller's; `order` says which of its gates each gate of a panel is. A bias has K = 1. Of
// heads, a row has the k of its own head alone: K < H.
template <class Real>
struct GateRows {
  Real* data;
  Index H, K;
  const int* order;
  bool has_heads = false;
};

template <class Real>
constexpr GateRows<const Real> read_only(const GateRows<Real>& w) {
  return {.data = w.data, .H = w.H, .K = w.K, .order = w.order, .has_heads = w.has_heads};
}

// f<gates>() for as many gates as a cell can have.
static_assert(most_gates == 4);
template <class F>
RNNFAST_INLINE void with_gates(int gates, F&& f) {
  if (gates == 4) return f.template operator()<4>();
  if (gates == 3) return f.template operator()<3>();
  if (gates == 2) return f.template operator()<2>();
  f.template operator()<1>();
}

// It as panels, [unit block][k][gate x lanes].
template <class Real>
struct Panels {
  Real* data;
  Blocks units;
  Index K;
  int gates;
  Index first = 0;      // the unit that data begins with
  Reach reach = {};     // which of all k the panel of a unit block has
  int shift = 0;        // words of it hold 1 << shift numbers, as `Format` says, and take the place of k
  bool rounds = false;  // such words, of two, are made of numbers as they are packed, and meet such words
};

template <class Real>
constexpr Factors factors_of(const Panels<Real>& p) {
  return p.shift != 1 ? Factors::numbers : p.rounds ? Factors::pairs : Factors::by_pairs;
}

constexpr Index words_of(Index K, int shift) { return (K + (1 << shift) - 1) >> shift; }

template <class Real>
constexpr Index size(const Panels<Real>& p) {
  return p.units.units * words_of(p.K, p.shift) * p.gates;
}

template <class Real>
RNNFAST_INLINE Real* panel(const Panels<Real>& p, Index unit) {
  return p.data + (unit - p.first) * words_of(p.K, p.shift) * p.gates;
}

template <class Real>
RNNFAST_INLINE Panels<const Real> read_only(const Panels<Real>& p) {
  return {.data = p.data,
          .units = p.units,
          .K = p.K,
          .gates = p.gates,
          .first = p.first,
          .reach = p.reach,
          .shift = p.shift,
          .rounds = p.rounds};
}

// f(rows of the matrix, the place of their first k in the panel, the panel's stride of k) for each gate of each block.
template <class Real, class From, class F>
RNNFAST_INLINE void for_each_panel_gate(const GateRows<From>& w, const Panels<Real>& p, Index k, Span span, F&& f) {
  for_each_block<Real>(p.units, span, [&]<class S>(BlockRange range) {
    const Index stride = p.gates * S::lanes;
    for (int gate = 0; gate < p.gates; ++gate)
      f.template operator()<S>(w.data + (w.order[gate] * w.H + range.unit) * w.K, range.valid,
                               panel(p, range.unit) + k * stride + gate * S::lanes, stride);
  });
}

// f(rows of a head, their number, the place of the first one's first k) for each gate of each head that a block has
// units of.
template <class Real, class From, class F>
void for_each_head_rows(const GateRows<From>& w, const Panels<Real>& p, Index block, F&& f) {
  const BlockWidth width = width_of<Real>(p.units, block);
  const Index end = width.unit + width.valid, row = p.gates * width.lanes;
  for (Index unit = width.unit, next; unit < end; unit = next) {
    const Index head = unit / w.K * w.K;
    next = min_index(head + w.K, end);
    for (int gate = 0; gate < p.gates; ++gate)
      f(w.data + (w.order[gate] * w.H + unit) * w.K, next - unit,
        panel(p, width.unit) + (head - first_read(p.reach, width.unit)) * row + gate * width.lanes + unit - width.unit,
        row);
  }
}

// pack() and unpack() of heads.
template <class Real>
__attribute__((noinline)) void pack_heads(const GateRows<const Real>& w, const Panels<Real>& p, Span span) {
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(p.units, block);
    Real* const all = panel(p, width.unit);
    for (Index i = 0; i < p.K * p.gates * width.lanes; ++i) all[i] = 0;
    for_each_head_rows(w, p, block, [&](const Real* from, Index units, Real* to, Index stride) {
      for (Index unit = 0; unit < units; ++unit)
        for (Index k = 0; k < w.K; ++k) to[k * stride + unit] = from[unit * w.K + k];
    });
  }
}

template <class Real>
__attribute__((noinline)) void unpack_heads(const Panels<Real>& p, const GateRows<Real>& w, Span span) {
  for (Index block = span.first; block < span.last; ++block)
    for_each_head_rows(w, p, block, [&](Real* to, Index units, const Real* from, Index stride) {
      for (Index unit = 0; unit < units; ++unit)
        for (Index k = 0; k < w.K; ++k) to[unit * w.K + k] = from[k * stride + unit];
    });
}

// w -> rows [k, k + w.K) of the panels, for the unit blocks of the span.
template <class Real>
void pack(const GateRows<const Real>& w, const Panels<Real>& p, Index k, Span span) {
  if (w.has_heads) return pack_heads(w, p, span);
  for_each_panel_gate(w, p, k, span, [&]<class S>(const Real* from, int units, Real* to, Index stride) {
    for (Index column = 0; column < w.K; column += S::lanes) {
      const int columns = int(min_index(S::lanes, w.K - column));
      typename S::V tile[S::lanes];
      if (columns == S::lanes && units == S::lanes) {
        load_transposed<S>(from + column, w.K, tile);
      } else {
#pragma GCC unroll 16
        for (int i = 0; i < S::lanes; ++i)
          tile[i] = i < units ? load_lanes<S>(from + i * w.K + column, columns) : typename S::V{};
        transpose<S>(tile);
      }
      if constexpr (has_formats<Real>)
        if (p.rounds) {
#pragma GCC unroll 16
          for (int i = 0; i < S::lanes; i += 2)
            if (i < columns) S::store(to + (column + i) / 2 * stride, pairs_of<S>(tile[i], tile[i + 1]));
          continue;
        }
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        if (i < columns) S::store(to + (column + i) * stride, tile[i]);
    }
  });
}

// The way back: rows [k, k + w.K) of the panels -> w.
template <class Real>
void unpack(const Panels<Real>& p, Index k, const GateRows<Real>& w, Span span) {
  if (w.has_heads) return unpack_heads(p, w, span);
  for_each_panel_gate(w, p, k, span, [&]<class S>(Real* to, int units, const Real* from, Index stride) {
    for (Index column = 0; column < w.K; column += S::lanes) {
      const int columns = int(min_index(S::lanes, w.K - column));
      typename S::V tile[S::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        tile[i] = i < columns ? S::load(from + (column + i) * stride) : typename S::V{};
      transpose<S>(tile);
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        if (i < units) store_lanes<S>(to + i * w.K + column, tile[i], columns);
    }
  });
}

// The cell's vectors of units, as [unit block][vector x lanes]; padding is zero, and what is null.
template <class Real>
void pack_vectors(const CellShape& cell, const Parameters<const Real>& parameters, const Blocks& units, Index H,
                  Span span, Real* to) {
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(units, block);
    Real* at = to + width.unit * cell.vector_count;
    for (int i = 0; i < cell.parameter_count; ++i)
      for (int vector = 0; vector < cell.parameters[i].count; ++vector)
        for (Index lane = 0; lane < width.lanes; ++lane)
          *at++ = lane < width.valid && parameters.vectors[i] ? parameters.vectors[i][vector * H + width.unit + lane]
                                                              : Real(0);
  }
}

// A matrix for products that go the other way, gates times w: [group of blocks of K][row][block x lanes], where
// the rows run over (unit block, gate, lane) as the gates are stored. Rows of padding are zero. Groups are of four
// blocks, and of two and one at the end. Of heads, a group has the rows of the unit blocks that touch its heads.
template <class Real>
struct TransposedPanels {
  Real* data;
  Blocks columns;  // of K
  Blocks units;    // of H
  int gates;
  Reach reach = {};     // of a group's columns; they and the units are the same
  bool rounds = false;  // rows make words by twos, as in Panels, and meet such words
};

// Unit blocks that a group has, and the first of the one whose columns begin with `column`.
template <class Real>
constexpr Index block_count(const TransposedPanels<Real>& p) {
  constexpr Index W = Widest<Real>::lanes;
  const Index whole = count(p.units), width = p.reach.width;
  if (!p.reach.head) return whole;
  return min_index(p.reach.head % W == 0 ? width / W : (width + W - 2) / W + 1, whole);
}

template <class Real>
constexpr Index first_block(const TransposedPanels<Real>& p, Index column) {
  if (!p.reach.head) return 0;
  const Index head = column / p.reach.head * p.reach.head;
  return min_index(head / Widest<Real>::lanes, count(p.units) - block_count(p));
}

template <class Real>
constexpr Index panel_rows(const TransposedPanels<Real>& p) {
  return min_index(block_count(p) * Widest<Real>::lanes, p.units.units) * p.gates;
}

template <class Real>
constexpr Index size(const TransposedPanels<Real>& p) {
  return p.columns.units * (panel_rows(p) >> p.rounds);
}

template <class Real>
constexpr Factors factors_of(const TransposedPanels<Real>& p) {
  return p.rounds ? Factors::pairs : Factors::numbers;
}

constexpr int group_of_columns = 4;

constexpr Index group_count(const Blocks& columns) {
  return (count(columns) + group_of_columns - 1) / group_of_columns;
}

// The same of heads.
template <class Real>
void pack_heads_transposed(const GateRows<const Real>& w, const TransposedPanels<Real>& p, const BlockRange& range) {
  Real* to = p.data + range.unit * panel_rows(p);
  const Index first = first_block(p, range.unit), columns = range.blocks * range.lanes;
  for (Index block = first; block < first + block_count(p); ++block) {
    const BlockWidth width = width_of<Real>(p.units, block);
    for (int gate = 0; gate < p.gates; ++gate)
      for (Index unit = width.unit; unit < width.unit + width.lanes; ++unit, to += columns) {
        const Index head = unit / w.K * w.K;
        const Real* from = w.data + (w.order[gate] * w.H + unit) * w.K;
        for (Index i = 0; i < columns; ++i) {
          const Index k = range.unit + i - head;
          to[i] = unit < w.H && k >= 0 && k < w.K ? from[k] : Real(0);
        }
      }
  }
}

// For the groups of the span.
template <class Real>
void pack_transposed(const GateRows<const Real>& w, const TransposedPanels<Real>& p, Span span) {
  const Index rows = panel_rows(p);
  const Span blocks = {.first = span.first * group_of_columns,
                       .last = min_index(span.last * group_of_columns, count(p.columns))};
  const auto pack_group = [&]<class S>(const BlockRange& range) {
    Real* to = p.data + range.unit * (rows >> p.rounds);
    const Index whole = range.blocks - (range.valid < S::lanes);
    const auto put = [&](auto&& vector) {  // those of a row, each of so many valid columns
      for (Index i = 0; i < whole; ++i, to += S::lanes) S::store(to, vector(i, S::lanes));
      if (whole < range.blocks) S::store(to, vector(whole, range.valid)), to += S::lanes;
    };
    for (Index block = 0; block < count(p.units); ++block) {
      const BlockWidth width = width_of<Real>(p.units, block);
      for (int gate = 0; gate < p.gates; ++gate) {
        const Real* from = w.data + (w.order[gate] * w.H + width.unit) * w.K + range.unit;
        const auto row = [&](Index unit, Index i, int valid) {
          return unit < width.valid ? load_lanes<S>(from + unit * w.K + i * S::lanes, valid) : typename S::V{};
        };
        if constexpr (has_formats<Real>)
          for (Index unit = 0; p.rounds && unit < width.lanes; unit += 2)
            put([&](Index i, int valid) { return pairs_of<S>(row(unit, i, valid), row(unit + 1, i, valid)); });
        for (Index unit = 0; !p.rounds && unit < width.lanes; ++unit)
          put([&](Index i, int valid) { return row(unit, i, valid); });
      }
    }
  };
  for_each_range<Real>(p.columns, blocks, group_of_columns, false, [&](const BlockRange& range) {
    if (w.has_heads) return pack_heads_transposed(w, p, range);
    with_width<Real>(range, [&]<class S> { pack_group.template operator()<S>(range); });
  });
}

// `set_cache_sizes` of the table tells them.
CacheSizes cache_sizes = {.near = 1 << 20, .far = 1 << 20};

// So few rows read packed weights no faster than they come anyway.
constexpr Index few_rows = 6;

// Whether panels are worth prefetching.
template <class Packed>
RNNFAST_INLINE bool is_far(const Packed& p, Index rows) {
  return rows > few_rows && size(p) * Index(sizeof(*p.data)) > cache_sizes.far;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
