// The cells by name and what a call of them costs, for those who call the kernels.
#pragma once

#include "types.h"

namespace rnnfast {

struct CellInfo {
  const char* name;
  Cell cell;
  Index G;
  bool has_c;
  const char* gates;  // a letter each, where they have names
};

constexpr CellInfo cells[] = {
    {"lstm", Cell::lstm, 4, true, "ifgo"},
    {"gru", Cell::gru, 3, false, "rzn"},
    {"gru_reset_before", Cell::gru_reset_before, 3, false, "rzn"},
    {"rnn_tanh", Cell::rnn_tanh, 1, false, ""},
    {"rnn_relu", Cell::rnn_relu, 1, false, ""},
};

// Of a forward.
constexpr double flops(const Problem& p, Index G) {
  const double rows =
      double(p.run.last - p.run.first) / double(p.T) * double(p.first_row ? p.first_row[p.T] : p.T * p.B);
  const double inputs = p.input == InputKind::dense ? rows : p.input == InputKind::embedded ? double(p.U) : 0;
  return 2.0 * double(p.D) * double(G) * double(p.H) * (inputs * double(p.I) + rows * double(p.H));
}

// In how many pieces a call can be had: rows of the batch, or groups of units, which have 32 at least.
constexpr Index most_members(const Problem& p) {
  const Index groups = p.H / 32 + 1;
  return p.D * (p.B > groups ? p.B : groups);
}

}  // namespace rnnfast
