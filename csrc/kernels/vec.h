// The vector type. Arithmetic is the compiler's own on vector extensions; only what those lack (fused multiply-add,
// min and max with a known answer for NaN, partial loads) is written per instruction set, here and nowhere else.
//
// The intrinsics' header declares nothing but always-inlined functions, so it leaves no symbol behind.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#define RNNFAST_SSE 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define RNNFAST_NEON 1
#endif

#define RNNFAST_INLINE inline __attribute__((always_inline))

namespace rnnfast::RNNFAST_ISA {
namespace {

// Bytes of the widest vector, and how many registers of it there are.
#if defined(__AVX512F__)
constexpr int vector_bytes = 64, vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32, vector_registers = 16;
#elif defined(RNNFAST_NEON)
constexpr int vector_bytes = 16, vector_registers = 32;
#else
constexpr int vector_bytes = 16, vector_registers = 16;
#endif

template <class Real>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = std::int32_t;
  using word = std::uint32_t;
};
template <>
struct BitsOf<double> {
  using type = std::int64_t;
  using word = std::uint64_t;
};

// N lanes of Real: V is the vector, Bits the integers of the same width, Words those without a sign, Halves as many of
// 16 bits.
template <class R, int N>
struct Simd {
  using Real = R;
  static constexpr int lanes = N;
  typedef R V __attribute__((vector_size(N * sizeof(R))));
  typedef typename BitsOf<R>::type Bits __attribute__((vector_size(N * sizeof(R))));
  typedef typename BitsOf<R>::word Words __attribute__((vector_size(N * sizeof(R))));
  typedef std::uint16_t Halves __attribute__((vector_size(N * 2)));
  typedef R Unaligned __attribute__((vector_size(N * sizeof(R)), aligned(sizeof(R)), may_alias));

  static RNNFAST_INLINE V load(const R* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static RNNFAST_INLINE void store(R* p, V v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static RNNFAST_INLINE V broadcast(R a) { return a - V{}; }  // minus keeps the sign of -0
};

template <class Real>
using Widest = Simd<Real, vector_bytes / int(sizeof(Real))>;

// Whether matrices may have other formats than the dtype.
template <class Real>
constexpr bool has_formats = std::is_same_v<Real, float>;

using F4 = Simd<float, 4>::V;
using D2 = Simd<double, 2>::V;
using F8 = Simd<float, 8>::V;
using D4 = Simd<double, 4>::V;
using F16 = Simd<float, 16>::V;
using D8 = Simd<double, 8>::V;

// fma(a, b, c) = a * b + c, rounded once where the machine can.
// min and max return b when either argument is NaN: clamp(x) = max(lo, min(hi, x)) lets NaN pass.
// sqrt is rounded correctly.
// The masked forms with a full mask compile to the plain instructions, whose intrinsics GCC 12 warns about.
#if defined(__AVX512F__)
RNNFAST_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
RNNFAST_INLINE D8 fma(D8 a, D8 b, D8 c) { return _mm512_fmadd_pd(a, b, c); }
RNNFAST_INLINE F16 min(F16 a, F16 b) { return _mm512_maskz_min_ps(__mmask16(-1), a, b); }
RNNFAST_INLINE D8 min(D8 a, D8 b) { return _mm512_maskz_min_pd(__mmask8(-1), a, b); }
RNNFAST_INLINE F16 max(F16 a, F16 b) { return _mm512_maskz_max_ps(__mmask16(-1), a, b); }
RNNFAST_INLINE D8 max(D8 a, D8 b) { return _mm512_maskz_max_pd(__mmask8(-1), a, b); }
RNNFAST_INLINE F16 sqrt(F16 a) { return _mm512_maskz_sqrt_ps(__mmask16(-1), a); }
RNNFAST_INLINE D8 sqrt(D8 a) { return _mm512_maskz_sqrt_pd(__mmask8(-1), a); }
#endif
#if defined(__AVX2__) && defined(__FMA__)
RNNFAST_INLINE F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
RNNFAST_INLINE D4 fma(D4 a, D4 b, D4 c) { return _mm256_fmadd_pd(a, b, c); }
RNNFAST_INLINE F4 fma(F4 a, F4 b, F4 c) { return _mm_fmadd_ps(a, b, c); }
RNNFAST_INLINE D2 fma(D2 a, D2 b, D2 c) { return _mm_fmadd_pd(a, b, c); }
RNNFAST_INLINE F8 min(F8 a, F8 b) { return _mm256_min_ps(a, b); }
RNNFAST_INLINE D4 min(D4 a, D4 b) { return _mm256_min_pd(a, b); }
RNNFAST_INLINE F8 max(F8 a, F8 b) { return _mm256_max_ps(a, b); }
RNNFAST_INLINE D4 max(D4 a, D4 b) { return _mm256_max_pd(a, b); }
RNNFAST_INLINE F8 sqrt(F8 a) { return _mm256_sqrt_ps(a); }
RNNFAST_INLINE D4 sqrt(D4 a) { return _mm256_sqrt_pd(a); }
#elif defined(RNNFAST_NEON)
RNNFAST_INLINE F4 fma(F4 a, F4 b, F4 c) { return vfmaq_f32(c, a, b); }
RNNFAST_INLINE D2 fma(D2 a, D2 b, D2 c) { return vfmaq_f64(c, a, b); }
#else
RNNFAST_INLINE F4 fma(F4 a, F4 b, F4 c) { return a * b + c; }
RNNFAST_INLINE D2 fma(D2 a, D2 b, D2 c) { return a * b + c; }
#endif
#if defined(RNNFAST_SSE)
RNNFAST_INLINE F4 min(F4 a, F4 b) { return _mm_min_ps(a, b); }
RNNFAST_INLINE D2 min(D2 a, D2 b) { return _mm_min_pd(a, b); }
RNNFAST_INLINE F4 max(F4 a, F4 b) { return _mm_max_ps(a, b); }
RNNFAST_INLINE D2 max(D2 a, D2 b) { return _mm_max_pd(a, b); }
RNNFAST_INLINE F4 sqrt(F4 a) { return _mm_sqrt_ps(a); }
RNNFAST_INLINE D2 sqrt(D2 a) { return _mm_sqrt_pd(a); }
#else
RNNFAST_INLINE F4 min(F4 a, F4 b) { return a < b ? a : b; }
RNNFAST_INLINE D2 min(D2 a, D2 b) { return a < b ? a : b; }
RNNFAST_INLINE F4 max(F4 a, F4 b) { return a > b ? a : b; }
RNNFAST_INLINE D2 max(D2 a, D2 b) { return a > b ? a : b; }
#endif
#if defined(RNNFAST_NEON)
RNNFAST_INLINE F4 sqrt(F4 a) { return vsqrtq_f32(a); }
RNNFAST_INLINE D2 sqrt(D2 a) { return vsqrtq_f64(a); }
#elif !defined(RNNFAST_SSE)
RNNFAST_INLINE F4 sqrt(F4 a) {
  for (int lane = 0; lane < 4; ++lane) a[lane] = __builtin_sqrtf(a[lane]);
  return a;
}
RNNFAST_INLINE D2 sqrt(D2 a) {
  for (int lane = 0; lane < 2; ++lane) a[lane] = __builtin_sqrt(a[lane]);
  return a;
}
#endif

// The first `count` lanes, the others zero; memory behind them is not touched. For the ragged end of a row.
template <class S>
RNNFAST_INLINE typename S::V load_partial(const typename S::Real* p, int count) {
  typename S::V v = {};
  for (int lane = 0; lane < count; ++lane) v[lane] = p[lane];
  return v;
}

template <class S>
RNNFAST_INLINE void store_partial(typename S::Real* p, typename S::V v, int count) {
  for (int lane = 0; lane < count; ++lane) p[lane] = v[lane];
}

#if defined(__AVX512F__)
RNNFAST_INLINE unsigned first_lanes(int count) { return (1u << count) - 1u; }

template <>
RNNFAST_INLINE F16 load_partial<Simd<float, 16>>(const float* p, int count) {
  return _mm512_maskz_loadu_ps(__mmask16(first_lanes(count)), p);
}
template <>
RNNFAST_INLINE D8 load_partial<Simd<double, 8>>(const double* p, int count) {
  return _mm512_maskz_loadu_pd(__mmask8(first_lanes(count)), p);
}
template <>
RNNFAST_INLINE void store_partial<Simd<float, 16>>(float* p, F16 v, int count) {
  _mm512_mask_storeu_ps(p, __mmask16(first_lanes(count)), v);
}
template <>
RNNFAST_INLINE void store_partial<Simd<double, 8>>(double* p, D8 v, int count) {
  _mm512_mask_storeu_pd(p, __mmask8(first_lanes(count)), v);
}
#endif
#if defined(__AVX2__)
RNNFAST_INLINE __m256i first_lanes_32(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
RNNFAST_INLINE __m256i first_lanes_64(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}

template <>
RNNFAST_INLINE F8 load_partial<Simd<float, 8>>(const float* p, int count) {
  return _mm256_maskload_ps(p, first_lanes_32(count));
}
template <>
RNNFAST_INLINE D4 load_partial<Simd<double, 4>>(const double* p, int count) {
  return _mm256_maskload_pd(p, first_lanes_64(count));
}
template <>
RNNFAST_INLINE F4 load_partial<Simd<float, 4>>(const float* p, int count) {
  return _mm_maskload_ps(p, _mm256_castsi256_si128(first_lanes_32(count)));
}
template <>
RNNFAST_INLINE void store_partial<Simd<float, 8>>(float* p, F8 v, int count) {
  _mm256_maskstore_ps(p, first_lanes_32(count), v);
}
template <>
RNNFAST_INLINE void store_partial<Simd<double, 4>>(double* p, D4 v, int count) {
  _mm256_maskstore_pd(p, first_lanes_64(count), v);
}
template <>
RNNFAST_INLINE void store_partial<Simd<float, 4>>(float* p, F4 v, int count) {
  _mm_maskstore_ps(p, _mm256_castsi256_si128(first_lanes_32(count)), v);
}
#endif

template <class S>
RNNFAST_INLINE typename S::V load_lanes(const typename S::Real* p, int count) {
  return count == S::lanes ? S::load(p) : load_partial<S>(p, count);
}

template <class S>
RNNFAST_INLINE void store_lanes(typename S::Real* p, typename S::V v, int count) {
  if (count == S::lanes)
    S::store(p, v);
  else
    store_partial<S>(p, v, count);
}

// The numbers 0 to n - 1, to spell out the lanes of a shuffle.
template <int... i>
struct Lanes {};
template <int n, int... i>
struct LanesTo : LanesTo<n - 1, n - 1, i...> {};
template <int... i>
struct LanesTo<0, i...> {
  using type = Lanes<i...>;
};

// a >= 0 with the sign of b.
#if defined(__AVX512F__)  // a | (b & the sign's bit)
RNNFAST_INLINE F16 copy_sign(F16 a, F16 b) {
  const __m512i sign = _mm512_set1_epi32(std::int32_t(0x80000000)), x = reinterpret_cast<__m512i>(a);
  return reinterpret_cast<F16>(_mm512_ternarylogic_epi32(x, reinterpret_cast<__m512i>(b), sign, 0xf8));
}
RNNFAST_INLINE D8 copy_sign(D8 a, D8 b) {
  const __m512i sign = _mm512_set1_epi64(std::int64_t(std::uint64_t{1} << 63)), x = reinterpret_cast<__m512i>(a);
  return reinterpret_cast<D8>(_mm512_ternarylogic_epi64(x, reinterpret_cast<__m512i>(b), sign, 0xf8));
}
#endif
template <class V>
RNNFAST_INLINE V copy_sign(V a, V b) {
  using S = Simd<std::remove_reference_t<decltype(a[0])>, int(sizeof(V) / sizeof(a[0]))>;
  using Bits = typename S::Bits;
  const Bits sign = reinterpret_cast<Bits>(S::broadcast(typename S::Real(-0.0)));
  return reinterpret_cast<V>(reinterpret_cast<Bits>(a) | (reinterpret_cast<Bits>(b) & sign));
}

// a in the lanes whose bit is set, the lowest bit's first, b in the others.
template <class S>
RNNFAST_INLINE typename S::V select(unsigned bits, typename S::V a, typename S::V b) {
  typename S::Bits powers;
  for (int lane = 0; lane < S::lanes; ++lane) powers[lane] = 1 << lane;
  return (powers & (typename S::Bits{} + typename BitsOf<typename S::Real>::type(bits))) != 0 ? a : b;
}
#if defined(__AVX512F__)
template <>
RNNFAST_INLINE F16 select<Simd<float, 16>>(unsigned bits, F16 a, F16 b) {
  return _mm512_mask_blend_ps(__mmask16(bits), b, a);
}
template <>
RNNFAST_INLINE D8 select<Simd<double, 8>>(unsigned bits, D8 a, D8 b) {
  return _mm512_mask_blend_pd(__mmask8(bits), b, a);
}
#endif

// Numbers to be looked up: as many as a vector has lanes, or twice as many.
template <class Real, int count>
struct Entries {
  Real all[count];
  constexpr void set(int k, Real x) { all[k] = x; }
};
#if defined(__AVX2__) && !defined(__AVX512F__)
// No instruction looks up doubles; one looks up halves of them.
template <>
struct Entries<double, 8> {
  alignas(32) std::uint32_t low[8], high[8];
  constexpr void set(int k, double x) {
    const auto bits = __builtin_bit_cast(std::uint64_t, x);
    low[k] = std::uint32_t(bits);
    high[k] = std::uint32_t(bits >> 32);
  }
};
#endif

template <class Real, int count>
constexpr Entries<Real, count> entries_of(const Real (&numbers)[count]) {
  Entries<Real, count> entries = {};
  for (int k = 0; k < count; ++k) entries.set(k, numbers[k]);
  return entries;
}

// entries[index] in each lane. Of an index its last bits count, as many as the number of entries asks for; the others
// may be anything.
#if defined(__AVX512F__)
RNNFAST_INLINE F16 look_up(const Entries<float, 16>& entries, F16 index) {
  return _mm512_maskz_permutexvar_ps(__mmask16(-1), reinterpret_cast<__m512i>(index), _mm512_loadu_ps(entries.all));
}
RNNFAST_INLINE F16 look_up(const Entries<float, 32>& entries, F16 index) {
  const F16 first = _mm512_loadu_ps(entries.all), second = _mm512_loadu_ps(entries.all + 16);
  return _mm512_maskz_permutex2var_ps(__mmask16(-1), first, reinterpret_cast<__m512i>(index), second);
}
RNNFAST_INLINE D8 look_up(const Entries<double, 8>& entries, D8 index) {
  return _mm512_maskz_permutexvar_pd(__mmask8(-1), reinterpret_cast<__m512i>(index), _mm512_loadu_pd(entries.all));
}
RNNFAST_INLINE D8 look_up(const Entries<double, 16>& entries, D8 index) {
  const D8 first = _mm512_loadu_pd(entries.all), second = _mm512_loadu_pd(entries.all + 8);
  return _mm512_maskz_permutex2var_pd(__mmask8(-1), first, reinterpret_cast<__m512i>(index), second);
}
#elif defined(__AVX2__)
RNNFAST_INLINE F8 look_up(const Entries<float, 8>& entries, F8 index) {
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(entries.all), reinterpret_cast<__m256i>(index));
}
RNNFAST_INLINE D4 look_up(const Entries<double, 8>& entries, D4 index) {
  const __m256 lows = _mm256_load_ps(reinterpret_cast<const float*>(entries.low));
  const __m256 highs = _mm256_load_ps(reinterpret_cast<const float*>(entries.high));
  const __m256i lanes = reinterpret_cast<__m256i>(index);  // the index is in the lower half of each
  const __m256i again = __m256i(_mm256_moveldup_ps(reinterpret_cast<__m256>(index)));
  const __m256 low = _mm256_permutevar8x32_ps(lows, lanes), high = _mm256_permutevar8x32_ps(highs, again);
  return reinterpret_cast<D4>(_mm256_blend_ps(low, high, 0xaa));
}
#endif
// Narrower vectors pass as halves of wider ones.
template <class Real, int count, class V>
RNNFAST_INLINE V look_up(const Entries<Real, count>& entries, V index);
template <class Real, int count, class V, int... i>
RNNFAST_INLINE V look_up_halves(const Entries<Real, count>& entries, V index, Lanes<i...>) {
  const auto found = look_up(entries, __builtin_shufflevector(index, index, i..., i...));
  return __builtin_shufflevector(found, found, i...);
}
template <class Real, int count, class V>
RNNFAST_INLINE V look_up(const Entries<Real, count>& entries, V index) {
  static_assert(sizeof(V) < vector_bytes);
  return look_up_halves(entries, index, typename LanesTo<int(sizeof(V) / sizeof(Real))>::type());
}

// p[place] in each lane, by the processor's own instruction where there is one.
#if defined(__AVX2__)
constexpr bool has_gather = true;
#else
constexpr bool has_gather = false;
#endif
template <class S, int... i>
RNNFAST_INLINE typename S::V gather_lanes(const typename S::Real* p, const std::uint16_t* places, Lanes<i...>) {
  return typename S::V{p[places[i]]...};
}
template <class S>
RNNFAST_INLINE typename S::V gather(const typename S::Real* p, const std::uint16_t* places) {
  return gather_lanes<S>(p, places, typename LanesTo<S::lanes>::type());
}
#if defined(__AVX512F__)
template <>
RNNFAST_INLINE F16 gather<Simd<float, 16>>(const float* p, const std::uint16_t* places) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(places));
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(__mmask16(-1), narrow);
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), __mmask16(-1), wide, p, 4);
}
template <>
RNNFAST_INLINE D8 gather<Simd<double, 8>>(const double* p, const std::uint16_t* places) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(places)));
  return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), __mmask8(-1), wide, p, 8);
}
#elif defined(__AVX2__)
template <>
RNNFAST_INLINE F8 gather<Simd<float, 8>>(const float* p, const std::uint16_t* places) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(places)));
  return _mm256_mask_i32gather_ps(_mm256_setzero_ps(), p, wide, _mm256_castsi256_ps(_mm256_set1_epi32(-1)), 4);
}
template <>
RNNFAST_INLINE D4 gather<Simd<double, 4>>(const double* p, const std::uint16_t* places) {
  const __m128i wide = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places)));
  return _mm256_mask_i32gather_pd(_mm256_setzero_pd(), p, wide, _mm256_castsi256_pd(_mm256_set1_epi32(-1)), 8);
}
#endif

// Elements of a pair of vectors, by the low bits of each lane of `where`, which are then shifted out.
#if defined(__AVX512F__)
constexpr bool has_pairs = true;
using Where = __m512i;
RNNFAST_INLINE F16 pick(F16 a, F16 b, Where& where) {
  const F16 picked = _mm512_permutex2var_ps(a, where, b);
  where = _mm512_maskz_srli_epi32(__mmask16(-1), where, 8);
  return picked;
}
RNNFAST_INLINE D8 pick(D8 a, D8 b, Where& where) {
  const D8 picked = _mm512_permutex2var_pd(a, where, b);
  where = _mm512_maskz_srli_epi64(__mmask8(-1), where, 4);
  return picked;
}
RNNFAST_INLINE Where load_where(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
RNNFAST_INLINE Where load_where(const std::uint16_t* p) {
  return _mm512_maskz_cvtepu16_epi64(__mmask8(-1), _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#else
constexpr bool has_pairs = false;
#endif

// The lowest byte of each lane, of the widest vector of float.
#if defined(__AVX512F__)
RNNFAST_INLINE void store_bytes(unsigned char* p, Simd<float, 16>::Bits v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(__mmask16(-1), __m512i(v)));
}
#elif defined(__AVX2__)
RNNFAST_INLINE void store_bytes(unsigned char* p, Simd<float, 8>::Bits v) {
  const __m256i first_of_four = _mm256_set1_epi32(0x0c080400);
  const __m256i bytes = _mm256_shuffle_epi8(__m256i(v), first_of_four);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p),
                   _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)));
}
#elif defined(RNNFAST_SSE)
RNNFAST_INLINE void store_bytes(unsigned char* p, Simd<float, 4>::Bits v) {
  const __m128i words = _mm_packs_epi32(__m128i(v & 0xff), __m128i{});
  const int bytes = _mm_cvtsi128_si32(_mm_packus_epi16(words, words));
  __builtin_memcpy(p, &bytes, sizeof(bytes));
}
#else
RNNFAST_INLINE void store_bytes(unsigned char* p, Simd<float, 4>::Bits v) {
  for (int lane = 0; lane < 4; ++lane) p[lane] = (unsigned char)(v[lane] & 0xff);
}
#endif

// Numbers rounded to bfloat16, to nearest even: the upper half of their bits. NaN stays NaN.
template <class S>
RNNFAST_INLINE typename S::Words rounded(typename S::V v) {
  using Words = typename S::Words;
  const Words bits = reinterpret_cast<Words>(v);
  const Words even = bits + 0x7fff + (bits >> 16 & 1);
  return (bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : even;
}

template <class S>
RNNFAST_INLINE typename S::V nearest(typename S::V v) {
  return reinterpret_cast<typename S::V>(rounded<S>(v) & 0xffff0000);
}

// Words whose first numbers are those of a vector, and whose second ones those of another.
template <class S>
RNNFAST_INLINE typename S::V pairs_of(typename S::V first, typename S::V second) {
  return reinterpret_cast<typename S::V>(rounded<S>(first) >> 16 | (rounded<S>(second) & 0xffff0000));
}

// a[first], b[first], a[first + 1], b[first + 1], ...
template <class S, int first, int... i>
RNNFAST_INLINE typename S::V interleave(typename S::V a, typename S::V b, Lanes<i...>) {
  return __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * S::lanes)...);
}

template <class S, int distance, int... i>
RNNFAST_INLINE typename S::V rotate(typename S::V v, Lanes<i...>) {
  return __builtin_shufflevector(v, v, ((i + distance) % S::lanes)...);
}

// All lanes in one, by a function of two vectors; in a fixed order.
template <class S, int distance = S::lanes / 2, class F>
RNNFAST_INLINE typename S::Real fold(typename S::V v, F&& f) {
  if constexpr (distance == 0)
    return v[0];
  else
    return fold<S, distance / 2>(f(v, rotate<S, distance>(v, typename LanesTo<S::lanes>::type())), f);
}

template <class S>
RNNFAST_INLINE typename S::Real sum_lanes(typename S::V v) {
  return fold<S>(v, [](typename S::V a, typename S::V b) { return a + b; });
}

// Transposes as many vectors as they have lanes: each pass is a perfect shuffle of all elements.
template <class S, int pass = S::lanes>
RNNFAST_INLINE void transpose(typename S::V (&rows)[S::lanes]) {
  if constexpr (pass > 1) {
    typename S::V shuffled[S::lanes];
    using Sequence = typename LanesTo<S::lanes>::type;
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes / 2; ++i) {
      shuffled[2 * i] = interleave<S, 0>(rows[i], rows[i + S::lanes / 2], Sequence());
      shuffled[2 * i + 1] = interleave<S, S::lanes / 2>(rows[i], rows[i + S::lanes / 2], Sequence());
    }
#pragma GCC unroll 16
    for (int i = 0; i < S::lanes; ++i) rows[i] = shuffled[i];
    transpose<S, pass / 2>(rows);
  }
}

// Vectors of four or two numbers, 16 bytes each, `stride` numbers apart, side by side in one.
template <class S>
RNNFAST_INLINE typename S::V load_quarters(const typename S::Real* p, std::ptrdiff_t) {
  static_assert(sizeof(typename S::V) == 16);
  return S::load(p);
}
#if defined(__AVX512F__)
template <>
RNNFAST_INLINE F16 load_quarters<Simd<float, 16>>(const float* p, std::ptrdiff_t stride) {
  F16 v = _mm512_maskz_broadcast_f32x4(__mmask16(-1), _mm_loadu_ps(p));
  v = _mm512_mask_broadcast_f32x4(v, 0x00f0, _mm_loadu_ps(p + stride));
  v = _mm512_mask_broadcast_f32x4(v, 0x0f00, _mm_loadu_ps(p + 2 * stride));
  return _mm512_mask_broadcast_f32x4(v, 0xf000, _mm_loadu_ps(p + 3 * stride));
}
template <>
RNNFAST_INLINE D8 load_quarters<Simd<double, 8>>(const double* p, std::ptrdiff_t stride) {
  D8 v = _mm512_maskz_broadcast_f64x2(__mmask8(-1), _mm_loadu_pd(p));
  v = _mm512_mask_broadcast_f64x2(v, 0x0c, _mm_loadu_pd(p + stride));
  v = _mm512_mask_broadcast_f64x2(v, 0x30, _mm_loadu_pd(p + 2 * stride));
  return _mm512_mask_broadcast_f64x2(v, 0xc0, _mm_loadu_pd(p + 3 * stride));
}
#endif
#if defined(__AVX2__)
template <>
RNNFAST_INLINE F8 load_quarters<Simd<float, 8>>(const float* p, std::ptrdiff_t stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
}
template <>
RNNFAST_INLINE D4 load_quarters<Simd<double, 4>>(const double* p, std::ptrdiff_t stride) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(p)), _mm_loadu_pd(p + stride), 1);
}
#endif

// As interleave, of each 16 bytes by themselves: their first half of the numbers, or the second.
template <class S, int half, int... i>
RNNFAST_INLINE typename S::V interleave_quarters(typename S::V a, typename S::V b, Lanes<i...>) {
  constexpr int n = 16 / int(sizeof(typename S::Real));
  return __builtin_shufflevector(a, b, (i / n * n + half * n / 2 + i % n / 2 + i % 2 * S::lanes)...);
}

// As many rows of a matrix as a vector has lanes, transposed. The loads do half of the work: they bring 16 bytes of
// several rows together, where shuffles across a vector would be slow or many.
template <class S>
RNNFAST_INLINE void load_transposed(const typename S::Real* p, std::ptrdiff_t stride,
                                    typename S::V (&columns)[S::lanes]) {
  using V = typename S::V;
  using Sequence = typename LanesTo<S::lanes>::type;
  constexpr int n = 16 / int(sizeof(typename S::Real));
#pragma GCC unroll 16
  for (int k = 0; k < S::lanes; k += n) {
    V rows[n], shuffled[n];
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) rows[i] = load_quarters<S>(p + i * stride + k, n * stride);
#pragma GCC unroll 2
    for (int pass = n; pass > 1; pass /= 2) {
#pragma GCC unroll 2
      for (int i = 0; i < n / 2; ++i) {
        shuffled[2 * i] = interleave_quarters<S, 0>(rows[i], rows[i + n / 2], Sequence());
        shuffled[2 * i + 1] = interleave_quarters<S, 1>(rows[i], rows[i + n / 2], Sequence());
      }
#pragma GCC unroll 4
      for (int i = 0; i < n; ++i) rows[i] = shuffled[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) columns[k + i] = rows[i];
  }
}

// While alive, this thread rounds to nearest whatever its caller does, and results and inputs below the smallest normal
// number count as zero: a decaying state would otherwise cost tens of times more per operation.
struct FloatingPointMode {
#if defined(RNNFAST_SSE)
  static constexpr unsigned mode = 0x9fc0;  // exceptions masked | flush to zero | denormals are zero
  unsigned before = _mm_getcsr();
  FloatingPointMode() { _mm_setcsr(mode); }
  ~FloatingPointMode() { _mm_setcsr(before); }
#elif defined(RNNFAST_NEON)
  static constexpr std::uint64_t mode = std::uint64_t{1} << 24;  // flush to zero
  std::uint64_t before;
  FloatingPointMode() {
    asm volatile("mrs %0, fpcr" : "=r"(before));
    asm volatile("msr fpcr, %0" : : "r"(mode) : "memory");
  }
  ~FloatingPointMode() { asm volatile("msr fpcr, %0" : : "r"(before) : "memory"); }
#else
  FloatingPointMode() {}
#endif
  FloatingPointMode(const FloatingPointMode&) = delete;
  FloatingPointMode& operator=(const FloatingPointMode&) = delete;
};

// The products of the low halves of lanes.
using Words64 = Widest<double>::Words;
RNNFAST_INLINE Words64 multiply_halves(Words64 a, Words64 b) {
#if defined(__AVX512F__)
  return Words64(_mm512_maskz_mul_epu32(__mmask8(-1), __m512i(a), __m512i(b)));
#elif defined(__AVX2__)
  return Words64(_mm256_mul_epu32(__m256i(a), __m256i(b)));
#elif defined(RNNFAST_SSE)
  return Words64(_mm_mul_epu32(__m128i(a), __m128i(b)));
#elif defined(RNNFAST_NEON)
  return Words64(vmull_u32(vmovn_u64(uint64x2_t(a)), vmovn_u64(uint64x2_t(b))));
#else
  constexpr std::uint64_t half = 0xffffffff;
  return (a & half) * (b & half);
#endif
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
