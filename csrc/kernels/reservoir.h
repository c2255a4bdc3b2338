// The states of a sparse reservoir (Jaeger 2001), over all steps of some sequences:
//
//   h = (1 - l) h' + l f(W h' + W_in u + b)
//
// W and W_in are lists of their connections, `Reservoir` in types.h says how they lie. A step's *operands* are one row:
// h', u, and zeros.
//
// A sequence by itself has vectors of units, whose operands are collected: by a gather instruction, or one by one,
// which takes 1.5 times as long on Sapphire Rapids, and on Zen 3 the reverse. Where a permutation of two vectors takes
// a cycle, most are picked out of pairs of vectors instead. Several sequences have vectors of sequences,
// [operand][sequences]; nothing is collected then. All add a unit's products in the order of its lists, so a sequence's
// bits do not depend on the others.
#pragma once

#include "kernels/cells/elman.h"
#include "kernels/layout.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// ---- One step ------------------------------------------------------------------------------------------------------

// The sum is 0 and not -0 where all products are, however many zeros a list has between them.
template <class S, class Function>
RNNFAST_INLINE typename S::V state_after(typename S::V a, typename S::V before, const typename S::V* leak) {
  const auto f = Function::template value<S>(a + S::broadcast(0));
  return leak ? fma(*leak, f, (1 - *leak) * before) : f;
}

template <class Real>
constexpr int pair_lanes = has_pairs ? Widest<Real>::lanes : 0;

// Units of a block: enough independent sums to hide the latency of a multiply-add, and with pairs two vectors, which
// share the reading of operands.
template <class Real>
constexpr int block_units = has_pairs                 ? 2 * Widest<Real>::lanes
                            : Widest<Real>::lanes < 8 ? 8
                                                      : Widest<Real>::lanes;

// Of the vectors, each with a bit for every unit that finds an operand there, the one with most of those that are not
// reached already.
template <class Real>
Index next_of_pair(const std::uint32_t* units, Index vectors, std::uint32_t reached) {
  Index best = 0;
  if constexpr (has_pairs) {  // there is an instruction that counts bits
    int most = -1;
    for (Index v = 0; v < vectors; ++v) {
      const int more = __builtin_popcount(units[v] & ~reached);
      if (more > most) best = v, most = more;
    }
  }
  return best;
}

// A group of slots of a block.
template <class S, int vectors>
RNNFAST_INLINE void add_pairs([[maybe_unused]] const Pairs<typename S::Real>& pairs, [[maybe_unused]] Index slot,
                              [[maybe_unused]] const typename S::Real* operands, [[maybe_unused]] typename S::V& before,
                              [[maybe_unused]] typename S::V (&a)[vectors]) {
#if defined(__AVX512F__)
  constexpr int units = vectors * S::lanes;
#pragma GCC unroll 2
  for (Index four = slot; four < slot + pairs.group; four += 4) {
    Where where[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) where[v] = load_where(pairs.picks + four / 4 * units + v * S::lanes);
#pragma GCC unroll 4
    for (int s = 0; s < 4; ++s) {
      const auto second = S::load(operands + pairs.second[four + s]);
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v)
        a[v] = fma(S::load(pairs.weights + (four + s) * units + v * S::lanes), pick(before, second, where[v]), a[v]);
      before = second;
    }
  }
#endif
}

// The sums of the units of some blocks, of one sequence. Several blocks, as the sum of one waits for itself.
template <class S, bool gathers, int count>
RNNFAST_INLINE void sums_of_one(const Reservoir<typename S::Real>& r, Index block, const typename S::Real* operands,
                                typename S::Real* sums) {
  using Real = typename S::Real;
  constexpr int units = block_units<Real>, vectors = units / S::lanes;
  const Index* const first = r.collected.first + block;
  typename S::V a[count][vectors];
#pragma GCC unroll 4
  for (int b = 0; b < count; ++b)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) a[b][v] = S::load(r.bias + (block + b) * units + v * S::lanes);
  const auto add = [&](int b, Index slot) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      const Column* at = r.collected.columns + slot * units + v * S::lanes;
      const auto operand =
          gathers ? gather<S>(operands, at) : gather_lanes<S>(operands, at, typename LanesTo<S::lanes>::type());
      a[b][v] = fma(S::load(r.collected.weights + slot * units + v * S::lanes), operand, a[b][v]);
    }
  };
  Index done = 0;
  if constexpr (has_pairs) {
    static_assert(count == 1);
    typename S::V before = S::broadcast(0);
    for (Index slot = r.pairs.first[block]; slot < r.pairs.first[block + 1]; slot += r.pairs.group) {
      add_pairs<S>(r.pairs, slot, operands, before, a[0]);
      if (first[0] + done < first[1]) add(0, first[0] + done++);
    }
  } else {
    const Index common = first[count] - first[count - 1];  // the last block has the fewest slots
    for (; done < common; ++done) {
#pragma GCC unroll 4
      for (int b = 0; b < count; ++b) add(b, first[b] + done);
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < count; ++b) {
    for (Index slot = first[b] + done; slot < first[b + 1]; ++slot) add(b, slot);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) S::store(sums + (block + b) * units + v * S::lanes, a[b][v]);
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
    const Index first = block * units + part, last = r.all.first[block + 1];
    typename S::V a[at_once][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < at_once; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) a[i][v] = S::broadcast(r.bias[first + i]);
    for (Index j = r.all.first[block]; j < last; ++j) {
      const Real* weights = r.all.weights + j * units + part;
      const Column* columns = r.all.columns + j * units + part;
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
        const Index at = operand_at(first + i, pair_lanes<Real>) * width + v * S::lanes;
        S::store(next + at, state_after<S, Function>(a[i][v], S::load(operands + at), r.leak ? &leak : nullptr));
      }
    }
  }
}

// ---- All steps -----------------------------------------------------------------------------------------------------

// With a zero at the end.
template <class Real>
constexpr Index operand_count(const Reservoir<Real>& r) {
  constexpr Index whole = has_pairs ? Widest<Real>::lanes : 1;
  return (operand_at(r.blocks * block_units<Real> + r.I, pair_lanes<Real>) / whole + 1) * whole;
}

constexpr Index steps_between_questions = 16;  // whether to go on, which takes longer than a step of a few units

// Runs a sequence. The states and the inputs are values by their places, which each step spreads to be operands.
template <class S, class Function, bool gathers>
void run_one(const ReservoirArgs<typename S::Real>& args, Index b, typename S::Real* scratch, const Team& team) {
  using Real = typename S::Real;
  const Reservoir<Real>& r = args.reservoir;
  const Index size = operand_count(r), inputs = r.blocks * block_units<Real>;
  Real *const operands = scratch, *const values = scratch + size, *const sums = values + size;
  for (Index i = 0; i < 2 * size; ++i) scratch[i] = 0;
  for (Index unit = 0; unit < r.H; ++unit) values[r.place[unit]] = at(args.h, b).data[unit];
  for (Index t = 0; t < args.T; ++t) {
    if (t % steps_between_questions == 0 && team.interrupted(team)) return;
    const Index row = t * args.B + b;
    for (Index i = 0; i < r.I; ++i) values[inputs + i] = at(args.x, row).data[i];
    if constexpr (has_pairs) {
      constexpr int some = S::lanes - 1;
      for (Index v = 0; v * some < inputs + r.I; ++v)
        S::store(operands + v * S::lanes, load_lanes<S>(values + v * some, some));
    } else {
      for (Index i = 0; i < inputs + r.I; ++i) operands[i] = values[i];
    }
    constexpr int count = has_pairs ? 1 : 2;
    Index block = 0;
    for (; block + count <= r.blocks; block += count) sums_of_one<S, gathers, count>(r, block, operands, sums);
    if (block < r.blocks) sums_of_one<S, gathers, 1>(r, block, operands, sums);
    for (Index i = 0; i < inputs; i += S::lanes) {  // by themselves, they wait for each other less
      const auto leak = r.leak ? S::load(r.leak + i) : typename S::V{};
      const auto next = state_after<S, Function>(S::load(sums + i), S::load(values + i), r.leak ? &leak : nullptr);
      S::store(values + i, next);
    }
    Real* const y = at(args.y, row).data;
    for (Index unit = 0; unit < r.H; ++unit) y[unit] = values[r.place[unit]];
  }
}

// Writes the states of some sequences, in the order of the units: [operand][width] becomes rows of y.
template <class S, int width>
RNNFAST_INLINE void write_states(const Reservoir<typename S::Real>& r, const typename S::Real* operands,
                                 const View<typename S::Real>& y, Index count) {
  for (Index unit = 0; unit < r.H; unit += S::lanes) {
    const int valid = int(min_index(S::lanes, r.H - unit));
    for (int first = 0; first < width; first += S::lanes) {
      typename S::V rows[S::lanes] = {};
      for (int i = 0; i < valid; ++i)
        rows[i] = S::load(operands + operand_at(r.place[unit + i], pair_lanes<typename S::Real>) * width + first);
      transpose<S>(rows);
      const Index some = min_index(S::lanes, count - first);
      for (Index b = 0; b < some; ++b) store_lanes<S>(at(y, first + b).data + unit, rows[b], valid);
    }
  }
}

// Runs sequences [first, first + count), side by side in `width` lanes.
template <class S, class Function, int width>
void run_many(const ReservoirArgs<typename S::Real>& args, RowRange sequences, typename S::Real* scratch,
              const Team& team) {
  using Real = typename S::Real;
  const Reservoir<Real>& r = args.reservoir;
  const Index size = operand_count(r) * width, inputs = r.blocks * block_units<Real>;
  const auto operand = [](Index place) { return operand_at(place, pair_lanes<Real>) * width; };
  Real *operands = scratch, *next = scratch + size;
  for (Index i = 0; i < 2 * size; ++i) scratch[i] = 0;
  for (Index b = 0; b < sequences.count; ++b)
    for (Index unit = 0; unit < r.H; ++unit)
      operands[operand(r.place[unit]) + b] = at(args.h, sequences.first + b).data[unit];
  for (Index t = 0; t < args.T; ++t) {
    if (t % steps_between_questions == 0 && team.interrupted(team)) return;
    const Index row = t * args.B + sequences.first;
    for (Index b = 0; b < sequences.count; ++b)
      for (Index i = 0; i < r.I; ++i) operands[operand(inputs + i) + b] = at(args.x, row + b).data[i];
    for (Index block = 0; block < r.blocks; ++block)
      step_of_many<S, Function, width / S::lanes>(r, block, operands, next);
    write_states<S, width>(r, next, at(args.y, row), sequences.count);
    Real* const before = operands;
    operands = next, next = before;
  }
}

template <class Real>
constexpr Index scratch_of_member(const Reservoir<Real>& r) {
  return 2 * operand_count(r) * 2 * Widest<Real>::lanes;  // of two vectors of sequences; one by itself takes less
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
      run_many<S, Function, 2 * S::lanes>(args, some, scratch, team);
    else if (some.count > 1)
      run_many<S, Function, S::lanes>(args, some, scratch, team);
    else if (has_gather && args.gathers)
      run_one<S, Function, has_gather>(args, some.first, scratch, team);
    else
      run_one<S, Function, false>(args, some.first, scratch, team);
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
