// The time loop read from its end, for any cell: the mirror image of forward.h.
//
// A member of the team takes a direction and a range of the batch, or of the units, through a chunk of time; the
// products of a finished chunk are shared out among all members.
#pragma once

#include "kernels/cells/all.h"
#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/chunks.h"
#include "kernels/time/dropout.h"
#include "kernels/time/projection.h"
#include "kernels/time/sequence.h"
#include "kernels/time/tokens.h"
#include "kernels/time/windows.h"
#include "kernels/time/zoneout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
struct BackwardScratch {
  struct Direction {
    // Few rows need no panels, but the caller's matrices; where they are null, the weights are packed.
    GateRows<const Real> unpacked_w_ih, unpacked_w_hh;
    TransposedPanels<Real> w_ih, w_hh;
    Panels<Real> thin_w_ih;              // instead of w_ih
    Panels<Real> dw_ih, dw_hh;           // the last row is that of the bias
    Columns<Real> x, reset_h;            // of one chunk; x of tokens: of the embedding
    Columns<Real> h_before[most_slots];  // likewise, for each mask
    Real* vectors;                       // [unit block][vector x lanes]
    Gates<Real> dgates, dvectors;        // of one chunk
    Gates<Real> table;                   // dgates summed by token
    Real* dreset_h;                      // [B,H], of each window
    Real* dropped;                       // [B,H], what is to meet factors
    Real* mixed[most_states];            // the state before a step, [B,H], where some rows start anew
    Made<Real> dmade;
    View<Real> dx;  // of the run's rows: the caller's for the first direction, own memory for the second;
                    // of tokens [U,I], own memory
  } directions[2];
  ProjectionScratch<Real> projections[2];
  WindowScratch<Real> windows;
  Real* zeros;
};

// Whether the weights stay as the caller has them: few rows, all of one chunk.
constexpr bool is_unpacked(const Problem& p, const Windows& windows) {
  return !windows.k1 && p.head == p.P && !p.masks && p.input == InputKind::dense && run_rows(p) <= most_unpacked_rows &&
         run_chunks(p) == 1;
}

template <class Real>
BackwardScratch<Real> lay_out_backward(const Problem& p, View<Real> dx, bool need_dx, const Windows& windows,
                                       Arena<Real>& arena) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H), inputs = blocks_of<Real>(p.I);
  const bool dense = p.input == InputKind::dense, packs = !is_unpacked(p, windows);
  BackwardScratch<Real> s = {};
  for (Index d = 0; d < p.D; ++d) {
    auto& direction = s.directions[d];
    direction.w_hh = {.data = nullptr,
                      .columns = blocks_of<Real>(p.P),
                      .units = units,
                      .gates = cell.gate_count,
                      .reach = reach_of(p.P, p.head, group_of_columns * Widest<Real>::lanes)};
    direction.w_hh.data = take(arena, packs * size(direction.w_hh));
    if (need_dx) {
      direction.thin_w_ih = {.data = nullptr, .units = units, .K = is_thin(p.I) ? p.I : 0, .gates = cell.gate_count};
      direction.thin_w_ih.data = take(arena, size(direction.thin_w_ih));
      direction.w_ih = {
          .data = nullptr, .columns = is_thin(p.I) ? Blocks{} : inputs, .units = units, .gates = cell.gate_count};
      direction.w_ih.data = take(arena, packs * size(direction.w_ih));
      direction.dx = d == 0 && dense ? dx : View<Real>{take(arena, (dense ? run_rows(p) : p.U) * p.I), p.I};
    }
    const Index I = input_columns(p), rows = most_chunk_rows(p);
    const auto gradient = [&](Panels<Real> panels) {
      panels.data = take(arena, packs * size(panels));
      return panels;
    };
    const auto columns = [&](Index K, Index count) {
      Columns<Real> columns = {.data = nullptr, .count = K + 1, .rows = count, .width = columns_of_tile(p)};
      columns.data = take(arena, packs * size(columns));
      return columns;
    };
    const auto of_columns = [&](Index K) {
      return Panels<Real>{.data = nullptr, .units = units, .K = K + 1, .gates = cell.gate_count};
    };
    direction.dw_ih = gradient(of_columns(I));
    direction.dw_hh = gradient(p.head == p.P ? of_columns(p.P) : head_gradients<Real>(p, units));
    direction.x = columns(I, p.input == InputKind::embedded ? p.U : rows);
    for (int mask = 0; mask < max_index(p.masks, 1); ++mask) direction.h_before[mask] = columns(p.P, rows);
    if (p.masks) direction.dropped = take(arena, p.B * p.H);
    if (resets_h(cell)) direction.reset_h = columns(p.H, rows);
    direction.vectors = take(arena, gates_size(cell.vector_count, 1, units));
    direction.dvectors = {.data = take(arena, gates_size(cell.vector_count, rows, units)), .rows = rows};
    direction.dgates = {.data = take(arena, gates_size(cell.slot_count, rows, units)), .rows = rows};
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

// out = a + b, some rows of some units.
template <class Real>
__attribute__((noinline)) void add_rows(const View<const Real>& a, const View<const Real>& b, const View<Real>& out,
                                        Index rows, const Span& units) {
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; ++j) at(out, row).data[j] = at(a, row).data[j] + at(b, row).data[j];
}

// Members meet between the gates' gradients of all units and what is made of them. False: the call was interrupted.
template <class Real, class StepWindowsOrWhole>
bool backward_step(const CellShape& cell, const BackwardStep<Real>& s, const StepWindowsOrWhole& windows,
                   const typename BackwardScratch<Real>::Direction& scratch, const Item& item, const Team& team) {
  const Blocks& units = scratch.w_hh.units;
  for (int phase = cell.phase_count - 1; phase >= 0; --phase) {
    const Phase& part = cell.phases[phase];
    const auto& pointwise = functions_of<Real>(cell).backward[phase];
    for (Index window = 0; window < windows.count; ++window) {
      const BackwardStep<Real>& one = window_of(s, windows, window);
      const int at_once = s.rows < 64 ? 8 : 1;  // unit blocks, between which signals are heard
      for_each_range<Real>(units, s.units, at_once, false, [&](const BlockRange& range) {
        if (!skips(team, s.rows)) pointwise[range.halvings](one, range);
      });
    }
    if (s.held->slots) clear_held(s, cell.slot_count, part, units, windows.count * s.rows);
    if (!meet(item, team)) return false;
    const Factor factor = {.slot = part.slot, .gate = part.gate, .gates = part.gates};
    const View<Real> out = part.reset_h ? s.dreset_h : s.dh_before;
    const bool from_dh = s.adds_to_dh && !part.reset_h;
    const View<const Real> init = from_dh ? read_only(out) : View<const Real>{};
    const Product<Real> product = {.dgates = s.dgates,
                                   .gate_row = s.dgate_row,
                                   .init = init,
                                   .out = out,
                                   .rows = windows.count * s.rows,
                                   .columns = part.reset_h ? s.units : item.of_h,
                                   .backwards = s.backwards};
    if (s.masks)
      multiply_dropped(cell, part, s, product, scratch.w_hh, team);
    else if (scratch.unpacked_w_hh.data)
      multiply_unpacked(product, factor, cell.slot_count, scratch.unpacked_w_hh);
    else
      multiply(product, cell.slot_count, factor, scratch.w_hh, team);
  }
  return true;
}

// Bounds the elements of a gradient; NaN passes.
template <class Real>
void clip_rows(const View<Real>& a, Index rows, const Span& units, Real bound) {
  using S = Widest<Real>;
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; j += S::lanes) {
      const int valid = int(min_index(S::lanes, units.last - j));
      Real* const at = a.data + row * a.stride + j;
      const auto v = max(S::broadcast(-bound), load_lanes<S>(at, valid));
      store_lanes<S>(at, min(S::broadcast(bound), v), valid);
    }
}

// The gradients of states that started anew leave the sequence.
template <class Real>
void end_episodes(const unsigned char* starts, const View<Real>& d, const View<Real>& d_start, Index rows,
                  const Span& units) {
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; starts[row] && j < units.last; ++j) {
      at(d_start, row).data[j] += at(d, row).data[j];
      at(d, row).data[j] = 0;
    }
}

template <class Real>
__attribute__((noinline)) void multiply_input(const CellShape& cell, const Product<Real>& dx,
                                              const typename BackwardScratch<Real>::Direction& scratch,
                                              const Team& team) {
  const Factor factor = {.slot = cell.slot_count - cell.gate_count, .gate = 0, .gates = cell.gate_count};
  if (scratch.thin_w_ih.K)
    with_gates(cell.gate_count, [&]<int gates> { multiply_thin<gates>(dx, cell.slot_count, scratch.thin_w_ih, team); });
  else if (scratch.unpacked_w_ih.data)
    multiply_unpacked(dx, factor, cell.slot_count, scratch.unpacked_w_ih);
  else
    multiply(dx, cell.slot_count, factor, scratch.w_ih, team);
}

// The step of all windows, and dx of each where that is wanted. It would slow the plain one down and is therefore
// apart; compiled for size, it is a third as large, and the whole pass some 5% slower: most of its time goes to
// `multiply`.
template <class Real>
__attribute__((noinline, cold)) bool windows_step(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole,
                                                  const Item& item, Index t, const Team& team, BackwardStep<Real> s) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const auto& scratch = whole.directions[0];
  StepWindows<Real> windows = enter_windows(args, whole.windows, item, t, s);
  if (is_projected(p)) {
    if (!backward_projection(whole.projections[0], s, windows, item, team)) return false;
    s.dy = windows.other_dy = {whole.zeros, 0}, windows.dy_rows = 0;
  }
  if (!backward_step(cell, s, windows, scratch, item, team)) return false;
  if (args.windows.each_dx) {
    const Index at_once = item.rows == p.B ? windows.count : 1, rows = at_once * s.rows;  // their rows of dx adjoin
    const Index first = item.joined ? share(rows, team.rank, team.size) : 0;
    const Index last = item.joined ? share(rows, team.rank + 1, team.size) : rows;
    for (Index window = 0; window < windows.count; window += at_once) {
      const View<Real> dx = at(args.dx, (t * args.windows.most + window) * p.B + item.first + first);
      const Index dgate_row = s.dgate_row + window * s.rows + first;
      multiply_input(cell,
                     Product<Real>{.dgates = s.dgates,
                                   .gate_row = dgate_row,
                                   .init = {},
                                   .out = dx,
                                   .rows = last - first,
                                   .columns = all(scratch.w_ih.columns)},
                     scratch, team);
    }
  }
  leave_windows(args, windows, item, t, s);
  return true;
}

template <class Real>
void backward_chunk(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Item& item,
                    const Chunk& chunk, const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const int states = cell.state_count;
  const BackwardDirection<Real>& direction = args.directions[item.direction];
  const auto& scratch = whole.directions[item.direction];
  const TimeOrder order = time_order(p, item.direction);
  const View<const Real> dy = or_zeros(direction.dsteps[0], whole.zeros);
  StateBefore<Real> before[most_states];
  for (int i = 0; i < states; ++i)
    before[i] = place_before(direction, i, whole.zeros, View<Real>{scratch.mixed[i], state_size(p, i)});
  const Index tape_row = row_of(p, chunk_start(p, chunk.chunk)), run_row = row_of(p, p.run.first);
  Span elements[most_states];  // the item's
  for (int i = 0; i < states; ++i) elements[i] = elements_of<Real>(p, item, i);

  for (Index step = 0; step < chunk.steps; ++step) {
    const Index t = chunk.t + (order.reverse ? step : chunk.steps - 1 - step), row = row_of(p, t) + item.first;
    bool mixes = false;  // only in units of its own
    BackwardStep<Real> s = {};
    if (cell.keeps_gates)
      s.gates = {.data = direction.tape.gates + gates_size(cell.slot_count, tape_row, scratch.w_hh.units),
                 .rows = row_of(p, chunk_start(p, chunk.chunk + 1)) - tape_row};
    s.gate_row = row - tape_row;
    s.dgates = scratch.dgates, s.dvectors = scratch.dvectors, s.vectors = scratch.vectors;
    s.dgate_row = row - row_of(p, chunk.t);
    s.dy = at(dy, row - run_row);
    for (int i = 0; i < states; ++i) {
      if (cell.reads_before[i]) s.before[i] = state_before(p, before[i], item, t, elements[i], mixes);
      s.after[i] = at(direction.tape.made[i].data ? direction.tape.made[i] : before[i].sequence, row);
      s.dstate[i] = at(direction.dstate[i], item.first);
      if (direction.flow[i].data) s.flow[i] = at(direction.flow[i], row - run_row);
    }
    if (resets_h(cell)) s.dreset_h = {scratch.dreset_h + most_deltas(args.windows) * item.first * p.H, p.H};
    s.rows = rows_of_item(p, item, t), s.units = item.units;
    s.backwards = turns_back(t);
    s.held = &args.held, s.candidates = candidates_of<Real>(args, item, row);
    s.dh_before = s.dstate[0], s.adds_to_dh = cell.leaves_dh || is_zoned(p, 0);
    s.masks = p.masks;
    if (p.masks) s.factors = at(direction.factors, item.first), s.dropped = {scratch.dropped + item.first * p.H, p.H};
    if (s.flow[0].data) add_rows(read_only(s.dstate[0]), s.dy, s.flow[0], s.rows, elements[0]);
    for (int i = 1; i < states; ++i)
      if (direction.dsteps[i].data)
        add_rows(read_only(s.dstate[i]), at(direction.dsteps[i], row - run_row), s.dstate[i], s.rows, elements[i]);
    if (is_projected(p)) {
      s.after[0] = at(direction.tape.states[0], row);
      s.dh = whole.projections[item.direction].dh;
      s.du = {whole.projections[item.direction].du + most_deltas(args.windows) * item.first * p.H, p.H};
    }
    if (args.windows.k1) {
      if (!windows_step(args, whole, item, t, team, s)) return;
      continue;
    }
    if (is_projected(p)) {
      if (!backward_projection(whole.projections[item.direction], s, WholeSequence(), item, team)) return;
      s.dy = {whole.zeros, 0};
    }
    if (p.zoned) divide_gradients(args, item, row, scratch.dmade, whole.zeros, s);
    if (!backward_step(cell, s, WholeSequence(), scratch, item, team)) return;
    if (p.zoned) join_gradients(p, item, s, direction);
    s.dstate[0] = s.dh_before;
    const unsigned char* starts = p.starts[item.direction];
    for (int i = 0; i < states; ++i) {
      if (args.clip > 0) clip_rows(s.dstate[i], s.rows, elements[i], args.clip);
      if (starts) end_episodes(starts + row, s.dstate[i], at(direction.dstart[i], item.first), s.rows, elements[i]);
    }
  }
  const Index meetings = cell.phase_count + is_projected(p);  // of a step
  for (Index meeting = chunk.steps * meetings; meeting < chunk.rounds * meetings; ++meeting)
    if (!meet(item, team)) return;
}

// Regroups the left operands of a chunk's weight gradients, this member's share of the rows.
template <class Real>
void regroup_chunk(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Chunk& chunk,
                   const Team& team) {
  const Problem& p = args.problem;
  const BackwardDirection<Real>& direction = args.directions[chunk.direction];
  const auto& scratch = whole.directions[chunk.direction];
  const StateBefore<Real> before_h = place_before<Real>(direction, 0, whole.zeros);
  const View<const Real> reset_h = {direction.tape.reset_h, p.H};
  for (Index step = share(chunk.steps, team.rank, team.size); step < share(chunk.steps, team.rank + 1, team.size);
       ++step) {
    const Index t = chunk.t + step, row = row_of(p, t), first = row - row_of(p, chunk.t);
    const RowRange rows = {.first = first, .count = rows_at(p, t)};
    if (p.input != InputKind::embedded) regroup(at(args.x, row), rows, scratch.x, team);
    for_each_piece(p, chunk.direction, before_h, t, {.first = 0, .count = rows.count},
                   [&](View<const Real> piece, const RowRange& range) {
                     const RowRange to = {.first = first + range.first, .count = range.count};
                     if (p.masks)
                       regroup_dropped(p, piece, at(direction.factors, range.first), to, scratch.h_before, team);
                     else
                       regroup(piece, to, scratch.h_before[0], team);
                   });
    if (resets_h(*p.cell)) regroup(at(reset_h, row), rows, scratch.reset_h, team);
    if (is_projected(p)) regroup(at(direction.tape.states[0], row), rows, whole.projections[chunk.direction].u, team);
  }
}

// Adds the weight gradients of a chunk to those of the chunks after it. The biases' are the last columns.
template <class Real>
void weight_gradients(const BackwardArgs<Real>& args, const BackwardScratch<Real>& whole, const Chunk& chunk, Span span,
                      const Team& team) {
  const CellShape& cell = *args.problem.cell;
  const int masks = args.problem.masks;
  const auto& scratch = whole.directions[chunk.direction];
  WeightProduct<Real> product = {};
  product.dgates = scratch.dgates;
  product.rows = chunk.rows;
  product.add = !chunk.first || args.accumulate;
  product.columns = scratch.x, product.dw = scratch.dw_ih;
  product.slots = cell.slot_count, product.slot = cell.slot_count - cell.gate_count, product.gates = cell.gate_count;
  if (args.problem.input != InputKind::embedded) add_products(product, span, team);
  product.dw = scratch.dw_hh;
  for (int phase = 0; phase < cell.phase_count; ++phase) {
    const Phase& part = cell.phases[phase];
    product.gates = gates_at_once(masks, part);
    for (int i = 0; i < part.gates; i += product.gates) {
      product.slot = part.slot + i, product.gate = part.gate + i;
      product.columns = part.reset_h ? scratch.reset_h : scratch.h_before[mask_of(cell, masks, product.gate)];
      if (args.problem.head == args.problem.P)
        add_products(product, span, team);
      else
        add_head_products(product, span, team);
    }
  }
}

// The same of few rows, all at once.
template <class Real>
__attribute__((noinline)) void unpacked_weight_gradients(const BackwardArgs<Real>& args,
                                                         const BackwardScratch<Real>& whole, int d, Span span) {
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
  product.dw = input_rows(p, direction.gradients), product.db = direction.gradients.b_ih;
  multiply_gradients(product, span);
  product.dw = recurrent_rows(p, direction.gradients), product.db = direction.gradients.b_hh;
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
    multiply_gradients(product, span);
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
        for (Index row = range.first; row < range.first + range.count; ++row)
          regroup(at(args.x, args.tokens.token[row]), RowRange{.first = row, .count = 1}, scratch.x, team);
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
  for_my_blocks(count(whole.directions[0].w_hh.units), p.D, team, [&](int d, Span span) {
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
      for_each_column(TableBlocks<Real>{.table = scratch.table, .units = scratch.w_hh.units, .span = span},
                      cell.slot_count, input_rows(p, args.directions[d].gradients), cell.gate_count, args.tokens.token,
                      [](Real element, Real& dw) { dw = element; });
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
  if (gradients.b_ih) f(bias(gradients.b_ih, p.cell->input_gates), scratch.dw_ih, I);
  if (gradients.b_hh) f(bias(gradients.b_hh, p.cell->recurrent_gates), scratch.dw_hh, bias_row(p, scratch.dw_hh));
}

template <class Real>
void backward_prepare(const BackwardArgs<Real>& args, const BackwardScratch<Real>& scratch, const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  if (team.rank == 0) {
    for (Index j = 0; j < p.H; ++j) scratch.zeros[j] = 0;
    for (Index d = 0; d < p.D; ++d) {
      clear_padding(scratch.directions[d].dgates, cell.slot_count, scratch.directions[d].w_hh.units);
      clear_padding(scratch.projections[d].dh, 1, scratch.projections[d].of_h);
    }
    if (args.windows.k1) {
      clear_padding(scratch.windows.dgates, cell.slot_count, scratch.directions[0].w_hh.units);
      clear_padding(scratch.windows.dh, 1, scratch.projections[0].of_h);
    }
  }
  const auto& sizes = scratch.directions[0];
  const bool thin = is_thin(p.I), packs = !is_unpacked(p, args.windows);
  if (packs)
    for_my_blocks(group_count(sizes.w_hh.columns), p.D, team, [&](int d, Span span) {
      pack_transposed(recurrent_rows(p, args.directions[d].parameters), scratch.directions[d].w_hh, span);
    });
  if (packs && is_projected(p)) prepare_projections(args, scratch.projections, team);
  if (args.dx.data && (packs || thin))
    for_my_blocks(thin ? count(sizes.thin_w_ih.units) : group_count(sizes.w_ih.columns), p.D, team,
                  [&](int d, Span span) {
                    const GateRows<const Real> w_ih = input_rows(p, args.directions[d].parameters);
                    if (thin)
                      pack(w_ih, scratch.directions[d].thin_w_ih, 0, span);
                    else
                      pack_transposed(w_ih, scratch.directions[d].w_ih, span);
                  });
  for_my_blocks(count(sizes.w_hh.units), p.D, team, [&](int d, Span span) {
    pack_vectors(cell, args.directions[d].parameters, sizes.w_hh.units, p.H, span, scratch.directions[d].vectors);
    const TableBlocks<Real> table = {.table = scratch.directions[d].table, .units = sizes.w_hh.units, .span = span};
    fill(table, cell.slot_count, static_cast<const Real*>(nullptr));
    if (p.input == InputKind::one_hot && args.accumulate)
      for_each_column(table, cell.slot_count, input_rows(p, args.directions[d].gradients), cell.gate_count,
                      args.tokens.token, [](Real& element, Real dw) { element = dw; });
  });
  if (args.accumulate && packs)
    for_my_blocks(count(sizes.w_hh.units), p.D, team, [&](int d, Span span) {
      for_each_gradient(p, args.directions[d].gradients, scratch.directions[d],
                        [&](const GateRows<Real>& gradient, const Panels<Real>& panels, Index k) {
                          pack(read_only(gradient), panels, k, span);
                        });
    });
}

template <class Real>
void backward(const BackwardArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  Arena<Real> arena = {.base = args.scratch, .used = 0};
  BackwardScratch<Real> scratch = lay_out_backward(p, args.dx, args.dx.data != nullptr, args.windows, arena);
  const Index units = count(scratch.directions[0].w_hh.units);
  const bool dense = p.input == InputKind::dense, packs = !is_unpacked(p, args.windows);
  for (Index d = 0; d < p.D && !packs; ++d) {
    const Parameters<const Real>& parameters = args.directions[d].parameters;
    scratch.directions[d].unpacked_w_ih = input_rows(p, parameters);
    scratch.directions[d].unpacked_w_hh = recurrent_rows(p, parameters);
    if (is_projected(p)) scratch.projections[d].caller = projection_rows(p, parameters);
  }
  backward_prepare(args, scratch, team);
  if (!team.barrier(team)) return;

  for (Index i = 0, chunks = run_chunks(p); i < chunks; ++i) {
    Chunk chunk[2] = {};
    for (int d = 0; d < p.D; ++d) {
      const ChunkSteps steps = run_chunk(p, i, !time_order(p, d).reverse);
      const Index rows = row_of(p, steps.last) - row_of(p, steps.first);
      chunk[d] = {.direction = d,
                  .chunk = steps.chunk,
                  .t = steps.first,
                  .steps = steps.last - steps.first,
                  .rows = rows,
                  .rounds = 0,
                  .first = i == 0};
    }
    for (Chunk& c : chunk) c.rounds = max_index(chunk[0].steps, chunk[1].steps);
    for (int d = 0; d < p.D && packs; ++d) regroup_chunk(args, scratch, chunk[d], team);
    for_each_item<Real>(p, team,
                        [&](const Item& item) { backward_chunk(args, scratch, item, chunk[item.direction], team); });
    if (!team.barrier(team)) return;
    for (Index d = 0; d < p.D && args.dx.data && dense && !args.windows.each_dx; ++d) {
      const auto& direction = scratch.directions[d];
      const Index rows = chunk[d].rows, first = share(rows, team.rank, team.size);
      const View<Real> out = at(direction.dx, row_of(p, chunk[d].t) - row_of(p, p.run.first));
      Product<Real> dx = {.dgates = direction.dgates,
                          .gate_row = first,
                          .init = {},
                          .out = at(out, first),
                          .rows = share(rows, team.rank + 1, team.size) - first,
                          .columns = all(direction.w_ih.columns)};
      if (!packs && !is_thin(p.I))
        dx.gate_row = 0, dx.out = out, dx.rows = rows, dx.columns = my_columns(dx.columns, team);
      multiply_input(cell, dx, direction, team);
    }
    for_my_blocks(units, p.D, team, [&](int d, Span span) {
      const auto& direction = scratch.directions[d];
      if (packs)
        weight_gradients(args, scratch, chunk[d], span, team);
      else
        unpacked_weight_gradients(args, scratch, d, span);
      sum_vectors(p,
                  VectorSums<Real>{.terms = direction.dvectors,
                                   .units = direction.w_hh.units,
                                   .rows = chunk[d].rows,
                                   .add = !chunk[d].first || args.accumulate},
                  span, args.directions[d].gradients);
      if (!dense)
        sum_by_token(TableBlocks<Real>{.table = direction.table, .units = direction.w_hh.units, .span = span}, cell,
                     direction.dgates, args.tokens, RowRange{.first = row_of(p, chunk[d].t), .count = chunk[d].rows});
    });
    if (is_projected(p)) projection_gradients(args, scratch.projections, chunk, team);
    if (!team.barrier(team)) return;
  }
  if (!dense && !table_gradients(args, scratch, team)) return;

  if (packs)
    for_my_blocks(units, p.D, team, [&](int d, Span span) {
      for_each_gradient(p, args.directions[d].gradients, scratch.directions[d],
                        [&](const GateRows<Real>& gradient, const Panels<Real>& panels, Index k) {
                          unpack(panels, k, gradient, span);
                        });
    });
  if (packs && is_projected(p)) unpack_projections(args, scratch.projections, team);
  if (args.dx.data && (p.D == 2 || !dense)) {
    const Index rows = dense ? run_rows(p) : p.U;
    for (Index row = share(rows, team.rank, team.size); row < share(rows, team.rank + 1, team.size); ++row) {
      Real* dx = at(args.dx, dense ? row : args.tokens.token[row]).data;
      const Real* one = at(scratch.directions[0].dx, row).data;
      const Real* other = p.D == 2 ? at(scratch.directions[1].dx, row).data : nullptr;
      for (Index j = 0; j < p.I; ++j) dx[j] = other ? one[j] + other[j] : one[j];
    }
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
