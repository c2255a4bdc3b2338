// The products of numbers with 8 bits. This file is compiled for each instruction set, and again for each extension of
// one that multiplies such numbers: RNNFAST_ISA is the name of either.
#include <cstdint>

#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
constexpr bool adds_128 = true;
#else
constexpr bool adds_128 = false;
#endif

using I4 = Simd<float, 4>::Bits;
using I8 = Simd<float, 8>::Bits;
using I16 = Simd<float, 16>::Bits;

// sum + the products of the 4 numbers in each word of a and of w. All are exact: a sum of two products has at most 15
// bits and its sign.
#if defined(__AVX512VNNI__)
RNNFAST_INLINE I16 dot(I16 sum, I16 a, I16 w) { return I16(_mm512_dpbusd_epi32(__m512i(sum), __m512i(a), __m512i(w))); }
RNNFAST_INLINE I8 dot(I8 sum, I8 a, I8 w) { return I8(_mm256_dpbusd_epi32(__m256i(sum), __m256i(a), __m256i(w))); }
RNNFAST_INLINE I4 dot(I4 sum, I4 a, I4 w) { return I4(_mm_dpbusd_epi32(__m128i(sum), __m128i(a), __m128i(w))); }
#elif defined(__AVXVNNI__)
RNNFAST_INLINE I8 dot(I8 sum, I8 a, I8 w) { return I8(_mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(a), __m256i(w))); }
RNNFAST_INLINE I4 dot(I4 sum, I4 a, I4 w) { return I4(_mm_dpbusd_avx_epi32(__m128i(sum), __m128i(a), __m128i(w))); }
#elif defined(__AVX2__)
// |a| times w with the sign of a, as one factor of the instruction has no sign.
#if defined(__AVX512BW__)
RNNFAST_INLINE I16 dot(I16 sum, I16 a, I16 w) {
  const __m512i given = __m512i(w), magnitude = _mm512_abs_epi8(__m512i(a));
  const __m512i with_sign = _mm512_mask_sub_epi8(given, _mm512_movepi8_mask(__m512i(a)), _mm512_setzero_si512(), given);
  const __m512i pairs = _mm512_maddubs_epi16(magnitude, with_sign);
  return sum + I16(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
#endif
RNNFAST_INLINE I8 dot(I8 sum, I8 a, I8 w) {
  const __m256i with_sign = _mm256_sign_epi8(__m256i(w), __m256i(a));
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(__m256i(a)), with_sign);
  return sum + I8(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
RNNFAST_INLINE I4 dot(I4 sum, I4 a, I4 w) {
  const __m128i with_sign = _mm_sign_epi8(__m128i(w), __m128i(a));
  const __m128i pairs = _mm_maddubs_epi16(_mm_abs_epi8(__m128i(a)), with_sign);
  return sum + I4(_mm_madd_epi16(pairs, _mm_set1_epi16(1)));
}
#elif defined(RNNFAST_SSE)
RNNFAST_INLINE I4 dot(I4 sum, I4 a, I4 w) {
  const auto first = [](I4 v) { return _mm_srai_epi16(_mm_slli_epi16(__m128i(v), 8), 8); };  // of each two numbers
  const auto second = [](I4 v) { return _mm_srai_epi16(__m128i(v), 8); };
  return sum + I4(_mm_madd_epi16(first(a), first(w))) + I4(_mm_madd_epi16(second(a), second(w)));
}
#else
RNNFAST_INLINE I4 dot(I4 sum, I4 a, I4 w) {
  for (int shift = 24; shift >= 0; shift -= 8) sum += (a << shift >> 24) * (w << shift >> 24);
  return sum;
}
#endif

template <class S>
RNNFAST_INLINE typename S::Bits load_words(const float* p) {
  return reinterpret_cast<typename S::Bits>(S::load(p));
}

// M rows by NB unit blocks of some gates, from a row on; all words of a, or for each vector those that are listed.
template <class S, int M, int NB, int gates, bool listed>
__attribute__((noinline)) void tile(const IntegerProduct& p, Index row) {
  using V = typename S::V;
  using Bits = typename S::Bits;
  constexpr int N = NB * gates;
  const auto column = [&](int n) { return n / gates * p.column_unit + n % gates * S::lanes; };
  Bits acc[M][N];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
      acc[m][n] = Bits{};
      if constexpr (adds_128) {
        Bits offset;
        __builtin_memcpy(&offset, p.offsets + column(n), sizeof(offset));
        acc[m][n] -= offset;
      }
    }
  }
  const std::uint32_t* a = p.a + row * p.a_row;
  const float* w = p.panel;
  const Column* place = p.places;
  for (Index word = 0; word < p.words; ++word, w += p.panel_word) {
    constexpr int outer = M > N ? M : N, inner = M > N ? N : M;
    const auto of_panel = [&](int n) { return load_words<S>(w + n / gates * p.panel_unit + n % gates * S::lanes); };
    if constexpr (listed) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const Bits vector = of_panel(n);
        const Index at = place[n];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) acc[m][n] = dot(acc[m][n], Bits{} + std::int32_t(a[m * p.a_row + at]), vector);
      }
      place += N;
      continue;
    }
    const auto of_row = [&](int m) { return Bits{} + std::int32_t(a[m * p.a_row + word]); };
    Bits held[inner];
#pragma GCC unroll 12
    for (int i = 0; i < inner; ++i) held[i] = M > N ? of_panel(i) : of_row(i);
#pragma GCC unroll 12
    for (int i = 0; i < outer; ++i) {
      const Bits passing = M > N ? of_row(i) : of_panel(i);
#pragma GCC unroll 12
      for (int j = 0; j < inner; ++j) {
        Bits& sum = acc[M > N ? i : j][M > N ? j : i];
        sum = M > N ? dot(sum, passing, held[j]) : dot(sum, held[j], passing);
      }
    }
  }
  // Only rows of single vectors end in the caller's memory; those of several are padded to full width.
  constexpr bool ragged = N == 1;
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    const float* init = p.init + (row + m) * p.init_row;
    float* out = p.out + (row + m) * p.out_row;
#pragma GCC unroll 12
    for (int n = 0; n < N; ++n) {
      const V scale = S::broadcast(p.a_scales[row + m]) * S::load(p.scales + column(n));
      V v = __builtin_convertvector(acc[m][n], V) * scale;
      if (p.init) {
        const float* from = init + n / gates * p.init_unit + n % gates * S::lanes;
        v = (ragged ? load_lanes<S>(from, p.valid) : S::load(from)) + v;
      }
      float* to = out + n / gates * p.out_unit + n % gates * S::lanes;
      if (ragged)
        store_lanes<S>(to, v, p.valid);
      else
        S::store(to, v);
    }
  }
}

// Rows of a tile with N vectors: what the registers hold beside what `dot` needs; of narrow vectors fewer, as in
// gemm.h.
constexpr int most_rows(int N, bool narrow) {
  if (N > 4) return 1;
  if (vector_registers == 16) return N == 1 ? 6 : N == 4 ? 2 : 3;
  if (narrow) return N == 1 ? 8 : 4;
  return N == 1 ? 12 : N == 3 ? 8 : 6;
}

using TileFunction = void (*)(const IntegerProduct&, Index row);

struct Tiles {
  int most;
  const TileFunction* of_rows;  // those of 1, 2, ..
};

template <class S, int NB, int gates, bool listed, class Rows>
struct TileFunctions;
template <class S, int NB, int gates, bool listed, int... i>
struct TileFunctions<S, NB, gates, listed, Lanes<i...>> {
  static constexpr TileFunction of_rows[] = {tile<S, i + 1, NB, gates, listed>...};
};

// Unit blocks taken at once are powers of two, of at most 8 vectors; narrower ones come alone.
struct TileKind {
  Tiles of[width_count][4], listed;
};

template <int gates, int halvings = 0, int log2_NB = 0>
constexpr void add_tiles(TileKind& kind) {
  constexpr int NB = 1 << log2_NB, most = most_rows(NB * gates, halvings > 0);
  using Functions = TileFunctions<Width<float, halvings>, NB, gates, false, typename LanesTo<most>::type>;
  kind.of[halvings][log2_NB] = {.most = most, .of_rows = Functions::of_rows};
  if constexpr (halvings == 0 && 2 * NB * gates <= 8)
    add_tiles<gates, halvings, log2_NB + 1>(kind);
  else if constexpr (halvings + 1 < width_count)
    add_tiles<gates, halvings + 1>(kind);
}

template <int gates>
constexpr TileKind tile_kind() {
  TileKind kind = {};
  add_tiles<gates>(kind);
  constexpr int NB = gates > 2 ? 1 : 4 / gates, most = vector_registers == 32 ? 4 : 2;  // as lists.h has them
  using Functions = TileFunctions<Widest<float>, NB, gates, true, typename LanesTo<most>::type>;
  kind.listed = {.most = most, .of_rows = Functions::of_rows};
  return kind;
}

constexpr TileKind tile_kinds[] = {tile_kind<1>(), tile_kind<2>(), tile_kind<3>(), tile_kind<4>()};

// All rows, cut into tiles of nearly equal height.
void multiply(const IntegerProduct& p) {
  const TileKind& kind = tile_kinds[p.gates - 1];
  const Tiles& tiles = p.places ? kind.listed : kind.of[p.halvings][__builtin_ctz(unsigned(p.blocks))];
  const Index count = (p.rows + tiles.most - 1) / tiles.most;
  for (Index i = 0, row = 0, next; i < count; ++i, row = next) {
    next = p.rows * (i + 1) / count;
    tiles.of_rows[next - row - 1](p, row);
  }
}

}  // namespace

#define RNNFAST_TEXT(name) #name
#define RNNFAST_NAME(name) RNNFAST_TEXT(name)
extern const IntegerKernels integer_kernels;
const IntegerKernels integer_kernels = {.name = RNNFAST_NAME(RNNFAST_ISA), .adds_128 = adds_128, .multiply = multiply};

}  // namespace rnnfast::RNNFAST_ISA
