// Long short-term memory with forget gate (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000), and
// its forms with peepholes (Gers, Schraudolph and Schmidhuber 2002) and with coupled gates (CIFG; Greff et al. 2015).
//
//   i = sigmoid(a_i + p_i c')   f = sigmoid(a_f + p_f c')   g = tanh(a_g)
//   c = f c' + i g
//   o = sigmoid(a_o + p_o c)
//   h = o tanh(c)
//
// a = w_ih x + b_ih + w_hh h' + b_hh;  h', c' are the state before the step. Without peepholes there is no p. With
// coupled gates f = 1 - i, and there is neither a_f nor p_f. The candidate g, as it meets c, may be dropped (Semeniuta,
// Severyn and Barth 2016).
#pragma once

#include "kernels/cells/cell.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The equations of a form. It says which slots its gates i, f, g and o are; without f, gates are coupled. Gates that
// see c are no slots to be squashed before: their vectors are p_i, p_f where it has f, and p_o.
template <class Form>
struct LstmEquations {
  static constexpr const char* states[] = {"h", "c"};
  static constexpr bool keeps_gates = true, leaves_dh = false, has_candidate = true;
  static constexpr bool reads_before[] = {false, true}, reads_after[] = {false, true};
  enum { h, c };

  // A gate that sees c, unless it is held.
  template <class S>
  static RNNFAST_INLINE typename S::V see(const ForwardPoint<S, Form>& p, int gate, int vector, typename S::V c) {
    return is_held(*p.held, gate) ? p.gate[gate] : sigmoid<S>(fma(p.vector[vector], c, p.gate[gate]));
  }

  // The gradient of a gate's pre-activation, of which nothing passes on where the gate is held.
  template <class S>
  static RNNFAST_INLINE typename S::V passing(const BackwardPoint<S, Form>& p, int gate) {
    return is_held(*p.held, gate) ? typename S::V{} : p.dgate[gate];
  }

  template <class S, int phase>
  static RNNFAST_INLINE void forward(ForwardPoint<S, Form>& p) {
    constexpr bool has_f = Form::f != Form::i, has_peepholes = vector_count<Form> != 0;
    if constexpr (has_peepholes) p.gate[Form::i] = see(p, Form::i, 0, p.before[c]);
    if constexpr (has_peepholes && has_f) p.gate[Form::f] = see(p, Form::f, 1, p.before[c]);
    const auto i = p.gate[Form::i], f = has_f ? p.gate[Form::f] : 1 - i;
    const auto g = drop<S>(p, p.gate[Form::g]);
    p.after[c] = fma(f, p.before[c], i * g);
    if constexpr (has_peepholes) p.gate[Form::o] = see(p, Form::o, vector_count<Form> - 1, p.after[c]);
    p.after[h] = p.gate[Form::o] * tanh<S>(p.after[c]);
  }

  template <class S, int phase>
  static RNNFAST_INLINE void backward(BackwardPoint<S, Form>& p) {
    constexpr bool has_f = Form::f != Form::i, has_peepholes = vector_count<Form> != 0;
    const auto i = p.gate[Form::i], f = has_f ? p.gate[Form::f] : 1 - i, g = p.gate[Form::g], o = p.gate[Form::o];
    const auto tanh_c = tanh<S>(p.after[c]);
    const auto d_o = p.dstate[h] * tanh_c;
    auto dc = fma(p.dstate[h] * o, 1 - tanh_c * tanh_c, p.dstate[c]);
    p.dgate[Form::o] = d_o * (o * (1 - o));
    if constexpr (has_peepholes) {
      constexpr int p_o = vector_count<Form> - 1;
      const auto da_o = passing(p, Form::o);
      p.dvector[p_o] = da_o * p.after[c];
      dc = fma(da_o, p.vector[p_o], dc);
    }
    p.flow[c] = dc;
    const auto met = drop<S>(p, g);
    const auto di = has_f ? dc * met : dc * (met - p.before[c]);
    p.dgate[Form::i] = di * (i * (1 - i));
    if constexpr (has_f) p.dgate[Form::f] = dc * p.before[c] * (f * (1 - f));
    p.dgate[Form::g] = drop<S>(p, dc * i) * (1 - g * g);
    p.dstate[c] = dc * f;
    if constexpr (has_peepholes) {
#pragma GCC unroll 2
      for (int gate = Form::i; gate <= Form::f; ++gate) {  // of i alone where there is no f
        const auto da = passing(p, gate);
        p.dvector[gate] = da * p.before[c];
        p.dstate[c] = fma(da, p.vector[gate], p.dstate[c]);
      }
    }
  }
};

struct FourGates {
  enum { i, f, g, o };
  static constexpr const char *gates = "ifgo", *held = gates;
  static constexpr int gate_count = 4, slot_count = 4;
  static constexpr int input_gates[] = {i, f, g, o}, recurrent_gates[] = {i, f, g, o};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 4, .gate = 0, .gates = 4, .reset_h = false}};
};

struct CoupledGates {
  enum { i, g, o, f = i };
  static constexpr const char *gates = "igo", *held = gates;
  static constexpr int gate_count = 3, slot_count = 3;
  static constexpr int input_gates[] = {i, g, o}, recurrent_gates[] = {i, g, o};
  static constexpr Phase phases[] = {{.slot = 0, .slots = 3, .gate = 0, .gates = 3, .reset_h = false}};
};

struct Lstm : FourGates, LstmEquations<Lstm> {
  static constexpr const char* name = "lstm";
  static constexpr Squash squashes[] = {Squash::sigmoid, Squash::sigmoid, Squash::tanh, Squash::sigmoid};
};

struct LstmPeephole : FourGates, LstmEquations<LstmPeephole> {
  static constexpr const char* name = "lstm_peephole";
  static constexpr Squash squashes[] = {Squash::none, Squash::none, Squash::tanh, Squash::none};
  static constexpr UnitVectors parameters[] = {{.name = "peephole", .count = 3}};
};

struct Cifg : CoupledGates, LstmEquations<Cifg> {
  static constexpr const char* name = "cifg";
  static constexpr Squash squashes[] = {Squash::sigmoid, Squash::tanh, Squash::sigmoid};
};

struct CifgPeephole : CoupledGates, LstmEquations<CifgPeephole> {
  static constexpr const char* name = "cifg_peephole";
  static constexpr Squash squashes[] = {Squash::none, Squash::tanh, Squash::none};
  static constexpr UnitVectors parameters[] = {{.name = "peephole", .count = 2}};
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
