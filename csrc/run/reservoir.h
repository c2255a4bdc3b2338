// Sparse reservoirs as the kernels take them, made of full matrices.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <limits>
#include <numeric>
#include <optional>
#include <vector>

#include "run/connections.h"
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
// near, one sequence by itself takes about so many times as long for a connection as for an element. Matrices beyond
// the second cache level of most machines are far.
template <class Real>
constexpr Index elements_per_connection(Index elements) {
  const bool is_far = elements * Index(sizeof(Real)) > Index(2) << 20;
  return sizeof(Real) == 8 ? (is_far ? 3 : 5) : (is_far ? 5 : 8);
}

// What a reservoir of few connections is made of.
template <class Real>
struct SparseParts {
  Index I;
  bool is_relu;
  std::vector<Index> first;     // connection of each unit, and the number of all; [H+1]
  std::vector<Column> columns;  // inputs, then units after them
  std::vector<Real> weights, bias, leak;

  bool operator==(const SparseParts&) const = default;

  Index H() const { return Index(first.size()) - 1; }
  Index count(Index unit) const { return first[std::size_t(unit + 1)] - first[std::size_t(unit)]; }

  // None where the connections are too many, or the operands.
  static std::optional<SparseParts> of(const ReservoirWeights<Real>& w, bool is_relu) {
    const Kernels<Real>& k = kernels<Real>();
    const Index places = (w.H + k.block_units - 1) / k.block_units * k.block_units + w.I;
    if (operand_at(places, k.pair_lanes) >= std::numeric_limits<Column>::max()) return std::nullopt;
    SparseParts parts = {
        .I = w.I, .is_relu = is_relu, .first = {0}, .columns = {}, .weights = {}, .bias = {}, .leak = {}};
    const Index elements = w.H * (w.I + w.H), most = elements / elements_per_connection<Real>(elements);
    parts.columns.resize(std::size_t(most + w.I + w.H));
    parts.weights.resize(parts.columns.size());
    Index n = 0;
    for (Index unit = 0; unit < w.H; ++unit) {
      n = parts.append(w.w_ih + unit * w.I, w.I, 0, n);
      n = parts.append(w.w_hh + unit * w.H, w.H, w.I, n);
      parts.first.push_back(n);
      if (n > most) return std::nullopt;
      parts.bias.push_back(w.b_ih[unit] + w.b_hh[unit]);
    }
    parts.columns.resize(std::size_t(n)), parts.weights.resize(std::size_t(n));
    if (w.leak) parts.leak.assign(w.leak, w.leak + w.H);
    return parts;
  }

 private:
  // Without a branch that depends on a weight: it would be mispredicted at every connection.
  Index append(const Real* row, Index count, Index column, Index n) {
    Column* to = columns.data() + n;
    for (Index i = 0; i < count; ++i) {
      *to = Column(column + i);
      to += row[i] != 0;
    }
    for (const Index end = to - columns.data(); n < end; ++n)
      weights[std::size_t(n)] = row[columns[std::size_t(n)] - column];
    return n;
  }
};

template <class Real>
class SparseReservoir {
 public:
  // Without pairs, even where the kernels have them, if those are not wanted.
  explicit SparseReservoir(SparseParts<Real> parts, bool has_pairs = true)
      : parts_(std::move(parts)), has_pairs_(has_pairs && kernels<Real>().pair_lanes), place_(std::size_t(parts_.H())) {
    std::vector<Index> order(place_.size());
    std::iota(order.begin(), order.end(), Index(0));
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return parts_.count(a) > parts_.count(b); });
    for (std::size_t place = 0; place < order.size(); ++place) place_[std::size_t(order[place])] = Column(place);
    const Index block = kernels<Real>().block_units, blocks = (parts_.H() + block - 1) / block;
    bias_.resize(std::size_t(blocks * block)), leak_.resize(parts_.leak.empty() ? 0 : bias_.size());
    for (std::size_t place = 0; place < order.size(); ++place) {
      bias_[place] = parts_.bias[std::size_t(order[place])];
      if (!leak_.empty()) leak_[place] = parts_.leak[std::size_t(order[place])];
    }
    const Numbered<Real> connections = numbered(order);
    Slots all, collected;
    const int lanes = kernels<Real>().pair_lanes;
    if (has_pairs_) {
      Pairing<Real> pairing(connections, block, operand_at(blocks * block + parts_.I, lanes));
      for (Index place = 0; place < blocks * block; place += block) {
        const std::vector<Numbers> others = pairing.take(place);
        collected.add(others);
        all.add(together(pairing.slots, others));
      }
      pairs_ = {.first = std::move(pairing.slots.first),
                .weights = weights_of(pairing.slots, connections),
                .second = std::move(pairing.second),
                .picks = std::move(pairing.picks)};
    } else {
      std::vector<Numbers> of_units;
      of_units.resize(std::size_t(block));
      for (Index place = 0; place < blocks * block; place += block) {
        const Index* first = connections.first.data() + place;
        for (Numbers& of_unit : of_units) {
          of_unit.resize(std::size_t(first[1] - first[0]));
          std::iota(of_unit.begin(), of_unit.end(), *first++);
        }
        all.add(of_units);
      }
      pairs_.first.resize(std::size_t(blocks + 1));
    }
    const Index zero = lanes ? lanes - 1 : blocks * block + parts_.I;
    all_ = ConnectionList<Real>(all, connections, zero),
    collected_ = ConnectionList<Real>(collected, connections, zero);
  }

  const SparseParts<Real>& parts() const { return parts_; }

  // As long as this lives.
  Reservoir<Real> view() const {
    return {.H = Index(place_.size()),
            .I = parts_.I,
            .blocks = Index(pairs_.first.size()) - 1,
            .all = all_.view(),
            .pairs = {.first = pairs_.first.data(),
                      .weights = static_cast<const Real*>(pairs_.weights.data()),
                      .second = pairs_.second.data(),
                      .picks = pairs_.picks.data()},
            .collected = (has_pairs_ ? collected_ : all_).view(),
            .place = place_.data(),
            .bias = bias_.data(),
            .leak = leak_.empty() ? nullptr : leak_.data(),
            .is_relu = parts_.is_relu};
  }

 private:
  struct PairList {
    std::vector<Index> first;
    Buffer weights;
    std::vector<Column> second;
    std::vector<typename PickOf<Real>::Type> picks;
  };

  // The connections in the order of places, with the operands that they lead to.
  Numbered<Real> numbered(const std::vector<Index>& order) const {
    Numbered<Real> result;
    result.weights.reserve(parts_.weights.size()), result.operands.reserve(parts_.weights.size());
    const Index units = Index(bias_.size());
    for (Index place = 0; place < units; ++place) {
      if (place < parts_.H()) {
        const auto first = std::size_t(parts_.first[std::size_t(order[std::size_t(place)])]);
        const auto last = std::size_t(parts_.first[std::size_t(order[std::size_t(place)] + 1)]);
        for (std::size_t n = first; n < last; ++n) {
          const Index column = parts_.columns[n], k = column - parts_.I;
          const Index operand = k < 0 ? units + column : place_[std::size_t(k)];
          result.weights.push_back(parts_.weights[n]);
          result.operands.push_back(Column(operand_at(operand, kernels<Real>().pair_lanes)));
        }
      }
      result.first.push_back(Index(result.weights.size()));
    }
    return result;
  }

  // The connections of each unit of the last block of pairs, and others, in the order in which kernels add them.
  static std::vector<Numbers> together(const Slots& pairs, const std::vector<Numbers>& others) {
    std::vector<Numbers> result(others.size());
    const Index first = *(pairs.first.end() - 2), last = pairs.first.back();
    for (std::size_t unit = 0; unit < others.size(); ++unit) {
      auto other = others[unit].begin();
      for (Index slot = first; slot < last; ++slot) {
        const Index number = pairs.numbers[std::size_t(slot) * others.size() + unit];
        if (number != Slots::none) result[unit].push_back(number);
        if ((slot + 1) % Pairs<Real>::group == 0 && other != others[unit].end()) result[unit].push_back(*other++);
      }
      result[unit].insert(result[unit].end(), other, others[unit].end());
    }
    return result;
  }

  SparseParts<Real> parts_;
  bool has_pairs_;
  std::vector<Column> place_;
  ConnectionList<Real> all_, collected_;  // the latter where there are pairs
  PairList pairs_;
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
    const auto parts = SparseParts<Real>::of(
        {.H = H, .I = 0, .w_ih = z, .w_hh = w.data(), .b_ih = z, .b_hh = z, .leak = nullptr}, true);
    const SparseReservoir<Real> packed(*parts, false);
    const Reservoir<Real> r = packed.view();
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
