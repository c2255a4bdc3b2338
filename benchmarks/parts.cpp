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
#include <string>
#include <vector>

#include "kernels/cells/all.h"
#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/limits.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gradients.h"
#include "kernels/products/unpacked.h"
#include "kernels/time/backward.h"
#include "kernels/time/chunks.h"
#include "kernels/time/forward.h"
#include "kernels/time/sequence.h"
#include "kernels/vec.h"
#include "run/memory.h"
#include "types.h"

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
    const CellShape& cell = *p.cell;
    const Index I = p.I, H = p.H, gates = cell.gate_count * H;
    flops_x = 2.0 * double(rows * gates * I), flops_h = 2.0 * double(rows * gates * H);
    weight_bytes = double(gates * (I + H)) * sizeof(Real), vectors = double(rows * count(units));

    Real* const own = memory(cell.vector_count * H);
    const Parameters<const Real> parameters = {
        memory(gates * I), memory(gates * H), memory(gates), memory(gates), {own}};
    const View<const Real> x = read_only(matrix(rows, I)), dy = read_only(matrix(rows, H));
    const View<Real> y = matrix(rows, H);
    inference.problem = p, inference.x = x;
    ForwardDirection<Real>& forward = inference.directions[0];
    forward.parameters = parameters, forward.y = y;
    for (int i = 0; i < cell.state_count; ++i) {
      forward.initial[i] = forward.start[i] = read_only(matrix(p.B, H));
      forward.last[i] = matrix(p.B, H);
    }
    Arena<Real> arena = {nullptr, 0};
    PackedWeights<Real> counted;
    lay_out_packed(p, units, {}, arena, counted);
    packed = memory(arena.used);
    lay_out_forward(p, arena);
    inference.scratch = memory(arena.used);
    training = inference;
    Tape<Real>& tape = training.directions[0].tape;
    if (cell.keeps_gates) tape.gates = memory(gates_size(cell.slot_count, chunk_count(p) * chunk * p.B, units));
    for (int i = 1; i < cell.state_count; ++i) tape.states[i] = matrix(rows, H);
    if (resets_h(cell)) tape.reset_h = memory(rows * H);

    back.problem = p, back.x = x, back.dx = matrix(rows, I);
    BackwardDirection<Real>& backward = back.directions[0];
    backward.parameters = parameters, backward.y = read_only(y), backward.dsteps[0] = dy;
    backward.tape.gates = tape.gates, backward.tape.reset_h = tape.reset_h;
    for (int i = 0; i < cell.state_count; ++i) {
      backward.initial[i] = forward.initial[i], backward.start[i] = forward.start[i];
      backward.tape.states[i] = read_only(tape.states[i]), backward.dstate[i] = matrix(p.B, H);
    }
    backward.gradients = {memory(gates * I), memory(gates * H), memory(gates), memory(gates), {own}};
    arena = {nullptr, 0};
    lay_out_backward(p, back.dx, true, {}, arena);
    back.scratch = memory(arena.used);
  }
};

void time_calls(const Layer& layer) {
  const double flops = layer.flops_x + layer.flops_h;
  ForwardArgs<Real> with_packed = layer.inference;
  with_packed.directions[0].packed = layer.packed;
  BackwardArgs<Real> without_dx = layer.back;
  without_dx.dx = {};
  const double inference = seconds([&] { forward(layer.inference, layer.team); });
  const double packed = seconds([&] { forward(with_packed, layer.team); });
  const double training = seconds([&] { forward(layer.training, layer.team); });
  const double back = seconds([&] { backward(layer.back, layer.team); });
  const double back_without_dx = seconds([&] { backward(without_dx, layer.team); });
  print("forward", inference, flops, Unit::flops);
  print("forward on packed weights", packed, flops, Unit::flops);
  print("forward for training", training, flops, Unit::flops);
  print("backward", back, 2 * flops, Unit::flops);
  print("backward without dx", back_without_dx, 2 * flops - layer.flops_x, Unit::flops);
  print("forward for training + backward", training + back, 3 * flops, Unit::flops);
}

void time_part(const Layer& layer, const char* name, double work, Unit unit, auto&& f) {
  print(name, double(layer.p.T) / double(layer.chunk) * seconds(f), work, unit);
}

// The products of a chunk: of `at_once` steps together, one after the other.
void forward_steps(const Layer& layer, Products products, const ForwardScratch<Real>::Direction& scratch,
                   Index at_once) {
  const ForwardDirection<Real>& direction = layer.training.directions[0];
  const Index B = layer.p.B, H = layer.p.H;
  const CellShape& cell = *layer.p.cell;
  const View<Real> reset_h = {direction.tape.reset_h, H};
  View<Real> after[most_states];
  StateBefore<Real> before[most_states];
  for (int i = 0; i < cell.state_count; ++i) {
    after[i] = i == 0 ? direction.y : direction.tape.states[i];
    before[i] = {direction.initial[i], {}, read_only(after[i]), true, {}};
  }
  const Item item = {0, 0, B, all(layer.units), all(layer.units), false};
  bool mixes = false;
  for (Index t = 0; t < layer.chunk; t += at_once) {
    const Index row = t * B;
    ForwardStep<Real> s = {};
    s.gates = scratch.gates, s.gate_row = row, s.held = &layer.training.held;
    s.x = at(layer.training.x, row);
    for (int i = 0; i < cell.state_count; ++i) {
      s.before[i] = state_before(layer.p, before[i], item, t, Span{0, H}, mixes);
      s.after[i] = at(after[i], row);
    }
    if (resets_h(cell)) s.reset_h = at(reset_h, row);
    s.rows = min_index(at_once, layer.chunk - t) * B, s.units = all(layer.units), s.store_gates = true;
    for (int phase = 0; phase < cell.phase_count; ++phase) {
      s.h = cell.phases[phase].reset_h ? read_only(s.reset_h) : s.before[0];
      forward_phase(cell, phase, products, s, scratch, layer.team);
    }
  }
}

void time_forward_parts(const Layer& layer) {
  const Problem& p = layer.p;
  const Parameters<const Real>& parameters = layer.training.directions[0].parameters;
  Arena<Real> to = {layer.packed, 0}, rest = {layer.training.scratch, 0};
  Arena<const Real> from = {layer.packed, 0};
  PackedWeights<Real> packed;
  lay_out_packed(p, layer.units, {}, to, packed);
  auto scratch = lay_out_forward(p, rest).directions[0];
  lay_out_packed(p, layer.units, {}, from, scratch.weights);

  print("packing", seconds([&] { pack_direction(p, parameters, packed, all(layer.units)); }), layer.weight_bytes,
        Unit::bytes);
  if (folds_input(p)) {
    time_part(layer, "steps: both products, pointwise", layer.flops_x + layer.flops_h, Unit::flops,
              [&] { forward_steps(layer, Products::both, scratch, 1); });
  } else {
    const Index steps = max_index(projected_rows<Real>(p) / p.B, 1);  // projected together
    time_part(layer, "input product", layer.flops_x, Unit::flops,
              [&] { forward_steps(layer, Products::input, scratch, steps); });
    time_part(layer, "steps: product, pointwise", layer.flops_h, Unit::flops,
              [&] { forward_steps(layer, Products::recurrent, scratch, 1); });
  }
  scratch.weights.w_hh.K = 0;  // the product's tiles are loaded and stored all the same
  time_part(layer, "pointwise alone", layer.vectors, Unit::vectors,
            [&] { forward_steps(layer, Products::recurrent, scratch, 1); });
}

void time_backward_parts(const Layer& layer) {
  const Problem& p = layer.p;
  const CellShape& cell = *p.cell;
  const BackwardArgs<Real>& args = layer.back;
  Arena<Real> arena = {args.scratch, 0};
  auto scratch = lay_out_backward(p, args.dx, true, {}, arena);
  const auto direction = scratch.directions[0];
  const Index rows = layer.chunk * p.B;
  const Chunk chunk = {0, 0, 0, layer.chunk, rows, 0, layer.chunk, false, true};

  print("packing, transposed", seconds([&] { backward_prepare(args, scratch, layer.team); }), layer.weight_bytes,
        Unit::bytes);
  time_part(layer, "dh", layer.flops_h, Unit::flops, [&] {
    for (Index row = 0; row < rows; row += p.B)
      for (int phase = 0; phase < cell.phase_count; ++phase) {
        const Phase& part = cell.phases[phase];
        const Product<Real> dh = {direction.dgates, row, {}, args.directions[0].dstate[0], p.B, all(layer.units)};
        multiply(dh, cell.slot_count, Factor{part.slot, part.gate, part.gates}, direction.w_hh, layer.team);
      }
  });
  const Product<Real> dx = {direction.dgates, 0, {}, args.dx, rows, all(direction.w_ih.columns)};
  time_part(layer, "dx", layer.flops_x, Unit::flops, [&] { multiply_input(cell, dx, direction, layer.team); });
  time_part(layer, "dw", layer.flops_x + layer.flops_h, Unit::flops,
            [&] { weight_gradients(args, scratch, chunk, all(layer.units), layer.team); });
  time_part(layer, "regrouping", double(layer.rows * (p.I + p.H)) * sizeof(Real), Unit::bytes,
            [&] { regroup_chunk(args, scratch, chunk, layer.team); });
  scratch.directions[0].w_hh.columns = {};  // without dh
  time_part(layer, "pointwise", layer.vectors, Unit::vectors, [&] {
    backward_chunk(args, scratch, Item{0, 0, p.B, all(layer.units), all(layer.units), false}, chunk, layer.team);
  });
}

void time_layer(const Problem& p) {
  const FloatingPointMode mode;
  const Layer layer(p);
  time_calls(layer);
  std::puts("parts of forward");
  time_forward_parts(layer);
  std::puts("parts of backward");
  time_backward_parts(layer);
}

int run(int count, char** arguments) {
  constexpr Index n = 1 << 22;
  [[maybe_unused]] volatile Real kept;  // so that it is computed
  print("multiply-adds in registers", seconds([&] { kept = multiply_adds<Real>(0.5, 0.5, n); }), 2.0 * n, Unit::flops);
  for (const CellShape& cell : AllCells::shapes.of) {
    if (count < 3 || std::strcmp(arguments[1], cell.name)) continue;
    for (int i = 2; i < count; ++i) {
      Problem p = {
          .T = 0, .B = 0, .I = 0, .H = 0, .P = 0, .D = 1, .cell = &cell, .input = InputKind::dense, .U = 0, .head = 0};
      char rest;
      if (std::sscanf(arguments[i], "%td,%td,%td,%td%c", &p.T, &p.B, &p.I, &p.H, &rest) != 4 ||
          std::min({p.T, p.B, p.I, p.H}) < 1)
        break;
      p.P = p.head = p.H, p.run = {0, p.T};
      if (is_unpacked(p, Windows{})) break;  // few rows have no such parts
      std::printf("%s T,B,I,H = %s\n", cell.name, arguments[i]);
      time_layer(p);
      if (i + 1 == count) return 0;
    }
  }
  std::string names;
  for (const CellShape& cell : AllCells::shapes.of) names += (names.empty() ? "" : "|") + std::string(cell.name);
  std::fprintf(stderr, "usage: %s %s T,B,I,H ... (T * B > %td)\n", arguments[0], names.c_str(), most_unpacked_rows);
  return 1;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA

int main(int count, char** arguments) { return rnnfast::RNNFAST_ISA::run(count, arguments); }
