// How a layer's call is made, from Python or from C: sizes become a problem, what it costs a number of threads, and
// pointers to the arrays of all directions the arguments of each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "run/dispatch.h"
#include "run/memory.h"
#include "run/schedule.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {

// ---- Sizes ---------------------------------------------------------------------------------------------------------

struct Sizes {
  Index T, B, I, H, D;
  Index P = 0;  // where h is a projection
  Index heads = 1;
};

// All steps are run, of B rows each, and x is dense; what is not so, the caller sets.
constexpr Problem problem_of(const CellShape& cell, const Sizes& sizes) {
  const Index P = sizes.P ? sizes.P : sizes.H;
  return {.T = sizes.T,
          .B = sizes.B,
          .I = sizes.I,
          .H = sizes.H,
          .P = P,
          .D = sizes.D,
          .cell = &cell,
          .input = InputKind::dense,
          .U = 0,
          .head = sizes.heads == 1 ? P : P / sizes.heads,
          .run = {.first = 0, .last = sizes.T}};
}

// Whether h is a projection, which has fewer elements.
constexpr bool is_projected(const Problem& p) { return p.P < p.H; }

// Whether some units of a state keep their value, and the tape has what the cell made of all.
constexpr bool tapes_made(const Problem& p, int state) { return p.zoned >> state & 1 && p.cell->reads_after[state]; }

// A state's size; h is the first.
constexpr Index state_size(const Problem& p, std::size_t state) { return state == 0 ? p.P : p.H; }

// Elements of all arrays of a call but the parameters, with scratch, stay below this, so that no size overflows.
constexpr double most_elements = double(std::int64_t{1} << 58);
static_assert(sizeof(Index) == 8);

constexpr bool fits_address_space(const Problem& p, double rows) {
  return rows * double(p.D) * (double(p.I) + 8.0 * double(p.H) + 64.0) <= most_elements;
}

// What is added to the variances of rows that are normalised, where nobody says.
constexpr double default_eps = 1e-5;

// Whether a number will do in its place.
template <class Real>
constexpr bool is_eps(double eps) {
  return Real(eps) >= std::numeric_limits<Real>::min() && Real(eps) <= std::numeric_limits<Real>::max();
}

// ---- Threads -------------------------------------------------------------------------------------------------------

// Floating point operations of a forward.
constexpr double flops(const Problem& p) {
  const double rows = double(p.run.last - p.run.first) / double(p.T) * double(row_count(p));
  const double inputs = p.input == InputKind::dense ? rows : p.input == InputKind::embedded ? double(p.U) : 0;
  const double gates = double(p.cell->gate_count) * (inputs * double(p.I) + rows * double(p.head));
  return 2.0 * double(p.D) * double(p.H) * (gates + (is_projected(p) ? rows * double(p.P) : 0));
}

// In how many pieces a call can be had: rows of the batch, or groups of units, which have 32 at least.
constexpr Index most_members(const Problem& p) {
  const Index groups = p.format == Format::int8 ? 1 : p.H / 32 + 1;
  return p.D * (p.B > groups ? p.B : groups);
}

// Of so many threads, those that a forward gains from.
template <class Real>
Index useful_threads(const Problem& p, Index threads) {
  Index best = 1;
  double speed = 1;
  for (Index n = threads; double(n) > speed; --n)
    if (const double other = kernels<Real>().speed_of_team(p, n); other > speed) best = n, speed = other;
  return best;
}

// At most `most`, or as many as are set where that is 0.
template <class Real>
Index forward_threads(const Problem& p, Index most = 0) {
  return useful_threads<Real>(p, team_size(flops(p), most_members(p), most));
}

inline Index backward_threads(const Problem& p, bool need_dx, Index most = 0) {
  return team_size((need_dx ? 2 : 1.5) * flops(p), most_members(p), most);
}

// ---- Tapes ---------------------------------------------------------------------------------------------------------

// Of all directions; states of both lie side by side, as y does, one state after the other, and last what h is a
// projection of and what the cell makes of states that are zoned. Memory is a Buffer, or what has its data().
template <class Memory = Buffer>
struct TapeMemory {
  Memory gates, states, reset_h;
};

inline void grow(Buffer& buffer, std::size_t bytes) {
  if (buffer.bytes() >= bytes) return;
  buffer = Buffer();  // not both at once
  buffer = Buffer(bytes);
}

// Bytes of each part.
template <class Real>
TapeMemory<std::size_t> tape_bytes(const Problem& p) {
  const TapeSize size = kernels<Real>().tape_size(p);
  const auto bytes = [&](Index elements) { return std::size_t(elements * p.D) * sizeof(Real); };
  return {.gates = bytes(size.gates), .states = bytes(size.states), .reset_h = bytes(size.reset_h)};
}

// One direction's part; null where there is no memory, or the cell needs none.
template <class Real, class Memory>
Tape<Real> tape_of(const TapeMemory<Memory>& memory, const Problem& p, Index d) {
  const TapeSize size = kernels<std::remove_const_t<Real>>().tape_size(p);
  const auto at = [](const Memory& part, Index elements, Index offset) {
    return part.data() && elements ? static_cast<Real*>(part.data()) + offset : nullptr;
  };
  Tape<Real> tape = {.gates = at(memory.gates, size.gates, d * size.gates),
                     .states = {},
                     .reset_h = at(memory.reset_h, size.reset_h, d * size.reset_h),
                     .made = {}};
  Index used = 0;
  const auto next = [&] {
    const View<Real> rows = {at(memory.states, size.states, used + d * p.H), p.D * p.H};
    used += row_count(p) * p.D * p.H;
    return rows;
  };
  for (int s = 1; s < p.cell->state_count; ++s) tape.states[s] = next();
  if (is_projected(p)) tape.states[0] = next();
  for (int s = 0; s < p.cell->state_count; ++s)
    if (tapes_made(p, s)) tape.made[s] = next();
  return tape;
}

// ---- Directions ----------------------------------------------------------------------------------------------------

// Of the states that a cell has, h first; null views otherwise.
template <class Real>
using StateViews = std::array<View<Real>, most_states>;

// What the directions of a call are made of: rows [N,D·H] and states [D,B,H] of all of them; of h, [N,D·P] and [D,B,P].
// Null stands for what it does in ForwardDirection and BackwardDirection.
template <class Real>
struct ForwardArrays {
  std::array<Parameters<const Real>, 2> parameters;
  const Real* packed;  // one direction after the other
  StateViews<const Real> initial, start;
  View<Real> y;
  StateViews<Real> last;
  StateViews<const unsigned char> renewed = {};  // rows [N,D·ceil(H/8)]
  View<const Real> factors = {};                 // [D,B,masks·H]
  View<const unsigned char> kept = {};           // rows [N,D·ceil(H/8)], or of sequences [B,D·ceil(H/8)]
};

template <class Real>
struct BackwardArrays {
  std::array<Parameters<const Real>, 2> parameters;
  StateViews<const Real> initial, start;
  View<const Real> y;
  StateViews<const Real> dsteps;  // rows
  StateViews<Real> dstate, dstart;
  StateViews<Real> flow;  // rows
  std::array<Parameters<Real>, 2> gradients;
  StateViews<const unsigned char> renewed = {};  // as in forward
  View<const Real> factors = {};                 // [D,B,masks·H]
  View<const unsigned char> kept = {};           // as in forward
};

// A direction's columns of rows of a state.
template <class Real>
View<Real> columns_of_direction(const View<Real>& rows, const Problem& p, std::size_t state, Index d) {
  return {rows.data ? rows.data + d * state_size(p, state) : nullptr, rows.stride};
}

// Bytes with a bit for each unit.
constexpr Index bytes_of_bits(Index H) { return (H + 7) / 8; }

inline View<const unsigned char> bits_of_direction(const View<const unsigned char>& rows, const Problem& p, Index d) {
  return {rows.data ? rows.data + d * bytes_of_bits(p.H) : nullptr, rows.stride};
}

// A direction's [B,H] of states.
template <class Real>
View<Real> state_of_direction(const View<Real>& states, const Problem& p, Index d) {
  return {states.data ? states.data + d * p.B * states.stride : nullptr, states.stride};
}

template <class Real, class Memory>
void set_directions(ForwardArgs<Real>& args, const ForwardArrays<Real>& arrays, const TapeMemory<Memory>& tape) {
  const Problem& p = args.problem;
  const Index packed_size = arrays.packed ? kernels<Real>().packed_size(p) : 0;
  for (Index d = 0; d < p.D; ++d) {
    ForwardDirection<Real>& direction = args.directions[d];
    direction = {.parameters = arrays.parameters[std::size_t(d)],
                 .packed = arrays.packed ? arrays.packed + d * packed_size : nullptr,
                 .initial = {},
                 .start = {},
                 .y = columns_of_direction(arrays.y, p, 0, d),
                 .last = {},
                 .tape = tape_of<Real>(tape, p, d),
                 .renewed = {},
                 .factors = state_of_direction(arrays.factors, p, d),
                 .kept = bits_of_direction(arrays.kept, p, d)};
    for (std::size_t s = 0; s < std::size_t(p.cell->state_count); ++s) {
      direction.initial[s] = state_of_direction(arrays.initial[s], p, d);
      direction.start[s] = state_of_direction(arrays.start[s], p, d);
      direction.last[s] = state_of_direction(arrays.last[s], p, d);
      direction.renewed[s] = bits_of_direction(arrays.renewed[s], p, d);
    }
  }
}

template <class Real, class Memory>
void set_directions(BackwardArgs<Real>& args, const BackwardArrays<Real>& arrays, const TapeMemory<Memory>& tape) {
  const Problem& p = args.problem;
  for (Index d = 0; d < p.D; ++d) {
    BackwardDirection<Real>& direction = args.directions[d];
    direction = {.parameters = arrays.parameters[std::size_t(d)],
                 .initial = {},
                 .start = {},
                 .y = columns_of_direction(arrays.y, p, 0, d),
                 .dsteps = {},
                 .tape = tape_of<const Real>(tape, p, d),
                 .dstate = {},
                 .dstart = {},
                 .flow = {},
                 .gradients = arrays.gradients[std::size_t(d)],
                 .renewed = {},
                 .factors = state_of_direction(arrays.factors, p, d),
                 .kept = bits_of_direction(arrays.kept, p, d)};
    for (std::size_t s = 0; s < std::size_t(p.cell->state_count); ++s) {
      direction.initial[s] = state_of_direction(arrays.initial[s], p, d);
      direction.start[s] = state_of_direction(arrays.start[s], p, d);
      direction.dsteps[s] = columns_of_direction(arrays.dsteps[s], p, s, d);
      direction.dstate[s] = state_of_direction(arrays.dstate[s], p, d);
      direction.dstart[s] = state_of_direction(arrays.dstart[s], p, d);
      direction.flow[s] = columns_of_direction(arrays.flow[s], p, s, d);
      direction.renewed[s] = bits_of_direction(arrays.renewed[s], p, d);
    }
  }
}

}  // namespace rnnfast
