// What the functions of the C interface share: arguments that do not fit become a status and a message, and a handle
// serves one call at a time. No exception leaves the interface.
#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "capi.h"
#include "cells.h"

namespace rnnfast {

// Thrown where a handle is in a call already.
struct Busy {
  const char* handle;
  const char* first;  // what has to come first, where that call was cut off; else null
};

// Sets the message of this thread, as printf forms it.
[[gnu::format(printf, 2, 3)]] rnnfast_status fail(rnnfast_status status, const char* message, ...);

// Throws std::invalid_argument if that is not so.
[[gnu::format(printf, 2, 3)]] void require(bool holds, const char* message, ...);

const CellShape& cell_named(const char* name);

// Runs f() and tells how it went.
template <class F>
rnnfast_status told(F&& f) {
  try {
    f();
    return RNNFAST_OK;
  } catch (const std::invalid_argument& error) {
    return fail(RNNFAST_INVALID, "%s", error.what());
  } catch (const Busy& busy) {
    if (!busy.first)
      return fail(RNNFAST_BUSY, "%s: expected one call at a time, got one while another one runs", busy.handle);
    return fail(RNNFAST_BUSY, "%s: expected %s first, since a fork has cut off the call of another thread", busy.handle,
                busy.first);
  } catch (const std::exception&) {
    return fail(RNNFAST_NO_MEMORY, "expected enough memory, got none");
  }
}

// Before the dtype is read: a caller in C can give any number, which would not do as an enum of C++.
inline void require_dtype(const rnnfast_dtype& dtype) {
  int number;
  static_assert(sizeof(number) == sizeof(dtype));
  std::memcpy(&number, &dtype, sizeof(number));
  require(number == RNNFAST_FLOAT32 || number == RNNFAST_FLOAT64,
          "dtype: expected RNNFAST_FLOAT32 or RNNFAST_FLOAT64, got %d", number);
}

// f<Real>(), by a dtype that has been checked.
template <class F>
void with_real(rnnfast_dtype dtype, F&& f) {
  dtype == RNNFAST_FLOAT64 ? f.template operator()<double>() : f.template operator()<float>();
}

// The process that a handle's call runs in, by a number; 0 where there is no call. A forked child gets a number of its
// own, and calls of the parent's threads, which are not in it, were cut off: they keep the old one.
using Caller = std::atomic<unsigned>;

extern unsigned this_process;  // changes in a forked child, before that has a second thread

// Whether a call was cut off, which may have left what it was changing in any state.
inline bool is_cut_off(const Caller& caller) {
  const unsigned process = caller.load(std::memory_order_relaxed);
  return process && process != this_process;
}

// A handle, taken for the length of a call.
class Claim {
 public:
  // Throws Busy. A call that says what has to come `first` does not follow on one that was cut off; without it, a call
  // does, and sets everything anew that calls change.
  Claim(Caller& caller, const char* handle, const char* first) : caller_(caller) {
    if (!take_from(0)) follow(handle, first);
  }
  ~Claim() {
    if (follows_forks_) leave_forks();
    caller_.store(0, std::memory_order_release);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  bool follows_cut_off() const { return follows_cut_off_; }

  // For a call that runs its caller's code: where this forks, the call goes on in the child as well.
  void follow_forks();

  // In a forked child.
  static void renumber();

 private:
  bool take_from(unsigned process) {
    return caller_.compare_exchange_strong(process, this_process, std::memory_order_acquire, std::memory_order_relaxed);
  }
  [[gnu::cold]] void follow(const char* handle, const char* first);  // a call that was cut off, or throws
  [[gnu::cold]] void leave_forks();

  Caller& caller_;
  bool follows_cut_off_ = false, follows_forks_ = false;
  Claim* outer_ = nullptr;  // the thread's claim before this one that follows forks
};

rnnfast_status stream_create(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream);
void stream_destroy(rnnfast_stream* stream);
rnnfast_status stream_run(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y);
rnnfast_status stream_run_until(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y,
                                int (*stop)(void* context, ptrdiff_t t), void* context);
rnnfast_status stream_reset(rnnfast_stream* stream, const unsigned char* rows);
rnnfast_status stream_get_state(rnnfast_stream* stream, void* h, void* c);
rnnfast_status stream_set_state(rnnfast_stream* stream, const void* h, const void* c);

}  // namespace rnnfast
