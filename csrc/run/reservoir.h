// Sparse reservoirs as the kernels take them, made of full matrices.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "run/dispatch.h"
#include "run/memory.h"
#include "types.h"

namespace rnnfast {

// The weights of a reservoir: w_ih [H,I], w_hh [H,H], b_ih, b_hh and leak [H]; leak may be null: all are 1.
template <class Real>
struct ReservoirWeights {
  Index H, I;
  const Real *w_ih, *w_hh, *b_ih, *b_hh, *leak;
};

// At most one element of so many is a connection, or a product with the full matrices may be sooner: where those are
// near, one sequence by itself takes about so many times as long for a connection as for an element.
template <class Real>
constexpr Index elements_per_connection = sizeof(Real) == 8 ? 5 : 8;

template <class Real>
class SparseReservoir {
 public:
  // None where the connections are too many, or the operands.
  static std::optional<SparseReservoir> made_of(const ReservoirWeights<Real>& w, bool is_relu) {
    const Index block = kernels<Real>().block_units, blocks = (w.H + block - 1) / block;
    if (blocks * block + w.I > std::numeric_limits<Column>::max()) return std::nullopt;
    Connections found = {.first = {0}, .columns = {}};
    const Index most = w.H * (w.I + w.H) / elements_per_connection<Real>;
    found.columns.resize(std::size_t(most + w.I + w.H));
    Column* end = found.columns.data();
    for (Index unit = 0; unit < w.H; ++unit) {
      end = append(w.w_ih + unit * w.I, w.I, 0, end);
      end = append(w.w_hh + unit * w.H, w.H, w.I, end);
      found.first.push_back(end - found.columns.data());
      if (found.first.back() > most) return std::nullopt;
    }
    return SparseReservoir(w, is_relu, block, found);
  }

  // As long as this lives.
  Reservoir<Real> view() const {
    return {.H = Index(place_.size()),
            .I = I_,
            .blocks = Index(first_.size()) - 1,
            .first = first_.data(),
            .weights = static_cast<const Real*>(weights_.data()),
            .columns = static_cast<const Column*>(columns_.data()),
            .place = place_.data(),
            .bias = bias_.data(),
            .leak = leak_.empty() ? nullptr : leak_.data(),
            .is_relu = is_relu_};
  }

 private:
  // Of each unit, what it is connected with: inputs, then units after them.
  struct Connections {
    std::vector<Index> first;  // and the number of all; [H+1]
    std::vector<Column> columns;

    Index count(Index unit) const { return first[std::size_t(unit + 1)] - first[std::size_t(unit)]; }
  };

  // Without a branch that depends on a weight: it would be mispredicted at every connection.
  static Column* append(const Real* row, Index n, Index first, Column* to) {
    for (Index i = 0; i < n; ++i) {
      *to = Column(first + i);
      to += row[i] != 0;
    }
    return to;
  }

  SparseReservoir(const ReservoirWeights<Real>& w, bool is_relu, Index block, const Connections& found)
      : I_(w.I), is_relu_(is_relu), place_(std::size_t(w.H)) {
    std::vector<Index> order(place_.size());
    std::iota(order.begin(), order.end(), Index(0));
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return found.count(a) > found.count(b); });
    first_.push_back(0);
    for (std::size_t place = 0; place < order.size(); ++place) {
      place_[std::size_t(order[place])] = Column(place);
      if (Index(place) % block == 0) first_.push_back(first_.back() + found.count(order[place]));
    }
    const Index units = (Index(first_.size()) - 1) * block, inputs = units, zero = units + I_;
    const std::size_t slots = std::size_t(first_.back() * block);
    weights_ = Buffer(slots * sizeof(Real)), columns_ = Buffer(slots * sizeof(Column));
    auto* const weights = static_cast<Real*>(weights_.data());
    auto* const columns = static_cast<Column*>(columns_.data());
    std::fill_n(weights, slots, Real(0)), std::fill_n(columns, slots, Column(zero));
    bias_.resize(std::size_t(units)), leak_.resize(w.leak ? std::size_t(units) : 0);
    for (Index place = 0; place < w.H; ++place) {
      const Index unit = order[std::size_t(place)];
      bias_[std::size_t(place)] = w.b_ih[unit] + w.b_hh[unit];
      if (w.leak) leak_[std::size_t(place)] = w.leak[unit];
      Index at = first_[std::size_t(place / block)] * block + place % block;
      const Column* from = found.columns.data() + found.first[std::size_t(unit)];
      for (Index n = found.count(unit); n > 0; --n, ++from, at += block) {
        const bool is_input = *from < I_;
        const Index k = *from - I_;
        weights[at] = is_input ? w.w_ih[unit * I_ + *from] : w.w_hh[unit * w.H + k];
        columns[at] = is_input ? Column(inputs + *from) : place_[std::size_t(k)];
      }
    }
  }

  Index I_;
  bool is_relu_;
  std::vector<Index> first_;
  std::vector<Column> place_;
  Buffer weights_, columns_;
  std::vector<Real> bias_, leak_;
};

// Whether gather instructions are the sooner way to collect operands. They differ by several times between processors,
// and with their microcode, so both ways are timed, once.
template <class Real>
bool gathers_pay() {
  static const bool answer = [] {
    constexpr std::size_t H = 128, T = 16;
    const Kernels<Real>& k = kernels<Real>();
    if (!k.has_gather) return false;
    std::vector<Real> w(H * H), zeros(H), y(T * H);
    for (std::size_t i = 0; i < w.size(); i += 9) w[i] = 1;
    const Real* const z = zeros.data();
    const auto packed = SparseReservoir<Real>::made_of(
        {.H = H, .I = 0, .w_ih = z, .w_hh = w.data(), .b_ih = z, .b_hh = z, .leak = nullptr}, true);
    const Reservoir<Real> r = packed->view();
    const Buffer scratch(std::size_t(k.reservoir_scratch(r, 1)) * sizeof(Real));
    const auto time = [&](bool gathers) {
      const auto never = [](const Team&) { return false; };
      const Team alone = {.rank = 0, .size = 1, .barrier = never, .interrupted = never, .context = nullptr};
      const auto start = std::chrono::steady_clock::now();
      k.reservoir({.reservoir = r,
                   .T = T,
                   .B = 1,
                   .x = {.data = zeros.data(), .stride = 0},
                   .h = {.data = zeros.data(), .stride = H},
                   .y = {.data = y.data(), .stride = H},
                   .scratch = static_cast<Real*>(scratch.data()),
                   .gathers = gathers},
                  alone);
      return std::chrono::steady_clock::now() - start;
    };
    auto with = time(true), without = time(false);
    for (int round = 0; round < 5; ++round) with = std::min(with, time(true)), without = std::min(without, time(false));
    return with < without;
  }();
  return answer;
}

}  // namespace rnnfast
