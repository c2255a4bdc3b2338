// The simple recurrent network (Elman 1990).
//
//   h = tanh(a)   or   h = max(a, 0)
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h' is the state before the step. Both derivatives follow from h alone.
#pragma once

#include "kernels/cells/cell.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct Tanh {
  static constexpr const char* name = "rnn_tanh";

  template <class S>
  static RNNFAST_INLINE typename S::V value(typename S::V a) {
    return tanh<S>(a);
  }
  template <class S>
  static RNNFAST_INLINE typename S::V gradient(typename S::V h, typename S::V dh) {
    return dh * (1 - h * h);
  }
};

struct Relu {
  static constexpr const char* name = "rnn_relu";

  template <class S>
  static RNNFAST_INLINE typename S::V value(typename S::V a) {
    return max(S::broadcast(0), a);
  }
  template <class S>
  static RNNFAST_INLINE typename S::V gradient(typename S::V h, typename S::V dh) {
    return h <= 0 ? typename S::V{} : dh;
  }
};

template <class Function>
struct Elman {
  static constexpr const char *name = Function::name, *gates = "", *held = gates, *parameters = "";
  static constexpr const char* states[] = {"h"};
  static constexpr int gate_count = 1, slot_count = 1;
  static constexpr int input_gates[] = {0}, recurrent_gates[] = {0};
  static constexpr Squash squashes[] = {Squash::none};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 1, .gate = 0, .gates = 1, .reset_h = false}};
  static constexpr bool keeps_gates = false, leaves_dh = false;
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

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
