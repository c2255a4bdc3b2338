// Connectionist temporal classification (Graves, Fernandez, Gomez, Schmidhuber, ICML 2006): the probability that the
// rows of a sequence, each a softmax, spell U labels when repetitions are merged and blanks are left out.
//
// States are the blank before each label and the one behind the last, k = 0 .. U, and the labels, k = 0 .. U - 1. With
// e_t the logarithms of the rows' probabilities, a step keeps a state, goes on to the next one, or from a label to the
// next label if that is another one:
//
//   blank[t][k] = e_t(blank) + log(exp blank[t-1][k] + exp label[t-1][k-1])
//   label[t][k] = e_t(label k) + log(exp label[t-1][k] + exp blank[t-1][k] + exp label[t-1][k-1] unless it is the same)
//
// starts in the first blank before the first row, and ends in the last blank or the last label. Backward is the mirror
// image; it leaves e_t out, so that the sum of both, less log P, is the logarithm of the probability to be in a state:
//
//   loss = -log P,  dlogits[t][v] = scale (p_t[v] - sum over the states of class v of P(state at t))
//
// These logarithms are of double precision whatever the logits are: they grow with T, and differences of them matter.
#pragma once

#include "kernels/training/losses.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The logarithm of 0: finite, so that the difference of two of them is no NaN, and as good as one after any sum.
constexpr double never = -1e300;

// A row of states: so many vectors, a vector before them that nothing can be in, and one behind.
struct CtcRow {
  using S = Widest<double>;
  Index width;
  constexpr Index stride() const { return width + 2 * S::lanes; }
};

constexpr CtcRow ctc_row(Index U) {
  return {(U + Widest<double>::lanes) / Widest<double>::lanes * Widest<double>::lanes};
}

// What a member needs for one sequence: rows of both kinds before each step and at the end, the labels' e_t, two rows
// each of both kinds going back, which labels follow one like them, and for each step that of the blank.
constexpr Index ctc_scratch(Index T, Index U) { return (3 * T + 7) * ctc_row(U).stride() + T + 16; }

using CtcVector = Widest<double>::V;

RNNFAST_INLINE CtcVector log_add(CtcVector a, CtcVector b) {
  using S = Widest<double>;
  const CtcVector most = max(a, b);
  return most + log_one_plus<S>(exp_not_positive<S>(min(a, b) - most));
}

RNNFAST_INLINE CtcVector log_add(CtcVector a, CtcVector b, CtcVector c) {
  using S = Widest<double>;
  const CtcVector larger = max(a, b), most = max(larger, c);
  return most + log_one_plus<S>(exp_not_positive<S>(min(a, b) - most) + exp_not_positive<S>(min(larger, c) - most));
}

// Both kinds of states at a step, from a piece of memory for each kind.
struct CtcStates {
  double *blank, *label;
};

template <class Real>
struct Ctc {
  using S = Widest<double>;

  const CtcArgs<Real>& args;
  Index b, T, U;
  const Index* labels;
  CtcRow row;
  double *blanks, *label_states, *emitted, *back, *skips, *blank_emitted;

  Ctc(const CtcArgs<Real>& args, Index b, double* scratch)
      : args(args),
        b(b),
        T(args.lengths[b]),
        U(args.ends[b] - (b ? args.ends[b - 1] : 0)),
        labels(args.labels + (b ? args.ends[b - 1] : 0)),
        row(ctc_row(U)) {
    const Index n = row.stride();
    blanks = scratch + S::lanes;  // the first of each row's vectors lies behind the one that nothing can be in
    label_states = blanks + (T + 1) * n;
    emitted = label_states + (T + 1) * n;
    back = emitted + T * n;
    skips = back + 4 * n;
    blank_emitted = skips + n;
  }

  RNNFAST_INLINE CtcStates states(Index t) const {
    return {blanks + t * row.stride(), label_states + t * row.stride()};
  }
  RNNFAST_INLINE CtcStates backs(Index t) const {
    return {back + t % 2 * 2 * row.stride(), back + (t % 2 * 2 + 1) * row.stride()};
  }
  RNNFAST_INLINE Real* dlogits(Index t) const { return args.dlogits + (t * args.B + b) * args.V; }

  void clear(double* states) const {
    for (Index k = -S::lanes; k < row.width + S::lanes; ++k) states[k] = never;
  }

  void bound(double* states) const {
    S::store(states - S::lanes, S::broadcast(never));
    S::store(states + row.width, S::broadcast(never));
  }

  // Softmax of each row, left where its gradient will be, and the logarithms that the labels need.
  RNNFAST_INLINE void emit() const {
    for (Index t = 0; t < T; ++t) {
      const Real* logits = at(args.logits, t * args.B + b).data;
      const Softmax<Real> softmax = softmax_row(logits, args.V, Real(1), dlogits(t));
      const double log_total = log_from_one(double(softmax.total));
      const auto log_of = [&](Index v) {  // clamped so that NaN passes
        const double e = double(logits[v]) - double(softmax.most) - log_total;
        return e < never ? never : e;
      };
      double* e = emitted + t * row.stride();
      clear(e);
      for (Index k = 0; k < U; ++k) e[k] = log_of(labels[k]);
      blank_emitted[t] = log_of(args.blank);
    }
  }

  RNNFAST_INLINE double forward() const {
    clear(skips);
    for (Index k = 1; k < U; ++k) skips[k] = labels[k] == labels[k - 1] ? never : 0;
    clear(states(0).blank), clear(states(0).label);
    states(0).blank[0] = 0;
    for (Index t = 0; t < T; ++t) {
      const CtcStates from = states(t), to = states(t + 1);
      const double* e = emitted + t * row.stride();
      bound(to.blank), bound(to.label);
      for (Index k = 0; k < row.width; k += S::lanes) {
        const CtcVector blank = S::load(from.blank + k), label = S::load(from.label + k);
        const CtcVector before = S::load(from.label + k - 1);
        S::store(to.blank + k, log_add(blank, before) + blank_emitted[t]);
        S::store(to.label + k, log_add(label, blank, before + S::load(skips + k)) + S::load(e + k));
      }
    }
    return ends(states(T));
  }

  // log P, given the states behind the last row: both that the sequence may end in.
  RNNFAST_INLINE double ends(const CtcStates& last) const {
    const double label = U ? last.label[U - 1] : never;
    return log_add(S::broadcast(last.blank[U]), S::broadcast(label))[0];
  }

  RNNFAST_INLINE void backward(double log_p, double scale) const {
    for (Index which = 0; which < 2; ++which) clear(backs(which).blank), clear(backs(which).label);
    const CtcStates last = backs(T - 1);
    last.blank[U] = 0;
    if (U) last.label[U - 1] = 0;
    for (Index t = T - 1; t >= 0; --t) {
      const CtcStates here = backs(t), reached = states(t + 1), behind = backs(t + 1);
      const double* e = emitted + t * row.stride();
      CtcVector blank_sum = {};
      for (Index k = 0; k < row.width; k += S::lanes) {
        const CtcVector blank = S::load(here.blank + k), label = S::load(here.label + k);
        blank_sum = blank_sum + exp<S>(blank + S::load(reached.blank + k) - log_p);
        S::store(reached.label + k, exp<S>(label + S::load(reached.label + k) - log_p));  // which nobody needs again
        S::store(here.blank + k, blank + blank_emitted[t]);
        S::store(here.label + k, label + S::load(e + k));
      }
      subtract(t, sum_lanes<S>(blank_sum), reached.label, scale);
      for (Index k = 0; k < row.width; k += S::lanes) {
        const CtcVector blank = S::load(here.blank + k), label = S::load(here.label + k);
        const CtcVector next = S::load(here.label + k + 1) + S::load(skips + k + 1);
        S::store(behind.blank + k, log_add(blank, label));
        S::store(behind.label + k, log_add(label, S::load(here.blank + k + 1), next));
      }
    }
  }

  // From the softmax of a row, the probabilities of the states at it; then all is scaled.
  RNNFAST_INLINE void subtract(Index t, double blank, const double* label, double scale) const {
    Real* d = dlogits(t);
    d[args.blank] -= Real(blank);
    for (Index k = 0; k < U; ++k) d[labels[k]] -= Real(label[k]);
    using Row = Widest<Real>;
    for (Index v = 0; v < args.V; v += Row::lanes) {
      const int valid = int(min_index(Row::lanes, args.V - v));
      store_lanes<Row>(d + v, load_lanes<Row>(d + v, valid) * Real(scale), valid);
    }
  }

  void no_gradient(Index from) const {
    for (Index t = from; t < args.T; ++t)
      for (Index v = 0; v < args.V; ++v) dlogits(t)[v] = 0;
  }

  // The loss of the sequence, whose gradient is written.
  double run(double scale) const {
    no_gradient(T);
    emit();
    const double log_p = forward();
    if (log_p < never / 2) {  // no row that is spelled has a probability
      no_gradient(0);
      return double(infinity<float>);
    }
    if (T > 0) backward(log_p, scale);
    return -log_p;
  }
};

// A member takes every sequence whose number has its rank as remainder; the first one sums up the losses of all.
template <class Real>
void ctc(const CtcArgs<Real>& args, const Team& team) {
  const FloatingPointMode mode;
  const auto scale_of = [&](Index b) {
    const Index U = args.ends[b] - (b ? args.ends[b - 1] : 0);
    return args.mean ? 1 / (double(args.B) * double(max_index(U, 1))) : 1.0;
  };
  for (Index b = team.rank; b < args.B; b += team.size) {
    if (team.interrupted(team)) break;
    args.losses[b] = Ctc<Real>(args, b, args.scratch + team.rank * args.scratch_of_member).run(scale_of(b));
  }
  if (!team.barrier(team) || team.rank > 0) return;
  double sum = 0;
  for (Index b = 0; b < args.B; ++b) sum += scale_of(b) * args.losses[b];
  *args.loss = sum;
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
