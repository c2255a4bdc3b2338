// The gradients of the weights, from the dgates of a chunk or of a table of tokens, once backward has been through it.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/products/pairs.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/backward_scratch.h"
#include "kernels/time/chunks.h"
#include "kernels/time/dropout.h"
#include "kernels/time/norm.h"
#include "kernels/time/projection.h"
#include "kernels/time/sequence.h"
#include "kernels/time/tokens.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
__attribute__((noinline)) void multiply_input(const CellShape& cell, const Product<Real>& dx,
                                              const typename BackwardScratch<Real>::Direction& scratch,
                                              const Team& team) {
  const Factor factor = {.slot = cell.slot_count - cell.gate_count, .gate = 0, .gates = cell.gate_count};
  if (scratch.thin_w_ih.K)
    with_gates(cell.gate_count, [&]<int gates> { multiply_thin<gates>(dx, cell.slot_count, scratch.thin_w_ih, team); });
  else if (scratch.unpacked_w_ih.data)
    multiply_unpacked(dx, factor, cell.slot_count, scratch.unpacked_w_ih, team);
  else
    multiply(dx, cell.slot_count, factor, scratch.w_ih, team);
}

// Regroups the rows of a step by twos, where products are rounded.
template <class Real>
__attribute__((noinline)) void regroup_rounded(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole,
                                               const StateBefore<Real>& before_h, const Chunk& chunk, Index t) {
  const Problem& p = args.problem;
  const BackwardDirection<Real>& direction = args.directions[chunk.direction];
  const auto& scratch = whole.directions[chunk.direction];
  const Index place = row_pairs(p, Steps{.first = chunk.t, .last = t}), row = row_of(p, t), rows = rows_at(p, t);
  const auto regroup_rows = [&](const View<const Real>& a, const Columns<Real>& to) {
    RegroupedPairs<Real> pairs = {.to = to, .place = place};
    regroup(a, rows, View<const Real>{}, pairs);
    regroup_pair(pairs, FactoredRow<Real>{});
  };
  if (p.input != InputKind::embedded) regroup_rows(at(args.x, row), scratch.x);
  if (resets_h(*p.cell)) {
    const View<const Real> reset_h = {direction.tape.reset_h, p.H};
    regroup_rows(at(reset_h, row), scratch.reset_h);
  }
  if (is_projected(p)) regroup_rows(at(direction.tape.states[0], row), whole.projections[chunk.direction].u);
  for (int mask = 0; mask < max_index(p.masks, 1); ++mask) {
    RegroupedPairs<Real> pairs = {.to = scratch.h_before[mask], .place = place};
    for_each_piece(p, chunk.direction, before_h, t, {.first = 0, .count = rows},
                   [&](View<const Real> piece, const RowRange& range) {
                     View<const Real> factors = {};
                     if (p.masks) factors = of_mask(at(direction.factors, range.first), mask, p.H);
                     regroup(piece, range.count, factors, pairs);
                   });
    regroup_pair(pairs, FactoredRow<Real>{});
  }
}

// Regroups the left operands of a chunk's weight gradients, this member's share of the steps.
template <class Real>
void regroup_chunk(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Chunk& chunk,
                   const Team& team) {
  const Problem& p = args.problem;
  const BackwardDirection<Real>& direction = args.directions[chunk.direction];
  const auto& scratch = whole.directions[chunk.direction];
  const StateBefore<Real> before_h = place_before<Real>(direction, 0, whole.zeros);
  const Steps steps = {.first = chunk.t + share(chunk.steps, team.rank, team.size),
                       .last = chunk.t + share(chunk.steps, team.rank + 1, team.size)};
  if (p.rounded) {
    for (Index t = steps.first; t < steps.last; ++t) regroup_rounded(args, whole, before_h, chunk, t);
    return;
  }
  const Index row = row_of(p, steps.first), first = row_of(p, chunk.t);
  const RowRange rows = {.first = row - first, .count = row_of(p, steps.last) - row};
  if (p.input != InputKind::embedded) regroup(at(args.x, row), rows, scratch.x, team);
  const View<const Real> reset_h = {direction.tape.reset_h, p.H};
  if (resets_h(*p.cell)) regroup(at(reset_h, row), rows, scratch.reset_h, team);
  if (is_projected(p)) regroup(at(direction.tape.states[0], row), rows, whole.projections[chunk.direction].u, team);
  // Rows of h' that follow each other in memory pass as one run, of however many steps.
  View<const Real> run = {};
  RowRange of_run = {};
  for (Index t = steps.first; t < steps.last; ++t)
    for_each_piece(p, chunk.direction, before_h, t, {.first = 0, .count = rows_at(p, t)},
                   [&](View<const Real> piece, const RowRange& range) {
                     const RowRange to = {.first = row_of(p, t) - first + range.first, .count = range.count};
                     if (p.masks) {
                       regroup_dropped(p, piece, at(direction.factors, range.first), to, scratch.h_before, team);
                     } else if (piece.stride == run.stride && piece.data == at(run, of_run.count).data) {
                       of_run.count += to.count;
                     } else {
                       regroup(run, of_run, scratch.h_before[0], team);
                       run = piece, of_run = to;
                     }
                   });
  regroup(run, of_run, scratch.h_before[0], team);
}

// Adds the weight gradients of a chunk to those of the chunks after it. The biases' are the last columns.
template <class Real>
void weight_gradients(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Chunk& chunk, Span span,
                      const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const int masks = p.masks;
  const auto& scratch = whole.directions[chunk.direction];
  WeightProduct<Real> product = {};
  product.dgates = scratch.dgates;
  product.rows = chunk.rows;
  if (p.rounded) {
    product.dgates = scratch.row_pairs;
    product.rows = pair_rows_of(p, chunk, scratch.dgates, scratch.w_hh.units, span, cell.slot_count, product.dgates);
  }
  product.add = !chunk.first || args.accumulate;
  product.columns = scratch.x, product.dw = scratch.dw_ih;
  product.slots = cell.slot_count, product.slot = cell.slot_count - cell.gate_count, product.gates = cell.gate_count;
  if (p.input != InputKind::embedded) add_products(product, span, team);
  product.dw = scratch.dw_hh;
  for (int phase = 0; phase < cell.phase_count; ++phase) {
    const Phase& part = cell.phases[phase];
    product.gates = gates_at_once(masks, part);
    for (int i = 0; i < part.gates; i += product.gates) {
      product.slot = part.slot + i, product.gate = part.gate + i;
      product.columns = part.reset_h ? scratch.reset_h : scratch.h_before[mask_of(cell, masks, product.gate)];
      if (p.head == p.P)
        add_products(product, span, team);
      else
        add_head_products(product, span, team);
    }
  }
}

// The same of few rows, all at once.
template <class Real>
__attribute__((noinline)) void unpacked_weight_gradients(const BackwardArgs<Real>& args,
                                                         const BackwardScratch<Real>& whole, int d, Span span,
                                                         const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const BackwardDirection<Real>& direction = args.directions[d];
  const StateBefore<Real> before_h = place_before<Real>(direction, 0, whole.zeros);
  const View<const Real> reset_h = {direction.tape.reset_h, p.H};
  const Index first = row_of(p, p.run.first);
  UnpackedWeightProduct<Real> product = {};
  product.dgates = whole.directions[d].dgates;
  product.slots = cell.slot_count, product.slot = cell.slot_count - cell.gate_count, product.gates = cell.gate_count;
  product.rows = run_rows(p), product.add = args.accumulate;
  for (Index row = 0; row < product.rows; ++row) product.columns[row] = at(args.x, first + row).data;
  const bool sums_biases = !is_normalised(cell);
  product.dw = input_rows(p, direction.gradients), product.db = sums_biases ? direction.gradients.b_ih : nullptr;
  multiply_gradients(product, span, team);
  product.dw = recurrent_rows(p, direction.gradients), product.db = sums_biases ? direction.gradients.b_hh : nullptr;
  for (int phase = 0; phase < cell.phase_count; ++phase) {
    const Phase& part = cell.phases[phase];
    for (Index t = p.run.first; t < p.run.last; ++t) {
      const Real** const columns = product.columns + (row_of(p, t) - first);
      for_each_piece(p, d, before_h, t, {.first = 0, .count = rows_at(p, t)},
                     [&](View<const Real> piece, const RowRange& range) {
                       for (Index row = 0; row < range.count; ++row)
                         columns[range.first + row] =
                             part.reset_h ? at(reset_h, row_of(p, t) + range.first + row).data : at(piece, row).data;
                     });
    }
    product.slot = part.slot, product.gate = part.gate, product.gates = part.gates;
    multiply_gradients(product, span, team);
  }
}

// Members that divide a few rows would each read all of w_ih.
constexpr Span my_columns(Span columns, const Team& team) {
  return {.first = share(columns.last, team.rank, team.size), .last = share(columns.last, team.rank + 1, team.size)};
}

// The gradients that follow from a table at the end of time: those of an embedding and of w_ih as from the dgates of a
// chunk where x is dense, or columns of dw_ih.
template <class Real>
bool table_gradients(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const bool embedded = p.input == InputKind::embedded;
  if (embedded)
    for_my_rows(p.U, team, [&](const RowRange& range) {
      for (Index d = 0; d < p.D; ++d) {
        const auto& scratch = whole.directions[d];
        for (Index row = range.first; row < range.first + range.count; ++row) {
          regroup(at(args.x, args.tokens.token[row]), RowRange{.first = row, .count = 1}, scratch.x, team);
          if (p.rounded) round_row(scratch.x, row);
        }
        if (!args.dx.data) continue;
        const Product<Real> dx = {.dgates = scratch.table,
                                  .gate_row = range.first,
                                  .init = {},
                                  .out = at(scratch.dx, range.first),
                                  .rows = range.count,
                                  .columns = all(scratch.w_ih.columns)};
        multiply_input(cell, dx, scratch, team);
      }
    });
  if (!team.barrier(team)) return false;
  const Index numbers =
      embedded ? 0 : cell.gate_count * Widest<Real>::lanes * p.U;  // of a block; products ask by themselves
  for_my_pieces(count(whole.directions[0].w_hh.units), p.D, numbers, team, [&](int d, Span span) {
    const auto& scratch = whole.directions[d];
    if (embedded)
      add_products(WeightProduct<Real>{.dgates = scratch.table,
                                       .columns = scratch.x,
                                       .dw = scratch.dw_ih,
                                       .slots = cell.slot_count,
                                       .slot = cell.slot_count - cell.gate_count,
                                       .gate = 0,
                                       .gates = cell.gate_count,
                                       .rows = p.U,
                                       .add = args.accumulate},
                   span, team);
    else
      columns_from(TableBlocks<Real>{.table = scratch.table, .units = scratch.w_hh.units, .span = span}, cell,
                   input_rows(p, args.directions[d].gradients), args.tokens.token);
  });
  return true;
}

// f(gradient, panels, its first row in them) for each gradient that is asked for.
template <class Real, class F>
RNNFAST_INLINE void for_each_gradient(const Problem& p, const Parameters<Real>& gradients,
                                      const typename BackwardScratch<Real>::Direction& scratch, F&& f) {
  const Index I = input_columns(p);
  const auto bias = [&](Real* data, const int* order) {
    return GateRows<Real>{.data = data, .H = p.H, .K = 1, .order = order};
  };
  if (I > 0) f(input_rows(p, gradients), scratch.dw_ih, 0);
  f(recurrent_rows(p, gradients), scratch.dw_hh, 0);
  if (is_normalised(*p.cell)) return;  // their biases come after
  if (gradients.b_ih) f(bias(gradients.b_ih, p.cell->input_gates), scratch.dw_ih, I);
  if (gradients.b_hh) f(bias(gradients.b_hh, p.cell->recurrent_gates), scratch.dw_hh, bias_row(p, scratch.dw_hh));
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
