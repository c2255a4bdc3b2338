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
// near, one sequence by itself takes about so many times as long for a connection as for an element.
template <class Real>
constexpr Index elements_per_connection = sizeof(Real) == 8 ? 5 : 8;

template <class Real>
class SparseReservoir {
 public:
  // None where the connections are too many, or the operands. Pairs can be left out.
  static std::optional<SparseReservoir> made_of(const ReservoirWeights<Real>& w, bool is_relu, bool has_pairs = true) {
    const Kernels<Real>& k = kernels<Real>();
    const Index places = (w.H + k.block_units - 1) / k.block_units * k.block_units + w.I;
    if (operand_at(places, k.pair_lanes) >= std::numeric_limits<Column>::max()) return std::nullopt;
    Found found = {.first = {0}, .columns = {}};
    const Index most = w.H * (w.I + w.H) / elements_per_connection<Real>;
    found.columns.resize(std::size_t(most + w.I + w.H));
    Column* end = found.columns.data();
    for (Index unit = 0; unit < w.H; ++unit) {
      end = append(w.w_ih + unit * w.I, w.I, 0, end);
      end = append(w.w_hh + unit * w.H, w.H, w.I, end);
      found.first.push_back(end - found.columns.data());
      if (found.first.back() > most) return std::nullopt;
    }
    return SparseReservoir(w, is_relu, has_pairs && k.pair_lanes, found);
  }

  // As long as this lives.
  Reservoir<Real> view() const {
    return {.H = Index(place_.size()),
            .I = I_,
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
            .is_relu = is_relu_};
  }

 private:
  // Of each unit, what it is connected with: inputs, then units after them.
  struct Found {
    std::vector<Index> first;  // and the number of all; [H+1]
    std::vector<Column> columns;

    Index count(Index unit) const { return first[std::size_t(unit + 1)] - first[std::size_t(unit)]; }
  };

  struct PairList {
    std::vector<Index> first;
    Buffer weights;
    std::vector<Column> second;
    std::vector<typename PickOf<Real>::Type> picks;
  };

  // Without a branch that depends on a weight: it would be mispredicted at every connection.
  static Column* append(const Real* row, Index n, Index first, Column* to) {
    for (Index i = 0; i < n; ++i) {
      *to = Column(first + i);
      to += row[i] != 0;
    }
    return to;
  }

  SparseReservoir(const ReservoirWeights<Real>& w, bool is_relu, bool has_pairs, const Found& found)
      : I_(w.I), has_pairs_(has_pairs), is_relu_(is_relu), place_(std::size_t(w.H)) {
    std::vector<Index> order(place_.size());
    std::iota(order.begin(), order.end(), Index(0));
    std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return found.count(a) > found.count(b); });
    for (std::size_t place = 0; place < order.size(); ++place) place_[std::size_t(order[place])] = Column(place);
    const Index block = kernels<Real>().block_units, blocks = (w.H + block - 1) / block;
    bias_.resize(std::size_t(blocks * block)), leak_.resize(w.leak ? bias_.size() : 0);
    for (std::size_t place = 0; place < order.size(); ++place) {
      bias_[place] = w.b_ih[order[place]] + w.b_hh[order[place]];
      if (w.leak) leak_[place] = w.leak[order[place]];
    }
    const Numbered<Real> connections = numbered(w, order, found);
    Slots all, collected;
    const int lanes = kernels<Real>().pair_lanes;
    if (has_pairs) {
      Pairing<Real> pairing(connections, block, operand_at(blocks * block + I_, lanes));
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
        for (Index unit = 0; unit < block; ++unit) {
          const Index* const first = connections.first.data() + place + unit;
          of_units[std::size_t(unit)].resize(std::size_t(first[1] - first[0]));
          std::iota(of_units[std::size_t(unit)].begin(), of_units[std::size_t(unit)].end(), first[0]);
        }
        all.add(of_units);
      }
      pairs_.first.resize(std::size_t(blocks + 1));
    }
    const Index zero = lanes ? lanes - 1 : blocks * block + I_;
    all_ = ConnectionList<Real>(all, connections, zero),
    collected_ = ConnectionList<Real>(collected, connections, zero);
  }

  // The connections with the operands that they lead to.
  Numbered<Real> numbered(const ReservoirWeights<Real>& w, const std::vector<Index>& order, const Found& found) const {
    Numbered<Real> result;
    const Index units = Index(bias_.size());
    for (Index place = 0; place < units; ++place) {
      if (place < w.H) {
        const Index unit = order[std::size_t(place)];
        const Column* from = found.columns.data() + found.first[std::size_t(unit)];
        for (Index n = found.count(unit); n > 0; --n, ++from) {
          const Index k = *from - I_;
          result.weights.push_back(k < 0 ? w.w_ih[unit * I_ + *from] : w.w_hh[unit * w.H + k]);
          const Index operand = k < 0 ? units + *from : place_[std::size_t(k)];
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

  Index I_;
  bool has_pairs_, is_relu_;
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
    const auto packed = SparseReservoir<Real>::made_of(
        {.H = H, .I = 0, .w_ih = z, .w_hh = w.data(), .b_ih = z, .b_hh = z, .leak = nullptr}, true, false);
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
