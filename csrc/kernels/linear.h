// The affine map y = x w^T + b and its gradients, through the microkernel: the readout of a network.
#pragma once

#include "layout.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

template <class Real>
Panels<Real> linear_panels(const LinearSize& size, Real* data) {
  return {data, blocks_of<Real>(size.O), size.I, 1};
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
  for_my_blocks(count(w.units), 1, team, [&](int, Span span) { pack(args.w, args.size.O, order, w, span); });
  if (!team.barrier(team)) return;
  const Index last = share(N, team.rank + 1, team.size);
  for (Index row = share(N, team.rank, team.size); row < last; row += linear_rows) {
    const Index rows = min_index(linear_rows, last - row);
    const View<const Real> x = at(args.x, row);
    const View<Real> y = at(args.y, row);
    for_each_unit_block<Real, 1>(w.units, rows, [&]<class S, int NB>(BlockRange range) {
      Tile<Real> t = {};
      t.first = {x.data, x.stride, 1, 0, panel(w, range.unit), I * S::lanes, S::lanes, 0, I, 1};
      if (args.b) t.init = args.b + range.unit, t.init_unit = S::lanes;
      t.out = y.data + range.unit, t.out_row = y.stride, t.out_unit = S::lanes;
      t.valid = range.valid;
      tile_rows<S, NB, 1, 1>(t, rows, NoEpilogue());
    });
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

template <class Real>
struct LinearBackwardScratch {
  Real *w, *x;  // panels of the columns of w, and of those of the rows of x that are summed up next
};

template <class Real>
LinearBackwardScratch<Real> lay_out_linear_backward(const LinearSize& size, Arena<Real>& arena) {
  const Index columns = blocks_of<Real>(size.I).units;
  Real* w = take(arena, columns * size.O);
  return {w, take(arena, columns * chain_length)};
}

// The columns of a [rows,N] as panels [block of N][row][lanes], for the blocks of the span.
template <class Real>
void pack_columns(const View<const Real>& a, Index rows, const Blocks& columns, Span span, Real* panels) {
  for_each_block<Real, 1>(columns, span, [&]<class S, int>(BlockRange range) {
    const Real* from = a.data + range.unit;
    Real* to = panels + range.unit * rows;
    for (Index row = 0; row < rows; ++row, from += a.stride, to += S::lanes)
      S::store(to, load_lanes<S>(from, range.valid));
  });
}

// db (+)= the sum of `rows` rows of dy, for the blocks of the span.
template <class Real>
void sum_columns(const View<const Real>& dy, Index rows, const Blocks& columns, Span span, Real* db, bool add) {
  for_each_block<Real, 1>(columns, span, [&]<class S, int>(BlockRange range) {
    typename S::V sum = {};
    for (Index row = 0; row < rows; ++row)
      sum = sum + load_lanes<S>(dy.data + row * dy.stride + range.unit, range.valid);
    if (add) sum = sum + load_lanes<S>(db + range.unit, range.valid);
    store_lanes<S>(db + range.unit, sum, range.valid);
  });
}

// A member takes columns of w, x, dw and dx, and elements of db; all rows pass it in chains of ascending order.
template <class Real>
void linear_backward(const LinearBackwardArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Index N = args.size.N, I = args.size.I, O = args.size.O;
  Arena<Real> arena = {args.scratch, 0};
  const LinearBackwardScratch<Real> scratch = lay_out_linear_backward(args.size, arena);
  const Blocks columns = blocks_of<Real>(I), outputs = blocks_of<Real>(O);
  const auto part = [&](const Blocks& blocks) {
    return Span{share(count(blocks), team.rank, team.size), share(count(blocks), team.rank + 1, team.size)};
  };
  if (args.dx.data) pack_columns({args.w, I}, O, columns, part(columns), scratch.w);
  Index row = 0;
  do {  // once at least, so that a sum of no rows is 0
    const Index rows = min_index(chain_length, N - row);
    const bool add = row > 0 || args.accumulate;
    const View<const Real> dy = at(args.dy, row);
    pack_columns(at(args.x, row), rows, columns, part(columns), scratch.x);
    for_each_block<Real, unit_group(1, false)>(columns, part(columns), [&]<class S, int NB>(BlockRange range) {
      Tile<Real> t = {};
      t.first = {dy.data, 1, dy.stride, 0, scratch.x + range.unit * rows, rows * S::lanes, S::lanes, 0, rows, 1};
      t.out = args.dw + range.unit, t.out_row = I, t.out_unit = S::lanes;
      t.valid = range.valid;
      t.add = add;
      tile_column<S, NB, 1, 1>(t, O, NoEpilogue());
      if (!args.dx.data) return;
      t.first = {dy.data, dy.stride, 1, 0, scratch.w + range.unit * O, O * S::lanes, S::lanes, 0, O, 1};
      t.out = at(args.dx, row).data + range.unit, t.out_row = args.dx.stride;
      tile_rows<S, NB, 1, 1>(t, rows, NoEpilogue());
    });
    if (args.db) sum_columns(dy, rows, outputs, part(outputs), args.db, add);
    row += rows;
  } while (row < N);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
