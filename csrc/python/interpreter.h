// What concerns the interpreter: the GIL, signals, forks, and its end.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

#include "types.h"

namespace rnnfast {

namespace py = pybind11;

// The object that make() gives, which may let go of the GIL on its way: Python code, and NumPy where it copies or
// computes. CPython ends a thread that wants the GIL back while Python is finalizing, by unwinding it; the frames of
// C++ that own Python objects are to be spared that.
py::object guarded(const std::function<PyObject*()>& make);

// The same of a call.
py::object called(const py::object& function, const py::tuple& arguments, const py::dict& named = py::dict());

// Gives up a reference, in any thread, which need not have the GIL. While Python is finalizing the object stays.
void let_go(PyObject* object) noexcept;

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

// Whether a call may end before it is done.
enum class Interruption {
  never,    // no: what it changes in place must not be left half done
  once,     // Ctrl-C ends it
  restart,  // Ctrl-C ends it, and it may also be run again from the start: it never reads what it writes
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

}  // namespace rnnfast
