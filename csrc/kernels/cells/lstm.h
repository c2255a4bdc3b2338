// Long short-term memory with forget gate (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000).
//
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
//   c = f c' + i g
//   h = o tanh(c)
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h', c' are the state before the step.
#pragma once

#include "kernels/cells/cell.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct Lstm {
  static constexpr const char *name = "lstm", *gates = "ifgo", *held = gates, *parameters = "";
  static constexpr const char* states[] = {"h", "c"};
  static constexpr int gate_count = 4, slot_count = 4;
  static constexpr int input_gates[] = {0, 1, 2, 3}, recurrent_gates[] = {0, 1, 2, 3};
  static constexpr Squash squashes[] = {Squash::sigmoid, Squash::sigmoid, Squash::tanh, Squash::sigmoid};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 4, .gate = 0, .gates = 4, .reset_h = false}};
  static constexpr bool keeps_gates = true, leaves_dh = false;
  static constexpr bool reads_before[] = {false, true}, reads_after[] = {false, true};
  enum { h, c };

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, Lstm>& p) {
    const auto i = p.gate[0], f = p.gate[1], g = p.gate[2], o = p.gate[3];
    p.after[c] = fma(f, p.before[c], i * g);
    p.after[h] = o * tanh<S>(p.after[c]);
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, Lstm>& p) {
    const auto i = p.gate[0], f = p.gate[1], g = p.gate[2], o = p.gate[3];
    const auto tanh_c = tanh<S>(p.after[c]);
    const auto d_o = p.dstate[h] * tanh_c;
    const auto dc = p.flow[c] = fma(p.dstate[h] * o, 1 - tanh_c * tanh_c, p.dstate[c]);
    p.dgate[0] = dc * g * (i * (1 - i));
    p.dgate[1] = dc * p.before[c] * (f * (1 - f));
    p.dgate[2] = dc * i * (1 - g * g);
    p.dgate[3] = d_o * (o * (1 - o));
    p.dstate[c] = dc * f;
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
