// The functions of capi.h but for the streams, and the table of all.
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "capi_calls.h"
#include "layer_calls.h"
#include "threads.h"

namespace rnnfast {
namespace {

// ---- Layers --------------------------------------------------------------------------------------------------------

// A checked rnnfast_layer. Weights are null where none were given.
struct Layer {
  const CellShape* cell;
  rnnfast_dtype dtype;
  Index I, H, D;
  rnnfast_weights weights[2];
};

bool same_sizes(const Layer& a, const Layer& b) {
  return a.cell == b.cell && a.dtype == b.dtype && a.I == b.I && a.H == b.H && a.D == b.D;
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
  Layer read = {&cell_named(layer->cell), layer->dtype,          layer->input_size,
                layer->hidden_size,       layer->num_directions, {}};
  require(read.I >= 1 && read.H >= 1, "I, H: expected at least 1, got %td, %td", read.I, read.H);
  require(read.D == 1 || read.D == 2, "D: expected 1 or 2, got %td", read.D);
  const double units = double(read.H) + 64;
  require(64 * units * (double(read.I) + units) < most_elements,
          "I, H: expected sizes that fit the address space, got %td, %td", read.I, read.H);
  require(layer->weights || !needs_weights, "weights: expected an array, got NULL");
  for (Index d = 0; layer->weights && d < read.D; ++d) {
    read.weights[d] = layer->weights[d];
    require(read.weights[d].w_ih && read.weights[d].w_hh, "w_ih, w_hh: expected arrays, got NULL");
  }
  return read;
}

template <class Real>
Parameters<const Real> parameters_of(const rnnfast_weights& weights) {
  const auto array = [](const void* a) { return static_cast<const Real*>(a); };
  return {array(weights.w_ih), array(weights.w_hh), array(weights.b_ih), array(weights.b_hh)};
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

// Those of a call: none that is written may overlap another.
class Arrays {
 public:
  explicit Arrays(rnnfast_dtype dtype) : item_(dtype == RNNFAST_FLOAT64 ? sizeof(double) : sizeof(float)) {}

  void read(const char* name, const void* data, Index elements) { add(name, data, elements, false); }
  void written(const char* name, const void* data, Index elements) { add(name, data, elements, true); }

  void read(const Layer& layer) {
    for (Index d = 0; d < layer.D; ++d) {
      const rnnfast_weights& w = layer.weights[d];
      const Index rows = layer.cell->gates * layer.H;
      read("w_ih", w.w_ih, rows * layer.I), read("w_hh", w.w_hh, rows * layer.H);
      read("b_ih", w.b_ih, rows), read("b_hh", w.b_hh, rows);
    }
  }

  void check() const {
    for (int i = 0; i < count_; ++i)
      for (int j = 0; j < count_; ++j) {
        const Entry &out = entries_[i], &other = entries_[j];
        if (out.is_written && i != j && out.low < other.high && other.low < out.high)
          require(false, "%s: expected memory of its own, got an array that overlaps %s", out.name, other.name);
      }
  }

 private:
  struct Entry {
    const char* name;
    std::uintptr_t low, high;
    bool is_written;
  };

  void add(const char* name, const void* data, Index elements, bool is_written) {
    if (!data) return;
    const auto low = reinterpret_cast<std::uintptr_t>(data);
    require(low % item_ == 0, "%s: expected an array aligned to its elements, got one that is not", name);
    entries_[count_++] = {name, low, low + std::size_t(elements) * item_, is_written};
  }

  std::size_t item_;
  Entry entries_[32];  // a backward with two directions has 28
  int count_ = 0;
};

// Of an array with rows [T,B,D*H], or [D,B,H] of states, those of one direction.
template <class Real, class Void>
View<Real> side_of(Void* rows, const Problem& p, Index d) {
  return {rows ? static_cast<Real*>(rows) + d * p.H : nullptr, p.D * p.H};
}

template <class Real, class Void>
View<Real> state_of(Void* states, const Problem& p, Index d) {
  return {states ? static_cast<Real*>(states) + d * p.B * p.H : nullptr, p.H};
}

Index row_count(const Problem& p) { return p.first_row ? p.first_row[p.T] : p.T * p.B; }

Index state_size(const Problem& p) { return p.D * p.B * p.H; }

void refuse_c(const Layer& layer, const char* name, const void* c) {
  require(!c || has_c(*layer.cell), "%s: expected NULL, since %s has no cell state", name, layer.cell->name);
}

// Runs a kernel to its end. `share` is of the work of a forward.
template <class F>
void run(const Problem& p, double share, F&& kernel) {
  run_parallel(team_size(share * flops(p), most_members(p)), std::forward<F>(kernel), [] { return false; });
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
  return {data, data + kernel};
}

// ---- Packed weights ------------------------------------------------------------------------------------------------

Problem problem_of(const Layer& layer, Index T, Index B) {
  return {T, B, layer.I, layer.H, layer.D, layer.cell, InputKind::dense, 0, {0, T}};
}

void fill(rnnfast_pack& pack, const Layer& layer) {
  with_real(layer.dtype, [&]<class Real> {
    const Problem p = problem_of(layer, 1, 1);
    const Index size = kernels<Real>().packed_size(p);
    grow(pack.data, std::size_t(layer.D * size) * sizeof(Real));
    for (Index d = 0; d < layer.D; ++d)
      kernels<Real>().pack(p, parameters_of<Real>(layer.weights[d]), static_cast<Real*>(pack.data.data()) + d * size);
  });
}

rnnfast_status pack_create(const rnnfast_layer* layer, rnnfast_pack** pack) {
  return told([&] {
    require(pack, "pack: expected a pointer, got NULL");
    std::unique_ptr<rnnfast_pack> made(new rnnfast_pack{read_layer(layer, true), {}});
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

// Checks the arguments and makes their problem. A call whose tape is not the caller's gives it no memory.
void prepare(rnnfast_tape& tape) {
  const Layer& layer = tape.layer;
  const rnnfast_forward_args& args = tape.forward;
  Problem& p = tape.problem = problem_of(layer, args.T, args.B);
  require(p.T >= 1 && p.B >= 1, "T, B: expected at least 1, got %td, %td", p.T, p.B);
  require(double(p.T) * double(p.B) < most_elements && fits_address_space(p, double(p.T * p.B)),
          "T, B: expected sizes that fit the address space, got %td, %td", p.T, p.B);
  require(args.x && args.y, "x, y: expected arrays, got NULL");
  refuse_c(layer, "c0", args.c0), refuse_c(layer, "c", args.c);
  if (args.batch_sizes) {
    find_first_rows(args.batch_sizes, p.T, tape.schedule.first_row);
    require(args.batch_sizes[0] == p.B, "B: expected %td, the first of batch_sizes, got %td", args.batch_sizes[0], p.B);
    point_to_rows(p, tape.schedule);
  }
  find_starts(p, args.resets, nullptr, tape.schedule);
  Arrays arrays(layer.dtype);
  arrays.read(layer);
  arrays.read("x", args.x, row_count(p) * p.I);
  arrays.read("h0", args.h0, state_size(p)), arrays.read("c0", args.c0, state_size(p));
  arrays.written("y", args.y, row_count(p) * p.D * p.H);
  arrays.written("h", args.h, state_size(p)), arrays.written("c", args.c, state_size(p));
  arrays.check();
}

template <class Real>
void run_forward(rnnfast_tape& tape) {
  const Problem& p = tape.problem;
  const rnnfast_forward_args& args = tape.forward;
  const bool carries_c = has_c(*tape.layer.cell);
  if (args.tape) grow<Real>(tape.memory, p);
  const auto scratch =
      grow_scratch<Real>(tape.scratch, kernels<Real>().forward_scratch(p, args.pack), 2 * state_size(p));
  void* const h = args.h ? args.h : scratch.states;
  void* const c = args.c || !carries_c ? args.c : scratch.states + state_size(p);
  const Index packed_size = args.pack ? kernels<Real>().packed_size(p) : 0;
  ForwardArgs<Real> forward = {p, {static_cast<const Real*>(args.x), p.I}, {}, scratch.kernel};
  for (Index d = 0; d < p.D; ++d) {
    const auto h0 = state_of<const Real>(args.h0, p, d), c0 = state_of<const Real>(args.c0, p, d);
    forward.directions[d] = {
        .parameters = parameters_of<Real>(tape.layer.weights[d]),
        .packed = args.pack ? static_cast<const Real*>(args.pack->data.data()) + d * packed_size : nullptr,
        .initial = {h0, c0},
        .start = {h0, c0},
        .y = side_of<Real>(args.y, p, d),
        .last = {state_of<Real>(h, p, d), state_of<Real>(c, p, d)},
        .tape = args.tape ? tape_of<Real>(tape.memory, p, d) : Tape<Real>{}};
  }
  run(p, 1, [&](const Team& team) { kernels<Real>().forward(forward, team); });
}

// Gives a tape new memory in place of what a call was changing when it was cut off, which may not even be freed.
void abandon(rnnfast_tape& tape) {
  new (&tape.schedule) Schedule;
  new (&tape.memory) TapeMemory<>;
  new (&tape.scratch) Buffer;
}

rnnfast_status forward(const rnnfast_layer* layer, const rnnfast_forward_args* args) {
  return told([&] {
    require_size(args, "args");
    rnnfast_tape own;
    rnnfast_tape& tape = args->tape ? *args->tape : own;
    const Claim claim(tape.caller, "tape", nullptr);
    if (claim.follows_cut_off()) abandon(tape);
    tape.filled = false;
    tape.layer = read_layer(layer, !args->pack || args->tape), tape.forward = *args;
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

void check_arrays(const rnnfast_tape& tape, const rnnfast_backward_args& args) {
  const Layer& layer = tape.layer;
  const Problem& p = tape.problem;
  const Index rows = row_count(p), states = state_size(p), G = layer.cell->gates;
  require(args.dy || args.dh || args.dc, "dy, dh, dc: expected at least one gradient, got NULL");
  require(args.gradients, "gradients: expected an array, got NULL");
  refuse_c(layer, "dc", args.dc), refuse_c(layer, "dc0", args.dc0);
  Arrays arrays(layer.dtype);
  arrays.read(layer);
  arrays.read("x", tape.forward.x, rows * p.I), arrays.read("y", tape.forward.y, rows * p.D * p.H);
  arrays.read("h0", tape.forward.h0, states), arrays.read("c0", tape.forward.c0, states);
  arrays.read("dy", args.dy, rows * p.D * p.H), arrays.read("dh", args.dh, states), arrays.read("dc", args.dc, states);
  arrays.written("dx", args.dx, rows * p.I);
  arrays.written("dh0", args.dh0, states), arrays.written("dc0", args.dc0, states);
  for (Index d = 0; d < p.D; ++d) {
    const rnnfast_weights& w = layer.weights[d];
    const rnnfast_gradients& g = args.gradients[d];
    const auto gradient = [&](const char* name, void* data, const void* weight, Index columns) {
      require(bool(data) == bool(weight), "%s: expected %s", name,
              weight ? "an array, got NULL" : "NULL as the bias is, got an array");
      arrays.written(name, data, G * p.H * columns);
    };
    gradient("dw_ih", g.dw_ih, w.w_ih, p.I), gradient("dw_hh", g.dw_hh, w.w_hh, p.H);
    gradient("db_ih", g.db_ih, w.b_ih, 1), gradient("db_hh", g.db_hh, w.b_hh, 1);
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
void run_backward(rnnfast_tape& tape, const rnnfast_backward_args& args) {
  const Problem& p = tape.problem;
  const Index states = state_size(p);
  const bool carries_c = has_c(*tape.layer.cell), restarts = p.starts[0] || p.starts[1];
  const auto scratch = grow_scratch<Real>(tape.scratch, kernels<Real>().backward_scratch(p, args.dx, {}), 4 * states);
  Real* const dh = args.dh0 ? static_cast<Real*>(args.dh0) : scratch.states;
  Real* const dc = !carries_c ? nullptr : args.dc0 ? static_cast<Real*>(args.dc0) : scratch.states + states;
  Real* const dh_start = restarts ? scratch.states + 2 * states : nullptr;
  Real* const dc_start = restarts && carries_c ? scratch.states + 3 * states : nullptr;
  start(dh, args.dh, states);
  if (carries_c) start(dc, args.dc, states);
  if (restarts) start(dh_start, nullptr, 2 * states);
  BackwardArgs<Real> backward = {p,
                                 {static_cast<const Real*>(tape.forward.x), p.I},
                                 {static_cast<Real*>(args.dx), p.I},
                                 {},
                                 bool(args.accumulate),
                                 scratch.kernel};
  for (Index d = 0; d < p.D; ++d) {
    const auto h0 = state_of<const Real>(tape.forward.h0, p, d), c0 = state_of<const Real>(tape.forward.c0, p, d);
    const rnnfast_gradients& g = args.gradients[d];
    const auto gradient = [](void* a) { return static_cast<Real*>(a); };
    backward.directions[d] = {
        .parameters = parameters_of<Real>(tape.layer.weights[d]),
        .initial = {h0, c0},
        .start = {h0, c0},
        .y = side_of<const Real>(tape.forward.y, p, d),
        .dsteps = {side_of<const Real>(args.dy, p, d)},
        .tape = tape_of<const Real>(tape.memory, p, d),
        .dstate = {state_of<Real>(dh, p, d), state_of<Real>(dc, p, d)},
        .dstart = {state_of<Real>(dh_start, p, d), state_of<Real>(dc_start, p, d)},
        .flow = {},
        .gradients = {gradient(g.dw_ih), gradient(g.dw_hh), gradient(g.db_ih), gradient(g.db_hh)}};
  }
  run(p, args.dx ? 2 : 1.5, [&](const Team& team) { kernels<Real>().backward(backward, team); });
  for (Index i = 0; restarts && i < states; ++i) {
    dh[i] += dh_start[i];
    if (carries_c) dc[i] += dc_start[i];
  }
}

rnnfast_status backward(rnnfast_tape* tape, const rnnfast_backward_args* args) {
  return told([&] {
    require(tape, "tape: expected a tape, got NULL");
    require_size(args, "args");
    const Claim claim(tape->caller, "tape", "a forward");
    require(tape->filled, "tape: expected one that a forward has filled, got an empty one");
    check_arrays(*tape, *args);
    with_real(tape->layer.dtype, [&]<class Real> { run_backward<Real>(*tape, *args); });
  });
}

// ---- Forks ---------------------------------------------------------------------------------------------------------

thread_local Claim* innermost = nullptr;  // of those that follow forks

#if !defined(_WIN32)
[[maybe_unused]] const int watched = pthread_atfork(nullptr, nullptr, Claim::renumber);
#endif

// ---- Messages, cells, threads --------------------------------------------------------------------------------------

thread_local char last_message[256];

const char* message() { return last_message; }

rnnfast_status set_threads(ptrdiff_t n) {
  return told([&] {
    require(n >= 1 && n <= most_threads, "n: expected a number of threads from 1 to %td, got %td", most_threads, n);
    set_num_threads(n);
  });
}

}  // namespace

unsigned this_process = 1;

void Claim::follow(const char* handle, const char* first) {
  const unsigned process = caller_.load(std::memory_order_relaxed);
  if (process == 0 || process == this_process) throw Busy{handle, nullptr};
  if (first) throw Busy{handle, first};
  if (!take_from(process)) throw Busy{handle, nullptr};
  follows_cut_off_ = true;
}

void Claim::follow_forks() {
  outer_ = innermost;
  innermost = this;
  follows_forks_ = true;
}

void Claim::leave_forks() { innermost = outer_; }

void Claim::renumber() {
  ++this_process;
  for (Claim* claim = innermost; claim; claim = claim->outer_) claim->caller_ = this_process;
}

rnnfast_status fail(rnnfast_status status, const char* message, ...) {
  std::va_list parts;
  va_start(parts, message);
  std::vsnprintf(last_message, sizeof(last_message), message, parts);
  va_end(parts);
  return status;
}

void require(bool holds, const char* message, ...) {
  if (holds) return;
  char text[sizeof(last_message)];
  std::va_list parts;
  va_start(parts, message);
  std::vsnprintf(text, sizeof(text), message, parts);
  va_end(parts);
  throw std::invalid_argument(text);
}

const CellShape& cell_named(const char* name) {
  for (const CellShape& cell : cells())
    if (!std::strcmp(cell.name, name)) return cell;
  require(false, "cell: expected the name of a cell, got '%s'", name);
  return cells()[0];
}

// ---- The table -----------------------------------------------------------------------------------------------------

constexpr int oldest_version = 1;  // the functions of a version are never changed

extern const rnnfast_api c_api;
const rnnfast_api c_api = {sizeof(rnnfast_api), RNNFAST_API_VERSION, oldest_version, message,
                           stream_create,       stream_destroy,      stream_run,     stream_reset,
                           stream_get_state,    stream_set_state,    forward,        backward,
                           tape_create,         tape_destroy,        pack_create,    pack_update,
                           pack_destroy,        get_num_threads,     set_threads,    stream_run_until};

}  // namespace rnnfast
