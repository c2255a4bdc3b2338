// The layers as functions of XLA, by which rnnfast.jax calls them: a frame becomes a call of the C interface, which
// checks what is not checked here, and what it says becomes XLA's error.
//
//   forward    x, weights, state0, mask, resets    ->  y, state, tape
//   backward   x, weights, state0, mask, resets,   ->  dx, dweights, dstate0
//              y, tape, dy, dstate
//
// Arrays are x [T,B,I], the weights w_ih [G*H,I], w_hh [G*H,H] and, if `biased`, b_ih and b_hh [G*H]; states are S
// arrays [B,H]; if `masked`, mask [T,B,ceil(H/8)] has bits that are 1 where a unit has its new state; if `restarts`,
// resets [T,B] are not 0 where an episode begins; y is [T,B,H]. The tape [bytes] is there if `kept`, dx if `need_dx`.
// `cell` is a name, and `reverse` runs backwards in time.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "c/capi.h"
#include "c/checks.h"
#include "c/functions.h"
#include "types.h"
#include "xla/frame.h"

namespace rnnfast::xla {
namespace {

// ---- What a frame holds --------------------------------------------------------------------------------------------

class Reader {
 public:
  Reader(const char* what, const Arrays& arrays) : what_(what), arrays_(arrays) {}

  const Array& next(const char* name) {
    require(next_ < arrays_.count && arrays_.kinds[next_] == 1, "%s: expected an %s, got none", name, what_);
    return *static_cast<const Array*>(arrays_.arrays[next_++]);
  }

  void* next(const char* name, Type type, std::initializer_list<Index> sizes) {
    const Array& array = next(name);
    require(array.type == type, "%s: expected elements of type %d, got %d", name, int(type), int(array.type));
    bool fits = array.rank == std::int64_t(sizes.size());
    const std::int64_t* size = array.sizes;
    for (const Index expected : sizes) fits = fits && *size++ == expected;
    require(fits, "%s: expected another shape, got one of %td axes", name, Index(array.rank));
    return array.data;
  }

  void end() const {
    require(next_ == arrays_.count, "expected %td %ss, got %td", Index(next_), what_, Index(arrays_.count));
  }

 private:
  const char* what_;
  const Arrays& arrays_;
  std::int64_t next_ = 0;
};

const void* attribute(const Frame& frame, const char* name, AttributeKind kind) {
  const Attributes& all = frame.attributes;
  for (std::int64_t i = 0; i < all.count; ++i)
    if (all.names[i]->size == std::strlen(name) && !std::memcmp(all.names[i]->data, name, all.names[i]->size) &&
        all.kinds[i] == kind)
      return all.values[i];
  require(false, "%s: expected an attribute, got none", name);
  return nullptr;
}

bool flag(const Frame& frame, const char* name) {
  const auto& given = *static_cast<const Scalar*>(attribute(frame, name, AttributeKind::scalar));
  require(given.type == Type::boolean, "%s: expected a bool, got type %d", name, int(given.type));
  return *static_cast<const unsigned char*>(given.value) != 0;
}

// ---- Calls ---------------------------------------------------------------------------------------------------------

// Arguments of the C interface, which point to each other.
struct Call {
  std::string cell;
  Type type;
  Index T, B, I, H, G, S;
  bool biased;
  rnnfast_weights weights;
  rnnfast_layer layer;
  std::array<const void*, most_states> state0;
  std::array<void*, most_states> state;
  std::array<const unsigned char*, most_states> masks;
  rnnfast_forward_args forward;
  Borrowed lent;

  Call() = default;
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
};

// The part that forward and backward have in common.
void read(Call& call, const Frame& frame, Reader& inputs) {
  const auto& name = *static_cast<const Text*>(attribute(frame, "cell", AttributeKind::text));
  call.cell.assign(name.data, name.size);
  const CellShape& cell = cell_named(call.cell.c_str());
  require(cell.parameter_count == 0, "cell: expected one without parameters of its own, got %s", cell.name);
  const Array& x = inputs.next("x");
  require(x.type == Type::float32 || x.type == Type::float64, "x: expected float32 or float64, got type %d",
          int(x.type));
  require(x.rank == 3, "x: expected shape [T,B,I], got one of %td axes", Index(x.rank));
  const Array& w_ih = inputs.next("w_ih");
  require(w_ih.rank == 2 && w_ih.type == x.type && w_ih.sizes[1] == x.sizes[2] && w_ih.sizes[0] % cell.gate_count == 0,
          "w_ih: expected shape [%d*H,%td] and the dtype of x, got others", cell.gate_count, Index(x.sizes[2]));
  call.type = x.type;
  call.T = x.sizes[0], call.B = x.sizes[1], call.I = x.sizes[2];
  call.G = cell.gate_count, call.S = cell.state_count;
  call.H = w_ih.sizes[0] / call.G;
  call.biased = flag(frame, "biased");
  const Index rows = w_ih.sizes[0];
  call.weights = {.w_ih = w_ih.data,
                  .w_hh = inputs.next("w_hh", x.type, {rows, call.H}),
                  .b_ih = call.biased ? inputs.next("b_ih", x.type, {rows}) : nullptr,
                  .b_hh = call.biased ? inputs.next("b_hh", x.type, {rows}) : nullptr,
                  .more = nullptr};
  call.layer = {.size = sizeof(rnnfast_layer),
                .cell = call.cell.c_str(),
                .dtype = x.type == Type::float64 ? RNNFAST_FLOAT64 : RNNFAST_FLOAT32,
                .input_size = call.I,
                .hidden_size = call.H,
                .num_directions = 1,
                .weights = &call.weights,
                .proj_size = 0,
                .num_heads = 0,
                .zoneout = nullptr,
                .layer_norm_eps = 0,
                .precision = RNNFAST_FULL};
  for (std::size_t s = 0; s < std::size_t(call.S); ++s)
    call.state0[s] = inputs.next("state0", x.type, {call.B, call.H});
  call.forward = {};
  call.forward.size = sizeof(rnnfast_forward_args);
  call.forward.T = call.T, call.forward.B = call.B;
  call.forward.x = x.data, call.forward.state0 = call.state0.data();
  if (flag(frame, "masked")) {
    call.masks.fill(static_cast<unsigned char*>(inputs.next("mask", Type::uint8, {call.T, call.B, (call.H + 7) / 8})));
    call.forward.zoneout_masks = call.masks.data();
  }
  if (flag(frame, "restarts"))
    call.forward.resets = static_cast<unsigned char*>(inputs.next("resets", Type::uint8, {call.T, call.B}));
  call.lent = {.tape = nullptr, .bytes = 0, .reverse = flag(frame, "reverse")};
}

void read_tape(Call& call, Reader& arrays) {
  const Array& tape = arrays.next("tape");
  require(tape.type == Type::uint8 && tape.rank == 1, "tape: expected bytes, got others");
  call.lent.tape = tape.data, call.lent.bytes = std::size_t(tape.sizes[0]);
}

// XLA's memory is fresh from the operating system in nearly every call, a page of which costs as much as filling it:
// larger ones cost less. Where there are none, nothing changes.
void ask_for_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t page = std::uintptr_t{1} << 21;
  const auto first = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

rnnfast_status run_forward(const Frame& frame) {
  Call call;
  const rnnfast_status status = told([&] {
    Reader inputs("input", frame.inputs), outputs("output", frame.outputs);
    read(call, frame, inputs);
    inputs.end();
    call.forward.y = outputs.next("y", call.type, {call.T, call.B, call.H});
    for (std::size_t s = 0; s < std::size_t(call.S); ++s)
      call.state[s] = outputs.next("state", call.type, {call.B, call.H});
    call.forward.state = call.state.data();
    if (flag(frame, "kept")) read_tape(call, outputs), ask_for_large_pages(call.lent.tape, call.lent.bytes);
    outputs.end();
  });
  return status == RNNFAST_OK ? rnnfast::forward(&call.layer, &call.forward, call.lent) : status;
}

rnnfast_status run_backward(const Frame& frame) {
  Call call;
  std::array<const void*, most_states> dstate = {};
  std::array<void*, most_states> dstate0 = {};
  rnnfast_gradients gradients = {};
  rnnfast_backward_args args = {};
  const rnnfast_status status = told([&] {
    Reader inputs("input", frame.inputs), outputs("output", frame.outputs);
    read(call, frame, inputs);
    call.forward.y = inputs.next("y", call.type, {call.T, call.B, call.H});
    read_tape(call, inputs);
    args.size = sizeof(args);
    args.dy = inputs.next("dy", call.type, {call.T, call.B, call.H});
    const std::size_t S = std::size_t(call.S);
    for (std::size_t s = 0; s < S; ++s) dstate[s] = inputs.next("dstate", call.type, {call.B, call.H});
    inputs.end();
    const Index rows = call.G * call.H;
    if (flag(frame, "need_dx")) args.dx = outputs.next("dx", call.type, {call.T, call.B, call.I});
    gradients.dw_ih = outputs.next("dw_ih", call.type, {rows, call.I});
    gradients.dw_hh = outputs.next("dw_hh", call.type, {rows, call.H});
    if (call.biased) gradients.db_ih = outputs.next("db_ih", call.type, {rows});
    if (call.biased) gradients.db_hh = outputs.next("db_hh", call.type, {rows});
    for (std::size_t s = 0; s < S; ++s) dstate0[s] = outputs.next("dstate0", call.type, {call.B, call.H});
    outputs.end();
    args.dstate = dstate.data(), args.dstate0 = dstate0.data();
    args.gradients = &gradients;
  });
  return status == RNNFAST_OK ? rnnfast::backward(&call.layer, &call.forward, call.lent, &args) : status;
}

// ---- Handlers ------------------------------------------------------------------------------------------------------

// The oldest version that has all of frame.h. XLA takes functions of its own version and of older ones.
void describe(Metadata& metadata) {
  metadata.version = {.head = {.size = sizeof(Version), .extensions = nullptr}, .major = 0, .minor = 1};
  metadata.traits = 0;
}

Error* handle(Frame* frame, rnnfast_status (*run)(const Frame&)) {
  for (Extension* extension = frame->head.extensions; extension; extension = extension->next)
    if (extension->kind == asks_for_metadata) {
      describe(*reinterpret_cast<MetadataExtension*>(extension)->metadata);
      return nullptr;
    }
  if (frame->stage != stage_of_execution) return nullptr;
  const rnnfast_status status = run(*frame);
  if (status == RNNFAST_OK) return nullptr;
  char message[320];
  std::snprintf(message, sizeof(message), "rnnfast: %s", c_api.message());
  ErrorArguments error = {
      .head = {.size = sizeof(ErrorArguments), .extensions = nullptr},
      .message = message,
      .code = status == RNNFAST_NO_MEMORY ? ErrorCode::resource_exhausted : ErrorCode::invalid_argument};
  return frame->functions->create_error(&error);
}

}  // namespace

Error* forward(Frame* frame) { return handle(frame, run_forward); }

Error* backward(Frame* frame) { return handle(frame, run_backward); }

}  // namespace rnnfast::xla
