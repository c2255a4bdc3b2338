// What the machine can do at best in the widest vectors of this instruction set: loops whose time, which the caller
// takes, tells the peak of the multiply-adds or the bandwidth of a cache level.
#pragma once

#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Chains that do not wait for each other: more than the 8 that hide the latency of an operation, 4 cycles on 2 ports,
// and with two constants no more than 16 registers hold.
constexpr int limit_chains = 12;

template <class S>
RNNFAST_INLINE typename S::Real sum_of(const typename S::V (&chains)[limit_chains]) {
  typename S::Real sum = 0;
  for (const auto& chain : chains)
    for (int lane = 0; lane < S::lanes; ++lane) sum += chain[lane];
  return sum;
}

// x = a * x + b, in all lanes of all chains until n multiply-adds or a few more are done; the sum of the x. Chains
// start from their number: the compiler would compute equal ones only once.
template <class Real>
Real multiply_adds(Real a, Real b, Index n) {
  using S = Widest<Real>;
  const auto factor = S::broadcast(a), addend = S::broadcast(b);
  typename S::V x[limit_chains];
  for (int chain = 0; chain < limit_chains; ++chain) x[chain] = S::broadcast(Real(chain));
  for (Index done = 0; done < n; done += limit_chains * S::lanes) {
#pragma GCC unroll 16
    for (auto& chain : x) chain = fma(factor, chain, addend);
  }
  return sum_of<S>(x);
}

// The sum of the n elements of x, read `passes` times over.
template <class Real>
Real read(const Real* x, Index n, Index passes) {
  using S = Widest<Real>;
  typename S::V sums[limit_chains] = {};
  Real rest = 0;
  for (Index pass = 0; pass < passes; ++pass) {
    Index i = 0;
    for (; i + limit_chains * S::lanes <= n; i += limit_chains * S::lanes) {
#pragma GCC unroll 16
      for (int chain = 0; chain < limit_chains; ++chain) sums[chain] = sums[chain] + S::load(x + i + chain * S::lanes);
    }
    for (; i < n; ++i) rest += x[i];
  }
  return sum_of<S>(sums) + rest;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
