// The parameters of one direction as a forward reads them, and how they are packed.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/lists.h"
#include "kernels/products/pack.h"
#include "kernels/products/quantized.h"
#include "kernels/time/chunks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The parameters of one direction as the products read them.
template <class Real>
struct PackedWeights {
  Panels<Real> w_ih, w_hh, w_hr;
  ColumnScales<Real> ih, hh, hr;  // of int8 ones
  Real* has_lists;                // where zeros may be skipped: 1 if those of w_ih are, 2 if of w_hh, or their sum
  Lists ih_lists, hh_lists;       // of such weights
  bool apart;                     // each product is by itself: of integers, or with lists
  Real* bias;                     // [unit block][slot x lanes]
  Real* vectors;                  // [unit block][vector x lanes]
  Real* zeros;                    // [H], the initial state where none is given
};

// Filled where it lies: copied, it would be read by wide loads before its narrow stores are done, which a stream's step
// would feel.
template <class Real>
void lay_out_packed(const Problem& p, const Blocks& units, const Blocks& projected, Arena<Real>& arena,
                    PackedWeights<Real>& to) {
  const CellShape& cell = *p.cell;
  to = {};
  to.w_ih.units = to.w_hh.units = units, to.w_hr.units = projected;
  to.w_ih.gates = to.w_hh.gates = cell.gate_count, to.w_hr.gates = 1;
  to.w_hh.reach = reach_of(p.P, p.head, vector_bytes / Index(sizeof(Real)));
  to.w_ih.K = input_columns(p), to.w_hh.K = to.w_hh.reach.width, to.w_hr.K = p.H;
  to.w_ih.shift = to.w_hh.shift = to.w_hr.shift = shift_of(p.format);
  to.w_ih.rounds = to.w_hh.rounds = to.w_hr.rounds = p.rounded;
  if (p.rounded) to.w_ih.shift = to.w_hh.shift = to.w_hr.shift = 1;
  to.w_ih.data = take(arena, size(to.w_ih));
  to.w_hh.data = take(arena, size(to.w_hh));
  to.w_hr.data = take(arena, size(to.w_hr));
  if (p.format == Format::int8)
    to.ih = take_scales(arena, to.w_ih), to.hh = take_scales(arena, to.w_hh), to.hr = take_scales(arena, to.w_hr);
  to.bias = take(arena, gates_size(cell.slot_count, 1, units));
  to.vectors = take(arena, gates_size(cell.vector_count, 1, units));
  to.zeros = take(arena, p.H);
  if (p.skips_zeros) to.has_lists = take(arena, 1);
}

// What follows them. Products that read h' in several ways, or a part of it, have none.
template <class Real>
void lay_out_lists(const Problem& p, Arena<Real>& arena, PackedWeights<Real>& to) {
  if (p.cell->phase_count > 1 || is_normalised(*p.cell) || to.w_hh.reach.last) return;
  to.ih_lists = take_lists(arena, to.w_ih), to.hh_lists = take_lists(arena, to.w_hh);
}

// Weights that are packed for any number of calls are those of a dense x.
constexpr Problem packed_once(Problem p) {
  p.input = InputKind::dense;
  return p;
}

// Weights that are packed, or will be.
template <class Real>
void find_packed(const Problem& p, const Blocks& units, const Blocks& projected, Arena<Real>& arena,
                 PackedWeights<Real>& to) {
  lay_out_packed(p, units, projected, arena, to);
  const int lists = to.has_lists ? int(*to.has_lists) : 0;
  if (lists) lay_out_lists(p, arena, to);
  if (!(lists & 1)) to.ih_lists = {};
  if (!(lists & 2)) to.hh_lists = {};
  to.apart = p.format == Format::int8 || lists;
}

// Matrices of which each weight is read once or a few times: a unit block is packed when its turn comes, into memory
// that the next one uses again. Or no weight is packed at all.
template <class Real>
struct UnpackedWeights {
  GateRows<const Real> w_ih, w_hh;  // null: they are packed
  Panels<Real> w_ih_block, w_hh_block;
  bool directly;
};

template <class Real>
RNNFAST_INLINE Panels<const Real> pack_block(const GateRows<const Real>& w, Panels<Real> to, const BlockRange& range) {
  to.first = range.unit;
  pack(w, to, 0, Span{.first = range.block, .last = range.block + range.blocks});
  return read_only(to);
}

// bias[slot] is what the slot's chain starts from: b_ih, b_hh or their sum.
template <class Real>
void pack_bias(const CellShape& cell, const Parameters<const Real>& parameters, const Panels<Real>& w_hh, Index H,
               Span span, Real* bias) {
  const int shift = cell.slot_count - cell.gate_count;
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(w_hh.units, block);
    Real* to = bias + width.unit * cell.slot_count;
    for (int slot = 0; slot < cell.slot_count; ++slot) {
      for (Index lane = 0; lane < width.lanes; ++lane, ++to) {
        *to = 0;
        if (lane >= width.valid) continue;
        const Index unit = width.unit + lane;
        if (parameters.b_ih && slot >= shift) *to += parameters.b_ih[cell.input_gates[slot - shift] * H + unit];
        if (parameters.b_hh && slot < cell.gate_count) *to += parameters.b_hh[cell.recurrent_gates[slot] * H + unit];
      }
    }
  }
}

// A matrix, for the unit blocks of the span.
template <class Real>
void pack_matrix(const Problem& p, const GateRows<const Real>& w, const float* scales, const Panels<Real>& to,
                 const ColumnScales<Real>& columns, Span span) {
  pack(w, to, 0, span);
  if constexpr (has_formats<Real>)
    if (p.format == Format::int8) pack_scales(w, scales, to, span, columns);
}

template <class Real>
void pack_projection(const Problem& p, const Parameters<const Real>& parameters, const PackedWeights<Real>& to,
                     Span span) {
  pack_matrix(p, projection_rows(p, parameters), parameters.scales[2], to.w_hr, to.hr, span);
}

// For the unit blocks of the span: biases and vectors, and the matrices that are wanted.
template <class Real>
void pack_direction(const Problem& p, const Parameters<const Real>& parameters, const PackedWeights<Real>& to,
                    Span span, bool w_ih = true, bool w_hh = true) {
  if (w_ih && input_columns(p)) pack_matrix(p, input_rows(p, parameters), parameters.scales[0], to.w_ih, to.ih, span);
  if (w_hh) pack_matrix(p, recurrent_rows(p, parameters), parameters.scales[1], to.w_hh, to.hh, span);
  pack_bias(*p.cell, parameters, to.w_hh, p.H, span, to.bias);
  pack_vectors(*p.cell, parameters, to.w_hh.units, p.H, span, to.vectors);
  if (span.first == 0)
    for (Index j = 0; j < p.H; ++j) to.zeros[j] = 0;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
