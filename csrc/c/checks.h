// The border of the C interface: an argument that does not fit, a handle in use and memory that is not there become a
// status and a message. No exception leaves the interface.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <exception>
#include <iterator>
#include <stdexcept>

#include "c/capi.h"
#include "run/dispatch.h"
#include "run/problem.h"
#include "types.h"

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

// Read like a dtype.
inline Format read_format(const rnnfast_format& format, rnnfast_dtype dtype) {
  int number;
  static_assert(sizeof(number) == sizeof(format));
  std::memcpy(&number, &format, sizeof(number));
  require(number >= RNNFAST_SAME && number <= RNNFAST_INT8,
          "format: expected RNNFAST_SAME, RNNFAST_BFLOAT16 or RNNFAST_INT8, got %d", number);
  require(number == RNNFAST_SAME || dtype == RNNFAST_FLOAT32, "format: expected RNNFAST_SAME for float64, got %d",
          number);
  return number == RNNFAST_SAME ? Format::real : number == RNNFAST_INT8 ? Format::int8 : Format::bfloat16;
}

// Whether the factors of products are rounded.
inline bool read_precision(const rnnfast_precision& precision, rnnfast_dtype dtype) {
  int number;
  static_assert(sizeof(number) == sizeof(precision));
  std::memcpy(&number, &precision, sizeof(number));
  require(number == RNNFAST_FULL || number == RNNFAST_ROUNDED,
          "precision: expected RNNFAST_FULL or RNNFAST_ROUNDED, got %d", number);
  if (number == RNNFAST_FULL) return false;
  require(dtype == RNNFAST_FLOAT32, "precision: expected RNNFAST_FULL for float64, got %d", number);
  require(pair_kernels, "precision: expected RNNFAST_FULL, since this processor lacks AVX512_BF16, got %d", number);
  return true;
}

// P, of a layer that has a projection or none.
inline Index read_size_of_h(const CellShape& cell, Index H, Index proj_size) {
  require(proj_size == 0 || cell.projects, "proj_size: expected 0 for %s, got %td", cell.name, proj_size);
  require(proj_size >= 0 && proj_size < H, "proj_size: expected 0 to %td, less than H, got %td", H - 1, proj_size);
  return proj_size ? proj_size : H;
}

// The heads of a cell with so many units.
inline Index read_heads(const CellShape& cell, Index H, Index given) {
  const Index heads = given == 0 ? 1 : given;
  require(heads == 1 || cell.has_heads, "num_heads: expected 0 or 1 for %s, got %td", cell.name, given);
  require(heads >= 1 && H % heads == 0, "num_heads: expected a number that divides H, %td, got %td", H, given);
  return heads;
}

// What is added to variances, of a cell that normalises; 0 of the others.
inline double read_eps(const CellShape& cell, rnnfast_dtype dtype, double given) {
  const bool normalises = cell.stage_count > 0;
  require(given == 0 || normalises, "layer_norm_eps: expected 0 for %s, got %g", cell.name, given);
  if (given == 0) return normalises ? default_eps : 0;
  require(dtype == RNNFAST_FLOAT64 ? is_eps<double>(given) : is_eps<float>(given),
          "layer_norm_eps: expected a positive number, or 0 for 1e-5, got %g", given);
  return given;
}

// One direction's weights, of which only a bias may be missing.
inline Parameters<const void> read_weights(const rnnfast_weights& weights, const CellShape& cell, bool projected,
                                           const float* const* scales = nullptr) {
  require(weights.w_ih && weights.w_hh, "w_ih, w_hh: expected arrays, got NULL");
  Parameters<const void> read = {
      .w_ih = weights.w_ih, .w_hh = weights.w_hh, .b_ih = weights.b_ih, .b_hh = weights.b_hh, .vectors = {}};
  for (int i = 0; i < cell.parameter_count; ++i) {
    require(weights.more && (weights.more[i] || cell.parameters[i].is_bias), "%s: expected an array, got NULL",
            cell.parameters[i].name);
    read.vectors[i] = weights.more[i];
  }
  if (projected) {
    require(weights.more && weights.more[cell.parameter_count], "w_hr: expected an array, got NULL");
    read.w_hr = weights.more[cell.parameter_count];
  }
  for (int i = 0; i < 2 + projected && scales; ++i) {
    require(scales[i], "scales: expected arrays, got NULL");
    read.scales[i] = scales[i];
  }
  return read;
}

// The part of each state that stays in a step, in an array of the cell's states or NULL.
inline std::array<double, most_states> read_zoneout(const double* given, const CellShape& cell, bool projected) {
  std::array<double, most_states> rates = {};
  for (int s = 0; s < cell.state_count && given; ++s) {
    const double rate = rates[std::size_t(s)] = given[s];
    require(rate >= 0 && rate < 1, "zoneout[%d]: expected at least 0 and less than 1, got %g", s, rate);
    require(rate == 0 || !projected, "zoneout[%d]: expected 0, since h is a projection, got %g", s, rate);
  }
  return rates;
}

// As the kernels take them.
template <class Real, class Void>
Parameters<Real> with_type(const Parameters<Void>& given) {
  const auto array = [](Void* a) { return static_cast<Real*>(a); };
  Parameters<Real> parameters = {.w_ih = array(given.w_ih),
                                 .w_hh = array(given.w_hh),
                                 .b_ih = array(given.b_ih),
                                 .b_hh = array(given.b_hh),
                                 .vectors = {}};
  for (int i = 0; i < most_parameters; ++i) parameters.vectors[i] = array(given.vectors[i]);
  parameters.w_hr = array(given.w_hr);
  std::copy_n(given.scales, std::size(given.scales), parameters.scales);
  return parameters;
}

// f<Real>(), by a dtype that has been checked.
template <class F>
void with_real(rnnfast_dtype dtype, F&& f) {
  dtype == RNNFAST_FLOAT64 ? f.template operator()<double>() : f.template operator()<float>();
}

}  // namespace rnnfast
