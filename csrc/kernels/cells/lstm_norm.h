// Long short-term memory with layer normalisation (Ba, Kiros and Hinton 2016), in two forms that differ in which c the
// next step finds.
//
//   i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)
//   s = f c' + i g
//   n = gain_c LN(s) + b_c
//   c = s   LstmNorm
//   c = n   LstmNormCarried
//   h = o tanh(n)
//
// a = a_h + a_x and LN are those of norm.h;  c' is the state before the step.
#pragma once

#include "kernels/cells/norm.h"
#include "kernels/vec_math.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Form>
struct LstmNormEquations {
  static constexpr const char *gates = "ifgo", *held = gates;
  static constexpr const char* states[] = {"h", "c"};
  static constexpr UnitVectors parameters[] = {{.name = "gain_ih", .count = 4},
                                               {.name = "gain_hh", .count = 4},
                                               {.name = "gain_c", .count = 1},
                                               {.name = "b_c", .count = 1, .is_bias = true}};
  static constexpr int gate_count = 4, slot_count = 8, kept_count = 2;
  static constexpr int input_gates[] = {0, 1, 2, 3}, recurrent_gates[] = {0, 1, 2, 3};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 4, .gate = 0, .gates = 4, .reset_h = false}};
  static constexpr Stage stages[] = {{.gate = 0, .gates = 3}, {.gate = 3, .gates = 1}};
  static constexpr bool keeps_gates = true, leaves_dh = false;
  static constexpr bool reads_before[] = {false, true}, reads_after[] = {false, false};
  enum { h, c };
  enum { i, f, g, o };
  enum { sum, tanh_n };  // what is kept: s and tanh(n)

  template <class S, int stage>
  static RNNFAST_INLINE void forward(NormForwardPoint<S, Form>& p) {
    if constexpr (stage == 0) {
      set_gate(p, i, sigmoid<S>(p.a_h[i] + p.a_x[i]));
      set_gate(p, f, sigmoid<S>(p.a_h[f] + p.a_x[f]));
      set_gate(p, g, tanh<S>(p.a_h[g] + p.a_x[g]));
      set_gate(p, o, sigmoid<S>(p.a_h[o] + p.a_x[o]));
      p.kept[sum] = fma(p.gate[f], p.before[c], p.gate[i] * p.gate[g]);
    } else {
      p.kept[tanh_n] = tanh<S>(p.normal);
      p.after[c] = Form::carries_normal ? p.normal : p.kept[sum];
      p.after[h] = p.gate[o] * p.kept[tanh_n];
    }
  }

  template <class S, int stage>
  static RNNFAST_INLINE void backward(NormBackwardPoint<S, Form>& p) {
    const auto i = p.gate[Form::i], f = p.gate[Form::f], g = p.gate[Form::g], o = p.gate[Form::o];
    const auto set = [&p](int gate, typename S::V da) { p.da_h[gate] = p.da_x[gate] = da; };
    if constexpr (stage == 1) {
      const auto tanh_n = p.kept[Form::tanh_n];
      set(Form::o, p.dstate[h] * tanh_n * (o * (1 - o)));
      p.dnormal = p.dstate[h] * o * (1 - tanh_n * tanh_n);
      if constexpr (Form::carries_normal) p.flow[c] = p.dnormal = p.dnormal + p.dstate[c];
    } else {
      const auto ds = Form::carries_normal ? p.dinner : p.dinner + p.dstate[c];
      p.flow[c] = ds;
      set(Form::i, ds * g * (i * (1 - i)));
      set(Form::f, ds * p.before[c] * (f * (1 - f)));
      set(Form::g, ds * i * (1 - g * g));
      p.dstate[c] = ds * f;
    }
  }
};

struct LstmNorm : LstmNormEquations<LstmNorm> {
  static constexpr const char* name = "lstm_norm";
  static constexpr bool carries_normal = false;
  static constexpr int flow_stage = 0;
};

struct LstmNormCarried : LstmNormEquations<LstmNormCarried> {
  static constexpr const char* name = "lstm_norm_carried";
  static constexpr bool carries_normal = true;
  static constexpr int flow_stage = 1;
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
