// Panels with holes. Where weights are packed once, each vector of a panel, a gate of a unit block, may list the k
// whose weights are not all zero: the products read those alone. A zero that is left out changes no sum, so the bits
// are those of the whole panel.
//
// Lists of some vectors are walked side by side, so that several sums are under way, and have the same length: chain by
// chain, the shorter ones end in zeros.
#pragma once

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

// Whether a matrix has lists at all.
template <class Real>
bool has_lists(const Lists& lists, const Panels<Real>& p) {
  for (Index i = 0; lists.places && i < list_groups(p); ++i)
    if (lists.lengths[i * list_chains(p)] >= 0) return true;
  return false;
}

// ---- Making lists ---------------------------------------------------------------------------------------------------

// Lists that leave out less than half are not faster than the panel.
constexpr Index least_left_out = 2;

// A number of a panel, by its k, in the lane of a word: of 32 or 64 bits, or a half of one.
template <class Real>
struct NumberOfPanel {
  unsigned char* data;  // of the vector's first word
  Index word;           // stride in bytes
  int shift;

  RNNFAST_INLINE Index bytes() const { return Index(sizeof(Real)) >> (shift == 1); }
  RNNFAST_INLINE unsigned char* at(Index k, Index lane) const {
    const Index within = shift == 1 ? k % 2 : 0;
    return data + (shift == 1 ? k / 2 : k) * word + lane * Index(sizeof(Real)) + within * bytes();
  }
};

// Whether a k of a vector has a weight that is not zero, of whichever sign.
template <class Real>
bool is_kept(const NumberOfPanel<Real>& numbers, Index k) {
  for (Index lane = 0; lane < Widest<Real>::lanes; ++lane) {
    const unsigned char* const number = numbers.at(k, lane);
    for (Index i = 0; i < numbers.bytes(); ++i)
      if (numbers.shift < 2 && i + 1 == numbers.bytes() ? number[i] & 0x7f : number[i]) return true;
  }
  return false;
}

// The panels of a matrix become lists, group by group, where these are short. A list is written where the panel was: it
// never overtakes what is still to be read.
template <class Real>
__attribute__((noinline)) void make_lists(const Panels<Real>& p, const Lists& lists) {
  constexpr Index W = vector_bytes / Index(sizeof(Real));
  const Index numbers = p.shift == 2 ? words_of(p.K, p.shift) : p.K, chains = list_chains(p);
  const Index length = (numbers + chains - 1) / chains, vectors = list_blocks(p.gates) * p.gates;
  for (Index group = 0; group < list_groups(p); ++group) {
    const ListGroup<Real> of = group_of(lists, p, group * list_blocks(p.gates));
    const auto vector = [&](Index n) {
      Real* const data = of.panel + n / p.gates * of.unit + n % p.gates * W;
      return NumberOfPanel<Real>{reinterpret_cast<unsigned char*>(data), of.k * Index(sizeof(Real)), p.shift};
    };
    const auto for_each_kept = [&](Index n, Index chain, auto&& f) {
      for (Index k = chain * length; k < min_index((chain + 1) * length, numbers); ++k)
        if (is_kept(vector(n), k)) f(k);
    };
    Index all = 0;
    for (Index chain = 0; chain < chains; ++chain) {
      Index most = 0;
      for (Index n = 0; n < vectors; ++n) {
        Index kept = 0;
        for_each_kept(n, chain, [&](Index) { ++kept; });
        most = max_index(most, kept);
      }
      of.lengths[chain] = std::int32_t(p.shift == 1 ? most + most % 2 : most);
      all += of.lengths[chain];
    }
    if (all * least_left_out > numbers) {
      of.lengths[0] = -1;
      continue;
    }
    Index first = 0;  // of the chain, in the list
    for (Index chain = 0; chain < chains; first += of.lengths[chain++])
      for (Index n = 0; n < vectors; ++n) {
        const NumberOfPanel<Real> of_vector = vector(n);
        Index to = first, place = 0;
        const auto put = [&](Index k, bool kept) {
          for (Index lane = 0; lane < W; ++lane) {
            unsigned char* const number = of_vector.at(to, lane);
            if (kept)
              __builtin_memmove(number, of_vector.at(k, lane), std::size_t(of_vector.bytes()));
            else
              __builtin_memset(number, 0, std::size_t(of_vector.bytes()));
          }
          of.places[to * vectors + n] = Column(k);
          place = k, ++to;
        };
        for_each_kept(n, chain, [&](Index k) { put(k, true); });
        while (to < first + of.lengths[chain]) put(place, false);
      }
  }
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
