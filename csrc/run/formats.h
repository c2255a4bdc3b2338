// Matrices of fewer bits, as both borders hand them to the kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "run/memory.h"
#include "run/problem.h"
#include "types.h"

namespace rnnfast {

constexpr Index bytes_of_number(Format format) { return format == Format::int8 ? 1 : 2; }

// Of a row of K numbers.
constexpr Index words_of_row(Index K, Format format) { return (K * bytes_of_number(format) + 3) / 4; }

// Sums of as many products of 8 bits have 31 bits.
constexpr Index most_integers = 1 << 16;

// Why a call's matrices cannot have its format; "" if they can.
inline std::string refusal(const Problem& p) {
  const std::string name = p.cell->name;
  if (p.format == Format::bfloat16 && p.head != p.P) return "bfloat16 for one head, got several heads of " + name;
  if (p.format != Format::int8) return "";
  if (p.cell->stage_count || p.cell->has_heads) return "another format for " + name + ", got int8";
  const Index most = p.I > p.H ? p.I : p.H;
  if (most <= most_integers) return "";
  return "rows of at most " + std::to_string(most_integers) + " for int8, got " + std::to_string(most);
}

// For what the products of a call cannot have factors that are rounded; "" if they can.
inline std::string refusal_of_rounding(const Problem& p) {
  const std::string name = p.cell->name;
  if (p.cell->stage_count) return "for layer_norm, got " + name;
  return p.head != p.P ? "for several heads of " + name : "";
}

// Rows of K numbers as rows of words.
inline void copy_words(const void* numbers, Index rows, Index K, Format format, void* words) {
  const auto row = std::size_t(K * bytes_of_number(format)), stride = std::size_t(4 * words_of_row(K, format));
  std::memset(words, 0, std::size_t(rows) * stride);
  for (std::size_t r = 0; r < std::size_t(rows); ++r)
    std::memcpy(static_cast<char*>(words) + r * stride, static_cast<const char*>(numbers) + r * row, row);
}

}  // namespace rnnfast
