// The layers of capi.h: forward and backward, tapes and packed weights.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>

#include "c/calls.h"
#include "c/capi.h"
#include "c/checks.h"
#include "c/claim.h"
#include "c/functions.h"
#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/schedule.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {
namespace {

// ---- Views ---------------------------------------------------------------------------------------------------------

// [N,n], or states [D,B,n]; null where the pointer is.
template <class Real, class Void>
View<Real> view_of(Void* data, Index n) {
  return {static_cast<Real*>(data), n};
}

template <class Real, class Void>
StateViews<Real> views_of(const StatePointers<Void>& states, const Problem& p) {
  StateViews<Real> views;
  for (std::size_t s = 0; s < most_states; ++s) views[s] = view_of<Real>(states[s], state_size(p, s));
  return views;
}

template <class Real>
std::array<Parameters<const Real>, 2> parameters_of(const Layer& layer) {
  std::array<Parameters<const Real>, 2> parameters = {};
  for (std::size_t d = 0; d < std::size_t(layer.D); ++d) parameters[d] = with_type<const Real>(layer.weights[d]);
  return parameters;
}

StateViews<const unsigned char> bits_of(const rnnfast_tape& tape) {
  StateViews<const unsigned char> views;
  for (std::size_t s = 0; s < most_states; ++s)
    views[s] = view_of<const unsigned char>(tape.renewed[s], row_of_bits(tape.problem));
  return views;
}

// Of zoneout and dropout, for the kernels.
template <class Args>
void set_rates(Args& args, const rnnfast_tape& tape) {
  using Real = std::remove_reference_t<decltype(args.candidate_scale)>;
  for (std::size_t s = 0; s < most_states; ++s) args.zoneout[s] = Real(tape.layer.zoneout[s]);
  args.candidate_scale = Real(1 / (1 - tape.forward.candidate_dropout));
}

// Scratch of a kernel, and behind it memory for states; in elements.
template <class Real>
struct Scratch {
  Real *kernel, *states;
};

template <class Real>
Scratch<Real> grow_scratch(Buffer& scratch, Index kernel, Index states) {
  grow(scratch, std::size_t(kernel + states) * sizeof(Real));
  auto* const data = static_cast<Real*>(scratch.data());
  return {.kernel = data, .states = data + kernel};
}

// Calls run to their end.
bool never() { return false; }

// ---- Packed weights ------------------------------------------------------------------------------------------------

void fill(rnnfast_pack& pack, const Layer& layer) {
  with_real(layer.dtype, [&]<class Real> {
    const Problem p = problem_of(layer, 1, 1);
    const Index size = kernels<Real>().packed_size(p);
    grow(pack.data, std::size_t(layer.D * size) * sizeof(Real));
    const auto parameters = parameters_of<Real>(layer);
    for (std::size_t d = 0; d < std::size_t(layer.D); ++d)
      kernels<Real>().pack(p, parameters[d], static_cast<Real*>(pack.data.data()) + Index(d) * size);
  });
}

}  // namespace

rnnfast_status pack_create(const rnnfast_layer* layer, rnnfast_pack** pack) {
  return told([&] {
    require(pack, "pack: expected a pointer, got NULL");
    std::unique_ptr<rnnfast_pack> made(new rnnfast_pack{.layer = read_layer(layer, true), .data = {}});
    fill(*made, made->layer);
    *pack = made.release();
  });
}

rnnfast_status pack_update(rnnfast_pack* pack, const rnnfast_layer* layer) {
  return told([&] {
    require(pack, "pack: expected a pack, got NULL");
    const Layer read = read_layer(layer, true);
    require(same_sizes(read, pack->layer), "layer: expected the cell, dtype and sizes of the pack, got others");
    fill(*pack, read);
  });
}

void pack_destroy(rnnfast_pack* pack) { delete pack; }

// ---- Forward -------------------------------------------------------------------------------------------------------

namespace {

// What the masks of the arguments and the rates of the layer say of the problem.
void read_masks(rnnfast_tape& tape) {
  const Layer& layer = tape.layer;
  const rnnfast_forward_args& args = tape.forward;
  const CellShape& cell = *layer.cell;
  Problem& p = tape.problem;
  require(!args.zoneout_masks || !is_projected(p), "zoneout_masks: expected NULL, since h is a projection");
  for (std::size_t s = 0; s < std::size_t(cell.state_count); ++s)
    if (tape.renewed[s] || layer.zoneout[s] > 0) p.zoned |= 1u << s;
  require(!args.recurrent_factors || p.head == p.H,
          "recurrent_factors: expected NULL, since h is a projection, or w_hh is of heads");
  if (args.recurrent_factors) p.masks = args.recurrent_factors_per_gate ? cell.gate_count : 1;
  require(!args.candidate_mask || cell.has_candidate, "candidate_mask: expected NULL, since %s drops no candidate",
          cell.name);
  require(args.candidate_dropout >= 0 && args.candidate_dropout < 1,
          "candidate_dropout: expected at least 0 and less than 1, got %g", args.candidate_dropout);
  require(args.candidate_mask || args.candidate_dropout == 0,
          "candidate_dropout: expected 0 without a candidate_mask, got %g", args.candidate_dropout);
  p.keeps_by_sequence = args.candidate_mask && args.candidate_mask_per_sequence;
}

void require_fitting(const Problem& p) {
  require(p.T >= 1 && p.B >= 1, "T, B: expected at least 1, got %td, %td", p.T, p.B);
  require(double(p.T) * double(p.B) < most_elements && fits_address_space(p, double(p.T * p.B)),
          "T, B: expected sizes that fit the address space, got %td, %td", p.T, p.B);
}

// Checks the arguments and makes their problem. A call whose tape is not the caller's gives it no memory.
void prepare(rnnfast_tape& tape) {
  const Layer& layer = tape.layer;
  const rnnfast_forward_args& args = tape.forward;
  Problem& p = tape.problem = problem_of(layer, args.T, args.B);
  require_fitting(p);
  require(args.x && args.y, "x, y: expected arrays, got NULL");
  if (args.batch_sizes) {
    find_first_rows(args.batch_sizes, p.T, tape.schedule.first_row);
    require(args.batch_sizes[0] == p.B, "B: expected %td, the first of batch_sizes, got %td", args.batch_sizes[0], p.B);
    point_to_rows(p, tape.schedule);
  }
  require(p.D == 1 || !tape.lent.reverse, "reverse: expected one direction, got two");
  p.reverse = tape.lent.reverse;
  find_starts(p, args.resets, nullptr, tape.schedule);
  read_masks(tape);
  Arrays arrays(layer.dtype);
  arrays.read(layer), arrays.read(tape);
  arrays.read("x", args.x, row_count(p) * p.I);
  arrays.read("state0", tape.state0, p);
  arrays.written("y", args.y, row_count(p) * p.D * p.P);
  arrays.written("state", read_states(args.state, *layer.cell), p);
  arrays.check();
}

// Parts of memory that is lent begin at lines of the cache, as those of our own do.
constexpr std::size_t whole_lines(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr std::size_t lent_bytes(const TapeMemory<std::size_t>& bytes) {
  return whole_lines(bytes.gates) + whole_lines(bytes.states) + whole_lines(bytes.reset_h);
}

// Makes room for what a tape keeps, in the memory that is there if it suffices.
template <class Real>
void make_room(rnnfast_tape& tape) {
  const TapeMemory<std::size_t> bytes = tape_bytes<Real>(tape.problem);
  auto* next = static_cast<unsigned char*>(tape.lent.tape);
  if (next) {
    require(reinterpret_cast<std::uintptr_t>(next) % sizeof(Real) == 0,
            "tape: expected memory aligned to its elements, got some that is not");
    require(tape.lent.bytes >= lent_bytes(bytes), "tape: expected at least %zu bytes, got %zu", lent_bytes(bytes),
            tape.lent.bytes);
  }
  const auto make = [&](Kept& part, std::size_t size) {
    if (next)
      part.lent = next, next += whole_lines(size);
    else
      grow(part.own, size);
  };
  make(tape.memory.gates, bytes.gates), make(tape.memory.states, bytes.states),
      make(tape.memory.reset_h, bytes.reset_h);
}

template <class Real>
void run_forward(rnnfast_tape& tape) {
  const Problem& p = tape.problem;
  const rnnfast_forward_args& args = tape.forward;
  if (args.tape || tape.lent.tape) make_room<Real>(tape);
  const Index states = p.D * p.B * p.H;  // the most of a state
  const auto scratch =
      grow_scratch<Real>(tape.scratch, kernels<Real>().forward_scratch(p, args.pack), p.cell->state_count * states);
  StatePointers<void> last = read_states(args.state, *p.cell);
  for (int s = 0; s < p.cell->state_count; ++s)
    if (void*& state = last[std::size_t(s)]; !state) state = scratch.states + s * states;
  const auto state0 = views_of<const Real>(tape.state0, p);
  ForwardArgs<Real> forward = {
      .problem = p, .x = view_of<const Real>(args.x, p.I), .directions = {}, .scratch = scratch.kernel};
  set_rates(forward, tape);
  forward.eps = Real(tape.layer.eps);
  const ForwardArrays<Real> arrays = {.parameters = parameters_of<Real>(tape.layer),
                                      .packed = args.pack ? static_cast<const Real*>(args.pack->data.data()) : nullptr,
                                      .initial = state0,
                                      .start = state0,
                                      .y = view_of<Real>(args.y, p.D * p.P),
                                      .last = views_of<Real>(last, p),
                                      .renewed = bits_of(tape),
                                      .factors = view_of<const Real>(args.recurrent_factors, p.masks * p.H),
                                      .kept = view_of<const unsigned char>(args.candidate_mask, row_of_bits(p))};
  set_directions(forward, arrays, tape.memory);
  run_parallel(
      forward_threads<Real>(p), [&](const Team& team) { kernels<Real>().forward(forward, team); }, never);
}

void read_call(rnnfast_tape& tape, const rnnfast_layer* layer, const rnnfast_forward_args& args) {
  tape.layer = read_layer(layer, !args.pack || args.tape), tape.forward = args;
  tape.state0 = read_states(args.state0, *tape.layer.cell);
  tape.renewed = read_states(args.zoneout_masks, *tape.layer.cell);
  require(!args.pack || same_sizes(tape.layer, args.pack->layer),
          "pack: expected one of the layer's cell, dtype and sizes, got another");
  prepare(tape);
}

// Gives a tape new memory in place of what a call was changing when it was cut off, which may not even be freed.
void abandon(rnnfast_tape& tape) {
  new (&tape.schedule) Schedule;
  new (&tape.memory) TapeMemory<Kept>;
  new (&tape.scratch) Buffer;
}

}  // namespace

rnnfast_status forward(const rnnfast_layer* layer, const rnnfast_forward_args* args) {
  return told([&] {
    require_size(args, "args");
    rnnfast_tape own;
    rnnfast_tape& tape = args->tape ? *args->tape : own;
    const Claim claim(tape.caller, "tape", nullptr);
    if (claim.follows_cut_off()) abandon(tape);
    tape.filled = false;
    read_call(tape, layer, *args);
    with_real(tape.layer.dtype, [&]<class Real> { run_forward<Real>(tape); });
    tape.filled = true;
  });
}

rnnfast_status forward(const rnnfast_layer* layer, const rnnfast_forward_args* args, const Borrowed& lent) {
  return told([&] {
    rnnfast_tape tape;
    tape.lent = lent;
    read_call(tape, layer, *args);
    with_real(tape.layer.dtype, [&]<class Real> { run_forward<Real>(tape); });
  });
}

std::size_t lent_bytes(const rnnfast_layer& layer, Index T, Index B, bool masked) {
  const Layer read = read_layer(&layer, false);
  Problem p = problem_of(read, T, B);
  require_fitting(p);
  if (masked) p.zoned = (1u << p.cell->state_count) - 1;
  std::size_t bytes = 0;
  with_real(read.dtype, [&]<class Real> { bytes = lent_bytes(tape_bytes<Real>(p)); });
  return bytes;
}

rnnfast_status tape_create(rnnfast_tape** tape) {
  return told([&] {
    require(tape, "tape: expected a pointer, got NULL");
    *tape = new rnnfast_tape;
  });
}

void tape_destroy(rnnfast_tape* tape) {
  if (tape && is_cut_off(tape->caller)) abandon(*tape);
  delete tape;
}

// ---- Backward ------------------------------------------------------------------------------------------------------

namespace {

struct StateGradients {
  StatePointers<const void> last;
  StatePointers<void> first;
};

void check_arrays(const rnnfast_tape& tape, const rnnfast_backward_args& args, const StateGradients& dstates) {
  const Layer& layer = tape.layer;
  const Problem& p = tape.problem;
  const Index rows = row_count(p), G = layer.cell->gate_count;
  const auto is_given = [](const void* state) { return state != nullptr; };
  require(args.dy || std::ranges::any_of(dstates.last, is_given),
          "dy, dstate: expected at least one gradient, got NULL");
  require(args.gradients, "gradients: expected an array, got NULL");
  Arrays arrays(layer.dtype);
  arrays.read(layer), arrays.read(tape);
  arrays.read("x", tape.forward.x, rows * p.I), arrays.read("y", tape.forward.y, rows * p.D * p.P);
  arrays.read("state0", tape.state0, p);
  arrays.read("dy", args.dy, rows * p.D * p.P), arrays.read("dstate", dstates.last, p);
  arrays.written("dx", args.dx, rows * p.I);
  arrays.written("dstate0", dstates.first, p);
  for (Index d = 0; d < p.D; ++d) {
    const Parameters<const void>& w = layer.weights[d];
    const rnnfast_gradients& g = args.gradients[d];
    const auto gradient = [&](const char* name, void* data, const void* weight, Index columns) {
      require(bool(data) == bool(weight), "%s: expected %s", name,
              weight ? "an array, got NULL" : "NULL as the bias is, got an array");
      arrays.written(name, data, G * p.H * columns);
    };
    gradient("dw_ih", g.dw_ih, w.w_ih, p.I), gradient("dw_hh", g.dw_hh, w.w_hh, p.head);
    gradient("db_ih", g.db_ih, w.b_ih, 1), gradient("db_hh", g.db_hh, w.b_hh, 1);
    for (int i = 0; g.dmore && i < layer.cell->parameter_count; ++i)
      arrays.written("dmore", g.dmore[i], layer.cell->parameters[i].count * p.H);
    if (!w.w_hr) continue;
    require(g.dmore && g.dmore[layer.cell->parameter_count], "dw_hr: expected an array, got NULL");
    arrays.written("dw_hr", g.dmore[layer.cell->parameter_count], p.P * p.H);
  }
  arrays.check();
}

// The gradients of the states are carried in place, from the last states' to the initial states'.
template <class Real>
void start(Real* state, const void* from, Index n) {
  if (from)
    std::copy_n(static_cast<const Real*>(from), n, state);
  else
    std::fill_n(state, n, Real(0));
}

template <class Real>
void run_backward(rnnfast_tape& tape, const rnnfast_backward_args& args, const StateGradients& dstates) {
  const Problem& p = tape.problem;
  const Index states = p.D * p.B * p.H, S = p.cell->state_count;
  const bool restarts = p.starts[0] || p.starts[1];
  const auto scratch =
      grow_scratch<Real>(tape.scratch, kernels<Real>().backward_scratch(p, args.dx, {}), 2 * S * states);
  StatePointers<void> dstate = dstates.first, dstart = {};
  for (Index s = 0; s < S; ++s) {
    const auto state = std::size_t(s);
    if (!dstate[state]) dstate[state] = scratch.states + s * states;
    start(static_cast<Real*>(dstate[state]), dstates.last[state], elements_of_state(p, state));
    if (!restarts) continue;
    dstart[state] = scratch.states + (S + s) * states;
    start(static_cast<Real*>(dstart[state]), nullptr, states);
  }
  const auto state0 = views_of<const Real>(tape.state0, p);
  BackwardArgs<Real> backward = {.problem = p,
                                 .x = view_of<const Real>(tape.forward.x, p.I),
                                 .dx = view_of<Real>(args.dx, p.I),
                                 .directions = {},
                                 .accumulate = args.accumulate != 0,
                                 .scratch = scratch.kernel};
  set_rates(backward, tape);
  BackwardArrays<Real> arrays = {.parameters = parameters_of<Real>(tape.layer),
                                 .initial = state0,
                                 .start = state0,
                                 .y = view_of<const Real>(tape.forward.y, p.D * p.P),
                                 .dsteps = {view_of<const Real>(args.dy, p.D * p.P)},
                                 .dstate = views_of<Real>(dstate, p),
                                 .dstart = views_of<Real>(dstart, p),
                                 .flow = {},
                                 .gradients = {},
                                 .renewed = bits_of(tape),
                                 .factors = view_of<const Real>(tape.forward.recurrent_factors, p.masks * p.H),
                                 .kept = view_of<const unsigned char>(tape.forward.candidate_mask, row_of_bits(p))};
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    const rnnfast_gradients& g = args.gradients[d];
    Parameters<void> given = {.w_ih = g.dw_ih, .w_hh = g.dw_hh, .b_ih = g.db_ih, .b_hh = g.db_hh, .vectors = {}};
    for (int i = 0; g.dmore && i < p.cell->parameter_count; ++i) given.vectors[i] = g.dmore[i];
    if (is_projected(p)) given.w_hr = g.dmore[p.cell->parameter_count];
    arrays.gradients[d] = with_type<Real>(given);
  }
  set_directions(backward, arrays, tape.memory);
  run_parallel(
      backward_threads(p, args.dx), [&](const Team& team) { kernels<Real>().backward(backward, team); }, never);
  for (std::size_t s = 0; restarts && s < std::size_t(S); ++s)
    for (Index i = 0; i < elements_of_state(p, s); ++i) arrays.dstate[s].data[i] += arrays.dstart[s].data[i];
}

}  // namespace

rnnfast_status backward(rnnfast_tape* tape, const rnnfast_backward_args* args) {
  return told([&] {
    require(tape, "tape: expected a tape, got NULL");
    require_size(args, "args");
    const Claim claim(tape->caller, "tape", "a forward");
    require(tape->filled, "tape: expected one that a forward has filled, got an empty one");
    const CellShape& cell = *tape->layer.cell;
    const StateGradients dstates = {.last = read_states(args->dstate, cell), .first = read_states(args->dstate0, cell)};
    check_arrays(*tape, *args, dstates);
    with_real(tape->layer.dtype, [&]<class Real> { run_backward<Real>(*tape, *args, dstates); });
  });
}

rnnfast_status backward(const rnnfast_layer* layer, const rnnfast_forward_args* forward, const Borrowed& lent,
                        const rnnfast_backward_args* args) {
  return told([&] {
    rnnfast_tape tape;
    tape.lent = lent;
    read_call(tape, layer, *forward);
    const CellShape& cell = *tape.layer.cell;
    const StateGradients dstates = {.last = read_states(args->dstate, cell), .first = read_states(args->dstate0, cell)};
    check_arrays(tape, *args, dstates);
    with_real(tape.layer.dtype, [&]<class Real> {
      make_room<Real>(tape);
      run_backward<Real>(tape, *args, dstates);
    });
  });
}

}  // namespace rnnfast
