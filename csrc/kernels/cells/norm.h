// What the file of a cell holds whose slots are normalised (layer normalisation; Ba, Kiros and Hinton 2016), and the
// loops over rows that make functions of it.
//
//   a_h = gain_hh LN(w_hh h') + b_hh   a_x = gain_ih LN(w_ih x) + b_ih
//   LN(v) = (v - mean v) / sqrt(var v + eps), over all elements of a row
//
// The products of h' and of x fill slots of their own: slots 0 to G - 1 are w_hh h', G to 2 G - 1 are w_ih x, in the
// order of the gates. A step's rows pass time/norm.h, which finds their moments; the pointwise parts see a_h and a_x.
// Where something that they make is normalised in its turn, they come in two stages:
//
//   normal = gain LN(inner) + bias
//
// where `inner` is the first of the values that a cell keeps for a row and a unit block, and that backward finds again.
// The G gates are the last. Beside what cell.h asks for, but squashes, a cell has
//   kept_count                  values before the gates
//   stages                      the gates whose gradients each stage makes
//   flow_stage                  the stage whose backward makes the flow of the states beside h
//   parameters                  gain_ih and gain_hh, and where there are two stages the gain and the bias of `normal`
//   forward<S, stage>(point), backward<S, stage>(point)
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// `gates` gates from `gate` on.
struct Stage {
  int gate, gates;
};

template <class Cell>
constexpr int value_count = Cell::kept_count + Cell::gate_count;

template <class Cell>
constexpr int pointwise_count = [] {
  if constexpr (is_normalised_cell<Cell>)
    return length_of(Cell::stages);
  else
    return phase_count<Cell>;
}();

// Where the moments of w_hh h', of w_ih x and of `inner` are among those of a row.
enum Moments { moments_h, moments_x = 2, moments_inner = 4 };

// LN(v), by the moments of its row.
template <class S>
RNNFAST_INLINE typename S::V normalised(typename S::V v, const typename S::Real* moments) {
  return (v - S::broadcast(moments[0])) * S::broadcast(moments[1]);
}

// ---- A cell's points ------------------------------------------------------------------------------------------------

// One row of one unit block. The first stage makes the gates and the first of what is kept, the second one the rest;
// the last one makes the states after.
template <class S, class Cell>
struct NormForwardPoint {
  typename S::V a_h[Cell::gate_count], a_x[Cell::gate_count], kept[Cell::kept_count], gate[Cell::gate_count], normal;
  typename S::V before[state_count<Cell>], after[state_count<Cell>];
  const Held<typename S::Real>* held;
};

// da_h, da_x: of a_h and a_x. dnormal: of `normal`, which the second stage makes. dinner: of `inner`, which the first
// stage finds, as it comes after the second. dstate and flow as in cell.h.
template <class S, class Cell>
struct NormBackwardPoint {
  typename S::V kept[Cell::kept_count], gate[Cell::gate_count], before[state_count<Cell>];
  typename S::V da_h[Cell::gate_count], da_x[Cell::gate_count], dnormal, dinner;
  typename S::V dstate[state_count<Cell>], flow[state_count<Cell>];
  const Held<typename S::Real>* held;
};

// The values of a row from memory, of a point of either kind.
template <class S, class Cell, class Point, class Real>
RNNFAST_INLINE void load_values(const Real* values, Point& p) {
#pragma GCC unroll 4
  for (int i = 0; i < Cell::kept_count; ++i) p.kept[i] = S::load(values + i * S::lanes);
#pragma GCC unroll 4
  for (int gate = 0; gate < Cell::gate_count; ++gate)
    p.gate[gate] = S::load(values + (Cell::kept_count + gate) * S::lanes);
}

// Gates are held by their slots of x.
template <class Cell, class Real>
RNNFAST_INLINE bool is_held_gate(const Held<Real>& held, int gate) {
  return is_held(held, Cell::gate_count + gate);
}

// Sets a gate to its value, unless it is held.
template <class S, class Cell>
RNNFAST_INLINE void set_gate(NormForwardPoint<S, Cell>& p, int gate, typename S::V value) {
  p.gate[gate] = is_held_gate<Cell>(*p.held, gate) ? S::broadcast(p.held->value[Cell::gate_count + gate]) : value;
}

// ---- A step's rows --------------------------------------------------------------------------------------------------

// Rows [row, row + M) of some unit blocks.
template <class Cell, int stage, class S>
void forward_stage(const ForwardStep<typename S::Real>& s, typename S::Real*, Index, const BlockRange& range, Index row,
                   Index M) {
  using Real = typename S::Real;
  constexpr int G = Cell::gate_count, slots = Cell::slot_count, states = state_count<Cell>;
  for (Index block = 0; block < range.blocks; ++block) {
    const Index unit = range.unit + block * S::lanes;
    const int valid = block + 1 < range.blocks ? S::lanes : range.valid;
    const Real* const vectors = s.vectors + unit * vector_count<Cell>;
    const Real* const bias = s.bias + unit * slots;
    for (Index m = row; m < row + M; ++m) {
      NormForwardPoint<S, Cell> p;
      p.held = s.held;
      const Real* const moments = at(s.moments, s.gate_row + m).data;
      Real* const values = gates_at(s.values, unit, s.gate_row + m, S::lanes, value_count<Cell>);
#pragma GCC unroll 4
      for (int i = 0; i < states; ++i)
        if (Cell::reads_before[i]) p.before[i] = load_lanes<S>(at(s.before[i], m).data + unit, valid);
      if constexpr (stage == 0) {
        const Real* const gates = gates_at(s.gates, unit, s.gate_row + m, S::lanes, slots);
        const auto load = [&](int slot, int gain, Moments of) {
          return fma(S::load(vectors + gain * S::lanes), normalised<S>(S::load(gates + slot * S::lanes), moments + of),
                     S::load(bias + slot * S::lanes));
        };
#pragma GCC unroll 4
        for (int gate = 0; gate < G; ++gate) {
          p.a_h[gate] = load(gate, G + gate, moments_h);
          p.a_x[gate] = load(G + gate, gate, moments_x);
        }
        Cell::template forward<S, stage>(p);
        S::store(values, p.kept[0]);
#pragma GCC unroll 4
        for (int gate = 0; gate < G; ++gate) S::store(values + (Cell::kept_count + gate) * S::lanes, p.gate[gate]);
      } else {
        load_values<S, Cell>(values, p);
        p.normal = fma(S::load(vectors + 2 * G * S::lanes), normalised<S>(p.kept[0], moments + moments_inner),
                       S::load(vectors + (2 * G + 1) * S::lanes));
        Cell::template forward<S, stage>(p);
#pragma GCC unroll 4
        for (int i = 1; i < Cell::kept_count; ++i) S::store(values + i * S::lanes, p.kept[i]);
      }
      if constexpr (stage + 1 == pointwise_count<Cell>) {
#pragma GCC unroll 4
        for (int i = 0; i < states; ++i) store_lanes<S>(at(s.after[i], m).data + unit, p.after[i], valid);
      }
    }
  }
}

// All rows of a step, of some unit blocks.
template <class Cell, int stage, class S>
void backward_stage(const BackwardStep<typename S::Real>& s, const BlockRange& range) {
  using Real = typename S::Real;
  constexpr int G = Cell::gate_count, states = state_count<Cell>;
  constexpr Stage part = Cell::stages[stage];
  for (Index block = 0; block < range.blocks; ++block) {
    const Index unit = range.unit + block * S::lanes;
    const int valid = block + 1 < range.blocks ? S::lanes : range.valid;
    for (Index row = 0; row < s.rows; ++row) {
      NormBackwardPoint<S, Cell> p;
      p.held = s.held;
      const auto load = [&](const auto& view) { return load_lanes<S>(at(view, row).data + unit, valid); };
      const auto store = [&](const View<Real>& view, typename S::V v) {
        store_lanes<S>(at(view, row).data + unit, v, valid);
      };
      const Real* const values = gates_at(s.values, unit, s.gate_row + row, S::lanes, value_count<Cell>);
      load_values<S, Cell>(values, p);
      p.dstate[0] = load(s.dstate[0]) + load(s.dy);
#pragma GCC unroll 4
      for (int i = 0; i < states; ++i) {
        if (Cell::reads_before[i]) p.before[i] = load(s.before[i]);
        if (i > 0) p.dstate[i] = load(s.dstate[i]);
      }
      Real* const dinner = gates_at(s.dinner, unit, s.batch_row + row, S::lanes, 1);
      if constexpr (stage + 1 < pointwise_count<Cell>) p.dinner = S::load(dinner);
      Cell::template backward<S, stage>(p);
      Real* const dgates = gates_at(s.dgates, unit, s.dgate_row + row, S::lanes, Cell::slot_count);
#pragma GCC unroll 4
      for (int gate = part.gate; gate < part.gate + part.gates; ++gate) {
        const bool is_held = is_held_gate<Cell>(*s.held, gate);
        store_lanes<S>(dgates + gate * S::lanes, is_held ? typename S::V{} : p.da_h[gate], valid);
        store_lanes<S>(dgates + (G + gate) * S::lanes, is_held ? typename S::V{} : p.da_x[gate], valid);
      }
      if constexpr (stage == 1) store_lanes<S>(dinner, p.dnormal, valid);
      if constexpr (stage == 0 && Cell::leaves_dh) store(s.dstate[0], p.dstate[0]);
#pragma GCC unroll 4
      for (int i = 1; i < states; ++i) {
        if (stage == Cell::flow_stage && s.flow[i].data) store(s.flow[i], p.flow[i]);
        if (stage == 0) store(s.dstate[i], p.dstate[i]);
      }
    }
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
