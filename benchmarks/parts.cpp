// Times a layer's calls and the parts that they consist of, on one thread: parts_ISA CELL T,B,I,H ...
//
// A part runs over one chunk of time, in memory that the kernels have laid out; its time is that of as many chunks as a
// call has. Repeated alone, it finds more in the caches than inside a call, so that the parts take less than the whole.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/backward.h"
#include "kernels/elman.h"
#include "kernels/forward.h"
#include "kernels/gru.h"
#include "kernels/limits.h"
#include "kernels/lstm.h"
#include "run/memory.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

using Real = float;

// Memory for as long as a layer is measured, full of small numbers.
class Memory {
 public:
  Real* operator()(Index n) {
    Real* const data = static_cast<Real*>(buffers_.emplace_back(std::size_t(n) * sizeof(Real)).data());
    std::generate_n(data, n, [this] { return small_(random_); });
    return data;
  }

 private:
  std::vector<Buffer> buffers_;
  std::minstd_rand random_;
  std::uniform_real_distribution<Real> small_{Real(-0.03), Real(0.03)};
};

// Seconds that f() takes, the best of at least three runs.
template <class F>
double seconds(F&& f) {
  using Clock = std::chrono::steady_clock;
  double best = std::numeric_limits<double>::infinity();
  const auto enough = Clock::now() + std::chrono::milliseconds(200);
  for (int runs = 0; runs < 3 || Clock::now() < enough; ++runs) {
    const auto start = Clock::now();
    f();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

enum class Unit { flops, bytes, vectors };

// One line of the table: what takes so many seconds, and the work that is done in them.
void print(const char* name, double time, double work, Unit unit) {
  const double rate = unit == Unit::vectors ? 1e9 * time / work : 1e-9 * work / time;
  const char* const of[] = {"GFLOP/s", "GB/s", "ns per vector"};
  std::printf("%-32s %10.3f ms %8.1f %s\n", name, 1e3 * time, rate, of[int(unit)]);
}

// A layer in one direction, and the arguments of its calls.
template <class C>
struct Layer {
  Problem p;
  Index rows, chunk;  // T·B, steps
  Blocks units;
  double flops_x, flops_h, weight_bytes, vectors;  // of one forward
  Memory memory;
  Real* packed;  // the weights for forward
  Team team = {0, 1, [](const Team&) { return true; }, [](const Team&) { return false; }, nullptr};
  ForwardArgs<Real> inference = {}, training = {};
  BackwardArgs<Real> back = {};

  View<Real> matrix(Index n, Index columns) { return {memory(n * columns), columns}; }

  explicit Layer(const Problem& problem)
      : p(problem), rows(p.T * p.B), chunk(chunk_steps(p)), units(blocks_of<Real>(p.H)) {
    const Index I = p.I, H = p.H, gates = C::gates * H;
    flops_x = 2.0 * double(rows * gates * I), flops_h = 2.0 * double(rows * gates * H);
    weight_bytes = double(gates * (I + H)) * sizeof(Real), vectors = double(rows * count(units));

    const Parameters<const Real> parameters = {memory(gates * I), memory(gates * H), memory(gates), memory(gates)};
    const View<const Real> x = read_only(matrix(rows, I)), dy = read_only(matrix(rows, H));
    const View<const Real> h0 = read_only(matrix(p.B, H)), c0 = read_only(matrix(p.B, H));
    const View<Real> y = matrix(rows, H), h = matrix(p.B, H), c = matrix(p.B, H);
    inference.problem = p, inference.x = x;
    inference.directions[0] = {parameters, nullptr, h0, c0, h0, c0, y, h, c, {}};
    Arena<Real> arena = {nullptr, 0};
    lay_out_packed<C>(p, units, arena);
    packed = memory(arena.used);
    lay_out_forward<C>(p, arena);
    inference.scratch = memory(arena.used);
    training = inference;
    const Index gates_of_all_chunks = gates_size<C>(chunk_count(p) * chunk * p.B, units);
    const Tape<Real> tape = {C::keeps_gates ? memory(gates_of_all_chunks) : nullptr,
                             {C::has_c ? memory(rows * H) : nullptr, H},
                             resets_h<C> ? memory(rows * H) : nullptr};
    training.directions[0].tape = tape;

    const Parameters<Real> gradients = {memory(gates * I), memory(gates * H), memory(gates), memory(gates)};
    const View<Real> dh = matrix(p.B, H), dc = matrix(p.B, H);
    back.problem = p, back.x = x, back.dx = matrix(rows, I);
    const Tape<const Real> kept = {tape.gates, read_only(tape.c), tape.reset_h};
    back.directions[0] = {parameters, h0, c0, h0, c0, read_only(y), dy, {}, kept, dh, dc, {}, {}, {}, {}, gradients};
    arena = {nullptr, 0};
    lay_out_backward<C>(p, back.dx, true, {}, arena);
    back.scratch = memory(arena.used);
  }
};

template <class C>
void time_calls(const Layer<C>& layer) {
  const double flops = layer.flops_x + layer.flops_h;
  ForwardArgs<Real> with_packed = layer.inference;
  with_packed.directions[0].packed = layer.packed;
  BackwardArgs<Real> without_dx = layer.back;
  without_dx.dx = {};
  const double inference = seconds([&] { forward<C>(layer.inference, layer.team); });
  const double packed = seconds([&] { forward<C>(with_packed, layer.team); });
  const double training = seconds([&] { forward<C>(layer.training, layer.team); });
  const double back = seconds([&] { backward<C>(layer.back, layer.team); });
  const double back_without_dx = seconds([&] { backward<C>(without_dx, layer.team); });
  print("forward", inference, flops, Unit::flops);
  print("forward on packed weights", packed, flops, Unit::flops);
  print("forward for training", training, flops, Unit::flops);
  print("backward", back, 2 * flops, Unit::flops);
  print("backward without dx", back_without_dx, 2 * flops - layer.flops_x, Unit::flops);
  print("forward for training + backward", training + back, 3 * flops, Unit::flops);
}

template <class C>
void time_part(const Layer<C>& layer, const char* name, double work, Unit unit, auto&& f) {
  print(name, double(layer.p.T) / double(layer.chunk) * seconds(f), work, unit);
}

// The products of a chunk: of `at_once` steps together, one after the other.
template <class C, Products products>
void forward_steps(const Layer<C>& layer, const typename ForwardScratch<Real>::Direction& scratch, Index at_once) {
  const ForwardDirection<Real>& direction = layer.training.directions[0];
  const Index B = layer.p.B, H = layer.p.H;
  const View<Real> c = direction.tape.c, reset_h = {direction.tape.reset_h, H};
  const StateBefore<Real> h_before = {direction.h0, {}, read_only(direction.y), true, nullptr};
  const StateBefore<Real> c_before = {direction.c0, {}, read_only(c), true, nullptr};
  const Item item = {0, 0, B, all(layer.units), false};
  bool mixes = false;
  for (Index t = 0; t < layer.chunk; t += at_once) {
    const Index row = t * B;
    ForwardStep<Real> s = {};
    s.gates = scratch.gates, s.gate_row = row, s.held = &layer.training.held;
    s.x = at(layer.training.x, row);
    s.h_before = state_before(layer.p, h_before, item, t, mixes), s.h = at(direction.y, row);
    if (C::has_c) s.c_before = state_before(layer.p, c_before, item, t, mixes), s.c = at(c, row);
    if (resets_h<C>) s.reset_h = at(reset_h, row);
    s.rows = min_index(at_once, layer.chunk - t) * B, s.units = all(layer.units), s.store_gates = true;
    for_each_phase<C>([&]<int phase> { forward_phase<C, phase, products>(s, scratch, layer.team); });
  }
}

template <class C>
void time_forward_parts(const Layer<C>& layer) {
  const Problem& p = layer.p;
  const Parameters<const Real>& parameters = layer.training.directions[0].parameters;
  Arena<Real> to = {layer.packed, 0}, rest = {layer.training.scratch, 0};
  Arena<const Real> from = {layer.packed, 0};
  const PackedWeights<Real> packed = lay_out_packed<C>(p, layer.units, to);
  auto scratch = lay_out_forward<C>(p, rest).directions[0];
  scratch.weights = lay_out_packed<C>(p, layer.units, from);

  print("packing", seconds([&] { pack_direction<C>(p, parameters, packed, all(layer.units)); }), layer.weight_bytes,
        Unit::bytes);
  if (folds_input(p)) {
    time_part(layer, "steps: both products, pointwise", layer.flops_x + layer.flops_h, Unit::flops,
              [&] { forward_steps<C, Products::both>(layer, scratch, 1); });
  } else {
    const Index steps = max_index(projected_rows<Real>(p) / p.B, 1);  // projected together
    time_part(layer, "input product", layer.flops_x, Unit::flops,
              [&] { forward_steps<C, Products::input>(layer, scratch, steps); });
    time_part(layer, "steps: product, pointwise", layer.flops_h, Unit::flops,
              [&] { forward_steps<C, Products::recurrent>(layer, scratch, 1); });
  }
  scratch.weights.w_hh.K = 0;  // the product's tiles are loaded and stored all the same
  time_part(layer, "pointwise alone", layer.vectors, Unit::vectors,
            [&] { forward_steps<C, Products::recurrent>(layer, scratch, 1); });
}

template <class C>
void time_backward_parts(const Layer<C>& layer) {
  const Problem& p = layer.p;
  const BackwardArgs<Real>& args = layer.back;
  Arena<Real> arena = {args.scratch, 0};
  auto scratch = lay_out_backward<C>(p, args.dx, true, {}, arena);
  const auto direction = scratch.directions[0];
  const Index rows = layer.chunk * p.B;
  const Chunk chunk = {0, 0, 0, layer.chunk, rows, layer.chunk, false};

  print("packing, transposed", seconds([&] { backward_prepare<C>(args, scratch, layer.team); }), layer.weight_bytes,
        Unit::bytes);
  time_part(layer, "dh", layer.flops_h, Unit::flops, [&] {
    for (Index row = 0; row < rows; row += p.B)
      for_each_phase<C>([&]<int phase> {
        constexpr Phase part = C::phases[phase];
        const Product<Real> dh = {direction.dgates, row, {}, args.directions[0].dh, p.B, all(layer.units)};
        multiply<C>(dh, Factor{part.slot, part.gate, part.gates}, direction.w_hh, layer.team);
      });
  });
  const Product<Real> dx = {direction.dgates, 0, {}, args.dx, rows, all(direction.w_ih.columns)};
  time_part(layer, "dx", layer.flops_x, Unit::flops, [&] { multiply_input<C>(dx, direction, layer.team); });
  time_part(layer, "dw", layer.flops_x + layer.flops_h, Unit::flops,
            [&] { weight_gradients<C>(args, scratch, chunk, all(layer.units), layer.team); });
  time_part(layer, "regrouping", double(layer.rows * (p.I + p.H)) * sizeof(Real), Unit::bytes,
            [&] { regroup_chunk<C>(args, scratch, chunk, layer.team); });
  scratch.directions[0].w_hh.columns = {};  // without dh
  time_part(layer, "pointwise", layer.vectors, Unit::vectors, [&] {
    backward_chunk<C>(args, scratch, Item{0, 0, p.B, all(layer.units), false}, chunk, layer.team);
  });
}

template <class C>
void time_layer(const Problem& p) {
  const FloatingPointMode mode;
  const Layer<C> layer(p);
  time_calls(layer);
  std::puts("parts of forward");
  time_forward_parts(layer);
  std::puts("parts of backward");
  time_backward_parts(layer);
}

constexpr struct {
  const char* name;
  Cell cell;
  void (*time)(const Problem&);
} cells[] = {{"lstm", Cell::lstm, time_layer<Lstm>},
             {"gru", Cell::gru, time_layer<Gru>},
             {"gru_reset_before", Cell::gru_reset_before, time_layer<GruResetBefore>},
             {"rnn_tanh", Cell::rnn_tanh, time_layer<Elman<Tanh>>},
             {"rnn_relu", Cell::rnn_relu, time_layer<Elman<Relu>>}};

int run(int count, char** arguments) {
  constexpr Index n = 1 << 22;
  [[maybe_unused]] volatile Real kept;  // so that it is computed
  print("multiply-adds in registers", seconds([&] { kept = multiply_adds<Real>(0.5, 0.5, n); }), 2.0 * n, Unit::flops);
  for (const auto& cell : cells) {
    if (count < 3 || std::strcmp(arguments[1], cell.name)) continue;
    for (int i = 2; i < count; ++i) {
      Problem p = {.T = 0, .B = 0, .I = 0, .H = 0, .D = 1, .cell = cell.cell, .input = InputKind::dense, .U = 0};
      char rest;
      if (std::sscanf(arguments[i], "%td,%td,%td,%td%c", &p.T, &p.B, &p.I, &p.H, &rest) != 4 ||
          std::min({p.T, p.B, p.I, p.H}) < 1)
        break;
      p.run = {0, p.T};
      if (is_unpacked(p, Windows{})) break;  // few rows have no such parts
      std::printf("%s T,B,I,H = %s\n", cell.name, arguments[i]);
      cell.time(p);
      if (i + 1 == count) return 0;
    }
  }
  std::fprintf(stderr, "usage: %s lstm|gru|gru_reset_before|rnn_tanh|rnn_relu T,B,I,H ... (T * B > %td)\n",
               arguments[0], most_unpacked_rows);
  return 1;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA

int main(int count, char** arguments) { return rnnfast::RNNFAST_ISA::run(count, arguments); }
