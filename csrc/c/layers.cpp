// The layers of capi.h: forward and backward, tapes and packed weights.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <type_traits>

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

// ---- Layers --------------------------------------------------------------------------------------------------------

// A checked rnnfast_layer. Weights are null where none were given.
struct Layer {
  const CellShape* cell;
  rnnfast_dtype dtype;
  Index I, H, P, D, heads;
  double eps;  // of a forward: packed weights are the same for any
  Parameters<const void> weights[2];
  std::array<double, most_states> zoneout;
};

bool same_sizes(const Layer& a, const Layer& b) {
  return a.cell == b.cell && a.dtype == b.dtype && a.I == b.I && a.H == b.H && a.P == b.P && a.D == b.D &&
         a.heads == b.heads;
}

template <class Args>
void require_size(const Args* args, const char* name) {
  require(args, "%s: expected a pointer, got NULL", name);
  require(args->size == sizeof(Args), "%s->size: expected %zu, got %zu", name, sizeof(Args), args->size);
}

Layer read_layer(const rnnfast_layer* layer, bool needs_weights) {
  require_size(layer, "layer");
  require(layer->cell, "cell: expected the name of a cell, got NULL");
  require_dtype(layer->dtype);
  Layer read = {.cell = &cell_named(layer->cell),
                .dtype = layer->dtype,
                .I = layer->input_size,
                .H = layer->hidden_size,
                .P = 0,
                .D = layer->num_directions,
                .heads = 1,
                .eps = 0,
                .weights = {},
                .zoneout = {}};
  require(read.I >= 1 && read.H >= 1, "I, H: expected at least 1, got %td, %td", read.I, read.H);
  require(read.D == 1 || read.D == 2, "D: expected 1 or 2, got %td", read.D);
  read.P = read_size_of_h(*read.cell, read.H, layer->proj_size);
  const double units = double(read.H) + 64;
  require(64 * units * (double(read.I) + units) < most_elements,
          "I, H: expected sizes that fit the address space, got %td, %td", read.I, read.H);
  read.heads = read_heads(*read.cell, read.H, layer->num_heads);
  read.zoneout = read_zoneout(layer->zoneout, *read.cell, read.P < read.H);
  read.eps = read_eps(*read.cell, read.dtype, layer->layer_norm_eps);
  require(layer->weights || !needs_weights, "weights: expected an array, got NULL");
  for (Index d = 0; layer->weights && d < read.D; ++d)
    read.weights[d] = read_weights(layer->weights[d], *read.cell, read.P < read.H);
  return read;
}

// A caller's arrays of the states of a cell.
template <class Void>
using StatePointers = std::array<Void*, most_states>;

template <class Void>
StatePointers<Void> read_states(Void* const* given, const CellShape& cell) {
  StatePointers<Void> states = {};
  if (given) std::copy_n(given, cell.state_count, states.begin());
  return states;
}

}  // namespace
}  // namespace rnnfast

struct rnnfast_pack {
  rnnfast::Layer layer;
  rnnfast::Buffer data;
};

struct rnnfast_tape {
  rnnfast::Layer layer = {};
  rnnfast_forward_args forward = {};
  rnnfast::StatePointers<const void> state0 = {};
  rnnfast::StatePointers<const unsigned char> renewed = {};
  rnnfast::Problem problem = {};
  rnnfast::Schedule schedule;
  rnnfast::TapeMemory<> memory;
  rnnfast::Buffer scratch;
  bool filled = false;
  rnnfast::Caller caller = 0;
};

namespace rnnfast {
namespace {

// ---- Arrays --------------------------------------------------------------------------------------------------------

// Of [D,B,H], of h [D,B,P].
Index elements_of_state(const Problem& p, std::size_t state) { return p.D * p.B * state_size(p, state); }

// Bytes of a row of masks.
Index row_of_bits(const Problem& p) { return p.D * bytes_of_bits(p.H); }

// Those of a call: none that is written may overlap another.
class Arrays {
 public:
  explicit Arrays(rnnfast_dtype dtype) : item_(dtype == RNNFAST_FLOAT64 ? sizeof(double) : sizeof(float)) {}

  void read(const char* name, const void* data, Index elements) {
    add({.argument = name, .state = no_state}, data, elements, false);
  }
  void written(const char* name, const void* data, Index elements) {
    add({.argument = name, .state = no_state}, data, elements, true);
  }

  // The masks of a forward.
  void read(const rnnfast_tape& tape) {
    const Problem& p = tape.problem;
    const rnnfast_forward_args& args = tape.forward;
    const Index bytes = row_of_bits(p), rows = row_count(p);
    for (std::size_t s = 0; s < most_states; ++s)
      add_bytes({.argument = "zoneout_masks", .state = int(s)}, tape.renewed[s], std::size_t(rows * bytes), false);
    read("recurrent_factors", args.recurrent_factors, p.D * p.B * p.masks * p.H);
    add_bytes({.argument = "candidate_mask", .state = no_state}, args.candidate_mask,
              std::size_t((p.keeps_by_sequence ? p.B : rows) * bytes), false);
  }

  void read(const char* name, const StatePointers<const void>& states, const Problem& p) {
    for (std::size_t s = 0; s < most_states; ++s)
      add({.argument = name, .state = int(s)}, states[s], elements_of_state(p, s), false);
  }
  void written(const char* name, const StatePointers<void>& states, const Problem& p) {
    for (std::size_t s = 0; s < most_states; ++s)
      add({.argument = name, .state = int(s)}, states[s], elements_of_state(p, s), true);
  }

  void read(const Layer& layer) {
    for (Index d = 0; d < layer.D; ++d) {
      const Parameters<const void>& w = layer.weights[d];
      const Index rows = layer.cell->gate_count * layer.H;
      read("w_ih", w.w_ih, rows * layer.I), read("w_hh", w.w_hh, rows * (layer.P / layer.heads));
      read("b_ih", w.b_ih, rows), read("b_hh", w.b_hh, rows);
      for (int i = 0; i < layer.cell->parameter_count; ++i)
        read(layer.cell->parameters[i].name, w.vectors[i], layer.cell->parameters[i].count * layer.H);
      read("w_hr", w.w_hr, layer.P * layer.H);
    }
  }

  void check() const {
    for (int i = 0; i < count_; ++i)
      for (int j = 0; j < count_; ++j) {
        const Entry &out = entries_[i], &other = entries_[j];
        if (out.is_written && i != j && out.low < other.high && other.low < out.high)
          require(false, "%s: expected memory of its own, got an array that overlaps %s", text(out.name).c_str(),
                  text(other.name).c_str());
      }
  }

 private:
  static constexpr int no_state = -1;

  struct Name {
    const char* argument;
    int state;  // of an array of states, or no_state
  };

  struct Entry {
    Name name;
    std::uintptr_t low, high;
    bool is_written;
  };

  static std::string text(const Name& name) {
    std::string words = name.argument;
    if (name.state != no_state) words.append("[").append(std::to_string(name.state)).append("]");
    return words;
  }

  void add(const Name& name, const void* data, Index elements, bool is_written) {
    if (!data) return;
    const auto low = reinterpret_cast<std::uintptr_t>(data);
    if (low % item_ != 0)
      require(false, "%s: expected an array aligned to its elements, got one that is not", text(name).c_str());
    add_bytes(name, data, std::size_t(elements) * item_, is_written);
  }

  void add_bytes(const Name& name, const void* data, std::size_t bytes, bool is_written) {
    if (!data) return;
    const auto low = reinterpret_cast<std::uintptr_t>(data);
    entries_[count_++] = {.name = name, .low = low, .high = low + bytes, .is_written = is_written};
  }

  // Of a backward with two directions: weights and their gradients, x, y, dx and dy, three arrays of states, and masks.
  static constexpr int most_entries = 4 * (5 + most_parameters) + 4 + 3 * most_states + most_states + 2;

  std::size_t item_;
  Entry entries_[most_entries];
  int count_ = 0;
};

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

Problem problem_of(const Layer& layer, Index T, Index B) {
  return problem_of(*layer.cell,
                    {.T = T, .B = B, .I = layer.I, .H = layer.H, .D = layer.D, .P = layer.P, .heads = layer.heads});
}

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

// Checks the arguments and makes their problem. A call whose tape is not the caller's gives it no memory.
void prepare(rnnfast_tape& tape) {
  const Layer& layer = tape.layer;
  const rnnfast_forward_args& args = tape.forward;
  Problem& p = tape.problem = problem_of(layer, args.T, args.B);
  require(p.T >= 1 && p.B >= 1, "T, B: expected at least 1, got %td, %td", p.T, p.B);
  require(double(p.T) * double(p.B) < most_elements && fits_address_space(p, double(p.T * p.B)),
          "T, B: expected sizes that fit the address space, got %td, %td", p.T, p.B);
  require(args.x && args.y, "x, y: expected arrays, got NULL");
  if (args.batch_sizes) {
    find_first_rows(args.batch_sizes, p.T, tape.schedule.first_row);
    require(args.batch_sizes[0] == p.B, "B: expected %td, the first of batch_sizes, got %td", args.batch_sizes[0], p.B);
    point_to_rows(p, tape.schedule);
  }
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

template <class Real>
void run_forward(rnnfast_tape& tape) {
  const Problem& p = tape.problem;
  const rnnfast_forward_args& args = tape.forward;
  if (args.tape) grow<Real>(tape.memory, p);
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

// Gives a tape new memory in place of what a call was changing when it was cut off, which may not even be freed.
void abandon(rnnfast_tape& tape) {
  new (&tape.schedule) Schedule;
  new (&tape.memory) TapeMemory<>;
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
    tape.layer = read_layer(layer, !args->pack || args->tape), tape.forward = *args;
    tape.state0 = read_states(args->state0, *tape.layer.cell);
    tape.renewed = read_states(args->zoneout_masks, *tape.layer.cell);
    require(!args->pack || same_sizes(tape.layer, args->pack->layer),
            "pack: expected one of the layer's cell, dtype and sizes, got another");
    prepare(tape);
    with_real(tape.layer.dtype, [&]<class Real> { run_forward<Real>(tape); });
    tape.filled = true;
  });
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

}  // namespace rnnfast
