// The tile registers of AMX, and what csrc/kernels/amx.cpp does with them: eight registers of at most 16 rows of 64
// bytes. Where the compiler is told of no such instructions, they are emulated, for tests.
#pragma once

#include "kernels/products/gemm.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

constexpr int register_count = 8, register_rows = 16, register_words = 16;

// Of each register, as LDTILECFG reads it; what has no rows is not used.
struct alignas(64) RegisterShapes {
  std::uint8_t palette = 1, first_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

#if defined(__AMX_BF16__) || defined(__AMXBF16__)

constexpr bool has_registers = true;

// The compilers' intrinsics for these do not all say what memory they read.
RNNFAST_INLINE void shape_registers(const RegisterShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }

RNNFAST_INLINE void release_registers() { asm volatile("tilerelease"); }

template <int n>
RNNFAST_INLINE void clear_register() {
  asm volatile("tilezero %%tmm%c0" : : "i"(n));
}

template <int n>
RNNFAST_INLINE void load_register(const float* from, Index row) {
  asm volatile("tileloadd (%0,%1), %%tmm%c2" : : "r"(from), "r"(row * Index(sizeof(float))), "i"(n) : "memory");
}

template <int n>
RNNFAST_INLINE void store_register(float* to, Index row) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)" : : "r"(to), "r"(row * Index(sizeof(float))), "i"(n) : "memory");
}

// sum[m][n] += the products of all pairs a[m][k], w[k][n].
template <int sum, int a, int w>
RNNFAST_INLINE void add_register_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(w));
}

#else

constexpr bool has_registers = false;

using RegisterRow = Simd<float, register_words>;

struct Register {
  float rows[register_rows][register_words];
};

thread_local RegisterShapes shapes_of_registers;
thread_local Register registers[register_count];

// As a processor raises an exception.
void require_of_registers(bool holds) {
  if (!holds) __builtin_trap();
}

void shape_registers(const RegisterShapes& shapes) {
  for (int n = 0; n < register_count; ++n) {
    require_of_registers(shapes.rows[n] <= register_rows && shapes.row_bytes[n] <= sizeof(registers[n].rows[0]));
    registers[n] = {};
  }
  shapes_of_registers = shapes;
}

void release_registers() { shape_registers(RegisterShapes()); }

int rows_of_register(int n) {
  require_of_registers(shapes_of_registers.rows[n] && shapes_of_registers.row_bytes[n]);
  return shapes_of_registers.rows[n];
}

template <int n>
void clear_register() {
  rows_of_register(n);
  registers[n] = {};
}

template <int n>
void load_register(const float* from, Index row) {
  const int rows = rows_of_register(n);
  registers[n] = {};
  for (int m = 0; m < rows; ++m)
    __builtin_memcpy(registers[n].rows[m], from + m * row, shapes_of_registers.row_bytes[n]);
}

template <int n>
void store_register(float* to, Index row) {
  for (int m = 0; m < rows_of_register(n); ++m)
    __builtin_memcpy(to + m * row, registers[n].rows[m], shapes_of_registers.row_bytes[n]);
}

// As Intel's manual has it (TDPBF16PS): the first numbers of the pairs and the second ones have sums of their own, from
// zero on, by fused multiply-adds in ascending k; these two are added, and then that to what was there. It rounds to
// nearest, and results and inputs below the smallest normal number count as zero.
template <int sum, int a, int w>
void add_register_products() {
  using S = RegisterRow;
  const FloatingPointMode mode;
  const int rows = rows_of_register(sum), words = rows_of_register(w);
  const RegisterShapes& shapes = shapes_of_registers;
  require_of_registers(rows_of_register(a) == rows && shapes.row_bytes[a] == words * int(sizeof(float)) &&
                       shapes.row_bytes[w] == shapes.row_bytes[sum]);
  for (int m = 0; m < rows; ++m) {
    S::V first = {}, second = {};
    for (int k = 0; k < words; ++k) {
      const S::V one = broadcast_word<S>(&registers[a].rows[m][k]), other = S::load(registers[w].rows[k]);
      first = fma(number_of<S, Word::first_of_pair>(one), number_of<S, Word::first_of_pair>(other), first);
      second = fma(number_of<S, Word::second_of_pair>(one), number_of<S, Word::second_of_pair>(other), second);
    }
    S::store(registers[sum].rows[m], S::load(registers[sum].rows[m]) + (first + second));
  }
}

#endif

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
