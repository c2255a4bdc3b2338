// The streams of capi.h: packed weights, states, and a stack of layers by chunks of time.
#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

#include "c/capi.h"
#include "c/checks.h"
#include "c/claim.h"
#include "c/functions.h"
#include "run/dispatch.h"
#include "run/formats.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"

using rnnfast::Index;

namespace rnnfast {

// A caller's function that ends a run early; none if it is null.
struct Stop {
  int (*function)(void* context, ptrdiff_t t) = nullptr;
  void* context = nullptr;
};

}  // namespace rnnfast

// What a caller holds a pointer to.
struct rnnfast_stream {
  explicit rnnfast_stream(const rnnfast::CellShape& shape) : cell(shape) {}
  virtual ~rnnfast_stream() = default;
  rnnfast_stream(const rnnfast_stream&) = delete;
  rnnfast_stream& operator=(const rnnfast_stream&) = delete;

  // Ends early, and returns false, if `stop` says so.
  virtual bool run(Index T, const void* x, void* y, const rnnfast::Stop& stop) = 0;
  virtual void reset(const unsigned char* rows) = 0;
  virtual void get_state(void* const* state) const = 0;
  virtual void set_state(const void* const* state) = 0;

  const rnnfast::CellShape& cell;
  rnnfast::Caller caller = 0;
};

namespace rnnfast {
namespace {

Parameters<const void> read_layer_weights(const rnnfast_stack& stack, Index l, Format format) {
  const CellShape& cell = cell_named(stack.cell);
  const bool projected = read_size_of_h(cell, stack.hidden_size, stack.proj_size) < stack.hidden_size;
  return read_weights(stack.layers[l], cell, projected, format == Format::int8 ? stack.scales + 3 * l : nullptr);
}

// Rows of a chunk, the steps that pass through all layers before the next ones follow: so many that weights of the
// input are read seldom, and few enough to lie in cache between two layers.
constexpr Index chunk_rows = 256;

// Floating point operations after which a run asks whether to stop: about 20 ms, in which a person notices no delay.
constexpr double flops_between_stops = 1e9;

template <class Real>
class Stream final : public rnnfast_stream {
 public:
  Stream(const CellShape& shape, const rnnfast_stack& stack, Index B)
      : rnnfast_stream(shape),
        kernels_(kernels<Real>()),
        L_(stack.num_layers),
        B_(B),
        I_(stack.input_size),
        H_(stack.hidden_size),
        P_(read_size_of_h(shape, stack.hidden_size, stack.proj_size)),
        chunk_(std::max<Index>(chunk_rows / B, 1)),
        layers_(std::size_t(L_)) {
    for (std::size_t s = 0; s < states(); ++s) {
      initial_[s] = copied(stack.state0 ? stack.state0[s] : nullptr, L_ * size_of(s));
      state_[s].resize(std::size_t(L_ * B_ * size_of(s)));
    }
    for (Index l = 0; l < std::min<Index>(L_ - 1, 2); ++l) between_[l] = buffer(chunk_ * B_ * P_);
    Index scratch = 0;
    for (Index l = 0; l < L_; ++l) {
      ForwardArgs<Real>& layer = layers_[std::size_t(l)];
      layer.problem = problem_of(cell, {.T = chunk_,
                                        .B = B_,
                                        .I = l == 0 ? I_ : P_,
                                        .H = H_,
                                        .D = 1,
                                        .P = P_,
                                        .heads = read_heads(cell, H_, stack.num_heads)});
      const std::array<double, most_states> zoneout = read_zoneout(stack.zoneout, cell, P_ < H_);
      for (std::size_t s = 0; s < states(); ++s) {
        layer.zoneout[s] = Real(zoneout[s]);
        if (zoneout[s] > 0) layer.problem.zoned |= 1u << s;
      }
      layer.eps = Real(read_eps(cell, stack.dtype, stack.layer_norm_eps));
      layer.problem.format = read_format(stack.format, stack.dtype);
      layer.problem.skips_zeros = true;
      require(refusal(layer.problem).empty(), "format: expected %s", refusal(layer.problem).c_str());
      set_direction(layer, read_layer_weights(stack, l, layer.problem.format), l);
      if (l > 0) layer.x = {data(between_[(l - 1) % 2]), P_};
      scratch = std::max(scratch, kernels_.forward_scratch(layer.problem, true));
      flops_per_step_ += flops(layer.problem) / double(chunk_);
    }
    scratch_ = buffer(scratch);
    layouts_ = Buffer(std::size_t(L_ * kernels_.layout_size));
    for (Index l = 0; l < L_; ++l) {
      layers_[std::size_t(l)].scratch = data(scratch_);
      layers_[std::size_t(l)].layout = static_cast<unsigned char*>(layouts_.data()) + l * kernels_.layout_size;
    }
    reset(nullptr);
  }

  bool run(Index T, const void* x, void* y, const Stop& stop) override {
    Index piece = chunk_, between = T;
    if (stop.function) {
      between = Index(std::min(std::max(flops_between_stops / flops_per_step_, 1.0), double(T)));
      piece = std::min(piece, between);
    }
    for (Index t = 0, asked = 0; t < T; t += piece) {
      if (t - asked >= between) {
        if (stop.function(stop.context, t)) return false;
        asked = t;
      }
      run_chunk(std::min(piece, T - t), static_cast<const Real*>(x) + t * B_ * I_, static_cast<Real*>(y) + t * B_ * P_);
    }
    return true;
  }

  void reset(const unsigned char* rows) override {
    for (std::size_t s = 0; s < states(); ++s)
      for (Index l = 0; l < L_; ++l)
        for (Index b = 0; b < B_; ++b)
          if (!rows || rows[b])
            std::copy_n(&initial_[s][std::size_t(l * size_of(s))], size_of(s), state_of_layer(s, l) + b * size_of(s));
  }

  void get_state(void* const* state) const override {
    for (std::size_t s = 0; s < states(); ++s)
      std::copy(state_[s].begin(), state_[s].end(), static_cast<Real*>(state[s]));
  }

  void set_state(const void* const* state) override {
    for (std::size_t s = 0; s < states(); ++s)
      std::copy_n(static_cast<const Real*>(state[s]), state_[s].size(), state_[s].begin());
  }

 private:
  static Buffer buffer(Index elements) { return Buffer(std::size_t(elements) * sizeof(Real)); }
  static Real* data(const Buffer& buffer) { return static_cast<Real*>(buffer.data()); }

  // A matrix of fewer bits as the kernels take it.
  static const Real* words_of(const Real* numbers, Index rows, Index K, Format format, Buffer& words) {
    words = buffer(rows * words_of_row(K, format));
    copy_words(numbers, rows, K, format, words.data());
    return data(words);
  }

  std::size_t states() const { return std::size_t(cell.state_count); }

  // Of a state; h is the first.
  Index size_of(std::size_t s) const { return s == 0 ? P_ : H_; }

  static std::vector<Real> copied(const void* state, Index elements) {
    const auto* given = static_cast<const Real*>(state);
    return given ? std::vector<Real>(given, given + elements) : std::vector<Real>(std::size_t(elements));
  }

  Real* state_of_layer(std::size_t s, Index l) { return &state_[s][std::size_t(l * B_ * size_of(s))]; }

  // Of a layer whose problem is known. The state is advanced in place.
  void set_direction(ForwardArgs<Real>& layer, const Parameters<const void>& given, Index l) {
    const Problem& p = layer.problem;
    const Buffer& packed = packed_.emplace_back(buffer(kernels_.packed_size(p)));
    auto parameters = with_type<const Real>(given);
    Buffer words[3];
    if (p.format != Format::real) {
      const Index rows = cell.gate_count * H_;
      parameters.w_ih = words_of(parameters.w_ih, rows, p.I, p.format, words[0]);
      parameters.w_hh = words_of(parameters.w_hh, rows, P_, p.format, words[1]);
      if (parameters.w_hr) parameters.w_hr = words_of(parameters.w_hr, P_, H_, p.format, words[2]);
    }
    kernels_.pack(p, parameters, data(packed));
    ForwardArrays<Real> arrays = {.parameters = {},
                                  .packed = data(packed),
                                  .initial = {},
                                  .start = {},
                                  .y = {l + 1 < L_ ? data(between_[l % 2]) : nullptr, P_},
                                  .last = {}};
    for (std::size_t s = 0; s < states(); ++s) {
      arrays.last[s] = {state_of_layer(s, l), size_of(s)};
      arrays.initial[s] = {state_of_layer(s, l), size_of(s)};
    }
    set_directions(layer, arrays, TapeMemory<>{});
  }

  void run_chunk(Index T, const Real* x, Real* y) {
    if (T != laid_out_) lay_out(T);
    layers_.front().x = {x, I_};
    layers_.back().directions[0].y = {y, P_};
    const Problem& p = layers_.back().problem;
    const Index threads = useful_threads<Real>(p, team_size(flops_per_step_ * double(T), most_members(p)));
    if (threads == 1)
      run_layers(alone);
    else
      run_parallel(
          threads, [this](const Team& team) { run_layers(team); }, [] { return false; });
    for (ForwardArgs<Real>& layer : layers_) layer.turned = layer.turned != (T % 2 != 0);
  }

  // For chunks of T steps.
  void lay_out(Index T) {
    unsigned char* layout = static_cast<unsigned char*>(layouts_.data());
    for (ForwardArgs<Real>& layer : layers_) {
      layer.problem.T = layer.problem.run.last = T;
      kernels_.lay_out(layer, layout);
      layout += kernels_.layout_size;
    }
    laid_out_ = T;
  }

  // A layer reads what all members have written, and uses the scratch of the one before.
  void run_layers(const Team& team) {
    for (const ForwardArgs<Real>& layer : layers_) {
      kernels_.forward(layer, team);
      if (!team.barrier(team)) return;
    }
  }

  static constexpr Team alone = {.rank = 0,
                                 .size = 1,
                                 .barrier = [](const Team&) { return true; },
                                 .interrupted = [](const Team&) { return false; },
                                 .context = nullptr};

  const Kernels<Real>& kernels_;
  const Index L_, B_, I_, H_, P_, chunk_;
  std::array<std::vector<Real>, most_states> initial_, state_;  // of each of the states, [L,H] and [L,B,H]
  std::vector<Buffer> packed_;                                  // the weights of each layer
  Buffer between_[2], scratch_;                                 // outputs of a layer for the next one, [chunk,B,H]
  Buffer layouts_;                                              // of each layer,
  Index laid_out_ = 0;                                          // for as many steps
  std::vector<ForwardArgs<Real>> layers_;
  double flops_per_step_ = 0;
};

constexpr const char* all_anew = "a reset of all sequences or a new state";

// f(claim) with a stream that is in no other call. Null `first`: f sets the state of all sequences.
template <class F>
rnnfast_status with_stream(rnnfast_stream* stream, const char* first, F&& f) {
  return told([&] {
    require(stream, "stream: expected a stream, got NULL");
    Claim claim(stream->caller, "stream", first);
    f(claim);
  });
}

void require_steps(Index T, const void* x, const void* y) {
  require(T >= 0, "T: expected at least 0, got %td", T);
  require(T == 0 || (x && y), "x, y: expected arrays, got NULL");
}

template <class Void>
void require_state(const rnnfast_stream& stream, Void* const* state) {
  require(state, "state: expected an array, got NULL");
  for (int s = 0; s < stream.cell.state_count; ++s) require(state[s], "state[%d]: expected an array, got NULL", s);
}

}  // namespace

rnnfast_status stream_create(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream) {
  return told([&] {
    require(stack && stack->cell && stack->layers && stream, "stack, stream: expected pointers, got NULL");
    const CellShape& cell = cell_named(stack->cell);
    require_dtype(stack->dtype);
    require(stack->num_layers >= 1 && stack->input_size >= 1 && stack->hidden_size >= 1 && B >= 1,
            "L, I, H, B: expected at least 1, got less");
    const double rows = std::max(double(B), double(chunk_rows)), units = double(stack->hidden_size) + 64;
    require(double(stack->num_layers) * units * (4 * (double(stack->input_size) + units) + rows) * 8 < most_elements,
            "L, I, H, B: expected sizes that fit the address space, got more");
    const bool projected = read_size_of_h(cell, stack->hidden_size, stack->proj_size) < stack->hidden_size;
    read_heads(cell, stack->hidden_size, stack->num_heads);
    read_zoneout(stack->zoneout, cell, projected);
    read_eps(cell, stack->dtype, stack->layer_norm_eps);
    const Format format = read_format(stack->format, stack->dtype);
    require(format != Format::int8 || stack->scales, "scales: expected an array for RNNFAST_INT8, got NULL");
    for (Index l = 0; l < stack->num_layers; ++l) read_layer_weights(*stack, l, format);
    with_real(stack->dtype, [&]<class Real> { *stream = new Stream<Real>(cell, *stack, B); });
  });
}

void stream_destroy(rnnfast_stream* stream) { delete stream; }

rnnfast_status stream_run(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y) {
  return with_stream(stream, all_anew, [&](Claim&) {
    require_steps(T, x, y);
    stream->run(T, x, y, {});
  });
}

rnnfast_status stream_run_until(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y,
                                int (*stop)(void* context, ptrdiff_t t), void* context) {
  bool finished = true;
  const rnnfast_status status = with_stream(stream, all_anew, [&](Claim& claim) {
    require_steps(T, x, y);
    require(stop, "stop: expected a function, got NULL");
    claim.follow_forks();
    finished = stream->run(T, x, y, {.function = stop, .context = context});
  });
  return finished ? status : fail(RNNFAST_INTERRUPTED, "stop: expected 0 until the run's end, got another number");
}

rnnfast_status stream_reset(rnnfast_stream* stream, const unsigned char* rows) {
  return with_stream(stream, rows ? all_anew : nullptr, [&](Claim&) { stream->reset(rows); });
}

rnnfast_status stream_get_state(rnnfast_stream* stream, void* const* state) {
  return with_stream(stream, all_anew, [&](Claim&) {
    require_state(*stream, state);
    stream->get_state(state);
  });
}

rnnfast_status stream_set_state(rnnfast_stream* stream, const void* const* state) {
  return with_stream(stream, nullptr, [&](Claim&) {
    require_state(*stream, state);
    stream->set_state(state);
  });
}

}  // namespace rnnfast
