// The table of capi.h, and what all of its functions share.
#include <atomic>
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "c/capi.h"
#include "c/checks.h"
#include "c/claim.h"
#include "c/functions.h"
#include "run/dispatch.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {
namespace {

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
    require(is_thread_count(n), "n: expected a number of threads from 1 to %td, got %td", most_threads, n);
    set_num_threads(n);
  });
}

}  // namespace

unsigned this_process = 1;

void Claim::follow(const char* handle, const char* first) {
  const unsigned process = caller_.load(std::memory_order_relaxed);
  if (process == 0 || process == this_process) throw Busy{.handle = handle, .first = nullptr};
  if (first) throw Busy{.handle = handle, .first = first};
  if (!take_from(process)) throw Busy{.handle = handle, .first = nullptr};
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

constexpr int oldest_version = 3;  // the functions of a version are never changed

const rnnfast_api c_api = {.size = sizeof(rnnfast_api),
                           .version = RNNFAST_API_VERSION,
                           .oldest = oldest_version,
                           .message = message,
                           .stream_create = stream_create,
                           .stream_destroy = stream_destroy,
                           .stream_run = stream_run,
                           .stream_reset = stream_reset,
                           .stream_get_state = stream_get_state,
                           .stream_set_state = stream_set_state,
                           .forward = forward,
                           .backward = backward,
                           .tape_create = tape_create,
                           .tape_destroy = tape_destroy,
                           .pack_create = pack_create,
                           .pack_update = pack_update,
                           .pack_destroy = pack_destroy,
                           .get_num_threads = get_num_threads,
                           .set_num_threads = set_threads,
                           .stream_run_until = stream_run_until};

}  // namespace rnnfast
