// What a cell tells the time loop, and the registers that its pointwise parts work on.
//
// A cell is a struct with
//   gates                       G, the gates of w_ih and w_hh
//   slots                       vectors per row and unit block that it keeps: its gates, and for the GRU hn
//   input_gates                 which gate of w_ih the last G slots hold
//   recurrent_gates             which gate of w_hh the first G slots hold
//   squashes                    the functions that its slots pass before anything else is done with them
//   phases                      the dependent products of one step
//   keeps_gates                 whether the tape holds the slots (else the derivative follows from y)
//   has_c                       whether the state has a c
//   passes_dh                   whether backward leaves in dh what reaches h' beside the product
//   forward<S, phase>(point), backward<S, phase>(point)
#pragma once

#include "pack.h"
#include "vec_math.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// One recurrent product: it fills `slots` slots from `slot` on; the gates from `gate` on of packed w_hh take part in
// it, `gates` of them, with h' (or r h') as operand.
struct Phase {
  int slot, slots, gate, gates;
  bool reset_h;
};

template <class Cell>
constexpr int phase_count = int(sizeof(Cell::phases) / sizeof(Phase));

// Whether a second product waits for r h'.
template <class Cell>
constexpr bool resets_h = phase_count<Cell> > 1;

enum class Squash { none, sigmoid, tanh };

template <class S, Squash function>
RNNFAST_INLINE typename S::V squashed(typename S::V a) {
  return function == Squash::sigmoid ? sigmoid<S>(a) : tanh<S>(a);
}

template <class Real>
constexpr bool is_held(const Held<Real>& held, int slot) {
  return held.slots >> slot & 1;
}

// One row of one unit block. gate: squashed where the cell says so, else pre-activations on entry and activations on
// return.
template <class S, int slots>
struct ForwardPoint {
  typename S::V gate[slots], h_before, c_before;
  typename S::V h, c, reset_h;
  const Held<typename S::Real>* held;
};

// dh, dc: gradients of h, c on entry; of h' (without the product) and c' on return. dgate: of the pre-activations.
// dc_flow: all that reaches c.
template <class S, int slots>
struct BackwardPoint {
  typename S::V gate[slots], h_before, c_before, h, c;
  typename S::V dh, dc, dreset_h, dc_flow;
  typename S::V dgate[slots];
  const Held<typename S::Real>* held;
};

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
