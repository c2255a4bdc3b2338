// The states of a sparse reservoir (Jaeger 2001), over all steps of some sequences:
//
//   h = (1 - l) h' + l f(W h' + W_in u + b)
//
// W and W_in are lists of their connections, `Reservoir` in types.h says how they lie. A step's *operands* are one row:
// h', u, and a zero for the places in a list that no connection takes.
//
// A sequence by itself has vectors of units, whose operands are collected: by a gather instruction, or one by one,
// which takes 1.5 times as long on Sapphire Rapids, and on Zen 3 the reverse. Several sequences have vectors of
// sequences, [operand][sequences]; nothing is collected then. All add a unit's products in the order of its list, so a
// sequence's bits do not depend on the others.
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

// The units of some blocks, of one sequence. Several blocks, as the sum of one waits for itself.
template <class S, class Function, bool gathers, int count>
RNNFAST_INLINE void step_of_one(const Reservoir<typename S::Real>& r, Index block, const typename S::Real* operands,
                                typename S::Real* next) {
  using Real = typename S::Real;
  constexpr int units = block_units<Real>, vectors = units / S::lanes;
  typename S::V a[count][vectors];
#pragma GCC unroll 4
  for (int b = 0; b < count; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) a[b][v] = S::load(r.bias + (block + b) * units + v * S::lanes);
  const auto add = [&](int b, const Real* weights, const Column* columns) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Column* at = columns + v * S::lanes;
      const auto operand =
          gathers ? gather<S>(operands, at) : gather_lanes<S>(operands, at, typename LanesTo<S::lanes>::type());
      a[b][v] = fma(S::load(weights + v * S::lanes), operand, a[b][v]);
    }
  };
  const Index common = r.first[block + count] - r.first[block + count - 1];  // the last block has the fewest slots
  for (Index j = 0; j < common; ++j) {
#pragma GCC unroll 4
    for (int b = 0; b < count; ++b) {
      const Index at = (r.first[block + b] + j) * units;
      add(b, r.weights + at, r.columns + at);
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < count; ++b) {
    for (Index j = r.first[block + b] + common; j < r.first[block + b + 1]; ++j)
      add(b, r.weights + j * units, r.columns + j * units);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Index unit = (block + b) * units + v * S::lanes;
      const auto leak = r.leak ? S::load(r.leak + unit) : a[b][v];
      S::store(next + unit, state_after<S, Function>(a[b][v], S::load(operands + unit), r.leak ? &leak : nullptr));
    }
  }
}

// The units of a block, of as many sequences as some vectors have lanes. Two vectors share the reading of a connection.
template <class S, class Function, int vectors>
RNNFAST_INLINE void step_of_many(const Reservoir<typename S::Real>& r, Index block, const typename S::Real* operands,
                                 typename S::Real* next) {
  using Real = typename S::Real;
  constexpr int units = block_units<Real>, most = vector_registers / 2 / vectors, at_once = units < most ? units : most;
  constexpr Index width = vectors * S::lanes;
  for (int part = 0; part < units; part += at_once) {
    const Index first = block * units + part, last = r.first[block + 1];
    typename S::V a[at_once][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < at_once; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) a[i][v] = S::broadcast(r.bias[first + i]);
    for (Index j = r.first[block]; j < last; ++j) {
      const Real* weights = r.weights + j * units + part;
      const Column* columns = r.columns + j * units + part;
#pragma GCC unroll 16
      for (int i = 0; i < at_once; ++i) {
        const auto weight = S::broadcast(weights[i]);
        const Real* operand = operands + Index(columns[i]) * width;
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) a[i][v] = fma(weight, S::load(operand + v * S::lanes), a[i][v]);
      }
    }
    for (int i = 0; i < at_once; ++i) {
      const auto leak = r.leak ? S::broadcast(r.leak[first + i]) : a[i][0];
      for (int v = 0; v < vectors; ++v) {
        const Index at = (first + i) * width + v * S::lanes;
        S::store(next + at, state_after<S, Function>(a[i][v], S::load(operands + at), r.leak ? &leak : nullptr));
      }
    }
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
      for (int first = 0; first < width; first += S::lanes) {
        typename S::V rows[S::lanes] = {};
        for (int i = 0; i < valid; ++i) rows[i] = S::load(states + Index(r.place[unit + i]) * width + first);
        transpose<S>(rows);
        const Index some = min_index(S::lanes, count - first);
        for (Index b = 0; b < some; ++b) store_lanes<S>(at(y, first + b).data + unit, rows[b], valid);
      }
    }
  }
}

// Runs sequences [first, first + count), side by side in `width` lanes.
template <class S, class Function, bool gathers, int width>
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
    if constexpr (width == 1) {
      Index block = 0;
      for (; block + 2 <= r.blocks; block += 2) step_of_one<S, Function, gathers, 2>(r, block, operands, next);
      if (block < r.blocks) step_of_one<S, Function, gathers, 1>(r, block, operands, next);
    } else {
      for (Index block = 0; block < r.blocks; ++block)
        step_of_many<S, Function, width / S::lanes>(r, block, operands, next);
    }
    write_states<S, width>(r, next, at(args.y, row), sequences.count);
    Real* const before = operands;
    operands = next, next = before;
  }
}

template <class Real>
constexpr Index scratch_of_member(const Reservoir<Real>& r) {
  return 2 * operand_count(r) * 2 * Widest<Real>::lanes;
}

// A member takes vectors of sequences, two at a time.
template <class Function, class Real>
void run_share(const ReservoirArgs<Real>& args, const Team& team) {
  using S = Widest<Real>;
  Real* const scratch = args.scratch + team.rank * scratch_of_member(args.reservoir);
  const Index vectors = (args.B + S::lanes - 1) / S::lanes;
  const Index last = min_index(share(vectors, team.rank + 1, team.size) * S::lanes, args.B);
  for (RowRange some = {.first = share(vectors, team.rank, team.size) * S::lanes, .count = 0}; some.first < last;
       some.first += some.count) {
    some.count = min_index(2 * S::lanes, last - some.first);
    if (some.count > S::lanes)
      run_sequences<S, Function, false, 2 * S::lanes>(args, some, scratch, team);
    else if (some.count > 1)
      run_sequences<S, Function, false, S::lanes>(args, some, scratch, team);
    else if (has_gather && args.gathers)
      run_sequences<S, Function, has_gather, 1>(args, some, scratch, team);
    else
      run_sequences<S, Function, false, 1>(args, some, scratch, team);
  }
}

template <class Real>
Index reservoir_scratch(const Reservoir<Real>& r, Index members) {
  return members * scratch_of_member(r);
}

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
