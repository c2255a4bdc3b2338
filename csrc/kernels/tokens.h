// Input that is tokens, rows of an embedding or of the identity. What a token brings to the gates, bias + w_ih x, is
// the same wherever it stands: a table has a row of it for each token that occurs, laid out as the gates are, and a
// step's product starts from the rows of its tokens. Backward sums dgates by token into a table of the same layout. Its
// rows are to the gradients of w_ih and of the embedding what those of a chunk are where x is dense; of a one-hot x
// they are columns of dw_ih.
#pragma once

#include "products.h"

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
template <class Cell, class Real>
void fill(const TableBlocks<Real>& t, const Real* row) {
  for_each_block<Real, 1>(t.units, t.span, [&]<class S, int>(BlockRange range) {
    Real* to = gates_at<S, Cell::slots>(t.table, range.unit, 0);
    for (Index k = 0; k < t.table.rows; ++k)
      for (int slot = 0; slot < Cell::slots; ++slot, to += S::lanes)
        S::store(to, row ? S::load(row + range.unit * Cell::slots + slot * S::lanes) : typename S::V{});
  });
}

// f(element, w) for the columns of w that are rows of the table.
template <class Cell, class Real, class W, class F>
void for_each_column(const TableBlocks<Real>& t, const GateRows<W>& w, const Index* token, F&& f) {
  constexpr Index rows_at_once = 64;  // stay in the first cache level while gate after gate is written
  constexpr int gates = Cell::gates, slots = Cell::slots;
  for_each_block<Real, 1>(t.units, t.span, [&]<class S, int>(BlockRange range) {
    for (Index first = 0; first < t.table.rows; first += rows_at_once) {
      const Index last = min_index(first + rows_at_once, t.table.rows);
      for (int gate = 0; gate < gates; ++gate)
        for (int lane = 0; lane < range.valid; ++lane) {
          W* const from = w.data + (w.order[gate] * w.H + range.unit + lane) * w.K;
          Real* element = gates_at<S, slots>(t.table, range.unit, first) + (slots - gates + gate) * S::lanes + lane;
          for (Index row = first; row < last; ++row, element += slots * S::lanes) f(*element, from[token[row]]);
        }
    }
  });
}

// Adds dgates of rows [first, first + count) of all time, one chunk, to the rows of their tokens. As in the products,
// rows descend, and a chain ends after some of them: a frequent token's gradient would lose digits in a single one.
template <class Cell, class Real>
void sum_by_token(const TableBlocks<Real>& t, const Gates<Real>& dgates, const Tokens& tokens, const RowRange& range) {
  constexpr int gates = Cell::gates, slots = Cell::slots;
  const Index chains = chain_count(range.count), length = (range.count + chains - 1) / chains;
  for_each_block<Real, 1>(t.units, t.span, [&]<class S, int>(BlockRange block) {
    constexpr int shift = (slots - gates) * S::lanes;
    for (Index high = range.first + range.count; high > range.first; high -= length) {
      const Index low = max_index(high - length, range.first);
      for (Index last = high - 1; last >= low; --last) {
        if (tokens.later[last] < high) continue;  // one of that chain
        typename S::V sum[gates] = {};
        for (Index row = last; row >= low; row = tokens.earlier[row]) {
          const Real* from = gates_at<S, slots>(dgates, block.unit, row - range.first) + shift;
#pragma GCC unroll 4
          for (int gate = 0; gate < gates; ++gate) sum[gate] = sum[gate] + S::load(from + gate * S::lanes);
        }
        Real* to = gates_at<S, slots>(t.table, block.unit, tokens.number[last]) + shift;
#pragma GCC unroll 4
        for (int gate = 0; gate < gates; ++gate, to += S::lanes) S::store(to, S::load(to) + sum[gate]);
      }
    }
  });
}

// A member's rows of a table, in pieces that stay in the cache while unit block after unit block is computed.
template <class F>
RNNFAST_INLINE void for_my_rows(Index rows, const Team& team, F&& f) {
  constexpr Index at_once = 256;
  const Index last = share(rows, team.rank + 1, team.size);
  for (Index first = share(rows, team.rank, team.size); first < last; first += at_once) {
    if (team.interrupted(team)) return;
    f(RowRange{first, min_index(at_once, last - first)});
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
