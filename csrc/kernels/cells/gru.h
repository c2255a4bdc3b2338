// Gated recurrent unit (Cho et al. 2014), in two forms that differ in where the reset gate is applied.
//
//   r = sigmoid(a_r)   z = sigmoid(a_z)
//   n = tanh(w_in x + b_in + r (w_hn h' + b_hn))     Gru: after the recurrent product, as torch and cuDNN do
//   n = tanh(w_in x + b_in + w_hn (r h') + b_hn)     GruResetBefore: before it, as in the paper
//   h = (1 - z) n + z h'
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h' is the state before the step. The candidate n, as it meets h, may be dropped
// (Semeniuta, Severyn and Barth 2016).
#pragma once

#include "kernels/cells/cell.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Slots: hn = w_hn h' + b_hn, r, z, n. The recurrent product fills the first three, the input product the last three,
// and so do their gradients: dn reaches w_ih as it is, but w_hh multiplied by r.
struct Gru {
  static constexpr const char *name = "gru", *gates = "rzn", *held = gates;
  static constexpr const char* states[] = {"h"};
  static constexpr int gate_count = 3, slot_count = 4;
  static constexpr int input_gates[] = {0, 1, 2}, recurrent_gates[] = {2, 0, 1};
  static constexpr Squash squashes[] = {Squash::none, Squash::sigmoid, Squash::sigmoid, Squash::none};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 4, .gate = 0, .gates = 3, .reset_h = false}};
  static constexpr bool keeps_gates = true, leaves_dh = true, has_candidate = true;
  static constexpr bool reads_before[] = {true}, reads_after[] = {false};

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, Gru>& p) {
    const auto hn = p.gate[0], r = p.gate[1], z = p.gate[2];
    const auto n = p.gate[3] = is_held(*p.held, 3) ? S::broadcast(p.held->value[3]) : tanh<S>(fma(r, hn, p.gate[3]));
    const auto met = drop<S>(p, n);
    p.after[0] = fma(z, p.before[0] - met, met);
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, Gru>& p) {
    const auto hn = p.gate[0], r = p.gate[1], z = p.gate[2], n = p.gate[3];
    const auto da_n = is_held(*p.held, 3) ? typename S::V{} : drop<S>(p, p.dstate[0] * (1 - z)) * (1 - n * n);
    p.dgate[0] = da_n * r;
    p.dgate[1] = da_n * hn * (r * (1 - r));
    p.dgate[2] = p.dstate[0] * (p.before[0] - drop<S>(p, n)) * (z * (1 - z));
    p.dgate[3] = da_n;
    p.dstate[0] = p.dstate[0] * z;
  }
};

// Two phases: r and z from h', then n from r h'.
struct GruResetBefore {
  static constexpr const char *name = "gru_reset_before", *gates = "rzn", *held = gates;
  static constexpr const char* states[] = {"h"};
  static constexpr int gate_count = 3, slot_count = 3;
  static constexpr int input_gates[] = {0, 1, 2}, recurrent_gates[] = {0, 1, 2};
  static constexpr Squash squashes[] = {Squash::sigmoid, Squash::sigmoid, Squash::tanh};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 2, .gate = 0, .gates = 2, .reset_h = false},
                                     {.slot = 2, .slots = 1, .gate = 2, .gates = 1, .reset_h = true}};
  static constexpr bool keeps_gates = true, leaves_dh = true, has_candidate = true;
  static constexpr bool reads_before[] = {true}, reads_after[] = {false};

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, GruResetBefore>& p) {
    if constexpr (phase == 0) {
      p.reset_h = p.gate[0] * p.before[0];
    } else {
      const auto z = p.gate[1], n = drop<S>(p, p.gate[2]);
      p.after[0] = fma(z, p.before[0] - n, n);
    }
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, GruResetBefore>& p) {
    const auto r = p.gate[0], z = p.gate[1], n = p.gate[2];
    if constexpr (phase == 1) {
      p.dgate[2] = drop<S>(p, p.dstate[0] * (1 - z)) * (1 - n * n);
    } else {
      p.dgate[0] = p.dreset_h * p.before[0] * (r * (1 - r));
      p.dgate[1] = p.dstate[0] * (p.before[0] - drop<S>(p, n)) * (z * (1 - z));
      p.dstate[0] = fma(p.dreset_h, r, p.dstate[0] * z);
    }
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
