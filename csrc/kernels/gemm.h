// The one microkernel. Every product of the library is
//
//   out[m, n] = init[m, n] + sum over k of a[m, k] * panel[k, n],
//
// M rows times N vectors at a time. A sum is a chain of fused multiply-adds in ascending k, which after about
// `chain_length` of them is added to what is already there: by the sizes alone, never by who computes it, so that no
// tile shape, batch size or number of threads changes a bit.
//
// Hidden units are cut into unit blocks of as many units as a vector has lanes. A panel holds, for each k, the vectors
// of all gates of one unit block side by side, so that the registers of one tile hold i, f, g, o of the same units
// and the cell's pointwise part can follow at once, as the tile's epilogue.
#pragma once

#include "vec.h"

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
  return {n / W, tail, valid, n / W * W + tail};
}

// Unit blocks [first, last).
struct Span {
  Index first, last;
};

constexpr Index count(const Blocks& blocks) { return blocks.full + (blocks.tail ? 1 : 0); }

constexpr Span all(const Blocks& blocks) { return {0, count(blocks)}; }

// One block: its first unit, its lanes, and how many of them hold a unit.
struct BlockWidth {
  Index unit, lanes, valid;
};

template <class Real>
constexpr BlockWidth width_of(const Blocks& blocks, Index block) {
  constexpr Index W = Widest<Real>::lanes;
  if (block == blocks.full) return {block * W, blocks.tail, blocks.valid};
  return {block * W, W, W};
}

// Consecutive unit blocks of the same width.
struct BlockRange {
  Index block, blocks;  // first and how many
  Index unit;           // first unit
  int valid;            // units in the last of them
};

// Calls f(Simd, BlockRange) for the blocks of a span: in groups of `group` and smaller powers of two while they are
// full, then the tail. The first groups come in descending order if `backwards`.
template <class Real, int group, class F>
RNNFAST_INLINE void for_each_block(const Blocks& blocks, Span span, F&& f, bool backwards = false) {
  using Wide = Widest<Real>;
  Index block = span.first;
  const Index full = min_index(span.last, blocks.full);
  const auto groups_of = [&]<int n>() __attribute__((always_inline)) {
    if constexpr (n <= group) {
      const Index groups = full > block ? (full - block) / n : 0;
      for (Index i = 0; i < groups; ++i) {
        const Index at = block + (backwards ? groups - 1 - i : i) * n;
        f.template operator()<Wide, n>({at, n, at * Wide::lanes, Wide::lanes});
      }
      block += groups * n;
    }
  };
  groups_of.template operator()<8>();
  groups_of.template operator()<4>();
  groups_of.template operator()<2>();
  groups_of.template operator()<1>();
  if (span.last <= blocks.full || !blocks.tail) return;
  const BlockRange tail{blocks.full, 1, blocks.full * Wide::lanes, blocks.valid};
  if (blocks.tail == Wide::lanes) return f.template operator()<Wide, 1>(tail);
  if constexpr (vector_bytes >= 32)
    if (blocks.tail == Wide::lanes / 2) return f.template operator()<Simd<Real, Wide::lanes / 2>, 1>(tail);
  if constexpr (vector_bytes >= 64)
    if (blocks.tail == Wide::lanes / 4) return f.template operator()<Simd<Real, Wide::lanes / 4>, 1>(tail);
}

// sum over blocks b < `blocks` and k < K of a[m, b, k] * panel[b, k, n].
template <class Real>
struct Operand {
  const Real* a;  // strides of rows, of k and of blocks of k
  Index a_row, a_k, a_block;
  const Real* panel;  // strides of unit blocks, of k and of blocks of k; the gates of a unit block are contiguous
  Index panel_unit, panel_k, panel_block;
  Index K, blocks;
};

// What follows a panel in memory and is read after it. The rows of a tile column ask for a share of it each, evenly
// over their k: asked for all at once, it would hold up the multiply-adds.
template <class Real>
struct Ahead {
  const Real* data;
  Index row, k;  // strides; 0: nothing is asked for
};

// A tile of M rows by NB unit blocks of some vectors each, their `slots`. Where a product has fewer gates than there
// are slots, the first operand fills the last ones and the second operand the first ones: the GRU's n keeps its
// recurrent part apart from its input part.
template <class Real>
struct Tile {
  Operand<Real> first, second;
  const Real* init;  // strides of rows and of unit blocks; 0 repeats a row; null: zeros
  Index init_row, init_unit;
  Real* out;
  Index out_row, out_unit;
  int valid;       // lanes of the last unit block that exist in memory
  bool far;        // the panels come from beyond the second cache level
  bool backwards;  // the next panel is the one before
  bool add;        // to what is in out; tile_rows sets this and the next for its chains
  Ahead<Real> ahead;
};

template <class Real>
RNNFAST_INLINE Operand<Real> from_row(Operand<Real> o, Index row) {
  o.a += row * o.a_row;
  return o;
}

// A chain ends after about this many k (at most one and a half times as many), for two reasons. A single one over 1,000
// k costs float32 its sixth digit; and the part of a panel that all rows of a column pass over before the next, 32 KB
// of 4 vectors, stays in the first cache level, since the second one cannot feed the multiply-adds on every machine.
constexpr Index chain_length = 128;

constexpr Index chain_count(Index K) { return max_index((K + chain_length / 2) / chain_length, 1); }

template <class Real>
RNNFAST_INLINE Operand<Real> chain_of(Operand<Real> o, Index chain, Index chains) {
  if (chains <= 1) return o;
  if (o.blocks > 1) {
    const Index length = (o.blocks + chains - 1) / chains, from = min_index(chain * length, o.blocks);
    o.a += from * o.a_block, o.panel += from * o.panel_block;
    o.blocks = min_index(length, o.blocks - from);
  } else {
    const Index length = (o.K + chains - 1) / chains, from = min_index(chain * length, o.K);
    o.a += from * o.a_k, o.panel += from * o.panel_k;
    o.K = min_index(length, o.K - from);
  }
  return o;
}

// The accumulators stay in registers only because every loop over them is unrolled: one run-time index and they live in
// memory, three times slower.
template <class S, int M, int NB, int slots, int gates, int shift, bool prefetch>
RNNFAST_INLINE void accumulate_blocks(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& o,
                                      [[maybe_unused]] Ahead<typename S::Real> ahead) {
  using Real = typename S::Real;
  using V = typename S::V;
  for (Index block = 0; block < o.blocks; ++block) {
    const Real* a = o.a + block * o.a_block;
    const Real* w = o.panel + block * o.panel_block;
    for (Index k = 0; k < o.K; ++k, a += o.a_k, w += o.panel_k) {
      if constexpr (prefetch) __builtin_prefetch(ahead.data, 0, 2), ahead.data += ahead.k;
      // The shorter side is held in registers, the longer one passes by.
      constexpr int N = NB * gates, outer = M > N ? M : N, inner = M > N ? N : M;
      const auto row = [&](int m) { return S::broadcast(a[m * o.a_row]); };
      const auto vector = [&](int n) { return S::load(w + n / gates * o.panel_unit + n % gates * S::lanes); };
      V held[inner];
#pragma GCC unroll 12
      for (int i = 0; i < inner; ++i) held[i] = M > N ? vector(i) : row(i);
#pragma GCC unroll 12
      for (int i = 0; i < outer; ++i) {
        const V passing = M > N ? row(i) : vector(i);
#pragma GCC unroll 12
        for (int j = 0; j < inner; ++j) {
          const int m = M > N ? i : j, n = M > N ? j : i;
          V& sum = acc[m][n / gates * slots + shift + n % gates];
          sum = fma(passing, held[j], sum);
        }
      }
    }
  }
}

template <class S, int M, int NB, int slots, int gates, int shift>
RNNFAST_INLINE void accumulate(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& o,
                               const Ahead<typename S::Real>& ahead) {
  if (ahead.k > 0)
    accumulate_blocks<S, M, NB, slots, gates, shift, true>(acc, o, ahead);
  else
    accumulate_blocks<S, M, NB, slots, gates, shift, false>(acc, o, ahead);
}

template <class S, int M, int NB, int slots, int gates>
__attribute__((noinline)) void tile(const Tile<typename S::Real>& t, Index row) {
  using V = typename S::V;
  using Real = typename S::Real;
  V acc[M][NB * slots];
  // Only rows of single vectors end in the caller's memory; those of several slots are padded to full width.
  constexpr bool ragged = slots == 1 && NB == 1;
  const Real* init = t.init + row * t.init_row;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 12
    for (int n = 0; n < NB * slots; ++n) {
      const Real* from = init + m * t.init_row + n / slots * t.init_unit + n % slots * S::lanes;
      acc[m][n] = !t.init ? V{} : ragged ? load_lanes<S>(from, t.valid) : S::load(from);
    }
  }
  const Ahead<Real> ahead = {t.ahead.data + row * t.ahead.row, t.ahead.row, t.ahead.k};
  constexpr int shift = slots - gates;
  if (shift > 0) accumulate<S, M, NB, slots, gates, shift>(acc, from_row(t.first, row), ahead);
  for (int i = shift > 0 ? 1 : 0; i < 2; ++i)
    accumulate<S, M, NB, slots, gates, 0>(acc, from_row(i == 0 ? t.first : t.second, row), ahead);
  Real* out = t.out + row * t.out_row;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 12
    for (int n = 0; n < NB * slots; ++n) {
      Real* to = out + m * t.out_row + n / slots * t.out_unit + n % slots * S::lanes;
      if (t.add) acc[m][n] = acc[m][n] + (ragged ? load_lanes<S>(to, t.valid) : S::load(to));
      if (ragged)
        store_lanes<S>(to, acc[m][n], t.valid);
      else
        S::store(to, acc[m][n]);
    }
  }
}

// Rows of one tile by its vectors N. With 32 registers 6 x 4 and 8 x 3 accumulators leave 8 for the panel and the
// broadcasts and hide the latency of the multiply-add (4 cycles on 2 ports); with 16, 3 x 4 and 4 x 3 fill 12 and 4 x 4
// would spill. A single vector needs as many rows to hide it. More than 4 vectors serve a single row only, to have 8
// chains in flight.
constexpr int most_rows(int N) {
  if (N > 4) return 1;
  if (N == 1) return 12;
  if (vector_registers == 32) return N == 3 ? 8 : 6;
  return N == 4 ? 3 : 4;
}

// Unit blocks taken at once, by the vectors of one of them; a power of two, so that the rest of a row can follow in
// halves.
constexpr int unit_group(int slots, bool one_row) { return (one_row ? 8 : 4) / (slots == 3 ? 4 : slots); }

struct NoEpilogue {
  RNNFAST_INLINE void operator()(Index, Index) const {}
};

template <class S, int NB, int slots, int gates, int... i>
RNNFAST_INLINE void tile_of_rows(const Tile<typename S::Real>& t, Index row, Index M, Lanes<i...>) {
  static constexpr void (*tiles[])(const Tile<typename S::Real>&, Index) = {tile<S, i + 1, NB, slots, gates>...};
  tiles[M - 1](t, row);
}

// The tile of M <= most rows.
template <class S, int most, int NB, int slots, int gates>
RNNFAST_INLINE void tile_of(const Tile<typename S::Real>& t, Index row, Index M) {
  tile_of_rows<S, NB, slots, gates>(t, row, M, typename LanesTo<most>::type());
}

// `rows` rows, at most `most` of them in a tile.
template <int NB, class Real>
RNNFAST_INLINE Ahead<Real> ahead_of(const Operand<Real>& o, Index rows, Index most) {
  const Index length = NB * o.blocks * o.K * o.panel_k, row = length / rows;
  return {o.panel + length, row, row * most / max_index(o.blocks * o.K, 1)};
}

// All rows of a tile column, cut into tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
// After each tile epilogue(row, M) runs, while the tile is still in the first cache level.
template <class S, int NB, int slots, int gates, class Epilogue>
RNNFAST_INLINE void tile_column(const Tile<typename S::Real>& t, Index rows, Epilogue&& epilogue) {
  constexpr int most = most_rows(NB * slots);
  Index tiles = (rows + most - 1) / most;
  for (Index row = 0; tiles > 0; --tiles) {
    const Index M = (rows - row + tiles - 1) / tiles;
    tile_of<S, most, NB, slots, gates>(t, row, M);
    epilogue(row, M);
    row += M;
  }
}

// A tile column, chain by chain. The first chain of an operand goes on from what is there, in the same registers where
// the first operand is a single chain; the others start from zero and are added.
template <class S, int NB, int slots, int gates, class Epilogue>
RNNFAST_INLINE void tile_rows(const Tile<typename S::Real>& t, Index rows, Epilogue&& epilogue) {
  const Index first = chain_count(t.first.blocks * t.first.K);
  const Index second = chain_count(t.second.blocks * t.second.K);
  const Index start = first > 1 ? first : 0;  // of the second operand
  const Index steps = t.second.blocks ? start + second : first;
  for (Index step = 0; step < steps; ++step) {
    Tile<typename S::Real> part = t;
    part.first = step < first ? chain_of(t.first, step, first) : Operand<typename S::Real>{};
    part.second = step >= start ? chain_of(t.second, step - start, second) : Operand<typename S::Real>{};
    part.add = step > 0 && step != start;
    if (part.add)
      part.init = nullptr, part.init_row = 0, part.init_unit = 0;
    else if (step > 0)
      part.init = t.out, part.init_row = t.out_row, part.init_unit = t.out_unit;
    if (t.far) part.ahead = ahead_of<NB>(part.second.blocks ? part.second : part.first, rows, most_rows(NB * slots));
    if (t.far && t.backwards && step + 1 == steps) {
      const Operand<typename S::Real>& whole = t.second.blocks ? t.second : t.first;
      part.ahead.data -= 2 * NB * whole.blocks * whole.K * whole.panel_k;
    }
    if (step + 1 < steps)
      tile_column<S, NB, slots, gates>(part, rows, NoEpilogue());
    else
      tile_column<S, NB, slots, gates>(part, rows, epilogue);
  }
}

// Calls f with the unit grouping that fits: a single row takes more unit blocks at once.
template <class Real, int slots, class F>
RNNFAST_INLINE void for_each_unit_block(const Blocks& blocks, Span span, Index rows, F&& f, bool backwards = false) {
  if (rows == 1)
    for_each_block<Real, unit_group(slots, true)>(blocks, span, f, backwards);
  else
    for_each_block<Real, unit_group(slots, false)>(blocks, span, f, backwards);
}

// Whether a pass over weights goes through them backwards, as every second one does: it begins with those that are
// still in the cache, which would otherwise be driven out just before they are read again.
constexpr bool turns_back(Index pass) { return pass % 2 != 0; }

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
