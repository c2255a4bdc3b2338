// The C interface used from several threads and across forks, for ThreadSanitizer: a table of properties, each a
// function that requires what it says.
#include "c/capi.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "c/functions.h"
#include "types.h"

#if __has_include(<sys/wait.h>)
#include <sys/wait.h>
#include <unistd.h>
#define HAS_FORK 1
#endif

namespace rnnfast {

namespace baseline {
extern const Kernels<float> kernels_float;
extern const Kernels<double> kernels_double;
}  // namespace baseline
constexpr KernelTable table = {.name = "baseline", .f32 = &baseline::kernels_float, .f64 = &baseline::kernels_double};
const KernelTable* kernel_table = &table;
const PairKernels* pair_kernels = nullptr;  // a processor without AVX512_BF16
}  // namespace rnnfast

namespace {

using rnnfast::Index;
using Numbers = std::vector<float>;

constexpr const rnnfast_api& api = rnnfast::c_api;
constexpr Index callers = 4;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "capi: expected that %s; the last message is \"%s\"\n", what, api.message());
  std::exit(1);
}

void succeed(rnnfast_status status) { require(status == RNNFAST_OK, "a call succeeds"); }

bool is_done(rnnfast_status status) {
  if (status == RNNFAST_OK) return true;
  require(status == RNNFAST_BUSY && std::strstr(api.message(), "expected one call at a time, got one while another"),
          "a call with what another thread uses is served or told so");
  return false;
}

// f(caller) on several threads at once.
template <class F>
void at_once(F&& f) {
  std::vector<std::thread> threads;
  for (Index caller = 0; caller < callers; ++caller) threads.emplace_back([&f, caller] { f(caller); });
  for (std::thread& thread : threads) thread.join();
}

Numbers draw(unsigned seed, Index n) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> uniform(-0.3f, 0.3f);
  Numbers numbers(std::size_t(n), 0);
  for (float& number : numbers) number = uniform(generator);
  return numbers;
}

// ---- Streams -------------------------------------------------------------------------------------------------------

// Two layers, whose runs have work for two threads.
constexpr Index T = 64, B = 4, I = 64, H = 64, L = 2, G = 4;
const Numbers weights = draw(1, 2 * G * H * H), x = draw(2, T*B*I);
constexpr Index states = L * B * H, outputs = T * B * H;

// [L,B,H] of each state.
struct State {
  Numbers h = Numbers(states, 0), c = h;
  void* pointers[2] = {h.data(), c.data()};

  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  bool operator==(const State& other) const { return h == other.h && c == other.c; }
};

rnnfast_stream* make_stream() {
  const rnnfast_weights layer = {weights.data(), weights.data() + G * H * H, nullptr, nullptr, nullptr},
                        layers[L] = {layer, layer};
  const rnnfast_stack stack = {"lstm", RNNFAST_FLOAT32, L,      I, H, layers, nullptr, 0, 0, nullptr,
                               0,      RNNFAST_SAME,    nullptr};
  rnnfast_stream* stream = nullptr;
  succeed(api.stream_create(&stack, B, &stream));
  return stream;
}

// y [T,B,H] of the first run.
Numbers first_outputs(rnnfast_stream* stream) {
  Numbers y(outputs, 0);
  succeed(api.stream_reset(stream, nullptr));
  succeed(api.stream_run(stream, T, x.data(), y.data()));
  return y;
}

Numbers first_outputs() {
  rnnfast_stream* const stream = make_stream();
  const Numbers y = first_outputs(stream);
  api.stream_destroy(stream);
  return y;
}

void streams_of_their_own_do_not_meet() {
  const Numbers expected = first_outputs();
  at_once([&](Index caller) {
    rnnfast_stream* const stream = make_stream();
    for (Index repeat = 0; repeat < 10; ++repeat) {
      succeed(api.set_num_threads(1 + (caller + repeat) % 3));
      require(first_outputs(stream) == expected, "a stream of its own gives the bits of one thread");
    }
    api.stream_destroy(stream);
  });
}

void one_stream_serves_one_call_at_a_time() {
  const Numbers expected = first_outputs();
  rnnfast_stream* const stream = make_stream();
  std::atomic<Index> served = 0;
  at_once([&](Index caller) {
    Numbers y(outputs, 0);
    State state;
    const unsigned char rows[B] = {1, 0, 0, 1};
    for (Index repeat = 0; repeat < 20; ++repeat) switch ((caller + repeat) % callers) {
        case 0:
          served += is_done(api.stream_run(stream, T, x.data(), y.data()));
          break;
        case 1:
          served += is_done(api.stream_reset(stream, repeat % 2 ? rows : nullptr));
          break;
        case 2:
          served += is_done(api.stream_get_state(stream, state.pointers));
          break;
        default:
          served += is_done(api.stream_set_state(stream, state.pointers));
      }
  });
  require(served > 0, "some calls are served");
  require(first_outputs(stream) == expected, "the stream works on");
  api.stream_destroy(stream);
}

// ---- Runs that ask whether to stop
// -----------------------------------------------------------------------------------

struct Asked {
  rnnfast_stream* stream;
  int answer;
  Index t = 0;                        // of the first question
  std::atomic<bool>* asks = nullptr;  // set at the question, which is answered when it is cleared
};

int stop(void* context, ptrdiff_t t) {
  Asked& asked = *static_cast<Asked*>(context);
  if (!asked.t) asked.t = t;
  State state;
  require(!is_done(api.stream_get_state(asked.stream, state.pointers)), "the stream is busy meanwhile");
  if (asked.asks) {
    *asked.asks = true;
    while (*asked.asks) std::this_thread::yield();
  }
  return asked.answer;
}

// So long that it asks.
constexpr Index long_T = 2000;
const Numbers long_x = draw(3, long_T* B* I);

void a_run_asks_whether_to_stop() {
  rnnfast_stream *const stream = make_stream(), *const other = make_stream();
  Numbers y(long_T * B * H, 0), whole(long_T * B * H, 0);
  State state, other_state;
  Asked asked = {stream, 1};
  require(api.stream_run_until(stream, long_T, long_x.data(), y.data(), stop, &asked) == RNNFAST_INTERRUPTED,
          "a run that was told to stop says so");
  require(asked.t > 0 && asked.t < long_T, "a part of the steps was run");
  succeed(api.stream_run(other, asked.t, long_x.data(), whole.data()));
  succeed(api.stream_get_state(stream, state.pointers));
  succeed(api.stream_get_state(other, other_state.pointers));
  require(state == other_state, "the state is that after these steps");

  const Index done = asked.t;
  asked = {stream, 0};
  succeed(
      api.stream_run_until(stream, long_T - done, long_x.data() + done * B * I, y.data() + done * B * H, stop, &asked));
  succeed(api.stream_run(other, long_T - done, long_x.data() + done * B * I, whole.data() + done * B * H));
  require(y == whole, "the outputs are those of a run that was not stopped");
  api.stream_destroy(stream), api.stream_destroy(other);
}

// ---- Forks
// -----------------------------------------------------------------------------------------------------------

#if HAS_FORK
// f() in a forked child.
template <class F>
void in_child(F&& f) {
  const pid_t child = fork();
  require(child >= 0, "the process can fork");
  if (child == 0) {
    f();
    _exit(0);
  }
  int status = 0;
  require(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child succeeds");
}

bool is_cut_off(rnnfast_status status) {
  return status == RNNFAST_BUSY && std::strstr(api.message(), "first, since a fork has cut off the call");
}

void a_child_may_use_a_stream_whose_call_a_fork_has_cut_off() {
  const Numbers expected = first_outputs();
  rnnfast_stream* const stream = make_stream();
  std::atomic<bool> asks = false;
  std::thread runs([&] {
    Numbers y(long_T * B * H, 0);
    Asked asked = {stream, 1, 0, &asks};
    api.stream_run_until(stream, long_T, long_x.data(), y.data(), stop, &asked);
  });
  while (!asks) std::this_thread::yield();
  in_child([&] {
    Numbers y(outputs, 0);
    State state;
    const unsigned char rows[B] = {1, 0, 0, 1};
    require(is_cut_off(api.stream_run(stream, T, x.data(), y.data())), "a run would start from any state");
    require(is_cut_off(api.stream_reset(stream, rows)), "a reset of some sequences does not do");
    require(is_cut_off(api.stream_get_state(stream, state.pointers)), "the state might be any");
    in_child([&] { require(first_outputs(stream) == expected, "a reset of all sequences will do, in its child too"); });
    succeed(api.stream_set_state(stream, state.pointers));
    succeed(api.stream_run(stream, T, x.data(), y.data()));
    require(y == expected, "a state will do");
    api.stream_destroy(stream);
  });
  require(!is_done(api.stream_reset(stream, nullptr)), "the stream is busy in the parent");
  asks = false;
  runs.join();
  require(first_outputs(stream) == expected, "the parent's stream works on");
  api.stream_destroy(stream);
}

struct Fork {
  rnnfast_stream* stream;
  pid_t child = -1;
};

int fork_once(void* context, ptrdiff_t) {
  Fork& forked = *static_cast<Fork*>(context);
  if (forked.child < 0) forked.child = fork();
  require(!is_done(api.stream_reset(forked.stream, nullptr)), "the stream is busy in the call that forked");
  return 0;
}

void a_call_that_forks_goes_on_in_both_processes() {
  rnnfast_stream* const stream = make_stream();
  Numbers expected(long_T * B * H, 0), y = expected;
  succeed(api.stream_run(stream, long_T, long_x.data(), expected.data()));
  succeed(api.stream_reset(stream, nullptr));
  Fork forked = {stream};
  succeed(api.stream_run_until(stream, long_T, long_x.data(), y.data(), fork_once, &forked));
  require(y == expected, "a run that forks gives the bits of one that does not");
  require(forked.child >= 0, "the process has forked");
  succeed(api.stream_reset(stream, nullptr));
  if (forked.child == 0) _exit(0);
  int status = 0;
  require(waitpid(forked.child, &status, 0) == forked.child && WIFEXITED(status) && WEXITSTATUS(status) == 0,
          "the child succeeds");
  api.stream_destroy(stream);
}
#endif

// ---- Layers
// ----------------------------------------------------------------------------------------------------------

// A forward and a backward of one layer, and where their results go.
struct Training {
  Numbers y = Numbers(outputs, 0), h = Numbers(B * H, 0), c = h;
  Numbers dx = Numbers(T * B * I, 0), gradients = Numbers(2 * G * H * H, 0);
  rnnfast_weights given = {weights.data(), weights.data() + G* H* H, nullptr, nullptr, nullptr};
  rnnfast_layer layer = {sizeof(rnnfast_layer), "lstm", RNNFAST_FLOAT32, I, H, 1, &given, 0, 0, nullptr, 0,
                         RNNFAST_FULL};
  void* state[2] = {h.data(), c.data()};
  rnnfast_gradients wanted = {gradients.data(), gradients.data() + G* H* H, nullptr, nullptr, nullptr};

  Training() = default;
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;

  rnnfast_status forward(rnnfast_tape* tape, const rnnfast_pack* pack) {
    rnnfast_forward_args args = {};
    args.size = sizeof(args), args.T = T, args.B = B, args.x = x.data();
    args.y = y.data(), args.state = state, args.tape = tape, args.pack = pack;
    return api.forward(&layer, &args);
  }

  rnnfast_status backward(rnnfast_tape* tape) {
    rnnfast_backward_args args = {};
    args.size = sizeof(args), args.dy = x.data(), args.dx = dx.data(), args.gradients = &wanted;
    return api.backward(tape, &args);
  }

  bool operator==(const Training& other) const {
    return y == other.y && h == other.h && c == other.c && dx == other.dx && gradients == other.gradients;
  }
};

rnnfast_tape* make_tape() {
  rnnfast_tape* tape = nullptr;
  succeed(api.tape_create(&tape));
  return tape;
}

void solve(Training& training) {
  rnnfast_tape* const tape = make_tape();
  succeed(training.forward(tape, nullptr));
  succeed(training.backward(tape));
  api.tape_destroy(tape);
}

void layers_share_a_pack() {
  Training expected;
  solve(expected);
  rnnfast_pack* pack = nullptr;
  succeed(api.pack_create(&expected.layer, &pack));
  at_once([&](Index caller) {
    rnnfast_tape* const tape = make_tape();
    for (Index repeat = 0; repeat < 5; ++repeat) {
      Training own;
      succeed(api.set_num_threads(1 + (caller + repeat) % 3));
      succeed(own.forward(nullptr, pack));
      require(own.y == expected.y && own.h == expected.h, "inference gives the bits of one thread");
      succeed(own.forward(tape, pack));
      succeed(own.backward(tape));
      require(own == expected, "training gives the bits of one thread");
    }
    api.tape_destroy(tape);
  });
  api.pack_destroy(pack);
}

void one_tape_serves_one_call_at_a_time() {
  Training expected;
  solve(expected);
  rnnfast_tape* const tape = make_tape();
  succeed(expected.forward(tape, nullptr));
  at_once([&](Index) {
    Training own;
    for (Index repeat = 0; repeat < 10; ++repeat)
      if (is_done(own.backward(tape)))
        require(own.dx == expected.dx && own.gradients == expected.gradients, "backward gives the bits of one thread");
  });
  api.tape_destroy(tape);
}

void messages_are_of_their_threads() {
  at_once([](Index caller) {
    for (Index repeat = 0; repeat < 100; ++repeat) {
      char expected[80];
      std::snprintf(expected, sizeof(expected), "n: expected a number of threads from 1 to 1024, got %td", -caller);
      require(api.set_num_threads(-caller) == RNNFAST_INVALID && !std::strcmp(api.message(), expected),
              "the message is of this thread");
    }
  });
}

void a_precision_needs_an_instruction() {
  Training training;
  training.layer.precision = RNNFAST_ROUNDED;
  const char* const expected = "precision: expected RNNFAST_FULL, since this processor lacks AVX512_BF16, got 1";
  require(training.forward(nullptr, nullptr) == RNNFAST_INVALID && !std::strcmp(api.message(), expected),
          "a precision is refused where the instruction is missing");
  training.layer.precision = RNNFAST_FULL;
  succeed(training.forward(nullptr, nullptr));
}

struct Property {
  const char* name;
  void (*holds)();
};

constexpr Property properties[] = {
    {"streams of their own do not meet", streams_of_their_own_do_not_meet},
    {"one stream serves one call at a time", one_stream_serves_one_call_at_a_time},
    {"a run asks whether to stop", a_run_asks_whether_to_stop},
#if HAS_FORK
    {"a child may use a stream whose call a fork has cut off", a_child_may_use_a_stream_whose_call_a_fork_has_cut_off},
    {"a call that forks goes on in both processes", a_call_that_forks_goes_on_in_both_processes},
#endif
    {"layers share a pack", layers_share_a_pack},
    {"one tape serves one call at a time", one_tape_serves_one_call_at_a_time},
    {"messages are of their threads", messages_are_of_their_threads},
    {"a precision needs an instruction", a_precision_needs_an_instruction},
};

}  // namespace

int main() {
  for (const Property& property : properties) {
    property.holds();
    std::printf("ok: %s\n", property.name);
  }
}
