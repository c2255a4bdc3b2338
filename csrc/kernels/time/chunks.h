// How time is cut into chunks, and a call among the members of a team.
//
// Rows are (t, b) pairs, row = t·B + b where all steps have B rows. Time is cut into chunks of about `chunk_rows` rows,
// on absolute time: they are the blocks of the tape, the unit in which the input is projected ahead and the weight
// gradients are summed up.
#pragma once

#include "kernels/layout.h"
#include "kernels/products/blocks.h"
#include "kernels/products/pack.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

// Rows of a chunk. Enough that a chunk's weight gradients, which are read and written once a chunk, cost little beside
// their products; large weight matrices want more. Few enough that dgates (G·H·rows) stay in the second cache level, or
// near it.
constexpr Index chunk_rows(Index H) { return H >= 512 ? 512 : 256; }

// A call of one step divides nothing to find its chunk: a stream would feel that.
constexpr Index chunk_steps(const Problem& p) {
  if (p.T == 1) return 1;
  const Index steps = chunk_rows(p.H) / (p.B > 0 ? p.B : 1);
  return steps < 1 ? 1 : min_index(steps, p.T);
}

constexpr Index row_of(const Problem& p, Index t) { return p.first_row ? p.first_row[t] : t * p.B; }

// The rows of a step are those of the first sequences.
constexpr Index rows_at(const Problem& p, Index t) { return row_of(p, t + 1) - row_of(p, t); }

constexpr Index steps_of(const Steps& steps) { return steps.last - steps.first; }

constexpr Index run_rows(const Problem& p) { return row_of(p, p.run.last) - row_of(p, p.run.first); }

// Where steps differ in their rows, a chunk takes as many as come to `chunk_rows`, and one at least.
inline Index cut_into_chunks(const Problem& p, Index* first_step) {
  Index chunks = 0;
  for (Index t = 0; t < p.T; ++t)
    if (t == 0 || row_of(p, t + 1) - row_of(p, first_step[chunks - 1]) > chunk_rows(p.H)) first_step[chunks++] = t;
  first_step[chunks] = p.T;
  return chunks;
}

constexpr Index chunk_count(const Problem& p) {
  return p.first_step ? p.chunks : (p.T + chunk_steps(p) - 1) / chunk_steps(p);
}

// The first step of a chunk; of the one after the last, T.
constexpr Index chunk_start(const Problem& p, Index chunk) {
  return p.first_step ? p.first_step[chunk] : min_index(chunk * chunk_steps(p), p.T);
}

constexpr Index most_chunk_rows(const Problem& p) {
  return p.first_step ? max_index(chunk_rows(p.H), p.B) : chunk_steps(p) * p.B;
}

// Where rows are taken by twos, each step's are by themselves.
constexpr Index row_pairs(const Problem& p, const Steps& steps) {
  if (!p.first_row) return steps_of(steps) * ((p.B + 1) / 2);
  Index pairs = 0;
  for (Index t = steps.first; t < steps.last; ++t) pairs += (rows_at(p, t) + 1) / 2;
  return pairs;
}

constexpr Index most_row_pairs(const Problem& p) {
  return p.first_step ? most_chunk_rows(p) : chunk_steps(p) * ((p.B + 1) / 2);
}

// The chunk that step t lies in.
constexpr Index chunk_of(const Problem& p, Index t) {
  if (!p.first_step) return p.T == 1 ? 0 : t / chunk_steps(p);
  Index low = 0, high = p.chunks;
  while (high - low > 1) {
    const Index middle = low + (high - low) / 2;
    (p.first_step[middle] <= t ? low : high) = middle;
  }
  return low;
}

// A word of a panel holds 1 << shift numbers.
constexpr int shift_of(Format format) { return format == Format::int8 ? 2 : format == Format::bfloat16 ? 1 : 0; }

// Columns of w_ih that meet an input in a product: none where tokens pick them.
constexpr Index input_columns(const Problem& p) { return p.input == InputKind::one_hot ? 0 : p.I; }

// The matrices of a direction, or their gradients.
template <class Real>
constexpr GateRows<Real> input_rows(const Problem& p, const Parameters<Real>& parameters) {
  return {.data = parameters.w_ih, .H = p.H, .K = words_of(p.I, shift_of(p.format)), .order = p.cell->input_gates};
}

template <class Real>
constexpr GateRows<Real> recurrent_rows(const Problem& p, const Parameters<Real>& parameters) {
  return {.data = parameters.w_hh,
          .H = p.H,
          .K = words_of(p.head, shift_of(p.format)),
          .order = p.cell->recurrent_gates,
          .has_heads = p.head != p.P};
}

// Whether h is a projection of what the cell makes. It is then as if a layer of P units with one gate and no activation
// followed at each step.
constexpr bool is_projected(const Problem& p) { return p.P != p.H; }

constexpr int projection_gate[] = {0};

template <class Real>
constexpr GateRows<Real> projection_rows(const Problem& p, const Parameters<Real>& parameters) {
  return {.data = parameters.w_hr, .H = p.P, .K = words_of(p.H, shift_of(p.format)), .order = projection_gate};
}

// The blocks of h where it is one, else none.
template <class Real>
constexpr Blocks projected_blocks(const Problem& p) {
  return is_projected(p) ? blocks_of<Real>(p.P) : Blocks{};
}

// Whether |h| is at most 1, from an initial state that is.
constexpr bool bounds_h(const Problem& p) { return p.cell->has_bounded_h && !is_projected(p); }

// A state's size; h is the first.
constexpr Index state_size(const Problem& p, int state) { return state == 0 ? p.P : p.H; }

// What a member of a team takes through time: one direction, rows [first, first + rows) of the batch, and of them some
// of the units, and of the elements of h, which are the units where it is no projection. Members that divide the units
// among them wait for each other at each product: they are joined.
struct Item {
  int direction;
  Index first, rows;
  Span units, of_h;
  bool joined;
};

// Rows of the batch whose parts in the gradients of gains are summed up as they come: they belong to one member.
constexpr Index rows_of_sum = 4;

// A smaller share of w_hh is read in less time than members need to meet.
constexpr Index least_share = 1 << 16;

// Rows are divided where each member has enough of them and reads all of w_hh fast; else the units, so that each keeps
// its own share of w_hh in its own cache. Units are dealt in groups, as `multiply` has them.
template <class Real>
RNNFAST_INLINE bool divides_units(const Problem& p, Index threads) {
  const Index parts = threads / p.D, bytes = p.cell->gate_count * p.H * p.head * Index(sizeof(Real));
  return parts > 1 && !is_normalised(*p.cell) && p.format != Format::int8 && !p.rounded &&
         p.H > group_of_columns * Widest<Real>::lanes && bytes / parts >= least_share &&
         (p.B < few_rows * parts || bytes > cache_sizes.near);
}

// How many times as fast as one thread so many are in forward, roughly. Members that divide the rows read all of w_hh,
// which takes as long as a few rows do. Members that divide the units meet at each product, which takes as long as
// reading the least share; but they gain more than that where the second cache level holds their shares of w_hh, and
// has no room for all of it beside what else a step needs.
template <class Real>
double speed_of_team(const Problem& p, Index threads) {
  if (!divides_units<Real>(p, threads)) {
    const Index group = is_normalised(*p.cell) ? rows_of_sum : 1, groups = (p.B + group - 1) / group;
    const Index parts = min_index(max_index(threads / p.D, 1), groups), rows = (groups + parts - 1) / parts * group;
    return double(min_index(threads, p.D)) * double(few_rows + p.B) / double(few_rows + rows);
  }
  const Index bytes = p.cell->gate_count * p.H * p.head * Index(sizeof(Real)), parts = threads / p.D;
  if (2 * bytes > cache_sizes.near) return double(parts * p.D);
  const double share = double(bytes) / double(parts), meetings = p.cell->phase_count + is_projected(p);
  return double(parts * p.D) * share / (share + meetings * double(least_share));
}

// Steps [t, t + steps) of a direction, which a backward goes through or has gone through.
struct Chunk {
  int direction;
  Index chunk, t, steps, rows;
  Index first_row;  // where dgates begin: at t, or at an earlier step where these are some of the steps
  Index rounds;     // steps of the direction that takes more: joined members wait for each other in all of them
  bool first;       // in the order of backward
  bool begins;      // with its last step
};

// Joined members wait for all. False: the call was interrupted.
RNNFAST_INLINE bool meet(const Item& item, const Team& team) { return !item.joined || team.barrier(team); }

// Whether to leave out what remains of a chunk, before a step of large matrices: the call was interrupted. Joined
// members are asked where they meet, and the steps of a chunk of small ones take a few milliseconds.
RNNFAST_INLINE bool skips_steps(const Problem& p, const Item& item, const Team& team) {
  return p.H >= 512 && !item.joined && team.interrupted(team);
}

// f(Item) for what falls to this member.
template <class Real, class F>
RNNFAST_INLINE void for_each_item(const Problem& p, const Team& team, F&& f) {
  const Blocks units = blocks_of<Real>(p.H), of_h = blocks_of<Real>(p.P);
  if (team.size * p.D == 1)  // without a division, as above
    return f(Item{.direction = 0, .first = 0, .rows = p.B, .units = all(units), .of_h = all(of_h), .joined = false});
  Index parts = max_index(team.size / p.D, 1);
  if (divides_units<Real>(p, team.size)) {
    // A member too many has no units, but is waited for like the others.
    const Index part = team.rank % parts;
    const auto mine = [&](const Blocks& blocks) {
      const Index groups = team.rank < parts * p.D ? group_count(blocks) : 0;
      return Span{.first = share(groups, part, parts) * group_of_columns,
                  .last = min_index(share(groups, part + 1, parts) * group_of_columns, count(blocks))};
    };
    return f(Item{.direction = int(team.rank / parts % p.D),
                  .first = 0,
                  .rows = p.B,
                  .units = mine(units),
                  .of_h = mine(of_h),
                  .joined = true});
  }
  const Index group = is_normalised(*p.cell) ? rows_of_sum : 1, groups = (p.B + group - 1) / group;
  parts = max_index(min_index(parts, groups), 1);
  for (Index index = team.rank; index < parts * p.D; index += team.size) {
    const Index part = index % parts, first = share(groups, part, parts) * group;
    f(Item{.direction = int(index / parts),
           .first = first,
           .rows = min_index(share(groups, part + 1, parts) * group, p.B) - first,
           .units = all(units),
           .of_h = all(of_h),
           .joined = false});
  }
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
