// A stack as a wavefront: a layer is a chunk of time or more behind the one below, on another thread. The threads meet
// once a chunk, where those that share a layer meet at each of its steps.
//
// Each member of a team takes what is next of one layer or another, and does it alone: whichever is furthest behind of
// those that nobody works on and that need not wait for the layer below. So nothing depends on the number of members.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {

// A layer of one direction, forwards in time, of steps that have B rows each.
template <class Real>
struct WaveLayer {
  ForwardArgs<Real> args;  // without scratch
  // Where there is dropout below the layer, [T,B,I]: x is to become y_below · factors.
  const Real *y_below = nullptr, *factors = nullptr;
  Real* x = nullptr;
};

// On how many threads a stack is faster as a wavefront than one layer after the other, of which each has all threads; 1
// where it is not. The layers are like this one.
template <class Real>
Index wave_threads(const Problem& layer, Index layers) {
  constexpr Index least_steps = 32;
  // What is left where some members wait at both ends of time, and weights are brought from afar for each chunk.
  constexpr double efficiency = 0.9;
  const Index members = team_size(double(layers) * flops(layer), layers);
  if (members < 2 || layer.T < least_steps) return 1;
  const double without = kernels<Real>().speed_of_team(layer, forward_threads<Real>(layer));
  return efficiency * double(members) > without ? members : 1;
}

// Where time is cut. At both ends of time some members have nothing to do while others are busy with a chunk, and for
// each chunk its weights are brought from afar, which takes as long as some steps: n. sqrt(n T) steps make the sum of
// both least. The first and the last chunk are half as long.
inline std::vector<Index> cut_for_wave(Index T) {
  constexpr double n = 4;
  const Index steps = std::max(Index(std::sqrt(n * double(T))), Index(2)), half = steps / 2;
  const Index between = T - 2 * half, pieces = (between + steps / 2) / steps;
  std::vector<Index> cuts = {0};
  for (Index i = 0; i <= pieces; ++i) cuts.push_back(half + (pieces ? between * i / pieces : 0));
  cuts.push_back(T);
  return cuts;
}

template <class Real>
class Wave {
 public:
  Wave(std::vector<WaveLayer<Real>> layers, Index threads)
      : layers_(std::move(layers)), cuts_(cut_for_wave(layers_[0].args.problem.T)), places_(layers_.size()) {
    const Index L = Index(layers_.size());
    group_ = L % threads == 0 ? threads : L;
    for (WaveLayer<Real>& layer : layers_) {
      const Problem& p = layer.args.problem;
      packed_.emplace_back(std::size_t(kernels<Real>().packed_size(p)) * sizeof(Real));
      layer.args.directions[0].packed = static_cast<Real*>(packed_.back().data());
      scratch_size_ = std::max(scratch_size_, kernels<Real>().forward_scratch(p, true));
    }
    constexpr Index line = 128 / sizeof(Real);
    scratch_size_ = (scratch_size_ + line - 1) / line * line;
    scratch_ = Buffer(std::size_t(scratch_size_ * threads) * sizeof(Real));
  }

  // To be called before each run.
  void begin() {
    for (Place& place : places_) place.done = 0, place.taken = false;
  }

  // By each member of a team of at most as many as were named.
  void run(const Team& team) {
    const Team alone = {
        .rank = 0, .size = 1, .barrier = goes_on, .interrupted = stops, .context = &const_cast<Team&>(team)};
    Real* const scratch = static_cast<Real*>(scratch_.data()) + team.rank * scratch_size_;
    std::size_t l = 0;
    for (;;) {
      bool taken = false;  // which is asked for more than once
      const auto found = [&] { return taken || (taken = take(l)) || is_finished(); };
      if (!wait_until(team, std::ref(found))) return;
      if (!taken) return;
      Place& place = places_[l];
      const Index done = place.done.load();
      if (done == 0)
        pack(l);
      else
        run_chunk(l, done - 1, alone, scratch);
      if (team.interrupted(team)) return;
      place.done.store(done + 1);
      place.taken.store(false);
      tell(team);
    }
  }

 private:
  // Of a layer: its weights are packed first, then its chunks follow.
  struct alignas(64) Place {
    std::atomic<Index> done = 0;
    std::atomic<bool> taken = false;
  };

  static bool stops(const Team& alone) {
    const Team& team = *static_cast<const Team*>(alone.context);
    return team.interrupted(team);
  }
  static bool goes_on(const Team& alone) { return !stops(alone); }

  Index last() const { return Index(cuts_.size()); }  // what is done of a layer in the end

  bool is_finished() const { return places_.back().done.load() == last(); }

  // Whether what is next of a layer need not wait.
  bool is_ready(std::size_t l, Index done) const {
    return done < last() && (l == 0 || done == 0 || places_[l - 1].done.load() > done);
  }

  // Takes the layer that is the furthest behind the front of the wave, best the one that the member had before, whose
  // weights are near. Where members can keep theirs to the end of time, they do, and take other layers then.
  bool take(std::size_t& l) {
    for (;;) {
      std::size_t best = layers_.size();
      Index least = 0, done_of_best = 0;
      for (std::size_t k = layers_.size(); k-- > 0;) {
        const Place& place = places_[k];
        if (place.taken.load()) continue;
        const Index done = place.done.load(), front = 2 * (done + Index(k) + Index(k) / group_ * last()) - (k == l);
        if (is_ready(k, done) && (best == layers_.size() || front < least))
          best = k, least = front, done_of_best = done;
      }
      if (best == layers_.size()) return false;
      if (places_[best].taken.exchange(true)) continue;
      if (places_[best].done.load() == done_of_best) {
        l = best;
        return true;
      }
      places_[best].taken.store(false);  // another one has done this since
    }
  }

  void pack(std::size_t l) const {
    const ForwardArgs<Real>& args = layers_[l].args;
    kernels<Real>().pack(args.problem, args.directions[0].parameters, static_cast<Real*>(packed_[l].data()));
  }

  void run_chunk(std::size_t l, Index chunk, const Team& alone, Real* scratch) const {
    const WaveLayer<Real>& layer = layers_[l];
    ForwardArgs<Real> args = layer.args;
    Problem& p = args.problem;
    p.run = {.first = cuts_[std::size_t(chunk)], .last = cuts_[std::size_t(chunk) + 1]};
    args.scratch = scratch;
    for (Index i = p.run.first * p.B * p.I; layer.factors && i < p.run.last * p.B * p.I; ++i)
      layer.x[i] = layer.y_below[i] * layer.factors[i];
    ForwardDirection<Real>& direction = args.directions[0];
    // What no tape keeps of a state lies where the last one is to be.
    for (int s = 1; s < p.cell->state_count && chunk > 0; ++s)
      if (!direction.tape.states[s].data) direction.initial[s] = {direction.last[s].data, direction.last[s].stride};
    kernels<Real>().forward(args, alone);
  }

  std::vector<WaveLayer<Real>> layers_;
  std::vector<Index> cuts_;
  std::vector<Buffer> packed_;  // the weights of each layer
  Buffer scratch_;              // of each member
  Index scratch_size_ = 0, group_;
  std::vector<Place> places_;
};

}  // namespace rnnfast
