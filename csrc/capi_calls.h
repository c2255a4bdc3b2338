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
};

// Sets the message of this thread, as printf forms it.
[[gnu::format(printf, 2, 3)]] rnnfast_status fail(rnnfast_status status, const char* message, ...);

// Throws std::invalid_argument if that is not so.
[[gnu::format(printf, 2, 3)]] void require(bool holds, const char* message, ...);

const CellInfo& cell_named(const char* name);

// Runs f() and tells how it went.
template <class F>
rnnfast_status told(F&& f) {
  try {
    f();
    return RNNFAST_OK;
  } catch (const std::invalid_argument& error) {
    return fail(RNNFAST_INVALID, "%s", error.what());
  } catch (const Busy& busy) {
    return fail(RNNFAST_BUSY, "%s: expected one call at a time, got one while another one runs", busy.handle);
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

// A handle's flag, taken for the length of a call.
class Claim {
 public:
  Claim(std::atomic_flag& flag, const char* handle) : flag_(flag) {
    if (flag_.test_and_set(std::memory_order_acquire)) throw Busy{handle};
  }
  ~Claim() { flag_.clear(std::memory_order_release); }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

 private:
  std::atomic_flag& flag_;
};

rnnfast_status stream_create(const rnnfast_stack* stack, ptrdiff_t B, rnnfast_stream** stream);
void stream_destroy(rnnfast_stream* stream);
rnnfast_status stream_run(rnnfast_stream* stream, ptrdiff_t T, const void* x, void* y);
rnnfast_status stream_reset(rnnfast_stream* stream, const unsigned char* rows);
rnnfast_status stream_get_state(rnnfast_stream* stream, void* h, void* c);
rnnfast_status stream_set_state(rnnfast_stream* stream, const void* h, const void* c);

}  // namespace rnnfast
