// Steps of SGD, Adam and AdamW, one pass over a parameter with its gradient and what is carried, and the sum of squares
// that clipping needs. A step fuses and reorders no operation: it has the same bits on every instruction set.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// A member takes a range of n elements: f(first, valid lanes), vector by vector.
template <class Real, class F>
RNNFAST_INLINE void for_my_vectors(Index n, const Team& team, F&& f) {
  constexpr Index lanes = Widest<Real>::lanes;
  const Index vectors = (n + lanes - 1) / lanes, last = share(vectors, team.rank + 1, team.size);
  for (Index i = share(vectors, team.rank, team.size); i < last; ++i)
    f(i * lanes, int(min_index(lanes, n - i * lanes)));
}

// v = momentum v + g;  p = p - lr v
template <class Real>
void sgd(const OptimizerArgs<Real>& args, const SgdOptions& options, const Team& team) {
  const FloatingPointMode mode;
  using S = Widest<Real>;
  const Real momentum = Real(options.momentum), lr = Real(options.lr);
  for_my_vectors<Real>(args.n, team, [&](Index i, int valid) {
    auto v = load_lanes<S>(args.g + i, valid);
    if (args.v) {
      v = load_lanes<S>(args.v + i, valid) * momentum + v;
      store_lanes<S>(args.v + i, v, valid);
    }
    store_lanes<S>(args.p + i, load_lanes<S>(args.p + i, valid) - v * lr, valid);
  });
}

// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g²;  p = p - decay p - lr m / (sqrt(v) + eps)
template <class Real>
void adam(const OptimizerArgs<Real>& args, const AdamOptions& options, const Team& team) {
  const FloatingPointMode mode;
  using S = Widest<Real>;
  const Real b1 = Real(options.b1), b2 = Real(options.b2), lr = Real(options.lr), eps = Real(options.eps);
  const Real decay = Real(options.decay);
  const Real rest1 = Real(1 - options.b1), rest2 = Real(1 - options.b2);
  for_my_vectors<Real>(args.n, team, [&](Index i, int valid) {
    const auto g = load_lanes<S>(args.g + i, valid);
    const auto m = load_lanes<S>(args.m + i, valid) * b1 + g * rest1;
    const auto v = load_lanes<S>(args.v + i, valid) * b2 + g * g * rest2;
    store_lanes<S>(args.m + i, m, valid);
    store_lanes<S>(args.v + i, v, valid);
    auto p = load_lanes<S>(args.p + i, valid);
    if (decay != 0) p = p - p * decay;
    store_lanes<S>(args.p + i, p - m / (sqrt(v) + eps) * lr, valid);
  });
}

// The sum of the squares of x [n], in double since a large float32 has no square: those of blocks go to sums[block],
// and their sum to sums[0], which is there even if n is 0.
template <class Real>
void sum_of_squares(const Real* x, Index n, double* sums, const Team& team) {
  const FloatingPointMode mode;
  using Double = Widest<double>;
  using S = Simd<Real, Double::lanes>;
  constexpr int unroll = 4;  // sums in flight, to hide the latency of the addition
  const Index blocks = (n + square_block - 1) / square_block, last = share(blocks, team.rank + 1, team.size);
  for (Index block = share(blocks, team.rank, team.size); block < last; ++block) {
    const Index end = min_index((block + 1) * square_block, n);
    typename Double::V sum[unroll] = {};
    const auto add = [&](Index i, int valid, typename Double::V& to) {
      const auto v = __builtin_convertvector(load_lanes<S>(x + i, valid), typename Double::V);
      to = fma(v, v, to);
    };
    Index i = block * square_block;
    for (; i + unroll * S::lanes <= end; i += unroll * S::lanes) {
#pragma GCC unroll 4
      for (int u = 0; u < unroll; ++u) add(i + u * S::lanes, S::lanes, sum[u]);
    }
    for (; i < end; i += S::lanes) add(i, int(min_index(S::lanes, end - i)), sum[0]);
    sums[block] = sum_lanes<Double>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
  if (!team.barrier(team) || team.rank > 0) return;
  if (blocks == 0) sums[0] = 0;
  for (Index block = 1; block < blocks; ++block) sums[0] += sums[block];
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
