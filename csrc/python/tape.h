// What a training forward keeps for its backward.
#pragma once

#include <array>
#include <cstddef>
#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/tokens.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/schedule.h"
#include "types.h"

namespace rnnfast {

// The arrays of the call, kept alive.
template <class Real>
struct Saved {
  LayerParameters<Real> parameters;
  LayerParameters<float> scales;                                // of int8 matrices
  std::vector<std::shared_ptr<const PackedParameters>> packed;  // of each direction, or of none
  std::optional<Input<Real>> x, embedding;
  StateInputs<Real> initial;
  std::optional<StateInputs<Real>> start;  // none: rows that start anew do so from `initial`
  std::optional<Input<Real>> factors;      // of h' in the products, [D,B,H] or [D,B,G,H]
  Array y;                                 // contiguous
};

// What becomes of states of which some units keep their value: bits of those that are new, or their part where there
// are no bits.
struct Zoneout {
  std::array<std::optional<Input<unsigned char>>, most_states> renewed;
  std::array<double, most_states> rate = {};
};

// Which candidates are kept, bits of rows [*,D·ceil(H/8)], while each is dropped with some probability.
struct CandidateDropout {
  std::optional<Input<unsigned char>> kept;
  double rate = 0;

  View<const unsigned char> view() const { return kept ? kept->view() : View<const unsigned char>{}; }
  double scale() const { return 1 / (1 - rate); }
};

// Memory that the kernels fill: the tape's own, or an array that holds what another tape kept.
struct Memory {
  Buffer own;
  std::optional<Array> lent;

  void* data() const { return lent ? lent->data() : own.data(); }
  std::size_t bytes() const { return lent ? std::size_t(lent->nbytes()) : own.bytes(); }
};

// Everything a backward needs: references to the arrays, and the memory the kernels filled.
struct TapeObject {
  Problem problem;
  Schedule schedule;
  std::variant<Saved<float>, Saved<double>> saved;
  std::optional<Array> x;  // tokens, where steps are still to come
  TokenArrays tokens;
  Held<double> held;
  Zoneout zoneout;
  CandidateDropout candidates;
  double eps;  // added to variances
  TapeMemory<Memory> memory;
  Index threads;  // at most; 0: as many as are set
};

// Whether a tape is made for steps that `advance` will run.
inline bool steps_to_come(const Problem& p) { return p.run.last - p.run.first < p.T; }

inline void require_steps_to_come(const TapeObject& tape) {
  if (!steps_to_come(tape.problem))
    throw py::value_error("tape: expected one that was made for steps to come, got one whose run is over");
}

inline TapeObject& tape_in(const py::object& object) {
  if (!py::isinstance<TapeObject>(object))
    throw py::type_error("tape: expected a tape of forward, got " + type_name(object));
  return object.cast<TapeObject&>();
}

// f<Real>(tape, its arrays), by the dtype of the tape.
template <class F>
auto with_tape(const py::object& object, F&& f) {
  TapeObject& tape = tape_in(object);
  return std::visit([&](auto& saved) { return f(tape, saved); }, tape.saved);
}

}  // namespace rnnfast
