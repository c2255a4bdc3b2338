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
#include "kernels/products/pairs.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/backward_scratch.h"
#include "kernels/time/chunks.h"
#include "kernels/time/dropout.h"
#include "kernels/time/norm.h"
#include "kernels/time/projection.h"
#include "kernels/time/sequence.h"
#include "kernels/time/tokens.h"
#include "kernels/time/weight_gradients.h"
#include "kernels/time/windows.h"
#include "kernels/time/zoneout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// out = a + b, some rows of some units.
template <class Real>
__attribute__((noinline)) void add_rows(const View<const Real>& a, const View<const Real>& b, const View<Real>& out,
                                        Index rows, const Span& units) {
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; ++j) at(out, row).data[j] = at(a, row).data[j] + at(b, row).data[j];
}

// Members meet between the gates' gradients of all units and what is made of them. False: the call was interrupted.
template <class Real, class StepWindowsOrWhole>
bool backward_step(const Problem& p, const BackwardStep<Real>& s, const StepWindowsOrWhole& windows,
                   const typename BackwardScratch<Real>::Direction& scratch, const Gates<Real>& pairs, const Item& item,
                   const Team& team) {
  const CellShape& cell = *p.cell;
  const Blocks& units = scratch.w_hh.units;
  for (int phase = cell.phase_count - 1; phase >= 0; --phase) {
    const Phase& part = cell.phases[phase];
    const auto& pointwise = functions_of<Real>(cell).backward[phase];
    for (Index window = 0; window < windows.count; ++window) {
      const BackwardStep<Real>& one = window_of(s, windows, window);
      if (is_normalised(cell)) {
        backward_norm(p, one, team);
        continue;
      }
      const int at_once = s.rows < 64 ? 8 : 1;  // unit blocks, between which signals are heard
      for_each_range<Real>(units, s.units, at_once, false, [&](const BlockRange& range) {
        if (!skips(team, s.rows)) pointwise[range.halvings](one, range);
      });
    }
    if (s.held->slots && !is_normalised(cell)) clear_held(s, cell.slot_count, part, units, windows.count * s.rows);
    const bool rounds = scratch.w_hh.rounds;
    if (rounds)
      pair_neighbours(s.dgates, units, s.units, cell.slot_count, part.slot, part.slots,
                      RowRange{.first = s.dgate_row, .count = windows.count * s.rows}, pairs);
    if (!meet(item, team)) return false;
    if (!part.reset_h && !s.needs_dh_before) continue;
    const Factor factor = {.slot = part.slot, .gate = part.gate, .gates = part.gates};
    const View<Real> out = part.reset_h ? s.dreset_h : s.dh_before;
    const bool from_dh = s.adds_to_dh && !part.reset_h;
    const View<const Real> init = from_dh ? read_only(out) : View<const Real>{};
    const Product<Real> product = {.dgates = rounds ? pairs : s.dgates,
                                   .gate_row = s.dgate_row,
                                   .init = init,
                                   .out = out,
                                   .rows = windows.count * s.rows,
                                   .columns = part.reset_h ? s.units : item.of_h,
                                   .backwards = s.backwards};
    if (s.masks)
      multiply_dropped(cell, part, s, product, scratch.w_hh, team);
    else if (scratch.unpacked_w_hh.data)
      multiply_unpacked(product, factor, cell.slot_count, scratch.unpacked_w_hh, team);
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
  const bool own = windows.count > 1;  // their rows are not the chunk's
  const Gates<Real>& pairs = own ? whole.windows.pairs : scratch.pairs;
  if (is_projected(p)) {
    const auto& projection = whole.projections[0];
    if (!backward_projection(projection, own ? whole.windows.h_pairs : projection.pairs, s, windows, item, team))
      return false;
    s.dy = windows.other_dy = {whole.zeros, 0}, windows.dy_rows = 0;
  }
  if (!backward_step(p, s, windows, scratch, pairs, item, team)) return false;
  if (args.windows.each_dx) {
    const Index at_once = item.rows == p.B ? windows.count : 1, rows = at_once * s.rows;  // their rows of dx adjoin
    const Index first = item.joined ? share(rows, team.rank, team.size) : 0;
    const Index last = item.joined ? share(rows, team.rank + 1, team.size) : rows;
    for (Index window = 0; window < windows.count; window += at_once) {
      const View<Real> dx = at(args.dx, (t * args.windows.most + window) * p.B + item.first + first);
      const Index dgate_row = s.dgate_row + window * s.rows + first;
      multiply_input(cell,
                     Product<Real>{.dgates = p.rounded ? pairs : s.dgates,
                                   .gate_row = dgate_row,
                                   .init = {},
                                   .out = dx,
                                   .rows = last - first,
                                   .columns = all(scratch.w_ih.columns)},
                     scratch, team);
    }
  }
  leave_windows(args, windows, item, t, s, scratch.pairs);
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

  if (is_normalised(cell) && chunk.begins) clear_sums(p, scratch.sums, item);
  for (Index step = 0; step < chunk.steps; ++step) {
    if (skips_steps(p, item, team)) return;
    const Index t = chunk.t + (order.reverse ? step : chunk.steps - 1 - step), row = row_of(p, t) + item.first;
    const bool is_first = t == (order.reverse ? p.run.last - 1 : p.run.first);
    bool mixes = false;  // only in units of its own
    BackwardStep<Real> s = {};
    if (cell.keeps_gates)
      s.gates = {.data = direction.tape.gates + kept_size(cell, tape_row, scratch.w_hh.units),
                 .rows = row_of(p, chunk_start(p, chunk.chunk + 1)) - tape_row};
    if (is_normalised(cell)) {
      s.values = values_of(cell, s.gates, scratch.w_hh.units),
      s.moments = moments_of(cell, s.gates, scratch.w_hh.units);
      s.dinner = scratch.dinner, s.sums = scratch.sums, s.batch_row = item.first;
    }
    s.gate_row = row - tape_row;
    s.dgates = scratch.dgates, s.dvectors = scratch.dvectors, s.vectors = scratch.vectors;
    s.dgate_row = row - chunk.first_row;
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
    s.needs_dh_before = args.need_dstate0 || !is_first || p.starts[item.direction];
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
      const auto& projection = whole.projections[item.direction];
      if (!backward_projection(projection, projection.pairs, s, WholeSequence(), item, team)) return;
      s.dy = {whole.zeros, 0};
    }
    if (p.zoned) divide_gradients(args, item, row, scratch.dmade, whole.zeros, s);
    if (!backward_step(p, s, WholeSequence(), scratch, scratch.pairs, item, team)) return;
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

// Whether products read w_hh: that of the first step may be all there is.
template <class Real>
constexpr bool reads_w_hh(const BackwardArgs<Real>& args) {
  const Problem& p = args.problem;
  return args.need_dstate0 || steps_of(p.run) > 1 || resets_h(*p.cell) || p.starts[0] || p.starts[1];
}

template <class Real>
void backward_prepare(const BackwardArgs<Real>& args, const BackwardScratch<Real>& scratch, const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  if (team.rank == 0) {
    for (Index j = 0; j < p.H; ++j) scratch.zeros[j] = 0;
    for (Index d = 0; d < p.D; ++d) {
      clear_padding(scratch.directions[d].dgates, cell.slot_count, scratch.directions[d].w_hh.units);
      clear_padding(scratch.directions[d].dinner, cell.stage_count > 1, scratch.directions[d].w_hh.units);
      clear_padding(scratch.projections[d].dh, 1, scratch.projections[d].of_h);
    }
    if (args.windows.k1) {
      clear_padding(scratch.windows.dgates, cell.slot_count, scratch.directions[0].w_hh.units);
      clear_padding(scratch.windows.dh, 1, scratch.projections[0].of_h);
    }
  }
  const auto& sizes = scratch.directions[0];
  const bool thin = has_thin_dx(p), packs = !is_unpacked(p, args.windows);
  constexpr Index group = group_of_columns * Widest<Real>::lanes;
  const Index rows = cell.gate_count * p.H, of_block = cell.gate_count * Widest<Real>::lanes;
  if (!reads_unpacked(p, args.windows) && reads_w_hh(args))
    for_my_pieces(group_count(sizes.w_hh.columns), p.D, rows * group, team, [&](int d, Span span) {
      pack_transposed(recurrent_rows(p, args.directions[d].parameters), scratch.directions[d].w_hh, span);
    });
  if (packs && is_projected(p)) prepare_projections(args, scratch.projections, team);
  if (args.dx.data && (packs || thin))
    for_my_pieces(thin ? count(sizes.thin_w_ih.units) : group_count(sizes.w_ih.columns), p.D, rows * group, team,
                  [&](int d, Span span) {
                    const GateRows<const Real> w_ih = input_rows(p, args.directions[d].parameters);
                    if (thin)
                      pack(w_ih, scratch.directions[d].thin_w_ih, 0, span);
                    else
                      pack_transposed(w_ih, scratch.directions[d].w_ih, span);
                    if (p.rounded && p.input == InputKind::embedded) round_groups(scratch.directions[d].w_ih, span);
                  });
  for_my_pieces(count(sizes.w_hh.units), p.D, of_block * (p.U + 1), team, [&](int d, Span span) {
    pack_vectors(cell, args.directions[d].parameters, sizes.w_hh.units, p.H, span, scratch.directions[d].vectors);
    const TableBlocks<Real> table = {.table = scratch.directions[d].table, .units = sizes.w_hh.units, .span = span};
    const Real* const none = nullptr;
    if (p.input == InputKind::one_hot && args.accumulate)
      fill_from_columns(table, cell, none, read_only(input_rows(p, args.directions[d].gradients)), args.tokens.token);
    else
      fill(table, cell.slot_count, none);
  });
  if (args.accumulate && packs)
    for_my_pieces(count(sizes.w_hh.units), p.D, of_block * (p.I + p.P), team, [&](int d, Span span) {
      for_each_gradient(p, args.directions[d].gradients, scratch.directions[d],
                        [&](const GateRows<Real>& gradient, const Panels<Real>& panels, Index k) {
                          pack(read_only(gradient), panels, k, span);
                        });
    });
}

// A chunk as a direction takes it as its i-th.
inline Chunk chunk_of_backward(const Problem& p, int d, Index i) {
  const ChunkSteps steps = run_chunk(p, i, !time_order(p, d).reverse);
  const Index first = row_of(p, steps.first);
  return {.direction = d,
          .chunk = steps.chunk,
          .t = steps.first,
          .steps = steps.last - steps.first,
          .rows = row_of(p, steps.last) - first,
          .first_row = first,
          .rounds = 0,
          .first = i == 0,
          .begins = true};
}

// dx of steps that have been gone through, this member's share.
template <class Real>
void backward_input(const BackwardArgs<Real>& args, const BackwardScratch<Real>& scratch, const Chunk& chunk,
                    const Team& team) {
  const Problem& p = args.problem;
  const auto& direction = scratch.directions[chunk.direction];
  const Index first = share(chunk.rows, team.rank, team.size), row = row_of(p, chunk.t);
  const Index from = row - chunk.first_row;
  const View<Real> out = at(direction.dx, row - row_of(p, p.run.first));
  Product<Real> dx = {.dgates = direction.w_ih.rounds ? direction.pairs : direction.dgates,
                      .gate_row = from + first,
                      .init = {},
                      .out = at(out, first),
                      .rows = share(chunk.rows, team.rank + 1, team.size) - first,
                      .columns = all(direction.w_ih.columns)};
  if (direction.unpacked_w_ih.data && !is_thin(p.I))
    dx.gate_row = from, dx.out = out, dx.rows = chunk.rows, dx.columns = my_columns(dx.columns, team);
  multiply_input(*p.cell, dx, direction, team);
}

// What a chunk adds to the gradients of the parameters, this member's share.
template <class Real>
void backward_sums(const BackwardArgs<Real>& args, const BackwardScratch<Real>& scratch, const Chunk (&chunk)[2],
                   const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const bool sums = is_normalised(cell);
  for_my_blocks(count(scratch.directions[0].w_hh.units), p.D, team, [&](int d, Span span) {
    const auto& direction = scratch.directions[d];
    if (direction.unpacked_w_ih.data)
      unpacked_weight_gradients(args, scratch, d, span, team);
    else
      weight_gradients(args, scratch, chunk[d], span, team);
    sum_vectors(p,
                VectorSums<Real>{.terms = sums ? direction.sums : direction.dvectors,
                                 .slots = sums ? sum_count(cell) : cell.vector_count,
                                 .units = direction.w_hh.units,
                                 .rows = sums ? direction.sums.rows : chunk[d].rows,
                                 .add = !chunk[d].first || args.accumulate},
                span, args.directions[d].gradients);
    if (p.input != InputKind::dense && p.rounded)
      for_each_block<Real>(direction.w_hh.units, span, [&]<class S>(const BlockRange& range) {
        const Index row = cell.slot_count * S::lanes;
        round_numbers(gates_at(direction.dgates, range.unit, 0, S::lanes, cell.slot_count), chunk[d].rows * row);
      });
    if (p.input != InputKind::dense)
      sum_by_token(TableBlocks<Real>{.table = direction.table, .units = direction.w_hh.units, .span = span}, cell,
                   direction.dgates, args.tokens, RowRange{.first = row_of(p, chunk[d].t), .count = chunk[d].rows});
  });
  if (is_projected(p)) projection_gradients(args, scratch.projections, chunk, team);
}

// The gradients of the weights as the caller has them, this member's share.
template <class Real>
void backward_gradients(const BackwardArgs<Real>& args, const BackwardScratch<Real>& scratch, const Team& team) {
  const Problem& p = args.problem;
  for_my_blocks(count(scratch.directions[0].w_hh.units), p.D, team, [&](int d, Span span) {
    for_each_gradient(p, args.directions[d].gradients, scratch.directions[d],
                      [&](const GateRows<Real>& gradient, const Panels<Real>& panels, Index k) {
                        unpack(panels, k, gradient, span);
                      });
  });
  if (is_projected(p)) unpack_projections(args, scratch.projections, team);
}

template <class Real>
__attribute__((noinline, cold)) void backward_by_part(const BackwardArgs<Real>& args,
                                                      const BackwardScratch<Real>& scratch, const Team& team) {
  const Problem& p = args.problem;
  if (args.part == BackwardPart::weights) return backward_prepare(args, scratch, team);
  const bool packs = !is_unpacked(p, args.windows);
  if (args.part == BackwardPart::gradients) return packs ? backward_gradients(args, scratch, team) : void();
  const Index last = run_chunks(p) - 1, place = chunk_of(p, args.of_part.first) - chunk_of(p, p.run.first);
  Chunk chunk[2] = {chunk_of_backward(p, 0, last - place), {}};
  if (args.part == BackwardPart::operands) return packs ? regroup_chunk(args, scratch, chunk[0], team) : void();
  if (args.part == BackwardPart::sums) return backward_sums(args, scratch, chunk, team);
  Chunk& some = chunk[0];
  some.begins = args.of_part.last == some.t + some.steps;
  some.t = args.of_part.first, some.rounds = some.steps = steps_of(args.of_part), some.rows = some.steps * p.B;
  for_each_item<Real>(p, team, [&](const Item& item) { backward_chunk(args, scratch, item, some, team); });
  if (args.dx.data) backward_input(args, scratch, some, team);
}

template <class Real>
void backward(const BackwardArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Problem& p = args.problem;
  const PairsInUse products = {p.rounded};
  Arena<Real> arena = {.base = args.scratch, .used = 0};
  BackwardScratch<Real> scratch = lay_out_backward(p, args.dx, args.dx.data != nullptr, args.windows, arena);
  const bool dense = p.input == InputKind::dense, packs = !is_unpacked(p, args.windows);
  for (Index d = 0; d < p.D && !packs; ++d) {
    const Parameters<const Real>& parameters = args.directions[d].parameters;
    scratch.directions[d].unpacked_w_ih = input_rows(p, parameters);
    if (reads_unpacked(p, args.windows)) scratch.directions[d].unpacked_w_hh = recurrent_rows(p, parameters);
    if (is_projected(p)) scratch.projections[d].caller = projection_rows(p, parameters);
  }
  if (args.part != BackwardPart::all) return backward_by_part(args, scratch, team);
  backward_prepare(args, scratch, team);
  if (!team.barrier(team)) return;

  for (Index i = 0, chunks = run_chunks(p); i < chunks; ++i) {
    Chunk chunk[2] = {};
    for (int d = 0; d < p.D; ++d) chunk[d] = chunk_of_backward(p, d, i);
    for (Chunk& c : chunk) c.rounds = max_index(chunk[0].steps, chunk[1].steps);
    for (int d = 0; d < p.D && packs; ++d) regroup_chunk(args, scratch, chunk[d], team);
    for_each_item<Real>(p, team,
                        [&](const Item& item) { backward_chunk(args, scratch, item, chunk[item.direction], team); });
    if (!team.barrier(team)) return;
    for (int d = 0; d < p.D && args.dx.data && dense && !args.windows.each_dx; ++d)
      backward_input(args, scratch, chunk[d], team);
    backward_sums(args, scratch, chunk, team);
    if (!team.barrier(team)) return;
  }
  if (!dense && !table_gradients(args, scratch, team)) return;

  if (packs) backward_gradients(args, scratch, team);
  if (args.dx.data && (p.D == 2 || !dense)) {
    const Index rows = dense ? run_rows(p) : p.U;
    for (Index row = share(rows, team.rank, team.size); row < share(rows, team.rank + 1, team.size); ++row) {
      if (row % rows_at_once == 0 && skips(team, row)) return;
      Real* dx = at(args.dx, dense ? row : args.tokens.token[row]).data;
      const Real* one = at(scratch.directions[0].dx, row).data;
      const Real* other = p.D == 2 ? at(scratch.directions[1].dx, row).data : nullptr;
      for (Index j = 0; j < p.I; ++j) dx[j] = other ? one[j] + other[j] : one[j];
    }
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
