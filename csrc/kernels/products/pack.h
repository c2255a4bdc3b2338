// Weights as the microkernel reads them, and back.
#pragma once

#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// A [G·H,K] matrix of the caller's; `order` says which of its gates each gate of a panel is. A bias has K = 1.
template <class Real>
struct GateRows {
  Real* data;
  Index H, K;
  const int* order;
};

template <class Real>
RNNFAST_INLINE GateRows<const Real> read_only(const GateRows<Real>& w) {
  return {.data = w.data, .H = w.H, .K = w.K, .order = w.order};
}

// f<gates>() for as many gates as a cell can have.
static_assert(most_slots == 4);
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
  Index first = 0;  // the unit that data begins with
};

template <class Real>
constexpr Index size(const Panels<Real>& p) {
  return p.units.units * p.K * p.gates;
}

template <class Real>
RNNFAST_INLINE Real* panel(const Panels<Real>& p, Index unit) {
  return p.data + (unit - p.first) * p.K * p.gates;
}

template <class Real>
RNNFAST_INLINE Panels<const Real> read_only(const Panels<Real>& p) {
  return {.data = p.data, .units = p.units, .K = p.K, .gates = p.gates, .first = p.first};
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

// w -> rows [k, k + w.K) of the panels, for the unit blocks of the span.
template <class Real>
void pack(const GateRows<const Real>& w, const Panels<Real>& p, Index k, Span span) {
  for_each_panel_gate(w, p, k, span, [&]<class S>(const Real* from, int units, Real* to, Index stride) {
    for (Index column = 0; column < w.K; column += S::lanes) {
      const int columns = int(min_index(S::lanes, w.K - column));
      typename S::V tile[S::lanes];
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        tile[i] = i < units ? load_lanes<S>(from + i * w.K + column, columns) : typename S::V{};
      transpose<S>(tile);
#pragma GCC unroll 16
      for (int i = 0; i < S::lanes; ++i)
        if (i < columns) S::store(to + (column + i) * stride, tile[i]);
    }
  });
}

// The way back: rows [k, k + w.K) of the panels -> w.
template <class Real>
void unpack(const Panels<Real>& p, Index k, const GateRows<Real>& w, Span span) {
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

// The cell's vectors of units, as [unit block][vector x lanes]; padding is zero.
template <class Real>
void pack_vectors(const CellShape& cell, const Parameters<const Real>& parameters, const Blocks& units, Index H,
                  Span span, Real* to) {
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(units, block);
    Real* at = to + width.unit * cell.vector_count;
    for (int i = 0; i < cell.parameter_count; ++i)
      for (int vector = 0; vector < cell.parameters[i].count; ++vector)
        for (Index lane = 0; lane < width.lanes; ++lane)
          *at++ = lane < width.valid ? parameters.vectors[i][vector * H + width.unit + lane] : Real(0);
  }
}

// A matrix for products that go the other way, gates times w: [group of blocks of K][row][block x lanes], where
// the rows run over (unit block, gate, lane) as the gates are stored. Rows of padding are zero. Groups are of four
// blocks, and of two and one at the end.
template <class Real>
struct TransposedPanels {
  Real* data;
  Blocks columns;  // of K
  Blocks units;    // of H
  int gates;
};

template <class Real>
constexpr Index panel_rows(const TransposedPanels<Real>& p) {
  return p.units.units * p.gates;
}

template <class Real>
constexpr Index size(const TransposedPanels<Real>& p) {
  return p.columns.units * panel_rows(p);
}

constexpr int group_of_columns = 4;

constexpr Index group_count(const Blocks& columns) {
  return (count(columns) + group_of_columns - 1) / group_of_columns;
}

// For the groups of the span.
template <class Real>
void pack_transposed(const GateRows<const Real>& w, const TransposedPanels<Real>& p, Span span) {
  const Index rows = panel_rows(p);
  const Span blocks = {.first = span.first * group_of_columns,
                       .last = min_index(span.last * group_of_columns, count(p.columns))};
  const auto pack_group = [&]<class S>(const BlockRange& range) {
    Real* to = p.data + range.unit * rows;
    for (Index block = 0; block < count(p.units); ++block) {
      const BlockWidth width = width_of<Real>(p.units, block);
      for (int gate = 0; gate < p.gates; ++gate) {
        const Real* from = w.data + (w.order[gate] * w.H + width.unit) * w.K + range.unit;
        for (Index unit = 0; unit < width.lanes; ++unit, from += w.K)
          for (Index i = 0; i < range.blocks; ++i, to += S::lanes) {
            const bool padding = unit >= width.valid;
            const int valid = i + 1 < range.blocks ? S::lanes : range.valid;
            S::store(to, padding ? typename S::V{} : load_lanes<S>(from + i * S::lanes, valid));
          }
      }
    }
  };
  for_each_range<Real>(p.columns, blocks, group_of_columns, false, [&](const BlockRange& range) {
    with_width<Real>(range, [&]<class S> { pack_group.template operator()<S>(range); });
  });
}

// The size of the second cache level, which `set_near_bytes` of the table tells. It decides about the order of the work
// alone: no result depends on it.
Index near_bytes = 1 << 20;

// So few rows read packed weights no faster than they come anyway.
constexpr Index few_rows = 6;

// Whether panels are worth prefetching. Of those of twice the second cache level a pass that turns back finds half, and
// the processor's own prefetches bring the rest in time.
template <class Packed>
RNNFAST_INLINE bool is_far(const Packed& p, Index rows) {
  return rows > few_rows && size(p) * Index(sizeof(*p.data)) > 2 * near_bytes;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
