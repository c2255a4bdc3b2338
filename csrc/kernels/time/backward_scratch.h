// The memory of a backward, beside the tape: weights as its products read them, gradients as they make them, and what
// steps and chunks leave for what follows.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/chunks.h"
#include "kernels/time/norm.h"
#include "kernels/time/projection.h"
#include "kernels/time/sequence.h"
#include "kernels/time/windows.h"
#include "kernels/time/zoneout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
struct BackwardScratch {
  struct Direction {
    // Few rows need no panels, but the caller's matrices; where they are null, weights and gradients are packed.
    GateRows<const Real> unpacked_w_ih, unpacked_w_hh;
    TransposedPanels<Real> w_ih, w_hh;
    Panels<Real> thin_w_ih;              // instead of w_ih
    Panels<Real> dw_ih, dw_hh;           // the last row is that of the bias
    Columns<Real> x, reset_h;            // of one chunk; x of tokens: of the embedding
    Columns<Real> h_before[most_gates];  // of one chunk, for each mask
    Real* vectors;                       // [unit block][vector x lanes]
    Gates<Real> dgates, dvectors;        // of one chunk
    Gates<Real> pairs;                   // of dgates as they are, neighbours by twos; where products are rounded
    Gates<Real> row_pairs;               // the same, but rows by twos
    Gates<Real> table;                   // dgates summed by token
    Real* dreset_h;                      // [B,H], of each window
    Real* dropped;                       // [B,H], what is to meet factors
    Real* mixed[most_states];            // the state before a step, [B,H], where some rows start anew
    Made<Real> dmade;
    Gates<Real> dinner, sums;  // where rows are normalised: of `inner`, [B] rows; of gains and biases, of one chunk
    View<Real> dx;             // of the run's rows: the caller's for the first direction, own memory for the second;
                               // of tokens [U,I], own memory
  } directions[2];
  ProjectionScratch<Real> projections[2];
  WindowScratch<Real> windows;
  Real* zeros;
};

// Whether rows are few, all of one chunk: the products of all of them, dx and the gradients of the weights, then meet
// matrices as the caller has them. Those of the steps, each of which reads w_hh, do where it is read a few times.
constexpr bool has_few_rows(const Problem& p, const Windows& windows) {
  return !windows.k1 && !p.rounded && p.head == p.P && !p.masks && p.input == InputKind::dense &&
         run_rows(p) <= most_unpacked_rows && run_chunks(p) == 1;
}

constexpr bool reads_unpacked(const Problem& p, const Windows& windows) {
  return has_few_rows(p, windows) && (steps_of(p.run) <= few_unpacked_steps || run_rows(p) <= least_unpacked_rows);
}

constexpr bool is_unpacked(const Problem& p, const Windows& windows) {
  return is_projected(p) ? reads_unpacked(p, windows) : has_few_rows(p, windows);
}

template <class Real>
BackwardScratch<Real> lay_out_backward(const Problem& p, View<Real> dx, bool need_dx, const Windows& windows,
                                       Arena<Real>& arena) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H), inputs = blocks_of<Real>(p.I);
  const bool dense = p.input == InputKind::dense, packs = !is_unpacked(p, windows);
  const bool packs_w_hh = !reads_unpacked(p, windows);
  BackwardScratch<Real> s = {};
  for (Index d = 0; d < p.D; ++d) {
    auto& direction = s.directions[d];
    direction.w_hh = {.data = nullptr,
                      .columns = blocks_of<Real>(p.P),
                      .units = units,
                      .gates = cell.gate_count,
                      .reach = reach_of(p.P, p.head, group_of_columns * Widest<Real>::lanes),
                      .rounds = p.rounded};
    direction.w_hh.data = take(arena, packs_w_hh * size(direction.w_hh));
    if (need_dx) {
      direction.thin_w_ih = {.data = nullptr, .units = units, .K = has_thin_dx(p) ? p.I : 0, .gates = cell.gate_count};
      direction.thin_w_ih.data = take(arena, size(direction.thin_w_ih));
      direction.w_ih = {
          .data = nullptr, .columns = has_thin_dx(p) ? Blocks{} : inputs, .units = units, .gates = cell.gate_count};
      direction.w_ih.rounds = p.rounded && dense;
      direction.w_ih.data = take(arena, packs * size(direction.w_ih));
      direction.dx = d == 0 && dense ? dx : View<Real>{take(arena, (dense ? run_rows(p) : p.U) * p.I), p.I};
    }
    const Index I = input_columns(p), rows = most_chunk_rows(p);
    const auto gradient = [&](Panels<Real> panels) {
      panels.data = take(arena, packs * size(panels));
      return panels;
    };
    const auto columns = [&](Index K, Index count, bool rounds) {
      if (rounds) count = most_row_pairs(p);
      Columns<Real> columns = {
          .data = nullptr, .count = K + 1, .rows = count, .width = columns_of_tile(p), .rounds = rounds};
      columns.data = take(arena, packs * size(columns));
      return columns;
    };
    const auto of_columns = [&](Index K) {
      return Panels<Real>{.data = nullptr, .units = units, .K = K + 1, .gates = cell.gate_count};
    };
    direction.dw_ih = gradient(of_columns(I));
    direction.dw_hh = gradient(p.head == p.P ? of_columns(p.P) : head_gradients<Real>(p, units));
    if (p.input == InputKind::embedded)
      direction.x = columns(I, p.U, false);
    else
      direction.x = columns(I, rows, p.rounded);
    for (int mask = 0; mask < max_index(p.masks, 1); ++mask) direction.h_before[mask] = columns(p.P, rows, p.rounded);
    if (p.masks) direction.dropped = take(arena, p.B * p.H);
    if (resets_h(cell)) direction.reset_h = columns(p.H, rows, p.rounded);
    direction.vectors = take(arena, gates_size(cell.vector_count, 1, units));
    direction.dvectors = {.data = take(arena, gates_size(row_vectors(cell), rows, units)), .rows = rows};
    direction.dinner = {.data = take(arena, gates_size(cell.stage_count > 1, p.B, units)), .rows = p.B};
    direction.sums = {.data = take(arena, gates_size(sum_count(cell), sum_rows(p), units)), .rows = sum_rows(p)};
    direction.dgates = {.data = take(arena, gates_size(cell.slot_count, rows, units)), .rows = rows};
    if (p.rounded) {
      direction.pairs = {.data = take(arena, gates_size(cell.slot_count, rows, units) / 2), .rows = rows};
      direction.row_pairs.rows = most_row_pairs(p);
      direction.row_pairs.data = take(arena, gates_size(cell.slot_count, most_row_pairs(p), units));
    }
    direction.table = {.data = take(arena, gates_size(cell.slot_count, p.U, units)), .rows = p.U};
    if (resets_h(cell)) direction.dreset_h = take(arena, most_deltas(windows) * p.B * p.H);
    s.projections[d] = lay_out_projection(p, packs, windows, arena);
    for (int i = 0; i < cell.state_count && p.starts[d]; ++i) direction.mixed[i] = take(arena, p.B * state_size(p, i));
    direction.dmade = lay_out_made(p, arena);
  }
  s.zeros = take(arena, p.H);
  s.windows = lay_out_windows(p, windows, s.zeros, arena);
  return s;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
