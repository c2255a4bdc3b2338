// h as a projection, h = w_hr u, of what a cell makes, u [B,H]: a product after the pointwise parts of a step. It is as
// if a layer of P units with one gate and no activation came after the cell in each step, and its products are those of
// such a layer: dh, all that reaches h, is its dgates.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/products/pairs.h"
#include "kernels/products/quantized.h"
#include "kernels/products/rows.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/chunks.h"
#include "kernels/time/windows.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

// h = w_hr u, for an item's elements of h; u is in the place of h'. Joined members meet before, as each needs all of u.
template <class Real>
void project_h(const Panels<const Real>& w_hr, const ColumnScales<const Real>& scales, const ForwardStep<Real>& s,
               const Item& item, const View<Real>& h, const Team& team) {
  if constexpr (has_formats<Real>)
    if (scales.scales) return multiply_quantized_rows(s.quantized_h, w_hr, scales, h, s.rows, item.of_h);
  multiply_rows(
      RowProduct<Real>{
          .x = s.h, .w = w_hr, .b = nullptr, .y = h, .rows = s.rows, .columns = item.of_h, .backwards = s.backwards},
      team);
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// The rows of a chunk's steps by twos, each step beginning anew; returns their number.
template <class Real>
Index pair_rows_of(const Problem& p, const Chunk& chunk, const Gates<Real>& gates, const Blocks& units, Span span,
                   int slots, const Gates<Real>& to) {
  Index place = 0;
  for (Index t = chunk.t; t < chunk.t + chunk.steps; ++t) {
    const RowRange rows = {.first = row_of(p, t) - chunk.first_row, .count = rows_at(p, t)};
    pair_rows(gates, units, span, slots, rows, place, to);
    place += (rows.count + 1) / 2;
  }
  return place;
}

template <class Real>
struct ProjectionScratch {
  Blocks of_h;                  // no blocks where h is no projection
  GateRows<const Real> caller;  // w_hr as the caller has it, where few rows need no panels; else null
  TransposedPanels<Real> w_hr;
  Panels<Real> dw_hr;
  Columns<Real> u;               // of one chunk
  Gates<Real> dh;                // of one chunk
  Gates<Real> pairs, row_pairs;  // of dh, as those of dgates
  Real* du;                      // [B,H], of each window
};

template <class Real>
ProjectionScratch<Real> lay_out_projection(const Problem& p, bool packs, const Windows& windows, Arena<Real>& arena) {
  if (!is_projected(p)) return {};
  const Blocks units = blocks_of<Real>(p.H), of_h = projected_blocks<Real>(p);
  const Index rows = most_chunk_rows(p), row_pairs = most_row_pairs(p);
  ProjectionScratch<Real> s = {.of_h = of_h,
                               .caller = {},
                               .w_hr = {.data = nullptr, .columns = units, .units = of_h, .gates = 1},
                               .dw_hr = {.data = nullptr, .units = of_h, .K = p.H, .gates = 1},
                               .u = {.data = nullptr,
                                     .count = p.H + 1,
                                     .rows = p.rounded ? row_pairs : rows,
                                     .width = most_rows(unit_blocks_of(1)),
                                     .rounds = p.rounded},
                               .dh = {.data = take(arena, gates_size(1, rows, of_h)), .rows = rows},
                               .pairs = {},
                               .row_pairs = {},
                               .du = take(arena, most_deltas(windows) * p.B * p.H)};
  s.w_hr.rounds = p.rounded;
  if (p.rounded) {
    s.pairs = {.data = take(arena, gates_size(1, rows, of_h) / 2), .rows = rows};
    s.row_pairs = {.data = take(arena, gates_size(1, row_pairs, of_h)), .rows = row_pairs};
  }
  s.w_hr.data = take(arena, packs * size(s.w_hr));
  s.dw_hr.data = take(arena, packs * size(s.dw_hr));
  s.u.data = take(arena, packs * size(s.u));
  return s;
}

// du = dh w_hr, where dh is what comes from the step after this one and what a loss brings. What remains of the step is
// the cell's own. False: the call was interrupted.
template <class Real, class StepWindowsOrWhole>
bool backward_projection(const ProjectionScratch<Real>& scratch, const Gates<Real>& pairs, BackwardStep<Real>& s,
                         const StepWindowsOrWhole& windows, const Item& item, const Team& team) {
  const Index rows = windows.count * s.rows;
  for (Index window = 0; window < windows.count; ++window) {
    const BackwardStep<Real>& one = window_of(s, windows, window);
    for_each_block<Real>(scratch.of_h, item.of_h, [&]<class S>(const BlockRange& range) {
      for (Index row = 0; row < s.rows; ++row) {
        const auto load = [&](const auto& view) { return load_lanes<S>(at(view, row).data + range.unit, range.valid); };
        store_lanes<S>(gates_at(s.dh, range.unit, one.dgate_row + row, S::lanes, 1), load(one.dstate[0]) + load(one.dy),
                       range.valid);
      }
    });
  }
  const bool rounds = scratch.w_hr.rounds;
  if (rounds)
    pair_neighbours(s.dh, scratch.of_h, item.of_h, 1, 0, 1, RowRange{.first = s.dgate_row, .count = rows}, pairs);
  if (!meet(item, team)) return false;
  s.dstate[0] = s.du;
  const Product<Real> product = {.dgates = rounds ? pairs : s.dh,
                                 .gate_row = s.dgate_row,
                                 .init = {},
                                 .out = s.du,
                                 .rows = rows,
                                 .columns = s.units,
                                 .backwards = s.backwards};
  const Factor factor = {.slot = 0, .gate = 0, .gates = 1};
  if (scratch.caller.data)
    multiply_unpacked(product, factor, 1, scratch.caller, team);
  else
    multiply(product, 1, factor, scratch.w_hr, team);
  return true;
}

// Weights as the products read them, and the gradients that others are added to.
template <class Real>
void prepare_projections(const BackwardArgs<Real>& args, const ProjectionScratch<Real> (&scratch)[2],
                         const Team& team) {
  const Problem& p = args.problem;
  constexpr Index lanes = Widest<Real>::lanes;
  for_my_pieces(group_count(scratch[0].w_hr.columns), p.D, group_of_columns * lanes * p.P, team, [&](int d, Span span) {
    pack_transposed(projection_rows(p, args.directions[d].parameters), scratch[d].w_hr, span);
  });
  if (args.accumulate)
    for_my_pieces(count(scratch[0].of_h), p.D, lanes * p.H, team, [&](int d, Span span) {
      pack(read_only(projection_rows(p, args.directions[d].gradients)), scratch[d].dw_hr, 0, span);
    });
}

// The gradient of w_hr of few rows, all at once.
template <class Real>
void unpacked_projection_gradient(const BackwardArgs<Real>& args, const ProjectionScratch<Real>& scratch, int d,
                                  Span span, const Team& team) {
  const Problem& p = args.problem;
  const BackwardDirection<Real>& direction = args.directions[d];
  UnpackedWeightProduct<Real> product = {.dgates = scratch.dh,
                                         .slots = 1,
                                         .slot = 0,
                                         .gate = 0,
                                         .gates = 1,
                                         .columns = {},
                                         .rows = run_rows(p),
                                         .dw = projection_rows(p, direction.gradients),
                                         .db = nullptr,
                                         .add = args.accumulate};
  for (Index row = 0; row < product.rows; ++row)
    product.columns[row] = at(direction.tape.states[0], row_of(p, p.run.first) + row).data;
  multiply_gradients(product, span, team);
}

// Adds the gradients of w_hr of a chunk to those of the chunks after it.
template <class Real>
void projection_gradients(const BackwardArgs<Real>& args, const ProjectionScratch<Real> (&scratch)[2],
                          const Chunk (&chunk)[2], const Team& team) {
  for_my_blocks(count(scratch[0].of_h), args.problem.D, team, [&](int d, Span span) {
    if (scratch[d].caller.data) return unpacked_projection_gradient(args, scratch[d], d, span, team);
    WeightProduct<Real> product = {.dgates = scratch[d].dh,
                                   .columns = scratch[d].u,
                                   .dw = scratch[d].dw_hr,
                                   .slots = 1,
                                   .slot = 0,
                                   .gate = 0,
                                   .gates = 1,
                                   .rows = chunk[d].rows,
                                   .add = !chunk[d].first || args.accumulate};
    if (args.problem.rounded)
      product.dgates = scratch[d].row_pairs,
      product.rows = pair_rows_of(args.problem, chunk[d], scratch[d].dh, scratch[d].of_h, span, 1, product.dgates);
    --product.columns.count;  // there is no bias
    add_products(product, span, team);
  });
}

template <class Real>
void unpack_projections(const BackwardArgs<Real>& args, const ProjectionScratch<Real> (&scratch)[2], const Team& team) {
  for_my_blocks(count(scratch[0].of_h), args.problem.D, team, [&](int d, Span span) {
    unpack(scratch[d].dw_hr, 0, projection_rows(args.problem, args.directions[d].gradients), span);
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
