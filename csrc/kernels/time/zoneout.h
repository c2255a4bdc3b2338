// Zoneout (Krueger et al. 2016): some units of a state keep their value from one step to the next.
//
//   s = m s~ + (1 - m) s'   m of 0 and 1, in training
//   s = (1 - p) s~ + p s'   with their probability p, elsewhere
//
// s' is a state before the step and s~ what the cell makes of it, to which it has a place of its own: a pass over a
// step's rows makes the state of both. Its mirror image divides the gradient before the cell's backward, and adds the
// parts up after it. No cell knows of this.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/time/chunks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

constexpr bool is_zoned(const Problem& p, int state) { return p.zoned >> state & 1; }

// Whether the tape has what the cell made of a state.
constexpr bool tapes_made(const Problem& p, int state) { return is_zoned(p, state) && p.cell->reads_after[state]; }

// What the cell makes of the states, or its gradient: [B,H] of each that is zoned.
template <class Real>
struct Made {
  Real* of[most_states];
};

template <class Real>
Made<Real> lay_out_made(const Problem& p, Arena<Real>& arena) {
  Made<Real> made = {};
  for (int i = 0; i < p.cell->state_count; ++i)
    if (is_zoned(p, i)) made.of[i] = take(arena, p.B * p.H);
  return made;
}

// f<S>(row, BlockRange) for the vectors of a step's rows.
template <class Real, class F>
RNNFAST_INLINE void for_each_vector_of_step(const Problem& p, Index rows, const Span& units, F&& f) {
  const Blocks blocks = blocks_of<Real>(p.H);
  for (Index row = 0; row < rows; ++row)
    for_each_block<Real>(blocks, units,
                         [&]<class S>(const BlockRange& range) { f.template operator()<S>(row, range); });
}

// ---- Forward -------------------------------------------------------------------------------------------------------

// The states after a step, in place of which the cell fills others.
template <class Real>
struct ZonedStates {
  View<Real> after[most_states];
};

// Gives the cell other places for the states that are zoned: rows of the tape, or of scratch.
template <class Real>
ZonedStates<Real> enter_zones(const ForwardArgs<Real>& args, const Item& item, Index row, const Made<Real>& scratch,
                              ForwardStep<Real>& s) {
  const Problem& p = args.problem;
  const Tape<Real>& tape = args.directions[item.direction].tape;
  ZonedStates<Real> states = {};
  for (int i = 0; i < p.cell->state_count; ++i) {
    if (!is_zoned(p, i)) continue;
    states.after[i] = s.after[i];
    s.after[i] = tape.made[i].data ? at(tape.made[i], row) : at(View<Real>{scratch.of[i], p.H}, item.first);
  }
  return states;
}

template <class Real>
void leave_zones(const ForwardArgs<Real>& args, const Item& item, Index row, const ForwardStep<Real>& s,
                 const ZonedStates<Real>& states) {
  const Problem& p = args.problem;
  for (int i = 0; i < p.cell->state_count; ++i) {
    if (!is_zoned(p, i)) continue;
    const View<const unsigned char>& renewed = args.directions[item.direction].renewed[i];
    const Real rate = args.zoneout[i];
    for_each_vector_of_step<Real>(p, s.rows, s.units, [&]<class S>(Index r, const BlockRange& range) {
      const auto made = load_lanes<S>(at(s.after[i], r).data + range.unit, range.valid);
      const auto before = load_lanes<S>(at(s.before[i], r).data + range.unit, range.valid);
      const auto after = renewed.data ? select<S>(bits_at<S>(at(renewed, row + r).data, range.unit), made, before)
                                      : fma(S::broadcast(rate), before, (1 - rate) * made);
      store_lanes<S>(at(states.after[i], r).data + range.unit, after, range.valid);
    });
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// Divides the gradients of the states after a step: what belongs to the states before it waits where it is, the rest
// goes to the cell. `row` is the step's first.
template <class Real>
void divide_gradients(const BackwardArgs<Real>& args, const Item& item, Index row, const Made<Real>& dmade,
                      const Real* zeros, BackwardStep<Real>& s) {
  const Problem& p = args.problem;
  for (int i = 0; i < p.cell->state_count; ++i) {
    if (!is_zoned(p, i)) continue;
    const View<const unsigned char>& renewed = args.directions[item.direction].renewed[i];
    const Real rate = args.zoneout[i];
    const View<Real> waits = s.dstate[i], goes = at(View<Real>{dmade.of[i], p.H}, item.first);
    for_each_vector_of_step<Real>(p, s.rows, s.units, [&]<class S>(Index r, const BlockRange& range) {
      auto d = load_lanes<S>(at(waits, r).data + range.unit, range.valid);
      if (i == 0) d = d + load_lanes<S>(at(s.dy, r).data + range.unit, range.valid);
      if (i > 0 && s.flow[i].data) store_lanes<S>(at(s.flow[i], r).data + range.unit, d, range.valid);
      auto to_made = (1 - rate) * d, to_before = rate * d;
      if (renewed.data) {
        const unsigned bits = bits_at<S>(at(renewed, row + r).data, range.unit);
        to_made = select<S>(bits, d, typename S::V{}), to_before = select<S>(bits, typename S::V{}, d);
      }
      store_lanes<S>(at(goes, r).data + range.unit, to_made, range.valid);
      store_lanes<S>(at(waits, r).data + range.unit, to_before, range.valid);
    });
    s.dstate[i] = goes;
    if (i == 0) s.dy = {zeros, 0};
    s.flow[i] = {};
  }
}

// Adds what the cell's backward leaves to what waited.
template <class Real>
void join_gradients(const Problem& p, const Item& item, BackwardStep<Real>& s,
                    const BackwardDirection<Real>& direction) {
  for (int i = 0; i < p.cell->state_count; ++i) {
    if (!is_zoned(p, i)) continue;
    const View<Real> left = s.dstate[i], waits = at(direction.dstate[i], item.first);
    s.dstate[i] = waits;
    if (i == 0 && !p.cell->leaves_dh) continue;
    for_each_vector_of_step<Real>(p, s.rows, s.units, [&]<class S>(Index r, const BlockRange& range) {
      Real* const to = at(waits, r).data + range.unit;
      store_lanes<S>(to, load_lanes<S>(to, range.valid) + load_lanes<S>(at(left, r).data + range.unit, range.valid),
                     range.valid);
    });
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
