// The calls of the layers with tensors: the plain ones, in which nothing has to be converted.
#include "python/tensors.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/interpreter.h"
#include "python/layers.h"
#include "python/tape.h"
#include "run/memory.h"
#include "types.h"

namespace rnnfast {

TensorClasses::TensorClasses(const py::type& tensor, const py::type& parameter)
    : tensor_(tensor), parameter_(parameter), is_neg_(tensor.attr("is_neg")) {
  const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
  table_ = static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
  if (!table_) throw py::error_already_set();
  if (table_->version.major != dlpack::major_version || !table_->read)
    throw py::type_error("tensor: expected a class with version 1 of DLPack's functions, got version " +
                         std::to_string(table_->version.major));
}

bool TensorClasses::has(const py::handle& object) const {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return type == tensor_.ptr() || type == parameter_.ptr();
}

bool TensorClasses::have_signs(const py::tuple& objects) const {
  return std::ranges::all_of(objects, [&](const py::handle& object) {
    if (!has(object)) return true;
    const auto answer = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_neg_.ptr(), object.ptr()));
    if (!answer) throw py::error_already_set();
    return answer.ptr() == Py_False;
  });
}

std::optional<dlpack::Tensor> TensorClasses::look(const py::handle& object) const {
  if (!has(object)) return std::nullopt;
  dlpack::Tensor tensor;
  if (table_->read(object.ptr(), &tensor)) {
    const py::error_already_set error;
    if (!error.matches(PyExc_Exception) || error.matches(PyExc_MemoryError)) throw error;
    return std::nullopt;  // it has no memory: a sparse one, or what a transform puts in a tensor's place
  }
  const bool is_plain = tensor.device_type == dlpack::cpu && tensor.code == dlpack::floating_point &&
                        tensor.lanes == 1 && (tensor.bits == 32 || tensor.bits == 64) && tensor.ndim <= most_axes &&
                        tensor.strides;
  return is_plain ? std::optional(tensor) : std::nullopt;
}

std::optional<Array> TensorClasses::read(const py::handle& object, bool is_step) const {
  const std::optional<dlpack::Tensor> tensor = look(object);
  if (!tensor) return std::nullopt;
  const Index item = tensor->bits / 8;
  Index lengths[most_axes + 1] = {1}, strides[most_axes + 1] = {0}, elements = 1;
  for (std::int32_t axis = 0; axis < tensor->ndim; ++axis) {
    lengths[is_step + axis] = tensor->shape[axis], strides[is_step + axis] = tensor->strides[axis] * item;
    elements *= tensor->shape[axis];
  }
  if (elements && !tensor->data) return std::nullopt;
  const std::int32_t ndim = is_step + tensor->ndim;
  return Array(py::reinterpret_borrow<py::object>(object), item == 8 ? py::dtype::of<double>() : py::dtype::of<float>(),
               static_cast<char*>(tensor->data) + tensor->byte_offset, Shape(lengths, lengths + ndim),
               Shape(strides, strides + ndim));
}

namespace {

constexpr std::size_t most_result_axes = 3;

// What a tensor of our own hangs on: it lies in front of the tensor's memory, unless that has an owner.
struct Lent {
  dlpack::ManagedTensor managed;
  Buffer memory;  // in which it lies; of small ones the allocator's
  PyObject* owner;
  std::int64_t shape[most_result_axes], strides[most_result_axes];
};

constexpr Index most_copied = 1 << 13;  // bytes of y: a second tensor of it would take as long
// Behind it, results of `large_result` bytes and more begin a cache line, as their blocks do; others lie as `operator
// new` places them.
constexpr std::size_t size_of_lent = (sizeof(Lent) + 63) / 64 * 64;

void release(dlpack::ManagedTensor* managed) {
  auto* const lent = static_cast<Lent*>(managed->context);
  if (lent->owner) let_go(lent->owner);
  const Buffer memory = std::move(lent->memory);  // freed last
  lent->~Lent();
  if (!memory.data()) ::operator delete(lent);
}

}  // namespace

// Without an owner `data` becomes memory that the tensor has for itself, not initialised.
py::object TensorClasses::made(const py::object& owner, void*& data, const Shape& shape, Index item) const {
  Index bytes = owner ? 0 : item;
  for (const Index length : shape) bytes *= length;
  const std::size_t size = size_of_lent + std::size_t(bytes);
  Buffer memory = bytes < large_result ? Buffer() : Buffer(size);
  auto* const lent = new (memory.data() ? memory.data() : ::operator new(size)) Lent;
  if (!owner) data = reinterpret_cast<char*>(lent) + size_of_lent;
  lent->memory = std::move(memory);
  Index stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0; stride *= shape[axis])
    lent->shape[axis] = shape[axis], lent->strides[axis] = stride;
  lent->managed = {.version = {dlpack::major_version, 0},
                   .context = lent,
                   .deleter = release,
                   .flags = 0,
                   .tensor = {.data = data,
                              .device_type = dlpack::cpu,
                              .device_id = 0,
                              .ndim = std::int32_t(shape.size()),
                              .code = dlpack::floating_point,
                              .bits = std::uint8_t(8 * item),
                              .lanes = 1,
                              .shape = lent->shape,
                              .strides = lent->strides,
                              .byte_offset = 0}};
  lent->owner = owner.inc_ref().ptr();
  void* object = nullptr;
  if (table_->make(&lent->managed, &object)) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

Results::Made TensorClasses::make(const py::dtype& dtype, const Shape& shape, bool is_step) const {
  const std::size_t first = is_step && shape.size() == most_result_axes;
  void* data = nullptr;
  py::object tensor = made({}, data, Shape(shape.begin() + first, shape.end()), dtype.itemsize());
  Shape strides = shape;
  Index stride = dtype.itemsize();
  for (std::size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides.begin()[axis] = stride;
  Array array(tensor, dtype, data, shape, strides);
  return {.object = std::move(tensor), .array = std::move(array)};
}

py::object TensorClasses::make(const py::object& object) const {
  const auto array = py::reinterpret_borrow<py::array>(object);
  void* data = const_cast<void*>(array.data());
  return made(array, data, Shape(array.shape(), array.shape() + array.ndim()), array.itemsize());
}

py::object TensorClasses::copy(const py::object& object) const {
  const auto array = py::reinterpret_borrow<py::array>(object);
  Results::Made own = make(array.dtype(), Shape(array.shape(), array.shape() + array.ndim()), false);
  std::memcpy(own.array.data(), array.data(), std::size_t(array.nbytes()));
  return own.object;
}

py::object TensorClasses::make(const py::object& owner, void* data, Index n, Index item) const {
  return made(owner, data, {n}, item);
}

namespace {

// What a layer, or a cell of one step, is, and how many of the tensors of its call are weights: x follows, and then the
// initial states, all of them or none.
struct Layer {
  const CellShape* cell;
  bool bias, projected, rounded;
  std::size_t weights;

  std::size_t of_direction() const { return (bias ? 4 : 2) + parameter_count(*cell, projected) - weight_count; }
  std::size_t directions() const { return weights / of_direction(); }
  bool is_whole() const { return directions() * of_direction() == weights && (directions() == 1 || directions() == 2); }
};

// Of (cell, bias, projected, rounded).
Layer layer_of(const py::tuple& kind, std::size_t weights) {
  const auto is = [&](std::size_t i) { return PyTuple_GET_ITEM(kind.ptr(), Py_ssize_t(i)) == Py_True; };
  return {.cell = &cell_named(kind[0]), .bias = is(1), .projected = is(2), .rounded = is(3), .weights = weights};
}

bool same_memory(const Array& a, const Array& b) {
  const bool at_one_place = a.size() == 0 || (a.data() == b.data() && a.has_strides_of(b));
  return at_one_place && a.shape() == b.shape() && a.dtype().is(b.dtype());
}

// Whether these are the arrays that a tape refers to, in the order of Layer.
template <class Read>
bool reads_from(const py::object& object, std::size_t count, const Read& read) {
  return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>& saved) {
    std::size_t i = 0;
    const auto is_next = [&](const std::optional<Input<Real>>& in) {
      if (!in) return true;
      if (i == count) return false;
      const std::optional<Array> array = read(i++);
      return array && same_memory(*array, in->given);
    };
    return std::ranges::all_of(saved.parameters, is_next) && is_next(saved.x) &&
           std::ranges::all_of(saved.initial, is_next) && i == count && tape.problem.input == InputKind::dense;
  });
}

// Tensors whose memory the kernels write; of a step they have no axis of time or of directions.
class TensorResults final : public Results {
 public:
  TensorResults(const TensorClasses& classes, bool is_step) : classes_(classes), is_step_(is_step) {}

  Made make(const py::dtype& dtype, const Shape& shape) const override { return classes_.make(dtype, shape, is_step_); }

 private:
  const TensorClasses& classes_;
  bool is_step_;
};

class Tensors {
 public:
  Tensors(const py::type& tensor, const py::type& parameter) : classes_(tensor, parameter) {}

  py::object gather(const py::tuple& kind, Index I, Index H, Index P, const py::dict& stored, const py::list& names,
                    const py::object& x, const py::object& hx, bool is_step) const;
  py::object forward(const py::tuple& kind, std::size_t weights, const py::tuple& tensors,
                     const py::object& batch_sizes, bool training, Index threads) const;
  py::object backward(const py::object& tape, std::size_t weights, const py::tuple& tensors, const py::tuple& dlast,
                      bool is_step, bool need_dx, bool need_dstates, Index threads) const;

 private:
  TensorClasses classes_;
  py::str requires_grad_ = "requires_grad";
};

// The tensors of a module's call in the order of Layer, and whether one of them requires a gradient; None where the
// call is not a plain one: it is for others to compute, or to say what is wrong with it.
py::object Tensors::gather(const py::tuple& kind, Index I, Index H, Index P, const py::dict& stored,
                           const py::list& names, const py::object& x, const py::object& hx, bool is_step) const {
  const Layer layer = layer_of(kind, names.size());
  if (!layer.is_whole()) return py::none();
  const std::optional<dlpack::Tensor> input = classes_.look(x);
  const std::int32_t axes = is_step ? 2 : 3;
  if (!input || input->ndim != axes || input->shape[axes - 1] != I || (!is_step && input->shape[0] < 1))
    return py::none();
  const auto S = std::size_t(layer.cell->state_count);
  const bool several = py::isinstance<py::tuple>(hx) || py::isinstance<py::list>(hx);
  if (!hx.is_none() && several != (S > 1)) return py::none();
  const py::tuple given = hx.is_none() ? py::tuple() : several ? py::tuple(hx) : py::make_tuple(hx);
  if (!hx.is_none() && given.size() != S) return py::none();

  py::tuple tensors(layer.weights + 1 + given.size());
  for (std::size_t i = 0; i < layer.weights; ++i) {
    PyObject* const name = PyList_GetItem(names.ptr(), Py_ssize_t(i));
    PyObject* const weight = name ? PyDict_GetItemWithError(stored.ptr(), name) : nullptr;
    if (!weight && PyErr_Occurred()) throw py::error_already_set();
    const auto tensor = weight ? classes_.look(weight) : std::nullopt;
    if (!tensor || tensor->bits != input->bits) return py::none();
    tensors[i] = py::handle(weight);
  }
  tensors[layer.weights] = x;
  for (std::size_t s = 0; s < given.size(); ++s) {
    const std::optional<dlpack::Tensor> state = classes_.look(given[s]);
    if (!state || state->bits != input->bits || state->ndim != axes || state->shape[axes - 1] != (s ? H : P) ||
        state->shape[axes - 2] != input->shape[axes - 2] ||
        (!is_step && state->shape[0] != std::int64_t(layer.directions())))
      return py::none();
    tensors[layer.weights + 1 + s] = given[s];
  }
  const bool requires_grad = std::ranges::any_of(
      tensors, [&](const py::handle& tensor) { return tensor.attr(requires_grad_).ptr() == Py_True; });
  return py::make_tuple(std::move(tensors), requires_grad);
}

// y, None of a step, and the last states; in training also the tape, a tensor that owns it, and whether y shares its
// memory. None where the call is not a plain one.
py::object Tensors::forward(const py::tuple& kind, std::size_t weights, const py::tuple& tensors,
                            const py::object& batch_sizes, bool training, Index threads) const {
  const Layer layer = layer_of(kind, weights);
  const auto S = std::size_t(layer.cell->state_count);
  if (layer.rounded || !layer.is_whole() || (tensors.size() != weights + 1 && tensors.size() != weights + 1 + S))
    return py::none();
  if (!classes_.have_signs(tensors)) return py::none();
  ParameterArrays parameters;
  parameters.reserve(layer.directions() * parameter_count(*layer.cell, layer.projected));
  for (std::size_t i = 0; i < weights; ++i) {
    parameters.push_back(classes_.read(tensors[i], false));
    if (!parameters.back()) return py::none();
    if (!layer.bias && i % layer.of_direction() == 1) parameters.emplace_back(), parameters.emplace_back();
  }
  const std::optional<dlpack::Tensor> input = classes_.look(tensors[weights]);
  const bool is_step = input && input->ndim == 2 && batch_sizes.is_none();
  std::optional<Array> x = classes_.read(tensors[weights], is_step);
  if (!x) return py::none();
  const TensorResults own(classes_, is_step);
  // A tape refers to y, and the tensor of y, with its graph, to the tape.
  const Results& of_y = is_step || training ? static_cast<const Results&>(numpy_results) : own;
  ForwardObjects given = {.training = training, .threads = threads, .y_results = of_y, .state_results = own};
  if (tensors.size() > weights + 1) {
    for (std::size_t s = 0; s < S; ++s) {
      given.state0[s] = classes_.read(tensors[weights + 1 + s], is_step);
      if (!given.state0[s]) return py::none();
    }
  }
  const py::tuple results =
      rnnfast::forward(*layer.cell, {.x = *std::move(x), .embedding = std::nullopt},
                       {.batch_sizes = batch_sizes, .resets = py::none(), .ends = py::none(), .reverse = false},
                       {.arrays = std::move(parameters), .scales = {}}, given);
  py::tuple made(1 + S + (training ? 3 : 0));
  const py::object y = results[0];
  const bool shares = training && !is_step && py::array(y).nbytes() > most_copied;
  made[0] = is_step ? py::object(py::none()) : shares ? classes_.make(y) : training ? classes_.copy(y) : y;
  const py::tuple last = results[1];
  for (std::size_t s = 0; s < S; ++s) made[1 + s] = last[s];
  if (training) {
    made[1 + S] = results[2];
    made[2 + S] = with_tape(results[2], [&]<class Real>(TapeObject& tape, const Saved<Real>&) {
      const Memory& gates = tape.memory.gates;
      void* const data = gates.data() ? gates.data() : &tape;  // a cell may keep nothing there
      return classes_.make(results[2], data, Index(gates.bytes() / sizeof(Real)), Index(sizeof(Real)));
    });
    made[3 + S] = shares;
  }
  return made;
}

// The gradients of the tensors of a forward, None of those that have none, given those of its results. None where the
// call is not a plain one, or the tensors are not those that the tape refers to.
py::object Tensors::backward(const py::object& tape, std::size_t weights, const py::tuple& tensors,
                             const py::tuple& dlast, bool is_step, bool need_dx, bool need_dstates,
                             Index threads) const {
  const auto read = [&](std::size_t i) { return classes_.read(tensors[i], is_step && i >= weights); };
  const auto S = std::size_t(tape_in(tape).problem.cell->state_count);
  if (weights >= tensors.size() || dlast.size() != 1 + S) return py::none();
  if (!classes_.have_signs(dlast))
    return py::none();  // those of the tensors whose memory forward read it has asked for
  if (!reads_from(tape, tensors.size(), read)) return py::none();
  py::tuple gradients(tensors.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) gradients[i] = py::none();
  const TensorResults own(classes_, is_step);
  BackwardObjects given = {.need_dx = need_dx, .need_dstate0 = need_dstates, .threads = threads, .results = own};
  for (std::size_t i = 0; i < dlast.size(); ++i) {
    const py::handle d = PyTuple_GET_ITEM(dlast.ptr(), Py_ssize_t(i));
    if (d.is_none()) continue;
    std::optional<Array> array = classes_.read(d, is_step);
    if (!array) return py::none();
    (i ? given.dstate[i - 1] : given.dy) = std::move(array);
  }
  if (!given.dy && has_none(given.dstate)) return gradients;
  const py::tuple results = rnnfast::backward(tape, given);
  std::size_t i = 0;
  for (const py::handle direction : py::list(results[2]))
    for (const py::handle gradient : py::reinterpret_borrow<py::tuple>(direction))
      if (!gradient.is_none() && i < weights) gradients[i++] = gradient;
  if (need_dx) gradients[weights] = results[0];
  const py::tuple dstate0 = results[1];
  for (std::size_t s = 0; need_dstates && weights + 1 + s < gradients.size(); ++s)
    gradients[weights + 1 + s] = dstate0[s];
  return gradients;
}

}  // namespace

void bind_tensors(py::module_& m) {
  py::class_<Tensors>(m, "Tensors", py::is_final(),
                      "The calls of layers with tensors of a class and of a class of parameters.")
      .def(py::init<const py::type&, const py::type&>(), "tensor"_a, "parameter"_a)
      .def("gather", &Tensors::gather, "kind"_a, "I"_a, "H"_a, "P"_a, "stored"_a, "names"_a, "x"_a, "hx"_a, "is_step"_a)
      .def("forward", &Tensors::forward, "kind"_a, "weights"_a, "tensors"_a, "batch_sizes"_a, "training"_a, "threads"_a)
      .def("backward", &Tensors::backward, "tape"_a, "weights"_a, "tensors"_a, "dlast"_a, "is_step"_a, "need_dx"_a,
           "need_dstates"_a, "threads"_a);
  m.def(
      "reads_from",
      [](const py::object& tape, const py::tuple& arrays) {
        return reads_from(tape, arrays.size(),
                          [&](std::size_t i) { return std::optional(as_array(arrays[i], "arrays")); });
      },
      "tape"_a, "arrays"_a);
}

}  // namespace rnnfast
