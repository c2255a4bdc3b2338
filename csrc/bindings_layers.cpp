// The calls of the layers: memory is allocated, the GIL is released, the kernel is called. What problems.h and this
// file have checked is not checked again, and nothing is computed here.
#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "memory.h"
#include "problems.h"

namespace rnnfast {
namespace {

// ---- The tape ------------------------------------------------------------------------------------------------------

// The arrays of the call, kept alive.
template <class Real>
struct Saved {
  LayerParameters<Real> parameters;
  std::optional<Input<Real>> x, embedding, h0, c0, h_start, c_start;
  Array y;  // contiguous
};

template <class Real>
void read_all(OverlapCheck& check, const Saved<Real>& saved) {
  check.read("x", saved.x);
  check.read("embedding", saved.embedding);
  check.read("h0", saved.h0);
  check.read("c0", saved.c0);
  check.read("start[0]", saved.h_start);
  check.read("start[1]", saved.c_start);
  for (std::size_t i = 0; i < saved.parameters.size(); ++i) check.read(parameter_names[i % 4], saved.parameters[i]);
}

// Memory that the kernels fill: the tape's own, or an array that holds what another tape kept.
struct Memory {
  Buffer own;
  std::optional<Array> lent;

  void* data() const { return lent ? lent->data() : own.data(); }
  std::size_t bytes() const { return lent ? std::size_t(lent->nbytes()) : own.bytes(); }
};

// Everything a backward needs: references to the arrays, and the memory the kernels filled.
struct TapeObject {
  Problem problem;
  Schedule schedule;
  std::variant<Saved<float>, Saved<double>> saved;
  std::optional<Array> x;  // tokens, where steps are still to come
  TokenArrays tokens;
  Held<double> held;
  TapeMemory<Memory> memory;
  Index threads;  // at most; 0: as many as are set
};

// Gives the tape memory: its own, or three arrays [n], gates, c and reset_h, as `memory_of` has returned them.
template <class Real>
void allocate(TapeObject& tape, const py::object& given) {
  const TapeSize size = kernels<Real>().tape_size(tape.problem);
  const auto lent = tuple_of("memory", given, 3, "(gates, c, reset_h)");
  const auto memory = [&](std::size_t i, Index elements) {
    elements *= tape.problem.B > 0 ? tape.problem.D : 0;
    if (lent)
      return Memory{{}, contiguous_input<Real>("memory", as_array(entry(lent, i), "memory"), {elements}).array()};
    return elements ? Memory{Buffer(std::size_t(elements) * sizeof(Real)), {}} : Memory{};
  };
  tape.memory = {memory(0, size.gates), memory(1, size.states), memory(2, size.reset_h)};
}

// The tape's memory as arrays [n], empty where its cell keeps nothing; each keeps the tape alive.
template <class Real>
py::tuple memory_of(const py::object& owner, const TapeObject& tape) {
  const auto array = [&](const Memory& memory) {
    const void* data = memory.data() ? memory.data() : &tape;  // NumPy gives no owner to an array at null
    return py::array_t<Real>(Index(memory.bytes() / sizeof(Real)), static_cast<const Real*>(data), owner);
  };
  return py::make_tuple(array(tape.memory.gates), array(tape.memory.states), array(tape.memory.reset_h));
}

template <class Real>
Held<Real> held_as(const Held<double>& held) {
  Held<Real> result = {held.slots, {}};
  for (int slot = 0; slot < 4; ++slot) result.value[slot] = Real(held.value[slot]);
  return result;
}

// {gate: value}, or None; finite values are finite as Real too.
template <class Real>
Held<double> read_held(const CellShape& cell, const py::object& object) {
  Held<double> held = {};
  if (object.is_none()) return held;
  const std::string gates = cell.held;
  const py::object to_number = py::module_::import("rnnfast._base.scalars").attr("number");
  if (!py::hasattr(object, "keys")) throw py::type_error("gate_override: expected a dict, got " + type_name(object));
  for (const auto& [gate, value] : py::dict(object)) {  // a copy: the caller's could change while we read it
    const std::size_t index = py::isinstance<py::str>(gate) && py::len(gate) == 1 ? gates.find(text(gate)) : gates.npos;
    if (index == gates.npos) {
      std::string names;
      for (const char name : gates) names += (names.empty() ? "" : ", ") + std::string(1, name);
      throw py::value_error("gate_override: expected " +
                            (names.empty() ? "None, since " + std::string(cell.name) + " has no gates"
                                           : "gates of " + std::string(cell.name) + ", " + names) +
                            ", got " + text(py::reinterpret_steal<py::object>(PyObject_ASCII(gate.ptr()))));
    }
    const std::string name = "gate_override['" + text(gate) + "']";
    const double number =
        called(to_number, py::make_tuple(value, name, py::dtype::of<Real>().attr("type"))).template cast<double>();
    const int slot = int(index) + cell.slots - cell.gates;  // the last slots are the gates
    held.slots |= 1u << slot, held.value[slot] = number;
  }
  return held;
}

// ---- Calling the kernels -------------------------------------------------------------------------------------------

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

Index checked_threads(Index threads) {
  if (threads < 0 || threads > most_threads)
    throw py::value_error("threads: expected 0, for as many as are set, to " + std::to_string(most_threads) + ", got " +
                          std::to_string(threads));
  return threads;
}

void refuse_c(const CellShape& cell, const std::string& name, const py::object& object) {
  if (!has_c(cell) && !object.is_none())
    throw py::value_error(name + ": expected None, since " + std::string(cell.name) + " has no cell state");
}

// The rows that x is or picks; null where tokens are one-hot.
template <class Real>
View<const Real> rows_of(const Saved<Real>& saved) {
  const auto& rows = saved.embedding ? saved.embedding : saved.x;
  return rows ? rows->view() : View<const Real>{nullptr, 0};
}

// The arrays that a forward starts from and ends in.
struct ForwardArrays {
  py::object h0, c0, start, out;
  py::object memory;  // of the tape, filled: the steps have been run, and `out` holds their y; None: they are to be run
};

// Of the steps to run, at their places among all rows.
template <class Real>
TokenArrays tokens_of_run(const Array& x, const Problem& p, const Saved<Real>& saved) {
  const py::array run = x.view()[py::slice(p.run.first, p.run.last, 1)];
  TokenArrays tokens = read_tokens(run, saved.embedding ? saved.embedding->array().shape(0) : p.I);
  tokens.number.insert(tokens.number.begin(), std::size_t(p.run.first * p.B), 0);
  return tokens;
}

// Runs the steps that the problem names; a tape without memory of its own keeps nothing.
template <class Real>
void run_forward(const Problem& p, const TapeObject& tape, const Saved<Real>& saved, const TokenArrays& tokens,
                 const View<Real>& y, std::optional<Output<Real>>& h, std::optional<Output<Real>>& c) {
  if (p.B == 0) return;
  const Buffer scratch(std::size_t(kernels<Real>().forward_scratch(p, false)) * sizeof(Real));
  ForwardArgs<Real> args = {
      p, rows_of(saved), {}, static_cast<Real*>(scratch.data()), view(tokens, TokenLinks{}), held_as<Real>(tape.held)};
  for (Index d = 0; d < p.D; ++d) {
    args.directions[d] = {.parameters = parameters_of(saved.parameters, d),
                          .packed = nullptr,
                          .initial = {direction_of(saved.h0, p, d), direction_of(saved.c0, p, d)},
                          .start = {direction_of(saved.h_start, p, d), direction_of(saved.c_start, p, d)},
                          .y = {y.data + d * p.H, y.stride},
                          .last = {direction_of(h, p, d), direction_of(c, p, d)},
                          .tape = tape_of<Real>(tape.memory, p, d)};
  }
  const Index threads = team_size(flops(p), most_members(p), tape.threads);
  call(threads, [&](const Team& team) { kernels<Real>().forward(args, team); });
}

template <class Real>
py::tuple forward_of(const CellShape& cell, const InputArrays& in, const Sequences& sequences,
                     const ParameterArrays& parameters, const ForwardArrays& arrays, const py::object& held,
                     bool training, const py::object& steps, Index threads) {
  // Owned by Python from the start, and empty until then: where memory runs out, pybind11 would free the tape that it
  // is to take over, and so would its owner here.
  TapeObject inference;
  py::object owner;
  if (training) owner = py::cast(new TapeObject{}, py::return_value_policy::take_ownership);
  TapeObject* const tape = training ? &owner.cast<TapeObject&>() : &inference;
  tape->threads = checked_threads(threads);
  if (!training && !arrays.memory.is_none())
    throw py::value_error("memory: expected None, since inference makes no tape");
  if (!steps.is_none() && !arrays.memory.is_none())
    throw py::value_error("memory: expected None, since steps are still to come");
  tape->problem = read_problem(cell, in, sequences, parameters, tape->schedule);
  tape->held = read_held<Real>(cell, held);
  Problem& p = tape->problem;
  p.run = read_steps(steps, p);
  if (!steps.is_none() && (p.first_row || p.D == 2 || p.reverse))
    throw py::value_error("steps: expected None, since they need B rows each and one direction, forwards in time");
  const Shape state_shape = {p.D, p.B, p.H};
  refuse_c(cell, "c0", arrays.c0);
  const auto start = tuple_of("start", arrays.start, 2, "(h, c)");
  refuse_c(cell, "start[1]", entry(start, 1));
  Saved<Real> saved;
  saved.parameters = check_parameters<Real>(cell, p, parameters);
  saved.h0 = optional_input<Real>("h0", arrays.h0, state_shape);
  saved.c0 = optional_input<Real>("c0", arrays.c0, state_shape);
  saved.h_start = start ? optional_input<Real>("start[0]", entry(start, 0), state_shape) : saved.h0;
  saved.c_start = start ? optional_input<Real>("start[1]", entry(start, 1), state_shape) : saved.c0;
  if (in.embedding) saved.embedding = input<Real>("embedding", *in.embedding, {in.embedding->shape(0), p.I});
  const bool later = steps_to_come(p);
  if (p.input == InputKind::dense)
    saved.x = input<Real>("x", in.x, shape_of_rows(p, p.I));
  else if (later)
    tape->x = in.x;
  else
    tape->tokens = read_tokens(in.x.view(), in.embedding ? in.embedding->shape(0) : p.I);
  p.U = Index(tape->tokens.token.size());

  const auto outs = tuple_of("out", arrays.out, 3, "(y, h, c)");
  refuse_c(cell, "out[2]", entry(outs, 2));
  std::optional<Output<Real>> y, h, c;
  y = output<Real>("out[0]", entry(outs, 0), shape_of_rows(p, p.D * p.H), later);
  h = output<Real>("out[1]", entry(outs, 1), state_shape);
  if (has_c(cell)) c = output<Real>("out[2]", entry(outs, 2), state_shape);
  if (outs) {
    OverlapCheck check;
    read_all(check, saved);
    if (p.input != InputKind::dense) check.read("x", in.x);
    check.written("out[0]", y);
    check.written("out[1]", h);
    check.written("out[2]", c);
    check.run();
  }
  saved.y = y->array();
  if (training) allocate<Real>(*tape, arrays.memory);
  if (p.run.last > p.run.first && arrays.memory.is_none()) run_forward(p, *tape, saved, tape->tokens, y->view(), h, c);
  const py::object y_result = finish(y), h_result = finish(h), c_result = finish(c);
  if (!training) return py::make_tuple(y_result, h_result, c_result);
  tape->saved = std::move(saved);
  return py::make_tuple(y_result, h_result, c_result, owner);
}

// What a backward is given beside the tape.
struct BackwardArrays {
  py::object dy, dh, dc, dc_steps, grads, out;
  py::object flow;    // (dh, dc) of every step, filled; None: not wanted
  py::object dstart;  // the gradients of `start` of forward are added into these; None: into dh0 and dc0
  py::object steps;
  bool need_dx;
  double clip;
  py::object windows;
  Index threads;
};

// (k1, k2, whether each has the losses of all its steps, whether each has a dx of its own), or None.
Windows read_windows(const BackwardArrays& arrays, const Problem& p) {
  const auto given = tuple_of("windows", arrays.windows, 4, "(k1, k2, all_losses, each_dx)");
  if (!given) return {};
  const auto flag = [&](std::size_t i) { return (*given)[i].cast<bool>(); };
  const auto steps = [&](std::size_t i) {
    const auto n = (*given)[i].cast<Index>();
    if (n < 1) throw py::value_error("windows: expected k1 and k2 of at least 1, got " + std::to_string(n));
    return std::min(n, p.T);
  };
  if (arrays.clip > 0)
    throw py::value_error("clip_dh: expected none, since the gradients of windows are summed up before, got " +
                          std::to_string(arrays.clip));
  bool plain = p.D == 1 && !p.reverse && !p.first_row && !p.starts[0];
  for (const py::object* other :
       {&arrays.dh, &arrays.dc, &arrays.dc_steps, &arrays.flow, &arrays.dstart, &arrays.steps})
    plain = plain && other->is_none();
  if (!plain) throw py::value_error("windows: expected steps of B rows in one direction, and dy alone");
  Windows windows = {steps(0), steps(1), 0, flag(2), false, false};
  const Index k1 = windows.k1, count = (p.T + k1 - 1) / k1;
  windows.most = count - (p.T - windows.k2) / k1;  // at the step k2 before T
  // Of one at a time, all of them are one array as it is without windows.
  windows.each_dx = flag(3) && windows.most > 1 && p.input == InputKind::dense;
  windows.each_dy = windows.most > 1 && py::isinstance<py::array>(arrays.dy) && py::array(arrays.dy).ndim() == 4;
  return windows;
}

// Gives an output the elements of an input, or zeros.
template <class Real>
void set(std::optional<Output<Real>>& out, const std::optional<Input<Real>>& from = std::nullopt) {
  if (!out || out->array().size() == 0) return;
  const View<Real> to = out->view();
  const Index rows = out->array().size() / to.stride;
  for (Index row = 0; row < rows; ++row)
    if (from)
      std::copy_n(from->view().data + row * from->stride, to.stride, to.data + row * to.stride);
    else
      std::fill_n(to.data + row * to.stride, to.stride, Real(0));
}

template <class Real>
py::tuple backward_of(const TapeObject& tape, const Saved<Real>& saved, const BackwardArrays& arrays) {
  const CellShape& cell = *tape.problem.cell;
  Problem p = tape.problem;
  p.run = read_steps(arrays.steps, p);
  if (p.run.first == p.run.last) throw py::value_error("steps: expected at least one step, got none");
  const Windows windows = read_windows(arrays, p);
  const auto of_each_window = [&](Index n) { return Shape{p.T, windows.most, p.B, n}; };
  const Shape state_shape = {p.D, p.B, p.H}, run_shape = shape_of_run(p, p.D * p.H);
  refuse_c(cell, "dc", arrays.dc);
  refuse_c(cell, "dc_steps", arrays.dc_steps);
  if (arrays.dy.is_none() && arrays.dh.is_none() && arrays.dc.is_none() && arrays.dc_steps.is_none())
    throw py::value_error("dy, dh, dc: expected at least one gradient, got none");
  const Real clip = Real(arrays.clip);
  if (!(clip >= 0) || (clip == 0 && arrays.clip != 0))
    throw py::value_error("clip_dh: expected a positive bound, got " + text(py::float_(arrays.clip)));
  const auto dy_in = optional_input<Real>("dy", arrays.dy, windows.each_dy ? of_each_window(p.H) : run_shape);
  const auto dc_steps = optional_input<Real>("dc_steps", arrays.dc_steps, run_shape);
  const auto dh_in = optional_input<Real>("dh", arrays.dh, state_shape);
  const auto dc_in = optional_input<Real>("dc", arrays.dc, state_shape);

  TokenArrays own;
  if (tape.x) own = tokens_of_run(*tape.x, p, saved);
  const TokenArrays& tokens = tape.x ? own : tape.tokens;
  p.U = Index(tokens.token.size());

  const auto outs = tuple_of("out", arrays.out, 3, "(dx, dh0, dc0)");
  refuse_c(cell, "out[2]", entry(outs, 2));
  const bool need_dx = arrays.need_dx && p.input != InputKind::one_hot;
  if (!need_dx && !entry(outs, 0).is_none()) throw py::value_error("out[0]: expected None, since dx is not computed");
  std::optional<Output<Real>> dx, dh0, dc0, dh_flow, dc_flow, dh_start, dc_start;
  const Shape dx_shape = windows.each_dx   ? of_each_window(p.I)
                         : saved.embedding ? saved.embedding->array().shape()
                                           : shape_of_run(p, p.I);
  if (need_dx) dx = output<Real>("out[0]", entry(outs, 0), dx_shape);
  dh0 = output<Real>("out[1]", entry(outs, 1), state_shape);
  if (has_c(cell)) dc0 = output<Real>("out[2]", entry(outs, 2), state_shape);

  const auto flows = tuple_of("flow", arrays.flow, 2, "(dh, dc)");
  const auto starts = tuple_of("dstart", arrays.dstart, 2, "(dh, dc)");
  refuse_c(cell, "flow[1]", entry(flows, 1));
  refuse_c(cell, "dstart[1]", entry(starts, 1));
  if (!entry(flows, 0).is_none()) dh_flow = output<Real>("flow[0]", entry(flows, 0), run_shape);
  if (!entry(flows, 1).is_none()) dc_flow = output<Real>("flow[1]", entry(flows, 1), run_shape);
  const bool restarts = p.starts[0] || p.starts[1];
  if (starts || restarts) dh_start = output<Real>("dstart[0]", entry(starts, 0), state_shape, true);
  if ((starts || restarts) && has_c(cell)) dc_start = output<Real>("dstart[1]", entry(starts, 1), state_shape, true);

  const auto given = tuple_of("grads", arrays.grads, std::size_t(p.D), "(one tuple for each direction)");
  std::vector<std::optional<Output<Real>>> gradients;
  std::vector<std::string> names;
  for (Index d = 0; d < p.D; ++d) {
    const auto in = given ? tuple_of("grads", (*given)[std::size_t(d)], 4, parameter_content) : std::nullopt;
    if (given && !in) throw py::type_error("grads: expected a tuple " + std::string(parameter_content) + ", got None");
    for (int i = 0; i < 4; ++i) {
      const py::object array = entry(in, std::size_t(i));
      const std::string& name = names.emplace_back("grads[" + std::to_string(d) + "]: " + parameter_names[i]);
      const bool exists = saved.parameters[std::size_t(4 * d + i)].has_value();
      if (given && exists == array.is_none())
        throw py::type_error(name + ": expected " + (exists ? "an array, got None" : "None, got an array"));
      if (exists)
        gradients.emplace_back(output<Real>(name, array, parameter_shape(p, cell.gates, std::size_t(i)), true));
      else
        gradients.emplace_back();
    }
  }
  if (outs || given || flows || starts) {
    OverlapCheck check;
    read_all(check, saved);
    check.read("y", saved.y);
    check.read("dy", dy_in);
    check.read("dh", dh_in);
    check.read("dc", dc_in);
    check.read("dc_steps", dc_steps);
    check.written("out[0]", dx);
    check.written("out[1]", dh0);
    check.written("out[2]", dc0);
    check.written("flow[0]", dh_flow);
    check.written("flow[1]", dc_flow);
    check.written("dstart[0]", dh_start);
    check.written("dstart[1]", dc_start);
    for (std::size_t i = 0; i < gradients.size(); ++i) check.written(names[i], gradients[i]);
    check.run();
  }

  // The gradients of the states are carried in place, from the last states' to the initial states'.
  const auto begin = [&] {
    set(dh0, dh_in);
    set(dc0, dc_in);
    if (restarts && !starts) set<Real>(dh_start), set<Real>(dc_start);
    // The kernels write what belongs to tokens that occur.
    if (saved.embedding) set<Real>(dx);
    for (std::size_t d = 0; d < std::size_t(p.D) && p.input == InputKind::one_hot && !given; ++d)
      set<Real>(gradients[4 * d]);
  };

  if (p.B > 0) {
    const Index threads = team_size((need_dx ? 2 : 1.5) * flops(p), most_members(p), checked_threads(arrays.threads));
    const Buffer scratch(std::size_t(kernels<Real>().backward_scratch(p, need_dx, windows)) * sizeof(Real));
    const TokenLinks links = link(tokens);
    BackwardArgs<Real> args = {p,
                               rows_of(saved),
                               dx ? dx->view() : View<Real>{nullptr, 0},
                               {},
                               given.has_value(),
                               static_cast<Real*>(scratch.data()),
                               view(tokens, links),
                               held_as<Real>(tape.held),
                               clip,
                               windows};
    for (Index d = 0; d < p.D; ++d) {
      const auto gradient = [&](int i) {
        auto& array = gradients[std::size_t(4 * d + i)];
        return array ? array->view().data : nullptr;
      };
      const auto side = [&](auto& array, auto view) {  // of rows [.., D·H]
        if (array) view = {array->view().data + d * p.H, array->stride};
        return view;
      };
      constexpr View<const Real> no_input = {nullptr, 0};
      constexpr View<Real> no_output = {nullptr, 0};
      args.directions[d] = {.parameters = parameters_of(saved.parameters, d),
                            .initial = {direction_of(saved.h0, p, d), direction_of(saved.c0, p, d)},
                            .start = {direction_of(saved.h_start, p, d), direction_of(saved.c_start, p, d)},
                            .y = {static_cast<const Real*>(saved.y.data()) + d * p.H, p.D * p.H},
                            .dsteps = {side(dy_in, no_input), side(dc_steps, no_input)},
                            .tape = tape_of<const Real>(tape.memory, p, d),
                            .dstate = {direction_of(dh0, p, d), direction_of(dc0, p, d)},
                            .dstart = {direction_of(dh_start, p, d), direction_of(dc_start, p, d)},
                            .flow = {side(dh_flow, no_output), side(dc_flow, no_output)},
                            .gradients = {gradient(0), gradient(1), gradient(2), gradient(3)}};
    }
    const bool adds = given || starts;
    call(
        threads, [&](const Team& team) { kernels<Real>().backward(args, team); },
        adds ? Interruption::once : Interruption::restart, begin);
  } else {
    begin();
    for (auto& gradient : gradients)
      if (!given) set<Real>(gradient);
  }
  if (restarts && !starts) {
    const auto add = [](const auto& sum, const auto& other) {
      const py::array total = sum->array().view();
      called(numpy().attr("add"), py::make_tuple(total, other->array().view(), total));
    };
    add(dh0, dh_start);
    if (dc0) add(dc0, dc_start);
  } else {
    finish(dh_start), finish(dc_start);
  }
  finish(dh_flow), finish(dc_flow);

  py::list results;
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    py::tuple direction(4);
    for (std::size_t i = 0; i < 4; ++i) direction[i] = finish(gradients[4 * d + i]);
    results.append(direction);
  }
  return py::make_tuple(finish(dx), finish(dh0), finish(dc0), results);
}

// ---- Steps as they come --------------------------------------------------------------------------------------------

void require_steps_to_come(const TapeObject& tape) {
  if (!steps_to_come(tape.problem))
    throw py::value_error("tape: expected one that was made for steps to come, got one whose run is over");
}

// Runs the steps (first, last) of a tape that was made for them: x holds their input now. The state before is that
// after the step before, which the tape still holds.
template <class Real>
py::tuple advance_of(TapeObject& tape, Saved<Real>& saved, const py::object& steps, const py::object& resets) {
  require_steps_to_come(tape);
  Problem p = tape.problem;
  p.run = read_steps(steps, p);
  std::vector<unsigned char>& starts = tape.schedule.starts[0];
  if (!resets.is_none()) {
    if (!p.starts[0] && p.B > 0) throw py::value_error("resets: expected None, since the tape was made without");
    const auto given = flags(resets, "resets", {p.run.last - p.run.first, p.B});
    std::copy(given.begin(), given.end(), starts.begin() + p.run.first * p.B);
  }
  TokenArrays tokens;
  if (tape.x) tokens = tokens_of_run(*tape.x, p, saved);
  p.U = Index(tokens.token.size());
  std::optional<Output<Real>> h, c;
  h = output<Real>("h", py::none(), {p.D, p.B, p.H});
  if (has_c(*tape.problem.cell)) c = output<Real>("c", py::none(), {p.D, p.B, p.H});
  const View<Real> y = {static_cast<Real*>(saved.y.data()), p.D * p.H};
  if (p.run.last > p.run.first) run_forward(p, tape, saved, tokens, y, h, c);
  return py::make_tuple(finish(h), finish(c));
}

// The first step of each chunk, and T.
std::vector<Index> first_steps(const Problem& p) {
  std::vector<Index> first_step(std::size_t(p.T) + 1);
  first_step.resize(std::size_t(kernels<float>().cut(p, first_step.data())) + 1);
  return first_step;
}

// Forgets the first steps, whole chunks of a tape of whole chunks, and moves the others to the front. x is the
// caller's to move.
template <class Real>
void shift_of(TapeObject& tape, Saved<Real>& saved, Index steps) {
  require_steps_to_come(tape);
  const Problem& p = tape.problem;
  const Index length = first_steps(p)[1];
  if (p.T % length)
    throw py::value_error("tape: expected one of a multiple of " + std::to_string(length) + " steps, got one of " +
                          std::to_string(p.T));
  if (steps < 0 || steps > p.T || steps % length)
    throw py::value_error("steps: expected a multiple of " + std::to_string(length) + " up to " + std::to_string(p.T) +
                          ", got " + std::to_string(steps));
  const auto move = [&](void* data, std::size_t bytes) {
    if (!data) return;
    const std::size_t gone = bytes / std::size_t(p.T) * std::size_t(steps);
    std::memmove(data, static_cast<char*>(data) + gone, bytes - gone);
  };
  const TapeSize size = kernels<Real>().tape_size(p);
  const auto move_memory = [&](const Memory& memory, Index elements) {
    move(memory.data(), std::size_t(elements) * sizeof(Real));
  };
  const TapeMemory<Memory>& memory = tape.memory;
  move_memory(memory.gates, size.gates), move_memory(memory.states, size.states),
      move_memory(memory.reset_h, size.reset_h);
  move(saved.y.data(), std::size_t(saved.y.nbytes()));
  move(tape.schedule.starts[0].data(), tape.schedule.starts[0].size());
}

py::array_t<Index> chunks(const py::object& batch_sizes, Index T, Index B, Index H) {
  Problem p = {};
  p.T = T, p.B = B, p.H = H;
  std::vector<Index> first_row;
  if (!batch_sizes.is_none()) first_row = read_batch_sizes(batch_sizes), p.first_row = first_row.data();
  if (T < 1 || B < 0 || H < 1 || double(T) * double(B) > most_elements ||
      (p.first_row && Index(first_row.size()) != T + 1))
    throw py::value_error("T, B, H: expected sizes of a call, got " + shape_text({T, B, H}));
  const std::vector<Index> first_step = first_steps(p);
  return py::array_t<Index>(Index(first_step.size()), first_step.data());
}

// Elements of a tape's memory for one row of one direction.
py::tuple tape_row(const py::object& cell, Index H, const py::object& dtype) {
  if (H < 1 || double(H) > most_elements) throw py::value_error("H: expected a size, got " + std::to_string(H));
  Problem p = {};
  p.cell = &cell_named(cell), p.T = p.B = p.D = 1, p.H = H;
  const py::dtype type = py::dtype::from_args(dtype);
  const bool is_float = type.equal(py::dtype::of<float>());
  if (!is_float && !type.equal(py::dtype::of<double>()))
    throw py::type_error("dtype: expected float32 or float64, got " + text(type));
  const TapeSize size = is_float ? kernels<float>().tape_size(p) : kernels<double>().tape_size(p);
  return py::make_tuple(size.gates, size.states, size.reset_h);
}

// c of every step, [N,D·H] or None: the tape's own memory.
template <class Real>
py::object c_of(const py::object& owner, const TapeObject& tape) {
  if (!has_c(*tape.problem.cell)) return py::none();
  const Problem& p = tape.problem;
  py::array_t<Real> c({rows_of(p), p.D * p.H}, static_cast<const Real*>(tape.memory.states.data()), owner);
  c.attr("setflags")("write"_a = false);
  return c;
}

// A gate of every step, [N,D·H].
template <class Real>
py::array gate_of(const TapeObject& tape, const std::string& name) {
  const Problem& p = tape.problem;
  const std::string gates = p.cell->letters;
  const std::size_t gate = name.size() == 1 ? gates.find(name) : gates.npos;
  if (gate == gates.npos) throw py::value_error("gate: expected one of '" + gates + "', got '" + name + "'");
  const py::array out = new_array<Real>({rows_of(p), p.D * p.H});
  for (Index d = 0; d < p.D && p.B > 0; ++d)
    kernels<Real>().gate(p, tape_of<const Real>(tape.memory, p, d).gates, int(gate),
                         {static_cast<Real*>(const_cast<void*>(out.data())) + d * p.H, p.D * p.H});
  return out;
}

TapeObject& tape_in(const py::object& object) {
  if (!py::isinstance<TapeObject>(object))
    throw py::type_error("tape: expected a tape of forward, got " + type_name(object));
  return object.cast<TapeObject&>();
}

// f<Real>(tape, its arrays), by the dtype of the tape.
template <class F>
auto with_tape(const py::object& object, F&& f) {
  TapeObject& tape = tape_in(object);
  return std::visit([&](auto& saved) { return f(tape, saved); }, tape.saved);
}

template <bool training>
py::tuple forward(const py::object& cell, const py::object& x, const py::object& parameters, const py::object& h0,
                  const py::object& c0, const py::object& out, const py::object& embedding,
                  const py::object& batch_sizes, const py::object& resets, const py::object& ends,
                  const py::object& start, const py::object& gate_override, bool reverse, const py::object& steps,
                  Index threads, const py::object& memory) {
  const CellShape& shape = cell_named(cell);
  InputArrays in = {as_array(x, "x"), std::nullopt};
  if (!embedding.is_none()) in.embedding = as_array(embedding, "embedding");
  const ParameterArrays arrays = read_parameters(parameters);
  const auto run = [&]<class Real> {
    return forward_of<Real>(shape, in, {batch_sizes, resets, ends, reverse}, arrays, {h0, c0, start, out, memory},
                            gate_override, training, steps, threads);
  };
  return is_double("w_ih", *arrays[0]) ? run.template operator()<double>() : run.template operator()<float>();
}

}  // namespace

void bind_layers(py::module_& m) {
  py::class_<TapeObject> tape_type(m, "Tape", py::is_final(),
                                   "What a training forward keeps for its backward. Opaque and read-only.");
  auto& type = *reinterpret_cast<PyTypeObject*>(tape_type.ptr());
  type.tp_new = nullptr;                                      // forward alone makes tapes
  type.tp_alloc = [](PyTypeObject* self, Py_ssize_t items) {  // pybind11 goes on with a null pointer
    PyObject* const object = PyType_GenericAlloc(self, items);
    if (!object) throw py::error_already_set();
    return object;
  };
  // Annotations can say Tape[State].
  const py::object alias = py::module_::import("types").attr("GenericAlias");
  tape_type.attr("__class_getitem__") = py::reinterpret_steal<py::object>(PyClassMethod_New(alias.ptr()));
  tape_type
      .def("__repr__",
           [](const TapeObject& tape) {
             const Problem& p = tape.problem;
             return py::str("<Tape of {}, T={}, B={}, I={}, H={}, D={}>").format(p.cell->name, p.T, p.B, p.I, p.H, p.D);
           })
      .def_property_readonly("cell", [](const TapeObject& tape) { return tape.problem.cell->name; })
      .def_property_readonly("gates", [](const TapeObject& tape) { return tape.problem.cell->letters; })
      .def_property_readonly("nbytes",
                             [](const TapeObject& tape) {
                               return tape.memory.gates.bytes() + tape.memory.states.bytes() +
                                      tape.memory.reset_h.bytes();
                             })
      .def_property_readonly("c",
                             [](const py::object& object) {
                               return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
                                 return c_of<Real>(object, tape);
                               });
                             })
      .def_property_readonly("memory",
                             [](const py::object& object) {
                               return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
                                 return memory_of<Real>(object, tape);
                               });
                             })
      .def(
          "gate",
          [](const py::object& object, const std::string& name) {
            return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
              return gate_of<Real>(tape, name);
            });
          },
          "name"_a);

  const auto def_forward = [&](const char* name, auto function) {
    m.def(name, function, "cell"_a, "x"_a, "parameters"_a, "h0"_a = py::none(), "c0"_a = py::none(),
          "out"_a = py::none(), "embedding"_a = py::none(), py::kw_only(), "batch_sizes"_a = py::none(),
          "resets"_a = py::none(), "ends"_a = py::none(), "start"_a = py::none(), "gate_override"_a = py::none(),
          "reverse"_a = false, "steps"_a = py::none(), "threads"_a = 0, "memory"_a = py::none());
  };
  def_forward("inference", &forward<false>);
  def_forward("forward", &forward<true>);
  m.def(
      "advance",
      [](const py::object& object, const py::object& steps, const py::object& resets) {
        return with_tape(object, [&](TapeObject& tape, auto& saved) { return advance_of(tape, saved, steps, resets); });
      },
      "tape"_a, "steps"_a, "resets"_a = py::none());
  m.def(
      "shift",
      [](const py::object& object, Index steps) {
        with_tape(object, [&](TapeObject& tape, auto& saved) { shift_of(tape, saved, steps); });
      },
      "tape"_a, "steps"_a);
  m.def("tape_row", &tape_row, "cell"_a, "H"_a, "dtype"_a);
  m.def("chunks", &chunks, "batch_sizes"_a, "T"_a, "B"_a, "H"_a);
  m.def(
      "check_gate_override",
      [](const py::object& cell, const py::object& held, const py::dtype& dtype) {
        const CellShape& shape = cell_named(cell);
        dtype.equal(py::dtype::of<double>()) ? read_held<double>(shape, held) : read_held<float>(shape, held);
      },
      "cell"_a, "gate_override"_a, "dtype"_a);
  m.def(
      "backward",
      [](const py::object& object, const py::object& dy, const py::object& dh, const py::object& dc, bool need_dx,
         const py::object& grads, const py::object& out, const py::object& dc_steps, double clip_dh,
         const py::object& flow, const py::object& dstart, const py::object& steps, const py::object& windows,
         Index threads) {
        const BackwardArrays arrays = {dy,     dh,    dc,      dc_steps, grads,   out,    flow,
                                       dstart, steps, need_dx, clip_dh,  windows, threads};
        return with_tape(object,
                         [&](const TapeObject& tape, const auto& saved) { return backward_of(tape, saved, arrays); });
      },
      "tape"_a, "dy"_a = py::none(), "dh"_a = py::none(), "dc"_a = py::none(), "need_dx"_a = true,
      "grads"_a = py::none(), "out"_a = py::none(), py::kw_only(), "dc_steps"_a = py::none(), "clip_dh"_a = 0.0,
      "flow"_a = py::none(), "dstart"_a = py::none(), "steps"_a = py::none(), "windows"_a = py::none(),
      "threads"_a = 0);
}

}  // namespace rnnfast
