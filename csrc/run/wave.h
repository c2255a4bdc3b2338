// A stack as a wavefront: each layer works on the chunk of time behind that of the layer below, on another thread. So
// one sequence occupies as many threads as there are layers, and they need not meet at each step.
//
// What a chunk of a layer needs is done by whoever is free next, alone, in an order in which everything comes after what
// it needs. So the work is finished by however many threads there are.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <vector>

#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {

// A layer of one direction, forwards in time, whose steps all have B rows, which are dense.
template <class Real>
struct WaveLayer {
  ForwardArgs<Real> args;         // without scratch and packed weights
  View<const Real> y_below = {};  // where there is dropout below the layer: its x, args.x, is to be y_below times factors
  View<const Real> factors = {};
};

template <class Real>
class Wave {
 public:
  Wave(std::vector<WaveLayer<Real>> layers, Index threads, Index steps)
      : layers_(std::move(layers)), steps_(steps), progress_(layers_.size()) {
    for (WaveLayer<Real>& layer : layers_) {
      const Problem& p = layer.args.problem;
      packed_.emplace_back(std::size_t(kernels<Real>().packed_size(p)) * sizeof(Real));
      layer.args.directions[0].packed = static_cast<Real*>(packed_.back().data());
      scratch_size_ = std::max(scratch_size_, kernels<Real>().forward_scratch(p, true));
    }
    scratch_size_ = (scratch_size_ + 127) / 128 * 128;  // no two members share a line
    scratch_ = Buffer(std::size_t(scratch_size_ * threads) * sizeof(Real));
    cut();
    find_order(threads);
    begin();
  }

  // To be called before each run.
  void begin() {
    next_ = 0;
    for (std::atomic<Index>& progress : progress_) progress = nothing;
  }

  void run(const Team& team) {
    const Team alone = {.rank = 0, .size = 1, .barrier = goes_on, .interrupted = stops, .context = const_cast<Team*>(&team)};
    for (Index i = next_++; i < Index(order_.size()); i = next_++) {
      const Task& task = order_[std::size_t(i)];
      const auto l = std::size_t(task.layer);
      if (task.chunk == nothing) {
        pack(l);
      } else {
        const auto ready = [&] {
          return progress_[l].load() == task.chunk && (l == 0 || progress_[l - 1].load() > task.chunk);
        };
        if (!ready() && !wait_until(team, ready)) return;
        run_chunk(l, task.chunk, alone);
        if (team.interrupted(team)) return;
      }
      progress_[l].store(task.chunk + 1);
      tell(team);
    }
  }

 private:
  static constexpr Index nothing = -1;  // of a layer is done: its weights are to be packed

  struct Task {
    Index layer, chunk;
  };

  static bool stops(const Team& team) {
    const Team& whole = *static_cast<const Team*>(team.context);
    return whole.interrupted(whole);
  }
  static bool goes_on(const Team& team) { return !stops(team); }

  Index count() const { return Index(cuts_.size()) - 1; }

  void cut() {
    const Index T = layers_[0].args.problem.T;
    const char* const e = std::getenv("WAVE_ENDS");
    const char* const g = std::getenv("WAVE_GROW");
    const double least = e ? atof(e) : 1, grow = g ? atof(g) : 2;
    std::vector<Index> ends;
    Index used = 0;
    for (double n = double(steps_) * least; n < double(steps_) - .5 && used * 2 + 2 * Index(n) + steps_ <= T; n *= grow)
      ends.push_back(std::max<Index>(Index(n), 1)), used += ends.back();
    cuts_ = {0};
    for (Index n : ends) cuts_.push_back(cuts_.back() + n);
    const Index middle = T - 2 * used, pieces = std::max<Index>((middle + steps_ / 2) / steps_, 1);
    for (Index i = 0; i < pieces; ++i) cuts_.push_back(used + middle * (i + 1) / pieces);
    for (Index i = Index(ends.size()) - 1; i >= 0; --i) cuts_.push_back(cuts_.back() + ends[std::size_t(i)]);
  }

  // The first chunk waits for its weights alone; while it is computed, other members pack.
  void find_order(Index threads) {
    const Index L = Index(layers_.size()), first = std::min(threads, L);
    for (Index l = 0; l < first; ++l) order_.push_back({.layer = l, .chunk = nothing});
    order_.push_back({.layer = 0, .chunk = 0});
    for (Index l = first; l < L; ++l) order_.push_back({.layer = l, .chunk = nothing});
    for (Index wave = 1; wave < count() + L - 1; ++wave)
      for (Index l = std::min(wave, L - 1); l >= std::max<Index>(wave - count() + 1, 0); --l)
        order_.push_back({.layer = l, .chunk = wave - l});
  }

  void pack(std::size_t l) const {
    const ForwardArgs<Real>& args = layers_[l].args;
    kernels<Real>().pack(args.problem, args.directions[0].parameters, static_cast<Real*>(packed_[l].data()));
  }

  void run_chunk(std::size_t l, Index chunk, const Team& alone) {
    const WaveLayer<Real>& layer = layers_[l];
    ForwardArgs<Real> args = layer.args;
    Problem& p = args.problem;
    p.run = {.first = cuts_[std::size_t(chunk)], .last = cuts_[std::size_t(chunk) + 1]};
    if (layer.factors.data) multiply(layer, p);
    ForwardDirection<Real>& direction = args.directions[0];
    // What no tape keeps goes on in place.
    for (int s = 1; s < p.cell->state_count && chunk > 0; ++s)
      if (!direction.tape.states[s].data) {
        direction.initial[s] = {direction.last[s].data, direction.last[s].stride};
      }
    const Team& whole = *static_cast<const Team*>(alone.context);
    args.scratch = static_cast<Real*>(scratch_.data()) + whole.rank * scratch_size_;
    kernels<Real>().forward(args, alone);
  }

  static void multiply(const WaveLayer<Real>& layer, const Problem& p) {
    auto* const x = const_cast<Real*>(layer.args.x.data);
    for (Index i = p.run.first * p.B * p.I; i < p.run.last * p.B * p.I; ++i)
      x[i] = layer.y_below.data[i] * layer.factors.data[i];
  }

  std::vector<WaveLayer<Real>> layers_;
  Index steps_;
  std::vector<Index> cuts_;
  std::vector<Buffer> packed_;
  Buffer scratch_;
  Index scratch_size_ = 0;
  std::vector<Task> order_;
  std::atomic<Index> next_ = 0;
  std::vector<std::atomic<Index>> progress_;  // chunks of each layer that are done
};

}  // namespace rnnfast
