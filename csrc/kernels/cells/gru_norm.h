// Gated recurrent unit with layer normalisation (Ba, Kiros and Hinton 2016), which resets after the recurrent product.
//
//   r = sigmoid(a_hr + a_xr)   z = sigmoid(a_hz + a_xz)   n = tanh(a_xn + r a_hn)
//   h = (1 - z) n + z h'
//
// a_h and a_x are those of norm.h;  h' is the state before the step. What is kept is a_hn.
#pragma once

#include "kernels/cells/norm.h"
#include "kernels/vec_math.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

struct GruNorm {
  static constexpr const char *name = "gru_norm", *gates = "rzn", *held = gates;
  static constexpr const char* states[] = {"h"};
  static constexpr UnitVectors parameters[] = {{.name = "gain_ih", .count = 3}, {.name = "gain_hh", .count = 3}};
  static constexpr int gate_count = 3, slot_count = 6, kept_count = 1;
  static constexpr int input_gates[] = {0, 1, 2}, recurrent_gates[] = {0, 1, 2};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 3, .gate = 0, .gates = 3, .reset_h = false}};
  static constexpr Stage stages[] = {{.gate = 0, .gates = 3}};
  static constexpr bool keeps_gates = true, leaves_dh = true;
  static constexpr bool reads_before[] = {true}, reads_after[] = {false};
  static constexpr int flow_stage = 0;
  enum { r, z, n };

  template <class S, int stage>
  static RNNFAST_INLINE void forward(NormForwardPoint<S, GruNorm>& p) {
    set_gate(p, r, sigmoid<S>(p.a_h[r] + p.a_x[r]));
    set_gate(p, z, sigmoid<S>(p.a_h[z] + p.a_x[z]));
    set_gate(p, n, tanh<S>(fma(p.gate[r], p.a_h[n], p.a_x[n])));
    p.kept[0] = p.a_h[n];
    p.after[0] = fma(p.gate[z], p.before[0] - p.gate[n], p.gate[n]);
  }

  template <class S, int stage>
  static RNNFAST_INLINE void backward(NormBackwardPoint<S, GruNorm>& p) {
    const auto r = p.gate[GruNorm::r], z = p.gate[GruNorm::z], n = p.gate[GruNorm::n], dh = p.dstate[0];
    const bool holds_n = is_held_gate<GruNorm>(*p.held, GruNorm::n);
    const auto da_n = holds_n ? typename S::V{} : dh * (1 - z) * (1 - n * n);
    p.da_h[GruNorm::r] = p.da_x[GruNorm::r] = da_n * p.kept[0] * (r * (1 - r));
    p.da_h[GruNorm::z] = p.da_x[GruNorm::z] = dh * (p.before[0] - n) * (z * (1 - z));
    p.da_h[GruNorm::n] = da_n * r;
    p.da_x[GruNorm::n] = da_n;
    p.dstate[0] = dh * z;
  }
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
