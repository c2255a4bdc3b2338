// The simple recurrent network (Elman 1990), also of leaky units (Jaeger 2001).
//
//   f = tanh(a)   or   f = max(a, 0)
//   h = f                            Elman
//   h = (1 - l) h' + l f             LeakyElman, of the leak l
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h' is the state before the step. Both derivatives follow from f alone.
#pragma once

#include "kernels/cells/cell.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct Tanh {
  static constexpr const char *name = "rnn_tanh", *leaky_name = "rnn_tanh_leaky";
  static constexpr bool is_bounded = true;

  template <class S>
  static RNNFAST_INLINE typename S::V value(typename S::V a) {
    return tanh<S>(a);
  }
  template <class S>
  static RNNFAST_INLINE typename S::V gradient(typename S::V f, typename S::V df) {
    return df * (1 - f * f);
  }
};

struct Relu {
  static constexpr const char *name = "rnn_relu", *leaky_name = "rnn_relu_leaky";
  static constexpr bool is_bounded = false;

  template <class S>
  static RNNFAST_INLINE typename S::V value(typename S::V a) {
    return max(S::broadcast(0), a);
  }
  template <class S>
  static RNNFAST_INLINE typename S::V gradient(typename S::V f, typename S::V df) {
    return f <= 0 ? typename S::V{} : df;
  }
};

struct OneGate {
  static constexpr const char *gates = "", *held = gates;
  static constexpr const char* states[] = {"h"};
  static constexpr int gate_count = 1, slot_count = 1;
  static constexpr int input_gates[] = {0}, recurrent_gates[] = {0};
  static constexpr Squash squashes[] = {Squash::none};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 1, .gate = 0, .gates = 1, .reset_h = false}};
};

template <class Function>
struct Elman : OneGate {
  static constexpr const char* name = Function::name;
  static constexpr bool keeps_gates = false, leaves_dh = false, has_bounded_h = Function::is_bounded;
  static constexpr bool reads_before[1] = {false}, reads_after[1] = {true};

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, Elman>& p) {
    p.after[0] = Function::template value<S>(p.gate[0]);
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, Elman>& p) {
    p.dgate[0] = Function::template gradient<S>(p.after[0], p.dstate[0]);
  }
};

// Its slot keeps f, which h alone does not tell.
template <class Function>
struct LeakyElman : OneGate {
  static constexpr const char* name = Function::leaky_name;
  static constexpr UnitVectors parameters[] = {{.name = "leak", .count = 1}};
  static constexpr bool keeps_gates = true, leaves_dh = true, has_bounded_h = Function::is_bounded;
  static constexpr bool reads_before[] = {true}, reads_after[] = {false};

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, LeakyElman>& p) {
    const auto f = p.gate[0] = Function::template value<S>(p.gate[0]);
    p.after[0] = fma(p.vector[0], f, (1 - p.vector[0]) * p.before[0]);
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, LeakyElman>& p) {
    const auto f = p.gate[0], dh = p.dstate[0];
    p.dgate[0] = Function::template gradient<S>(f, p.vector[0] * dh);
    p.dvector[0] = dh * (f - p.before[0]);
    p.dstate[0] = (1 - p.vector[0]) * dh;
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
