// A stack as a wavefront: a layer is a chunk of time or more behind the one before it, on another thread. The threads
// meet once a chunk, where those that share a layer meet at each of its steps.
//
// What is to be done of a layer are stages, one after the other. A member of a team takes the next stage, or its share
// of it, of whichever layer is furthest behind among those that need not wait. So nothing depends on the number of
// members.
#pragma once

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {

constexpr Index least_steps_of_wave = 32;

// On how many threads a stack is faster as a wavefront than one layer after the other, of which each has all threads; 1
// where it is not. The layers are like this one.
template <class Real>
Index wave_threads(const Problem& layer, Index layers, bool backward) {
  const Index members = team_size((backward ? 2 : 1) * double(layers) * flops(layer), layers);
  if (members < 2 || layer.T < least_steps_of_wave) return 1;
  // What is left where some members wait at both ends of time, and weights are brought from afar for each chunk, of
  // which there are as many as sqrt(T) has it. Members that wait in backward have sums to make.
  const double efficiency = backward ? 0.95 : 1 - 1.2 / std::sqrt(double(layer.T));
  const double without = kernels<Real>().speed_of_team(layer, forward_threads<Real>(layer));
  return efficiency * double(members) > without ? members : 1;
}

// Steps of a chunk. At both ends of time some members have nothing to do while others are busy with a chunk, and where
// a member takes another layer, the weights are brought from afar, which takes as long as some steps: n. sqrt(n T)
// steps make the sum of both least. Products of the input and of dx go by tiles of some rows, which are to be full.
inline Index steps_for_wave(Index T, Index B) {
  constexpr double n = 4;
  constexpr Index tile_rows = 12;  // whole tiles of 3, 4, 6 and 12 rows
  const Index of_tiles = B < tile_rows ? tile_rows / std::max(B, Index(1)) : 1;
  return std::max(Index(std::sqrt(n * double(T)) / double(of_tiles) + 0.5), Index(1)) * of_tiles;
}

// ---- The order of the work -----------------------------------------------------------------------------------------

class Wave {
 public:
  struct Stage {
    Index shares;  // that members may take at the same time
    bool waits;    // for the layer before to be past the same stage
    Steps steps;
    BackwardPart part = BackwardPart::all;
  };

  Wave(Index layers, std::vector<Stage> stages, Index threads)
      : stages_(std::move(stages)),
        places_(std::size_t(layers)),
        group_(layers % threads == 0 ? std::size_t(threads) : std::size_t(layers)) {
    begin();
  }

  // To be called before each run.
  void begin() {
    for (Place& place : places_) place.next = 0, place.finished = 0;
  }

  // By each member of a team. work(layer, stage, the share as a team of its own).
  template <class Work>
  void run(const Team& team, Work&& work) {
    Task task = {.layer = 0, .stage = 0, .share = 0};
    for (;;) {
      bool taken = false;  // which is asked for more than once
      const auto found = [&] { return taken || (taken = take(task)) || is_finished(); };
      if (!wait_until(team, std::ref(found)) || !taken) return;
      const Stage& stage = stages_[task.stage];
      const Team share = {.rank = task.share,
                          .size = stage.shares,
                          .barrier = goes_on,
                          .interrupted = stops,
                          .context = const_cast<Team*>(&team)};
      work(task.layer, stage, share);
      if (team.interrupted(team)) return;
      Place& place = places_[task.layer];
      if (place.finished.fetch_add(1) + 1 < stage.shares) continue;
      place.finished = 0;
      place.next = first_share(task.stage + 1);
      tell(team);
    }
  }

 private:
  // The stage that is next of a layer, and which share of it.
  struct alignas(64) Place {
    std::atomic<std::uint64_t> next = 0;
    std::atomic<Index> finished = 0;  // shares
  };

  struct Task {
    std::size_t layer, stage;
    Index share;
  };

  static constexpr std::uint64_t first_share(std::size_t stage) { return std::uint64_t(stage) << 32; }
  static constexpr std::size_t stage_of(std::uint64_t next) { return std::size_t(next >> 32); }
  static constexpr Index share_of(std::uint64_t next) { return Index(next & 0xffffffff); }

  static bool stops(const Team& share) {
    const Team& team = *static_cast<const Team*>(share.context);
    return team.interrupted(team);
  }
  static bool goes_on(const Team& share) { return !stops(share); }

  bool is_finished() const {
    return std::all_of(places_.begin(), places_.end(),
                       [&](const Place& place) { return stage_of(place.next.load()) == stages_.size(); });
  }

  bool is_free(std::size_t layer, std::uint64_t next) const {
    const std::size_t i = stage_of(next);
    if (i == stages_.size() || share_of(next) == stages_[i].shares) return false;
    return !stages_[i].waits || layer == 0 || stage_of(places_[layer - 1].next.load()) > i;
  }

  // Takes what is the furthest behind the front of the wave. A member keeps its layer, whose weights are near, until
  // another one is more than two stages further behind. Where members can keep theirs to the end of time, they do, and
  // take other layers then.
  bool take(Task& task) {
    constexpr std::size_t another = 5;  // half stages
    for (;;) {
      std::size_t best = places_.size(), least = 0;
      std::uint64_t next_of_best = 0;
      for (std::size_t l = places_.size(); l-- > 0;) {
        const std::uint64_t next = places_[l].next.load();
        if (!is_free(l, next)) continue;
        const std::size_t behind =
            2 * (stage_of(next) + l + l / group_ * stages_.size()) + (l == task.layer ? 0 : another);
        if (best == places_.size() || behind < least) best = l, least = behind, next_of_best = next;
      }
      if (best == places_.size()) return false;
      if (!places_[best].next.compare_exchange_strong(next_of_best, next_of_best + 1)) continue;
      task = {.layer = best, .stage = stage_of(next_of_best), .share = share_of(next_of_best)};
      return true;
    }
  }

  std::vector<Stage> stages_;
  std::vector<Place> places_;
  std::size_t group_;  // layers that pass through all of time before the next ones do
};

// a · b of so many numbers, as the thread with this floating point mode rounds it.
template <class Real>
void multiply(const std::fenv_t& mode, const Real* a, const Real* b, Real* out, Index n) {
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&mode);
  for (Index i = 0; i < n; ++i) out[i] = a[i] * b[i];
  std::fesetenv(&own);
}

// ---- Forward -------------------------------------------------------------------------------------------------------

// A layer of one direction, forwards in time, of steps that have B rows each.
template <class Real>
struct WaveLayer {
  ForwardArgs<Real> args;  // without scratch
  // Where there is dropout below the layer, [T,B,I]: x is to become y_below · factors.
  const Real *y_below = nullptr, *factors = nullptr;
  Real* x = nullptr;
};

template <class Real>
class ForwardWave {
 public:
  ForwardWave(std::vector<WaveLayer<Real>> layers, Index threads)
      : layers_(std::move(layers)),
        wave_(Index(layers_.size()), stages(layers_[0].args.problem), threads),
        scratch_size_(0) {
    for (WaveLayer<Real>& layer : layers_) {
      const Problem& p = layer.args.problem;
      const bool packed = layer.args.directions[0].packed;
      packed_.emplace_back(packed ? 0 : std::size_t(kernels<Real>().packed_size(p)) * sizeof(Real));
      if (!packed) layer.args.directions[0].packed = static_cast<Real*>(packed_.back().data());
      scratch_size_ = std::max(scratch_size_, kernels<Real>().forward_scratch(p, true));
    }
    constexpr Index line = 128 / sizeof(Real);
    scratch_size_ = (scratch_size_ + line - 1) / line * line;
    scratch_ = Buffer(std::size_t(scratch_size_ * threads) * sizeof(Real));
    std::fegetenv(&callers_mode_);
  }

  void begin() { wave_.begin(); }

  void run(const Team& team) {
    Real* const scratch = static_cast<Real*>(scratch_.data()) + team.rank * scratch_size_;
    wave_.run(team, [&](std::size_t l, const Wave::Stage& stage, const Team& alone) {
      if (stage.waits)
        run_steps(layers_[l], stage.steps, alone, scratch);
      else
        pack(l);
    });
  }

 private:
  // The weights are packed first. The first and the last chunk of time are shorter than the others.
  static std::vector<Wave::Stage> stages(const Problem& p) {
    const Index steps = steps_for_wave(p.T, p.B), half = (steps + 1) / 2;
    std::vector<Wave::Stage> stages = {{.shares = 1, .waits = false, .steps = {}}};
    for (Index first = 0, n = half; first < p.T; first += n, n = steps) {
      const Index left = p.T - first;
      n = left <= half ? left : std::min(n, left - half);
      stages.push_back({.shares = 1, .waits = true, .steps = {.first = first, .last = first + n}});
    }
    return stages;
  }

  void pack(std::size_t l) const {
    const ForwardArgs<Real>& args = layers_[l].args;
    if (args.directions[0].packed != packed_[l].data()) return;
    kernels<Real>().pack(args.problem, args.directions[0].parameters, static_cast<Real*>(packed_[l].data()));
  }

  void run_steps(const WaveLayer<Real>& layer, const Steps& steps, const Team& alone, Real* scratch) const {
    ForwardArgs<Real> args = layer.args;
    Problem& p = args.problem;
    p.run = steps;
    args.scratch = scratch;
    if (layer.factors) {
      const Index row = p.B * p.I, first = steps.first * row, n = (steps.last - steps.first) * row;
      multiply(callers_mode_, layer.y_below + first, layer.factors + first, layer.x + first, n);
    }
    ForwardDirection<Real>& direction = args.directions[0];
    // What no tape keeps of a state lies where the last one is to be.
    for (int s = 1; s < p.cell->state_count && steps.first > 0; ++s)
      if (!direction.tape.states[s].data) direction.initial[s] = {direction.last[s].data, direction.last[s].stride};
    kernels<Real>().forward(args, alone);
  }

  std::vector<WaveLayer<Real>> layers_;
  Wave wave_;
  std::vector<Buffer> packed_;  // the weights of each layer whose weights come as they are
  Buffer scratch_;              // of each member
  Index scratch_size_;
  std::fenv_t callers_mode_;
};

// ---- Backward ------------------------------------------------------------------------------------------------------

// The same, whose dx is the dy of the next one.
template <class Real>
struct BackwardWaveLayer {
  BackwardArgs<Real> args;        // without scratch
  const Real* factors = nullptr;  // of dropout above the layer, [T,B,P]: dy is to be multiplied by them
  Real* dy = nullptr;
};

template <class Real>
class BackwardWave {
 public:
  // From the top layer to the bottom one.
  BackwardWave(std::vector<BackwardWaveLayer<Real>> layers, Index threads)
      : layers_(std::move(layers)), wave_(Index(layers_.size()), stages(layers_[0].args.problem, threads), threads) {
    for (BackwardWaveLayer<Real>& layer : layers_) {
      const BackwardArgs<Real>& args = layer.args;
      const Index size = kernels<Real>().backward_scratch(args.problem, args.dx.data != nullptr, args.windows);
      scratch_.emplace_back(std::size_t(size) * sizeof(Real));
      layer.args.scratch = static_cast<Real*>(scratch_.back().data());
    }
    std::fegetenv(&callers_mode_);
  }

  void begin() { wave_.begin(); }

  void run(const Team& team) {
    wave_.run(team, [&](std::size_t l, const Wave::Stage& stage, const Team& share) {
      const BackwardWaveLayer<Real>& layer = layers_[l];
      BackwardArgs<Real> args = layer.args;
      args.part = stage.part, args.of_part = stage.steps;
      if (stage.waits && layer.factors) {
        const Index row = args.problem.B * args.problem.P, first = stage.steps.first * row;
        Real* const dy = layer.dy + first;
        multiply(callers_mode_, dy, layer.factors + first, dy, (stage.steps.last - stage.steps.first) * row);
      }
      kernels<Real>().backward(args, share);
    });
  }

 private:
  static std::vector<Wave::Stage> stages(const Problem& p, Index threads) {
    std::vector<Index> first_step(std::size_t(p.T) + 1);
    const Index chunks = kernels<Real>().cut(p, first_step.data()), at_once = steps_for_wave(p.T, p.B);
    std::vector<Wave::Stage> stages;
    const auto add = [&](BackwardPart part, const Steps& steps) {
      const bool waits = part == BackwardPart::steps;
      stages.push_back({.shares = waits ? 1 : threads, .waits = waits, .steps = steps, .part = part});
    };
    add(BackwardPart::weights, {});
    for (Index i = chunks - 1; i >= 0; --i) {
      const Steps chunk = {.first = first_step[std::size_t(i)], .last = first_step[std::size_t(i) + 1]};
      const Index length = chunk.last - chunk.first, pieces = (length + at_once - 1) / at_once;
      for (Index k = pieces - 1; k >= 0; --k)
        add(BackwardPart::steps,
            {.first = chunk.first + length * k / pieces, .last = chunk.first + length * (k + 1) / pieces});
      add(BackwardPart::operands, chunk);
      add(BackwardPart::sums, chunk);
    }
    add(BackwardPart::gradients, {});
    return stages;
  }

  std::vector<BackwardWaveLayer<Real>> layers_;
  Wave wave_;
  std::vector<Buffer> scratch_;  // of each layer
  std::fenv_t callers_mode_;
};

}  // namespace rnnfast
