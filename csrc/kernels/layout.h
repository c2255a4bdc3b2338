// How memory is laid out in scratch and tape, and how work is shared out among the members of a team.
#pragma once

#include <cstddef>

#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// ---- Memory ---------------------------------------------------------------------------------------------------------

// Hands out pieces of one allocation, or with a null base only counts.
template <class Real>
struct Arena {
  Real* base;
  Index used;
};

template <class Real>
RNNFAST_INLINE Real* take(Arena<Real>& arena, Index n) {
  constexpr Index line = 64 / Index(sizeof(Real));
  Real* taken = arena.base ? arena.base + arena.used : nullptr;
  arena.used += (n + line - 1) / line * line;
  return taken;
}

// Slots of some rows: [unit block][row][slot x lanes].
template <class Real>
struct Gates {
  Real* data;
  Index rows;
};

constexpr Index gates_size(int slots, Index rows, const Blocks& units) { return rows * slots * units.units; }

// Whether rows of a cell's slots are normalised before anything else is done with them.
constexpr bool is_normalised(const CellShape& cell) { return cell.stage_count > 0; }

// The vectors of units whose gradients each row adds to: else they are summed up as rows come.
constexpr int row_vectors(const CellShape& cell) { return is_normalised(cell) ? 0 : cell.vector_count; }

// Of a row that is normalised, the means and what is multiplied by; so many that each row's begin a cache line.
constexpr Index moments_of_row = 16;

// What forward keeps of some rows, the slots, and where rows are normalised the values behind them and the moments.
constexpr Index kept_size(const CellShape& cell, Index rows, const Blocks& units) {
  return gates_size(cell.slot_count + cell.value_count, rows, units) +
         (is_normalised(cell) ? rows * moments_of_row : 0);
}

// The slots of a row of the unit block that begins with `unit` and has so many lanes.
template <class Real>
RNNFAST_INLINE Real* gates_at(const Gates<Real>& g, Index unit, Index row, Index lanes, int slots) {
  return g.data + (unit * g.rows + row * lanes) * slots;
}

template <class Real>
RNNFAST_INLINE View<Real> at(const View<Real>& view, Index row) {
  return {view.data + row * view.stride, view.stride};
}

template <class Real>
RNNFAST_INLINE View<const Real> read_only(const View<Real>& view) {
  return {view.data, view.stride};
}

template <class Real>
RNNFAST_INLINE View<const Real> or_zeros(View<const Real> view, const Real* zeros) {
  return view.data ? view : View<const Real>{zeros, 0};
}

// Rows [first, first + count).
struct RowRange {
  Index first, count;
};

// Some elements of rows; all at once where nothing lies between them.
template <class Real>
RNNFAST_INLINE void copy_rows(const View<const Real>& from, const Span& elements, Index rows, const View<Real>& to) {
  Index n = elements.last - elements.first;
  if (from.stride == n && to.stride == n) n *= rows, rows = 1;
  for (Index row = 0; row < rows; ++row)
    __builtin_memcpy(at(to, row).data + elements.first, at(from, row).data + elements.first,
                     std::size_t(n) * sizeof(Real));
}

// ---- Shares of a team -----------------------------------------------------------------------------------------------

constexpr Index share(Index n, Index part, Index parts) { return n * part / parts; }

// The unit blocks that one member packs, unpacks or sums, over both directions: f(direction, span).
template <class F>
RNNFAST_INLINE void for_my_blocks(Index blocks, Index directions, const Team& team, F&& f) {
  const Index first = share(blocks * directions, team.rank, team.size);
  const Index last = share(blocks * directions, team.rank + 1, team.size);
  for (Index d = 0; d < directions; ++d) {
    const Index from = first > d * blocks ? first - d * blocks : 0, to = min_index(last - d * blocks, blocks);
    if (from < to) f(int(d), Span{.first = from, .last = to});
  }
}

// A member's rows of a table, in pieces that stay in the cache while unit block after unit block is computed.
template <class F>
RNNFAST_INLINE void for_my_rows(Index rows, const Team& team, F&& f) {
  constexpr Index at_once = 256;
  const Index last = share(rows, team.rank + 1, team.size);
  for (Index first = share(rows, team.rank, team.size); first < last; first += at_once) {
    if (team.interrupted(team)) return;
    f(RowRange{.first = first, .count = min_index(at_once, last - first)});
  }
}

// Rows that are multiplied by all of w before the next: their results stay in the cache, whose lines they share badly,
// being a power of two apart.
constexpr Index rows_at_once = 96;

// Rows times vectors that take longer than to ask whether the call was interrupted.
constexpr Index least_asked = 64 * 64;

// Whether to leave out what remains of a pass: the call was interrupted. It is asked before a part in which so many
// rows meet K vectors each. A pass over many of them can take seconds; few take less time than asking.
RNNFAST_INLINE bool skips(const Team& team, Index rows, Index K = 64) {
  return rows * K >= least_asked && team.interrupted(team);
}

// The same of blocks of a matrix, so many numbers each, which a member packs or unpacks: in pieces, before which it is
// asked. f(direction, span) for each.
template <class F>
RNNFAST_INLINE void for_my_pieces(Index blocks, Index directions, Index numbers, const Team& team, F&& f) {
  const Index at_once = max_index((1 << 20) / max_index(numbers, 1), 1);
  for_my_blocks(blocks, directions, team, [&](int d, Span span) {
    for (Index first = span.first; first < span.last; first += at_once) {
      if (first > span.first && team.interrupted(team)) return;
      f(d, Span{.first = first, .last = min_index(first + at_once, span.last)});
    }
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
