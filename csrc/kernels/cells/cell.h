// What a cell's file holds, and the loops over rows that make functions of it.
//
// A cell is a struct with
//   name, gates                 of the cell, and the letters of its gates as w_ih and w_hh have them ("": no names)
//   held                        letters of the gates that can be held at a value
//   states                      names of its states, h first
//   parameters                  vectors of units that it has beside w_ih, w_hh, b_ih, b_hh; left out where it has none
//   has_heads                   whether w_hh may be block-diagonal; left out where not
//   has_candidate               whether it has one that `drop` drops; left out where not
//   has_bounded_h               whether |h| stays at most 1; left out where it does
//   gate_count                  G, the gates of w_ih and w_hh
//   slot_count                  vectors per row and unit block that it keeps: its gates, and for the GRU hn
//   input_gates                 which gate of w_ih the last G slots hold
//   recurrent_gates             which gate of w_hh the first G slots hold
//   squashes                    the functions that its slots pass before anything else is done with them
//   phases                      the dependent products of one step
//   keeps_gates                 whether the tape holds the slots (else the derivative follows from the states)
//   reads_before                which states before the step its pointwise parts read
//   reads_after                 which states after the step backward reads
//   leaves_dh                   whether backward leaves in dstate[h] what reaches h' beside the product
//   forward<S, phase>(point), backward<S, phase>(point)
// and of a cell whose slots are normalised, what norm.h adds to it.
//
// Of a cell, nothing but the loops of this file is compiled: for each phase and each width of a unit block, one
// function forward and one backward.
#pragma once

#include <cstddef>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/quantized.h"
#include "kernels/vec.h"
#include "kernels/vec_math.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

enum class Squash { none, sigmoid, tanh };

template <class Real>
constexpr bool is_held(const Held<Real>& held, int slot) {
  return held.slots >> slot & 1;
}

template <class Cell>
constexpr int state_count = int(sizeof(Cell::states) / sizeof(const char*));

template <class Cell>
constexpr int phase_count = int(sizeof(Cell::phases) / sizeof(Phase));

// Whether rows of slots are normalised before its pointwise parts, of which it then has some stages.
template <class Cell>
constexpr bool is_normalised_cell = requires {
  Cell::stages;
};

template <class Cell>
constexpr int parameter_count = [] {
  if constexpr (requires { Cell::parameters; })
    return int(sizeof(Cell::parameters) / sizeof(UnitVectors));
  else
    return 0;
}();

// Of all its parameters.
template <class Cell>
constexpr int vector_count = [] {
  int count = 0;
  if constexpr (parameter_count<Cell> != 0)
    for (const UnitVectors& parameter : Cell::parameters) count += parameter.count;
  return count;
}();

template <class Cell>
constexpr bool has_candidate = requires {
  requires Cell::has_candidate;
};

template <class Cell>
constexpr bool has_bounded_h = [] {
  if constexpr (requires { Cell::has_bounded_h; })
    return Cell::has_bounded_h;
  else
    return true;
}();

// ---- A cell's points ------------------------------------------------------------------------------------------------

// One row of one unit block. gate: squashed where the cell says so, else pre-activations on entry and activations on
// return. before: the states that the cell reads. after: the states, which the last phase makes. reset_h: what the
// first phase makes of h' for the product of the second. vector: the cell's vectors of units, one parameter after the
// other. drops: whether some candidates are dropped; kept: the bits of those that are not. What a cell does not read is
// not set.
template <class S, class Cell>
struct ForwardPoint {
  typename S::V gate[Cell::slot_count], before[state_count<Cell>], after[state_count<Cell>], reset_h;
  typename S::V vector[max_index(vector_count<Cell>, 1)];
  const Held<typename S::Real>* held;
  bool drops;
  unsigned kept;
  typename S::Real scale;
};

// dstate: on entry gradients of the states after the step, with what the loss brings to h; on return of those before
// it, that of h' without the product. dgate: of the pre-activations. flow: all that reaches a state after the step, but
// h. dreset_h: of reset_h. dvector: what the row adds to the gradients of the vectors. Phases come in reverse; each
// makes its dgate, and the first one, which comes last, dstate, flow and dvector.
template <class S, class Cell>
struct BackwardPoint {
  typename S::V gate[Cell::slot_count], before[state_count<Cell>], after[state_count<Cell>];
  typename S::V dgate[Cell::slot_count], dstate[state_count<Cell>], flow[state_count<Cell>], dreset_h;
  typename S::V vector[max_index(vector_count<Cell>, 1)], dvector[max_index(vector_count<Cell>, 1)];
  const Held<typename S::Real>* held;
  bool drops;
  unsigned kept;
  typename S::Real scale;
};

// The cell's vectors at a unit block, from all of them as [unit block][vector x lanes].
template <class S, class Point, class Real>
RNNFAST_INLINE void load_vectors(const Real* vectors, int count, Index unit, Point& p) {
#pragma GCC unroll 4
  for (int i = 0; i < count; ++i) p.vector[i] = S::load(vectors + unit * count + i * S::lanes);
}

// A candidate where it is kept, scaled, and zero where it is dropped; also of the gradient that reaches it.
template <class S, class Point>
RNNFAST_INLINE typename S::V drop(const Point& p, typename S::V candidate) {
  return p.drops ? select<S>(p.kept, p.scale * candidate, typename S::V{}) : candidate;
}

// Which of the candidates are kept, a bit for each unit, and what those are multiplied by; null: all are as they are.
template <class Real>
struct Candidates {
  View<const unsigned char> kept;
  Real scale;
};

template <class S, class Point>
RNNFAST_INLINE void load_kept(const Candidates<typename S::Real>& candidates, Index unit, Index row, Point& p) {
  p.drops = candidates.kept.data;
  p.kept = p.drops ? bits_at<S>(at(candidates.kept, row).data, unit) : 0;
  p.scale = candidates.scale;
}

// ---- A step's rows --------------------------------------------------------------------------------------------------

// The rows of one step, or of several where only the input is projected.
template <class Real>
struct ForwardStep {
  Gates<Real> gates;
  Index gate_row;
  View<const Real> x, before[most_states];
  View<Real> after[most_states], reset_h;
  View<const Real> h;                        // what the products of a phase read for h'
  View<const Real> dropped;                  // h' times its factors, which those of the first phase read
  Quantized<Real> quantized_x, quantized_h;  // where matrices are of int8: x, and what the phase reads for h'
  int masks;                                 // how many factors each element of h' has
  const Real* vectors;                       // the cell's, [unit block][vector x lanes]
  const Real* bias;                          // [unit block][slot x lanes]
  Gates<Real> values;                        // where rows are normalised: what is kept beside the slots
  View<Real> moments;                        // where rows are normalised: their means and inverse deviations
  const Index* tokens;  // the rows of the table that the gates start from; null: from what is there
  Index rows;
  Span units;
  bool store_gates;   // the activated slots are read again
  bool shared_gates;  // all these unit blocks use the memory of the first: it stays in the first cache level
  bool backwards;     // through the unit blocks
  const Held<Real>* held;
  Candidates<Real> candidates;
};

template <class Real>
struct BackwardStep {
  Gates<const Real> gates;
  Gates<Real> dgates, dvectors;  // of dvectors, slots are what rows add to the gradients of the cell's vectors
  Gates<Real> dh;                // of h, where that is a projection
  Index gate_row, dgate_row;     // the second is that of dvectors and dh too
  const Real* vectors;           // the cell's, [unit block][vector x lanes]
  View<const Real> before[most_states], after[most_states];
  View<const Real> dy;  // what a loss brings to h
  View<Real> dstate[most_states], flow[most_states], dreset_h;
  View<Real> dh_before;      // where the product of the first phase goes
  bool adds_to_dh;           // to what is there
  bool needs_dh_before;      // false: nobody reads it
  View<Real> du;             // of what h is a projection of
  View<const Real> factors;  // of h'; null: none
  View<Real> dropped;        // where products go before they meet them
  int masks;
  Gates<const Real> values;  // as in forward
  View<const Real> moments;
  Gates<Real> dinner;  // where rows are normalised: the gradient of `inner`, [B] rows
  Gates<Real> sums;    // and those of gains and biases, a row for every rows_of_sum rows of the batch
  Index batch_row;     // the first one
  Index rows;
  Span units;
  bool backwards;  // through the weights
  const Held<Real>* held;
  Candidates<Real> candidates;
};

// The squashed slots of one phase, those from `slot` on. Rows pass in their own loop before they meet the state: with
// both in one, the processor finds too few independent operations.
template <class Cell, int phase, class S, int slot = Cell::phases[phase].slot, class Real>
RNNFAST_INLINE void squash_row(Real* gates) {
  constexpr Phase part = Cell::phases[phase];
  if constexpr (slot < part.slot + part.slots) {
    Real* const at = gates + slot * S::lanes;
    if constexpr (Cell::squashes[slot] == Squash::sigmoid) S::store(at, sigmoid<S>(S::load(at)));
    if constexpr (Cell::squashes[slot] == Squash::tanh) S::store(at, tanh<S>(S::load(at)));
    squash_row<Cell, phase, S, slot + 1>(gates);
  }
}

template <class Cell, int phase, class S, class Real>
RNNFAST_INLINE void hold_row(const Held<Real>& held, Real* gates) {
  constexpr Phase part = Cell::phases[phase];
  for (int slot = part.slot; slot < part.slot + part.slots; ++slot)
    if (is_held(held, slot)) S::store(gates + slot * S::lanes, S::broadcast(held.value[slot]));
}

template <class Cell, int phase, class S, class Real>
RNNFAST_INLINE void forward_row(const ForwardStep<Real>& s, Real* gates, Index unit, int valid, Index row) {
  constexpr Phase part = Cell::phases[phase];
  constexpr int slots = Cell::slot_count, states = state_count<Cell>;
  ForwardPoint<S, Cell> p;
  p.held = s.held;
#pragma GCC unroll 8
  for (int slot = 0; slot < slots; ++slot) p.gate[slot] = S::load(gates + slot * S::lanes);
  const auto store = [&](const View<Real>& view, typename S::V v) {
    store_lanes<S>(view.data + row * view.stride + unit, v, valid);
  };
#pragma GCC unroll 4
  for (int i = 0; i < states; ++i)
    if (Cell::reads_before[i]) p.before[i] = load_lanes<S>(s.before[i].data + row * s.before[i].stride + unit, valid);
  load_vectors<S>(s.vectors, vector_count<Cell>, unit, p);
  if constexpr (has_candidate<Cell>) load_kept<S>(s.candidates, unit, row, p);
  Cell::template forward<S, phase>(p);
  if (s.store_gates) {
#pragma GCC unroll 8
    for (int slot = part.slot; slot < part.slot + part.slots; ++slot)
      if (Cell::squashes[slot] == Squash::none) S::store(gates + slot * S::lanes, p.gate[slot]);
  }
  if constexpr (phase + 1 < phase_count<Cell>) {
    store(s.reset_h, p.reset_h);
  } else {
#pragma GCC unroll 4
    for (int i = 0; i < states; ++i) store(s.after[i], p.after[i]);
  }
}

// Rows [row, row + M) of some unit blocks. The gates of the first one's first row are at `gates`, those of the next one
// `gates_unit` behind.
template <class Cell, int phase, class S>
void forward_rows(const ForwardStep<typename S::Real>& s, typename S::Real* gates, Index gates_unit,
                  const BlockRange& range, Index row, Index M) {
  constexpr Index gates_row = Cell::slot_count * S::lanes;
  // The inner loop, before which the constants are loaded, is over the rows, or of one row over its blocks.
  const Index outer = M == 1 ? 1 : range.blocks, inner = M == 1 ? range.blocks : M;
  const Index inner_stride = M == 1 ? gates_unit : gates_row;
  for (Index i = 0; i < outer; ++i) {
    auto* const from = gates + row * gates_row + i * gates_unit;
    for (Index k = 0; k < inner; ++k) squash_row<Cell, phase, S>(from + k * inner_stride);
    if (s.held->slots)
      for (Index k = 0; k < inner; ++k) hold_row<Cell, phase, S>(*s.held, from + k * inner_stride);
  }
  for (Index block = 0; block < range.blocks; ++block) {
    auto* const from = gates + block * gates_unit;
    const Index unit = range.unit + block * S::lanes;
    const int valid = block + 1 < range.blocks ? S::lanes : range.valid;
    for (Index m = row; m < row + M; ++m) forward_row<Cell, phase, S>(s, from + m * gates_row, unit, valid, m);
  }
}

// Asks for what `backward_row` is going to read one step before: where a sequence is long, it is in no cache.
template <class Cell, class S, class Real>
RNNFAST_INLINE void prefetch_row(const BackwardStep<Real>& s, Index unit, Index row) {
  const auto prefetch = [&](const View<const Real>& view) { __builtin_prefetch(view.data + row * view.stride + unit); };
  prefetch(s.dy);
#pragma GCC unroll 4
  for (int i = 0; i < state_count<Cell>; ++i)
    if (Cell::reads_before[i] || Cell::reads_after[i]) prefetch(Cell::reads_before[i] ? s.before[i] : s.after[i]);
  if constexpr (Cell::keeps_gates) {
    const Real* gates = gates_at(s.gates, unit, s.gate_row + row, S::lanes, Cell::slot_count);
#pragma GCC unroll 8
    for (int slot = 0; slot < Cell::slot_count; ++slot) __builtin_prefetch(gates + slot * S::lanes);
  }
}

template <class Cell, int phase, class S, class Real>
RNNFAST_INLINE void backward_row(const BackwardStep<Real>& s, Index unit, int valid, Index row) {
  constexpr Phase part = Cell::phases[phase];
  constexpr int slots = Cell::slot_count, states = state_count<Cell>;
  BackwardPoint<S, Cell> p;
  p.held = s.held;
  const auto load = [&](const auto& view) { return load_lanes<S>(view.data + row * view.stride + unit, valid); };
  const auto store = [&](const View<Real>& view, typename S::V v) {
    store_lanes<S>(view.data + row * view.stride + unit, v, valid);
  };
  if constexpr (Cell::keeps_gates) {
    const Real* gates = gates_at(s.gates, unit, s.gate_row + row, S::lanes, slots);
#pragma GCC unroll 8
    for (int slot = 0; slot < slots; ++slot) p.gate[slot] = S::load(gates + slot * S::lanes);
  }
  p.dstate[0] = load(s.dstate[0]) + load(s.dy);
#pragma GCC unroll 4
  for (int i = 0; i < states; ++i) {
    if (Cell::reads_before[i]) p.before[i] = load(s.before[i]);
    if (Cell::reads_after[i]) p.after[i] = load(s.after[i]);
    if (i > 0) p.dstate[i] = load(s.dstate[i]);
  }
  if constexpr (phase + 1 < phase_count<Cell>) p.dreset_h = load(s.dreset_h);
  load_vectors<S>(s.vectors, vector_count<Cell>, unit, p);
  if constexpr (has_candidate<Cell>) load_kept<S>(s.candidates, unit, row, p);
  Cell::template backward<S, phase>(p);
  Real* dgates = gates_at(s.dgates, unit, s.dgate_row + row, S::lanes, slots);
#pragma GCC unroll 8
  for (int slot = part.slot; slot < part.slot + part.slots; ++slot)
    store_lanes<S>(dgates + slot * S::lanes, p.dgate[slot], valid);
  if constexpr (phase == 0) {
    if constexpr (Cell::leaves_dh) store(s.dstate[0], p.dstate[0]);
#pragma GCC unroll 4
    for (int i = 1; i < states; ++i) {
      if (s.flow[i].data) store(s.flow[i], p.flow[i]);
      store(s.dstate[i], p.dstate[i]);
    }
    if constexpr (vector_count<Cell> != 0) {
      Real* dvectors = gates_at(s.dvectors, unit, s.dgate_row + row, S::lanes, vector_count<Cell>);
#pragma GCC unroll 4
      for (int i = 0; i < vector_count<Cell>; ++i) S::store(dvectors + i * S::lanes, p.dvector[i]);
    }
  }
}

// All rows of some unit blocks.
template <class Cell, int phase, class S>
void backward_rows(const BackwardStep<typename S::Real>& s, const BlockRange& range) {
  for (Index row = 0; row < s.rows; ++row)  // in the order in which most of what is read lies in memory
    for (Index block = 0; block < range.blocks; ++block) {
      const Index unit = range.unit + block * S::lanes;
      const int valid = block + 1 < range.blocks ? S::lanes : range.valid;
      if (phase == 0 && s.rows > 1) prefetch_row<Cell, S>(s, unit, row - s.rows);
      backward_row<Cell, phase, S>(s, unit, valid, row);
    }
}

// The pre-activations of held gates have no gradient.
template <class Real>
__attribute__((noinline)) void clear_held(const BackwardStep<Real>& s, int slots, const Phase& part,
                                          const Blocks& units, Index rows) {
  for (Index block = s.units.first; block < s.units.last; ++block) {
    const BlockWidth width = width_of<Real>(units, block);
    Real* dgates = gates_at(s.dgates, width.unit, s.dgate_row, width.lanes, slots);
    for (Index row = 0; row < rows; ++row, dgates += slots * width.lanes)
      for (int slot = part.slot; slot < part.slot + part.slots; ++slot)
        for (Index lane = 0; is_held(*s.held, slot) && lane < width.lanes; ++lane)
          dgates[slot * width.lanes + lane] = 0;
  }
}

// ---- What the loops know of a cell ----------------------------------------------------------------------------------

template <class T, std::size_t n>
constexpr int length_of(const T (&)[n]) {
  return int(n);
}

// Whether the loops can do what a cell's file says.
template <class Cell>
constexpr bool is_sound() {
  constexpr int G = Cell::gate_count, slots = Cell::slot_count, phases = phase_count<Cell>;
  bool sound = slots <= most_slots && phases <= most_phases && state_count<Cell> <= most_states &&
               parameter_count<Cell> <= most_parameters;
  sound = sound && G <= most_gates && length_of(Cell::input_gates) == G && length_of(Cell::recurrent_gates) == G &&
          length_of(Cell::reads_before) == state_count<Cell> && length_of(Cell::reads_after) == state_count<Cell>;
  if constexpr (is_normalised_cell<Cell>)  // its products have slots of their own
    return sound && slots == 2 * G && phases == 1 && Cell::phases[0].slots == G &&
           length_of(Cell::stages) <= most_phases;
  else
    sound = sound && length_of(Cell::squashes) == slots;
  int next = 0;  // phases take the slots in turn
  for (const Phase& phase : Cell::phases) {
    sound = sound && phase.slot == next && phase.gate == next;
    sound = sound && (phase.slots == phase.gates || (phase.slots == 4 && phase.gates == 3 && phases == 1));
    sound = sound && phase.reset_h == (next > 0);  // the first has h' itself as its operand, the others what it made
    next += phase.slots;
  }
  return sound && next == slots && (G == slots || (slots == 4 && G == 3));
}

// The index-th of all.
template <class Cell>
constexpr CellShape shape_of(int index) {
  static_assert(is_sound<Cell>());
  CellShape shape = {};
  shape.name = Cell::name, shape.gates = Cell::gates, shape.held = Cell::held;
  shape.index = index;
  shape.gate_count = Cell::gate_count, shape.slot_count = Cell::slot_count;
  shape.state_count = state_count<Cell>, shape.phase_count = phase_count<Cell>;
  shape.parameter_count = parameter_count<Cell>, shape.vector_count = vector_count<Cell>;
  if constexpr (parameter_count<Cell> != 0)
    for (int i = 0; i < shape.parameter_count; ++i) shape.parameters[i] = Cell::parameters[i];
  for (int i = 0; i < shape.state_count; ++i) {
    shape.states[i] = Cell::states[i];
    shape.reads_before[i] = Cell::reads_before[i], shape.reads_after[i] = Cell::reads_after[i];
  }
  for (int i = 0; i < shape.phase_count; ++i) shape.phases[i] = Cell::phases[i];
  for (int i = 0; i < shape.gate_count; ++i) {
    shape.input_gates[i] = Cell::input_gates[i];
    shape.recurrent_gates[i] = Cell::recurrent_gates[i];
  }
  shape.keeps_gates = Cell::keeps_gates, shape.leaves_dh = Cell::leaves_dh;
  if constexpr (is_normalised_cell<Cell>)
    shape.value_count = Cell::kept_count + Cell::gate_count, shape.stage_count = length_of(Cell::stages);
  if constexpr (requires { Cell::has_heads; }) shape.has_heads = Cell::has_heads;
  shape.has_candidate = has_candidate<Cell>;
  shape.has_bounded_h = has_bounded_h<Cell>;
  // Where h' reaches h unit by unit, or a unit by its head, it has as many.
  shape.projects = shape.phase_count == 1 && !shape.reads_before[0] && !shape.leaves_dh && !shape.has_heads &&
                   !is_normalised_cell<Cell>;
  return shape;
}

// Whether a second product waits for what the first phase makes of h'.
constexpr bool resets_h(const CellShape& cell) { return cell.phase_count > 1; }

// Its functions, by phase or stage and by halvings of the widest vector.
template <class Real>
struct CellFunctions {
  void (*forward[most_phases][width_count])(const ForwardStep<Real>&, Real* gates, Index gates_unit, const BlockRange&,
                                            Index row, Index M);
  void (*backward[most_phases][width_count])(const BackwardStep<Real>&, const BlockRange&);
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
