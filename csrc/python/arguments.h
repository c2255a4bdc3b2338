// A layer's call at the border: from arrays, names and options to a Problem, or an error that names the argument.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "python/arrays.h"
#include "run/dispatch.h"
#include "run/formats.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/schedule.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {

// ---- Cells by name -------------------------------------------------------------------------------------------------

inline const CellShape& cell_named(const py::object& name) {
  if (!py::isinstance<py::str>(name)) throw py::type_error("cell: expected a str, got " + type_name(name));
  for (const CellShape& cell : cells())
    if (PyUnicode_CompareWithASCIIString(name.ptr(), cell.name) == 0) return cell;
  std::string names;
  for (const CellShape& cell : cells()) names += (names.empty() ? "" : ", ") + std::string(cell.name);
  throw py::value_error("cell: expected one of " + names + ", got " +
                        text(py::reinterpret_steal<py::object>(PyObject_ASCII(name.ptr()))));
}

// ---- Parameters of a layer -----------------------------------------------------------------------------------------

constexpr const char* weight_names[] = {"w_ih", "w_hh", "b_ih", "b_hh"};
constexpr std::size_t weight_count = std::size(weight_names);

// Of one direction: the weights, what else the cell has, and w_hr last where h is a projection.
constexpr std::size_t parameter_count(const CellShape& cell, bool projected) {
  return weight_count + std::size_t(cell.parameter_count) + projected;
}

inline std::size_t parameter_count(const Problem& p) { return parameter_count(*p.cell, is_projected(p)); }

constexpr const char* parameter_name(const CellShape& cell, std::size_t i) {
  if (i < weight_count) return weight_names[i];
  return i < parameter_count(cell, false) ? cell.parameters[i - weight_count].name : "w_hr";
}

inline std::string parameter_content(const CellShape& cell, bool projected) {
  std::string content = "(";
  for (std::size_t i = 0; i < parameter_count(cell, projected); ++i)
    content.append(i ? ", " : "").append(parameter_name(cell, i));
  return content.append(")");
}

constexpr bool is_bias(const CellShape& cell, std::size_t i) {
  if (i < weight_count) return i >= 2;
  return i < parameter_count(cell, false) && cell.parameters[i - weight_count].is_bias;
}

constexpr bool is_matrix(const CellShape& cell, std::size_t i) { return i < 2 || i == parameter_count(cell, false); }

// So many for each direction; None where a bias is missing. Each is converted once: an object could answer anew each
// time.
using ParameterArrays = std::vector<std::optional<Array>>;

// Those of a direction of fewer bits, and of matrices of int8 the scales, packed for any number of calls.
struct PackedParameters;

// Those of a call, and of matrices of int8 the scales at the places of their matrices.
struct GivenParameters {
  ParameterArrays arrays, scales;
  std::vector<std::shared_ptr<const PackedParameters>> packed = {};  // of each direction, or of none
};

template <class Real>
using LayerParameters = std::vector<std::optional<Input<Real>>>;  // as the arrays they are made of

// Of a call's parameters, those in `scales` are what rows of int8 are multiplied by.
template <class Real>
struct CheckedParameters {
  LayerParameters<Real> arrays;
  LayerParameters<float> scales;
};

struct PackedParameters {
  GivenParameters given;  // from which calls read their sizes
  CheckedParameters<float> checked;
  const CellShape* cell;
  Buffer data;
};

inline std::shared_ptr<const PackedParameters> packed_in(const py::handle& object) {
  if (PyTuple_Check(object.ptr()) || !py::isinstance<PackedParameters>(object)) return nullptr;  // tuples cost nothing
  return object.cast<std::shared_ptr<PackedParameters>>();
}

// Whether there is one parameter more than those of a cell, which can only be w_hr.
inline bool has_projection(const CellShape& cell, const py::tuple& directions) {
  const py::object first = directions[0];
  if (const auto packed = packed_in(first)) return packed->given.arrays.size() == parameter_count(cell, true);
  return cell.projects && (py::isinstance<py::tuple>(first) || py::isinstance<py::list>(first)) &&
         py::len(first) == parameter_count(cell, true);
}

// A matrix of int8 comes with its scales, as a pair.
inline std::optional<py::tuple> pair_of_int8(const py::object& object) {
  if (!py::isinstance<py::tuple>(object) || py::len(object) != 2) return std::nullopt;
  const auto pair = py::reinterpret_borrow<py::tuple>(object);
  const py::object first = pair[0];
  const bool is_pair = py::isinstance<py::array>(first) && py::array(first).dtype().equal(py::dtype::of<std::int8_t>());
  return is_pair ? std::optional(pair) : std::nullopt;
}

// Adds those of a direction that are packed.
inline void append(GivenParameters& read, const std::shared_ptr<const PackedParameters>& packed, const CellShape& cell,
                   std::size_t count) {
  const GivenParameters& own = packed->given;
  if (packed->cell != &cell || own.arrays.size() != count)
    throw py::value_error("parameters: expected ones packed for " + std::string(cell.name) + ", got some for " +
                          packed->cell->name);
  read.arrays.insert(read.arrays.end(), own.arrays.begin(), own.arrays.end());
  read.scales.insert(read.scales.end(), own.scales.begin(), own.scales.end());
  read.packed.push_back(packed);
}

inline GivenParameters read_parameters(const CellShape& cell, const py::object& parameters) {
  if (!py::isinstance<py::tuple>(parameters) && !py::isinstance<py::list>(parameters))
    throw py::type_error("parameters: expected a list of 1 or 2 tuples " + parameter_content(cell, false) + ", got " +
                         type_name(parameters));
  const py::tuple directions(parameters);
  if (directions.size() != 1 && directions.size() != 2)
    throw py::value_error("parameters: expected 1 or 2 directions, got " + std::to_string(directions.size()));
  const bool projected = has_projection(cell, directions);
  const std::size_t count = parameter_count(cell, projected);
  const auto content = [&] { return parameter_content(cell, projected); };
  GivenParameters read;
  read.arrays.reserve(count * directions.size());
  for (const py::handle direction : directions) {
    if (const auto packed = packed_in(direction)) {
      append(read, packed, cell, count);
      continue;
    }
    const auto given = tuple_of("parameters", py::reinterpret_borrow<py::object>(direction), count, content);
    if (!given) throw py::type_error("parameters: expected a tuple " + content() + ", got None");
    for (std::size_t i = 0; i < count; ++i) {
      const py::object array = (*given)[i];
      const bool missing = is_bias(cell, i) && array.is_none();
      if (const auto pair = is_matrix(cell, i) ? pair_of_int8(array) : std::nullopt) {
        read.scales.resize(count * directions.size());
        read.scales[read.arrays.size()] = as_array((*pair)[1], parameter_name(cell, i) + std::string("'s scales"));
        read.arrays.push_back(as_array((*pair)[0], parameter_name(cell, i)));
      } else {
        read.arrays.push_back(missing ? std::nullopt : std::optional(as_array(array, parameter_name(cell, i))));
      }
    }
  }
  if (read.packed.size() % directions.size())
    throw py::type_error("parameters: expected both directions packed or none, got one");
  return read;
}

inline Format format_of(const GivenParameters& given) {
  if (given.scales.size() && given.scales[0]) return Format::int8;
  return has_dtype(*given.arrays[0], py::dtype::of<std::uint16_t>()) ? Format::bfloat16 : Format::real;
}

// Of each direction, what views of its inputs or outputs point to.
template <class Real, class Arrays>
std::array<Parameters<Real>, 2> parameters_of(const Problem& p, const Arrays& arrays,
                                              const LayerParameters<float>& scales = {}) {
  const auto data = [&](std::size_t i) { return arrays[i] ? arrays[i]->view().data : nullptr; };
  const std::size_t count = parameter_count(p);
  std::array<Parameters<Real>, 2> parameters = {};
  for (std::size_t d = 0, i = 0; i < arrays.size(); ++d, i += count) {
    parameters[d] = {.w_ih = data(i), .w_hh = data(i + 1), .b_ih = data(i + 2), .b_hh = data(i + 3), .vectors = {}};
    for (int k = 0; k < p.cell->parameter_count; ++k)
      parameters[d].vectors[k] = data(i + weight_count + std::size_t(k));
    if (is_projected(p)) parameters[d].w_hr = data(i + count - 1);
    const std::size_t matrices[] = {i, i + 1, i + count - 1};
    for (std::size_t k = 0; k < std::size(matrices) && scales.size(); ++k)
      if (scales[matrices[k]]) parameters[d].scales[k] = scales[matrices[k]]->view().data;
  }
  return parameters;
}

inline Shape parameter_shape(const Problem& p, std::size_t i) {
  if (i == parameter_count(*p.cell, false)) return {p.P, p.H};
  if (i >= weight_count) return {p.cell->parameters[i - weight_count].count * p.H};
  const Index rows = p.cell->gate_count * p.H;
  return i == 0 ? Shape{rows, p.I} : i == 1 ? Shape{rows, p.head} : Shape{rows};
}

// Whether the dtype of the call is float64.
inline bool has_double(const GivenParameters& given) {
  return format_of(given) == Format::real && is_double("w_ih", *given.arrays[0]);
}

// A matrix of fewer bits as the kernels take it, its rows as rows of words.
inline Input<float> matrix_input(const std::string& name, Array given, const Problem& p, std::size_t i) {
  const Shape shape = parameter_shape(p, i);
  require_dtype(name, given, p.format == Format::int8 ? py::dtype::of<std::int8_t>() : py::dtype::of<std::uint16_t>());
  require_shape(name, given, shape);
  if (!given.is_contiguous()) given = contiguous_copy<std::int8_t>(given);
  const Index rows = shape[0], K = shape[1], words = words_of_row(K, p.format);
  if (4 * words == K * given.itemsize() && is_aligned<float>(given))
    return {.given = Array(py::array(py::dtype::of<float>(), {rows, words}, given.data(), given.view())),
            .copy = {},
            .stride = words};
  py::array copy = new_array<float>({rows, words});
  copy_words(given.data(), rows, K, p.format, copy.mutable_data());
  return {.given = Array(copy), .copy = {}, .stride = words};
}

// Of packed ones, which differ in their sizes at most.
inline CheckedParameters<float> checked_before(const Problem& p, const GivenParameters& given) {
  CheckedParameters<float> checked;
  for (const auto& packed : given.packed) {
    for (std::size_t i = 0; i < parameter_count(p); ++i)
      if (packed->given.arrays[i])
        require_shape(parameter_name(*p.cell, i), *packed->given.arrays[i], parameter_shape(p, i));
    const CheckedParameters<float>& own = packed->checked;
    checked.arrays.insert(checked.arrays.end(), own.arrays.begin(), own.arrays.end());
    checked.scales.insert(checked.scales.end(), own.scales.begin(), own.scales.end());
  }
  return checked;
}

template <class Real>
CheckedParameters<Real> check_parameters(const Problem& p, GivenParameters given) {
  CheckedParameters<Real> checked = {.arrays = LayerParameters<Real>(given.arrays.size()),
                                     .scales = LayerParameters<float>(given.scales.size())};
  if constexpr (std::is_same_v<Real, float>)
    if (!given.packed.empty()) return checked_before(p, given);
  for (std::size_t i = 0; i < given.arrays.size(); ++i) {
    if (!given.arrays[i]) continue;
    const std::size_t own = i % parameter_count(p);
    const std::string name = parameter_name(*p.cell, own);
    const Shape shape = parameter_shape(p, own);
    if (p.format == Format::real || !is_matrix(*p.cell, own)) {
      checked.arrays[i] = contiguous_input<Real>(name, std::move(*given.arrays[i]), shape);
      continue;
    }
    if constexpr (std::is_same_v<Real, float>) {
      if (i < given.scales.size() && given.scales[i])
        checked.scales[i] = contiguous_input<float>(name + "'s scales", *given.scales[i], {shape[0]});
      else if (p.format == Format::int8)
        throw py::type_error(name + ": expected int8 and scales as for w_ih, got " + text(given.arrays[i]->dtype()));
      checked.arrays[i] = matrix_input(name, std::move(*given.arrays[i]), p, own);
    }
  }
  return checked;
}

// ---- States --------------------------------------------------------------------------------------------------------

// What Python calls arrays of the states of a cell: all of them together, and each by the words around its own name.
struct StateNames {
  const char *all, *before, *after;
  int first = 0;  // the state that begins them

  std::string of(const CellShape& cell, int s) const { return std::string(before) + cell.states[s] + after; }
};

constexpr StateNames state0_names = {.all = "state0", .before = "", .after = "0"},
                     start_names = {.all = "start", .before = "start: ", .after = ""},
                     out_names = {.all = "out[1]", .before = "out[1]: ", .after = ""},
                     dstate_names = {.all = "dstate", .before = "dstate: d", .after = ""},
                     dsteps_names = {.all = "dsteps", .before = "d", .after = "", .first = 1},
                     dstart_names = {.all = "dstart", .before = "dstart: ", .after = ""},
                     flow_names = {.all = "flow", .before = "flow: ", .after = ""},
                     zoneout_names = {.all = "zoneout", .before = "zoneout: ", .after = ""};

// An object for each state; None where there is none.
using StateObjects = std::array<py::object, most_states>;

// Those in a tuple, or none at all.
inline StateObjects state_objects(const CellShape& cell, const StateNames& names, const py::object& tuple) {
  StateObjects objects;
  objects.fill(py::none());
  if (tuple.is_none()) return objects;
  const auto content = [&] {
    std::string parts;
    for (int s = names.first; s < cell.state_count; ++s)
      parts += (parts.empty() ? "" : ", ") + std::string(cell.states[s]);
    return "(" + parts + ")";
  };
  const auto entries = tuple_of(names.all, tuple, std::size_t(cell.state_count - names.first), content);
  for (int s = names.first; s < cell.state_count; ++s)
    objects[std::size_t(s)] = (*entries)[std::size_t(s - names.first)];
  return objects;
}

// An array for each state that there is.
using StateArrays = std::array<std::optional<Array>, most_states>;

inline StateArrays state_arrays(const CellShape& cell, const StateNames& names, const py::object& tuple) {
  StateArrays arrays;
  if (tuple.is_none()) return arrays;
  const StateObjects objects = state_objects(cell, names, tuple);
  for (std::size_t s = 0; s < most_states; ++s)
    if (!objects[s].is_none()) arrays[s] = as_array(objects[s], names.of(cell, int(s)));
  return arrays;
}

inline bool has_none(const StateArrays& arrays) {
  return std::ranges::none_of(arrays, [](const std::optional<Array>& array) { return array.has_value(); });
}

template <class Real>
using StateInputs = std::array<std::optional<Input<Real>>, most_states>;

template <class Real>
using StateOutputs = std::array<std::optional<Output<Real>>, most_states>;

// [D,B,H], of h [D,B,P].
inline Shape shape_of_state(const Problem& p, std::size_t s) { return {p.D, p.B, state_size(p, s)}; }

template <class Real>
StateInputs<Real> state_inputs(const Problem& p, const StateNames& names, const StateArrays& arrays) {
  StateInputs<Real> inputs;
  for (std::size_t s = 0; s < most_states; ++s)
    if (arrays[s]) inputs[s] = input<Real>(names.of(*p.cell, int(s)), *arrays[s], shape_of_state(p, s));
  return inputs;
}

template <class Real>
StateOutputs<Real> state_outputs(const Problem& p, const StateNames& names, const py::object& tuple,
                                 bool keep_values = false, const Results& results = numpy_results) {
  const StateObjects objects = state_objects(*p.cell, names, tuple);
  StateOutputs<Real> outputs;
  for (int i = names.first; i < p.cell->state_count; ++i) {
    const auto s = std::size_t(i);
    outputs[s] = output<Real>(names.of(*p.cell, i), objects[s], shape_of_state(p, s), keep_values, results);
  }
  return outputs;
}

// For the kernels; null views where there is nothing.
template <class State>
auto views_of(const std::array<std::optional<State>, most_states>& states) {
  StateViews<std::remove_pointer_t<decltype(states[0]->view().data)>> views = {};
  for (std::size_t s = 0; s < most_states; ++s)
    if (states[s]) views[s] = states[s]->view();
  return views;
}

// ---- Input, and how its rows form sequences ------------------------------------------------------------------------

// x [T,B,I], or tokens [T,B] and maybe their embedding [V,I].
struct InputArrays {
  Array x;
  std::optional<Array> embedding;
};

// How the rows of a call form sequences.
struct Sequences {
  py::object batch_sizes;  // None: all steps have B rows
  py::object resets;       // of the rows, whether an episode begins; None: nowhere
  py::object ends;         // of those of the last step, whether an episode ends; None: it is the last of all
  bool reverse;            // of a single direction: it runs backwards in time
};

inline InputKind input_kind_of(const InputArrays& in, Index row_axes) {
  if (!in.embedding) return in.x.is_integer() && in.x.ndim() == row_axes ? InputKind::one_hot : InputKind::dense;
  if (!in.x.holds_integers()) throw py::type_error("x: expected integers as tokens, got " + text(in.x.dtype()));
  return InputKind::embedded;
}

// Of integers [T], none larger than the one before.
inline std::vector<Index> read_batch_sizes(const py::object& object) {
  const Array array = as_array(object, "batch_sizes");
  if (!array.holds_integers()) throw py::type_error("batch_sizes: expected integers, got " + text(array.dtype()));
  if (array.ndim() != 1 || array.size() == 0) wrong_shape("batch_sizes", "(T,) with T >= 1", array);
  const py::array copy = as_indices(array.view());
  const auto* sizes = static_cast<const Index*>(copy.data());
  std::vector<Index> first_row;
  find_first_rows(sizes, copy.size(), first_row);
  return first_row;
}

inline std::vector<unsigned char> flags(const py::object& object, const std::string& name, const Shape& shape) {
  const Array array = with_dtype(name, as_array(object, name), py::dtype::of<bool>());
  require_shape(name, array, shape);
  const py::array copy = called(array.view().attr("astype"), py::make_tuple(py::dtype::of<unsigned char>(), "C"));
  const auto* values = static_cast<const unsigned char*>(copy.data());
  return {values, values + copy.size()};
}

inline void read_resets(const Sequences& sequences, const Shape& rows, Problem& p, Schedule& schedule) {
  const Index last = p.first_row ? p.first_row[p.T] - p.first_row[p.T - 1] : p.B;
  std::vector<unsigned char> begins, ends;
  if (!sequences.resets.is_none()) begins = flags(sequences.resets, "resets", rows);
  if (!sequences.ends.is_none()) ends = flags(sequences.ends, "ends", {last});
  find_starts(p, begins.data(), ends.data(), schedule);
}

// H; P where h is a projection, and else the units of a head where the cell may have some.
inline void read_recurrent_sizes(const Array& w_hh, bool projected, Problem& p) {
  const Index G = p.cell->gate_count, rows = w_hh.ndim() == 2 ? w_hh.shape(0) : 0;
  const bool heads = p.cell->has_heads && !projected;
  p.H = rows / G;
  p.head = w_hh.ndim() == 2 ? w_hh.shape(1) : 0;
  p.P = projected ? p.head : p.H;
  const bool fits = projected ? is_projected(p) : heads ? p.head >= 1 && p.H % p.head == 0 : p.head == p.H;
  if (p.H >= 1 && p.head >= 1 && rows % G == 0 && fits) return;
  const std::string all = G == 1 ? "(H, " : "(" + std::to_string(G) + "·H, ";
  const char* columns = projected ? "P) with 1 <= P < H, since there is a w_hr"
                        : heads   ? "H / heads) with H >= 1"
                                  : "H) with H >= 1";
  wrong_shape("w_hh", all + columns, w_hh);
}

// The sizes that the first direction's weights have, and their format.
inline void read_sizes(const GivenParameters& parameters, Problem& p) {
  const ParameterArrays& arrays = parameters.arrays;
  const bool projected = arrays.size() % parameter_count(*p.cell, false) != 0;
  p.D = Index(arrays.size() / parameter_count(*p.cell, projected));
  const Array& w_ih = *arrays[0];
  read_recurrent_sizes(*arrays[1], projected, p);
  if (w_ih.ndim() != 2) wrong_shape("w_ih", "(" + std::to_string(p.cell->gate_count * p.H) + ", I)", w_ih);
  p.I = w_ih.shape(1);
  p.format = format_of(parameters);
  p.skips_zeros = !parameters.packed.empty();
  if (const std::string expected = refusal(p); !expected.empty()) throw py::value_error("w_ih: expected " + expected);
}

// The sizes of a call, from the shapes of x and of the weights.
inline Problem read_problem(const CellShape& cell, const InputArrays& in, const Sequences& sequences,
                            const GivenParameters& parameters, Schedule& schedule) {
  const Array& x = in.x;
  Problem p = problem_of(cell, {});
  const bool packed = !sequences.batch_sizes.is_none();
  const Index row_axes = packed ? 1 : 2;
  if (packed) schedule.first_row = read_batch_sizes(sequences.batch_sizes);
  p.input = input_kind_of(in, row_axes);
  read_sizes(parameters, p);
  const bool dense = p.input == InputKind::dense;
  const std::string row = dense ? ", " + std::to_string(p.I) : "";
  if (x.ndim() != row_axes + dense || (dense && x.shape(row_axes) != p.I) || x.shape(0) < 1)
    wrong_shape("x", packed ? "(N" + (dense ? row : ",") + ")" : "(T, B" + row + ") with T >= 1", x);
  if (in.embedding && in.embedding->ndim() != 2)
    wrong_shape("embedding", "(V, " + std::to_string(p.I) + ")", *in.embedding);
  p.T = packed ? Index(schedule.first_row.size()) - 1 : x.shape(0);
  p.B = packed ? schedule.first_row[1] : x.shape(1);
  p.run = {.first = 0, .last = p.T};
  p.reverse = sequences.reverse;
  if (packed && schedule.first_row.back() != x.shape(0))
    throw py::value_error("batch_sizes: expected sizes that sum up to the rows of x, " + std::to_string(x.shape(0)) +
                          ", got " + std::to_string(schedule.first_row.back()));
  if (p.reverse && p.D == 2) throw py::value_error("reverse: expected False for two directions, got True");
  const double rows = packed ? double(x.shape(0)) : double(p.T) * double(p.B);
  if (!fits_address_space(p, rows))
    throw py::value_error("x: expected a size that fits the address space, got " + shape_text(x.shape()));
  if (packed) point_to_rows(p, schedule);
  read_resets(sequences, packed ? Shape{row_count(p)} : Shape{p.T, p.B}, p, schedule);
  return p;
}

// (first, last), or None for all of the T steps.
inline Steps read_steps(const py::object& object, const Problem& p) {
  const auto given = tuple_of("steps", object, 2, "(first, last)");
  if (!given) return {.first = 0, .last = p.T};
  for (const py::handle step : *given)
    if (!PyLong_Check(step.ptr())) throw py::type_error("steps: expected integers, got " + type_name(step));
  const Steps steps = {.first = PyLong_AsSsize_t((*given)[0].ptr()), .last = PyLong_AsSsize_t((*given)[1].ptr())};
  if (PyErr_Occurred()) throw py::error_already_set();
  if (steps.first < 0 || steps.first > steps.last || steps.last > p.T)
    throw py::value_error("steps: expected 0 <= first <= last <= " + std::to_string(p.T) + ", got (" +
                          std::to_string(steps.first) + ", " + std::to_string(steps.last) + ")");
  return steps;
}

// [T,B,n], or [N,n] where steps differ in their rows.
inline Shape shape_of_rows(const Problem& p, Index n) {
  return p.first_row ? Shape{row_count(p), n} : Shape{p.T, p.B, n};
}

// The same of the run's steps alone.
inline Shape shape_of_run(const Problem& p, Index n) {
  return p.first_row ? Shape{p.first_row[p.run.last] - p.first_row[p.run.first], n}
                     : Shape{p.run.last - p.run.first, p.B, n};
}

// ---- Options -------------------------------------------------------------------------------------------------------

inline Index checked_threads(Index threads) {
  if (threads != 0 && !is_thread_count(threads))
    throw py::value_error("threads: expected 0, for as many as are set, to " + std::to_string(most_threads) + ", got " +
                          std::to_string(threads));
  return threads;
}

// What h' is multiplied by in the products of all steps, one of all gates [D,B,H] or one of each [D,B,G,H]; the problem
// is told.
template <class Real>
Input<Real> read_factors(const py::object& object, Problem& p) {
  if (p.head != p.H)
    throw py::value_error("recurrent_factors: expected None, since there is a projection, or w_hh is of heads");
  const Array array = as_array(object, "recurrent_factors");
  const bool by_gate = array.ndim() == 4;
  p.masks = by_gate ? p.cell->gate_count : 1;
  const Shape shape = by_gate ? Shape{p.D, p.B, p.cell->gate_count, p.H} : Shape{p.D, p.B, p.H};
  if (!by_gate) return input<Real>("recurrent_factors", array, shape);
  Input<Real> factors = contiguous_input<Real>("recurrent_factors", array, shape);
  factors.stride = p.masks * p.H;  // the gates of a sequence are one row
  return factors;
}

// A bit for each unit of each row, [*,D·ceil(H/8)], from such bits or from bools [*,D·H]: those of the rows of all
// steps, [T,B,*] or [N,*], or of one step that stands for all.
inline Input<unsigned char> read_bits(const std::string& name, const py::object& object, const Problem& p,
                                      bool of_one) {
  Array array = as_array(object, name);
  const auto rows = [&](Index n) { return of_one ? Shape{1, p.B, n} : shape_of_rows(p, n); };
  const Index bytes = bytes_of_bits(p.H);
  if (array.dtype().kind() == 'b') {
    require_shape(name, array, rows(p.D * p.H));
    const py::array units = called(array.view().attr("reshape"), py::make_tuple(-1, p.D, p.H));
    array = Array(called(numpy().attr("packbits"), py::make_tuple(units, -1, "little")));
    py::list shape;
    for (const Index length : rows(p.D * bytes)) shape.append(length);
    array = Array(called(array.view().attr("reshape"), py::make_tuple(shape)));
  }
  return input<unsigned char>(name, std::move(array), rows(p.D * bytes));
}

template <class Real>
Held<Real> held_as(const Held<double>& held) {
  Held<Real> result = {.slots = held.slots, .value = {}};
  for (int slot = 0; slot < most_slots; ++slot) result.value[slot] = Real(held.value[slot]);
  return result;
}

// A number, which is finite as Real too if it is finite.
template <class Real>
double number_of(const py::handle& object, const std::string& name) {
  const py::object to_number = py::module_::import("rnnfast._base.scalars").attr("number");
  return called(to_number, py::make_tuple(object, name, py::dtype::of<Real>().attr("type"))).template cast<double>();
}

// A number with which something is left out, or stays.
template <class Real>
double read_rate(const py::handle& object, const std::string& name) {
  const double rate = number_of<Real>(object, name);
  if (rate >= 0 && rate < 1) return rate;
  throw py::value_error(name + ": expected a probability of at least 0 and less than 1, got " + text(object));
}

// What is added to variances: a number, or None; 0 where a cell has none.
template <class Real>
double read_eps(const CellShape& cell, const py::object& object) {
  const bool normalises = cell.stage_count > 0;
  if (object.is_none()) return normalises ? default_eps : 0;
  if (!normalises)
    throw py::value_error("layer_norm_eps: expected None, since " + std::string(cell.name) +
                          " normalises nothing, got " + text(object));
  const double eps = number_of<Real>(object, "layer_norm_eps");
  if (!is_eps<Real>(eps)) throw py::value_error("layer_norm_eps: expected a positive number, got " + text(object));
  return eps;
}

// {gate: value}, or None.
template <class Real>
Held<double> read_held(const CellShape& cell, const py::object& object) {
  Held<double> held = {};
  if (object.is_none()) return held;
  const std::string gates = cell.held;
  if (!py::hasattr(object, "keys")) throw py::type_error("gate_override: expected a dict, got " + type_name(object));
  for (const auto& [gate, value] : py::dict(object)) {  // a copy: the caller's could change while we read it
    if (!py::isinstance<py::str>(gate) || py::len(gate) != 1 || gates.find(text(gate)) == gates.npos) {
      std::string names;
      for (const char name : gates) names += (names.empty() ? "" : ", ") + std::string(1, name);
      throw py::value_error("gate_override: expected " +
                            (names.empty() ? "None, since " + std::string(cell.name) + " has no gates"
                                           : "gates of " + std::string(cell.name) + ", " + names) +
                            ", got " + text(py::reinterpret_steal<py::object>(PyObject_ASCII(gate.ptr()))));
    }
    const std::string name = "gate_override['" + text(gate) + "']";
    const double number = number_of<Real>(value, name);
    // The last slots are the gates.
    const int slot = int(std::string(cell.gates).find(text(gate))) + cell.slot_count - cell.gate_count;
    held.slots |= 1u << slot, held.value[slot] = number;
  }
  return held;
}

}  // namespace rnnfast
