// The affine map y = x w^T + b and its gradients, through the microkernel: the readout of a network.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/products/rows.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The blocks that a member takes.
RNNFAST_INLINE Span my_blocks(const Blocks& blocks, const Team& team) {
  return {.first = share(count(blocks), team.rank, team.size), .last = share(count(blocks), team.rank + 1, team.size)};
}

// ---- Forward -------------------------------------------------------------------------------------------------------

template <class Real>
Panels<Real> linear_panels(const LinearSize& size, Real* data) {
  return {.data = data, .units = blocks_of<Real>(size.O), .K = size.I, .gates = 1};
}

// Rows that pass over all of w before the next ones: beside the panels they stay in the second cache level.
constexpr Index linear_rows = 192;

// A member takes rows, once all of w is packed.
template <class Real>
void linear(const LinearArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Index N = args.size.N, I = args.size.I;
  const Panels<Real> w = linear_panels(args.size, args.scratch);
  constexpr int order[] = {0};
  pack({.data = args.w, .H = args.size.O, .K = I, .order = order}, w, 0, my_blocks(w.units, team));
  if (!team.barrier(team)) return;
  const Index last = share(N, team.rank + 1, team.size);
  for (Index row = share(N, team.rank, team.size); row < last; row += linear_rows) {
    const Index rows = min_index(linear_rows, last - row);
    multiply_rows(RowProduct<Real>{.x = at(args.x, row),
                                   .w = read_only(w),
                                   .b = args.b,
                                   .y = at(args.y, row),
                                   .rows = rows,
                                   .columns = all(w.units)},
                  team);
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

template <class Real>
struct LinearBackwardScratch {
  Panels<Real> w, x;  // of the columns of w, and of those of the rows of x that are summed up next
};

template <class Real>
LinearBackwardScratch<Real> lay_out_linear_backward(const LinearSize& n, Arena<Real>& arena) {
  const Blocks columns = blocks_of<Real>(n.I);
  LinearBackwardScratch<Real> s = {.w = {.data = nullptr, .units = columns, .K = n.O, .gates = 1},
                                   .x = {.data = nullptr, .units = columns, .K = chain_length, .gates = 1}};
  s.w.data = take(arena, size(s.w));
  s.x.data = take(arena, size(s.x));
  return s;
}

// The columns of a [rows,N] as panels [block of N][row][lanes], for the blocks of the span; at most p.K rows.
template <class Real>
void pack_columns(const View<const Real>& a, Index rows, const Panels<Real>& p, Span span) {
  for_each_block<Real>(p.units, span, [&]<class S>(const BlockRange& range) {
    const Real* from = a.data + range.unit;
    Real* to = panel(p, range.unit);
    for (Index row = 0; row < rows; ++row, from += a.stride, to += S::lanes)
      S::store(to, load_lanes<S>(from, range.valid));
  });
}

// Whether the sums over the rows from `row` on are added to what is in dw and db.
template <class Real>
constexpr bool adds(const LinearBackwardArgs<Real>& args, Index row) {
  return row > 0 || args.accumulate;
}

// db (+)= the sum of rows [row, row + rows) of dy.
template <class Real>
void bias_gradient(const LinearBackwardArgs<Real>& args, Index row, Index rows, const Team& team) {
  const Blocks outputs = blocks_of<Real>(args.size.O);
  for_each_block<Real>(outputs, my_blocks(outputs, team), [&]<class S>(const BlockRange& range) {
    typename S::V sum = {};
    for (Index r = row; r < row + rows; ++r) sum = sum + load_lanes<S>(at(args.dy, r).data + range.unit, range.valid);
    Real* db = args.db + range.unit;
    store_lanes<S>(db, adds(args, row) ? sum + load_lanes<S>(db, range.valid) : sum, range.valid);
  });
}

// A member takes columns of w, x, dw and dx, and elements of db; all rows pass it in chains of ascending order.
template <class Real>
void linear_backward(const LinearBackwardArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Index N = args.size.N, I = args.size.I, O = args.size.O;
  Arena<Real> arena = {.base = args.scratch, .used = 0};
  const LinearBackwardScratch<Real> scratch = lay_out_linear_backward(args.size, arena);
  const Blocks& columns = scratch.x.units;
  const Span mine = my_blocks(columns, team);
  if (args.dx.data) pack_columns({args.w, I}, O, scratch.w, mine);
  Index row = 0;
  do {  // once at least, so that a sum of no rows is 0
    const Index rows = min_index(chain_length, N - row);
    const View<const Real> dy = at(args.dy, row);
    pack_columns(at(args.x, row), rows, scratch.x, mine);
    for_each_range<Real>(columns, mine, unit_group(1, false), false, [&](const BlockRange& range) {
      if (skips(team, rows)) return;
      const Index lanes = range.lanes;
      const Tiles<Real> tiles = tiles_of<Real>(1, 1, range);
      Tile<Real> t = {};
      t.first = {.a = dy.data,
                 .a_row = 1,
                 .a_k = dy.stride,
                 .a_block = 0,
                 .panel = panel(scratch.x, range.unit),
                 .panel_unit = scratch.x.K * lanes,
                 .panel_k = lanes,
                 .panel_block = 0,
                 .K = rows,
                 .blocks = 1};
      t.out = args.dw + range.unit, t.out_row = I, t.out_unit = lanes;
      t.valid = range.valid;
      t.add = adds(args, row);
      tile_rows(tiles, t, O);
      if (!args.dx.data) return;
      t.first = rows_by_panels(dy, panel(scratch.w, range.unit), O, lanes);
      t.out = at(args.dx, row).data + range.unit, t.out_row = args.dx.stride;
      t.add = false;
      tile_rows(tiles, t, rows);
    });
    if (args.db) bias_gradient(args, row, rows, team);
    row += rows;
  } while (row < N);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
