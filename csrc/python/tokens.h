// Tokens at the border: checked, and numbered by those that occur.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "python/arrays.h"
#include "types.h"

namespace rnnfast {

// What the kernels are given as Tokens.
struct TokenArrays {
  std::vector<Index> number, token;
};

// x [T,B] of any integers, all of them from 0 to V - 1.
inline TokenArrays read_tokens(const py::array& x, Index V) {
  TokenArrays tokens;
  const py::array copy = as_indices(x);  // numbers beyond its range become negative
  const auto* values = static_cast<const Index*>(copy.data());
  tokens.number.assign(values, values + copy.size());
  std::vector<Index> numbers(std::size_t(V), -1);
  for (std::size_t row = 0; row < tokens.number.size(); ++row) {
    const Index token = tokens.number[row];
    if (token < 0 || token >= V)
      throw py::value_error("x: expected tokens from 0 to " + std::to_string(V - 1) + ", got " +
                            text(x.attr("item")(row)));
    numbers[std::size_t(token)] = 0;
  }
  for (Index token = 0; token < V; ++token)
    if (auto& number = numbers[std::size_t(token)]; number == 0) {
      number = Index(tokens.token.size());
      tokens.token.push_back(token);
    }
  for (Index& token : tokens.number) token = numbers[std::size_t(token)];
  return tokens;
}

// For each row the nearest ones that hold the same token.
struct TokenLinks {
  std::vector<Index> earlier, later;
};

inline TokenLinks link(const TokenArrays& tokens) {
  const std::size_t rows = tokens.number.size();
  TokenLinks links = {.earlier = std::vector<Index>(rows), .later = std::vector<Index>(rows, Index(rows))};
  std::vector<Index> last(tokens.token.size(), -1);
  for (std::size_t row = 0; row < rows; ++row) {
    Index& before = last[std::size_t(tokens.number[row])];
    links.earlier[row] = before;
    if (before >= 0) links.later[std::size_t(before)] = Index(row);
    before = Index(row);
  }
  return links;
}

// Refers to both.
inline Tokens view(const TokenArrays& tokens, const TokenLinks& links) {
  return {.number = tokens.number.data(),
          .token = tokens.token.data(),
          .earlier = links.earlier.data(),
          .later = links.later.data()};
}

}  // namespace rnnfast
