// Numbers of 8 bits: rows of an operand are quantised where a product reads them, and matrices are packed for it as
// they come. Symmetric: q = a * 127 / max |a|, rounded to nearest even, with the maximum of each row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// `set_integers` of the table tells them.
const IntegerKernels* integers = nullptr;

// ---- Rows -----------------------------------------------------------------------------------------------------------

// Rows of words that hold 4 numbers each, and what each row is multiplied by to get the operand back.
template <class Real>
struct Quantized {
  Real* words;
  Index stride;  // of rows: whole vectors of numbers
  Real* scales;
};

template <class Real>
Quantized<Real> take_quantized(Arena<Real>& arena, Index rows, Index K) {
  const Index stride = (K + 63) / 64 * 16;
  return {.words = take(arena, rows * stride), .stride = stride, .scales = take(arena, rows)};
}

template <class Real>
RNNFAST_INLINE Quantized<Real> at(const Quantized<Real>& q, Index row) {
  return {.words = q.words + row * q.stride, .stride = q.stride, .scales = q.scales + row};
}

// The greatest |a|, where it is at least `least`; what is not finite in place of what is.
template <class S>
RNNFAST_INLINE typename S::Real greatest(const typename S::Real* a, Index K, typename S::Real least) {
  using Bits = typename S::Bits;
  Bits most = reinterpret_cast<Bits>(S::broadcast(least));  // numbers above 0 are ordered as their bits are
  for (Index k = 0; k < K; k += S::lanes) {
    const Bits bits = reinterpret_cast<Bits>(load_lanes<S>(a + k, int(min_index(S::lanes, K - k)))) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return fold<S>(reinterpret_cast<typename S::V>(most), [](typename S::V a, typename S::V b) {
    return reinterpret_cast<Bits>(a) > reinterpret_cast<Bits>(b) ? a : b;
  });
}

// A row that is not finite has NaN for its scale, and so is all that it reaches; one whose greatest number is below
// 2^-100 counts as zeros, as 127 divided by it could overflow. `least` is 1 where what is quantised
// is at most 1: h then has the same scale at all steps, as long as no initial state is beyond.
template <class Real>
__attribute__((noinline)) void quantize(const View<const Real>& rows, Index count, Index K, Real least,
                                        const Quantized<Real>& to) {
  using S = Widest<Real>;
  // Added to a number, it leaves that one rounded to an integer in the lowest bits.
  const Real shift = Real(0x1.8p23) + Real(integers->adds_128 ? 128 : 0);
  for (Index row = 0; row < count; ++row) {
    const Real* a = at(rows, row).data;
    const Real m = greatest<S>(a, K, least);
    const bool finite = m - m == 0, counts = m >= Real(0x1p-100);
    to.scales[row] = !finite ? m - m : counts ? m / 127 : 0;
    const Real inverse = finite && counts ? 127 / m : 0;
    auto* bytes = reinterpret_cast<unsigned char*>(to.words + row * to.stride);
    for (Index k = 0; k < K; k += S::lanes) {
      const typename S::V v = load_lanes<S>(a + k, int(min_index(S::lanes, K - k)));
      store_bytes(bytes + k, reinterpret_cast<typename S::Bits>(v * inverse + shift));
    }
  }
}

// ---- Matrices -------------------------------------------------------------------------------------------------------

// Of the columns of panels, as `IntegerProduct` has them.
template <class Real>
struct ColumnScales {
  Real *scales, *offsets;  // the second holds integers
};

template <class Real>
ColumnScales<Real> take_scales(Arena<Real>& arena, const Panels<Real>& p) {
  const Index n = p.units.units * p.gates;
  return {.scales = take(arena, n), .offsets = take(arena, n)};
}

// Those of the unit blocks of a span, whose panels are packed; `scales` are those of the rows of w.
template <class Real>
void pack_scales(const GateRows<const Real>& w, const float* scales, const Panels<Real>& p, Span span,
                 const ColumnScales<Real>& to) {
  for_each_block<Real>(p.units, span, [&]<class S>(const BlockRange& range) {
    using Bits = typename S::Bits;
    const Index width = p.gates * S::lanes, words = words_of(p.K, p.shift);
    for (int gate = 0; gate < p.gates; ++gate) {
      const Index column = range.unit * p.gates + gate * S::lanes;
      for (int lane = 0; lane < S::lanes; ++lane)
        to.scales[column + lane] = lane < range.valid ? scales[w.order[gate] * w.H + range.unit + lane] : 0;
      Bits sum = {};
      const Real* from = panel(p, range.unit) + gate * S::lanes;
      for (Index word = 0; word < words; ++word, from += width) {
        const Bits four = reinterpret_cast<Bits>(S::load(from));
        sum += (four << 24 >> 24) + (four << 16 >> 24) + (four << 8 >> 24) + (four >> 24);
      }
      S::store(to.offsets + column, reinterpret_cast<typename S::V>(sum * 128));
    }
  });
}

// What is the same for all products with a matrix: `rows` rows of a by the panels of a range of unit blocks, with the
// gates from `gate` on.
template <class Real>
RNNFAST_INLINE IntegerProduct product_of(const Quantized<Real>& a, Index rows, const Panels<const Real>& w,
                                         const ColumnScales<const Real>& columns, const BlockRange& range, int gate,
                                         int gates) {
  const Index width = w.gates * range.lanes, from = gate * range.lanes, words = words_of(w.K, w.shift);
  return {.a = reinterpret_cast<const std::uint32_t*>(a.words),
          .a_row = a.stride,
          .a_scales = a.scales,
          .rows = rows,
          .words = words,
          .panel = panel(w, range.unit) + from,
          .panel_unit = words * width,
          .panel_word = width,
          .scales = columns.scales + range.unit * w.gates + from,
          .offsets = reinterpret_cast<const std::int32_t*>(columns.offsets) + range.unit * w.gates + from,
          .column_unit = width,
          .blocks = int(range.blocks),
          .gates = gates,
          .halvings = range.halvings,
          .valid = range.lanes,
          .init = nullptr,
          .init_row = 0,
          .init_unit = 0,
          .out = nullptr,
          .out_row = 0,
          .out_unit = 0};
}

// y = a w^T, for some blocks of y's columns.
template <class Real>
void multiply_quantized_rows(const Quantized<Real>& a, const Panels<const Real>& w,
                             const ColumnScales<const Real>& scales, const View<Real>& y, Index rows, Span columns) {
  for_each_range<Real>(w.units, columns, rows == 1 ? 8 : 4, false, [&](const BlockRange& range) {
    IntegerProduct product = product_of(a, rows, w, scales, range, 0, 1);
    product.valid = range.valid;
    product.out = y.data + range.unit, product.out_row = y.stride, product.out_unit = range.lanes;
    integers->multiply(product);
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
