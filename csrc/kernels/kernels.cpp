// Instantiates the kernels for one instruction set and dtype: CMake compiles this file once per row of its table and
// RNNFAST_REAL, with RNNFAST_ISA as the name of the namespace. The table at the end is the only symbol that leaves it.
#include "kernels/cells/all.h"
#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/limits.h"
#include "kernels/products/blocks.h"
#include "kernels/random.h"
#include "kernels/reservoir.h"
#include "kernels/time/backward.h"
#include "kernels/time/chunks.h"
#include "kernels/time/forward.h"
#include "kernels/time/norm.h"
#include "kernels/time/zoneout.h"
#include "kernels/training/ctc.h"
#include "kernels/training/linear.h"
#include "kernels/training/losses.h"
#include "kernels/training/optimizers.h"
#include "kernels/vec.h"
#include "kernels/vec_math.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
TapeSize tape_size(const Problem& p) {
  const CellShape& cell = *p.cell;
  const Index rows = row_of(p, p.T);
  Index kept = cell.state_count - !is_projected(p);
  for (int i = 0; i < cell.state_count; ++i) kept += tapes_made(p, i);
  return {.gates = cell.keeps_gates ? kept_size(cell, rows, blocks_of<Real>(p.H)) : 0,
          .states = kept * rows * p.H,
          .reset_h = resets_h(cell) ? rows * p.H : 0};
}

template <class Real>
Index size_to_pack(const Problem& p) {
  Arena<Real> arena = {.base = nullptr, .used = 0};
  PackedWeights<Real> to;
  lay_out_packed(p, blocks_of<Real>(p.H), projected_blocks<Real>(p), arena, to);
  if (p.skips_zeros) lay_out_lists(p, arena, to);
  return arena.used;
}

template <class Real>
Index packed_size(const Problem& p) {
  return size_to_pack<Real>(packed_once(p));
}

template <class Real>
void pack_weights(const Problem& p, const Parameters<const Real>& parameters, Real* packed) {
  const FloatingPointMode mode;
  const Blocks units = blocks_of<Real>(p.H);
  Arena<Real> arena = {.base = packed, .used = 0};
  PackedWeights<Real> to;
  lay_out_packed(p, units, projected_blocks<Real>(p), arena, to);
  pack_direction(p, parameters, to, all(units));
  if (is_projected(p)) pack_projection(p, parameters, to, all(to.w_hr.units));
  if (!p.skips_zeros) return;
  lay_out_lists(p, arena, to);
  const bool ih = to.ih_lists.places && make_lists(to.w_ih, to.ih_lists);
  const bool hh = to.hh_lists.places && make_lists(to.w_hh, to.hh_lists);
  *to.has_lists = Real(ih + 2 * hh);
}

template <class Real>
Index forward_scratch(const Problem& p, bool packed) {
  Arena<Real> arena = {.base = nullptr, .used = 0};
  lay_out_forward(p, arena);
  return arena.used + (packed ? 0 : p.D * size_to_pack<Real>(p));
}

template <class Real>
Index backward_scratch(const Problem& p, bool need_dx, const Windows& windows) {
  Arena<Real> arena = {.base = nullptr, .used = 0};
  lay_out_backward(p, View<Real>{}, need_dx, windows, arena);
  return arena.used;
}

// A gate of every step, out of a tape.
template <class Real>
void read_gate(const Problem& p, const Real* gates, int gate, const View<Real>& out) {
  const CellShape& cell = *p.cell;
  const Blocks units = blocks_of<Real>(p.H);
  const int vectors = is_normalised(cell) ? cell.value_count : cell.slot_count;
  for (Index chunk = 0; chunk < chunk_count(p); ++chunk) {
    const Index first = row_of(p, chunk_start(p, chunk)), rows = row_of(p, chunk_start(p, chunk + 1)) - first;
    Gates<const Real> kept = {.data = gates + kept_size(cell, first, units), .rows = rows};
    if (is_normalised(cell)) kept = values_of(cell, kept, units);
    for_each_block<Real>(units, all(units), [&]<class S>(const BlockRange& range) {
      const Real* from = gates_at(kept, range.unit, 0, S::lanes, vectors);
      from += (vectors - cell.gate_count + gate) * S::lanes;
      for (Index row = 0; row < rows; ++row, from += vectors * S::lanes)
        store_lanes<S>(at(out, first + row).data + range.unit, S::load(from), range.valid);
    });
  }
}

template <class Real>
void activate(Activation function, const Real* x, Real* y, Index n) {
  const FloatingPointMode mode;
  using S = Widest<Real>;
  for (Index i = 0; i < n; i += S::lanes) {
    const int valid = int(min_index(S::lanes, n - i));
    const auto v = load_lanes<S>(x + i, valid);
    store_lanes<S>(y + i, function == Activation::sigmoid ? sigmoid<S>(v) : tanh<S>(v), valid);
  }
}

template <class Real>
Index linear_scratch(const LinearSize& n) {
  return size(linear_panels<Real>(n, nullptr));
}

template <class Real>
Index linear_backward_scratch(const LinearSize& n) {
  Arena<Real> arena = {.base = nullptr, .used = 0};
  lay_out_linear_backward(n, arena);
  return arena.used;
}

void set_cache_sizes(const CacheSizes& sizes) { cache_sizes = sizes; }

void set_integers(const IntegerKernels& kernels) { integers = &kernels; }

void set_pairs(const PairKernels& kernels) { pair_products = &kernels; }

template <class Real>
constexpr Kernels<Real> kernels = {.cells = AllCells::shapes.of,
                                   .cell_count = AllCells::count,
                                   .set_cache_sizes = set_cache_sizes,
                                   .set_integers = set_integers,
                                   .set_pairs = set_pairs,
                                   .cut = cut_into_chunks,
                                   .tape_size = tape_size<Real>,
                                   .packed_size = packed_size<Real>,
                                   .pack = pack_weights<Real>,
                                   .speed_of_team = speed_of_team<Real>,
                                   .forward_scratch = forward_scratch<Real>,
                                   .layout_size = sizeof(ForwardScratch<Real>),
                                   .lay_out = lay_out<Real>,
                                   .forward = forward<Real>,
                                   .backward_scratch = backward_scratch<Real>,
                                   .backward = backward<Real>,
                                   .gate = read_gate<Real>,
                                   .activate = activate<Real>,
                                   .multiply_adds = multiply_adds<Real>,
                                   .read = read<Real>,
                                   .linear_scratch = linear_scratch<Real>,
                                   .linear = linear<Real>,
                                   .linear_backward_scratch = linear_backward_scratch<Real>,
                                   .linear_backward = linear_backward<Real>,
                                   .block_units = block_units<Real>,
                                   .lanes = Widest<Real>::lanes,
                                   .pair_lanes = pair_lanes<Real>,
                                   .has_gather = has_gather,
                                   .next_of_pair = next_of_pair<Real>,
                                   .reservoir_scratch = reservoir_scratch<Real>,
                                   .reservoir = reservoir<Real>,
                                   .draw_bits = draw_bits,
                                   .cross_entropy = cross_entropy<Real>,
                                   .ctc_scratch = ctc_scratch,
                                   .ctc = ctc<Real>,
                                   .sum_of_squares = sum_of_squares<Real>,
                                   .sgd = sgd<Real>,
                                   .adam = adam<Real>};

}  // namespace

#define RNNFAST_JOIN(a, b) a##b
#define RNNFAST_KERNELS_OF(real) RNNFAST_JOIN(kernels_, real)
extern const Kernels<RNNFAST_REAL> RNNFAST_KERNELS_OF(RNNFAST_REAL);
const Kernels<RNNFAST_REAL> RNNFAST_KERNELS_OF(RNNFAST_REAL) = kernels<RNNFAST_REAL>;

}  // namespace rnnfast::RNNFAST_ISA
