// The states of a sparse reservoir (Jaeger 2001), over all steps of some sequences:
//
//   h = (1 - l) h' + l f(W h' + W_in u + b)
//
// W and W_in are lists of their connections, `Reservoir` in types.h says how they lie. A step's *operands* are one row:
// h', u, and a zero for the places in a list that no connection takes.
//
// A sequence by itself has vectors of units, whose operands are collected one by one: on Zen 3 a gather instruction
// takes 1.5 times as long. Several sequences have vectors of sequences, [operand][lanes]; nothing is collected then.
// Both add a unit's products in the order of its list, so a sequence's bits do not depend on the others.
#pragma once

#include "kernels/cells/elman.h"
#include "kernels/layout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// ---- One step ------------------------------------------------------------------------------------------------------

template <class S, class Function>
RNNFAST_INLINE typename S::V state_after(typename S::V a, typename S::V before, const typename S::V* leak) {
  const auto f = Function::template value<S>(a);
  return leak ? fma(*leak, f, (1 - *leak) * before) : f;
}

// Units of a block: enough independent sums to hide the latency of a multiply-add.
template <class Real>
constexpr int block_units = Widest<Real>::lanes < 8 ? 8 : Widest<Real>::lanes;

template <class S, int... i>
RNNFAST_INLINE typename S::V collect(const typename S::Real* operands, const Column* columns, Lanes<i...>) {
  return typename S::V{operands[columns[i]]...};
}

// The units of a block, of one sequence.
template <class S, class Function>
RNNFAST_INLINE void step_of_one(const Reservoir<typename S::Real>& r, Index block, const typename S::Real* operands,
                                typename S::Real* next) {
  constexpr int units = block_units<typename S::Real>, vectors = units / S::lanes;
  const Index first = block * units, last = r.first[block + 1];
  typename S::V a[vectors];
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) a[v] = S::load(r.bias + first + v * S::lanes);
  for (Index j = r.first[block]; j < last; ++j) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Index at = j * units + v * S::lanes;
      a[v] =
          fma(S::load(r.weights + at), collect<S>(operands, r.columns + at, typename LanesTo<S::lanes>::type()), a[v]);
    }
  }
  for (int v = 0; v < vectors; ++v) {
    const Index unit = first + v * S::lanes;
    const auto leak = r.leak ? S::load(r.leak + unit) : a[v];
    S::store(next + unit, state_after<S, Function>(a[v], S::load(operands + unit), r.leak ? &leak : nullptr));
  }
}

// The units of a block, of as many sequences as a vector has lanes.
template <class S, class Function>
RNNFAST_INLINE void step_of_many(const Reservoir<typename S::Real>& r, Index block, const typename S::Real* operands,
                                 typename S::Real* next) {
  constexpr int units = block_units<typename S::Real>;
  const Index first = block * units, last = r.first[block + 1];
  typename S::V a[units];
#pragma GCC unroll 16
  for (int i = 0; i < units; ++i) a[i] = S::broadcast(r.bias[first + i]);
  for (Index j = r.first[block]; j < last; ++j) {
    const typename S::Real* weights = r.weights + j * units;
    const Column* columns = r.columns + j * units;
#pragma GCC unroll 16
    for (int i = 0; i < units; ++i)
      a[i] = fma(S::broadcast(weights[i]), S::load(operands + Index(columns[i]) * S::lanes), a[i]);
  }
  for (int i = 0; i < units; ++i) {
    const Index at = (first + i) * S::lanes;
    const auto leak = r.leak ? S::broadcast(r.leak[first + i]) : a[i];
    S::store(next + at, state_after<S, Function>(a[i], S::load(operands + at), r.leak ? &leak : nullptr));
  }
}

// ---- All steps -----------------------------------------------------------------------------------------------------

template <class Real>
constexpr Index operand_count(const Reservoir<Real>& r) {
  return r.blocks * block_units<Real> + r.I + 1;
}

// Writes the states of some sequences, in the order of the units: [place][width] becomes rows of y.
template <class S, int width>
RNNFAST_INLINE void write_states(const Reservoir<typename S::Real>& r, const typename S::Real* states,
                                 const View<typename S::Real>& y, Index count) {
  if constexpr (width == 1) {
    for (Index unit = 0; unit < r.H; ++unit) y.data[unit] = states[r.place[unit]];
  } else {
    for (Index unit = 0; unit < r.H; unit += S::lanes) {
      const int valid = int(min_index(S::lanes, r.H - unit));
      typename S::V rows[S::lanes] = {};
      for (int i = 0; i < valid; ++i) rows[i] = S::load(states + Index(r.place[unit + i]) * width);
      transpose<S>(rows);
      for (Index b = 0; b < count; ++b) store_lanes<S>(at(y, b).data + unit, rows[b], valid);
    }
  }
}

// Runs sequences [first, first + count), side by side in `width` lanes.
template <class S, class Function, int width>
void run_sequences(const ReservoirArgs<typename S::Real>& args, RowRange sequences, typename S::Real* scratch,
                   const Team& team) {
  using Real = typename S::Real;
  constexpr Index steps_between_questions = 16;  // whether to go on, which takes longer than a step of a few units
  const Reservoir<Real>& r = args.reservoir;
  const Index size = operand_count(r) * width, inputs = r.blocks * block_units<Real>;
  Real *operands = scratch, *next = scratch + size;
  for (Index i = 0; i < 2 * size; ++i) scratch[i] = 0;
  for (Index b = 0; b < sequences.count; ++b)
    for (Index unit = 0; unit < r.H; ++unit)
      operands[r.place[unit] * width + b] = at(args.h, sequences.first + b).data[unit];
  for (Index t = 0; t < args.T; ++t) {
    if (t % steps_between_questions == 0 && team.interrupted(team)) return;
    const Index row = t * args.B + sequences.first;
    for (Index b = 0; b < sequences.count; ++b)
      for (Index i = 0; i < r.I; ++i) operands[(inputs + i) * width + b] = at(args.x, row + b).data[i];
    for (Index block = 0; block < r.blocks; ++block) {
      if constexpr (width == 1)
        step_of_one<S, Function>(r, block, operands, next);
      else
        step_of_many<S, Function>(r, block, operands, next);
    }
    write_states<S, width>(r, next, at(args.y, row), sequences.count);
    Real* const before = operands;
    operands = next, next = before;
  }
}

template <class Real>
constexpr Index scratch_of_member(const Reservoir<Real>& r) {
  return 2 * operand_count(r) * Widest<Real>::lanes;
}

template <class Function, class Real>
void run_share(const ReservoirArgs<Real>& args, const Team& team) {
  using S = Widest<Real>;
  Real* const scratch = args.scratch + team.rank * scratch_of_member(args.reservoir);
  const Index tiles = (args.B + S::lanes - 1) / S::lanes, last = share(tiles, team.rank + 1, team.size);
  for (Index tile = share(tiles, team.rank, team.size); tile < last; ++tile) {
    const Index first = tile * S::lanes, count = min_index(S::lanes, args.B - first);
    if (count == 1)
      run_sequences<S, Function, 1>(args, {.first = first, .count = count}, scratch, team);
    else
      run_sequences<S, Function, S::lanes>(args, {.first = first, .count = count}, scratch, team);
  }
}

template <class Real>
Index reservoir_scratch(const Reservoir<Real>& r, Index members) {
  return members * scratch_of_member(r);
}

// A member takes sequences.
template <class Real>
void reservoir(const ReservoirArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  if (args.reservoir.is_relu)
    run_share<Relu>(args, team);
  else
    run_share<Tanh>(args, team);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
