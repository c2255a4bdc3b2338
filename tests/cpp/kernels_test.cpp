// The kernels on several threads, for ThreadSanitizer: members that divide the rows or the units of a layer, with
// sequences that end early and states that start anew; and with caches of other sizes. All must come out as from one
// thread, bit for bit.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "run/threads.h"
#include "types.h"

#ifndef RNNFAST_REAL
#define RNNFAST_REAL float
#endif

namespace rnnfast::baseline {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace rnnfast::baseline

namespace {

using namespace rnnfast;
using Real = RNNFAST_REAL;
using Numbers = std::vector<Real>;

template <class>
[[maybe_unused]] const Kernels<float>& kernels_of = baseline::kernels_float;
template <>
[[maybe_unused]] const Kernels<double>& kernels_of<double> = baseline::kernels_double;
const Kernels<Real>& kernels = kernels_of<Real>;

struct Shape {
  Index T, B, I, H, D;
  bool ragged, resets;
  Windows windows = {};
};

// At most three windows go through a step; all of them, dy and dx of each.
constexpr Windows windows = {1, 3, 3, false, true, true};

// The first are divided by rows, the others by units, those of two directions among four threads.
constexpr Shape shapes[] = {{20, 14, 5, 19, 1, false, false},
                            {20, 14, 5, 19, 2, true, true},
                            {20, 14, 5, 19, 1, false, false, windows},
                            {3, 3, 4, 136, 1, false, true},
                            {3, 3, 4, 136, 2, true, false},
                            {3, 3, 4, 136, 2, true, true},
                            {1, 4, 136, 136, 1, false, false},
                            {5, 3, 5, 136, 1, false, false, windows}};

Numbers draw(std::mt19937& generator, Index n, double low = -0.3, double high = 0.3) {
  std::uniform_real_distribution<Real> uniform{Real(low), Real(high)};
  Numbers numbers(std::size_t(n), 0);
  for (Real& number : numbers) number = uniform(generator);
  return numbers;
}

// How often a forward and a backward ask for signals.
struct Questions {
  Index forward = 0, backward = 0;
};

// All results of a forward and a backward, one after the other.
Numbers solve(const CellShape& cell, const Shape& s, Index threads, Questions* questions = nullptr) {
  std::mt19937 generator(1);
  std::vector<Index> first_row = {0}, first_step(std::size_t(s.T) + 1);
  for (Index t = 0; t < s.T; ++t) first_row.push_back(first_row.back() + (s.ragged ? s.B - t * (s.B - 1) / s.T : s.B));
  const Index rows = first_row.back(), width = s.D * s.H;
  std::vector<unsigned char> starts[2];
  Problem p = {.T = s.T,
               .B = s.B,
               .I = s.I,
               .H = s.H,
               .P = s.H,
               .D = s.D,
               .cell = &cell,
               .input = InputKind::dense,
               .U = 0,
               .head = s.H};
  p.run = {0, s.T};
  if (s.ragged) {
    p.first_row = first_row.data();
    p.chunks = kernels.cut(p, first_step.data());
    p.first_step = first_step.data();
  }
  for (Index d = 0; d < s.D && (s.ragged || s.resets); ++d) {
    for (Index t = 0; t < s.T; ++t)
      for (Index row = first_row[std::size_t(t)]; row < first_row[std::size_t(t) + 1]; ++row) {
        const Index b = row - first_row[std::size_t(t)];
        const bool ends = t + 1 < s.T && b >= first_row[std::size_t(t) + 2] - first_row[std::size_t(t) + 1];
        starts[d].push_back((s.resets && generator() % 4 == 0) || (d == 1 && ends));
      }
    p.starts[d] = starts[d].data();
  }

  const Index each = s.windows.k1 ? s.windows.most : 1;
  const Numbers x = draw(generator, rows * s.I), dy = draw(generator, each * rows * width);
  const Index G = cell.gate_count, state = s.B * s.H;
  const Index count = G * s.H * (s.I + s.H + 2) + cell.vector_count * s.H;
  Numbers weights = draw(generator, s.D * count);
  // Leaks, bounds and normalisers that a cell can have are positive.
  const Numbers vectors = draw(generator, s.D * cell.vector_count * s.H, 0.1, 1.5);
  for (Index d = 0, n = cell.vector_count * s.H; d < s.D; ++d)
    std::copy_n(vectors.data() + d * n, n, weights.data() + (d + 1) * count - n);
  const int S = cell.state_count;
  std::vector<Numbers> state0;
  for (int i = 0; i < S; ++i) state0.push_back(draw(generator, s.D * state, 0.1, 0.3));
  const TapeSize size = kernels.tape_size(p);
  Numbers results(std::size_t(rows * (width + each * s.I) + s.D * (3 * S * state + count)));
  Real* free = results.data();
  const auto take = [&](Index n) { return std::exchange(free, free + n); };
  Numbers tape(std::size_t(s.D * (size.gates + size.states + size.reset_h)));
  Numbers scratch(std::size_t(kernels.forward_scratch(p, false) + kernels.backward_scratch(p, true, s.windows)) + 32);
  void* aligned = scratch.data();
  std::size_t room = scratch.size() * sizeof(Real);
  auto* const memory = static_cast<Real*>(std::align(64, 1, aligned, room));

  ForwardArgs<Real> forward = {p, {x.data(), s.I}, {}, memory};
  BackwardArgs<Real> backward = {p, {x.data(), s.I}, {take(each * rows * s.I), s.I}, {}, false, memory};
  backward.windows = s.windows;
  Real* const y = take(rows * width);
  for (Index d = 0; d < s.D; ++d) {
    const auto parameters = [&](auto* w) {
      Parameters<std::remove_pointer_t<decltype(w)>> of = {
          w, w + G * s.H * s.I, w + G * s.H * (s.I + s.H), w + G * s.H * (s.I + s.H + 1), {}};
      w += G * s.H * (s.I + s.H + 2);
      for (int i = 0; i < cell.parameter_count; w += cell.parameters[i++].count * s.H) of.vectors[i] = w;
      return of;
    };
    const auto fill = [&](auto& views, auto&& data) {
      for (int i = 0; i < S; ++i) views[i] = {data(i), s.H};
    };
    const auto given = [&](int i) { return state0[std::size_t(i)].data() + d * state; };
    const auto written = [&](int) { return take(state); };
    const Index steps = size.states / std::max(1, S - 1);  // of one of the states that the tape keeps, of a direction
    Tape<Real> kept = {
        .gates = size.gates ? tape.data() + d * size.gates : nullptr,
        .states = {},
        .reset_h = size.reset_h ? tape.data() + s.D * (size.gates + size.states) + d * size.reset_h : nullptr,
        .made = {}};
    Tape<const Real> read = {.gates = kept.gates, .states = {}, .reset_h = kept.reset_h, .made = {}};
    for (int i = 1; i < S; ++i) {
      kept.states[i] = {tape.data() + s.D * (size.gates + (i - 1) * steps) + d * s.H, width};
      read.states[i] = {kept.states[i].data, width};
    }
    const Real* const w = weights.data() + d * count;
    ForwardDirection<Real>& there = forward.directions[d];
    there = {.parameters = parameters(w),
             .packed = nullptr,
             .initial = {},
             .start = {},
             .y = {y + d * s.H, width},
             .last = {},
             .tape = kept,
             .renewed = {}};
    fill(there.initial, given);
    fill(there.start, given);
    fill(there.last, written);
    BackwardDirection<Real>& back = backward.directions[d];
    back = {.parameters = parameters(w),
            .initial = {},
            .start = {},
            .y = {y + d * s.H, width},
            .dsteps = {{dy.data() + d * s.H, width}},
            .tape = read,
            .dstate = {},
            .dstart = {},
            .flow = {},
            .gradients = {},
            .renewed = {}};
    fill(back.initial, given);
    fill(back.start, given);
    fill(back.dstate, written);
    fill(back.dstart, written);
    back.gradients = parameters(take(count));
  }
  Questions asked;
  run_parallel(
      threads, [&](const Team& team) { kernels.forward(forward, team); }, [&] { return ++asked.forward < 0; });
  run_parallel(
      threads, [&](const Team& team) { kernels.backward(backward, team); }, [&] { return ++asked.backward < 0; });
  if (questions) *questions = asked;
  return results;
}

// Whether calls hear Ctrl-C within each of their products of many numbers: of rows by all of the weights, of weights as
// the caller has them, and of steps by large matrices.
bool asks() {
  struct Case {
    Shape shape;
    Questions least;
  };
  constexpr Case cases[] = {{{2, 64, 64, 64, 1, false, false}, {35, 71}},
                            {{1, 4, 1024, 16, 1, false, false}, {18, 20}},
                            {{20, 1, 4, 520, 1, false, false}, {23, 31}}};
  for (const auto& [shape, least] : cases) {
    Questions asked;
    solve(kernels.cells[0], shape, 1, &asked);
    if (asked.forward >= least.forward && asked.backward >= least.backward) continue;
    std::fprintf(stderr, "B = %td, I = %td, H = %td: asked for signals only %td and %td times\n", shape.B, shape.I,
                 shape.H, asked.forward, asked.backward);
    return false;
  }
  return true;
}

// The bits of four units by Philox's known answer at the counter and the key of zeros: 6627e8d5 e169c58d bc57ac4c
// 9b00dbd8.
bool draws() {
  unsigned char at_half = 0, at_seven_tenths = 0;
  kernels.draw_bits(0, {0, 0, 0}, 0.5, 4, &at_half);
  kernels.draw_bits(0, {0, 0, 0}, 0.7, 4, &at_seven_tenths);
  return at_half == 0b1110 && at_seven_tenths == 0b0110;
}

}  // namespace

// kernels_test [-|N]: with -, writes the results of one thread; with N, tries every N-th team and cache.
int main(int count, char** arguments) {
  const int every = count > 1 ? std::atoi(arguments[1]) : 1;
  if (every < 1) {
    for (const CellShape& cell : std::span(kernels.cells, std::size_t(kernels.cell_count)))
      for (const Shape& shape : shapes) {
        const Numbers results = solve(cell, shape, 1);
        std::fwrite(results.data(), sizeof(Real), results.size(), stdout);
      }
    return EXIT_SUCCESS;
  }
  if (!draws()) {
    std::fprintf(stderr, "draw_bits: expected the known answer\n");
    return 1;
  }
  if (!asks()) return 1;
  int turn = 0;
  for (const CellShape& cell : std::span(kernels.cells, std::size_t(kernels.cell_count)))
    for (const Shape& shape : shapes) {
      const Numbers expected = solve(cell, shape, 1);
      for (const Index bytes : {1 << 10, 1 << 30, 1 << 20})
        for (const Index threads : {1, 2, 3, 4}) {
          if (turn++ % every != 0) continue;
          kernels.set_cache_sizes({.near = bytes, .far = bytes});
          const Numbers actual = solve(cell, shape, threads);
          if (std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(Real)) == 0) continue;
          std::fprintf(stderr,
                       "%s, H = %td, D = %td: expected the bits of one thread from %td, with caches of %td bytes\n",
                       cell.name, shape.H, shape.D, threads, bytes);
          return 1;
        }
    }
  return EXIT_SUCCESS;
}
