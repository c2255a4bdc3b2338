// The products of a step where each is by itself: matrices are of integers, or leave out zeros.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/lists.h"
#include "kernels/products/pack.h"
#include "kernels/products/quantized.h"
#include "kernels/time/weights.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Which products of a step come together.
enum class Products { input, recurrent, both };

// A matrix, and what of a step is multiplied by it.
template <class Real>
struct StepProduct {
  View<const Real> a;
  Quantized<Real> quantized;
  Panels<const Real> w;
  ColumnScales<const Real> scales;
  Lists lists;
};

// out = init + a w, for the gates of a phase and a range of unit blocks that are all full or one.
template <class Real>
void multiply_apart(const StepProduct<Real>& f, const Phase& part, const BlockRange& range, const Tile<Real>& t,
                    Index rows) {
  ListGroup<const Real> list = {};
  if (f.lists.places && range.blocks == list_blocks(f.w.gates) && range.block + range.blocks <= f.w.units.full) {
    list = group_of(f.lists, f.w, range.block);
    if (is_whole(list)) list = {};
  }
  if constexpr (has_formats<Real>)
    if (f.scales.scales) {
      IntegerProduct product = product_of(f.quantized, rows, f.w, f.scales, range, part.gate, part.gates);
      product.init = t.init, product.init_row = t.init_row, product.init_unit = t.init_unit;
      product.out = t.out, product.out_row = t.out_row, product.out_unit = t.out_unit;
      if (list.panel) product.places = list.places, product.words = list.lengths[0];
      return integers->multiply(product);
    }
  if (list.panel)
    return multiply_list(ListProduct<Real>{.group = list,
                                           .a = f.a,
                                           .rows = rows,
                                           .init = t.init,
                                           .init_row = t.init_row,
                                           .init_unit = t.init_unit,
                                           .out = t.out,
                                           .out_row = t.out_row,
                                           .out_unit = t.out_unit},
                         f.w.gates, f.w.shift == 1);
  Tile<Real> whole = t;
  const Index width = f.w.gates * range.lanes, from = part.gate * range.lanes;
  whole.first = rows_by_panels(f.a, panel(f.w, range.unit) + from, f.w.K, width, f.w.shift == 1);
  tile_rows(tiles_of<Real>(part.gates, part.gates, range, f.w.shift == 1), whole, rows);
}

// The products of one phase, each by itself, for a range of unit blocks: that of x, and then that of h'.
template <class Real>
void multiply_apart(const CellShape& cell, const Phase& part, Products products, const ForwardStep<Real>& s,
                    const View<const Real>& h, const PackedWeights<const Real>& weights, const BlockRange& range,
                    Real* gates) {
  const Index lanes = range.lanes, row = cell.slot_count * lanes, unit = s.gates.rows * row;
  const auto multiply = [&](const StepProduct<Real>& f, int slot, const Real* bias) {
    Tile<Real> t = {};
    t.out_row = row, t.out_unit = unit, t.valid = int(lanes);
    t.init_row = bias ? 0 : row, t.init_unit = bias ? row : unit;
    // Lists are those of some blocks, into which the blocks of a range can be cut.
    const Index step =
        f.lists.places && range.blocks % list_blocks(f.w.gates) == 0 ? list_blocks(f.w.gates) : range.blocks;
    for (Index block = 0; block < range.blocks; block += step) {
      BlockRange some = range;
      some.block += block, some.unit += block * lanes, some.blocks = step;
      t.out = gates + block * unit + slot * lanes;
      t.init = bias ? bias + block * row : t.out;
      multiply_apart(f, part, some, t, s.rows);
    }
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
    multiply({h, s.quantized_h, weights.w_hh, weights.hh, weights.hh_lists}, part.slot, nullptr);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
