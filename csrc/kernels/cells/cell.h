// What a cell tells the time loop, and the registers that its pointwise parts work on.
//
// A cell is a struct with
//   name, letters               of the cell, and of its gates in the order of w_ih and w_hh ("": they have no names)
//   held                        letters of the gates that can be held at a value
//   states                      names of its states, h first
//   parameters                  names of what it has beside w_ih, w_hh, b_ih, b_hh, with spaces between
//   gates                       G, the gates of w_ih and w_hh
//   slots                       vectors per row and unit block that it keeps: its gates, and for the GRU hn
//   input_gates                 which gate of w_ih the last G slots hold
//   recurrent_gates             which gate of w_hh the first G slots hold
//   squashes                    the functions that its slots pass before anything else is done with them
//   phases                      the dependent products of one step
//   keeps_gates                 whether the tape holds the slots (else the derivative follows from y)
//   reads_h_before              whether its pointwise parts read h'
//   leaves_dh                   whether backward leaves in dh what reaches h' beside the product
//   forward<S, phase>(point), backward<S, phase>(point)
#pragma once

#include "../pack.h"
#include "../vec_math.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Cell>
constexpr int phase_count = int(sizeof(Cell::phases) / sizeof(Phase));

// Whether a second product waits for r h'.
template <class Cell>
constexpr bool resets_h = phase_count<Cell> > 1;

template <class Cell>
constexpr int state_count = int(sizeof(Cell::states) / sizeof(const char*));

template <class Cell>
constexpr bool has_c = state_count<Cell> > 1;

// What the loops know of a cell, the index-th of all.
template <class Cell>
constexpr CellShape shape_of(int index) {
  CellShape shape = {};
  shape.name = Cell::name, shape.letters = Cell::letters, shape.held = Cell::held, shape.parameters = Cell::parameters;
  shape.index = index;
  shape.gates = Cell::gates, shape.slots = Cell::slots;
  shape.state_count = state_count<Cell>, shape.phase_count = phase_count<Cell>;
  for (int i = 0; i < shape.state_count; ++i) shape.states[i] = Cell::states[i];
  for (int i = 0; i < shape.phase_count; ++i) shape.phases[i] = Cell::phases[i];
  for (int i = 0; i < shape.gates; ++i) {
    shape.input_gates[i] = Cell::input_gates[i];
    shape.recurrent_gates[i] = Cell::recurrent_gates[i];
  }
  shape.keeps_gates = Cell::keeps_gates;
  shape.reads_h_before = Cell::reads_h_before, shape.leaves_dh = Cell::leaves_dh;
  return shape;
}

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
