// The one microkernel. Every product of the library is
//
//   out[m, n] = init[m, n] + sum over k of a[m, k] * panel[k, n],
//
// M rows times N vectors at a time. A sum is a chain of fused multiply-adds in ascending k, which after about
// `chain_length` of them is added to what is already there: by the sizes alone, never by who computes it, so that no
// tile shape, batch size or number of threads changes a bit.
//
// A panel holds, for each k, the vectors of all gates of one unit block side by side, so that the registers of one tile
// hold i, f, g, o of the same units and the cell's pointwise part can follow at once, as the tile's epilogue.
#pragma once

#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Rows of a [M,K] by panels [unit block][k], whose k are `panel_k` apart; of pairs, [unit block][word], where also rows
// of a may be of words.
template <class Real>
RNNFAST_INLINE Operand<Real> rows_by_panels(const View<const Real>& a, const Real* panel, Index K, Index panel_k,
                                            Factors factors = Factors::numbers) {
  const bool by_pairs = factors == Factors::by_pairs;
  if (factors == Factors::pairs) K = (K + 1) / 2;
  return {.a = a.data,
          .a_row = a.stride,
          .a_k = 1,
          .a_block = 0,
          .panel = panel,
          .panel_unit = (by_pairs ? (K + 1) / 2 : K) * panel_k,
          .panel_k = panel_k,
          .panel_block = 0,
          .K = K,
          .blocks = 1,
          .pairs = by_pairs,
          .odd = false};
}

template <class Real>
RNNFAST_INLINE Operand<Real> from_row(Operand<Real> o, Index row) {
  o.a += row * o.a_row;
  return o;
}

// Where the tile of NB unit blocks that begins with a row asks from.
template <int NB, class Real>
RNNFAST_INLINE const Real* place_of_row(const Ahead<Real>& a, Index row) {
  if (a.k == 0) return nullptr;
  const Index place = row * a.row, block = NB > 1 ? place / a.length : 0;
  return a.data + block * a.unit + (place - block * a.length);
}

// A chain ends after about this many k (at most one and a half times as many), for two reasons. A single one over 1,000
// k costs float32 its sixth digit; and the part of a panel that all rows of a column pass over before the next, 32 KB
// of 4 vectors, stays in the first cache level, since the second one cannot feed the multiply-adds on every machine.
constexpr Index chain_length = 128;

constexpr Index chain_count(Index K) { return max_index((K + chain_length / 2) / chain_length, 1); }

// How an operand is cut into chains; one that is not has no need of their length.
struct Chains {
  Index count, length;

  template <class Real>
  RNNFAST_INLINE explicit Chains(const Operand<Real>& o) : count(chain_count(o.blocks * o.K)), length(0) {
    if (count > 1) length = ((o.blocks > 1 ? o.blocks : o.K) + count - 1) / count;
  }
};

// Leaves one chain of an operand.
template <class Real>
RNNFAST_INLINE void take_chain(Operand<Real>& o, const Chains& chains, Index chain) {
  if (chains.count <= 1) return;
  const Index place = chain * chains.length;
  if (o.blocks > 1) {
    const Index from = min_index(place, o.blocks);
    o.a += from * o.a_block, o.panel += from * o.panel_block;
    o.blocks = min_index(chains.length, o.blocks - from);
  } else {
    const Index from = min_index(place, o.K);
    o.a += from * o.a_k, o.panel += (o.pairs ? from / 2 : from) * o.panel_k;
    o.odd = o.pairs && from % 2 != 0;
    o.K = min_index(chains.length, o.K - from);
  }
}

// What counts of a word of a panel.
enum class Word { number, first_of_pair, second_of_pair, pair };

#if defined(__AVX512BF16__)
constexpr bool multiplies_pairs = true;
#if defined(__AVX512F__)
RNNFAST_INLINE F16 add_pairs(F16 sum, F16 a, F16 w) { return _mm512_dpbf16_ps(sum, __m512bh(a), __m512bh(w)); }
#endif
RNNFAST_INLINE F8 add_pairs(F8 sum, F8 a, F8 w) { return _mm256_dpbf16_ps(sum, __m256bh(a), __m256bh(w)); }
RNNFAST_INLINE F4 add_pairs(F4 sum, F4 a, F4 w) { return _mm_dpbf16_ps(sum, __m128bh(a), __m128bh(w)); }
#else
constexpr bool multiplies_pairs = false;
#endif

// Of the lanes whose bit is set, the lowest bit's first: load_some leaves the others zero and their memory untouched,
// fma_some leaves them as they are in `sum`.
#if defined(__AVX512F__)
constexpr bool has_masks = true;
RNNFAST_INLINE F16 load_some(const float* p, unsigned bits) { return _mm512_maskz_loadu_ps(__mmask16(bits), p); }
RNNFAST_INLINE D8 load_some(const double* p, unsigned bits) { return _mm512_maskz_loadu_pd(__mmask8(bits), p); }
RNNFAST_INLINE F16 fma_some(F16 a, F16 b, F16 sum, unsigned bits) {
  return _mm512_mask3_fmadd_ps(a, b, sum, __mmask16(bits));
}
RNNFAST_INLINE D8 fma_some(D8 a, D8 b, D8 sum, unsigned bits) {
  return _mm512_mask3_fmadd_pd(a, b, sum, __mmask8(bits));
}
#else
constexpr bool has_masks = false;
#endif

template <class S, Word word>
RNNFAST_INLINE typename S::V number_of(typename S::V words) {
  if constexpr (word == Word::number || word == Word::pair) return words;
  const auto bits = reinterpret_cast<typename S::Bits>(words);
  return reinterpret_cast<typename S::V>(word == Word::first_of_pair ? bits << 16 : bits & ~0xffff);
}

template <class S>
RNNFAST_INLINE typename S::V broadcast_word(const typename S::Real* word) {
  typename BitsOf<typename S::Real>::type bits;
  __builtin_memcpy(&bits, word, sizeof(bits));
  return reinterpret_cast<typename S::V>(typename S::Bits{} + bits);
}

// sum + the products of the two numbers in each word, as processors have it: the second first, each sum rounded.
template <class S>
RNNFAST_INLINE typename S::V multiply_add_pairs(typename S::V a, typename S::V w, typename S::V sum) {
  if constexpr (multiplies_pairs) return add_pairs(sum, a, w);
  sum = fma(number_of<S, Word::second_of_pair>(a), number_of<S, Word::second_of_pair>(w), sum);
  return fma(number_of<S, Word::first_of_pair>(a), number_of<S, Word::first_of_pair>(w), sum);
}

// A place in each row of a tile, by one pointer for three rows: one for each, and the compiler runs out of registers.
template <class Real, int M>
struct Rows {
  const Real* data[(M + 2) / 3];

  RNNFAST_INLINE Rows(const Real* a, Index row) {
#pragma GCC unroll 4
    for (int i = 0; i < (M + 2) / 3; ++i) {
      data[i] = a + 3 * i * row;
      asm("" : "+r"(data[i]));  // or it finds out that they are one
    }
  }
  RNNFAST_INLINE void operator+=(Index k) {
#pragma GCC unroll 4
    for (int i = 0; i < (M + 2) / 3; ++i) data[i] += k;
  }
};

// The products of one k. The accumulators stay in registers only because every loop over them is unrolled: one run-time
// index and they live in memory, three times slower.
template <class S, int M, int NB, int slots, int gates, int shift, Word word, bool masked = false>
RNNFAST_INLINE void accumulate_k(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& o,
                                 const Rows<typename S::Real, M>& a, const typename S::Real* w) {
  using V = typename S::V;
  // The shorter side is held in registers, the longer one passes by.
  constexpr int N = NB * gates, outer = M > N ? M : N, inner = M > N ? N : M;
  const auto row = [&](int m) {
    const typename S::Real* const at = a.data[m / 3] + m % 3 * o.a_row;
    return word == Word::pair ? broadcast_word<S>(at) : S::broadcast(*at);
  };
  const auto vector = [&](int n) {
    const typename S::Real* const at = w + n / gates * o.panel_unit + n % gates * S::lanes;
    if constexpr (masked) return load_some(at, o.lanes);
    return number_of<S, word>(S::load(at));
  };
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
      if constexpr (word == Word::pair)
        sum = multiply_add_pairs<S>(passing, held[j], sum);
      else if constexpr (masked)
        sum = fma_some(passing, held[j], sum, o.lanes);
      else
        sum = fma(passing, held[j], sum);
    }
  }
}

template <class S, int M, int NB, int slots, int gates, int shift, Factors factors, bool prefetch, bool masked = false>
RNNFAST_INLINE void accumulate_blocks(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& o,
                                      [[maybe_unused]] const typename S::Real* ahead, [[maybe_unused]] Index ahead_k) {
  using Real = typename S::Real;
  const auto fetch = [&] {
    if constexpr (prefetch) __builtin_prefetch(ahead, 0, 3), ahead += ahead_k;
  };
  if constexpr (factors == Factors::by_pairs) {
    Rows<Real, M> a(o.a, o.a_row);
    const Real* w = o.panel;
    Index k = o.K;
    if (o.odd && k > 0) {
      accumulate_k<S, M, NB, slots, gates, shift, Word::second_of_pair>(acc, o, a, w);
      a += o.a_k, w += o.panel_k, --k;
    }
    for (; k > 1; k -= 2, a += o.a_k, w += o.panel_k) {
      fetch();
      accumulate_k<S, M, NB, slots, gates, shift, Word::first_of_pair>(acc, o, a, w);
      a += o.a_k;
      accumulate_k<S, M, NB, slots, gates, shift, Word::second_of_pair>(acc, o, a, w);
    }
    if (k > 0) accumulate_k<S, M, NB, slots, gates, shift, Word::first_of_pair>(acc, o, a, w);
    return;
  }
  constexpr Word word = factors == Factors::pairs ? Word::pair : Word::number;
  for (Index block = 0; block < o.blocks; ++block) {
    Rows<Real, M> a(o.a + block * o.a_block, o.a_row);
    const Real* w = o.panel + block * o.panel_block;
    for (Index k = 0; k < o.K; ++k, a += o.a_k, w += o.panel_k) {
      fetch();
      accumulate_k<S, M, NB, slots, gates, shift, word, masked>(acc, o, a, w);
    }
  }
}

template <class S, int M, int NB, int slots, int gates, int shift, Factors factors>
RNNFAST_INLINE void accumulate(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& o,
                               const typename S::Real* ahead, Index ahead_k) {
  // The vector in which the gates of a narrow block may lie side by side.
  constexpr bool has_lanes = has_masks && S::lanes == Widest<typename S::Real>::lanes && NB == 1 && slots == 1;
  if constexpr (has_lanes && factors == Factors::numbers)
    if (o.lanes != all_lanes)
      return accumulate_blocks<S, M, NB, slots, gates, shift, factors, false, true>(acc, o, nullptr, 0);
  if (ahead_k > 0)
    accumulate_blocks<S, M, NB, slots, gates, shift, factors, true>(acc, o, ahead, ahead_k);
  else
    accumulate_blocks<S, M, NB, slots, gates, shift, factors, false>(acc, o, ahead, ahead_k);
}

// A tile of pairs where the machine has no instruction for them: the same sums, in loops that cost little room.
template <class S>
__attribute__((noinline)) void emulated_tile(const Tile<typename S::Real>& t, Index row, int M, int NB, int slots,
                                             int gates) {
  using V = typename S::V;
  using Real = typename S::Real;
  const bool ragged = slots == 1 && NB == 1;
  for (Index m = row; m < row + M; ++m)
    for (int n = 0; n < NB * slots; ++n) {
      const Index column = n % slots * S::lanes;
      const auto load = [&](const Real* from) { return ragged ? load_lanes<S>(from, t.valid) : S::load(from); };
      V sum = t.init ? load(t.init + m * t.init_row + n / slots * t.init_unit + column) : V{};
      const Operand<Real>* const operands[] = {&t.first, &t.second};
      for (const Operand<Real>* o : operands) {
        const int gate = n % slots - (o == &t.first ? slots - gates : 0);
        if (gate < 0 || gate >= gates) continue;
        for (Index block = 0; block < o->blocks; ++block) {
          const Real* a = o->a + m * o->a_row + block * o->a_block;
          const Real* w = o->panel + n / slots * o->panel_unit + block * o->panel_block + gate * S::lanes;
          for (Index k = 0; k < o->K; ++k, a += o->a_k, w += o->panel_k)
            sum = multiply_add_pairs<S>(broadcast_word<S>(a), S::load(w), sum);
        }
      }
      Real* const to = t.out + m * t.out_row + n / slots * t.out_unit + column;
      if (t.add) sum = sum + load(to);
      if (ragged)
        store_lanes<S>(to, sum, t.valid);
      else
        S::store(to, sum);
    }
}

// Whether the tile of one row takes operands of several chains.
constexpr bool takes_chains(Factors factors) { return factors != Factors::pairs || multiplies_pairs; }

// acc += the sums of an operand from a row on. A single row takes chain by chain: as no other row reads the panels, the
// chains of one column may follow each other, in registers. The first one goes on from what is there.
template <class S, int M, int NB, int slots, int gates, int shift, Factors factors>
RNNFAST_INLINE void add_operand(typename S::V (&acc)[M][NB * slots], const Operand<typename S::Real>& operand,
                                Index row, const typename S::Real* ahead, Index ahead_k) {
  if constexpr (M > 1) {
    accumulate<S, M, NB, slots, gates, shift, factors>(acc, from_row(operand, row), ahead, ahead_k);
  } else {
    const Chains chains(operand);
    const auto chain_of = [&](Index chain) {
      Operand<typename S::Real> part = from_row(operand, row);
      take_chain(part, chains, chain);
      return part;
    };
    accumulate<S, M, NB, slots, gates, shift, factors>(acc, chain_of(0), nullptr, 0);
    for (Index chain = 1; chain < chains.count; ++chain) {
      typename S::V sum[M][NB * slots] = {};
      accumulate<S, M, NB, slots, gates, shift, factors>(sum, chain_of(chain), nullptr, 0);
#pragma GCC unroll 8
      for (int n = 0; n < NB * slots; ++n) acc[0][n] = sum[0][n] + acc[0][n];
    }
  }
}

template <class S, int M, int NB, int slots, int gates, Factors factors>
__attribute__((noinline)) void tile(const Tile<typename S::Real>& t, Index row) {
  using V = typename S::V;
  using Real = typename S::Real;
  if constexpr (factors == Factors::pairs && !multiplies_pairs) return emulated_tile<S>(t, row, M, NB, slots, gates);
  V acc[M][NB * slots];
  // Only rows of single vectors end in the caller's memory; those of several slots are padded to full width.
  constexpr bool ragged = slots == 1 && NB == 1;
  const int valid = t.valid;
  const bool add = t.add;
  const Real* init = t.init + row * t.init_row;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 12
    for (int n = 0; n < NB * slots; ++n) {
      const Real* from = init + m * t.init_row + n / slots * t.init_unit + n % slots * S::lanes;
      acc[m][n] = !t.init ? V{} : ragged ? load_lanes<S>(from, valid) : S::load(from);
    }
  }
  const Real* const ahead = place_of_row<NB>(t.ahead, row);
  constexpr int shift = slots - gates;
  if (shift > 0) add_operand<S, M, NB, slots, gates, shift, factors>(acc, t.first, row, ahead, t.ahead.k);
  for (int i = shift > 0 ? 1 : 0; i < 2; ++i)
    add_operand<S, M, NB, slots, gates, 0, factors>(acc, i == 0 ? t.first : t.second, row, ahead, t.ahead.k);
  Real* out = t.out + row * t.out_row;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 12
    for (int n = 0; n < NB * slots; ++n) {
      Real* to = out + m * t.out_row + n / slots * t.out_unit + n % slots * S::lanes;
      if (add) acc[m][n] = acc[m][n] + (ragged ? load_lanes<S>(to, valid) : S::load(to));
      if (ragged)
        store_lanes<S>(to, acc[m][n], valid);
      else
        S::store(to, acc[m][n]);
    }
  }
}

// Rows of one tile by its vectors N. With 32 registers 6 x 4, 8 x 3 and 12 x 2 accumulators leave 8 for the panel and
// the broadcasts and hide the latency of the multiply-add (4 cycles on 2 ports); with 16, 3 x 4 and 4 x 3 fill 12 and
// 4 x 4 would spill. A single vector needs as many rows to hide it. More than 4 vectors serve a single row only, to
// have 8 chains in flight. Fewer rows take less room: of narrow vectors, which are the last of a row, and of pairs.
constexpr int most_rows(int N, bool narrow = false, Factors factors = Factors::numbers) {
  if (N > 4) return 1;
  if (N == 1) return narrow ? 8 : 12;
  if (vector_registers < 32) return N == 4 ? 3 : 4;
  if (narrow) return 4;
  return N == 3 ? 8 : N == 2 && factors == Factors::numbers ? 12 : 6;
}

// Unit blocks taken at once, by the vectors of one of them; a power of two, so that the rest of a row can follow in
// halves.
constexpr int unit_group(int slots, bool one_row) { return (one_row ? 8 : 4) / (slots == 3 ? 4 : slots); }

template <class S, int NB, int slots, int gates, Factors factors, class Rows>
struct TileFunctions;
template <class S, int NB, int slots, int gates, Factors factors, int... i>
struct TileFunctions<S, NB, slots, gates, factors, Lanes<i...>> {
  static constexpr void (*of_rows[])(const Tile<typename S::Real>&,
                                     Index) = {tile<S, i + 1, NB, slots, gates, factors>...};
};

// The slots of a narrow block lie side by side. Vectors that are wider hold them as well: half as many where they fill
// these, or one that is masked.
struct Vectors {
  int slots, gates, halvings;
};

constexpr Vectors side_by_side(Vectors v, Factors factors) {
  const auto fill_half = [&] { return v.slots == v.gates && v.slots % 2 == 0; };
  const bool fit_in_one = has_masks && v.slots <= 1 << v.halvings;
  for (; factors == Factors::numbers && v.slots > 1 && v.halvings > 0 && (fit_in_one || fill_half()); --v.halvings)
    v.slots = v.gates = (v.slots + 1) / 2;
  return v;
}

template <class Real, int slots, int gates, Factors factors, int halvings = 0, int log2_NB = 0>
constexpr void add_tiles(TileKind<Real>& kind) {
  constexpr int NB = 1 << log2_NB, most = most_rows(NB * slots, halvings > 0, factors);
  if constexpr (side_by_side({slots, gates, halvings}, factors).halvings == halvings) {  // else no one asks for it
    using Functions = TileFunctions<Width<Real, halvings>, NB, slots, gates, factors, typename LanesTo<most>::type>;
    kind.of[halvings][log2_NB] = {
        .blocks = NB, .most = most, .takes_chains = takes_chains(factors), .of_rows = Functions::of_rows};
  }
  if constexpr (halvings == 0 && 2 * NB <= unit_group(slots, true))
    add_tiles<Real, slots, gates, factors, halvings, log2_NB + 1>(kind);
  else if constexpr (halvings + 1 < width_count)
    add_tiles<Real, slots, gates, factors, halvings + 1>(kind);
}

template <class Real, int slots, int gates, Factors factors>
constexpr TileKind<Real> tile_kind() {
  TileKind<Real> kind = {};
  add_tiles<Real, slots, gates, factors>(kind);
  return kind;
}

// Whatever a cell's phases have is among these, and the one, two and four columns of backward are.
template <class Real, Factors factors>
constexpr TileKind<Real> tile_kinds[tile_kind_count] = {
    tile_kind<Real, 4, 3, factors>(), tile_kind<Real, 1, 1, factors>(), tile_kind<Real, 2, 2, factors>(),
    tile_kind<Real, 3, 3, factors>(), tile_kind<Real, 4, 4, factors>()};

// `set_pairs` of the table tells it.
const PairKernels* pair_products = nullptr;

// While alive, this thread multiplies pairs.
struct PairsInUse {
  bool rounded;
  ~PairsInUse() {
    if (rounded && pair_products->release) pair_products->release();
  }
};

template <class Real>
RNNFAST_INLINE const Tiles<Real>& tiles_of(int slots, int gates, const BlockRange& range,
                                           Factors factors = Factors::numbers) {
  const Vectors v = side_by_side({slots, gates, range.halvings}, factors);
  const int kind = v.slots > v.gates ? 0 : v.slots, blocks = __builtin_ctz(unsigned(range.blocks));
  if constexpr (has_formats<Real>) {
    if (factors == Factors::by_pairs) return tile_kinds<Real, Factors::by_pairs>[kind].of[v.halvings][blocks];
    if (factors == Factors::pairs) return pair_products->tiles[kind].of[v.halvings][blocks];
    if (factors == Factors::row_pairs) return pair_products->row_pairs->tiles[kind].of[v.halvings][blocks];
  }
  return tile_kinds<Real, Factors::numbers>[kind].of[v.halvings][blocks];
}

// The same for t, whose operands have to be known: it tells them which lanes of the masked vector are theirs. A factor
// that is not finite must not reach the others. The first operand's panel begins as many numbers earlier as its lanes
// lie higher; those are masked.
template <class Real>
RNNFAST_INLINE const Tiles<Real>& tiles_for(Tile<Real>& t, int slots, int gates, const BlockRange& range,
                                            Factors factors) {
  const bool fill = gates * range.lanes == Widest<Real>::lanes;
  if (!fill && side_by_side({slots, gates, range.halvings}, factors).halvings < range.halvings) {
    const int shift = (slots - gates) * range.lanes;
    t.second.lanes = unsigned((std::uint64_t{1} << gates * range.lanes) - 1);
    t.first.lanes = t.second.lanes << shift, t.first.panel -= shift;
  }
  return tiles_of<Real>(slots, gates, range, factors);
}

// What is done with rows [row, row + M) of a tile while they are still in the first cache level.
struct NoEpilogue {
  RNNFAST_INLINE void operator()(Index, Index) const {}
};

// The same for what is not compiled for it; nothing if null.
struct Epilogue {
  void (*run)(const void* context, Index row, Index M) = nullptr;
  const void* context = nullptr;

  RNNFAST_INLINE void operator()(Index row, Index M) const {
    if (run) run(context, row, M);
  }
};

// Of the panels of an operand that NB unit blocks read after those of another one, for `rows` rows, at most `most` of
// them in a tile.
template <class Real>
RNNFAST_INLINE Ahead<Real> ahead_of(const Operand<Real>& next, const Operand<Real>& now, Index NB, Index rows,
                                    Index most) {
  const Index length = next.blocks * (next.pairs ? next.K / 2 : next.K) * next.panel_k, row = NB * length / rows;
  return {.data = next.panel,
          .length = length,
          .unit = next.panel_unit,
          .row = row,
          .k = row * most / max_index(now.blocks * now.K, 1)};
}

// All rows of a tile column, cut into tiles of nearly equal height: 8 rows are 4 + 4, not 6 + 2.
template <class Real, class F>
RNNFAST_INLINE void tile_column(const Tiles<Real>& tiles, const Tile<Real>& t, Index rows, const F& epilogue) {
  Index M = rows, higher = 0;  // tiles that have a row more
  if (rows > tiles.most) {
    const Index count = (rows + tiles.most - 1) / tiles.most;
    M = rows / count, higher = rows - M * count;
  }
  for (Index row = 0, next; row < rows; row = next, --higher) {
    next = row + M + (higher > 0 ? 1 : 0);
    tiles.of_rows[next - row - 1](t, row);
    epilogue(row, next - row);
  }
}

// A tile column, chain by chain. The first chain of an operand goes on from what is there, in the same registers where
// the first operand is a single chain; the others start from zero and are added.
template <class Real>
__attribute__((noinline)) void tile_chains(const Tiles<Real>& tiles, const Tile<Real>& t, Index rows,
                                           const Epilogue& epilogue) {
  const Chains first(t.first), second(t.second);
  const Index start = first.count > 1 ? first.count : 0;  // of the second operand
  const Index steps = t.second.blocks ? start + second.count : first.count;
  for (Index step = 0; step < steps; ++step) {
    Tile<Real> part = t;
    if (step < first.count)
      take_chain(part.first, first, step);
    else
      part.first = {};
    if (step >= start)
      take_chain(part.second, second, step - start);
    else
      part.second = {};
    part.add = step == 0 ? t.add : step != start;
    if (part.add)
      part.init = nullptr, part.init_row = 0, part.init_unit = 0;
    else if (step > 0)
      part.init = t.out, part.init_row = t.out_row, part.init_unit = t.out_unit;
    if (t.far) {
      const bool ends = step + 1 == steps;  // the next column begins, or where panels are read backwards the one before
      const Index after = ends ? 0 : step + 1;
      const bool in_second = t.second.blocks && after >= start;
      Operand<Real> next = in_second ? t.second : t.first;
      take_chain(next, in_second ? second : first, in_second ? after - start : after);
      if (ends) next.panel += (t.backwards ? -1 : 1) * tiles.blocks * next.panel_unit;
      part.ahead = ahead_of(next, part.second.blocks ? part.second : part.first, tiles.blocks, rows, tiles.most);
    }
    tile_column(tiles, part, rows, step + 1 < steps ? Epilogue() : epilogue);
  }
}

// All rows of a tile column, epilogue(row, M) after each tile. A single chain of panels that are near, or a single row,
// takes the short way: a step would feel the other.
template <class Real, class F = NoEpilogue>
RNNFAST_INLINE void tile_rows(const Tiles<Real>& tiles, const Tile<Real>& t, Index rows, const F& epilogue = {}) {
  const bool one_chain = chain_count(t.first.blocks * t.first.K) == 1 && chain_count(t.second.blocks * t.second.K) == 1;
  if ((one_chain && !t.far) || (rows == 1 && tiles.takes_chains)) return tile_column(tiles, t, rows, epilogue);
  const auto run = [](const void* context, Index row, Index M) { (*static_cast<const F*>(context))(row, M); };
  tile_chains(tiles, t, rows, Epilogue{.run = run, .context = &epilogue});
}

// Whether a pass over weights goes through them backwards, as every second one does: it begins with those that are
// still in the cache, which would otherwise be driven out just before they are read again.
constexpr bool turns_back(Index pass) { return pass % 2 != 0; }

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
