// Arrays at the border: what a caller gives becomes a checked view, or an error that names the argument, what was
// expected and what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "memory.h"
#include "types.h"

namespace rnnfast {

namespace py = pybind11;

// Any str has a text: code points that UTF-8 does not have are escaped.
inline std::string text(const py::handle& object) {
  return py::cast<std::string>(py::str(object).attr("encode")("utf-8", "backslashreplace"));
}

inline std::string type_name(const py::handle& object) { return text(py::type::of(object).attr("__qualname__")); }

// An array that shares the object's memory wherever the object allows it.
inline py::array as_array(const py::object& object, const std::string& name) {
  if (py::isinstance<py::array>(object)) return object;
  const bool numpy_reads = py::hasattr(object, "__array_interface__") || py::hasattr(object, "__array__") ||
                           PyObject_CheckBuffer(object.ptr());
  if (!numpy_reads && !py::hasattr(object, "__dlpack__"))
    throw py::type_error(name + ": expected an array, got " + type_name(object));
  try {
    return py::module_::import("numpy").attr(numpy_reads ? "asarray" : "from_dlpack")(object);
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
    const std::string message = name + ": expected an array, got " + type_name(object) + ", which failed to give one";
    py::raise_from(error, PyExc_TypeError, message.c_str());
    throw py::error_already_set();
  }
}

using Shape = std::vector<Index>;

inline std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

inline Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

// `expected` in words, such as "(T, B, 28)".
[[noreturn]] inline void wrong_shape(const std::string& name, const std::string& expected, const py::array& array) {
  throw py::value_error(name + ": expected shape " + expected + ", got " + shape_text(shape_of(array)));
}

inline void require_shape(const std::string& name, const py::array& array, const Shape& shape) {
  if (shape_of(array) != shape) wrong_shape(name, shape_text(shape), array);
}

inline void require_dtype(const std::string& name, const py::array& array, const py::dtype& dtype) {
  if (!array.dtype().equal(dtype))
    throw py::type_error(name + ": expected dtype " + text(dtype) + ", got " + text(array.dtype()));
}

template <class Real>
bool is_aligned(const py::array& array) {
  return reinterpret_cast<std::uintptr_t>(array.data()) % alignof(Real) == 0;
}

// Whether [.., .., n] can be walked as rows of contiguous elements, a fixed stride apart; if so, that stride.
template <class Real>
std::optional<Index> row_stride(const py::array& array) {
  const auto item = Index(sizeof(Real));
  const Index last = array.ndim() - 1;
  if (array.size() == 0) return array.shape(last);  // whose strides may be anything
  if (!is_aligned<Real>(array)) return std::nullopt;
  if (array.shape(last) > 1 && array.strides(last) != item) return std::nullopt;
  Index rows = 1, stride = array.shape(last) * item;
  for (Index axis = last - 1; axis >= 0; --axis) {
    if (array.shape(axis) == 1) continue;
    if (rows == 1) stride = array.strides(axis);
    if (array.strides(axis) != rows * stride) return std::nullopt;
    rows *= array.shape(axis);
  }
  return stride % item == 0 ? std::optional(stride / item) : std::nullopt;
}

template <class Real>
py::array contiguous_copy(const py::array& array) {
  constexpr int aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const py::array copy = py::array_t<Real, py::array::c_style | aligned>::ensure(array);
  if (!copy) throw std::bad_alloc();
  return copy;
}

// An argument that is read. Arrays whose rows are not contiguous are copied.
template <class Real>
struct Input {
  py::array given, array;  // what came, and what the kernels read
  Index stride = 0;

  View<const Real> view() const { return {static_cast<const Real*>(array.data()), stride}; }
};

template <class Real>
Input<Real> input(const std::string& name, const py::object& object, const Shape& shape) {
  Input<Real> in;
  in.given = as_array(object, name);
  require_dtype(name, in.given, py::dtype::of<Real>());
  require_shape(name, in.given, shape);
  const auto stride = row_stride<Real>(in.given);
  in.array = stride ? in.given : contiguous_copy<Real>(in.given);
  in.stride = stride ? *stride : shape.back();
  return in;
}

// Parameters are packed by the kernels from contiguous memory.
template <class Real>
Input<Real> contiguous_input(const std::string& name, const py::object& object, const Shape& shape) {
  Input<Real> in = input<Real>(name, object, shape);
  if (in.stride != shape.back()) in.array = contiguous_copy<Real>(in.given), in.stride = shape.back();
  return in;
}

inline bool overlaps_itself(const py::array& array) {
  if (array.size() == 0) return false;
  std::vector<std::pair<Index, Index>> axes;  // (|stride|, elements)
  for (Index axis = 0; axis < array.ndim(); ++axis)
    if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.strides(axis)), array.shape(axis));
  std::sort(axes.begin(), axes.end());
  Index extent = array.itemsize();
  for (const auto& [stride, elements] : axes) {
    if (stride < extent) return true;
    extent += stride * (elements - 1);
  }
  return false;
}

// An array of the caller's that can take a result.
inline py::array writable(const std::string& name, const py::object& object, const py::dtype& dtype,
                          const Shape& shape) {
  const py::array array = as_array(object, name);
  require_dtype(name, array, dtype);
  require_shape(name, array, shape);
  if (!array.writeable()) throw py::value_error(name + ": expected a writable array, got a read-only one");
  if (overlaps_itself(array))
    throw py::value_error(name + ": expected distinct elements, got an array that overlaps itself");
  return array;
}

// An array, not initialised. Large ones are made of memory that is used again: a training loop that drops its results
// at each step would otherwise be handed, and have to touch, fresh pages at each step.
template <class Real>
py::array new_array(const Shape& shape) {
  constexpr Index large = Index{1} << 16;
  Index elements = 1;
  for (const Index n : shape) elements *= n;
  if (elements * Index(sizeof(Real)) < large) return py::array_t<Real>(shape);
  auto memory = std::make_unique<Buffer>(std::size_t(elements) * sizeof(Real));
  auto* const data = static_cast<Real*>(memory->data());
  const py::capsule owner(memory.get(), [](void* buffer) { delete static_cast<Buffer*>(buffer); });
  memory.release();
  return py::array_t<Real>(shape, data, owner);
}

// A result: a new array, or the caller's, written through memory of our own where its rows are not contiguous.
template <class Real>
struct Output {
  py::array given, array;  // what the caller sees, and what the kernels write: contiguous
  Index stride = 0;

  View<Real> view() { return {static_cast<Real*>(array.mutable_data()), stride}; }
  // Hands the result over, once everything has gone well.
  void commit() const {
    if (!given.is(array)) py::module_::import("numpy").attr("copyto")(given, array);
  }
};

template <class Real>
Output<Real> output(const std::string& name, const py::object& object, const Shape& shape, bool keep_values = false) {
  Output<Real> out;
  out.stride = shape.back();
  if (object.is_none()) {
    out.given = out.array = new_array<Real>(shape);
    return out;
  }
  out.given = writable(name, object, py::dtype::of<Real>(), shape);
  const bool direct = row_stride<Real>(out.given) == shape.back();
  out.array = direct ? out.given : keep_values ? contiguous_copy<Real>(out.given) : new_array<Real>(shape);
  return out;
}

// The bytes from the first to the last element.
struct Extent {
  const char *low, *high;
};

inline Extent extent_of(const py::array& array) {
  const char* low = static_cast<const char*>(array.data());
  const char* high = low + array.itemsize();
  for (Index axis = 0; axis < array.ndim(); ++axis) {
    const Index last = (array.shape(axis) - 1) * array.strides(axis);
    (last < 0 ? low : high) += last;
  }
  return {low, high};
}

inline bool share_memory(const py::array& a, const py::array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const Extent x = extent_of(a), y = extent_of(b);
  if (x.low >= y.high || y.low >= x.high) return false;
  constexpr int most_work = 100'000;  // the exact answer can take exponential time
  const py::module_ numpy = py::module_::import("numpy");
  try {
    return numpy.attr("shares_memory")(a, b, most_work).cast<bool>();
  } catch (py::error_already_set& error) {
    if (error.matches(numpy.attr("exceptions").attr("TooHardError"))) return true;
    throw;
  }
}

// No array of the caller's that is written may share memory with another one of the call.
class OverlapCheck {
 public:
  template <class Real>
  void read(const std::string& name, const std::optional<Input<Real>>& in) {
    if (in) arrays_.push_back({name, in->given, false});
  }
  void read(const std::string& name, const py::array& array) { arrays_.push_back({name, array, false}); }
  template <class Real>
  void written(const std::string& name, const std::optional<Output<Real>>& out) {
    if (out) arrays_.push_back({name, out->given, true});
  }

  void run() const {
    for (const Entry& out : arrays_)
      for (const Entry& other : arrays_)
        if (out.is_written && &other != &out && share_memory(out.array, other.array))
          throw py::value_error(out.name + ": expected memory of its own, got an array that overlaps " + other.name);
  }

 private:
  struct Entry {
    std::string name;
    py::array array;
    bool is_written;
  };
  std::vector<Entry> arrays_;
};

}  // namespace rnnfast
