// Scalar LSTM with exponential gates (sLSTM; Beck et al. 2024).
//
//   l = m' + log f~              f~ = sigmoid(a_f)   SigmoidForget
//                                f~ = exp(a_f)       ExpForget
//   m = a_i where n' = 0, else max(a_i, l)
//   i = exp(a_i - m)   f = min(exp(l - m), F)   z = tanh(a_z)   o = sigmoid(a_o)
//   c = f c' + i z
//   n = max(f n' + i, N)
//   h = o c / n
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h', c', n', m' are the state before the step. w_hh is block-diagonal: a unit
// reads the h' of its own head. The bounds N and F >= 1 are vectors of units. i is at most 1, and so is f but at a step
// from n' = 0, where F bounds it: nothing overflows, however large the gates are.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/vec_math.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// log f~, and its derivative, which a function can make of f~.
struct SigmoidForget {
  static constexpr const char* name = "slstm";

  template <class S>
  static RNNFAST_INLINE typename S::V log(typename S::V a) {
    return log_sigmoid<S>(a);
  }
  template <class S, class F>
  static RNNFAST_INLINE typename S::V slope(F&& forget) {
    return 1 - min(S::broadcast(1), forget());
  }
};

struct ExpForget {
  static constexpr const char* name = "slstm_exp";

  template <class S>
  static RNNFAST_INLINE typename S::V log(typename S::V a) {
    return a;
  }
  template <class S, class F>
  static RNNFAST_INLINE typename S::V slope(F&&) {
    return S::broadcast(1);
  }
};

template <class Forget>
struct Slstm {
  static constexpr const char *name = Forget::name, *gates = "ifzo", *held = "zo";
  static constexpr const char* states[] = {"h", "c", "n", "m"};
  static constexpr UnitVectors parameters[] = {{.name = "bounds", .count = 2}};
  static constexpr bool has_heads = true, has_bounded_h = false;
  static constexpr int gate_count = 4, slot_count = 4;
  static constexpr int input_gates[] = {0, 1, 2, 3}, recurrent_gates[] = {0, 1, 2, 3};
  static constexpr Squash squashes[] = {Squash::none, Squash::none, Squash::tanh, Squash::sigmoid};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 4, .gate = 0, .gates = 4, .reset_h = false}};
  static constexpr bool keeps_gates = true, leaves_dh = false;
  static constexpr bool reads_before[] = {false, true, true, true}, reads_after[] = {false, true, true, true};
  enum { h, c, n, m };
  enum { i, f, z, o };
  enum { least_n, most_f };

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, Slstm>& p) {
    const auto a_i = p.gate[i], l = p.before[m] + Forget::template log<S>(p.gate[f]);
    p.after[m] = p.before[n] == 0 ? a_i : max(a_i, l);
    p.gate[i] = exp<S>(a_i - p.after[m]);
    p.gate[f] = min(p.vector[most_f], exp<S>(l - p.after[m]));
    p.after[c] = fma(p.gate[f], p.before[c], p.gate[i] * p.gate[z]);
    p.after[n] = max(p.vector[least_n], fma(p.gate[f], p.before[n], p.gate[i]));
    p.after[h] = p.gate[o] * (p.after[c] / p.after[n]);
  }

  // The gradient of m goes to the one of a_i and l that m is: l where f = 1, for then exp(l - m) is 1. f~ is
  // f exp(m - m').
  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, Slstm>& p) {
    using V = typename S::V;
    const auto i = p.gate[Slstm::i], f = p.gate[Slstm::f], z = p.gate[Slstm::z], o = p.gate[Slstm::o];
    const auto is_empty = p.before[n] == 0;
    const auto per_n = 1 / p.after[n], mean = p.after[c] * per_n, dmean = p.dstate[h] * o;
    const auto dc = p.flow[c] = fma(dmean, per_n, p.dstate[c]);
    const auto dn = p.flow[n] = fma(-dmean * per_n, mean, p.dstate[n]);
    const auto dm = p.flow[m] = p.dstate[m];
    const auto dsum = p.after[n] > p.vector[least_n] ? dn : V{};  // of f n' + i
    const auto df = fma(dc, p.before[c], dsum * p.before[n]);
    const auto clipped = is_empty & (f >= p.vector[most_f]);
    const auto by_i = fma(dc, z, dsum) * i, by_f = clipped ? V{} : df * f;  // of a_i - m and of l - m
    const auto is_i = is_empty | (f < 1);
    const auto dl = is_i ? by_f : dm - by_i;
    p.dgate[Slstm::i] = is_i ? dm - by_f : by_i;
    p.dgate[Slstm::f] = dl * Forget::template slope<S>([&] { return f * exp<S>(p.after[m] - p.before[m]); });
    p.dgate[Slstm::z] = dc * i * (1 - z * z);
    p.dgate[Slstm::o] = p.dstate[h] * mean * (o * (1 - o));
    p.dvector[least_n] = dn - dsum;
    p.dvector[most_f] = clipped ? df : V{};
    p.dstate[c] = dc * f, p.dstate[n] = dsum * f, p.dstate[m] = dl;
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
