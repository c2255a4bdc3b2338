// The windows of truncated backpropagation through time: the sum over all of them in one pass of the loop of
// backward.h.
//
// Window n ends at end(n) = min((n + 1) k1, T). It goes through the steps from max(0, end(n) - k2) on; the state before
// them is a constant. At step t, the windows with end(n) - k2 <= t < end(n) are live: neighbours, a few at most. All
// have the same weights and gates, and so the same Jacobians: each has gradients of the states of its own, but the
// dgates of all are the rows of one product, and their sum is what the weights' gradients and dx are made of.
//
// Of an item's rows, those of live window i are rows [i·rows, (i + 1)·rows) of each array here. Windows end in
// descending order on the way back: a new one takes the place of window 0 and the others make room.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/pairs.h"
#include "kernels/time/chunks.h"
#include "kernels/time/sequence.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
struct WindowScratch {
  Gates<Real> dgates;          // two times [most·B]
  Gates<Real> dvectors, dh;    // likewise; of h, where that is a projection
  Gates<Real> pairs, h_pairs;  // of dgates and dh, where products are rounded
  Real* dstate[most_states];   // [most·B,H], of h [most·B,P]
  const Real* zeros;           // [H]
};

// The windows whose deltas a backward carries; it has one without end where there are no windows.
constexpr Index most_deltas(const Windows& w) { return w.k1 ? w.most : 1; }

template <class Real>
WindowScratch<Real> lay_out_windows(const Problem& p, const Windows& w, const Real* zeros, Arena<Real>& arena) {
  if (!w.k1) return {};
  const Index rows = w.most * p.B;
  const auto slots = [&](int count, Index units) {
    return Gates<Real>{.data = take(arena, gates_size(count, 2 * rows, blocks_of<Real>(units))), .rows = 2 * rows};
  };
  WindowScratch<Real> s = {.dgates = slots(p.cell->slot_count, p.H),
                           .dvectors = slots(row_vectors(*p.cell), p.H),
                           .dh = slots(is_projected(p), p.P),
                           .pairs = {},
                           .h_pairs = {},
                           .dstate = {},
                           .zeros = zeros};
  if (p.rounded) s.pairs = slots(p.cell->slot_count, p.H), s.h_pairs = slots(is_projected(p), p.P);
  for (int i = 0; i < p.cell->state_count; ++i) s.dstate[i] = take(arena, rows * state_size(p, i));
  return s;
}

constexpr Index live_windows(const Windows& w, Index T, Index t) {
  const Index ended = t / w.k1;  // at t or before
  return (T - t <= w.k2 ? (T + w.k1 - 1) / w.k1 : (t + w.k2) / w.k1) - ended;
}

// A window begins its way back with zeros as window 0 of `windows`.
template <class Real>
__attribute__((noinline)) void add_window(const View<Real>& d, Index windows, Index rows, const Span& units) {
  for (Index row = windows * rows - 1; row >= 0; --row)
    for (Index j = units.first; j < units.last; ++j)
      at(d, row).data[j] = row < rows ? Real(0) : at(d, row - rows).data[j];
}

// The sum of n elements of each window, which lie one after the other.
template <class Real>
__attribute__((noinline)) void sum_windows(const Real* from, Index windows, Index n, Real* to) {
  for (Index i = 0; i < n; ++i) to[i] = windows ? from[i] : Real(0);
  for (Index window = 1; window < windows; ++window)
    for (Index i = 0; i < n; ++i) to[i] += from[window * n + i];
}

// The sum of what the windows that reach the start bring to the initial state.
template <class Real>
__attribute__((noinline)) void sum_states(const View<Real>& d, Index windows, Index rows, const Span& units,
                                          const View<Real>& out) {
  for (Index row = 0; row < rows; ++row)
    for (Index j = units.first; j < units.last; ++j) {
      Real sum = windows ? at(d, row).data[j] : Real(0);
      for (Index i = 1; i < windows; ++i) sum += at(d, i * rows + row).data[j];
      at(out, row).data[j] = sum;
    }
}

// Where there are no windows, a step has its rows once.
struct WholeSequence {
  static constexpr Index count = 1;
};

// The windows that go through a step of an item.
template <class Real>
struct StepWindows {
  Index count;
  View<const Real> other_dy;  // that of window i > 0 from row i·dy_rows on
  Index dy_rows;
  Gates<Real> dgates, dvectors, dh;  // the sums of all, from `dgate_row` on
  Index dgate_row;
};

template <class Real>
RNNFAST_INLINE const BackwardStep<Real>& window_of(const BackwardStep<Real>& s, const WholeSequence&, Index) {
  return s;
}

template <class Real>
BackwardStep<Real> window_of(const BackwardStep<Real>& s, const StepWindows<Real>& windows, Index window) {
  BackwardStep<Real> one = s;
  const Index row = window * s.rows;
  one.dgate_row += row;
  for (View<Real>& d : one.dstate) d = at(d, row);
  one.dreset_h = at(s.dreset_h, row);
  if (window > 0) one.dy = at(windows.other_dy, window * windows.dy_rows);
  return one;
}

// Makes a step one of the windows that go through it, and adds the window that ends with it.
template <class Real>
StepWindows<Real> enter_windows(const BackwardArgs<Real>& args, const WindowScratch<Real>& scratch, const Item& item,
                                Index t, BackwardStep<Real>& s) {
  const Problem& p = args.problem;
  const Windows& w = args.windows;
  const Index first = item.first * w.most;
  StepWindows<Real> windows = {.count = live_windows(w, p.T, t),
                               .other_dy = {scratch.zeros, 0},
                               .dy_rows = 0,
                               .dgates = s.dgates,
                               .dvectors = s.dvectors,
                               .dh = s.dh,
                               .dgate_row = s.dgate_row};
  for (int i = 0; i < p.cell->state_count; ++i) {
    s.dstate[i] = {scratch.dstate[i] + first * state_size(p, i), state_size(p, i)};
    if (t + 1 == p.T || (t + 1) % w.k1 == 0)
      add_window(s.dstate[i], windows.count, s.rows, elements_of<Real>(p, item, i));
  }
  s.dh_before = s.dstate[0];
  if (w.each_dy) s.dy = at(args.directions[0].dsteps[0], t * w.most * p.B + item.first), windows.dy_rows = p.B;
  if (w.each_dy || w.all_losses) windows.other_dy = s.dy;
  // Alone, a window's dgates are the sum. Joined members may still read those of the step after this one.
  if (windows.count > 1) {
    s.dgates = scratch.dgates, s.dvectors = scratch.dvectors, s.dh = scratch.dh;
    s.dgate_row = first + (item.joined ? t % 2 : 0) * w.most * p.B;
  }
  return windows;
}

// What remains of them after it: the sums of their dgates, dvectors and dh, and after the first step of all that of
// their gradients of the states.
template <class Real>
void leave_windows(const BackwardArgs<Real>& args, const StepWindows<Real>& windows, const Item& item, Index t,
                   const BackwardStep<Real>& s, const Gates<Real>& pairs) {
  const Problem& p = args.problem;
  const CellShape& cell = *p.cell;
  const auto sum = [&](const Gates<Real>& from, const Gates<Real>& to, int slots, const Blocks& blocks, Span span) {
    for (Index block = span.first; block < span.last && windows.count != 1; ++block) {
      const BlockWidth width = width_of<Real>(blocks, block);
      sum_windows(gates_at(from, width.unit, s.dgate_row, width.lanes, slots), windows.count,
                  s.rows * width.lanes * slots, gates_at(to, width.unit, windows.dgate_row, width.lanes, slots));
    }
  };
  const Blocks units = blocks_of<Real>(p.H);
  sum(s.dgates, windows.dgates, cell.slot_count, units, item.units);
  sum(s.dvectors, windows.dvectors, row_vectors(cell), units, item.units);
  if (is_projected(p)) sum(s.dh, windows.dh, 1, blocks_of<Real>(p.P), item.of_h);
  if (p.rounded && windows.count != 1)  // as dx reads them
    pair_neighbours(windows.dgates, units, item.units, cell.slot_count, 0, cell.slot_count,
                    RowRange{.first = windows.dgate_row, .count = s.rows}, pairs);
  if (t > 0) return;
  const BackwardDirection<Real>& direction = args.directions[0];
  for (int i = 0; i < cell.state_count; ++i)
    sum_states(i == 0 ? s.dh_before : s.dstate[i], windows.count, s.rows, elements_of<Real>(p, item, i),
               at(direction.dstate[i], item.first));
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
