// The streams of capi.h: packed weights, states, and a stack of layers by chunks of time.
#include <algorithm>
#include <vector>

#include "capi_calls.h"
#include "layer_calls.h"
#include "threads.h"

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
  rnnfast_stream() = default;
  virtual ~rnnfast_stream() = default;
  rnnfast_stream(const rnnfast_stream&) = delete;
  rnnfast_stream& operator=(const rnnfast_stream&) = delete;

  // Ends early, and returns false, if `stop` says so.
  virtual bool run(Index T, const void* x, void* y, const rnnfast::Stop& stop) = 0;
  virtual void reset(const unsigned char* rows) = 0;
  virtual void get_state(void* h, void* c) const = 0;
  virtual void set_state(const void* h, const void* c) = 0;

  bool has_c = false;
  rnnfast::Caller caller = 0;
};

namespace rnnfast {
namespace {

// Rows of a chunk, the steps that pass through all layers before the next ones follow: so many that weights of the
// input are read seldom, and few enough to lie in cache between two layers.
constexpr Index chunk_rows = 256;

// Floating point operations after which a run asks whether to stop: about 20 ms, in which a person notices no delay.
constexpr double flops_between_stops = 1e9;

template <class Real>
class Stream final : public rnnfast_stream {
 public:
  Stream(const CellShape& cell, const rnnfast_stack& stack, Index B)
      : kernels_(kernels<Real>()),
        L_(stack.num_layers),
        B_(B),
        I_(stack.input_size),
        H_(stack.hidden_size),
        chunk_(std::max<Index>(chunk_rows / B, 1)),
        h0_(initial(stack.h0)),
        h_(std::size_t(L_ * B_ * H_)),
        layers_(std::size_t(L_)) {
    has_c = rnnfast::has_c(cell);
    if (has_c) c0_ = initial(stack.c0), c_.resize(h_.size());
    for (Index l = 0; l < std::min<Index>(L_ - 1, 2); ++l) between_[l] = buffer(chunk_ * B_ * H_);
    Index scratch = 0;
    for (Index l = 0; l < L_; ++l) {
      ForwardArgs<Real>& layer = layers_[std::size_t(l)];
      layer.problem = {chunk_, B_, l == 0 ? I_ : H_, H_, 1, &cell, InputKind::dense, 0, {0, chunk_}};
      layer.directions[0] = direction_of(cell, stack.layers[l], l);
      if (l > 0) layer.x = {data(between_[(l - 1) % 2]), H_};
      scratch = std::max(scratch, kernels_.forward_scratch(layer.problem, true));
      flops_per_step_ += flops(layer.problem) / double(chunk_);
    }
    scratch_ = buffer(scratch);
    for (ForwardArgs<Real>& layer : layers_) layer.scratch = data(scratch_);
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
      run_chunk(std::min(piece, T - t), static_cast<const Real*>(x) + t * B_ * I_, static_cast<Real*>(y) + t * B_ * H_);
    }
    return true;
  }

  void reset(const unsigned char* rows) override {
    for (Index l = 0; l < L_; ++l)
      for (Index b = 0; b < B_; ++b) {
        if (rows && !rows[b]) continue;
        std::copy_n(&h0_[std::size_t(l * H_)], H_, state_of(h_, l) + b * H_);
        if (has_c) std::copy_n(&c0_[std::size_t(l * H_)], H_, state_of(c_, l) + b * H_);
      }
  }

  void get_state(void* h, void* c) const override {
    std::copy(h_.begin(), h_.end(), static_cast<Real*>(h));
    if (has_c) std::copy(c_.begin(), c_.end(), static_cast<Real*>(c));
  }

  void set_state(const void* h, const void* c) override {
    std::copy_n(static_cast<const Real*>(h), h_.size(), h_.begin());
    if (has_c) std::copy_n(static_cast<const Real*>(c), c_.size(), c_.begin());
  }

 private:
  static Buffer buffer(Index elements) { return Buffer(std::size_t(elements) * sizeof(Real)); }
  static Real* data(const Buffer& buffer) { return static_cast<Real*>(buffer.data()); }

  std::vector<Real> initial(const void* state) const {
    const auto* given = static_cast<const Real*>(state);
    return given ? std::vector<Real>(given, given + L_ * H_) : std::vector<Real>(std::size_t(L_ * H_));
  }

  Real* state_of(std::vector<Real>& state, Index l) const { return &state[std::size_t(l * B_ * H_)]; }

  // Of a layer whose problem is known. The state is advanced in place.
  ForwardDirection<Real> direction_of(const CellShape& cell, const rnnfast_weights& weights, Index l) {
    const auto array = [](const void* a) { return static_cast<const Real*>(a); };
    const Problem& p = layers_[std::size_t(l)].problem;
    const Buffer& packed = packed_.emplace_back(buffer(kernels_.packed_size(p)));
    kernels_.pack(p, {array(weights.w_ih), array(weights.w_hh), array(weights.b_ih), array(weights.b_hh)},
                  data(packed));
    ForwardDirection<Real> direction = {};
    direction.packed = data(packed);
    direction.last[0] = {state_of(h_, l), H_};
    if (has_c) direction.last[1] = {state_of(c_, l), H_};
    for (int s = 0; s < cell.state_count; ++s) direction.initial[s] = {direction.last[s].data, H_};
    if (l + 1 < L_) direction.y = {data(between_[l % 2]), H_};
    return direction;
  }

  void run_chunk(Index T, const Real* x, Real* y) {
    for (ForwardArgs<Real>& layer : layers_) layer.problem.T = layer.problem.run.last = T;
    layers_.front().x = {x, I_};
    layers_.back().directions[0].y = {y, H_};
    const Index threads = team_size(flops_per_step_ * double(T), most_members(layers_.front().problem));
    if (threads == 1)
      run_layers(alone);
    else
      run_parallel(
          threads, [this](const Team& team) { run_layers(team); }, [] { return false; });
    for (ForwardArgs<Real>& layer : layers_) layer.turned = layer.turned != (T % 2 != 0);
  }

  // A layer reads what all members have written, and uses the scratch of the one before.
  void run_layers(const Team& team) {
    for (const ForwardArgs<Real>& layer : layers_) {
      kernels_.forward(layer, team);
      if (!team.barrier(team)) return;
    }
  }

  static constexpr Team alone = {0, 1, [](const Team&) { return true; }, [](const Team&) { return false; }, nullptr};

  const Kernels<Real>& kernels_;
  const Index L_, B_, I_, H_, chunk_;
  std::vector<Real> h0_, c0_;    // [L,H]
  std::vector<Real> h_, c_;      // [L,B,H]
  std::vector<Buffer> packed_;   // the weights of each layer
  Buffer between_[2], scratch_;  // outputs of a layer for the next one, [chunk,B,H]
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

void require_state(const rnnfast_stream& stream, const void* h, const void* c) {
  require(h, "h: expected an array, got NULL");
  require(bool(c) == stream.has_c, stream.has_c ? "c: expected an array, got NULL" : "c: expected NULL, got an array");
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
    require(!stack->c0 || has_c(cell), "c0: expected NULL, got an array");
    for (Index l = 0; l < stack->num_layers; ++l)
      require(stack->layers[l].w_ih && stack->layers[l].w_hh, "w_ih, w_hh: expected arrays, got NULL");
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
    finished = stream->run(T, x, y, {stop, context});
  });
  return finished ? status : fail(RNNFAST_INTERRUPTED, "stop: expected 0 until the run's end, got another number");
}

rnnfast_status stream_reset(rnnfast_stream* stream, const unsigned char* rows) {
  return with_stream(stream, rows ? all_anew : nullptr, [&](Claim&) { stream->reset(rows); });
}

rnnfast_status stream_get_state(rnnfast_stream* stream, void* h, void* c) {
  return with_stream(stream, all_anew, [&](Claim&) {
    require_state(*stream, h, c);
    stream->get_state(h, c);
  });
}

rnnfast_status stream_set_state(rnnfast_stream* stream, const void* h, const void* c) {
  return with_stream(stream, nullptr, [&](Claim&) {
    require_state(*stream, h, c);
    stream->set_state(h, c);
  });
}

}  // namespace rnnfast
