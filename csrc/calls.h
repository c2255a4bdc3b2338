// What the files of bindings share.
#pragma once

#include <functional>

#include "arrays.h"
#include "dispatch.h"
#include "threads.h"

namespace rnnfast {

// The time that a thread runs without the GIL. Once Python is finalizing, other threads than the one that does it must
// not return to it: CPython would unwind them, through frames that own Python objects. They wait for the end instead.
class WithoutGil {
 public:
  WithoutGil();
  ~WithoutGil() { take(); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

  // With the GIL between: whether a handler of a signal has raised. Such an exception remains set.
  bool signals_raise();

 private:
  void take() noexcept;

  bool finalizes_;
  PyThreadState* state_;
};

// What becomes of a call that is not let run to its end.
enum class Interruption {
  never,    // it is: what it changes in place must not be left half done
  once,     // Ctrl-C ends it
  restart,  // likewise; and it can begin anew, as it only writes what it does not read
};

using Kernel = std::function<void(const Team&)>;

// Calls begin(), and runs a kernel on the pool without the GIL. Signals are handled on Python's main thread only, so
// that others need not wait for the GIL. Where a handler forks, the child has none of the other threads and begins
// anew, or raises RuntimeError.
void call(
    Index threads, const Kernel& kernel, Interruption interruption = Interruption::restart,
    const std::function<void()>& begin = [] {});

// To be called when the module is imported.
void find_main_thread();

inline bool is_double(const std::string& name, const Array& array) {
  if (has_dtype(array, py::dtype::of<double>())) return true;
  if (has_dtype(array, py::dtype::of<float>())) return false;
  throw py::type_error(name + ": expected dtype float32 or float64, got " + text(array.dtype()));
}

// A tuple or list of this length, as a tuple of our own: a caller's list could change while we read it.
inline std::optional<py::tuple> tuple_of(const std::string& name, const py::object& object, std::size_t length,
                                         const std::string& content) {
  if (object.is_none()) return std::nullopt;
  if (!py::isinstance<py::tuple>(object) && !py::isinstance<py::list>(object))
    throw py::type_error(name + ": expected a tuple " + content + ", got " + type_name(object));
  const py::tuple tuple(object);
  if (tuple.size() != length)
    throw py::value_error(name + ": expected " + std::to_string(length) + " entries " + content + ", got " +
                          std::to_string(tuple.size()));
  return tuple;
}

inline py::object entry(const std::optional<py::tuple>& tuple, std::size_t i) {
  return tuple ? py::object((*tuple)[i]) : py::object(py::none());
}

template <class Real>
std::optional<Input<Real>> optional_input(const std::string& name, const py::object& object, const Shape& shape) {
  if (object.is_none()) return std::nullopt;
  return input<Real>(name, as_array(object, name), shape);
}

// Hands a result over; None where there is none.
template <class Real>
py::object finish(const std::optional<Output<Real>>& out) {
  if (!out) return py::none();
  out->commit();
  return out->result;
}

}  // namespace rnnfast
