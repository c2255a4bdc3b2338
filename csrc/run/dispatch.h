// Which instruction set runs: the best that the processor and the operating system support, or the one that the
// environment variable RNNFAST_ISA names.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "types.h"

namespace rnnfast {

// What is in use, chosen at import.
extern const KernelTable* kernel_table;
extern const IntegerKernels* integer_kernels;
extern const PairKernels* pair_kernels;  // null: this machine has none

template <class Real>
const Kernels<Real>& kernels();
template <>
inline const Kernels<float>& kernels<float>() {
  return *kernel_table->f32;
}
template <>
inline const Kernels<double>& kernels<double>() {
  return *kernel_table->f64;
}

// All cells that the kernels know; those of every instruction set are the same.
inline std::span<const CellShape> cells() {
  return {kernel_table->f32->cells, std::size_t(kernel_table->f32->cell_count)};
}

// Throws std::runtime_error if RNNFAST_ISA, RNNFAST_INTEGERS or RNNFAST_BF16 asks for what this machine lacks.
const KernelTable& choose_kernels();

// What this machine can run, the best one last.
std::vector<const KernelTable*> available_kernels();
std::vector<const IntegerKernels*> available_integers(const KernelTable& table);
std::vector<const PairKernels*> available_pairs(const KernelTable& table);  // those that emulate first

}  // namespace rnnfast
