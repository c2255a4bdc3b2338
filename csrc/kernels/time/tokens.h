// Input that is tokens, rows of an embedding or of the identity. What a token brings to the gates, bias + w_ih x, is
// the same wherever it stands: a table has a row of it for each token that occurs, laid out as the gates are, and a
// step's product starts from the rows of its tokens. Backward sums dgates by token into a table of the same layout. Its
// rows are to the gradients of w_ih and of the embedding what those of a chunk are where x is dense; of a one-hot x
// they are columns of dw_ih.
#pragma once

#include <cstdint>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Some unit blocks of a table, of those that `units` are cut into.
template <class Real>
struct TableBlocks {
  Gates<Real> table;
  Blocks units;
  Span span;
};

// Sets every row to `row` [unit block][slot x lanes], or to zeros.
template <class Real>
void fill(const TableBlocks<Real>& t, int slots, const Real* row) {
  for (Index block = t.span.first; block < t.span.last; ++block) {
    const BlockWidth width = width_of<Real>(t.units, block);
    const Index n = slots * width.lanes;
    Real* to = gates_at(t.table, width.unit, 0, width.lanes, slots);
    for (Index k = 0; k < t.table.rows; ++k, to += n)
      if (row)
        copy_vectors(row + width.unit * slots, n, to);
      else
        for (Index i = 0; i < n; ++i) to[i] = 0;
  }
}

// f(element, row of w, its number, column of w) for the columns of w that are rows of the table.
template <class Real, class W, class F>
void for_each_column(const TableBlocks<Real>& t, int slots, const GateRows<W>& w, int gates, const Index* token,
                     F&& f) {
  constexpr Index table_rows = 64;  // stay in the first cache level while gate after gate is written
  for (Index block = t.span.first; block < t.span.last; ++block) {
    const BlockWidth width = width_of<Real>(t.units, block);
    for (Index first = 0; first < t.table.rows; first += table_rows) {
      const Index last = min_index(first + table_rows, t.table.rows);
      for (int gate = 0; gate < gates; ++gate)
        for (Index lane = 0; lane < width.valid; ++lane) {
          const Index of_w = w.order[gate] * w.H + width.unit + lane;
          Real* element = gates_at(t.table, width.unit, first, width.lanes, slots);
          element += (slots - gates + gate) * width.lanes + lane;
          for (Index row = first; row < last; ++row, element += slots * width.lanes)
            f(*element, w.data + of_w * w.K, of_w, token[row]);
        }
    }
  }
}

// A table that has all columns of w, and no slots beside w's, is the panels of w.
template <class Real, class W>
constexpr bool is_panels(const TableBlocks<Real>& t, const CellShape& cell, const GateRows<W>& w) {
  return t.table.rows == w.K && cell.slot_count == cell.gate_count;
}

template <class Real>
constexpr Panels<Real> panels_of(const TableBlocks<Real>& t, const CellShape& cell) {
  return {.data = t.table.data, .units = t.units, .K = t.table.rows, .gates = cell.gate_count};
}

// Sets every row to a column of w, and adds `row`, unless that is null.
template <class Real>
void fill_from_columns(const TableBlocks<Real>& t, const CellShape& cell, const Real* row,
                       const GateRows<const Real>& w, const Index* token) {
  if (!is_panels(t, cell, w)) {
    fill(t, cell.slot_count, row);
    return for_each_column(t, cell.slot_count, w, cell.gate_count, token,
                           [](Real& element, const Real* from, Index, Index k) { element += from[k]; });
  }
  pack(w, panels_of(t, cell), 0, t.span);
  if (!row) return;
  for_each_block<Real>(t.units, t.span, [&]<class S>(const BlockRange& block) {
    Real* element = gates_at(t.table, block.unit, 0, S::lanes, cell.slot_count);
    for (Index k = 0; k < t.table.rows; ++k)
      for (int slot = 0; slot < cell.slot_count; ++slot, element += S::lanes)
        S::store(element, S::load(element) + S::load(row + block.unit * cell.slot_count + slot * S::lanes));
  });
}

// The way back: sets the columns of w to rows.
template <class Real>
void columns_from(const TableBlocks<Real>& t, const CellShape& cell, const GateRows<Real>& w, const Index* token) {
  if (is_panels(t, cell, w)) return unpack(panels_of(t, cell), 0, w, t.span);
  for_each_column(t, cell.slot_count, w, cell.gate_count, token,
                  [](Real element, Real* to, Index, Index k) { to[k] = element; });
}

// What such a token brings to a gate: number k of row r of w_ih, of int8 with the operations that a row of x meets.
template <class Real>
RNNFAST_INLINE Real one_hot_part(const Problem& p, const Real* row, Index k, const float* scales, Index r) {
  if constexpr (has_formats<Real>) {
    using S = Simd<Real, 4>;
    if (p.rounded) return nearest<S>(S::broadcast(row[k]))[0];
    if (p.format == Format::int8)
      return Real(127 * reinterpret_cast<const signed char*>(row)[k]) * (1.0f / 127 * scales[r]);
    if (p.format == Format::bfloat16) {
      std::uint32_t bits;
      __builtin_memcpy(&bits, row + k / 2, sizeof(bits));
      bits = k % 2 ? bits & 0xffff0000 : bits << 16;
      Real number;
      __builtin_memcpy(&number, &bits, sizeof(number));
      return number;
    }
  }
  return row[k];
}

// Adds dgates of rows [first, first + count) of all time, one chunk, to the rows of their tokens. As in the products,
// rows descend, and a chain ends after some of them: a frequent token's gradient would lose digits in a single one.
template <class Real>
void sum_by_token(const TableBlocks<Real>& t, const CellShape& cell, const Gates<Real>& dgates, const Tokens& tokens,
                  const RowRange& range) {
  const Index chains = chain_count(range.count), length = (range.count + chains - 1) / chains;
  const int slots = cell.slot_count;
  const auto sum_block = [&]<class S, int gates>(const BlockRange& block) {
    const int shift = (slots - gates) * S::lanes;
    for (Index high = range.first + range.count; high > range.first; high -= length) {
      const Index low = max_index(high - length, range.first);
      for (Index last = high - 1; last >= low; --last) {
        if (tokens.later[last] < high) continue;  // one of that chain
        typename S::V sum[gates] = {};
        for (Index row = last; row >= low; row = tokens.earlier[row]) {
          const Real* from = gates_at(dgates, block.unit, row - range.first, S::lanes, slots) + shift;
#pragma GCC unroll 4
          for (int gate = 0; gate < gates; ++gate) sum[gate] = sum[gate] + S::load(from + gate * S::lanes);
        }
        Real* to = gates_at(t.table, block.unit, tokens.number[last], S::lanes, slots) + shift;
#pragma GCC unroll 4
        for (int gate = 0; gate < gates; ++gate, to += S::lanes) S::store(to, S::load(to) + sum[gate]);
      }
    }
  };
  with_gates(cell.gate_count, [&]<int gates> {
    for_each_block<Real>(t.units, t.span,
                         [&]<class S>(const BlockRange& block) { sum_block.template operator()<S, gates>(block); });
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
