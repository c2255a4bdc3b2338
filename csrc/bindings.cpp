// The border: NumPy arrays become checked views, memory is allocated, the GIL is released, the kernel is called.
// Everything is validated here, once, and nothing is computed.
#include <algorithm>
#include <cfenv>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "calls.h"
#include "capi.h"
#include "cells.h"
#include "dispatch.h"
#include "memory.h"
#include "tokens.h"

namespace rnnfast {

const KernelTable* kernel_table = nullptr;

extern const rnnfast_api c_api;  // in capi.cpp

void bind_training(py::module_& m);

namespace {

// ---- Cells by name -------------------------------------------------------------------------------------------------

const CellInfo& cell_named(const py::object& name) {
  if (!py::isinstance<py::str>(name)) throw py::type_error("cell: expected a str, got " + type_name(name));
  std::string names;
  for (const CellInfo& info : cells) {
    if (name.equal(py::str(info.name))) return info;
    names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  throw py::value_error("cell: expected one of " + names + ", got " +
                        text(py::reinterpret_steal<py::object>(PyObject_ASCII(name.ptr()))));
}

// ---- Parameters of a layer -----------------------------------------------------------------------------------------

constexpr const char* parameter_names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
constexpr const char* parameter_content = "(w_ih, w_hh, b_ih, b_hh)";

// Four for each direction; None where a bias is missing. Each is converted once: an object could answer anew each time.
using ParameterArrays = std::vector<py::object>;

ParameterArrays read_parameters(const py::object& parameters) {
  if (!py::isinstance<py::tuple>(parameters) && !py::isinstance<py::list>(parameters))
    throw py::type_error("parameters: expected a list of 1 or 2 tuples " + std::string(parameter_content) + ", got " +
                         type_name(parameters));
  const py::tuple directions(parameters);
  if (directions.size() != 1 && directions.size() != 2)
    throw py::value_error("parameters: expected 1 or 2 directions, got " + std::to_string(directions.size()));
  ParameterArrays arrays;
  for (const py::handle direction : directions) {
    const auto given = tuple_of("parameters", py::reinterpret_borrow<py::object>(direction), 4, parameter_content);
    if (!given) throw py::type_error("parameters: expected a tuple " + std::string(parameter_content) + ", got None");
    for (std::size_t i = 0; i < 4; ++i) {
      const py::object array = (*given)[i];
      const bool missing = i >= 2 && array.is_none();
      arrays.push_back(missing ? array : as_array(array, parameter_names[i]));
    }
  }
  return arrays;
}

template <class Real>
using LayerParameters = std::vector<std::optional<Input<Real>>>;  // likewise

template <class Real>
Parameters<const Real> parameters_of(const LayerParameters<Real>& parameters, Index d) {
  const auto data = [&](int i) {
    const auto& in = parameters[std::size_t(4 * d + i)];
    return in ? in->view().data : nullptr;
  };
  return {data(0), data(1), data(2), data(3)};
}

Shape parameter_shape(const Problem& p, Index G, std::size_t i) {
  if (i == 0) return {G * p.H, p.I};
  if (i == 1) return {G * p.H, p.H};
  return {G * p.H};
}

// Elements of all arrays of a call but the parameters, with scratch, stay below this, so that no size overflows.
constexpr double most_elements = double(std::int64_t{1} << 58);
static_assert(sizeof(Index) == 8);

// x [T,B,I], or tokens [T,B] and maybe their embedding [V,I].
struct InputArrays {
  py::array x;
  std::optional<py::array> embedding;
};

InputKind kind_of(const InputArrays& in) {
  if (!in.embedding) return is_integer(in.x) && in.x.ndim() == 2 ? InputKind::one_hot : InputKind::dense;
  if (!is_integer(in.x)) throw py::type_error("x: expected integers as tokens, got " + text(in.x.dtype()));
  return InputKind::embedded;
}

// The sizes of a call, from the shapes of x and of the first direction's weights.
Problem read_problem(const CellInfo& info, const InputArrays& in, const ParameterArrays& arrays) {
  const py::array& x = in.x;
  Problem p = {};
  p.input = kind_of(in);
  p.cell = info.cell;
  p.D = Index(arrays.size() / 4);
  const py::array w_ih = arrays[0], w_hh = arrays[1];
  if (w_hh.ndim() != 2 || w_hh.shape(1) < 1 || w_hh.shape(0) / info.G != w_hh.shape(1) || w_hh.shape(0) % info.G)
    wrong_shape("w_hh", info.G == 1 ? "(H, H) with H >= 1" : "(" + std::to_string(info.G) + "·H, H) with H >= 1", w_hh);
  p.H = w_hh.shape(1);
  if (w_ih.ndim() != 2) wrong_shape("w_ih", "(" + std::to_string(info.G * p.H) + ", I)", w_ih);
  p.I = w_ih.shape(1);
  const bool dense = p.input == InputKind::dense;
  if (!(dense ? x.ndim() == 3 && x.shape(2) == p.I : x.ndim() == 2) || x.shape(0) < 1)
    wrong_shape("x", "(T, B" + (dense ? ", " + std::to_string(p.I) : "") + ") with T >= 1", x);
  if (in.embedding && in.embedding->ndim() != 2)
    wrong_shape("embedding", "(V, " + std::to_string(p.I) + ")", *in.embedding);
  p.T = x.shape(0);
  p.B = x.shape(1);
  if (double(p.T) * double(p.B) * double(p.D) * (double(p.I) + 8.0 * double(p.H) + 64.0) > most_elements)
    throw py::value_error("x: expected a size that fits the address space, got " + shape_text(shape_of(x)));
  return p;
}

template <class Real>
LayerParameters<Real> check_parameters(const CellInfo& info, const Problem& p, const ParameterArrays& arrays) {
  LayerParameters<Real> parameters(arrays.size());
  for (std::size_t i = 0; i < arrays.size(); ++i)
    if (!arrays[i].is_none())
      parameters[i] = contiguous_input<Real>(parameter_names[i % 4], arrays[i], parameter_shape(p, info.G, i % 4));
  return parameters;
}

// ---- The tape ------------------------------------------------------------------------------------------------------

// The arrays of the call, kept alive.
template <class Real>
struct Saved {
  LayerParameters<Real> parameters;
  std::optional<Input<Real>> x, embedding, h0, c0;
  py::array y;  // contiguous
};

template <class Real>
void read_all(OverlapCheck& check, const Saved<Real>& saved) {
  check.read("x", saved.x);
  check.read("embedding", saved.embedding);
  check.read("h0", saved.h0);
  check.read("c0", saved.c0);
  for (std::size_t i = 0; i < saved.parameters.size(); ++i) check.read(parameter_names[i % 4], saved.parameters[i]);
}

// Everything a backward needs: references to the arrays, and the memory the kernels filled.
struct TapeObject {
  const CellInfo* info;
  Problem problem;
  std::variant<Saved<float>, Saved<double>> saved;
  TokenArrays tokens;
  Buffer gates, c, reset_h;
};

template <class Real>
Tape<Real> tape_of(const TapeObject& tape, const TapeSize& size, Index d) {
  const auto at = [&](const Buffer& buffer, Index elements) {
    return buffer.data() ? static_cast<Real*>(buffer.data()) + d * elements : nullptr;
  };
  return {at(tape.gates, size.gates), at(tape.c, size.c), at(tape.reset_h, size.reset_h)};
}

// ---- Calling the kernels -------------------------------------------------------------------------------------------

bool on_main_thread() {
  const py::module_ threading = py::module_::import("threading");
  return threading.attr("current_thread")().is(threading.attr("main_thread")());
}

// Runs a kernel without the GIL; Ctrl-C ends it between two chunks of time. Signals are handled on the main thread
// only, so that others need not wait for the GIL; a handler finds the floating point mode of the caller, not the
// kernels'.
void call(Index threads, const std::function<void(const Team&)>& kernel) {
  using Clock = std::chrono::steady_clock;
  constexpr auto pause = std::chrono::milliseconds(20);  // not felt by who presses Ctrl-C, nor by the kernel
  auto asked = Clock::now();
  bool asks = true;
  std::fenv_t callers;
  std::fegetenv(&callers);
  const auto poll = [&] {
    if (!asks || Clock::now() - asked < pause) return false;
    std::fenv_t kernels;
    std::fegetenv(&kernels);
    std::fesetenv(&callers);
    bool interrupted = false;
    {
      const py::gil_scoped_acquire gil;
      try {
        asks = on_main_thread();
        interrupted = asks && PyErr_CheckSignals() != 0;
      } catch (py::error_already_set& error) {
        error.restore();
        interrupted = true;
      }
      asks = asks && !interrupted;  // nothing may be called while an exception is set
    }
    std::fesetenv(&kernels);
    asked = Clock::now();
    return interrupted;
  };
  bool finished;
  {
    const py::gil_scoped_release released;
    finished = run_parallel(threads, kernel, poll);
  }
  if (!finished) throw py::error_already_set();
}

// The view of one direction of a [D,B,H] array; null where there is none.
template <class Real>
View<Real> direction_of(const View<Real>& view, const Problem& p, Index d) {
  return {view.data + d * p.B * view.stride, view.stride};
}

template <class Real>
View<const Real> direction_of(const std::optional<Input<Real>>& in, const Problem& p, Index d) {
  return in ? direction_of(in->view(), p, d) : View<const Real>{nullptr, 0};
}

template <class Real>
View<Real> direction_of(std::optional<Output<Real>>& out, const Problem& p, Index d) {
  return out ? direction_of(out->view(), p, d) : View<Real>{nullptr, 0};
}

void refuse_c(const CellInfo& info, const std::string& name, const py::object& object) {
  if (!info.has_c && !object.is_none())
    throw py::value_error(name + ": expected None, since " + std::string(info.name) + " has no cell state");
}

// The rows that x is or picks; null where tokens are one-hot.
template <class Real>
View<const Real> rows_of(const Saved<Real>& saved) {
  const auto& rows = saved.embedding ? saved.embedding : saved.x;
  return rows ? rows->view() : View<const Real>{nullptr, 0};
}

template <class Real>
py::tuple forward_of(const CellInfo& info, const InputArrays& in, const ParameterArrays& parameters,
                     const py::object& h0, const py::object& c0, const py::object& out, bool training) {
  Problem p = read_problem(info, in, parameters);
  const Shape state_shape = {p.D, p.B, p.H}, y_shape = {p.T, p.B, p.D * p.H};
  refuse_c(info, "c0", c0);
  Saved<Real> saved = {check_parameters<Real>(info, p, parameters),
                       std::nullopt,
                       std::nullopt,
                       optional_input<Real>("h0", h0, state_shape),
                       optional_input<Real>("c0", c0, state_shape),
                       {}};
  TokenArrays tokens;
  if (in.embedding) saved.embedding = input<Real>("embedding", *in.embedding, {in.embedding->shape(0), p.I});
  if (p.input == InputKind::dense)
    saved.x = input<Real>("x", in.x, {p.T, p.B, p.I});
  else
    tokens = read_tokens(in.x, in.embedding ? in.embedding->shape(0) : p.I);
  p.U = Index(tokens.token.size());

  const auto outs = tuple_of("out", out, 3, "(y, h, c)");
  refuse_c(info, "out[2]", entry(outs, 2));
  std::optional<Output<Real>> y, h, c;
  y = output<Real>("out[0]", entry(outs, 0), y_shape);
  h = output<Real>("out[1]", entry(outs, 1), state_shape);
  if (info.has_c) c = output<Real>("out[2]", entry(outs, 2), state_shape);
  if (outs) {
    OverlapCheck check;
    read_all(check, saved);
    if (p.input != InputKind::dense) check.read("x", in.x);
    check.written("out[0]", y);
    check.written("out[1]", h);
    check.written("out[2]", c);
    check.run();
  }
  saved.y = y->array;

  auto tape = std::make_unique<TapeObject>(TapeObject{&info, p, Saved<Real>{}, {}, {}, {}, {}});
  if (p.B > 0) {
    const auto bytes = [](Index elements) { return std::size_t(elements) * sizeof(Real); };
    const TapeSize size = training ? kernels<Real>().tape_size(p) : TapeSize{0, 0, 0};
    if (size.gates) tape->gates = Buffer(bytes(size.gates * p.D));
    if (size.c) tape->c = Buffer(bytes(size.c * p.D));
    if (size.reset_h) tape->reset_h = Buffer(bytes(size.reset_h * p.D));
    const Buffer scratch(bytes(kernels<Real>().forward_scratch(p, false)));

    ForwardArgs<Real> args = {p, rows_of(saved), {}, static_cast<Real*>(scratch.data()), view(tokens, TokenLinks{})};
    for (Index d = 0; d < p.D; ++d) {
      args.directions[d] = {parameters_of(saved.parameters, d),
                            nullptr,
                            direction_of(saved.h0, p, d),
                            direction_of(saved.c0, p, d),
                            {y->view().data + d * p.H, p.D * p.H},
                            direction_of(h, p, d),
                            direction_of(c, p, d),
                            tape_of<Real>(*tape, size, d)};
    }
    const Index threads = team_size(flops(p, info.G), most_members(p));
    call(threads, [&](const Team& team) { kernels<Real>().forward(args, team); });
  }
  const py::object y_result = finish(y), h_result = finish(h), c_result = finish(c);
  if (!training) return py::make_tuple(y_result, h_result, c_result);
  tape->saved = std::move(saved);
  tape->tokens = std::move(tokens);
  return py::make_tuple(y_result, h_result, c_result, py::cast(std::move(tape)));
}

template <class Real>
py::tuple backward_of(const TapeObject& tape, const Saved<Real>& saved, const py::object& dy, const py::object& dh,
                      const py::object& dc, bool need_dx, const py::object& grads, const py::object& out) {
  const CellInfo& info = *tape.info;
  const Problem& p = tape.problem;
  const Shape state_shape = {p.D, p.B, p.H};
  refuse_c(info, "dc", dc);
  if (dy.is_none() && dh.is_none() && dc.is_none())
    throw py::value_error("dy, dh, dc: expected at least one gradient, got none");
  const auto dy_in = optional_input<Real>("dy", dy, {p.T, p.B, p.D * p.H});
  const auto dh_in = optional_input<Real>("dh", dh, state_shape);
  const auto dc_in = optional_input<Real>("dc", dc, state_shape);

  const auto outs = tuple_of("out", out, 3, "(dx, dh0, dc0)");
  refuse_c(info, "out[2]", entry(outs, 2));
  need_dx = need_dx && p.input != InputKind::one_hot;
  if (!need_dx && !entry(outs, 0).is_none()) throw py::value_error("out[0]: expected None, since dx is not computed");
  std::optional<Output<Real>> dx, dh0, dc0;
  const Shape dx_shape = saved.embedding ? shape_of(saved.embedding->array) : Shape{p.T, p.B, p.I};
  if (need_dx) dx = output<Real>("out[0]", entry(outs, 0), dx_shape);
  dh0 = output<Real>("out[1]", entry(outs, 1), state_shape);
  if (info.has_c) dc0 = output<Real>("out[2]", entry(outs, 2), state_shape);

  const auto given = tuple_of("grads", grads, std::size_t(p.D), "(one tuple for each direction)");
  std::vector<std::optional<Output<Real>>> gradients;
  std::vector<std::string> names;
  for (Index d = 0; d < p.D; ++d) {
    const auto arrays = given ? tuple_of("grads", (*given)[std::size_t(d)], 4, parameter_content) : std::nullopt;
    if (given && !arrays)
      throw py::type_error("grads: expected a tuple " + std::string(parameter_content) + ", got None");
    for (int i = 0; i < 4; ++i) {
      const py::object array = entry(arrays, std::size_t(i));
      const std::string& name = names.emplace_back("grads[" + std::to_string(d) + "]: " + parameter_names[i]);
      const bool exists = saved.parameters[std::size_t(4 * d + i)].has_value();
      if (given && exists == array.is_none())
        throw py::type_error(name + ": expected " + (exists ? "an array, got None" : "None, got an array"));
      if (exists)
        gradients.emplace_back(output<Real>(name, array, parameter_shape(p, info.G, std::size_t(i)), true));
      else
        gradients.emplace_back();
    }
  }
  if (outs || given) {
    OverlapCheck check;
    read_all(check, saved);
    check.read("y", std::optional(Input<Real>{saved.y, saved.y}));
    check.read("dy", dy_in);
    check.read("dh", dh_in);
    check.read("dc", dc_in);
    check.written("out[0]", dx);
    check.written("out[1]", dh0);
    check.written("out[2]", dc0);
    for (std::size_t i = 0; i < gradients.size(); ++i) check.written(names[i], gradients[i]);
    check.run();
  }

  // The gradients of the states are carried in place, from the last states' to the initial states'.
  const py::module_ numpy = py::module_::import("numpy");
  const auto start = [&](const std::optional<Output<Real>>& state, const std::optional<Input<Real>>& from) {
    if (state) numpy.attr("copyto")(state->array, from ? py::object(from->array) : py::object(py::int_(0)));
  };
  start(dh0, dh_in);
  start(dc0, dc_in);
  // The kernels write what belongs to tokens that occur.
  if (saved.embedding) start(dx, std::nullopt);
  for (std::size_t d = 0; d < std::size_t(p.D) && p.input == InputKind::one_hot && !given; ++d)
    start(gradients[4 * d], std::nullopt);

  if (p.B > 0) {
    const Index threads = team_size((need_dx ? 2 : 1.5) * flops(p, info.G), most_members(p));
    const Buffer scratch(std::size_t(kernels<Real>().backward_scratch(p, need_dx)) * sizeof(Real));
    const TokenLinks links = link(tape.tokens);
    BackwardArgs<Real> args = {p,
                               rows_of(saved),
                               dx ? dx->view() : View<Real>{nullptr, 0},
                               {},
                               given.has_value(),
                               static_cast<Real*>(scratch.data()),
                               view(tape.tokens, links)};
    const TapeSize size = kernels<Real>().tape_size(p);
    for (Index d = 0; d < p.D; ++d) {
      const auto gradient = [&](int i) {
        auto& array = gradients[std::size_t(4 * d + i)];
        return array ? array->view().data : nullptr;
      };
      const Tape<Real> filled = tape_of<Real>(tape, size, d);
      View<const Real> dy_view = {nullptr, 0};
      if (dy_in) dy_view = {dy_in->view().data + d * p.H, dy_in->stride};
      args.directions[d] = {parameters_of(saved.parameters, d),
                            direction_of(saved.h0, p, d),
                            direction_of(saved.c0, p, d),
                            {static_cast<const Real*>(saved.y.data()) + d * p.H, p.D * p.H},
                            dy_view,
                            {filled.gates, filled.c, filled.reset_h},
                            direction_of(dh0, p, d),
                            direction_of(dc0, p, d),
                            {gradient(0), gradient(1), gradient(2), gradient(3)}};
    }
    call(threads, [&](const Team& team) { kernels<Real>().backward(args, team); });
  } else if (!given) {
    for (auto& gradient : gradients)
      if (gradient) numpy.attr("copyto")(gradient->array, 0);
  }

  py::list results;
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    py::tuple direction(4);
    for (std::size_t i = 0; i < 4; ++i) direction[i] = finish(gradients[4 * d + i]);
    results.append(direction);
  }
  return py::make_tuple(finish(dx), finish(dh0), finish(dc0), results);
}

// ---- The module ----------------------------------------------------------------------------------------------------

py::tuple forward_any(const py::object& cell, const py::object& x, const py::object& parameters, const py::object& h0,
                      const py::object& c0, const py::object& out, const py::object& embedding, bool training) {
  const CellInfo& info = cell_named(cell);
  InputArrays in = {as_array(x, "x"), std::nullopt};
  if (!embedding.is_none()) in.embedding = as_array(embedding, "embedding");
  const ParameterArrays arrays = read_parameters(parameters);
  return is_double("w_ih", arrays[0]) ? forward_of<double>(info, in, arrays, h0, c0, out, training)
                                      : forward_of<float>(info, in, arrays, h0, c0, out, training);
}

template <class Real>
py::array activate_of(Activation function, const py::array& x, const py::object& out) {
  const py::array from = contiguous_copy<Real>(x);
  Output<Real> y;
  if (out.is_none()) {
    y.given = y.array = new_array<Real>(shape_of(x));
  } else {
    y.given = writable("out", out, py::dtype::of<Real>(), shape_of(x));
    const bool in_place = y.given.data() == from.data() || !share_memory(y.given, from);
    const bool direct = in_place && (y.given.flags() & py::array::c_style) && is_aligned<Real>(y.given);
    y.array = direct ? y.given : new_array<Real>(shape_of(x));
  }
  const auto* source = static_cast<const Real*>(from.data());
  auto* target = static_cast<Real*>(y.array.mutable_data());
  const Index n = x.size();
  {
    const py::gil_scoped_release released;
    kernels<Real>().activate(function, source, target, n);
  }
  y.commit();
  return y.given;
}

py::array activate(Activation function, const py::object& x, const py::object& out) {
  const py::array array = as_array(x, "x");
  return is_double("x", array) ? activate_of<double>(function, array, out) : activate_of<float>(function, array, out);
}

// ---- The limits of the machine -------------------------------------------------------------------------------------

Index at_least_one(const std::string& name, Index n) {
  if (n < 1) throw py::value_error(name + ": expected at least 1, got " + std::to_string(n));
  return n;
}

template <class Real>
double multiply_adds(const py::object& factors, Index n) {
  const Input<Real> in = contiguous_input<Real>("factors", factors, {2});
  const Real a = in.view().data[0], b = in.view().data[1];
  const py::gil_scoped_release released;
  return kernels<Real>().multiply_adds(a, b, n);
}

template <class Real>
double read(const py::array& x, Index passes) {
  const Input<Real> in = contiguous_input<Real>("x", x, {x.size()});
  const py::gil_scoped_release released;
  return kernels<Real>().read(in.view().data, x.size(), passes);
}

py::dict config() {
  py::dict config;
  config["version"] = RNNFAST_VERSION;
#if defined(__clang__)
  config["compiler"] = "clang " __clang_version__;
#else
  config["compiler"] = "gcc " __VERSION__;
#endif
  config["isa"] = kernel_table->name;
  py::list available;
  for (const KernelTable* table : available_kernels()) available.append(table->name);
  config["available"] = available;
  config["threads"] = get_num_threads();
  return config;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  try {
    kernel_table = &choose_kernels();
    get_num_threads();  // so that a wrong RNNFAST_NUM_THREADS fails the import
  } catch (const std::runtime_error& error) {
    throw py::import_error(error.what());
  }

  m.attr("_C_API") = py::capsule(&c_api, RNNFAST_CAPSULE);

  py::tuple names(std::size(cells));
  for (std::size_t i = 0; i < std::size(cells); ++i) names[i] = cells[i].name;
  m.attr("CELLS") = names;

  py::class_<TapeObject> tape_type(m, "Tape", py::is_final(),
                                   "What a training forward keeps for its backward. Opaque and read-only.");
  reinterpret_cast<PyTypeObject*>(tape_type.ptr())->tp_new = nullptr;  // forward alone makes tapes
  tape_type.def_property_readonly("cell", [](const TapeObject& tape) { return tape.info->name; })
      .def_property_readonly(
          "nbytes", [](const TapeObject& tape) { return tape.gates.bytes() + tape.c.bytes() + tape.reset_h.bytes(); });

  using namespace py::literals;
  m.def(
      "inference",
      [](const py::object& cell, const py::object& x, const py::object& parameters, const py::object& h0,
         const py::object& c0, const py::object& out,
         const py::object& embedding) { return forward_any(cell, x, parameters, h0, c0, out, embedding, false); },
      "cell"_a, "x"_a, "parameters"_a, "h0"_a = py::none(), "c0"_a = py::none(), "out"_a = py::none(),
      "embedding"_a = py::none());
  m.def(
      "forward",
      [](const py::object& cell, const py::object& x, const py::object& parameters, const py::object& h0,
         const py::object& c0, const py::object& out,
         const py::object& embedding) { return forward_any(cell, x, parameters, h0, c0, out, embedding, true); },
      "cell"_a, "x"_a, "parameters"_a, "h0"_a = py::none(), "c0"_a = py::none(), "out"_a = py::none(),
      "embedding"_a = py::none());
  m.def(
      "backward",
      [](const py::object& object, const py::object& dy, const py::object& dh, const py::object& dc, bool need_dx,
         const py::object& grads, const py::object& out) {
        if (!py::isinstance<TapeObject>(object))
          throw py::type_error("tape: expected a tape of forward, got " + type_name(object));
        const auto& tape = object.cast<const TapeObject&>();
        return std::visit([&](const auto& saved) { return backward_of(tape, saved, dy, dh, dc, need_dx, grads, out); },
                          tape.saved);
      },
      "tape"_a, "dy"_a = py::none(), "dh"_a = py::none(), "dc"_a = py::none(), "need_dx"_a = true,
      "grads"_a = py::none(), "out"_a = py::none());
  m.def(
      "sigmoid", [](const py::object& x, const py::object& out) { return activate(Activation::sigmoid, x, out); },
      "x"_a, "out"_a = py::none());
  m.def(
      "tanh", [](const py::object& x, const py::object& out) { return activate(Activation::tanh, x, out); }, "x"_a,
      "out"_a = py::none());
  m.def(
      "multiply_adds",
      [](const py::object& object, Index n) {
        const py::array factors = as_array(object, "factors");
        at_least_one("n", n);
        return is_double("factors", factors) ? multiply_adds<double>(factors, n) : multiply_adds<float>(factors, n);
      },
      "factors"_a, "n"_a);
  m.def(
      "read",
      [](const py::object& object, Index passes) {
        const py::array x = as_array(object, "x");
        at_least_one("passes", passes);
        return is_double("x", x) ? read<double>(x, passes) : read<float>(x, passes);
      },
      "x"_a, "passes"_a = 1);
  m.def("asarray", &as_array, "x"_a, "name"_a = "x");
  m.def(
      "check_writable", [](const py::array& a, const std::string& name) { writable(name, a, a.dtype(), shape_of(a)); },
      "a"_a, "name"_a);
  m.def(
      "set_num_threads",
      [](Index n) {
        if (n < 1 || n > most_threads)
          throw py::value_error("n: expected a number of threads from 1 to " + std::to_string(most_threads) + ", got " +
                                std::to_string(n));
        set_num_threads(n);
      },
      "n"_a);
  m.def("get_num_threads", &get_num_threads);
  m.def("config", &config);
  bind_training(m);
}

}  // namespace rnnfast
