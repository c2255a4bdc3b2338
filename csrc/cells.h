// The cells by name and what a call of them costs, for those who call the kernels.
#pragma once

#include <span>

#include "dispatch.h"

namespace rnnfast {

// All cells that the kernels know; those of every instruction set are the same.
inline std::span<const CellShape> cells() { return {kernel_table->cells, std::size_t(kernel_table->cell_count)}; }

inline bool has_c(const CellShape& cell) { return cell.state_count > 1; }

// Of a forward.
constexpr double flops(const Problem& p) {
  const double rows =
      double(p.run.last - p.run.first) / double(p.T) * double(p.first_row ? p.first_row[p.T] : p.T * p.B);
  const double inputs = p.input == InputKind::dense ? rows : p.input == InputKind::embedded ? double(p.U) : 0;
  return 2.0 * double(p.D) * double(p.cell->gates) * double(p.H) * (inputs * double(p.I) + rows * double(p.H));
}

// In how many pieces a call can be had: rows of the batch, or groups of units, which have 32 at least.
constexpr Index most_members(const Problem& p) {
  const Index groups = p.H / 32 + 1;
  return p.D * (p.B > groups ? p.B : groups);
}

}  // namespace rnnfast
