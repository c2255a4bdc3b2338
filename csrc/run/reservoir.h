// Sparse reservoirs as the kernels take them, made of full matrices.
#pragma once

#include <algorithm>
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

// At most one element of so many is a connection, or a product with the full matrices is about as fast: where those are
// near, one sequence by itself takes about 8 times as long for a connection as for an element.
constexpr Index elements_per_connection = 8;

template <class Real>
class SparseReservoir {
 public:
  // None where the connections are too many, or the operands.
  static std::optional<SparseReservoir> made_of(const ReservoirWeights<Real>& w, bool is_relu) {
    const Index block = kernels<Real>().block_units, blocks = (w.H + block - 1) / block;
    if (blocks * block + w.I > std::numeric_limits<Column>::max()) return std::nullopt;
    std::vector<Index> connections(std::size_t(w.H));
    Index elements = w.H * (w.I + w.H) / elements_per_connection;
    for (Index unit = 0; unit < w.H; ++unit) {
      const Index n = count(w.w_ih + unit * w.I, w.I) + count(w.w_hh + unit * w.H, w.H);
      connections[std::size_t(unit)] = n;
      if ((elements -= n) < 0) return std::nullopt;
    }
    return SparseReservoir(w, is_relu, block, connections);
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
  static Index count(const Real* row, Index n) {
    return Index(std::count_if(row, row + n, [](Real weight) { return weight != 0; }));
  }

  SparseReservoir(const ReservoirWeights<Real>& w, bool is_relu, Index block, const std::vector<Index>& connections)
      : I_(w.I), is_relu_(is_relu), place_(connections.size()) {
    std::vector<Index> order(connections.size());
    std::iota(order.begin(), order.end(), Index(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](Index a, Index b) { return connections[std::size_t(a)] > connections[std::size_t(b)]; });
    first_.push_back(0);
    for (std::size_t place = 0; place < order.size(); ++place) {
      place_[std::size_t(order[place])] = Column(place);
      if (Index(place) % block == 0) first_.push_back(first_.back() + connections[std::size_t(order[place])]);
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
      Index left = connections[std::size_t(unit)];  // should the caller's arrays change meanwhile
      const auto take = [&](Real weight, Index column) {
        if (weight == 0 || left == 0) return;
        weights[at] = weight, columns[at] = Column(column);
        at += block, --left;
      };
      for (Index i = 0; i < w.I; ++i) take(w.w_ih[unit * w.I + i], inputs + i);
      for (Index k = 0; k < w.H; ++k) take(w.w_hh[unit * w.H + k], place_[std::size_t(k)]);
    }
  }

  Index I_;
  bool is_relu_;
  std::vector<Index> first_;
  std::vector<Column> place_;
  Buffer weights_, columns_;
  std::vector<Real> bias_, leak_;
};

}  // namespace rnnfast
