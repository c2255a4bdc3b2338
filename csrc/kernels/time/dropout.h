// Recurrent dropout: the products of a step read m h' in place of h', where m are factors of a sequence that all steps
// of a call share, zeros among them. Where a second phase has another operand, that is made of m h'. The pointwise
// parts read h' itself.
//
// There is one m for all gates, or one for each: then the products of a step come gate by gate, in forward and in
// backward. Factors, and h' times them, are rows [B,masks·H], those of gates in the order of w_hh.
//
// Dropout of candidates is a matter of the cells, which are told here which rows of bits a step has.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/gradients.h"
#include "kernels/products/pack.h"
#include "kernels/time/chunks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Which of the masks a gate of packed w_hh has.
constexpr int mask_of(const CellShape& cell, int masks, int gate) { return masks > 1 ? cell.recurrent_gates[gate] : 0; }

// Gates of a phase that share a mask, and so a product.
constexpr int gates_at_once(int masks, const Phase& part) { return masks > 1 ? 1 : part.gates; }

// Of rows [B,masks·H], the columns of a mask.
template <class Real>
constexpr View<Real> of_mask(const View<Real>& rows, int mask, Index H) {
  return {rows.data + mask * H, rows.stride};
}

// out = a m, some rows of some units; out may be a.
template <class Real>
__attribute__((noinline)) void scale_rows(const View<const Real>& a, const View<const Real>& m, const View<Real>& out,
                                          Index rows, const Span& units) {
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; ++j) at(out, row).data[j] = at(a, row).data[j] * at(m, row).data[j];
}

// out = or += a m.
template <class Real>
__attribute__((noinline)) void add_scaled_rows(const View<const Real>& a, const View<const Real>& m,
                                               const View<Real>& out, Index rows, const Span& units, bool add) {
  if (!add) return scale_rows(a, m, out, rows, units);
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; ++j) at(out, row).data[j] += at(a, row).data[j] * at(m, row).data[j];
}

// Which candidates of a step's rows are kept, in forward and in backward. `row` is the step's first.
template <class Real, class Args>
RNNFAST_INLINE Candidates<Real> candidates_of(const Args& args, const Item& item, Index row) {
  const View<const unsigned char>& kept = args.directions[item.direction].kept;
  if (!kept.data) return {};
  return {.kept = at(kept, args.problem.keeps_by_sequence ? item.first : row), .scale = args.candidate_scale};
}

// ---- Forward -------------------------------------------------------------------------------------------------------

// Makes m h' of rows of the batch, for the elements of an item.
template <class Real>
__attribute__((noinline)) View<const Real> drop_h(const Problem& p, const View<const Real>& factors,
                                                  const View<const Real>& h, const View<Real>& dropped,
                                                  const RowRange& rows, const Span& elements) {
  const View<const Real> m = at(factors, rows.first);
  const View<Real> out = at(dropped, rows.first);
  for (int mask = 0; mask < p.masks; ++mask)
    scale_rows(h, of_mask(m, mask, p.H), of_mask(out, mask, p.H), rows.count, elements);
  return read_only(out);
}

// Makes what a phase has as operand, as r h', that of m h'. Such a phase has one gate if each has a mask.
template <class Real>
__attribute__((noinline)) void drop_reset_h(const Problem& p, const View<const Real>& factors,
                                            const ForwardStep<Real>& s, const Phase& part, const RowRange& rows,
                                            const Span& elements) {
  const View<const Real> m = of_mask(at(factors, rows.first), mask_of(*p.cell, p.masks, part.gate), p.H);
  scale_rows(read_only(s.reset_h), m, s.reset_h, rows.count, elements);
}

// The recurrent product of a phase, gate by gate: `whole` is that of all gates, which starts from what is there.
template <class Real>
__attribute__((noinline)) void multiply_by_gate(const CellShape& cell, const Phase& part, const ForwardStep<Real>& s,
                                                const BlockRange& range, const Tile<Real>& whole, Factors factors) {
  const Index H = s.h.stride / s.masks;
  Tile<Real> t = whole;
  t.valid = range.lanes;
  for (int gate = part.gate; gate < part.gate + part.gates; ++gate) {
    t.second.a = of_mask(s.h, mask_of(cell, s.masks, gate), H).data;
    tile_rows(tiles_of<Real>(1, 1, range, factors), t, s.rows);
    t.out += range.lanes, t.second.panel += range.lanes;
    if (t.init) t.init += range.lanes;
  }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// A phase's product, which is m dgates w in place of dgates w, or the sum of that over the gates; added to `init`,
// which is null or `out`.
template <class Real>
__attribute__((noinline)) void multiply_dropped(const CellShape& cell, const Phase& part, const BackwardStep<Real>& s,
                                                const Product<Real>& whole, const TransposedPanels<Real>& w,
                                                const Team& team) {
  constexpr Index W = Widest<Real>::lanes;
  const Index H = s.dropped.stride;
  const Span units = {.first = whole.columns.first * W, .last = min_index(whole.columns.last * W, H)};
  const int at_once = gates_at_once(s.masks, part);
  Product<Real> product = whole;
  product.init = {}, product.out = s.dropped;
  for (int i = 0; i < part.gates; i += at_once) {
    const Factor factor = {.slot = part.slot + i, .gate = part.gate + i, .gates = at_once};
    multiply(product, cell.slot_count, factor, w, team);
    const View<const Real> m = of_mask(s.factors, mask_of(cell, s.masks, factor.gate), H);
    add_scaled_rows(read_only(s.dropped), m, whole.out, s.rows, units, whole.init.data || i > 0);
  }
}

// Multiplies columns that have been made of rows of h' by the factors of these rows.
template <class Real>
void scale_columns(const View<const Real>& m, const RowRange& range, const Columns<Real>& to) {
  const Index H = to.count - 1, M = to.width;
  for (Index row = 0; row < range.count; ++row)
    for (Index column = 0; column < H; column += M) {
      Real* const tile = to.data + column * to.rows + (range.first + row) * M;
      const Real* const from = at(m, row).data + column;
      for (Index i = 0; i < min_index(M, H - column); ++i) tile[i] *= from[i];
    }
}

// Regroups rows of h', multiplied by the factors of each mask.
template <class Real>
__attribute__((noinline)) void regroup_dropped(const Problem& p, const View<const Real>& h, const View<const Real>& m,
                                               const RowRange& range, const Columns<Real>* to, const Team& team) {
  for (int mask = 0; mask < p.masks; ++mask) {
    regroup(h, range, to[mask], team);
    scale_columns(of_mask(m, mask, p.H), range, to[mask]);
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
