// Logistic sigmoid and tanh on vectors, each within 2 ULP over all inputs (tests/ulp.py measures it), and exp and log
// as cells and losses need them.
//
// Where the processor looks up entries of a table in registers, both start from these. Elsewhere they go through
// e^z = 2^n (1 + p) with n = round(z / ln 2), r = z - n ln 2 in [-ln 2 / 2, ln 2 / 2] and p = e^r - 1 = r + r^2 q(r).
// ln 2 is split in two parts (Cody and Waite 1980) whose first has so few bits that n times it is exact with and
// without fused multiply-add. q is a Chebyshev fit of (e^r - 1 - r) / r^2; relative error of p: 1.8e-9 in float, 8e-19
// in double.
#pragma once

#include <cstdint>

#include "kernels/activation_tables.h"
#include "kernels/vec.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr float log2_e = 0x1.715476p+0f, ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  static constexpr float round = 0x1.8p+23f;  // x + round has n = rint(x) in its low bits
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float sigmoid_low = -87, sigmoid_high = 88;  // e^z stays normal and finite
  static constexpr float tanh_high = 10;                        // tanh is 1 from 9.02 on
  static constexpr float q[] = {0x1.a1256cp-13f, 0x1.6d43b0p-10f, 0x1.1110e0p-7f,
                                0x1.5554e8p-5f,  0x1.555556p-3f,  0x1.0p-1f};
};

template <>
struct ExpConstants<double> {
  static constexpr double log2_e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  static constexpr double round = 0x1.8p+52;
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double sigmoid_low = -708, sigmoid_high = 709;
  static constexpr double tanh_high = 20;  // tanh is 1 from 19.07 on
  static constexpr double q[] = {0x1.1f7340dbc337ep-29,
                                 0x1.af4e554377204p-26,
                                 0x1.27e4db46cddd1p-22,
                                 0x1.71de01fdbf9cap-19,
                                 0x1.a01a01a6e1e2ap-16,
                                 0x1.a01a01abf85abp-13,
                                 0x1.6c16c16c162c3p-10,
                                 0x1.11111111100bep-7,
                                 0x1.5555555555556p-5,
                                 0x1.5555555555557p-3,
                                 0x1.0p-1};
};

template <class S>
RNNFAST_INLINE typename S::V magnitude(typename S::V x) {
  using Bits = typename S::Bits;
  return reinterpret_cast<typename S::V>(reinterpret_cast<Bits>(x) &
                                         ~reinterpret_cast<Bits>(S::broadcast(typename S::Real(-0.0))));
}

template <class S>
struct Exp {
  typename S::V scale, p;  // e^z = scale * (1 + p)
};

template <class S>
RNNFAST_INLINE Exp<S> exp_parts(typename S::V z) {
  using Real = typename S::Real;
  using C = ExpConstants<Real>;
  using V = typename S::V;
  using Words = typename S::Words;
  const V shifted = fma(z, S::broadcast(C::log2_e), S::broadcast(C::round));
  const V n = shifted - C::round;
  const V high = fma(n, S::broadcast(-C::ln2_high), z), low = n * -C::ln2_low;  // r = high + low, high without rounding
  const V r = high + low;
  V q = S::broadcast(C::q[0]);
  constexpr int terms = int(sizeof(C::q) / sizeof(Real));
#pragma GCC unroll 16
  for (int term = 1; term < terms; ++term) q = fma(q, r, S::broadcast(C::q[term]));
  const Words one = reinterpret_cast<Words>(S::broadcast(Real(1)));
  const Words scale = (reinterpret_cast<Words>(shifted) << C::mantissa_bits) + one;  // of NaN whatever it may be
  return {reinterpret_cast<V>(scale), high + fma(r * r, q, low)};
}

// e^z for z <= 0, and up to sigmoid_high; where that is no normal number, 0.
template <class S>
RNNFAST_INLINE typename S::V exp_not_positive(typename S::V z) {
  using C = ExpConstants<typename S::Real>;
  const Exp<S> e = exp_parts<S>(max(S::broadcast(C::sigmoid_low), z));
  return z < C::sigmoid_low ? typename S::V{} : fma(e.scale, e.p, e.scale);
}

// e^z; where that is no normal number, 0, or the largest that is computed.
template <class S>
RNNFAST_INLINE typename S::V exp(typename S::V z) {
  return exp_not_positive<S>(min(S::broadcast(ExpConstants<typename S::Real>::sigmoid_high), z));
}

// log(1 + t) for t in [0, 2]. With 1 + t = u, or 2 u where t is large, u in [sqrt(1/2), 3/2], and
// s = (u - 1) / (u + 1) it is log u = 2 (s + s^3 / 3 + s^5 / 5 + ...), or ln 2 more; for t up to 1 the terms left out
// are below 3e-9 s in float, 3e-17 s in double, beyond that, where |s| <= 1/5, below 2e-8 s and 6e-16 s. Worst error of
// 20,000 samples: 1.76 ULP in float, 1.88 ULP in double.
template <class S>
RNNFAST_INLINE typename S::V log_one_plus(typename S::V t) {
  using Real = typename S::Real;
  constexpr Real ln2 = Real(0x1.62e42fefa39efp-1), large = Real(0.41421356237309503);
  constexpr int last = sizeof(Real) == sizeof(float) ? 9 : 19;
  const auto is_large = t > large;
  const auto s = (is_large ? t - 1 : t) / (is_large ? t + 3 : t + 2), s2 = s * s;
  auto q = typename S::V{};
#pragma GCC unroll 16
  for (int odd = last; odd > 1; odd -= 2) q = (q + 1 / Real(odd)) * s2;
  return (is_large ? S::broadcast(ln2) : typename S::V{}) + 2 * fma(s, q, s);
}

template <class S>
RNNFAST_INLINE typename S::V log_sigmoid(typename S::V x) {
  return min(S::broadcast(0), x) - log_one_plus<S>(exp_not_positive<S>(-magnitude<S>(x)));
}

// log x for x >= 1. With x = 2^n m, m in [sqrt(1/2), sqrt(2)) and s = (m - 1) / (m + 1) it is
// n ln 2 + 2 (s + s^3 / 3 + s^5 / 5 + ...); the terms left out are below 2e-18.
RNNFAST_INLINE double log_from_one(double x) {
  constexpr double ln2 = 0x1.62e42fefa39efp-1;
  constexpr std::int64_t sqrt_half = 0x3fe6a09e667f3bcd, bias = 1023;  // as bits
  const std::int64_t n = (__builtin_bit_cast(std::int64_t, x) - sqrt_half) >> 52;
  const double m = x * __builtin_bit_cast(double, (bias - n) << 52);  // and not from bits, so that NaN passes
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double q = 0;
#pragma GCC unroll 16
  for (int odd = 21; odd > 1; odd -= 2) q = (q + 1.0 / odd) * s2;
  return double(n) * ln2 + 2 * (s + s * q);
}

// ---- By the exponential function ------------------------------------------------------------------------------------

// 1 / (1 + e^-x). What rounding takes from scale + 1 is put back, because a large scale would swallow the 1.
// Worst error in float: 1.67 ULP.
template <class S>
RNNFAST_INLINE typename S::V sigmoid_by_exp(typename S::V x) {
  using C = ExpConstants<typename S::Real>;
  using V = typename S::V;
  const V z = max(S::broadcast(C::sigmoid_low), min(S::broadcast(C::sigmoid_high), -x));
  const Exp<S> e = exp_parts<S>(z);
  const V sum = e.scale + 1, lost = 1 - (sum - e.scale);
  return 1 / (sum + fma(e.scale, e.p, lost));
}

// With m = e^{2|x|} - 1: t = tanh |x| = m / (m + 2), which does not cancel near zero; where m is small, m / 2 (1 - t)
// rounds less. Worst error in float: 1.79 ULP, without fused multiply-add 1.94.
template <class S>
RNNFAST_INLINE typename S::V tanh_by_exp(typename S::V x) {
  using C = ExpConstants<typename S::Real>;
  using V = typename S::V;
  const V a = min(S::broadcast(C::tanh_high), magnitude<S>(x));
  const Exp<S> e = exp_parts<S>(a + a);
  const V m = fma(e.scale, e.p, e.scale - 1), half = m * typename S::Real(0.5);
  const V quotient = m / (m + 2);
  return copy_sign(m < typename S::Real(0.8) ? fma(-half, quotient, half) : quotient, x);
}

// ---- By tables ------------------------------------------------------------------------------------------------------

template <class S, int entries>
constexpr int scale_bits = ExpConstants<typename S::Real>::mantissa_bits - __builtin_ctz(entries);

// 2^(j / entries), less what adding n = m entries + j to the exponent's place adds beside m.
template <class S, int entries>
constexpr Entries<typename S::Real, entries> scales_of() {
  using Real = typename S::Real;
  using Word = typename BitsOf<Real>::word;
  Entries<Real, entries> scales = {};
  for (int j = 0; j < entries; ++j) {
    const Word bits = __builtin_bit_cast(Word, SigmoidTable<Real, entries>::scales[j]);
    scales.set(j, __builtin_bit_cast(Real, bits - (Word(j) << scale_bits<S, entries>)));
  }
  return scales;
}

// e^x / (e^x + 1) = 2^(n / entries) / (2^(n / entries) + e^-r), both multiplied by a factor kappa, with
// n = round(x entries / ln 2): no 1 is added to a large or a small number, and the quotient never exceeds 1.
// Worst error in float: 1.64 ULP with 8 entries, 1.89 ULP with 16; in double 1.82 ULP, of 10^8 samples.
template <class S, int entries>
RNNFAST_INLINE typename S::V sigmoid_by_table(typename S::V x) {
  using Real = typename S::Real;
  using C = ExpConstants<Real>;
  using Table = SigmoidTable<Real, entries>;
  using V = typename S::V;
  using Words = typename S::Words;
  static constexpr Entries<Real, entries> scales = scales_of<S, entries>();
  const V z = max(S::broadcast(-C::sigmoid_high), min(S::broadcast(C::sigmoid_high), x));
  const V shifted = fma(z, S::broadcast(Table::steps), S::broadcast(C::round)), n = shifted - C::round;
  const V r = fma(n, S::broadcast(-Table::step_low), fma(n, S::broadcast(-Table::step_high), z));
  const Words power = reinterpret_cast<Words>(shifted) << scale_bits<S, entries>;
  const V scale = reinterpret_cast<V>(reinterpret_cast<Words>(look_up(scales, shifted)) + power);
  constexpr int degree = int(sizeof(Table::c) / sizeof(Real)) - 1;
  V d = S::broadcast(Table::c[degree]);
#pragma GCC unroll 8
  for (int k = degree - 1; k >= 0; --k) d = fma(d, r, S::broadcast(Table::c[k]));
  return scale / (scale + d);
}

// With |x| = n step + r, T = tanh(n step) and r coth r = 1 + r^2 q(r^2):
//   tanh |x| = T + (1 - T^2) tanh r / (1 + T tanh r) = T + (1 - T^2) r / (r coth r + T r),
// a small correction of T, or, where T = 0, relative to r. Where the step is a power of two, r comes without products.
// Where the table has no 1 - T^2, T is so close to tanh(n step) that it can be computed. A long q is summed in two
// chains, of the even places and of the odd ones, but for its last terms.
// Worst error in float: 1.55 ULP with 8 entries, 1.79 ULP with 32; in double 1.61 ULP with 8, 1.52 ULP with 16, of 10^8
// samples.
template <class S, int entries>
RNNFAST_INLINE typename S::V tanh_by_table(typename S::V x) {
  using Real = typename S::Real;
  using Table = TanhTable<Real, entries>;
  using V = typename S::V;
  constexpr Real round = ExpConstants<Real>::round;
  const V a = min(S::broadcast(Table::high), magnitude<S>(x));
  V index, r;
  if constexpr (Table::step == Real(0.5)) {
    index = a + round * Table::step;
    r = a - (index - round * Table::step);
  } else {
    index = fma(a, S::broadcast(Table::steps), S::broadcast(round));
    r = fma(index - round, S::broadcast(-Table::step), a);
  }
  static constexpr Entries<Real, entries> values = entries_of(Table::values);
  const V T = look_up(values, index), u = r * r;
  V slope;
  if constexpr (requires { Table::slopes; }) {
    static constexpr Entries<Real, entries> slopes = entries_of(Table::slopes);
    slope = look_up(slopes, index);
  } else {
    slope = fma(-T, T, S::broadcast(1));
  }
  constexpr int terms = int(sizeof(Table::q) / sizeof(Real)), in_two = terms > 8 ? terms - 2 : 0;
  static_assert(in_two % 2 == 0);
  V q = S::broadcast(Table::q[0]);
  if constexpr (in_two > 0) {
    const V u2 = u * u;
    V odd = S::broadcast(Table::q[1]);
#pragma GCC unroll 8
    for (int k = 2; k < in_two; k += 2) {
      q = fma(q, u2, S::broadcast(Table::q[k]));
      odd = fma(odd, u2, S::broadcast(Table::q[k + 1]));
    }
    q = fma(q, u, odd);
  }
#pragma GCC unroll 8
  for (int k = in_two > 0 ? in_two : 1; k < terms; ++k) q = fma(q, u, S::broadcast(Table::q[k]));
  return copy_sign(T + slope * r / fma(fma(q, r, T), r, S::broadcast(1)), x);
}

// ---- As the instruction set has it ----------------------------------------------------------------------------------

// Entries that are looked up at once; 0: the processor cannot.
template <class Real>
#if defined(__AVX512F__)
constexpr int sigmoid_entries = 64 / sizeof(Real);
#elif defined(__AVX2__)
constexpr int sigmoid_entries = 8;
#else
constexpr int sigmoid_entries = 0;
#endif
template <class Real>
#if defined(__AVX512F__)
constexpr int tanh_entries = 128 / sizeof(Real);
#else
constexpr int tanh_entries = sigmoid_entries<Real>;
#endif

template <class S>
RNNFAST_INLINE typename S::V sigmoid(typename S::V x) {
  constexpr int entries = sigmoid_entries<typename S::Real>;
  if constexpr (entries > 0)
    return sigmoid_by_table<S, entries>(x);
  else
    return sigmoid_by_exp<S>(x);
}

template <class S>
RNNFAST_INLINE typename S::V tanh(typename S::V x) {
  constexpr int entries = tanh_entries<typename S::Real>;
  if constexpr (entries > 0)
    return tanh_by_table<S, entries>(x);
  else
    return tanh_by_exp<S>(x);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
