// Rows times a packed matrix: the readout, and the projection of h.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// y = x w^T + b, for some rows and some blocks of y's columns.
template <class Real>
struct RowProduct {
  View<const Real> x;    // [rows,K]
  Panels<const Real> w;  // of [O,K], one gate
  const Real* b;         // [O]; null: zeros
  View<Real> y;          // [rows,O]
  Index rows;
  Span columns;
  bool backwards = false;  // through the columns
};

template <class Real>
__attribute__((noinline)) void multiply_rows(const RowProduct<Real>& p, const Team& team) {
  for_each_range<Real>(p.w.units, p.columns, unit_group(1, p.rows == 1), p.backwards, [&](const BlockRange& range) {
    if (skips(team, p.rows, p.w.K)) return;
    const Index lanes = range.lanes;
    Tile<Real> t = {};
    t.first = rows_by_panels(p.x, panel(p.w, range.unit), p.w.K, lanes, factors_of(p.w));
    if (p.b) t.init = p.b + range.unit, t.init_unit = lanes;
    t.out = p.y.data + range.unit, t.out_row = p.y.stride, t.out_unit = lanes;
    t.valid = range.valid;
    tile_rows(tiles_of<Real>(1, 1, range, factors_of(p.w)), t, p.rows);
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
