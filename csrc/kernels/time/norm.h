// Layer normalisation (Ba, Kiros and Hinton 2016) of what the products of a step fill: a pass over its rows, for which
// the cell's pointwise parts wait. cells/norm.h has the equations, of which this is
//
//   LN(v) = (v - mean v) / sqrt(var v + eps)     over all n elements of a row
//   dv = (gain d - mean(gain d) - LN(v) mean(gain d LN(v))) / sqrt(var v + eps),
//
// where d is the gradient of gain LN(v) + bias, d LN(v) and d what a row adds to the gradients of gain and bias. Sums
// go through the unit blocks in ascending order, those over rows through the rows of the batch, a few at a time: no
// member has a part of either.
#pragma once

#include "kernels/cells/all.h"
#include "kernels/cells/cell.h"
#include "kernels/cells/norm.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Values lie behind the slots of some rows, and the moments of each row behind the values.
template <class Real>
RNNFAST_INLINE Gates<Real> values_of(const CellShape& cell, const Gates<Real>& gates, const Blocks& units) {
  return {gates.data + gates_size(cell.slot_count, gates.rows, units), gates.rows};
}

template <class Real>
RNNFAST_INLINE View<Real> moments_of(const CellShape& cell, const Gates<Real>& gates, const Blocks& units) {
  return {gates.data + gates_size(cell.slot_count + cell.value_count, gates.rows, units), moments_of_row};
}

// What is normalised together: some of the vectors of a row and a unit block.
template <class Real>
struct NormPart {
  Gates<Real> rows;
  int slots, slot, count;  // vectors that are there; the first that is meant, and how many are
};

template <class S, class Real>
RNNFAST_INLINE Real* vectors_at(const NormPart<Real>& part, Index unit, Index row) {
  return gates_at(part.rows, unit, row, S::lanes, part.slots) + part.slot * S::lanes;
}

// f<S>(unit, lanes that are units) for each unit block of a row, in ascending order.
template <class Real, class F>
RNNFAST_INLINE void for_each_unit_block(const Blocks& units, F&& f) {
  for_each_block<Real>(units, all(units),
                       [&]<class S>(const BlockRange& range) { f.template operator()<S>(range.unit, range.valid); });
}

// Sums over the elements of each of M rows: lane by lane, and of narrower blocks by themselves.
template <class Real, int M>
struct RowSums {
  typename Widest<Real>::V wide[M] = {};
  Real tail[M] = {};
};

template <class S, int M>
RNNFAST_INLINE void add(RowSums<typename S::Real, M>& sums, const typename S::V (&v)[M]) {
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
    if constexpr (S::lanes == Widest<typename S::Real>::lanes)
      sums.wide[m] = sums.wide[m] + v[m];
    else
      sums.tail[m] += sum_lanes<S>(v[m]);
  }
}

template <class Real, int M>
RNNFAST_INLINE Real mean_of(const RowSums<Real, M>& sums, int m, Index n) {
  return (sum_lanes<Widest<Real>>(sums.wide[m]) + sums.tail[m]) / Real(n);
}

// The lanes that are units. The others, zero elsewhere, hold what a held gate makes of them.
template <class S>
RNNFAST_INLINE typename S::V of_units(typename S::V v, int valid) {
  return valid < S::lanes ? select<S>((1u << valid) - 1, v, typename S::V{}) : v;
}

// ---- Forward -------------------------------------------------------------------------------------------------------

// The mean of each of M rows from `row` on, and 1 / sqrt(variance + eps). What rounding leaves out of a mean is added
// to it: a row of equal numbers has that mean, and the variance 0.
template <int M, class Real>
__attribute__((noinline)) void find_moments(const NormPart<Real>& part, const Blocks& units, Index n, Index row,
                                            Real eps, const View<Real>& moments) {
  RowSums<Real, M> sums, left, squares;
  for_each_unit_block<Real>(units, [&]<class S>(Index unit, int valid) {
    typename S::V sum[M] = {};
    for (int slot = 0; slot < part.count; ++slot)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) sum[m] = sum[m] + S::load(vectors_at<S>(part, unit, row + m) + slot * S::lanes);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) sum[m] = of_units<S>(sum[m], valid);
    add<S>(sums, sum);
  });
  Real mean[M];
  for (int m = 0; m < M; ++m) mean[m] = mean_of(sums, m, n);
  for_each_unit_block<Real>(units, [&]<class S>(Index unit, int valid) {
    typename S::V sum[M] = {}, square[M] = {};
    for (int slot = 0; slot < part.count; ++slot)
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const auto v = S::load(vectors_at<S>(part, unit, row + m) + slot * S::lanes);
        const auto d = of_units<S>(v - S::broadcast(mean[m]), valid);
        sum[m] = sum[m] + d, square[m] = fma(d, d, square[m]);
      }
    add<S>(left, sum), add<S>(squares, square);
  });
  using Narrow = Width<Real, width_count - 1>;
  for (int m = 0; m < M; ++m) {
    const Real rest = mean_of(left, m, n), variance = mean_of(squares, m, n) - rest * rest;
    Real* const to = at(moments, row + m).data;
    to[0] = mean[m] + rest;
    to[1] = (1 / sqrt(Narrow::broadcast(eps + (variance < 0 ? 0 : variance))))[0];
  }
}

// What follows the recurrent product of a step: its rows are normalised, and the cell makes of them the states.
template <class Real>
__attribute__((noinline)) void forward_norm(const Problem& p, Real eps, ForwardStep<Real>& s, const Team& team) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H);
  const Index G = cell.gate_count;
  s.values = values_of(cell, s.gates, units), s.moments = moments_of(cell, s.gates, units);
  const auto moments = [&](const Gates<Real>& rows, int slots, int slot, int count, int to, Index row, Index M) {
    const NormPart<Real> part = {.rows = rows, .slots = slots, .slot = slot, .count = count};
    const View<Real> out = {s.moments.data + to, s.moments.stride};
    if (M == rows_of_sum) return find_moments<rows_of_sum>(part, units, count * p.H, s.gate_row + row, eps, out);
    for (Index m = row; m < row + M; ++m) find_moments<1>(part, units, count * p.H, s.gate_row + m, eps, out);
  };
  for (Index row = 0; row < s.rows; row += rows_of_sum) {
    if (row % rows_at_once == 0 && skips(team, s.rows)) return;
    const Index M = min_index(rows_of_sum, s.rows - row);
    moments(s.gates, cell.slot_count, 0, int(G), moments_h, row, M);
    moments(s.gates, cell.slot_count, int(G), int(G), moments_x, row, M);
    for (int stage = 0; stage < cell.stage_count; ++stage) {
      if (stage == 1) moments(s.values, cell.value_count, 0, 1, moments_inner, row, M);
      for_each_width<Real>(units, all(units), [&](const BlockRange& range) {
        functions_of<Real>(cell).forward[stage][range.halvings](s, nullptr, 0, range, row, M);
      });
    }
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// Vectors of sums over rows: the cell's vectors, and b_ih and b_hh.
constexpr int sum_count(const CellShape& cell) {
  return is_normalised(cell) ? cell.vector_count + 2 * cell.gate_count : 0;
}

constexpr Index sum_rows(const Problem& p) { return (p.B + rows_of_sum - 1) / rows_of_sum; }

// Of one part of the rows: v, and d, which becomes dv, and where their rows begin; where among the vectors, and so
// among the sums, the gains are, and where among the sums the biases.
template <class Real>
struct NormGradient {
  NormPart<const Real> v;
  NormPart<Real> d;
  Index v_row, d_row;
  View<const Real> moments;
  const Real* vectors;
  int vector_count, gain;
  Gates<Real> sums;
  int sum_count, bias;
};

// M rows from `row` on, all of which belong to row `sum` of the sums.
template <int M, class Real>
__attribute__((noinline)) void normalise_gradient(const NormGradient<Real>& g, const Blocks& units, Index n, Index row,
                                                  Index sum) {
  RowSums<Real, M> sums, products;
  const View<const Real> moments = at(g.moments, row);
  for_each_unit_block<Real>(units, [&]<class S>(Index unit, int) {
    typename S::V sum_d[M] = {}, product[M] = {};
    const Real* const gains = g.vectors + unit * g.vector_count + g.gain * S::lanes;
    Real* const totals = gates_at(g.sums, unit, sum, S::lanes, g.sum_count);
    for (int slot = 0; slot < g.d.count; ++slot) {
      const auto gain = S::load(gains + slot * S::lanes);
      Real* const dgain = totals + (g.gain + slot) * S::lanes;
      Real* const dbias = totals + (g.bias + slot) * S::lanes;
      auto total_gain = S::load(dgain), total_bias = S::load(dbias);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const auto v = S::load(vectors_at<S>(g.v, unit, g.v_row + row + m) + slot * S::lanes);
        const auto d = S::load(vectors_at<S>(g.d, unit, g.d_row + row + m) + slot * S::lanes);
        const auto normal = normalised<S>(v, at(moments, m).data), scaled = d * gain;
        total_gain = fma(d, normal, total_gain), total_bias = total_bias + d;
        sum_d[m] = sum_d[m] + scaled, product[m] = fma(scaled, normal, product[m]);
      }
      S::store(dgain, total_gain), S::store(dbias, total_bias);
    }
    add<S>(sums, sum_d), add<S>(products, product);
  });
  Real mean_d[M], mean_product[M];
  for (int m = 0; m < M; ++m) mean_d[m] = mean_of(sums, m, n), mean_product[m] = mean_of(products, m, n);
  for_each_unit_block<Real>(units, [&]<class S>(Index unit, int valid) {
    const Real* const gains = g.vectors + unit * g.vector_count + g.gain * S::lanes;
    for (int slot = 0; slot < g.d.count; ++slot) {
      const auto gain = S::load(gains + slot * S::lanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) {
        const Real* const of_row = at(moments, m).data;
        Real* const d = vectors_at<S>(g.d, unit, g.d_row + row + m) + slot * S::lanes;
        const auto v = S::load(vectors_at<S>(g.v, unit, g.v_row + row + m) + slot * S::lanes);
        const auto left = S::load(d) * gain - S::broadcast(mean_d[m]);  // 0 where n is 1
        const auto dv = fma(-normalised<S>(v, of_row), S::broadcast(mean_product[m]), left);
        store_lanes<S>(d, dv * S::broadcast(of_row[1]), valid);
      }
    }
  });
}

// Rows [row, row + count) of a step.
template <class Real>
BackwardStep<Real> rows_of_step(const BackwardStep<Real>& s, Index row, Index count) {
  BackwardStep<Real> part = s;
  part.gate_row += row, part.dgate_row += row, part.batch_row += row, part.rows = count;
  for (int i = 0; i < most_states; ++i) {
    part.before[i] = at(s.before[i], row), part.dstate[i] = at(s.dstate[i], row);
    if (s.flow[i].data) part.flow[i] = at(s.flow[i], row);
  }
  part.dy = at(s.dy, row);
  return part;
}

// The mirror image of forward_norm: makes dgates, of the products of x and of h' apart, and adds to the sums of a step.
template <class Real>
__attribute__((noinline)) void backward_norm(const Problem& p, const BackwardStep<Real>& s, const Team& team) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H);
  const int G = cell.gate_count, slots = cell.slot_count, values = cell.value_count;
  const auto pass = [&](const NormGradient<Real>& g, Index rows, Index sum) {
    const Index n = g.d.count * p.H;
    if (rows == rows_of_sum) return normalise_gradient<rows_of_sum>(g, units, n, 0, sum);
    for (Index row = 0; row < rows; ++row) normalise_gradient<1>(g, units, n, row, sum);
  };
  for (Index row = 0; row < s.rows; row += rows_of_sum) {
    if (row % rows_at_once == 0 && skips(team, s.rows)) return;
    const BackwardStep<Real> part = rows_of_step(s, row, min_index(rows_of_sum, s.rows - row));
    const auto gradient = [&](NormPart<const Real> v, NormPart<Real> d, Index d_row, int moments, int gain, int bias) {
      return NormGradient<Real>{.v = v,
                                .d = d,
                                .v_row = part.gate_row,
                                .d_row = d_row,
                                .moments = {at(s.moments, part.gate_row).data + moments, s.moments.stride},
                                .vectors = s.vectors,
                                .vector_count = cell.vector_count,
                                .gain = gain,
                                .sums = s.sums,
                                .sum_count = sum_count(cell),
                                .bias = bias};
    };
    const Index sum = part.batch_row / rows_of_sum;
    for (int stage = cell.stage_count - 1; stage >= 0; --stage) {
      for_each_width<Real>(units, all(units), [&](const BlockRange& range) {
        functions_of<Real>(cell).backward[stage][range.halvings](part, range);
      });
      if (stage == 1)
        pass(gradient({.rows = s.values, .slots = values, .slot = 0, .count = 1},
                      {.rows = s.dinner, .slots = 1, .slot = 0, .count = 1}, part.batch_row, moments_inner, 2 * G,
                      2 * G + 1),
             part.rows, sum);
    }
    const auto of_slots = [&](int slot, int moments, int gain, int bias) {
      pass(gradient({.rows = s.gates, .slots = slots, .slot = slot, .count = G},
                    {.rows = s.dgates, .slots = slots, .slot = slot, .count = G}, part.dgate_row, moments, gain, bias),
           part.rows, sum);
    };
    of_slots(0, moments_h, G, cell.vector_count + G);
    of_slots(G, moments_x, 0, cell.vector_count);
  }
}

// The sums of an item begin with zeros.
template <class Real>
__attribute__((noinline)) void clear_sums(const Problem& p, const Gates<Real>& sums, const Item& item) {
  const Index first = item.first / rows_of_sum, last = (item.first + item.rows + rows_of_sum - 1) / rows_of_sum;
  for_each_unit_block<Real>(blocks_of<Real>(p.H), [&]<class S>(Index unit, int) {
    Real* const from = gates_at(sums, unit, first, S::lanes, sum_count(*p.cell));
    for (Index i = 0; i < (last - first) * sum_count(*p.cell) * S::lanes; ++i) from[i] = 0;
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
