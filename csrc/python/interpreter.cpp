#include "python/interpreter.h"

#include <atomic>
#include <cfenv>
#include <chrono>
#include <ctime>
#include <functional>
#include <stdexcept>
#include <thread>

#include "run/dispatch.h"
#include "run/threads.h"

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rnnfast {

namespace {

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

[[noreturn]] void wait_for_the_end() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

// Python may begin to finalize while f() is without the GIL, and end this thread when it asks for it (before 3.14).
template <class F>
void survive(const F& f) {
#if defined(__GLIBCXX__)
  try {
    f();
  } catch (abi::__forced_unwind&) {
    wait_for_the_end();
  }
#else
  f();
#endif
}

// Where Python handles signals.
std::atomic<unsigned long> main_thread;

// To some milliseconds. Kernels ask often, and before a processor reads a precise clock it finishes all that is under
// way.
std::chrono::nanoseconds rough_time() {
#if defined(CLOCK_MONOTONIC_COARSE)
  std::timespec time;
  clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
#elif defined(__APPLE__)
  return std::chrono::nanoseconds(clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW_APPROX));
#else
  return std::chrono::steady_clock::now().time_since_epoch();
#endif
}

}  // namespace

// A thread that holds the GIL while Python is finalizing is the one that does it.
WithoutGil::WithoutGil() : finalizes_(is_finalizing()), state_(PyEval_SaveThread()) {}

void WithoutGil::take() noexcept {
  if (is_finalizing() && !finalizes_) wait_for_the_end();
  survive([&] { PyEval_RestoreThread(state_); });
}

bool WithoutGil::signals_raise() {
  take();
  bool raised = false;
  survive([&] { raised = PyErr_CheckSignals() != 0; });
  state_ = PyEval_SaveThread();
  return raised;
}

void let_go(PyObject* object) noexcept {
  if (PyGILState_Check()) return Py_DECREF(object);
  if (!Py_IsInitialized() || is_finalizing()) return;
  survive([&] {
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_DECREF(object);
    PyGILState_Release(state);
  });
}

py::object guarded(const std::function<PyObject*()>& make) {
  PyObject* result = nullptr;
  survive([&] { result = make(); });
  if (!result) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}

py::object called(const py::object& function, const py::tuple& arguments, const py::dict& named) {
  return guarded([&] { return PyObject_Call(function.ptr(), arguments.ptr(), named.ptr()); });
}

void find_main_thread() {
  main_thread = py::module_::import("threading").attr("main_thread")().attr("ident").cast<unsigned long>();
#if !defined(_WIN32)
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
#endif
}

void call(Index threads, const Kernel& kernel, Interruption interruption, const std::function<void()>& begin) {
  constexpr auto pause = std::chrono::milliseconds(20);  // not felt by who presses Ctrl-C, nor by the kernel
  const bool asks = interruption != Interruption::never && PyThread_get_thread_ident() == main_thread;
  auto asked = asks ? rough_time() : std::chrono::nanoseconds();
  std::fenv_t callers;
  if (asks) std::fegetenv(&callers);
  for (;;) {
    begin();
    Outcome outcome;
    {
      WithoutGil without_gil;
      bool raised = false;
      const auto poll = [&]() -> bool {
        if (!asks || raised || rough_time() - asked < pause) return false;
        std::fenv_t kernels;  // a handler finds the floating point mode of the caller
        std::fegetenv(&kernels);
        std::fesetenv(&callers);
        if (pair_kernels && pair_kernels->release) pair_kernels->release();  // a handler may use tiles, too
        raised = without_gil.signals_raise();
        std::fesetenv(&kernels);
        asked = rough_time();
        return raised;
      };
      outcome = run_parallel(threads, kernel, std::cref(poll));  // a copy would need memory
    }
    if (outcome == Outcome::finished) return;
    if (outcome == Outcome::interrupted) throw py::error_already_set();
    if (interruption != Interruption::restart)
      throw std::runtime_error(
          "the process was forked by a signal handler inside this call, which the child cannot finish: it adds to "
          "arrays that were given");
  }
}

}  // namespace rnnfast
