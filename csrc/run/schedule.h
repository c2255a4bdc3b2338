// How the rows of a call form sequences: of the same number of steps or not, starting anew or not.
#pragma once

#include <cstddef>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "run/dispatch.h"
#include "types.h"

namespace rnnfast {

// What a Problem points to.
struct Schedule {
  std::vector<Index> first_row, first_step;
  std::vector<unsigned char> starts[2];
};

// Of all steps.
constexpr Index row_count(const Problem& p) { return p.first_row ? p.first_row[p.T] : p.T * p.B; }

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
  p.chunks = kernel_table->f32->cut(p, schedule.first_step.data());
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
      if (begins) starts.assign(begins, begins + row_count(p));
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

}  // namespace rnnfast
