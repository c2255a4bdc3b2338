// Instantiates the kernels for one instruction set: CMake compiles this file once per row of its table, with
// RNNFAST_ISA as the name of the namespace. The table is the only symbol that leaves it.
#include "backward.h"
#include "cells/all.h"
#include "forward.h"
#include "limits.h"
#include "linear.h"
#include "losses.h"
#include "optimizers.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class F, class First, class... Others>
RNNFAST_INLINE auto with_cell(const CellShape& shape, F&& f, CellList<First, Others...>) {
  if constexpr (sizeof...(Others) > 0)
    if (shape.index != cell_shapes.of[AllCells::count - 1 - sizeof...(Others)].index)
      return with_cell(shape, f, CellList<Others...>());
  return f.template operator()<First>();
}

template <class F>
RNNFAST_INLINE auto with_cell(const CellShape* shape, F&& f) {
  return with_cell(*shape, f, AllCells());
}

template <class Real>
TapeSize tape_size_of(const Problem& p) {
  return with_cell(p.cell, [&]<class C> {
    const Index rows = row_of(p, p.T);
    return TapeSize{C::keeps_gates ? gates_size<C>(rows, blocks_of<Real>(p.H)) : 0, (state_count<C> - 1) * rows * p.H,
                    resets_h<C> ? rows * p.H : 0};
  });
}

template <class Real>
Index packed_size_of(const Problem& p) {
  return with_cell(p.cell, [&]<class C> {
    Arena<Real> arena = {nullptr, 0};
    lay_out_packed<C>(p, blocks_of<Real>(p.H), arena);
    return arena.used;
  });
}

template <class Real>
void pack_of(const Problem& p, const Parameters<const Real>& parameters, Real* packed) {
  const FloatingPointMode mode;
  with_cell(p.cell, [&]<class C> {
    const Blocks units = blocks_of<Real>(p.H);
    Arena<Real> arena = {packed, 0};
    pack_direction<C>(p, parameters, lay_out_packed<C>(p, units, arena), all(units));
  });
}

template <class Real>
Index forward_scratch_of(const Problem& p, bool packed) {
  return with_cell(p.cell, [&]<class C> {
    Arena<Real> arena = {nullptr, 0};
    lay_out_forward<C>(p, arena);
    return arena.used + (packed ? 0 : p.D * packed_size_of<Real>(p));
  });
}

template <class Real>
Index backward_scratch_of(const Problem& p, bool need_dx, const Windows& windows) {
  return with_cell(p.cell, [&]<class C> {
    Arena<Real> arena = {nullptr, 0};
    lay_out_backward<C>(p, View<Real>{}, need_dx, windows, arena);
    return arena.used;
  });
}

template <class Real>
void forward_of(const ForwardArgs<Real>& args, const Team& team) {
  with_cell(args.problem.cell, [&]<class C> { forward<C>(args, team); });
}

template <class Real>
void backward_of(const BackwardArgs<Real>& args, const Team& team) {
  with_cell(args.problem.cell, [&]<class C> { backward<C>(args, team); });
}

template <class Real>
void gate_of(const Problem& p, const Real* gates, int gate, const View<Real>& out) {
  with_cell(p.cell, [&]<class C> {
    const Blocks units = blocks_of<Real>(p.H);
    for (Index chunk = 0; chunk < chunk_count(p); ++chunk) {
      const Index first = row_of(p, chunk_start(p, chunk)), rows = row_of(p, chunk_start(p, chunk + 1)) - first;
      const Gates<const Real> kept = {gates + gates_size<C>(first, units), rows};
      for_each_block<Real, 1>(units, all(units), [&]<class S, int>(BlockRange range) {
        const Real* from = gates_at<S, C::slots>(kept, range.unit, 0) + (C::slots - C::gates + gate) * S::lanes;
        for (Index row = 0; row < rows; ++row, from += C::slots * S::lanes)
          store_lanes<S>(at(out, first + row).data + range.unit, S::load(from), range.valid);
      });
    }
  });
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
Index linear_scratch_of(const LinearSize& n) {
  return size(linear_panels<Real>(n, nullptr));
}

template <class Real>
Index linear_backward_scratch_of(const LinearSize& n) {
  Arena<Real> arena = {nullptr, 0};
  lay_out_linear_backward(n, arena);
  return arena.used;
}

template <class Real>
constexpr Kernels<Real> kernels = {cut_into_chunks,
                                   tape_size_of<Real>,
                                   packed_size_of<Real>,
                                   pack_of<Real>,
                                   forward_scratch_of<Real>,
                                   forward_of<Real>,
                                   backward_scratch_of<Real>,
                                   backward_of<Real>,
                                   gate_of<Real>,
                                   activate<Real>,
                                   multiply_adds<Real>,
                                   read<Real>,
                                   linear_scratch_of<Real>,
                                   linear<Real>,
                                   linear_backward_scratch_of<Real>,
                                   linear_backward<Real>,
                                   cross_entropy<Real>,
                                   sum_of_squares<Real>,
                                   sgd<Real>,
                                   adam<Real>};

}  // namespace

#define RNNFAST_NAME_OF(isa) #isa
#define RNNFAST_NAME(isa) RNNFAST_NAME_OF(isa)
extern const KernelTable table;
const KernelTable table = {RNNFAST_NAME(RNNFAST_ISA), cell_shapes.of, AllCells::count, kernels<float>, kernels<double>};

}  // namespace rnnfast::RNNFAST_ISA
