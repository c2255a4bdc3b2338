// The products of backward: dh and dx, dgates times weights, row by row; the weights' gradients, x and h times dgates,
// over all rows.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/gemm.h"
#include "kernels/products/pack.h"
#include "kernels/products/pairs.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// out = init + dgates w, row by row, over `gates` slots of dgates from `slot` on and gates of w from `gate` on. Where
// panels have words, so do the dgates: lanes of half as many, of blocks of half as many units.
struct Factor {
  int slot, gate, gates;
};

template <class Real>
struct Product {
  Gates<Real> dgates;
  Index gate_row;
  View<const Real> init;  // null: zeros
  View<Real> out;
  Index rows;
  Span columns;  // blocks of out, from the start of a group to the end of one
  bool backwards = false;
};

template <class Real>
void multiply_strip(const Product<Real>& p, int slots, const Factor& factor, const TransposedPanels<Real>& w) {
  constexpr Index W = Widest<Real>::lanes;
  const Index K = panel_rows(w) >> w.rounds, full = w.units.full * W;
  // The groups of a tile meet the same dgates.
  const int at_once = w.reach.head ? group_of_columns : unit_group(1, p.rows == 1);
  for_each_range<Real>(w.columns, p.columns, at_once, p.backwards, [&](const BlockRange& range) {
    const Index group = min_index(range.blocks, group_of_columns);
    const Index first = first_block(w, range.unit), last = first + block_count(w);
    const auto operand = [&](Index unit, Index lanes, Index n) {
      Operand<Real> o = {};
      if (n == 0) return o;
      const Index before = (unit - first * W) >> w.rounds;
      unit >>= w.rounds, lanes >>= w.rounds;
      o.a = gates_at(p.dgates, unit, p.gate_row, lanes, slots) + factor.slot * lanes;
      o.a_row = slots * lanes, o.a_k = 1, o.a_block = lanes * p.dgates.rows * slots;
      o.panel_k = group * range.lanes, o.panel_unit = K * o.panel_k, o.panel_block = lanes * w.gates * o.panel_k;
      o.panel = w.data + range.unit * K + (before * w.gates + factor.gate * lanes) * o.panel_k;
      o.K = factor.gates * lanes, o.blocks = n;
      return o;
    };
    Tile<Real> t = {};
    t.first = operand(first * W, W, min_index(last, w.units.full) - first);
    t.second = operand(full, w.units.tail, last > w.units.full ? 1 : 0);
    t.out = p.out.data + range.unit, t.out_row = p.out.stride, t.out_unit = group * range.lanes;
    if (p.init.data) t.init = p.init.data + range.unit, t.init_row = p.init.stride, t.init_unit = t.out_unit;
    t.valid = range.valid;
    t.far = is_far(w, p.rows), t.backwards = p.backwards;
    // A group of columns is to a tile what the gates of one unit block are.
    BlockRange groups = range;
    groups.blocks /= group;
    tile_rows(tiles_of<Real>(int(group), int(group), groups, factors_of(w)), t, p.rows);
  });
}

// The same of large matrices: signals are heard between some groups of columns.
template <class Real>
__attribute__((noinline)) void multiply_groups(const Product<Real>& p, int slots, const Factor& factor,
                                               const TransposedPanels<Real>& w, const Team& team) {
  constexpr Index at_once = 4 * group_of_columns;
  const Index pieces = (p.columns.last - p.columns.first + at_once - 1) / at_once;
  Product<Real> some = p;
  for (Index i = 0; i < pieces && !team.interrupted(team); ++i) {
    some.columns.first = p.columns.first + (p.backwards ? pieces - 1 - i : i) * at_once;
    some.columns.last = min_index(some.columns.first + at_once, p.columns.last);
    multiply_strip(some, slots, factor, w);
  }
}

template <class Real>
void multiply(const Product<Real>& p, int slots, const Factor& factor, const TransposedPanels<Real>& w,
              const Team& team) {
  for (Index row = 0; row < p.rows; row += rows_at_once) {
    if (skips(team, row)) return;
    Product<Real> strip = p;
    strip.gate_row += row, strip.out = at(p.out, row), strip.rows = min_index(rows_at_once, p.rows - row);
    if (p.init.data) strip.init = at(p.init, row);
    strip.backwards = p.backwards != turns_back(row / rows_at_once);
    if (strip.rows * panel_rows(w) < least_asked)
      multiply_strip(strip, slots, factor, w);
    else
      multiply_groups(strip, slots, factor, w, team);
  }
}

// The padding of dgates meets zero rows of the packed weights; it must not be NaN.
template <class Real>
void clear_padding(const Gates<Real>& dgates, int slots, const Blocks& units) {
  Real* tail = dgates.data + units.full * Widest<Real>::lanes * dgates.rows * slots;
  for (Index j = 0; j < dgates.rows * slots * units.tail; ++j) tail[j] = 0;
}

// Rounds the groups of the span where they lie.
template <class Real>
void round_groups(const TransposedPanels<Real>& p, Span span) {
  constexpr Index W = group_of_columns * Widest<Real>::lanes;
  const Index first = span.first * W, last = min_index(span.last * W, p.columns.units);
  round_numbers(p.data + first * panel_rows(p), (last - first) * panel_rows(p));
}

// Up to so many inputs, the tiles of dx would be mostly padding.
constexpr bool is_thin(Index I) { return I <= 4; }

constexpr bool has_thin_dx(const Problem& p) { return is_thin(p.I) && !p.rounded; }

// out = dgates w for a thin w, over the gates of the input: dot products, a lane at a time. The last unit block has
// vectors of its own.
template <int gates, class Last, class Real>
void multiply_thin_rows(const Product<Real>& p, int slots, const Panels<Real>& w, const Team& team) {
  using Wide = Widest<Real>;
  const Index shift = slots - gates, full = w.units.full * Wide::lanes;
  const Index next_a = p.dgates.rows * slots * Wide::lanes, next_b = w.K * gates * Wide::lanes;
  for (Index row = 0; row < p.rows; ++row) {
    if (row % rows_at_once == 0 && skips(team, row)) return;
    const Real* const first = gates_at(p.dgates, 0, p.gate_row + row, Wide::lanes, slots) + shift * Wide::lanes;
    const Real* const last = gates_at(p.dgates, full, p.gate_row + row, Last::lanes, slots) + shift * Last::lanes;
    for (Index column = 0; column < w.K; ++column) {
      typename Wide::V sums[gates] = {};
      const Real *a = first, *b = w.data + column * gates * Wide::lanes;
      for (Index block = 0; block < w.units.full; ++block, a += next_a, b += next_b)
#pragma GCC unroll 4
        for (int gate = 0; gate < gates; ++gate)
          sums[gate] = fma(Wide::load(a + gate * Wide::lanes), Wide::load(b + gate * Wide::lanes), sums[gate]);
      Real tail = 0;
      if (w.units.tail) {
        b = panel(w, full) + column * gates * Last::lanes;
#pragma GCC unroll 4
        for (int gate = 0; gate < gates; ++gate) {
          const auto u = Last::load(last + gate * Last::lanes), v = Last::load(b + gate * Last::lanes);
          if constexpr (Last::lanes == Wide::lanes)
            sums[gate] = fma(u, v, sums[gate]);
          else
            tail += sum_lanes<Last>(u * v);
        }
      }
#pragma GCC unroll 4
      for (int gate = 1; gate < gates; ++gate) sums[0] = sums[0] + sums[gate];
      p.out.data[row * p.out.stride + column] = sum_lanes<Wide>(sums[0]) + tail;
    }
  }
}

template <int gates, class Real>
void multiply_thin(const Product<Real>& p, int slots, const Panels<Real>& w, const Team& team) {
  with_width<Real>(w.units.tail ? tail_of<Real>(w.units) : BlockRange{},
                   [&]<class Last> { multiply_thin_rows<gates, Last>(p, slots, w, team); });
}

// Vectors of a tile of weight gradients: all gates of a unit block, or one gate of several.
constexpr int unit_blocks_of(int gates) { return gates >= 3 ? 1 : 4 / gates; }

// Columns of a tile, the same for all products of a cell: as many as all of its tiles can have.
constexpr int columns_of_tile(const Problem& p) {
  const CellShape& cell = *p.cell;
  if (p.masks > 1) return most_rows(4);  // those of single gates
  int N = unit_blocks_of(cell.gate_count) * cell.gate_count;
  for (int i = 0; i < cell.phase_count; ++i)
    N = int(max_index(N, unit_blocks_of(cell.phases[i].gates) * cell.phases[i].gates));
  return most_rows(N);
}

// Rows of x or h', regrouped so that a tile reads its columns one after the other: [tile][row][columns]. A last column
// of ones makes the gradient of the bias another column of that of the weights. Or rows by twos, as words.
template <class Real>
struct Columns {
  Real* data;
  Index count, rows;
  int width;  // columns of a tile
  bool rounds = false;
};

template <class Real>
constexpr Index size(const Columns<Real>& c) {
  return (c.count + c.width - 1) / c.width * c.width * c.rows;
}

// Tile by tile, for a few rows at a time. Tiles may be as far apart as to share few lines of the cache: if each row
// went to all of them, a line would be gone before the next row comes to it.
template <int M, class Real>
void regroup_tiles(View<const Real> a, const RowRange& range, const Columns<Real>& to, const Team& team) {
  constexpr Index at_once = 16;  // rows of M numbers: whole lines
  const Index K = to.count - 1, rest = K % M;
  for (Index row = 0, rows; row < range.count; row += rows) {
    if (row % rows_at_once == 0 && skips(team, row)) return;
    rows = min_index(at_once, range.count - row);
    const Real* from = a.data + row * a.stride;
    Real* tile = to.data + (range.first + row) * M;
    for (const Real* const end = from + K - rest; from < end; from += M, tile += to.rows * M)
      for (Index i = 0; i < rows; ++i)
        __builtin_memcpy(tile + i * M, from + i * a.stride, M * sizeof(Real));  // of constant size: two moves
    for (Index i = 0; i < rows; ++i) {
      for (Index k = 0; k < rest; ++k) tile[i * M + k] = from[i * a.stride + k];
      tile[i * M + rest] = 1;
    }
  }
}

template <class Real>
void regroup(View<const Real> a, const RowRange& range, const Columns<Real>& to, const Team& team) {
  if (to.width == most_rows(3))
    regroup_tiles<most_rows(3)>(a, range, to, team);
  else
    regroup_tiles<most_rows(4)>(a, range, to, team);
}

// Rounds a row of them where it lies.
template <class Real>
void round_row(const Columns<Real>& c, Index row) {
  for (Index column = 0; column < c.count; column += c.width)
    round_numbers(c.data + column * c.rows + row * c.width, min_index(c.width, c.count - column));
}

// Columns that are taken together, a multiple of any tile's height, and tiles of dgates that pass over them: both stay
// in the second cache level.
constexpr Index columns_at_once = 192, tiles_at_once = 4;

// A row that is multiplied by factors, if there are some; null: zeros.
template <class Real>
struct FactoredRow {
  const Real *data, *factors;
};

// The same of two rows.
template <int M, class Real>
void regroup_two(const FactoredRow<Real>& first, const FactoredRow<Real>& second, Index place,
                 const Columns<Real>& to) {
  using S = Widest<Real>;
  const Index K = to.count - 1;
  const auto load = [](const FactoredRow<Real>& row, Index k, int valid) {
    if (!row.data) return typename S::V{};
    const typename S::V v = load_lanes<S>(row.data + k, valid);
    return row.factors ? v * load_lanes<S>(row.factors + k, valid) : v;
  };
  alignas(64) Real words[columns_at_once + S::lanes];
  for (Index column = 0; column < to.count; column += columns_at_once) {
    const Index end = min_index(column + columns_at_once, K);
    for (Index k = column; k < end; k += S::lanes) {
      const int valid = int(min_index(S::lanes, end - k));
      if constexpr (has_formats<Real>)
        S::store(words + k - column, pairs_of<S>(load(first, k, valid), load(second, k, valid)));
    }
    if (K < column + columns_at_once) {
      const std::uint32_t ones = 0x3f803f80;
      __builtin_memcpy(words + K - column, &ones, sizeof(ones));
    }
    const Index last = min_index(column + columns_at_once, to.count);
    for (Index k = column; k < last; k += M)
      __builtin_memcpy(to.data + k * to.rows + place * M, words + k - column, M * sizeof(Real));
  }
}

// Regroups rows as they come, by twos, to words from `place` on; at the end, an odd last one.
template <class Real>
struct RegroupedPairs {
  const Columns<Real>& to;
  Index place;
  FactoredRow<Real> waiting = {};  // of rows without columns, null
  bool waits = false;
};

template <class Real>
void regroup_pair(RegroupedPairs<Real>& pairs, const FactoredRow<Real>& second) {
  if (!pairs.waits) return;
  if (pairs.to.width == most_rows(3))
    regroup_two<most_rows(3)>(pairs.waiting, second, pairs.place++, pairs.to);
  else
    regroup_two<most_rows(4)>(pairs.waiting, second, pairs.place++, pairs.to);
  pairs.waits = false;
}

template <class Real>
void regroup(View<const Real> a, Index count, View<const Real> factors, RegroupedPairs<Real>& pairs) {
  for (Index i = 0; i < count; ++i) {
    const FactoredRow<Real> row = {at(a, i).data, factors.data ? at(factors, i).data : nullptr};
    if (pairs.waits)
      regroup_pair(pairs, row);
    else
      pairs.waiting = row, pairs.waits = true;
  }
}

// dw [unit block][column][gate x lanes] = or += sum over rows, in descending order, of columns^T dgates: `gates` gates
// of dw from `gate` on, and as many of the slots of dgates from `slot` on. Where columns have words, so do dgates.
template <class Real>
struct WeightProduct {
  Gates<Real> dgates;
  Columns<Real> columns;
  Panels<Real> dw;
  int slots, slot, gate, gates;
  Index rows;
  bool add;
};

// The chains are cut on the rows of the chunk, and the chunk is summed up before it is added to the gradients: a run
// that begins here sums like one that passes.
template <class Real>
void add_products(const WeightProduct<Real>& w, Span span, const Team& team) {
  constexpr Index most_columns = 4 * Widest<Real>::lanes;  // of all gates and blocks of a tile
  alignas(64) Real sums[columns_at_once * most_columns];
  const Index M = w.columns.width, group = unit_blocks_of(w.gates);
  const Index chains = chain_count(w.rows), length = (w.rows + chains - 1) / chains;
  const bool apart = w.add && chains > 1;
  for (Index unit = span.first; unit < span.last; unit += group * tiles_at_once) {
    const Span units = {.first = unit, .last = min_index(unit + group * tiles_at_once, span.last)};
    for (Index first = 0; first < w.columns.count; first += columns_at_once) {
      const Index columns = min_index(columns_at_once, w.columns.count - first);
      if ((first > 0 || unit > span.first) && team.interrupted(team)) return;
      for_each_range<Real>(w.dw.units, units, int(group), false, [&](const BlockRange& range) {
        if (skips(team, w.rows)) return;
        const Index sum_row = w.gates * range.lanes, sum_unit = columns_at_once * sum_row;
        const Index total_row = w.dw.gates * range.lanes, total_unit = w.dw.K * total_row;
        Real* const total = panel(w.dw, range.unit) + first * total_row + w.gate * range.lanes;
        Real* const out = apart ? sums : total;
        Tile<Real> t = {};
        const Tiles<Real> tiles =
            tiles_for(t, w.gates, w.gates, range, w.columns.rounds ? Factors::row_pairs : Factors::numbers);
        t.first.a_row = 1, t.first.a_k = -M;
        t.first.panel_k = -Index(w.slots * range.lanes);
        t.first.panel_unit = w.dgates.rows * w.slots * range.lanes;
        t.first.blocks = 1;
        t.out_row = apart ? sum_row : total_row, t.out_unit = apart ? sum_unit : total_unit;
        t.valid = w.gates * range.lanes;
        for (Index high = w.rows; high > 0; high -= length) {
          t.first.K = min_index(high, length);
          t.first.panel = gates_at(w.dgates, range.unit, high - 1, range.lanes, w.slots) + w.slot * range.lanes;
          t.add = high < w.rows || (w.add && !apart);
          for (Index column = 0; column < columns; column += M) {
            t.first.a = w.columns.data + (first + column) * w.columns.rows + (high - 1) * M;
            t.out = out + column * t.out_row;
            tile_column(tiles, t, min_index(M, columns - column), NoEpilogue());
          }
        }
        if (!apart) return;
        for (Index i = 0; i < range.blocks; ++i)
          for (Index column = 0; column < columns; ++column)
            add_vectors(sums + i * sum_unit + column * sum_row, sum_row, total + i * total_unit + column * total_row);
      });
    }
  }
}

// The gradient of w_hh of heads: of a unit block, the columns that it reads, from the start of a tile on, and behind
// them the tile that ends with the bias.
template <class Real>
constexpr Panels<Real> head_gradients(const Problem& p, const Blocks& units) {
  const Index M = columns_of_tile(p);
  Reach reach = reach_of(p.P, p.head, Widest<Real>::lanes);
  reach.align = M;
  return {.data = nullptr,
          .units = units,
          .K = reach.width + M - 1 + M,
          .gates = p.cell->gate_count,
          .first = 0,
          .reach = reach};
}

// The row of the bias in a gradient of w_hh.
template <class Real>
constexpr Index bias_row(const Problem& p, const Panels<Real>& dw_hh) {
  const Index M = columns_of_tile(p);
  return p.head == p.P ? p.P : dw_hh.K - M + p.P % M;
}

template <class Real>
void add_head_products(const WeightProduct<Real>& w, Span span, const Team& team) {
  const Index M = w.columns.width, H = w.columns.count - 1, tile = H / M * M;
  for (Index block = span.first; block < span.last; ++block) {
    const BlockWidth width = width_of<Real>(w.dw.units, block);
    const Index first = first_read(w.dw.reach, width.unit), most = w.dw.K - M;
    const auto add = [&](Index column, Index count, Index row) {
      WeightProduct<Real> part = w;
      part.columns.data += column * part.columns.rows, part.columns.count = count;
      part.dw.data += row * part.dw.gates * width.lanes;
      add_products(part, Span{.first = block, .last = block + 1}, team);
    };
    add(first, min_index(most, H - first), 0);
    add(tile, H + 1 - tile, most);
  }
}

// The gradients of a cell's vectors of units: sums of what each row adds to them, in the chains of the products. Where
// rows are normalised, those of b_ih and b_hh are among them.
template <class Real>
struct VectorSums {
  Gates<Real> terms;  // slots are vectors, `slots` of them
  int slots;
  Blocks units;
  Index rows;
  bool add;
};

template <class Real>
void sum_vectors(const Problem& p, const VectorSums<Real>& s, Span span, const Parameters<Real>& gradients) {
  const CellShape& cell = *p.cell;
  const Index chains = chain_count(s.rows), length = (s.rows + chains - 1) / chains;
  const auto sum_block = [&]<class S>(const BlockRange& range, int slot, Real* out) {
    typename S::V total = {};
    for (Index high = s.rows; high > 0; high -= length) {
      typename S::V sum = {};
      for (Index row = high; row-- > max_index(high - length, 0);)
        sum = sum + S::load(gates_at(s.terms, range.unit, row, S::lanes, s.slots) + slot * S::lanes);
      total = total + sum;
    }
    store_lanes<S>(out, s.add ? total + load_lanes<S>(out, range.valid) : total, range.valid);
  };
  const auto sum = [&](int slot, int count, Real* out) {  // [count·H]; null: not wanted
    for (int vector = 0; out && vector < count; ++vector)
      for_each_block<Real>(s.units, span, [&]<class S>(const BlockRange& range) {
        sum_block.template operator()<S>(range, slot + vector, out + vector * p.H + range.unit);
      });
  };
  for (int i = 0, slot = 0; i < cell.parameter_count; slot += cell.parameters[i++].count)
    sum(slot, cell.parameters[i].count, gradients.vectors[i]);
  if (!is_normalised(cell)) return;
  sum(cell.vector_count, cell.gate_count, gradients.b_ih);
  sum(cell.vector_count + cell.gate_count, cell.gate_count, gradients.b_hh);
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
