// Softmax and cross entropy in one pass over each row of logits: while the row is in the first cache level, its loss
// and its gradient are made from it.
//
//   loss = -log p[target],  dlogits = scale (p - onehot(target)),  p[v] = e^(logits[v] - m) / total,  m = max logits
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "kernels/vec_math.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
constexpr Real infinity = Real(__builtin_inf());

// The first `count` lanes, the others -infinity: no class.
template <class S>
RNNFAST_INLINE typename S::V load_logits(const typename S::Real* p, int count) {
  if (count == S::lanes) return S::load(p);
  typename S::Bits lane;
  for (int i = 0; i < S::lanes; ++i) lane[i] = i;
  return lane < typename S::Bits{} + count ? load_partial<S>(p, count) : S::broadcast(-infinity<typename S::Real>);
}

// The softmax of a row: e^(logits - most) / total.
template <class Real>
struct Softmax {
  Real most, total;
};

// Writes `scale` times the softmax of one row [V].
template <class Real>
RNNFAST_INLINE Softmax<Real> softmax_row(const Real* logits, Index V, Real scale, Real* out) {
  using S = Widest<Real>;
  using Vector = typename S::V;
  const auto lanes_at = [&](Index v) { return int(min_index(S::lanes, V - v)); };
  Vector most = S::broadcast(-infinity<Real>);
  for (Index v = 0; v < V; v += S::lanes) most = max(load_logits<S>(logits + v, lanes_at(v)), most);
  const Real m = fold<S>(most, [](Vector a, Vector b) { return max(a, b); });
  Vector totals = {};
  for (Index v = 0; v < V; v += S::lanes) {
    const Vector e = exp_not_positive<S>(load_logits<S>(logits + v, lanes_at(v)) - m);
    totals = totals + e;
    store_lanes<S>(out + v, e, lanes_at(v));
  }
  const Real total = sum_lanes<S>(totals);
  const Real factor = scale / total;
  for (Index v = 0; v < V; v += S::lanes)
    store_lanes<S>(out + v, load_lanes<S>(out + v, lanes_at(v)) * factor, lanes_at(v));
  return {.most = m, .total = total};
}

// Writes the gradient of one row [V] and returns its loss.
template <class Real>
RNNFAST_INLINE double cross_entropy_row(const Real* logits, Index V, Index target, Real scale, Real* dlogits) {
  const auto [most, total] = softmax_row(logits, V, scale, dlogits);
  dlogits[target] -= scale;
  return log_from_one(double(total)) - double(logits[target] - most);
}

// A member takes rows; the first one sums up the losses of all.
template <class Real>
void cross_entropy(const CrossEntropyArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  Index counted = 0;
  for (Index row = 0; row < args.N; ++row) counted += args.targets[row] != no_class;
  const double scale = args.mean ? 1 / double(max_index(counted, 1)) : 1;
  const Index V = args.V, last = share(args.N, team.rank + 1, team.size);
  for (Index row = share(args.N, team.rank, team.size); row < last; ++row) {
    if (row % 64 == 0 && skips(team, row)) break;
    const Index target = args.targets[row];
    Real* dlogits = args.dlogits + row * V;
    args.losses[row] = 0;
    if (target != no_class)
      args.losses[row] = cross_entropy_row(at(args.logits, row).data, V, target, Real(scale), dlogits);
    else
      for (Index v = 0; v < V; ++v) dlogits[v] = 0;
  }
  if (!team.barrier(team) || team.rank > 0) return;
  double sum = 0;
  for (Index row = 0; row < args.N; ++row) sum += args.losses[row];
  *args.loss = scale * sum;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
