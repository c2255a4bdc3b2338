// The products of a step where each is by itself: matrices are of integers, or leave out zeros.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/direct.h"
#include "kernels/products/gemm.h"
#include "kernels/products/lists.h"
#include "kernels/products/pack.h"
#include "kernels/products/quantized.h"
#include "kernels/time/weights.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// A matrix, and what of a step is multiplied by it.
template <class Real>
struct StepProduct {
  const View<const Real>& a;
  const Quantized<Real>& quantized;
  const Panels<const Real>& w;
  const ColumnScales<const Real>& scales;
  const Lists& lists;
};

// What a product starts from and where it goes; the strides are those of a tile.
template <class Real>
struct Slots {
  const Real* init;
  Index init_row, init_unit;
  Real* out;
  Index out_row, out_unit;
};

template <class Real>
void multiply_whole(const StepProduct<Real>& f, const Phase& part, const BlockRange& range, const Slots<Real>& slots,
                    Index rows) {
  const Index width = f.w.gates * range.lanes, from = part.gate * range.lanes;
  Tile<Real> t = {};
  t.first = rows_by_panels(f.a, panel(f.w, range.unit) + from, f.w.K, width, factors_of(f.w));
  t.init = slots.init, t.init_row = slots.init_row, t.init_unit = slots.init_unit;
  t.out = slots.out, t.out_row = slots.out_row, t.out_unit = slots.out_unit;
  t.valid = part.gates * range.lanes;
  const Tiles<Real>& tiles = tiles_for(t, part.gates, part.gates, range, factors_of(f.w));
  tile_rows(tiles, t, rows);
}

template <class Real>
void multiply_integers(const StepProduct<Real>& f, const Phase& part, const BlockRange& range, const Slots<Real>& slots,
                       Index rows, const ListGroup<const Real>* list) {
  if constexpr (has_formats<Real>) {
    IntegerProduct product = product_of(f.quantized, rows, f.w, f.scales, range, part.gate, part.gates);
    product.init = slots.init, product.init_row = slots.init_row, product.init_unit = slots.init_unit;
    product.out = slots.out, product.out_row = slots.out_row, product.out_unit = slots.out_unit;
    if (list) product.places = list->places, product.words = list->lengths[0];
    integers->multiply(product);
  }
}

// Lists are those of some blocks, into which the blocks of a range are cut where they can be.
template <class Real>
void multiply_lists(const StepProduct<Real>& f, const Phase& part, const BlockRange& range, Slots<Real> slots,
                    Index rows) {
  const Index step = range.blocks % list_blocks(f.w.gates) == 0 ? list_blocks(f.w.gates) : range.blocks;
  BlockRange some = range;
  some.blocks = step;
  for (; some.block < range.block + range.blocks; some.block += step, some.unit += step * range.lanes) {
    const bool has_group = step == list_blocks(f.w.gates) && some.block + step <= f.w.units.full;
    const ListGroup<const Real> list = has_group ? group_of(f.lists, f.w, some.block) : ListGroup<const Real>{};
    const bool is_list = has_group && !is_whole(list);
    if (f.scales.scales)
      multiply_integers(f, part, some, slots, rows, is_list ? &list : nullptr);
    else if (is_list)
      multiply_list(ListProduct<Real>{.group = list,
                                      .a = f.a,
                                      .rows = rows,
                                      .init = slots.init,
                                      .init_row = slots.init_row,
                                      .init_unit = slots.init_unit,
                                      .out = slots.out,
                                      .out_row = slots.out_row,
                                      .out_unit = slots.out_unit},
                    f.w.gates, f.w.shift == 1);
    else
      multiply_whole(f, part, some, slots, rows);
    slots.init += step * slots.init_unit, slots.out += step * slots.out_unit;
  }
}

// The products of one phase, each by itself, for a range of unit blocks: that of x, and then that of h'.
template <class Real>
void multiply_apart(const CellShape& cell, const Phase& part, Products products, const ForwardStep<Real>& s,
                    const PackedWeights<const Real>& weights, const BlockRange& range, Real* gates) {
  const Index lanes = range.lanes, row = cell.slot_count * lanes, unit = s.gates.rows * row;
  const auto multiply = [&](const StepProduct<Real>& f, int slot, const Real* bias) {
    Real* const out = gates + slot * lanes;
    const Slots<Real> slots = {.init = bias ? bias : out,
                               .init_row = bias ? 0 : row,
                               .init_unit = bias ? row : unit,
                               .out = out,
                               .out_row = row,
                               .out_unit = unit};
    if (f.lists.places) return multiply_lists(f, part, range, slots, s.rows);
    if (f.scales.scales) return multiply_integers<Real>(f, part, range, slots, s.rows, nullptr);
    multiply_whole(f, part, range, slots, s.rows);
  };
  if (products != Products::recurrent) {
    const Real* const bias = weights.bias + range.unit * cell.slot_count;
    const int of_input = part.slot + part.slots - part.gates;  // the first slot that x reaches
    for (Index block = 0; block < range.blocks && of_input > part.slot; ++block)
      for (Index i = 0; i < s.rows; ++i)
        copy_vectors(bias + block * row + part.slot * lanes, (of_input - part.slot) * lanes,
                     gates + block * unit + i * row + part.slot * lanes);
    multiply({s.x, s.quantized_x, weights.w_ih, weights.ih, weights.ih_lists}, of_input, bias + of_input * lanes);
  }
  if (products != Products::input)
    multiply({s.h, s.quantized_h, weights.w_hh, weights.hh, weights.hh_lists}, part.slot, nullptr);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
