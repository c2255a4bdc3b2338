// The time loop, for any cell. Its mirror image is in backward.h.
//
// One call runs on a team: a member takes a direction and a range of the batch, or of the units, through time. What a
// row or an element is made of never depends on who computes it.
#pragma once

#include <cstddef>

#include "kernels/cells/all.h"
#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/direct.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/products/pairs.h"
#include "kernels/products/quantized.h"
#include "kernels/time/apart.h"
#include "kernels/time/chunks.h"
#include "kernels/time/dropout.h"
#include "kernels/time/norm.h"
#include "kernels/time/projection.h"
#include "kernels/time/sequence.h"
#include "kernels/time/tokens.h"
#include "kernels/time/weights.h"
#include "kernels/time/zoneout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
struct ForwardScratch {
  struct Direction {
    PackedWeights<const Real> weights;
    UnpackedWeights<Real> unpacked;
    Gates<Real> gates;         // of one chunk, where no tape keeps them
    Gates<Real> table;         // what each token adds to the gates
    Real* reset_h;             // [B,H], where no tape keeps it
    Real* u;                   // what h is a projection of, [B,H], where no tape keeps it
    Real* dropped;             // h' times its factors, [B,masks·H]
    Real* mixed[most_states];  // the state before a step, [B,H], where some rows start anew
    Made<Real> made;
    Quantized<Real> x, h;              // of one chunk, or where tokens are embedded of the table's rows; of one step
    View<Real> x_pairs, h_pairs = {};  // of the same rows
  } directions[2];
  Real* embedded;  // the rows of the tokens that occur, [U,I]
};

// An odd number of rows, so that two unit blocks of a row are never a multiple of 4096 bytes apart: a load of the one
// would seem to depend on a store to the other.
constexpr Index odd(Index rows) { return rows | 1; }

// All but the weights.
template <class Real>
ForwardScratch<Real> lay_out_forward(const Problem& p, Arena<Real>& arena) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H);
  ForwardScratch<Real> s = {};
  for (Index d = 0; d < p.D; ++d) {
    auto& direction = s.directions[d];
    const Index rows = odd(most_chunk_rows(p));
    direction.gates = {.data = take(arena, kept_size(cell, rows, units)), .rows = rows};
    direction.table = {.data = take(arena, gates_size(cell.slot_count, p.U, units)), .rows = p.U};
    if (resets_h(cell)) direction.reset_h = take(arena, p.B * p.H);
    if (is_projected(p)) direction.u = take(arena, p.B * p.H);
    direction.dropped = take(arena, p.B * p.masks * p.H);
    for (int i = 0; i < cell.state_count && p.starts[d]; ++i) direction.mixed[i] = take(arena, p.B * state_size(p, i));
    direction.made = lay_out_made(p, arena);
    if (p.format == Format::int8) {
      direction.x = take_quantized(arena, p.input == InputKind::embedded ? p.U : most_chunk_rows(p), input_columns(p));
      direction.h = take_quantized(arena, p.B, p.H);
    }
    if (p.rounded) {
      const Index masks = max_index(p.masks, 1);
      direction.x_pairs =
          take_pairs(arena, p.input == InputKind::embedded ? p.U : most_chunk_rows(p), input_columns(p));
      direction.h_pairs = take_pairs(arena, p.B * masks, p.H);
      direction.h_pairs.stride *= masks;
    }
  }
  s.embedded = take(arena, p.U * input_columns(p));
  return s;
}

// The rows of the table that a step's tokens name, one unit block of them and the slots of one phase, or where rows are
// normalised those of the input.
template <class Real>
void copy_tokens(const ForwardStep<Real>& s, const Gates<Real>& table, int slots, int slot, int count, Index unit,
                 Index lanes, Real* gates) {
  const Index shift = slot * lanes;
  for (Index row = 0; row < s.rows; ++row, gates += slots * lanes)
    copy_vectors(gates_at(table, unit, s.tokens[row], lanes, slots) + shift, count * lanes, gates + shift);
}

// The points of a column wait for so many of its rows: of fewer, too few independent operations are under way; of more,
// the first have left the first cache level again.
constexpr Index pointwise_rows = 6;

// What packing costs, to read, to write and to read again: as much as so many rows of direct products do. It costs more
// where the second cache level has no room for the weights and what is packed of them, and again where they are large
// against it; and narrow vectors gain less from direct ones.
template <class Real>
Index packing_cost(const Problem& p) {
  const Index bytes = p.cell->gate_count * p.H * (p.I + p.P) * Index(sizeof(Real));
  constexpr Index dear = vector_bytes == 64 ? 32 : 20;
  return 2 * bytes <= cache_sizes.near ? 8 : bytes <= 8 * cache_sizes.near ? dear : 2 * dear;
}

// Whether products read the weights as the caller has them: those of one step of a few rows, and of several where that
// costs less than to pack. To transpose on the way costs each step as much as three rows do.
template <class Real>
bool reads_directly(const Problem& p) {
  if (p.B > most_direct_rows || p.input != InputKind::dense || p.masks > 1 || is_normalised(*p.cell) ||
      resets_h(*p.cell) || p.head != p.P || p.format != Format::real || p.rounded)
    return false;
  return steps_of(p.run) * (p.B + 3) <= packing_cost<Real>(p);
}

// Whether a unit block is packed when its turn comes in a step: in one step, or in a few of dear ones.
template <class Real>
bool packs_by_block(const Problem& p) {
  return p.format != Format::int8 && !p.rounded && p.input == InputKind::dense && !resets_h(*p.cell) &&
         steps_of(p.run) <= max_index(packing_cost<Real>(p) / 10, 1);
}

// gates = bias + x w_ih^T (+ h w_hh^T, then the cell), for the slots of one phase. Where rows are normalised, each
// product has slots of its own and starts from zeros, and the cell waits.
template <class Real>
void forward_phase(const CellShape& cell, int phase, Products products, const ForwardStep<Real>& s,
                   const typename ForwardScratch<Real>::Direction& scratch, const Team& team) {
  const Phase& part = cell.phases[phase];
  const bool apart = is_normalised(cell), ends = products != Products::input && !apart;
  const int of_input = apart ? cell.gate_count : part.slot;  // the first slot that x reaches
  // The recurrent product alone leaves a slot that is the input's as it is.
  const int slots = products == Products::recurrent ? part.gates : part.slots;
  const PackedWeights<const Real>& weights = scratch.weights;
  const UnpackedWeights<Real>& unpacked = scratch.unpacked;
  const Gates<Real>& table = scratch.table;
  const bool by_gate = s.masks > 1 && !part.reset_h;
  const Index first_unit = s.units.first * Widest<Real>::lanes;
  const auto gates_of = [&](const BlockRange& range) {
    return gates_at(s.gates, s.shared_gates ? first_unit : range.unit, s.gate_row, range.lanes, cell.slot_count);
  };
  const auto pointwise = [&](const BlockRange& range, Index row, Index M) {
    const Index gates_unit = s.gates.rows * cell.slot_count * range.lanes;
    functions_of<Real>(cell).forward[phase][range.halvings](s, gates_of(range), gates_unit, range, row, M);
  };
  if (unpacked.directly && s.rows <= most_direct_rows) {
    // x reaches the last slots of a phase, and h' the first ones.
    const int shift = part.slots - part.gates;
    multiply_direct<Real>(
        {.gates = s.gates,
         .row = s.gate_row,
         .rows = s.rows,
         .slots = cell.slot_count,
         .slot = part.slot,
         .count = part.slots,
         .bias = weights.bias,
         .units = weights.w_hh.units,
         .span = s.units},
        products, {.a = s.x, .w = unpacked.w_ih, .gate = part.gate, .slot = part.slot + shift, .gates = part.gates},
        {.a = s.h, .w = unpacked.w_hh, .gate = part.gate, .slot = part.slot, .gates = part.gates}, team);
    if (!ends) return;
    return for_each_width<Real>(weights.w_hh.units, s.units,
                                [&](const BlockRange& range) { pointwise(range, 0, s.rows); });
  }
  // The points of one row wait for the products of all its unit blocks, so that more than one chain of operations is
  // under way. Where a phase has one slot, a tile has blocks enough.
  const bool waits = s.rows == 1 && slots > 1;
  const bool has_heads = weights.w_hh.reach.last;  // unit blocks with heads of their own share no tile
  const Factors factors = factors_of(products == Products::input ? weights.w_ih : weights.w_hh);
  const Index K = products == Products::recurrent ? weights.w_hh.K : weights.w_ih.K + weights.w_hh.K;
  for_each_range<Real>(
      weights.w_hh.units, s.units, unit_group(slots, s.rows == 1 && !has_heads), s.backwards,
      [&](const BlockRange& range) {
        if (skips(team, s.rows, K)) return;
        const Index lanes = range.lanes, width = cell.gate_count * lanes, offset = part.gate * lanes;
        Real* const gates = gates_of(range);
        if (weights.apart) {
          if (products == Products::recurrent && s.tokens)
            for (Index block = 0; block < range.blocks; ++block)
              copy_tokens(s, table, cell.slot_count, of_input, part.slots, range.unit + block * lanes, lanes,
                          gates + block * s.gates.rows * cell.slot_count * lanes);
          multiply_apart(cell, part, products, s, weights, range, gates);
          if (ends && !waits) pointwise(range, 0, s.rows);
          return;
        }
        Tile<Real> t = {};
        t.out = gates + (products == Products::input ? of_input : part.slot) * lanes;
        t.out_row = cell.slot_count * lanes;
        t.out_unit = s.gates.rows * cell.slot_count * lanes;
        t.valid = slots * range.lanes;
        t.far = !(products == Products::input ? unpacked.w_ih : unpacked.w_hh).data && is_far(weights.w_hh, s.rows);
        t.backwards = s.backwards;
        if (products == Products::recurrent && s.tokens && s.rows == 1 && part.slots == part.gates && !by_gate &&
            !apart) {
          t.init = gates_at(table, range.unit, s.tokens[0], lanes, cell.slot_count) + part.slot * lanes;
          t.init_unit = table.rows * cell.slot_count * lanes;
        } else if (products == Products::recurrent) {
          if (s.tokens)
            for (Index block = 0; block < range.blocks; ++block)
              copy_tokens(s, table, cell.slot_count, of_input, part.slots, range.unit + block * lanes, lanes,
                          gates + block * t.out_unit);
          if (!apart) t.init = t.out, t.init_row = t.out_row, t.init_unit = t.out_unit;
        } else {
          if (!apart) {
            t.init = weights.bias + range.unit * cell.slot_count + part.slot * lanes;
            t.init_unit = cell.slot_count * lanes;
          }
          const Panels<const Real> w_ih =
              unpacked.w_ih.data ? pack_block(unpacked.w_ih, unpacked.w_ih_block, range) : weights.w_ih;
          t.first = rows_by_panels(s.x, panel(w_ih, range.unit) + offset, w_ih.K, width, factors);
        }
        if (products != Products::input) {
          const Panels<const Real> w_hh =
              unpacked.w_hh.data ? pack_block(unpacked.w_hh, unpacked.w_hh_block, range) : weights.w_hh;
          const View<const Real> read = {s.h.data + first_read(w_hh.reach, range.unit), s.h.stride};
          t.second = rows_by_panels(read, panel(w_hh, range.unit) + offset, w_hh.K, width, factors);
        }
        if (by_gate && products == Products::recurrent) {
          multiply_by_gate(cell, part, s, range, t, factors);
          if (ends && !waits) pointwise(range, 0, s.rows);
          return;
        }
        Index done = 0;
        const Tiles<Real>& tiles = tiles_for(t, slots, part.gates, range, factors);
        tile_rows(tiles, t, s.rows, [&](Index row, Index M) {
          const Index end = row + M;
          if (!ends || waits || (end < s.rows && end - done < pointwise_rows)) return;
          // The next rows' states are asked for while their products are computed, those of the first block: lines of
          // different rows, of which points write a part, come too late otherwise.
          const Index next = min_index(end + pointwise_rows, s.rows);
          for (int i = 0; i < cell.state_count; ++i)
            for (Index r = end; r < next; ++r) __builtin_prefetch(at(s.after[i], r).data + range.unit, 1);
          pointwise(range, done, end - done);
          done = end;
        });
      });
  if (ends && waits)
    for_each_width<Real>(weights.w_hh.units, s.units, [&](const BlockRange& range) { pointwise(range, 0, 1); });
}

// Projecting a chunk of the input ahead reads w_ih once a chunk instead of once a step and leaves the cache to w_hh;
// folding x_t into the step's own product saves writing and reading the pre-activations. That pays where there is one
// step only, where I is small against H, where a step has rows enough for what it reads of w_ih and the cache has room
// for both matrices, and where x is wide and a step has so many rows that w_ih arrives in half of their time. Cells of
// two phases gain nothing by the last, and products with fewer bits, which are faster, nothing by the last two. Both
// give the same bits. Products that come gate by gate start from what was projected.
RNNFAST_INLINE bool folds_input(const Problem& p) {
  const Index numbers = p.cell->gate_count * p.H, near = cache_sizes.near / Index(sizeof(float));
  const bool fits = (p.I + p.P) * numbers <= near / 2, is_small = p.I * numbers <= near / 32;
  const bool is_wide = p.I >= 4 * chain_length && p.cell->phase_count == 1;
  const bool has_rows = fits ? p.B >= (is_small ? 4 : 12) : is_wide && p.B >= 32;
  return p.input == InputKind::dense && p.masks <= 1 && !is_normalised(*p.cell) &&
         ((has_rows && p.format == Format::real && !p.rounded) || steps_of(p.run) == 1 || 8 * p.I <= p.H);
}

// Nothing is left to project where the gates start from a table.
RNNFAST_INLINE bool projects_input(const Problem& p) { return p.input == InputKind::dense && !folds_input(p); }

// Rows that are projected together: few enough that their x stays in the second cache level while unit block after
// unit block passes over it.
template <class Real>
RNNFAST_INLINE Index projected_rows(const Problem& p) {
  return max_index(cache_sizes.near / max_index(2 * p.I * Index(sizeof(Real)), 1), 1);
}

// Whether w_ih alone is packed block by block: all rows are projected at once, so that each weight is met once.
template <class Real>
RNNFAST_INLINE bool packs_input_by_block(const Problem& p) {
  return projects_input(p) && p.format != Format::int8 && !p.rounded && p.cell->phase_count == 1 &&
         run_chunks(p) == 1 && run_rows(p) <= projected_rows<Real>(p);
}

// x of some rows, where products read it with fewer bits; it goes to rows of scratch from `place` on.
template <class Real>
RNNFAST_INLINE void encode_x(const Problem& p, const typename ForwardScratch<Real>::Direction& scratch, Index place,
                             ForwardStep<Real>& s) {
  if constexpr (has_formats<Real>)
    if (p.format == Format::int8) {
      s.quantized_x = at(scratch.x, place);
      quantize(s.x, s.rows, p.I, Real(0), s.quantized_x);
    }
  if (scratch.x_pairs.data) {
    const View<Real> to = at(scratch.x_pairs, place);
    pair_neighbours(s.x, s.rows, p.I, to);
    s.x = read_only(to);
  }
}

// What the products of a step's rows read for h', likewise; of several masks, so many times `size` side by side.
template <class Real>
RNNFAST_INLINE void encode_h(const Problem& p, const typename ForwardScratch<Real>::Direction& scratch,
                             const View<const Real>& h, Index size, bool is_bounded, Index place, ForwardStep<Real>& s,
                             int masks = 1) {
  s.h = h;
  if constexpr (has_formats<Real>)
    if (p.format == Format::int8) {
      s.quantized_h = at(scratch.h, place);
      quantize(h, s.rows, size, Real(is_bounded), s.quantized_h);
    }
  if (scratch.h_pairs.data) {
    const View<Real> to = at(scratch.h_pairs, place);
    for (int mask = 0; mask < masks; ++mask)
      pair_neighbours(of_mask(h, mask, size), s.rows, size, of_mask(to, mask, words_of(size, 1)));
    s.h = read_only(to);
  }
}

// The input's part in the gates of a step's rows.
template <class Real>
void project_step(const CellShape& cell, const ForwardStep<Real>& s,
                  const typename ForwardScratch<Real>::Direction& scratch, const Team& team) {
  for (int phase = 0; phase < cell.phase_count; ++phase) forward_phase(cell, phase, Products::input, s, scratch, team);
}

// Rows of a chunk's gates become those of its input.
template <class Real>
void project(const ForwardArgs<Real>& args, const typename ForwardScratch<Real>::Direction& scratch,
             const Gates<Real>& gates, Index gate_row, Index row, Index rows, Span units, Index place,
             const Team& team) {
  // Members of a team would pack the same block at one place.
  const bool directly = scratch.unpacked.directly && team.size > 1;
  const Index most = directly ? most_direct_rows : projected_rows<Real>(args.problem);
  for (Index done = 0; done < rows; done += most) {
    ForwardStep<Real> s = {};
    s.gates = gates, s.gate_row = gate_row + done, s.x = at(args.x, row + done), s.units = units;
    s.rows = min_index(most, rows - done);
    encode_x(args.problem, scratch, place + done, s);
    project_step(*args.problem.cell, s, scratch, team);
  }
}

template <class Real>
void forward_item(const ForwardArgs<Real>& args, const ForwardScratch<Real>& whole, const Item& item,
                  const Team& team) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const int states = cell.state_count;
  const ForwardDirection<Real>& direction = args.directions[item.direction];
  const auto& scratch = whole.directions[item.direction];
  const TimeOrder order = time_order(p, item.direction);
  const bool projects = projects_input(p), folds = folds_input(p), tapes_gates = direction.tape.gates;
  // Where steps differ in their rows, members that are in different chunks would find each other's at one place.
  const bool ahead = projects && (tapes_gates || !p.first_row || item.rows == p.B);
  const Real* const zeros = scratch.weights.zeros;
  const View<Real> reset_h = {direction.tape.reset_h ? direction.tape.reset_h : scratch.reset_h, p.H};
  const View<Real> dropped = {scratch.dropped, p.masks * p.H};
  const bool tapes_u = direction.tape.states[0].data;
  const View<Real> u = tapes_u ? direction.tape.states[0] : View<Real>{scratch.u, p.H};
  // Where each state goes: that of every step into y or the tape, or that of the last step alone, which is then mixed
  // where it lies.
  View<Real> after[most_states];
  StateBefore<Real> before[most_states];
  bool keeps[most_states];
  Span elements[most_states];  // the item's
  for (int i = 0; i < states; ++i) {
    elements[i] = elements_of<Real>(p, item, i);
    const View<Real> sequence = i == 0 ? direction.y : direction.tape.states[i];
    keeps[i] = sequence.data;
    after[i] = keeps[i] ? sequence : direction.last[i];
    before[i] = {.initial = or_zeros(direction.initial[i], zeros),
                 .start = or_zeros(direction.start[i], zeros),
                 .sequence = read_only(after[i]),
                 .every_step = keeps[i],
                 .mixed = keeps[i] ? View<Real>{scratch.mixed[i], state_size(p, i)} : after[i]};
  }

  for (Index i = 0, chunks = run_chunks(p); i < chunks; ++i) {
    if (!item.joined && team.interrupted(team)) return;
    const ChunkSteps chunk = run_chunk(p, i, order.reverse);
    const Index chunk_row = row_of(p, chunk_start(p, chunk.chunk)), first_row = row_of(p, chunk.first);

    // Where the gates of a row go: to the row less gates_from.
    Gates<Real> gates = scratch.gates;
    Index gates_from = chunk_row;
    if (tapes_gates) {
      gates.data = direction.tape.gates + kept_size(cell, chunk_row, scratch.weights.w_hh.units);
      gates.rows = row_of(p, chunk_start(p, chunk.chunk + 1)) - chunk_row;
    } else if (!ahead) {
      gates.data += kept_size(cell, item.first, scratch.weights.w_hh.units);
      gates.rows = item.rows == p.B ? odd(p.B) : item.rows;  // a part of the batch has its place among others
    }
    const auto gate_row = [&](Index row) { return tapes_gates || ahead ? row - gates_from : 0; };

    if (ahead && item.rows == p.B)
      project(args, scratch, gates, gate_row(first_row), first_row, row_of(p, chunk.last) - first_row, item.units,
              first_row - chunk_row, team);
    else if (ahead)
      for (Index t = chunk.first; t < chunk.last; ++t) {
        const Index row = row_of(p, t) + item.first;
        project(args, scratch, gates, gate_row(row), row, rows_of_item(p, item, t), item.units, row - chunk_row, team);
      }

    // What the steps of the chunk have in common.
    ForwardStep<Real> s = {};
    s.gates = gates;
    s.vectors = scratch.weights.vectors, s.bias = scratch.weights.bias;
    s.units = item.units;
    s.store_gates = tapes_gates || resets_h(cell) || is_normalised(cell);
    s.held = &args.held;
    s.masks = p.masks;
    for (Index step = 0; step < chunk.last - chunk.first; ++step) {
      if (skips_steps(p, item, team)) return;
      const Index t = order.reverse ? chunk.last - 1 - step : chunk.first + step, row = row_of(p, t) + item.first;
      s.gate_row = gate_row(row);
      if (p.input == InputKind::dense)
        s.x = at(args.x, row);
      else
        s.tokens = args.tokens.number + row;
      s.candidates = candidates_of<Real>(args, item, row);
      bool mixes = false;
      for (int i = 0; i < states; ++i) {
        s.before[i] = state_before(p, before[i], item, t, elements[i], mixes);
        s.after[i] = at(after[i], keeps[i] ? row : item.first);
      }
      // Joined members wait for those of the other direction too: they meet as often, whichever of the two mixes.
      if (item.joined && p.D == 2) mixes = mixes || mixes_rows(p, 1 - item.direction, p.run.first + p.run.last - 1 - t);
      const RowRange rows = {.first = item.first, .count = rows_of_item(p, item, t)};
      if (p.masks) s.dropped = drop_h(p, direction.factors, s.before[0], dropped, rows, elements[0]), mixes = true;
      if (mixes && !meet(item, team)) return;
      const View<Real> h = s.after[0];
      if (is_projected(p)) s.after[0] = at(u, tapes_u ? row : item.first);
      ZonedStates<Real> zoned;
      if (p.zoned) zoned = enter_zones(args, item, row, scratch.made, s);
      if (resets_h(cell)) s.reset_h = at(reset_h, direction.tape.reset_h ? row : item.first);
      s.rows = rows.count;
      s.shared_gates = !s.store_gates && !projects && s.rows > most_direct_rows;
      s.backwards = turns_back(t) != args.turned;
      if (projects && !ahead) project(args, scratch, gates, s.gate_row, row, s.rows, item.units, item.first, team);
      if (folds) encode_x(p, scratch, item.first, s);
      for (int phase = 0; phase < cell.phase_count; ++phase) {
        const bool resets = cell.phases[phase].reset_h;
        const View<const Real> h = resets ? read_only(s.reset_h) : p.masks ? s.dropped : s.before[0];
        encode_h(p, scratch, h, p.P, resets || bounds_h(p), item.first, s, resets || p.masks == 0 ? 1 : p.masks);
        forward_phase(cell, phase, folds ? Products::both : Products::recurrent, s, scratch, team);
        if (is_normalised(cell)) forward_norm(p, args.eps, s, team);
        if (p.masks && phase + 1 < cell.phase_count)
          drop_reset_h(p, direction.factors, s, cell.phases[phase + 1], rows, elements[0]);
        if (p.zoned && phase + 1 == cell.phase_count) leave_zones(args, item, row, s, zoned);
        if (!meet(item, team)) return;
      }
      if (!is_projected(p)) continue;
      encode_h(p, scratch, read_only(s.after[0]), p.H, true, item.first, s);
      project_h(scratch.weights.w_hr, scratch.weights.hr, s, item, h, team);
      if (!meet(item, team)) return;
    }
  }

  // The last states of sequences that end together lie side by side, and so they go where they do there as well.
  Index end = p.run.last;  // of the steps that a sequence has
  for (Index b = item.first, together; b < item.first + item.rows; b += together) {
    if ((b - item.first) % rows_at_once == 0 && skips(team, item.rows)) return;
    while (rows_at(p, end - 1) <= b) --end;
    together = p.first_row ? 1 : min_index(rows_at_once, item.first + item.rows - b);
    const Index last = row_of(p, order.reverse ? p.run.first : end - 1) + b;
    for (int i = 0; i < states; ++i)
      if (keeps[i]) copy_rows(read_only(at(after[i], last)), elements[i], together, at(direction.last[i], b));
  }
}

// The table of an embedding: its rows of the tokens that occur are projected like a chunk of the input.
template <class Real>
void project_embedding(const ForwardArgs<Real>& args, const ForwardScratch<Real>& scratch, const Team& team) {
  const Problem& p = args.problem;
  for_my_rows(p.U, team, [&](const RowRange& range) {
    const View<Real> rows = at(View<Real>{scratch.embedded, p.I}, range.first);
    for (Index row = 0; row < range.count; ++row) {
      const Real* from = at(args.x, args.tokens.token[range.first + row]).data;
      for (Index k = 0; k < p.I; ++k) at(rows, row).data[k] = from[k];
    }
    for (Index d = 0; d < p.D; ++d) {
      ForwardStep<Real> s = {};
      s.gates = scratch.directions[d].table, s.gate_row = range.first;
      s.x = read_only(rows), s.rows = range.count, s.units = all(scratch.directions[d].weights.w_hh.units);
      encode_x(p, scratch.directions[d], range.first, s);
      project_step(*p.cell, s, scratch.directions[d], team);
    }
  });
}

// Where everything lies, for calls with the same problem, packed weights and scratch, and an x that is dense.
template <class Real>
void lay_out(const ForwardArgs<Real>& args, void* layout) {
  const Problem& p = args.problem;
  Arena<Real> arena = {.base = args.scratch, .used = 0};
  auto* const scratch = static_cast<ForwardScratch<Real>*>(layout);
  *scratch = lay_out_forward(p, arena);
  for (Index d = 0; d < p.D; ++d) {
    Arena<const Real> weights = {.base = args.directions[d].packed, .used = 0};
    find_packed(p, blocks_of<Real>(p.H), projected_blocks<Real>(p), weights, scratch->directions[d].weights);
  }
}

template <class Real>
void forward(const ForwardArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const Problem& p = args.problem;
  const PairsInUse products = {p.rounded};
  if (args.layout) {
    const auto& scratch = *static_cast<const ForwardScratch<Real>*>(args.layout);
    return for_each_item<Real>(p, team, [&](const Item& item) { forward_item(args, scratch, item, team); });
  }
  const Blocks units = blocks_of<Real>(p.H), projected = projected_blocks<Real>(p);
  Arena<Real> arena = {.base = args.scratch, .used = 0};
  ForwardScratch<Real> scratch = lay_out_forward<Real>(p, arena);
  const bool packed = args.directions[0].packed;
  const bool directly = !packed && reads_directly<Real>(p);
  // Members that divide the rows would each have to pack all.
  const bool alone = !packed && team.size == 1;
  const bool by_block = directly || (alone && packs_by_block<Real>(p));
  const bool input_by_block = by_block || (alone && packs_input_by_block<Real>(p));
  PackedWeights<Real> own[2];
  for (Index d = 0; d < p.D; ++d) {
    if (!packed) lay_out_packed(p, units, projected, arena, own[d]);
    Arena<const Real> weights = {.base = packed ? args.directions[d].packed : own[d].w_ih.data, .used = 0};
    find_packed(packed ? packed_once(p) : p, units, projected, weights, scratch.directions[d].weights);
    const auto& parameters = args.directions[d].parameters;
    if (input_by_block)
      scratch.directions[d].unpacked = {.w_ih = input_rows(p, parameters),
                                        .w_hh = by_block ? recurrent_rows(p, parameters) : GateRows<const Real>{},
                                        .w_ih_block = own[d].w_ih,
                                        .w_hh_block = own[d].w_hh,
                                        .directly = directly};
  }
  if (!packed || p.input == InputKind::one_hot) {
    const Index rows = p.cell->gate_count * Widest<Real>::lanes;  // of a block
    for_my_pieces(count(units), p.D, rows * (p.I + p.P + p.U), team, [&](int d, Span span) {
      const auto& direction = scratch.directions[d];
      const auto& parameters = args.directions[d].parameters;
      if (!packed) pack_direction(p, parameters, own[d], span, !input_by_block, !by_block);
      if (p.input == InputKind::one_hot) {
        const TableBlocks<Real> table = {.table = direction.table, .units = units, .span = span};
        const Real* const bias = is_normalised(*p.cell) ? nullptr : direction.weights.bias;
        if (p.rounded || p.format != Format::real) {
          fill(table, p.cell->slot_count, bias);
          for_each_column(table, p.cell->slot_count, input_rows(p, parameters), p.cell->gate_count, args.tokens.token,
                          [&](Real& element, const Real* row, Index r, Index k) {
                            element += one_hot_part(p, row, k, parameters.scales[0], r);
                          });
        } else {
          fill_from_columns(table, *p.cell, bias, input_rows(p, parameters), args.tokens.token);
        }
      }
    });
    if (!packed && is_projected(p))
      for_my_pieces(count(projected), p.D, p.H * Widest<Real>::lanes, team,
                    [&](int d, Span span) { pack_projection(p, args.directions[d].parameters, own[d], span); });
    if (!team.barrier(team)) return;
  }
  if (p.input == InputKind::embedded) {
    project_embedding(args, scratch, team);
    if (!team.barrier(team)) return;
  }
  for_each_item<Real>(p, team, [&](const Item& item) { forward_item(args, scratch, item, team); });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
