// Panels with holes. Where weights are packed once, each vector of a panel, a gate of a unit block, may list the k
// whose weights are not all zero: the products read those alone. A zero that is left out changes no sum, so the bits
// are those of the whole panel.
//
// Lists of some vectors are walked side by side, so that several sums are under way, and have the same length: chain by
// chain, the shorter ones end in zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// The lists of the groups of unit blocks whose panels are lists.
struct Lists {
  Column* places;         // [group][number][vector], the k, or where 4 numbers make a word, its place; null: none
  std::int32_t* lengths;  // [group][chain], of which the first is negative where a group's panel is whole
};

// Vectors side by side: unit blocks, and their gates.
constexpr int list_blocks(int gates) { return gates > 2 ? 1 : 4 / gates; }

template <class Real>
constexpr Index list_groups(const Panels<Real>& p) {
  return p.units.full / list_blocks(p.gates);
}

// Chains of a panel, whose words are of whole chains: none where a word of two k would belong to two.
template <class Real>
constexpr Index list_chains(const Panels<Real>& p) {
  if (p.shift == 2) return 1;  // integers
  const Index chains = chain_count(p.K), length = (p.K + chains - 1) / chains;
  return p.shift == 1 && chains > 1 && length % 2 != 0 ? 0 : chains;
}

template <class Real>
constexpr bool may_have_lists(const Panels<Real>& p) {
  return !p.reach.last && words_of(p.K, p.shift) <= 0xffff && list_chains(p) > 0;
}

// Entries of a list at most.
template <class Real>
constexpr Index list_room(const Panels<Real>& p) {
  return words_of(p.K, p.shift) << (p.shift == 1);
}

template <class Real>
Lists take_lists(Arena<Real>& arena, const Panels<Real>& p) {
  if (!may_have_lists(p)) return {};
  const auto room = [&](Index n, Index bytes) {
    constexpr Index item = sizeof(Real);
    return const_cast<void*>(static_cast<const void*>(take(arena, (n * bytes + item - 1) / item)));
  };
  const Index vectors = list_groups(p) * list_blocks(p.gates) * p.gates;
  return {.places = static_cast<Column*>(room(vectors * list_room(p), sizeof(Column))),
          .lengths = static_cast<std::int32_t*>(room(list_groups(p) * list_chains(p), sizeof(std::int32_t)))};
}

// One group: its unit blocks, their places and the lengths of its chains.
template <class Real>
struct ListGroup {
  Real* panel;
  Column* places;
  std::int32_t* lengths;
  Index chains, unit, k;  // strides of the panel
};

template <class Real>
RNNFAST_INLINE ListGroup<Real> group_of(const Lists& lists, const Panels<Real>& p, Index block) {
  constexpr Index W = vector_bytes / Index(sizeof(Real));
  const Index group = block / list_blocks(p.gates), vectors = list_blocks(p.gates) * p.gates;
  return {.panel = panel(p, block * W),
          .places = lists.places + group * vectors * list_room(p),
          .lengths = lists.lengths + group * list_chains(p),
          .chains = list_chains(p),
          .unit = words_of(p.K, p.shift) * p.gates * W,
          .k = p.gates * W};
}

template <class Real>
RNNFAST_INLINE bool is_whole(const ListGroup<Real>& group) {
  return group.lengths[0] < 0;
}

// ---- Making lists ---------------------------------------------------------------------------------------------------

// One vector of a panel, by its numbers: words of 32 or 64 bits, or halves of them. Of integers, 4 in a word are one.
struct NumbersOfVector {
  unsigned char* data;  // of the first word
  Index word, item;     // bytes from one word to the next, and of a word
  bool pairs, is_floating;

  RNNFAST_INLINE Index bytes() const { return pairs ? item / 2 : item; }
  RNNFAST_INLINE unsigned char* at(Index k, Index lane) const {
    return data + (pairs ? k / 2 : k) * word + lane * item + (pairs && k % 2 ? bytes() : 0);
  }
};

template <class Real>
RNNFAST_INLINE NumbersOfVector numbers_of(const ListGroup<Real>& group, const Panels<Real>& p, Index n) {
  constexpr Index item = sizeof(Real);
  Real* const data = group.panel + n / p.gates * group.unit + n % p.gates * (vector_bytes / item);
  return {.data = reinterpret_cast<unsigned char*>(data),
          .word = group.k * item,
          .item = item,
          .pairs = p.shift == 1,
          .is_floating = p.shift < 2};
}

// Whether a number has a weight that is not zero, of whichever sign, in some lane.
RNNFAST_INLINE bool is_kept(const NumbersOfVector& v, Index k) {
  for (Index lane = 0; lane < vector_bytes / v.item; ++lane) {
    const unsigned char* const number = v.at(k, lane);
    for (Index i = 0; i < v.bytes(); ++i)
      if (v.is_floating && i + 1 == v.bytes() ? number[i] & 0x7f : number[i]) return true;
  }
  return false;
}

// The numbers of a chain.
template <class Real>
RNNFAST_INLINE Span numbers_of_chain(const Panels<Real>& p, Index chain) {
  const Index numbers = p.shift == 2 ? words_of(p.K, p.shift) : p.K, chains = list_chains(p);
  const Index length = (numbers + chains - 1) / chains;
  return {.first = min_index(chain * length, numbers), .last = min_index((chain + 1) * length, numbers)};
}

template <class F>
RNNFAST_INLINE void for_each_kept(const NumbersOfVector& v, const Span& numbers, F&& f) {
  for (Index k = numbers.first; k < numbers.last; ++k)
    if (is_kept(v, k)) f(k);
}

// Finds the lengths of a group's chains, and returns that of the list.
template <class Real>
Index measure_list(const Panels<Real>& p, const ListGroup<Real>& group) {
  Index length = 0;
  for (Index chain = 0; chain < group.chains; ++chain) {
    Index most = 0;
    for (Index n = 0; n < list_blocks(p.gates) * p.gates; ++n) {
      Index kept = 0;
      for_each_kept(numbers_of(group, p, n), numbers_of_chain(p, chain), [&](Index) { ++kept; });
      most = max_index(most, kept);
    }
    group.lengths[chain] = std::int32_t(p.shift == 1 ? most + most % 2 : most);
    length += group.lengths[chain];
  }
  return length;
}

// A list is written where the panel was: it never overtakes what is still to be read.
template <class Real>
void write_list(const Panels<Real>& p, const ListGroup<Real>& group) {
  const Index vectors = list_blocks(p.gates) * p.gates;
  Index first = 0;
  for (Index chain = 0; chain < group.chains; first += group.lengths[chain++])
    for (Index n = 0; n < vectors; ++n) {
      const NumbersOfVector v = numbers_of(group, p, n);
      Index to = first, place = 0;
      const auto put = [&](bool kept) {
        for (Index lane = 0; lane < vector_bytes / v.item; ++lane)
          if (kept)
            __builtin_memmove(v.at(to, lane), v.at(place, lane), std::size_t(v.bytes()));
          else
            __builtin_memset(v.at(to, lane), 0, std::size_t(v.bytes()));
        group.places[to++ * vectors + n] = Column(place);
      };
      for_each_kept(v, numbers_of_chain(p, chain), [&](Index k) { place = k, put(true); });
      while (to < first + group.lengths[chain]) put(false);
    }
}

// The panels of a matrix become lists, group by group, where these have at most half as many numbers: longer ones take
// as long. Where a quarter of the matrix cannot be left out that way, all panels stay as they are, since those between
// lists are read in smaller pieces. Whether there are lists now.
template <class Real>
__attribute__((noinline)) bool make_lists(const Panels<Real>& p, const Lists& lists) {
  const Index numbers = numbers_of_chain(p, list_chains(p) - 1).last;
  const auto of = [&](Index i) { return group_of(lists, p, i * list_blocks(p.gates)); };
  Index left_out = 0;
  for (Index i = 0; i < list_groups(p); ++i) {
    const Index length = measure_list(p, of(i));
    if (2 * length <= numbers)
      left_out += numbers - length;
    else
      of(i).lengths[0] = -1;
  }
  const bool pays = 4 * left_out >= numbers * list_groups(p);
  for (Index i = 0; i < list_groups(p); ++i)
    if (!pays)
      of(i).lengths[0] = -1;
    else if (!is_whole(of(i)))
      write_list(p, of(i));
  return pays && left_out > 0;
}

// ---- Products -------------------------------------------------------------------------------------------------------

// out = init + a list, of some rows by the vectors of a group; the strides are those of a tile.
template <class Real>
struct ListProduct {
  ListGroup<const Real> group;
  View<const Real> a;
  Index rows;
  const Real* init;  // null: zeros
  Index init_row, init_unit;
  Real* out;
  Index out_row, out_unit;
};

template <class S, int M, int N, int gates, bool pairs>
__attribute__((noinline)) void list_tile(const ListProduct<typename S::Real>& p, Index row) {
  using V = typename S::V;
  using Real = typename S::Real;
  const Real *a = p.a.data + row * p.a.stride, *w = p.group.panel;
  const Column* place = p.group.places;
  const auto out = [&](int m, int n) {
    return p.out + (row + m) * p.out_row + n / gates * p.out_unit + n % gates * S::lanes;
  };
  for (Index chain = 0; chain < p.group.chains; ++chain) {
    V acc[M][N];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const Real* init = p.init + (row + m) * p.init_row + n / gates * p.init_unit + n % gates * S::lanes;
        acc[m][n] = chain == 0 && p.init ? S::load(init) : V{};
      }
    const auto add = [&]<Word word>() {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const V vector = number_of<S, word>(S::load(w + n / gates * p.group.unit + n % gates * S::lanes));
        const Index k = place[n];
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) acc[m][n] = fma(S::broadcast(a[m * p.a.stride + k]), vector, acc[m][n]);
      }
      place += N;
    };
    for (std::int32_t i = 0; i < p.group.lengths[chain]; i += pairs ? 2 : 1, w += p.group.k) {
      if constexpr (pairs) {
        add.template operator()<Word::first_of_pair>();
        add.template operator()<Word::second_of_pair>();
      } else {
        add.template operator()<Word::number>();
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) S::store(out(m, n), chain == 0 ? acc[m][n] : acc[m][n] + S::load(out(m, n)));
  }
}

constexpr int most_list_rows = vector_registers == 32 ? 4 : 2;

template <class Real, int gates, bool pairs>
RNNFAST_INLINE void multiply_list_of(const ListProduct<Real>& p) {
  using S = Widest<Real>;
  constexpr int N = list_blocks(gates) * gates;
  Index row = 0;
  for (; row + most_list_rows <= p.rows; row += most_list_rows) list_tile<S, most_list_rows, N, gates, pairs>(p, row);
  for (; row < p.rows; ++row) list_tile<S, 1, N, gates, pairs>(p, row);
}

template <class Real>
void multiply_list(const ListProduct<Real>& p, int gates, bool pairs) {
  with_gates(gates, [&]<int G> {
    if constexpr (has_formats<Real>)
      if (pairs) return multiply_list_of<Real, G, true>(p);
    multiply_list_of<Real, G, false>(p);
  });
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
