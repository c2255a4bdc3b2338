// What forward and backward know alike of a sequence: its order in time, and the state before a step.
#pragma once

#include <cstddef>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/time/chunks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Which step comes before which in a direction.
struct TimeOrder {
  Steps run;
  bool reverse;
};

constexpr TimeOrder time_order(const Problem& p, int direction) {
  return {.run = p.run, .reverse = p.reverse || direction == 1};
}

constexpr Index step_before(const TimeOrder& s, Index t) { return s.reverse ? t + 1 : t - 1; }

// The chunk that the run takes as its i-th, or from its end in backward, and its steps that belong to the run.
struct ChunkSteps {
  Index chunk, first, last;
};

constexpr Index run_chunks(const Problem& p) { return chunk_of(p, p.run.last - 1) - chunk_of(p, p.run.first) + 1; }

constexpr ChunkSteps run_chunk(const Problem& p, Index i, bool descending) {
  const Index chunk = descending ? chunk_of(p, p.run.last - 1) - i : chunk_of(p, p.run.first) + i;
  return {.chunk = chunk,
          .first = max_index(chunk_start(p, chunk), p.run.first),
          .last = min_index(chunk_start(p, chunk + 1), p.run.last)};
}

// Rows [first, first + rows) of the batch at a step, less those whose sequences have ended.
constexpr Index rows_of_item(const Problem& p, const Item& item, Index t) {
  return max_index(min_index(rows_at(p, t) - item.first, item.rows), 0);
}

// The elements of a state that are an item's, those of its last block that exist.
template <class Real>
constexpr Span elements_of(const Problem& p, const Item& item, int state) {
  constexpr Index W = Widest<Real>::lanes;
  const Span& blocks = state == 0 ? item.of_h : item.units;
  return {.first = blocks.first * W, .last = min_index(blocks.last * W, state_size(p, state))};
}

// Where one of the states before a step is found: of h, arrays of P elements.
template <class Real>
struct StateBefore {
  View<const Real> initial;   // before the first step of the sequence, [B,H]
  View<const Real> start;     // where a row starts anew, [B,H]
  View<const Real> sequence;  // after each step, [T·B,H]; or of the last step alone, [B,H]
  bool every_step;
  View<Real> mixed;  // [B,H], for a step that finds its rows in several of these; may be the sequence of the last step
};

// Where backward finds the i-th one.
template <class Real>
StateBefore<Real> place_before(const BackwardDirection<Real>& direction, int i, const Real* zeros,
                               const View<Real>& mixed = {}) {
  const View<const Real> after = i == 0 ? direction.y : direction.tape.states[i];
  return {.initial = or_zeros(direction.initial[i], zeros),
          .start = or_zeros(direction.start[i], zeros),
          .sequence = after,
          .every_step = true,
          .mixed = mixed};
}

// The rows before step t that do not start anew.
template <class Real>
RNNFAST_INLINE View<const Real> carried_before(const Problem& p, int direction, const StateBefore<Real>& state,
                                               Index t) {
  const TimeOrder order = time_order(p, direction);
  const Index before = step_before(order, t);
  const bool is_first =
      state.every_step ? before < 0 || before >= p.T : t == (order.reverse ? order.run.last - 1 : order.run.first);
  if (is_first) return state.initial;
  return state.every_step ? at(state.sequence, row_of(p, before)) : state.sequence;
}

// f(rows of the state before step t, RowRange of the batch) for each run of them that lies in one place.
template <class Real, class F>
void for_each_piece(const Problem& p, int direction, const StateBefore<Real>& state, Index t, const RowRange& rows,
                    F&& f) {
  const View<const Real> carried = carried_before(p, direction, state, t);
  const Index last = rows.first + rows.count;
  const unsigned char* const starts = p.starts[direction] ? p.starts[direction] + row_of(p, t) : nullptr;
  for (Index row = rows.first, next; row < last; row = next) {
    next = starts ? row + 1 : last;
    while (next < last && starts[next] == starts[row]) ++next;
    f(at(starts && starts[row] ? state.start : carried, row), RowRange{.first = row, .count = next - row});
  }
}

// Whether a step of a direction finds the rows before it in several places.
inline bool mixes_rows(const Problem& p, int direction, Index t) {
  const unsigned char* const starts = p.starts[direction];
  if (!starts) return false;
  for (Index row = row_of(p, t) + 1; row < row_of(p, t + 1); ++row)
    if (starts[row] != starts[row - 1]) return true;
  return false;
}

// As `state_before`, where some rows may start anew.
template <class Real>
View<const Real> pieces_before(const Problem& p, const StateBefore<Real>& state, const Item& item, Index t,
                               const Span& elements, bool& mixes) {
  const RowRange rows = {.first = item.first, .count = rows_of_item(p, item, t)};
  View<const Real> all = {};
  Index pieces = 0;
  for_each_piece(p, item.direction, state, t, rows, [&](View<const Real> piece, const RowRange&) {
    all = piece;
    ++pieces;
  });
  if (pieces <= 1) return all;
  mixes = true;
  for_each_piece(p, item.direction, state, t, rows, [&](View<const Real> piece, const RowRange& range) {
    for (Index row = 0; row < range.count; ++row)
      __builtin_memmove(at(state.mixed, range.first + row).data + elements.first, at(piece, row).data + elements.first,
                        std::size_t(elements.last - elements.first) * sizeof(Real));
  });
  return read_only(at(state.mixed, item.first));
}

// The rows of an item before step t. `mixes` becomes true if they had to be brought together, in some elements.
template <class Real>
RNNFAST_INLINE View<const Real> state_before(const Problem& p, const StateBefore<Real>& state, const Item& item,
                                             Index t, const Span& elements, bool& mixes) {
  if (!p.starts[item.direction]) return at(carried_before(p, item.direction, state, t), item.first);
  return pieces_before(p, state, item, t, elements, mixes);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
