// What a layer's call needs whoever makes it, from Python or from C: how its rows form sequences, and memory for its
// tape.
#pragma once

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "memory.h"

namespace rnnfast {

// Elements of all arrays of a call but the parameters, with scratch, stay below this, so that no size overflows.
constexpr double most_elements = double(std::int64_t{1} << 58);
static_assert(sizeof(Index) == 8);

inline bool fits_address_space(const Problem& p, double rows) {
  return rows * double(p.D) * (double(p.I) + 8.0 * double(p.H) + 64.0) <= most_elements;
}

// ---- Sequences -----------------------------------------------------------------------------------------------------

// What a Problem points to.
struct Schedule {
  std::vector<Index> first_row, first_step;
  std::vector<unsigned char> starts[2];
};

// The first row of each step, and the number of all rows, from the sequences that have each step.
inline void find_first_rows(const Index* batch_sizes, Index T, std::vector<Index>& first_row) {
  first_row.assign(1, 0);
  for (Index t = 0; t < T; ++t) {
    if (batch_sizes[t] < 1 || (t > 0 && batch_sizes[t] > batch_sizes[t - 1]))
      throw std::invalid_argument("batch_sizes: expected positive integers in descending order, got " +
                                  std::to_string(batch_sizes[t]) + " at step " + std::to_string(t));
    if (batch_sizes[t] > std::numeric_limits<Index>::max() - first_row.back())
      throw std::invalid_argument("batch_sizes: expected a sum that fits the address space");
    first_row.push_back(first_row.back() + batch_sizes[t]);
  }
}

// Gives a problem the rows of its schedule, and chunks of time that suit them.
inline void point_to_rows(Problem& p, Schedule& schedule) {
  p.first_row = schedule.first_row.data();
  schedule.first_step.resize(std::size_t(p.T) + 1);
  p.chunks = kernel_table->f32.cut(p, schedule.first_step.data());
  p.first_step = schedule.first_step.data();
}

// Where each direction's state starts anew, from the rows at which episodes begin and those of the last step at which
// they end; null: nowhere, and everywhere. Backwards in time it starts anew at the end of an episode.
inline void find_starts(Problem& p, const unsigned char* begins, const unsigned char* ends, Schedule& schedule) {
  const auto size = [&](Index t) { return p.first_row ? p.first_row[t + 1] - p.first_row[t] : p.B; };
  for (int d = 0; d < p.D; ++d) {
    std::vector<unsigned char>& starts = schedule.starts[d];
    starts.clear();
    if (d == 0 && !p.reverse) {
      if (begins) starts.assign(begins, begins + (p.first_row ? p.first_row[p.T] : p.T * p.B));
    } else if (begins || ends || p.first_row) {
      Index later = 0;
      for (Index t = 0; t < p.T; ++t) {
        later += size(t);
        for (Index b = 0; b < size(t); ++b) {
          const bool last = t + 1 == p.T, ended = !last && b >= size(t + 1);
          const auto at = [b](const unsigned char* flags, Index row) { return flags && flags[row + b]; };
          starts.push_back(ended || (last ? at(ends, 0) : at(begins, later)));
        }
      }
    }
    p.starts[d] = starts.empty() ? nullptr : starts.data();
  }
}

// ---- Tapes ---------------------------------------------------------------------------------------------------------

// Of all directions; states of both lie side by side, as y does, one state after the other. Memory is a Buffer, or what
// has its data().
template <class Memory = Buffer>
struct TapeMemory {
  Memory gates, states, reset_h;
};

inline void grow(Buffer& buffer, std::size_t bytes) {
  if (buffer.bytes() >= bytes) return;
  buffer = Buffer();  // not both at once
  buffer = Buffer(bytes);
}

// Makes room for the tape of a problem, in the memory that is there if it suffices.
template <class Real>
void grow(TapeMemory<>& memory, const Problem& p) {
  const TapeSize size = kernels<Real>().tape_size(p);
  const auto bytes = [&](Index elements) { return std::size_t(elements * p.D) * sizeof(Real); };
  grow(memory.gates, bytes(size.gates)), grow(memory.states, bytes(size.states)),
      grow(memory.reset_h, bytes(size.reset_h));
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
                     .reset_h = at(memory.reset_h, size.reset_h, d * size.reset_h)};
  const int kept = p.cell->state_count - 1;  // all but h
  for (int s = 0; s < kept; ++s)
    tape.states[s + 1] = {at(memory.states, size.states, s * p.D * (size.states / kept) + d * p.H), p.D * p.H};
  return tape;
}

}  // namespace rnnfast
