// The connections of a sparse reservoir in the slots in which kernels go through them.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "run/dispatch.h"
#include "run/memory.h"
#include "types.h"

namespace rnnfast {

// Connections by numbers: first those of the first place, then those of the second, and so on.
template <class Real>
struct Numbered {
  std::vector<Index> first = {0};  // of each place, and the number of all
  std::vector<Real> weights;
  std::vector<Column> operands;
};

using Numbers = std::vector<Index>;

// The connection that each unit of a block has in each slot, by its number.
struct Slots {
  static constexpr Index none = -1;  // where a unit lacks one
  std::vector<Index> first = {0};    // slot of each block, and the number of slots
  Numbers numbers;                   // [slot][units of a block]

  // Adds a block with the connections of its units.
  void add(const std::vector<Numbers>& of_units) {
    std::size_t count = 0;
    for (const Numbers& of_unit : of_units) count = std::max(count, of_unit.size());
    for (std::size_t slot = 0; slot < count; ++slot)
      for (const Numbers& of_unit : of_units) numbers.push_back(slot < of_unit.size() ? of_unit[slot] : none);
    first.push_back(first.back() + Index(count));
  }
};

template <class Real>
Buffer weights_of(const Slots& slots, const Numbered<Real>& connections) {
  Buffer buffer(slots.numbers.size() * sizeof(Real));
  std::transform(slots.numbers.begin(), slots.numbers.end(), static_cast<Real*>(buffer.data()), [&](Index number) {
    return number == Slots::none ? Real(0) : connections.weights[std::size_t(number)];
  });
  return buffer;
}

// A list as the kernels read it.
template <class Real>
class ConnectionList {
 public:
  ConnectionList() = default;
  ConnectionList(const Slots& slots, const Numbered<Real>& connections, Index zero)
      : first_(slots.first), weights_(weights_of(slots, connections)), columns_(slots.numbers.size() * sizeof(Column)) {
    std::transform(
        slots.numbers.begin(), slots.numbers.end(), static_cast<Column*>(columns_.data()),
        [&](Index number) { return number == Slots::none ? Column(zero) : connections.operands[std::size_t(number)]; });
  }

  Connections<Real> view() const {
    return {.first = first_.data(),
            .weights = static_cast<const Real*>(weights_.data()),
            .columns = static_cast<const Column*>(columns_.data())};
  }

 private:
  std::vector<Index> first_;
  Buffer weights_, columns_;
};

// Finds pairs of vectors in which many units of a block have an operand: after each vector comes the one that adds
// most.
template <class Real>
class Pairing {
 public:
  using Pick = typename PickOf<Real>::Type;

  // Connections [0, operands) are in vectors of so many lanes.
  Pairing(const Numbered<Real>& connections, Index units, Index operands)
      : connections_(connections),
        units_(units),
        lanes_(kernels<Real>().pair_lanes),
        vectors_((operands + lanes_ - 1) / lanes_),
        next_(connections.operands.size()),
        heads_(std::size_t((vectors_ + 1) * units), Slots::none),
        having_(std::size_t(vectors_ + 1)) {}

  // Makes slots for the block that begins with a place. Returns the connections of each unit that have none.
  std::vector<Numbers> take(Index place) {
    for (Index unit = 0; unit < units_; ++unit) {
      const Index* const first = connections_.first.data() + place + unit;
      for (Index number = first[1] - 1; number >= first[0]; --number) {
        const Index vector = connections_.operands[std::size_t(number)] / lanes_;
        next_[std::size_t(number)] = head(vector, unit);
        head(vector, unit) = number;
        having_[std::size_t(vector)] |= bit(unit);
      }
    }
    Index before = vectors_;  // where no unit has an operand
    while (take_group(before)) continue;
    slots.first.push_back(Index(second.size()));
    std::vector<Numbers> others;
    others.resize(std::size_t(units_));
    for (Index vector = 0; vector < vectors_; ++vector)
      for (Index unit = 0; unit < units_; ++unit)
        while (having_[std::size_t(vector)] & bit(unit)) others[std::size_t(unit)].push_back(take_of(vector, unit));
    return others;
  }

  Slots slots;
  std::vector<Column> second;
  std::vector<Pick> picks;

 private:
  // So many eighths of the units at least: to collect takes about three times as long as to pick; of floats four times.
  static constexpr Index least_eighths = sizeof(Real) == 8 ? 3 : 2;

  static std::uint32_t bit(Index unit) { return std::uint32_t(1) << unit; }

  Index& head(Index vector, Index unit) { return heads_[std::size_t(vector * units_ + unit)]; }

  Index take_of(Index vector, Index unit) {
    const Index number = head(vector, unit);
    head(vector, unit) = next_[std::size_t(number)];
    if (head(vector, unit) == Slots::none) having_[std::size_t(vector)] &= ~bit(unit);
    return number;
  }

  // Makes a group of slots, unless the first would have too few connections.
  bool take_group(Index& before) {
    for (Index i = 0; i < Pairs<Real>::group; ++i) {
      const std::uint32_t having = having_[std::size_t(before)];
      const Index vector = kernels<Real>().next_of_pair(having_.data(), vectors_, having);
      const std::uint32_t reached = having | having_[std::size_t(vector)];
      if (i == 0 && 8 * std::popcount(reached) < least_eighths * units_) return false;
      const std::size_t slot = second.size(), part = slot % 4;
      if (part == 0) picks.resize(picks.size() + std::size_t(units_));
      for (Index unit = 0; unit < units_; ++unit) {
        Index number = Slots::none, where = lanes_ - 1;
        if (reached & bit(unit)) {
          const bool in_first = having & bit(unit);
          number = take_of(in_first ? before : vector, unit);
          where = (in_first ? 0 : lanes_) + connections_.operands[std::size_t(number)] % lanes_;
        }
        slots.numbers.push_back(number);
        Pick& pick = picks[slot / 4 * std::size_t(units_) + std::size_t(unit)];
        pick = Pick(pick | std::uint32_t(where) << part * PickOf<Real>::bits);
      }
      second.push_back(Column(vector * lanes_));
      before = vector;
    }
    return true;
  }

  const Numbered<Real>& connections_;
  Index units_, lanes_, vectors_;
  Numbers next_, heads_;               // of a connection, the next of its unit and vector; the first, [vector][units]
  std::vector<std::uint32_t> having_;  // a bit for each unit that has one; [vector]
};

}  // namespace rnnfast
