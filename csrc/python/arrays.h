// Arrays at the border: what a caller gives becomes a checked view, or an error that names the argument, what was
// expected and what came.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "python/interpreter.h"
#include "run/memory.h"
#include "types.h"

namespace rnnfast {

using namespace py::literals;

// Any str has a text: code points that UTF-8 does not have are escaped.
inline std::string text(const py::handle& object) {
  return py::cast<std::string>(py::str(object).attr("encode")("utf-8", "backslashreplace"));
}

inline std::string type_name(const py::handle& object) { return text(py::type::of(object).attr("__qualname__")); }

inline py::module_ numpy() { return py::module_::import("numpy"); }

// ---- Arrays as they were when they were read -----------------------------------------------------------------------

// Lengths or strides of an array's axes. A call makes so many that few axes have to do without memory of their own.
class Shape {
 public:
  Shape() = default;
  Shape(const Index* first, const Index* last) : size_(std::size_t(last - first)) {
    if (size_ > most_few) many_.resize(size_);
    std::copy(first, last, begin());
  }
  Shape(std::initializer_list<Index> lengths) : Shape(lengths.begin(), lengths.end()) {}

  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  Index* begin() { return size_ > most_few ? many_.data() : few_; }
  Index* end() { return begin() + size_; }
  const Index* begin() const { return size_ > most_few ? many_.data() : few_; }
  const Index* end() const { return begin() + size_; }
  Index operator[](std::size_t axis) const { return begin()[axis]; }
  Index& back() { return end()[-1]; }
  Index back() const { return end()[-1]; }
  bool operator==(const Shape& other) const { return std::equal(begin(), end(), other.begin(), other.end()); }

 private:
  static constexpr std::size_t most_few = 4;

  std::size_t size_ = 0;
  Index few_[most_few] = {};
  std::vector<Index> many_;
};

inline std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + (shape.size() == 1 ? ",)" : ")");
}

// What an array is, read once. The caller's object may be given another shape or dtype by Python code that runs later:
// in the __array__ of the next argument, in another thread, between forward and backward.
class Array {
 public:
  Array() = default;
  explicit Array(const py::array& array, bool is_open = false)
      : owner_(array),
        dtype_(array.dtype()),
        data_(const_cast<void*>(array.data())),
        shape_(array.shape(), array.shape() + array.ndim()),
        strides_(array.strides(), array.strides() + array.ndim()),
        is_writable_(array.writeable()),
        is_open_(is_open) {}
  // Memory of another kind of object; strides in bytes.
  Array(py::object owner, py::dtype dtype, void* data, const Shape& shape, const Shape& strides)
      : owner_(std::move(owner)),
        dtype_(std::move(dtype)),
        data_(data),
        shape_(shape),
        strides_(strides),
        is_writable_(true) {}

  void* data() const { return data_; }
  const py::dtype& dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  Index ndim() const { return Index(shape_.size()); }
  Index shape(Index axis) const { return shape_[std::size_t(axis)]; }
  Index stride(Index axis) const { return strides_[std::size_t(axis)]; }  // in bytes
  Index itemsize() const { return dtype_.itemsize(); }
  Index size() const {
    Index n = 1;
    for (const Index length : shape_) n *= length;
    return n;
  }
  Index nbytes() const { return size() * itemsize(); }
  bool is_writable() const { return is_writable_; }  // which whoever writes has to ask
  bool is_open() const { return is_open_; }          // made of a list of numbers: it may still have any dtype
  bool is_integer() const { return dtype_.kind() == 'i' || dtype_.kind() == 'u'; }
  bool holds_integers() const { return is_integer() || (is_open_ && size() == 0); }  // an empty list holds no others

  bool has_strides_of(const Array& other) const { return strides_ == other.strides_; }

  bool is_contiguous() const {
    Index stride = itemsize();
    for (Index axis = ndim() - 1; axis >= 0; --axis) {
      if (shape(axis) == 0) return true;
      if (shape(axis) > 1 && strides_[std::size_t(axis)] != stride) return false;
      stride *= shape(axis);
    }
    return true;
  }

  // The same elements, with axes of length 1 before their own: so many axes in all.
  Array with_axes(std::size_t ndim) const {
    Array array = *this;
    const std::size_t own = shape_.size();
    const Index one[] = {1, 1, 1}, none[] = {0, 0, 0};
    array.shape_ = Shape(one, one + ndim), array.strides_ = Shape(none, none + ndim);
    std::copy(shape_.begin(), shape_.end(), array.shape_.begin() + (ndim - own));
    std::copy(strides_.begin(), strides_.end(), array.strides_.begin() + (ndim - own));
    return array;
  }

  // An array of NumPy's own that nobody else can change.
  py::array view() const { return py::array(dtype_, shape_, strides_, data_, owner_); }

 private:
  py::object owner_;  // keeps the memory alive
  py::dtype dtype_;
  void* data_ = nullptr;
  Shape shape_, strides_;
  bool is_writable_ = false, is_open_ = false;
};

// Elements that a masked array hides would be read like all others.
inline void refuse_masked(const py::object& object, const std::string& name) {
  const py::module_ ma = py::module_::import("numpy.ma");
  const py::object type = ma.attr("MaskedArray");
  if (PyType_IsSubtype(Py_TYPE(object.ptr()), reinterpret_cast<PyTypeObject*>(type.ptr())) &&
      called(ma.attr("is_masked"), py::make_tuple(object)).cast<bool>())
    throw py::value_error(name + ": expected an array without masked elements, got a masked array with some; " +
                          "filled() gives them a value, and `lengths` leaves out the ends of sequences");
}

// ": " and the first line of what an exception says; nothing where it says nothing.
inline std::string first_line_of(const py::object& exception) {
  const auto words = py::reinterpret_steal<py::object>(PyObject_Str(exception.ptr()));
  const char* const utf8 = words ? PyUnicode_AsUTF8(words.ptr()) : nullptr;
  if (!utf8) PyErr_Clear();
  const std::string line = std::string(utf8 ? utf8 : "").substr(0, utf8 ? std::strcspn(utf8, "\n") : 0);
  return line.empty() ? line : ": " + line;
}

inline bool is_number(const py::dtype& dtype) { return std::strchr("biuf", dtype.kind()); }

// A view of an array, of NumPy's own class, whose shape nobody else can change.
inline py::array view_of(const py::array& array) {
  auto& api = py::detail::npy_api::get();
  auto* const base_class = reinterpret_cast<PyObject*>(api.PyArray_Type_);
  const auto view = py::reinterpret_steal<py::array>(api.PyArray_View_(array.ptr(), nullptr, base_class));
  if (!view) throw py::error_already_set();
  return view;
}

// The array that an object is or gives, sharing its memory wherever the object allows it. It is of NumPy's own class:
// no method of a derived one is ever called.
struct BaseArray {
  py::array array;
  bool is_open = false;  // as in Array
};

inline BaseArray base_array(const py::object& object, const std::string& name) {
  if (Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_) return {.array = object};
  if (py::isinstance<py::array>(object)) {
    refuse_masked(object, name);
    return {.array = view_of(object)};
  }
  const bool is_sequence =
      PyList_Check(object.ptr()) || PyTuple_CheckExact(object.ptr()) || PyRange_Check(object.ptr());
  const bool numpy_reads = is_sequence || py::hasattr(object, "__array_interface__") ||
                           py::hasattr(object, "__array__") || PyObject_CheckBuffer(object.ptr());
  if (!numpy_reads && !py::hasattr(object, "__dlpack__"))
    throw py::type_error(name + ": expected an array, got " + type_name(object));
  try {
    const py::array array = called(numpy().attr(numpy_reads ? "asarray" : "from_dlpack"), py::make_tuple(object));
    if (is_sequence && !is_number(array.dtype()))
      throw py::type_error(name + ": expected numbers, got a " + type_name(object) + " that NumPy makes " +
                           text(array.dtype()) + " of");
    return {.array = array, .is_open = is_sequence};
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw;
    const std::string message = name + ": expected an array, got " + type_name(object) + ", which failed to give one" +
                                first_line_of(error.value());
    py::raise_from(error, PyExc_TypeError, message.c_str());
    throw py::error_already_set();
  }
}

inline Array as_array(const py::object& object, const std::string& name) {
  const BaseArray base = base_array(object, name);
  return Array(base.array, base.is_open);
}

inline std::optional<Array> optional_array(const std::string& name, const py::object& object) {
  return object.is_none() ? std::nullopt : std::optional(as_array(object, name));
}

// `expected` in words, such as "(T, B, 28)".
[[noreturn]] inline void wrong_shape(const std::string& name, const std::string& expected, const Array& array) {
  throw py::value_error(name + ": expected shape " + expected + ", got " + shape_text(array.shape()));
}

inline void require_shape(const std::string& name, const Array& array, const Shape& shape) {
  if (array.shape() != shape) wrong_shape(name, shape_text(shape), array);
}

inline bool has_dtype(const Array& array, const py::dtype& dtype) {
  const py::dtype& own = array.dtype();
  if (own.is(dtype)) return true;
  return own.kind() == dtype.kind() && own.itemsize() == dtype.itemsize() && own.equal(dtype);  // NumPy takes its time
}

inline bool is_double(const std::string& name, const Array& array) {
  if (has_dtype(array, py::dtype::of<double>())) return true;
  if (has_dtype(array, py::dtype::of<float>())) return false;
  throw py::type_error(name + ": expected dtype float32 or float64, got " + text(array.dtype()));
}

// How a caller can put the dtype of an array right that is only read.
inline std::string remedy(const py::dtype& got, const py::dtype& expected) {
  if (!is_number(got)) return "";
  const bool is_native = got.attr("isnative").cast<bool>();
  const bool is_other_float = is_native && (got.is(py::dtype::of<float>()) || got.is(py::dtype::of<double>()));
  return (is_native                ? ""
          : got.byteorder() == '>' ? ", which is big-endian"
                                   : ", which is little-endian") +
         ("; convert it with .astype(np." + text(expected)) + ")" +
         (is_other_float ? ", or use dtype=\"" + text(got) + "\" throughout" : "");
}

inline void require_dtype(const std::string& name, const Array& array, const py::dtype& dtype, bool is_read = true) {
  if (!has_dtype(array, dtype))
    throw py::type_error(name + ": expected dtype " + text(dtype) + ", got " + text(array.dtype()) +
                         (is_read ? remedy(array.dtype(), dtype) : ""));
}

// Elements that are 0 and 1, as bools.
inline Array as_bools(const std::string& name, const Array& array) {
  const py::array given = array.view(), bools = called(given.attr("astype"), py::make_tuple("bool"));
  const py::array differs = called(numpy().attr("not_equal"), py::make_tuple(bools, given));
  if (called(differs.attr("any"), py::tuple()).cast<bool>())
    throw py::value_error(name + ": expected bools, or 0 and 1, got " +
                          text(given.attr("item")(called(differs.attr("argmax"), py::tuple()))));
  return Array(bools);
}

// A text, or what a function makes it where it is needed.
template <class Words>
std::string in_words(const Words& words) {
  if constexpr (std::is_invocable_v<const Words&>)
    return words();
  else
    return words;
}

// A tuple or list of this length, as a tuple of our own: a caller's list could change while we read it.
template <class Words>
std::optional<py::tuple> tuple_of(const char* name, const py::object& object, std::size_t length,
                                  const Words& content) {
  if (object.is_none()) return std::nullopt;
  if (!py::isinstance<py::tuple>(object) && !py::isinstance<py::list>(object))
    throw py::type_error(std::string(name) + ": expected a tuple " + in_words(content) + ", got " + type_name(object));
  const py::tuple tuple(object);
  if (tuple.size() != length)
    throw py::value_error(std::string(name) + ": expected " + std::to_string(length) + " entries " + in_words(content) +
                          ", got " + std::to_string(tuple.size()));
  return tuple;
}

inline py::object entry(const std::optional<py::tuple>& tuple, std::size_t i) {
  return tuple ? py::object((*tuple)[i]) : py::object(py::none());
}

// The array with this dtype: lists of numbers are converted, 0 and 1 are bools, and any other dtype is an error.
inline Array with_dtype(const std::string& name, Array array, const py::dtype& dtype) {
  if (has_dtype(array, dtype)) return array;
  if (dtype.kind() == 'b' && is_number(array.dtype())) return as_bools(name, array);
  if (array.is_open()) return Array(called(array.view().attr("astype"), py::make_tuple(dtype)));
  require_dtype(name, array, dtype);
  return array;
}

// ---- Arguments -----------------------------------------------------------------------------------------------------

template <class Real>
bool is_aligned(const Array& array) {
  return reinterpret_cast<std::uintptr_t>(array.data()) % alignof(Real) == 0;
}

// Whether [.., .., n] can be walked as rows of contiguous elements, a fixed stride apart; if so, that stride.
template <class Real>
std::optional<Index> row_stride(const Array& array) {
  const auto item = Index(sizeof(Real));
  const Index last = array.ndim() - 1;
  if (array.size() == 0) return array.shape(last);  // whose strides may be anything
  if (!is_aligned<Real>(array)) return std::nullopt;
  if (array.shape(last) > 1 && array.stride(last) != item) return std::nullopt;
  Index rows = 1, stride = array.shape(last) * item;
  for (Index axis = last - 1; axis >= 0; --axis) {
    if (array.shape(axis) == 1) continue;
    if (rows == 1) stride = array.stride(axis);
    if (array.stride(axis) != rows * stride) return std::nullopt;
    rows *= array.shape(axis);
  }
  return stride % item == 0 ? std::optional(stride / item) : std::nullopt;
}

// Integers as Index in C order; those beyond its range wrap.
inline py::array as_indices(const py::array& integers) {
  using api = py::detail::npy_api;
  constexpr int flags = api::NPY_ARRAY_C_CONTIGUOUS_ | api::NPY_ARRAY_ALIGNED_ | api::NPY_ARRAY_FORCECAST_;
  return guarded([&] {
    PyObject* const dtype = py::dtype::of<Index>().release().ptr();  // which NumPy takes over
    return api::get().PyArray_FromAny_(integers.ptr(), dtype, 0, 0, flags, nullptr);
  });
}

template <class Real>
bool is_flat(const Array& array) {
  return array.is_contiguous() && is_aligned<Real>(array);
}

template <class Real>
Array contiguous_copy(const Array& array) {
  constexpr int in_c_order = 0;
  const py::array view = array.view();
  const py::array copy = guarded([&] { return py::detail::npy_api::get().PyArray_NewCopy_(view.ptr(), in_c_order); });
  return Array(copy);
}

// An argument that is read. Arrays whose rows are not contiguous are copied.
template <class Real>
struct Input {
  Array given;
  std::optional<Array> copy;
  Index stride = 0;

  const Array& array() const { return copy ? *copy : given; }  // what the kernels read
  View<const Real> view() const { return {static_cast<const Real*>(array().data()), stride}; }
};

template <class Real>
Input<Real> input(const std::string& name, Array given, const Shape& shape) {
  Input<Real> in;
  in.given = with_dtype(name, std::move(given), py::dtype::of<Real>());
  require_shape(name, in.given, shape);
  const auto stride = row_stride<Real>(in.given);
  if (!stride) in.copy = contiguous_copy<Real>(in.given);
  in.stride = stride ? *stride : shape.back();
  return in;
}

template <class Real>
std::optional<Input<Real>> optional_input(const std::string& name, const py::object& object, const Shape& shape) {
  if (object.is_none()) return std::nullopt;
  return input<Real>(name, as_array(object, name), shape);
}

// Parameters are packed by the kernels from contiguous memory.
template <class Real>
Input<Real> contiguous_input(const std::string& name, Array given, const Shape& shape) {
  Input<Real> in = input<Real>(name, std::move(given), shape);
  if (in.stride != shape.back()) in.copy = contiguous_copy<Real>(in.given), in.stride = shape.back();
  return in;
}

inline bool overlaps_itself(const Array& array) {
  if (array.size() == 0) return false;
  std::vector<std::pair<Index, Index>> axes;  // (|stride|, elements)
  for (Index axis = 0; axis < array.ndim(); ++axis)
    if (array.shape(axis) > 1) axes.emplace_back(std::abs(array.stride(axis)), array.shape(axis));
  std::sort(axes.begin(), axes.end());
  Index extent = array.itemsize();
  for (const auto& [stride, elements] : axes) {
    if (stride < extent) return true;
    extent += stride * (elements - 1);
  }
  return false;
}

inline void require_writable(const std::string& name, const Array& array, const py::dtype& dtype, const Shape& shape) {
  require_dtype(name, array, dtype, false);
  require_shape(name, array, shape);
  if (!array.is_writable()) throw py::value_error(name + ": expected a writable array, got a read-only one");
  if (overlaps_itself(array))
    throw py::value_error(name + ": expected distinct elements, got an array that overlaps itself");
}

// An array of the caller's that can take a result.
inline Array writable(const std::string& name, const py::object& object, const py::dtype& dtype, const Shape& shape) {
  const Array array = as_array(object, name);
  if (array.is_open()) throw py::type_error(name + ": expected an array, got " + type_name(object));
  require_writable(name, array, dtype, shape);
  return array;
}

constexpr Index large_result = Index{1} << 16;  // bytes

// An array, not initialised. Large ones are made of memory that is used again: a training loop that drops its results
// at each step would otherwise be handed, and have to touch, fresh pages at each step.
inline py::array new_array(const py::dtype& dtype, const Shape& shape) {
  Index bytes = dtype.itemsize();
  for (const Index n : shape) bytes *= n;
  if (bytes < large_result) {
    auto& api = py::detail::npy_api::get();
    PyObject* const descr = dtype.inc_ref().ptr();  // which NumPy takes over
    auto array = py::reinterpret_steal<py::array>(api.PyArray_NewFromDescr_(
        api.PyArray_Type_, descr, int(shape.size()), shape.begin(), nullptr, nullptr, 0, nullptr));
    if (!array) throw py::error_already_set();
    return array;
  }
  auto memory = std::make_unique<Buffer>(std::size_t(bytes));
  const void* const data = memory->data();
  const py::capsule owner(memory.get(), [](void* buffer) { delete static_cast<Buffer*>(buffer); });
  memory.release();
  return py::array(dtype, shape, data, owner);
}

template <class Real>
py::array new_array(const Shape& shape) {
  return new_array(py::dtype::of<Real>(), shape);
}

// What results are made as that a caller gives no arrays for.
class Results {
 public:
  struct Made {
    py::object object;  // what the caller gets
    Array array;        // its memory: contiguous, and of the shape that was asked for
  };

  virtual ~Results() = default;
  virtual Made make(const py::dtype& dtype, const Shape& shape) const = 0;
};

// Arrays of NumPy's; of those with three axes the first ones, of length 1, are left out where the caller has none.
class ArrayResults final : public Results {
 public:
  explicit ArrayResults(std::size_t left_out = 0) : left_out_(left_out) {}

  Made make(const py::dtype& dtype, const Shape& shape) const override {
    const std::size_t first = shape.size() == 3 ? left_out_ : 0;
    const py::array made = new_array(dtype, Shape(shape.begin() + first, shape.end()));
    return {.object = made, .array = first ? Array(made).with_axes(3) : Array(made)};
  }

 private:
  std::size_t left_out_;
};

inline const ArrayResults numpy_results;

// A result: a new array, or the caller's, written through memory of our own where its rows are not contiguous.
template <class Real>
struct Output {
  py::object result;  // what the caller gets
  Array given;        // its memory
  std::optional<Array> own;
  Index stride = 0;

  const Array& array() const { return own ? *own : given; }  // what the kernels write: contiguous
  View<Real> view() const { return {static_cast<Real*>(array().data()), stride}; }
  // Hands the result over, once everything has gone well.
  void commit() const {
    if (own) called(numpy().attr("copyto"), py::make_tuple(given.view(), own->view()));
  }
};

// The kernels write where fits(the caller's array), else to memory of their own.
template <class Real, class Fits>
Output<Real> output_where(Fits&& fits, const std::string& name, const py::object& object, const Shape& shape,
                          bool keep_values, const Results& results = numpy_results) {
  Output<Real> out;
  out.stride = shape.empty() ? 1 : shape.back();
  if (object.is_none()) {
    Results::Made made = results.make(py::dtype::of<Real>(), shape);
    out.result = std::move(made.object), out.given = std::move(made.array);
    return out;
  }
  out.given = writable(name, object, py::dtype::of<Real>(), shape);
  out.result = py::isinstance<py::array>(object) ? object : out.given.view();
  if (!fits(out.given)) out.own = keep_values ? contiguous_copy<Real>(out.given) : Array(new_array<Real>(shape));
  return out;
}

// [.., n], written by rows.
template <class Real>
Output<Real> output(const std::string& name, const py::object& object, const Shape& shape, bool keep_values = false,
                    const Results& results = numpy_results) {
  const auto fits = [&](const Array& given) { return row_stride<Real>(given) == shape.back(); };
  return output_where<Real>(fits, name, object, shape, keep_values, results);
}

// Of any shape, written as its elements in C order.
template <class Real>
Output<Real> flat_output(const std::string& name, const py::object& object, const Shape& shape, bool keep_values) {
  return output_where<Real>(is_flat<Real>, name, object, shape, keep_values);
}

// Hands a result over; None where there is none.
template <class Real>
py::object finish(const std::optional<Output<Real>>& out) {
  if (!out) return py::none();
  out->commit();
  return out->result;
}

// The bytes from the first to the last element.
struct Extent {
  const char *low, *high;
};

inline Extent extent_of(const Array& array) {
  const char* low = static_cast<const char*>(array.data());
  const char* high = low + array.itemsize();
  for (Index axis = 0; axis < array.ndim(); ++axis) {
    const Index last = (array.shape(axis) - 1) * array.stride(axis);
    (last < 0 ? low : high) += last;
  }
  return {.low = low, .high = high};
}

inline bool share_memory(const Array& a, const Array& b) {
  if (a.size() == 0 || b.size() == 0) return false;
  const Extent x = extent_of(a), y = extent_of(b);
  if (x.low >= y.high || y.low >= x.high) return false;
  constexpr int most_work = 100'000;  // the exact answer can take exponential time
  try {
    return called(numpy().attr("shares_memory"), py::make_tuple(a.view(), b.view(), most_work)).cast<bool>();
  } catch (py::error_already_set& error) {
    if (error.matches(numpy().attr("exceptions").attr("TooHardError"))) return true;
    throw;
  }
}

// No array of the caller's that is written may share memory with another one of the call.
class OverlapCheck {
 public:
  template <class Real>
  void read(const std::string& name, const std::optional<Input<Real>>& in) {
    if (in) read(name, in->given);
  }
  void read(const std::string& name, const Array& array) {
    arrays_.push_back({.name = name, .array = array, .is_written = false});
  }
  template <class Real>
  void written(const std::string& name, const std::optional<Output<Real>>& out) {
    if (out) arrays_.push_back({.name = name, .array = out->given, .is_written = true});
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
    Array array;
    bool is_written;
  };
  std::vector<Entry> arrays_;
};

}  // namespace rnnfast
