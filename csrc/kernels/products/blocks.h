// Hidden units are cut into unit blocks of as many units as a vector has lanes.
#pragma once

#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

constexpr Index min_index(Index a, Index b) { return a < b ? a : b; }

constexpr Index max_index(Index a, Index b) { return a > b ? a : b; }

// n units cut into blocks. The last block may be narrower: an H of 20 should not cost as much as one of 32.
struct Blocks {
  Index full;   // blocks of W = Widest<Real>::lanes units
  int tail;     // lanes of the last, narrower block: W, W / 2, ..., 16 bytes; 0 if there is none
  int valid;    // units in it
  Index units;  // lanes in all blocks together
};

template <class Real>
constexpr Blocks blocks_of(Index n) {
  constexpr int W = Widest<Real>::lanes;
  const int valid = int(n % W);
  int tail = valid ? W : 0;
  while (tail > 16 / int(sizeof(Real)) && tail / 2 >= valid) tail /= 2;
  return {.full = n / W, .tail = tail, .valid = valid, .units = n / W * W + tail};
}

// Unit blocks [first, last).
struct Span {
  Index first, last;
};

constexpr Index count(const Blocks& blocks) { return blocks.full + (blocks.tail ? 1 : 0); }

constexpr Span all(const Blocks& blocks) { return {.first = 0, .last = count(blocks)}; }

// One block: its first unit, its lanes, and how many of them hold a unit.
struct BlockWidth {
  Index unit, lanes, valid;
};

template <class Real>
constexpr BlockWidth width_of(const Blocks& blocks, Index block) {
  constexpr Index W = Widest<Real>::lanes;
  if (block == blocks.full) return {.unit = block * W, .lanes = blocks.tail, .valid = blocks.valid};
  return {.unit = block * W, .lanes = W, .valid = W};
}

// ---- Heads ----------------------------------------------------------------------------------------------------------

// Where w_hh is block-diagonal, the units of a head read the h' of these alone, and some neighbours all that their
// heads read: `width` elements of h', the same number for all, from first_read() on. What lies among them but belongs
// to no head of a unit meets zeros.
struct Reach {
  Index head = 0;   // units of one; 0: all units read all
  Index width = 0;  // H where all read all
  Index last = 0;   // the last place to begin
  Index align = 1;  // places to begin are multiples of it
};

// Of every `units` units that follow a multiple of so many.
constexpr Reach reach_of(Index H, Index head, Index units) {
  if (head == H) return {.head = 0, .width = H};
  Index touched = (units + head - 2) / head + 1;
  if (head % units == 0) touched = 1;
  if (units % head == 0) touched = units / head;
  const Index width = min_index(touched * head, H);
  return {.head = head, .width = width, .last = H - width};
}

constexpr Index first_read(const Reach& reach, Index unit) {
  return reach.last ? min_index(unit / reach.head * reach.head, reach.last) / reach.align * reach.align : 0;
}

// Consecutive unit blocks of the same width.
struct BlockRange {
  Index block, blocks;  // first and how many
  Index unit;           // first unit
  int valid;            // units in the last of them
  int lanes = 0;        // of each
  int halvings = 0;     // of the widest vector, to get that many lanes
};

// The widths that a block can have, the widest vector and its halves down to 16 bytes: a cell's functions and the tiles
// are compiled for each.
constexpr int width_count = vector_bytes == 64 ? 3 : vector_bytes == 32 ? 2 : 1;

template <class Real, int halvings>
using Width = Simd<Real, (Widest<Real>::lanes >> halvings)>;

template <class Real>
RNNFAST_INLINE BlockRange tail_of(const Blocks& blocks) {
  constexpr int W = Widest<Real>::lanes;
  int halvings = 0;
  while (W >> halvings > blocks.tail) ++halvings;
  return {.block = blocks.full,
          .blocks = 1,
          .unit = blocks.full * W,
          .valid = blocks.valid,
          .lanes = blocks.tail,
          .halvings = halvings};
}

// f(BlockRange) for the blocks of a span: in groups of `group` and smaller powers of two while they are full, then the
// tail. The first groups come in descending order if `backwards`.
template <class Real, class F>
RNNFAST_INLINE void for_each_range(const Blocks& blocks, Span span, int group, bool backwards, F&& f) {
  constexpr int W = Widest<Real>::lanes;
  Index block = span.first;
  const Index full = min_index(span.last, blocks.full);
  for (int n = group; block < full; n /= 2) {
    const Index groups = (full - block) / n;
    for (Index i = 0; i < groups; ++i) {
      const Index at = block + (backwards ? groups - 1 - i : i) * n;
      f(BlockRange{.block = at, .blocks = n, .unit = at * W, .valid = W, .lanes = W, .halvings = 0});
    }
    block += groups * n;
  }
  if (span.last > blocks.full && blocks.tail) f(tail_of<Real>(blocks));
}

// f(BlockRange) for all full blocks of the span at once, and for its tail.
template <class Real, class F>
RNNFAST_INLINE void for_each_width(const Blocks& blocks, Span span, F&& f) {
  constexpr int W = Widest<Real>::lanes;
  const Index full = min_index(span.last, blocks.full) - span.first;
  if (full > 0)
    f(BlockRange{.block = span.first, .blocks = full, .unit = span.first * W, .valid = W, .lanes = W, .halvings = 0});
  if (span.last > blocks.full && blocks.tail) f(tail_of<Real>(blocks));
}

// f<S>() with the vectors that the blocks of a range have.
template <class Real, class F>
RNNFAST_INLINE auto with_width(const BlockRange& range, F&& f) {
  if constexpr (width_count > 1)
    if (range.halvings == 1) return f.template operator()<Width<Real, 1>>();
  if constexpr (width_count > 2)
    if (range.halvings == 2) return f.template operator()<Width<Real, 2>>();
  return f.template operator()<Width<Real, 0>>();
}

// f<S>(BlockRange) for one block of the span after the other.
template <class Real, class F>
RNNFAST_INLINE void for_each_block(const Blocks& blocks, Span span, F&& f) {
  for_each_range<Real>(blocks, span, 1, false, [&](const BlockRange& range) {
    with_width<Real>(range, [&]<class S> { f.template operator()<S>(range); });
  });
}

// f<S>(i) for the vectors of n elements. They are slots of a row: n is a multiple of the narrowest vector's lanes.
template <class Real, class F>
RNNFAST_INLINE void for_each_vector(Index n, F&& f) {
  using Narrow = Width<Real, width_count - 1>;
  Index i = 0;
  for (; i + Widest<Real>::lanes <= n; i += Widest<Real>::lanes) f.template operator()<Widest<Real>>(i);
  for (; i < n; i += Narrow::lanes) f.template operator()<Narrow>(i);
}

template <class Real>
RNNFAST_INLINE void copy_vectors(const Real* from, Index n, Real* to) {
  for_each_vector<Real>(n, [&]<class S>(Index i) { S::store(to + i, S::load(from + i)); });
}

template <class Real>
RNNFAST_INLINE void add_vectors(const Real* from, Index n, Real* to) {
  for_each_vector<Real>(n, [&]<class S>(Index i) { S::store(to + i, S::load(to + i) + S::load(from + i)); });
}

// The bits of a vector's units, in a row of them.
template <class S>
RNNFAST_INLINE unsigned bits_at(const unsigned char* row, Index unit) {
  const unsigned char* const at = row + unit / 8;
  return S::lanes > 8 ? at[0] | unsigned(at[1]) << 8 : unsigned(at[0]) >> unit % 8;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
