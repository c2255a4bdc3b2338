// The module, and what in it is not a layer's: the activations, the limits of the machine, the configuration.
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "c/capi.h"
#include "c/functions.h"
#include "python/arrays.h"
#include "python/interpreter.h"
#include "run/dispatch.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"
#include "xla/frame.h"

namespace rnnfast {

void bind_tape(py::module_& m);
void bind_layers(py::module_& m);
void bind_plain(py::module_& m);
void bind_reservoir(py::module_& m);
void bind_stack(py::module_& m);
void bind_tensors(py::module_& m);
void bind_training(py::module_& m);

namespace {

// ---- Activations ---------------------------------------------------------------------------------------------------

template <class Real>
py::object activate_of(Activation function, const Array& x, const py::object& out) {
  const auto y = flat_output<Real>("out", out, x.shape(), false);
  const bool in_place = y.array().data() == x.data() || !share_memory(y.array(), x);
  const Array from = in_place && is_flat<Real>(x) ? x : contiguous_copy<Real>(x);
  const auto* source = static_cast<const Real*>(from.data());
  auto* target = static_cast<Real*>(y.array().data());
  const Index n = x.size();
  {
    const WithoutGil without_gil;
    kernels<Real>().activate(function, source, target, n);
  }
  y.commit();
  return y.result;
}

py::object activate(Activation function, const py::object& x, const py::object& out) {
  const Array array = as_array(x, "x");
  return is_double("x", array) ? activate_of<double>(function, array, out) : activate_of<float>(function, array, out);
}

// ---- The limits of the machine -------------------------------------------------------------------------------------

Index at_least_one(const std::string& name, Index n) {
  if (n < 1) throw py::value_error(name + ": expected at least 1, got " + std::to_string(n));
  return n;
}

template <class Real>
double multiply_adds(const Array& factors, Index n) {
  const Input<Real> in = contiguous_input<Real>("factors", factors, {2});
  const Real a = in.view().data[0], b = in.view().data[1];
  const WithoutGil without_gil;
  return kernels<Real>().multiply_adds(a, b, n);
}

template <class Real>
double read(const Array& x, Index passes) {
  const Input<Real> in = contiguous_input<Real>("x", x, {x.size()});
  const WithoutGil without_gil;
  return kernels<Real>().read(in.view().data, x.size(), passes);
}

// The array that x is or gives, as a view; of this dtype, if one is given.
py::array view_with_dtype(const py::object& x, const std::string& name, const py::object& dtype) {
  const BaseArray base = base_array(x, name);
  if (dtype.is_none() || base.array.dtype().is(dtype)) return view_of(base.array);
  return with_dtype(name, Array(base.array, base.is_open), dtype).view();
}

py::dict config() {
  py::dict config;
  config["version"] = RNNFAST_VERSION;
#if defined(__clang__)
  config["compiler"] = py::str("clang " __clang_version__).attr("rstrip")();  // most versions end in a space
#else
  config["compiler"] = "gcc " __VERSION__;
#endif
  config["isa"] = kernel_table->name;
  py::list available;
  for (const KernelTable* table : available_kernels()) available.append(table->name);
  config["available"] = available;
  config["integers"] = integer_kernels->name;
  config["bfloat16"] = pair_kernels ? py::object(py::str(pair_kernels->name)) : py::none();
  py::list integers;
  for (const IntegerKernels* kernels : available_integers(*kernel_table)) integers.append(kernels->name);
  config["available_integers"] = integers;
  py::list pairs;
  for (const PairKernels* kernels : available_pairs(*kernel_table)) pairs.append(kernels->name);
  config["available_bfloat16"] = pairs;
  config["threads"] = get_num_threads();
  return config;
}

// ---- Random bits ---------------------------------------------------------------------------------------------------

// Bits [N,ceil(n/8)], of the rows at t [N] and b [N].
py::array random_bits(std::uint64_t key, std::uint32_t place, double rate, const py::array& t, const py::array& b,
                      Index n) {
  const py::array ts = as_indices(t), bs = as_indices(b);
  if (ts.ndim() != 1 || bs.ndim() != 1 || ts.size() != bs.size())
    throw py::value_error("t, b: expected as many integers of both, got " + shape_text(Array(ts).shape()) + " and " +
                          shape_text(Array(bs).shape()));
  if (n < 1) throw py::value_error("n: expected at least 1, got " + std::to_string(n));
  if (!(rate >= 0 && rate < 1))
    throw py::value_error("rate: expected a probability of at least 0 and less than 1, got " + std::to_string(rate));
  const Index rows = ts.size(), bytes = bytes_of_bits(n);
  const py::array bits = new_array<unsigned char>({rows, bytes});
  auto* const to = static_cast<unsigned char*>(const_cast<void*>(bits.data()));
  const auto *step = static_cast<const Index*>(ts.data()), *sequence = static_cast<const Index*>(bs.data());
  const WithoutGil without_gil;
  for (Index row = 0; row < rows; ++row)
    kernels<float>().draw_bits(key, {std::uint32_t(step[row]), std::uint32_t(sequence[row]), place}, rate, n,
                               to + row * bytes);
  return bits;
}

// ---- Cells ---------------------------------------------------------------------------------------------------------

// The facts of each cell, by its name.
void bind_cells(py::module_& m) {
  py::class_<CellShape>(m, "CellShape", py::is_final(), "What a cell's file says of it. Read-only.")
      .def_readonly("name", &CellShape::name)
      .def_readonly("num_gates", &CellShape::gate_count)
      .def_readonly("num_phases", &CellShape::phase_count)
      .def_readonly("gates", &CellShape::gates)
      .def_readonly("held", &CellShape::held)
      .def_property_readonly("states",
                             [](const CellShape& cell) {
                               py::tuple names(std::size_t(cell.state_count));
                               for (int i = 0; i < cell.state_count; ++i) names[std::size_t(i)] = cell.states[i];
                               return names;
                             })
      .def_property_readonly("parameters",
                             [](const CellShape& cell) {
                               py::dict counts;
                               for (int i = 0; i < cell.parameter_count; ++i)
                                 counts[cell.parameters[i].name] = cell.parameters[i].count;
                               return counts;
                             })
      .def_readonly("projects", &CellShape::projects)
      .def_readonly("has_candidate", &CellShape::has_candidate)
      .def_property_readonly("normalises", [](const CellShape& cell) { return cell.stage_count > 0; })
      .def("__repr__", [](const CellShape& cell) { return py::str("<CellShape of {}>").format(cell.name); });
  py::dict all;
  for (const CellShape& cell : cells()) all[cell.name] = py::cast(&cell, py::return_value_policy::reference);
  m.attr("cells") = py::module_::import("types").attr("MappingProxyType")(all);
}

// ---- XLA -----------------------------------------------------------------------------------------------------------

void bind_xla(py::module_& m) {
  const auto capsule = [](xla::Handler* handler) { return py::capsule(reinterpret_cast<void*>(handler)); };
  m.attr("xla_handlers") = py::module_::import("types").attr("MappingProxyType")(
      py::dict("rnnfast_forward"_a = capsule(xla::forward), "rnnfast_backward"_a = capsule(xla::backward)));
  m.def(
      "xla_tape_bytes",
      [](const std::string& cell, const py::dtype& dtype, Index T, Index B, Index I, Index H, bool masked) {
        rnnfast_layer layer = {};
        layer.size = sizeof(layer);
        layer.cell = cell.c_str();
        layer.dtype = dtype.equal(py::dtype::of<double>()) ? RNNFAST_FLOAT64 : RNNFAST_FLOAT32;
        layer.input_size = I, layer.hidden_size = H, layer.num_directions = 1;
        return lent_bytes(layer, T, B, masked);
      },
      "cell"_a, "dtype"_a, "T"_a, "B"_a, "I"_a, "H"_a, "masked"_a);
}

}  // namespace

// ---- The module ----------------------------------------------------------------------------------------------------

PYBIND11_MODULE(core, m, py::mod_gil_not_used()) {
  try {
    kernel_table = &choose_kernels();
    find_main_thread();
    get_num_threads();  // so that a wrong RNNFAST_NUM_THREADS fails the import
  } catch (const std::runtime_error& error) {
    throw py::import_error(error.what());
  }

  m.attr("_C_API") = py::capsule(&c_api, RNNFAST_CAPSULE);
  bind_xla(m);

  bind_cells(m);

  bind_tape(m);
  bind_layers(m);
  bind_plain(m);
  bind_stack(m);

  m.def(
      "sigmoid", [](const py::object& x, const py::object& out) { return activate(Activation::sigmoid, x, out); },
      "x"_a, "out"_a = py::none());
  m.def(
      "tanh", [](const py::object& x, const py::object& out) { return activate(Activation::tanh, x, out); }, "x"_a,
      "out"_a = py::none());
  m.def(
      "multiply_adds",
      [](const py::object& object, Index n) {
        const Array factors = as_array(object, "factors");
        at_least_one("n", n);
        return is_double("factors", factors) ? multiply_adds<double>(factors, n) : multiply_adds<float>(factors, n);
      },
      "factors"_a, "n"_a);
  m.def(
      "read",
      [](const py::object& object, Index passes) {
        const Array x = as_array(object, "x");
        at_least_one("passes", passes);
        return is_double("x", x) ? read<double>(x, passes) : read<float>(x, passes);
      },
      "x"_a, "passes"_a = 1);
  m.def("asarray", &view_with_dtype, "x"_a, "name"_a = "x", "dtype"_a = py::none());
  m.def(
      "checked",
      [](const py::object& x, const std::string& name, const py::tuple& shape, const py::dtype& dtype) {
        const py::array view = view_with_dtype(x, name, dtype);
        bool fits = view.ndim() == Index(shape.size());
        for (Index axis = 0; fits && axis < view.ndim(); ++axis)
          fits = view.shape(axis) == shape[std::size_t(axis)].cast<Index>();
        if (!fits) wrong_shape(name, text(shape), Array(view));
        return view;
      },
      "x"_a, "name"_a, "shape"_a, "dtype"_a);
  m.def(
      "checked_target",
      [](const py::object& x, const std::string& name, const std::optional<std::vector<Index>>& shape,
         const std::optional<py::dtype>& dtype) {
        if (!py::isinstance<py::array>(x)) throw py::type_error(name + ": expected an ndarray, got " + type_name(x));
        const Array array = as_array(x, name);
        if (!dtype) is_double(name, array);
        require_writable(name, array, dtype ? *dtype : array.dtype(),
                         shape ? Shape(shape->data(), shape->data() + shape->size()) : array.shape());
        return view_of(x);
      },
      "x"_a, "name"_a, "shape"_a = py::none(), "dtype"_a = py::none());
  m.def(
      "set_num_threads",
      [](Index n) {
        if (!is_thread_count(n))
          throw py::value_error("n: expected a number of threads from 1 to " + std::to_string(most_threads) + ", got " +
                                std::to_string(n));
        set_num_threads(n);
      },
      "n"_a);
  m.def("get_num_threads", &get_num_threads);
  m.def("config", &config);
  bind_reservoir(m);
  bind_tensors(m);
  m.def("random_bits", &random_bits, "key"_a, "place"_a, "rate"_a, "t"_a, "b"_a, "n"_a);
  bind_training(m);
}

// What Python calls. Under Python 3.11, pybind11 would wait for ever for the GIL of the main interpreter.
extern "C" PYBIND11_EXPORT PyObject* PyInit__core() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return PyInit_core();
  PyErr_SetString(PyExc_ImportError, "rnnfast: expected the main interpreter, got a sub-interpreter");
  return nullptr;
}

}  // namespace rnnfast
