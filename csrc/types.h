// The vocabulary of the library: one letter, one meaning, everywhere.
//
//   T time steps   B batch   I input size   H hidden size   G gates   D directions
//
// Everything here is a plain aggregate without member functions, because this header is compiled once per
// instruction set and must not leave a function behind that the linker could share between them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace rnnfast {

using Index = std::ptrdiff_t;

enum class Cell { lstm, gru, gru_reset_before, rnn_tanh, rnn_relu };

enum class Activation { sigmoid, tanh };

struct Problem {
  Index T, B, I, H, D;
  Cell cell;
};

// A matrix with contiguous rows, `stride` elements apart. [T,B,*] arrays are seen as T·B rows.
template <class Real>
struct View {
  Real* data;
  Index stride;
};

// w_ih [G·H,I], w_hh [G·H,H], b_ih and b_hh [G·H] as torch stores them; a bias may be null. Also their gradients.
template <class Real>
struct Parameters {
  Real *w_ih, *w_hh, *b_ih, *b_hh;
};

// What a training forward keeps for its backward, beside x and y. Null where the cell needs nothing.
template <class Real>
struct Tape {
  Real* gates;    // activated gates, [chunk of time][unit block][row][slot x lanes]
  Real* c;        // c_t, [T·B,H]
  Real* reset_h;  // r * h_{t-1} of the GRU that resets before its product, [T·B,H]
};

template <class Real>
struct ForwardDirection {
  Parameters<const Real> parameters;
  View<const Real> h0, c0;  // [B,H]; null: zeros
  View<Real> y;             // [T·B,H]
  View<Real> h, c;          // last states, [B,H]
  Tape<Real> tape;
};

template <class Real>
struct ForwardArgs {
  Problem problem;
  View<const Real> x;  // [T·B,I]
  ForwardDirection<Real> directions[2];
  Real* scratch;
};

template <class Real>
struct BackwardDirection {
  Parameters<const Real> parameters;
  View<const Real> h0, c0;  // [B,H]; null: zeros
  View<const Real> y, dy;   // [T·B,H]; dy may be null: zeros
  Tape<const Real> tape;
  View<Real> dh, dc;  // [B,H]; gradients of the last states on entry, of the initial states on return
  Parameters<Real> gradients;
};

template <class Real>
struct BackwardArgs {
  Problem problem;
  View<const Real> x;  // [T·B,I]
  View<Real> dx;       // [T·B,I]; null: not computed
  BackwardDirection<Real> directions[2];
  bool accumulate;  // add to the gradients instead of overwriting them
  Real* scratch;
};

// The threads that run one kernel call together, seen from one of them.
struct Team {
  Index rank, size;
  bool (*barrier)(const Team&);      // waits for all; false: the call was interrupted, return
  bool (*interrupted)(const Team&);  // the same question without waiting
  void* context;
};

// Sizes in elements.
struct TapeSize {
  Index gates, c, reset_h;
};

template <class Real>
struct Kernels {
  TapeSize (*tape_size)(const Problem&);
  Index (*forward_scratch)(const Problem&);
  void (*forward)(const ForwardArgs<Real>&, const Team&);
  Index (*backward_scratch)(const Problem&, bool need_dx);
  void (*backward)(const BackwardArgs<Real>&, const Team&);
  void (*activate)(Activation, const Real* x, Real* y, Index n);
  Real (*multiply_adds)(Real a, Real b, Index n);
  Real (*read)(const Real* x, Index n, Index passes);
};

// What one instruction set exports.
struct KernelTable {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace rnnfast
