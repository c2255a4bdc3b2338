// The backward of a layer, from its arguments to its results: with the kernel between them, as layers.cpp has it, or
// with that of a whole stack, as stack.cpp does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/forward.h"
#include "python/interpreter.h"
#include "python/layers.h"
#include "python/tape.h"
#include "python/tokens.h"
#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "types.h"

namespace rnnfast {

// (k1, k2, whether each has the losses of all its steps, whether each has a dx of its own), or None.
inline Windows read_windows(const BackwardObjects& given, const Problem& p, bool dropped) {
  const auto numbers = tuple_of("windows", given.windows, 4, "(k1, k2, all_losses, each_dx)");
  if (!numbers) return {};
  const auto flag = [&](std::size_t i) { return (*numbers)[i].cast<bool>(); };
  const auto steps = [&](std::size_t i) {
    const auto n = (*numbers)[i].cast<Index>();
    if (n < 1) throw py::value_error("windows: expected k1 and k2 of at least 1, got " + std::to_string(n));
    return std::min(n, p.T);
  };
  if (given.clip > 0)
    throw py::value_error("clip_dh: expected none, since the gradients of windows are summed up before, got " +
                          std::to_string(given.clip));
  if (p.zoned) throw py::value_error("windows: expected None, since units of the tape's states keep their value");
  bool plain = p.D == 1 && !p.reverse && !p.first_row && !p.starts[0];
  for (const py::object* other : {&given.dsteps, &given.flow, &given.dstart, &given.steps})
    plain = plain && other->is_none();
  if (p.masks) throw py::value_error("windows: expected None, since h' has recurrent_factors");
  if (dropped) throw py::value_error("windows: expected None, since candidates are dropped");
  if (!plain || !has_none(given.dstate))
    throw py::value_error("windows: expected steps of B rows in one direction, and dy alone");
  Windows windows = {
      .k1 = steps(0), .k2 = steps(1), .most = 0, .all_losses = flag(2), .each_dy = false, .each_dx = false};
  const Index k1 = windows.k1, count = (p.T + k1 - 1) / k1;
  windows.most = count - (p.T - windows.k2) / k1;  // at the step k2 before T
  // Of one at a time, all of them are one array as it is without windows.
  windows.each_dx = flag(3) && windows.most > 1 && p.input == InputKind::dense;
  windows.each_dy = windows.most > 1 && given.dy && given.dy->ndim() == 4;
  return windows;
}

// Gives an output the elements of an input, or zeros.
template <class Real>
void set(const std::optional<Output<Real>>& out, const std::optional<Input<Real>>& from = std::nullopt) {
  if (!out || out->array().size() == 0) return;
  const View<Real> to = out->view();
  const Index rows = out->array().size() / to.stride;
  for (Index row = 0; row < rows; ++row)
    if (from)
      std::copy_n(from->view().data + row * from->stride, to.stride, to.data + row * to.stride);
    else
      std::fill_n(to.data + row * to.stride, to.stride, Real(0));
}

// Gradients of the parameters of each direction; none where a bias is missing, or where one is not wanted.
template <class Real>
struct GradientOutputs {
  std::vector<std::optional<Output<Real>>> arrays;
  std::vector<std::string> names;  // of those that are given
  bool are_given;
};

template <class Real>
GradientOutputs<Real> gradient_outputs(const py::object& grads, const Problem& p, const Saved<Real>& saved,
                                       const Results& results) {
  const CellShape& cell = *p.cell;
  const std::size_t count = parameter_count(p);
  const auto content = [&] { return parameter_content(cell, is_projected(p)); };
  const auto given = tuple_of("grads", grads, std::size_t(p.D), "(one tuple for each direction)");
  GradientOutputs<Real> gradients = {.arrays = {}, .names = {}, .are_given = given.has_value()};
  gradients.arrays.reserve(count * std::size_t(p.D));
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    const auto direction = given ? tuple_of("grads", (*given)[d], count, content) : std::nullopt;
    if (given && !direction) throw py::type_error("grads: expected a tuple " + content() + ", got None");
    for (std::size_t i = 0; i < count; ++i) {
      const py::object array = entry(direction, i);
      std::string name = parameter_name(cell, i);
      if (given) name = gradients.names.emplace_back("grads[" + std::to_string(d) + "]: " + name);
      const bool is_own = i >= weight_count && i < parameter_count(cell, false);  // the cell's
      const bool is_unwanted = given && is_own && array.is_none();
      const bool exists = saved.parameters[count * d + i].has_value() && !is_unwanted;
      if (given && !is_unwanted && exists == array.is_none())
        throw py::type_error(name + ": expected " + (exists ? "an array, got None" : "None, got an array"));
      if (exists)
        gradients.arrays.emplace_back(output<Real>(name, array, parameter_shape(p, i), true, results));
      else
        gradients.arrays.emplace_back();
    }
  }
  return gradients;
}

// A backward between its arguments and its results.
template <class Real>
struct BackwardCall {
  BackwardCall(const TapeObject& of, const Saved<Real>& arrays) : tape(of), saved(arrays), problem(of.problem) {}
  BackwardCall(const BackwardCall&) = delete;
  BackwardCall& operator=(const BackwardCall&) = delete;

  const TapeObject& tape;
  const Saved<Real>& saved;
  Problem problem;
  Windows windows = {};
  StateInputs<Real> dsteps, dlast;
  TokenArrays own;  // of the run's steps, where they came one after the other
  TokenLinks links;
  std::optional<Output<Real>> dx;
  StateOutputs<Real> dstate0, flow, dstart;
  GradientOutputs<Real> gradients;
  bool need_dx = false, need_dstate0 = true, adds_to_start = false, restarts = false;
  Real clip = 0;
  Index threads = 0;

  const TokenArrays& tokens() const { return tape.x ? own : tape.tokens; }

  // What is added to in place cannot begin anew.
  Interruption interruption() const {
    return gradients.are_given || adds_to_start ? Interruption::once : Interruption::restart;
  }
};

// Checks the arguments, and makes room for the results.
template <class Real>
void prepare(BackwardCall<Real>& call, const BackwardObjects& given) {
  const TapeObject& tape = call.tape;
  const Saved<Real>& saved = call.saved;
  const CellShape& cell = *tape.problem.cell;
  Problem& p = call.problem;
  p.run = read_steps(given.steps, p);
  if (p.run.first == p.run.last) throw py::value_error("steps: expected at least one step, got none");
  const Windows& windows = call.windows = read_windows(given, p, tape.candidates.kept.has_value());
  const auto of_each_window = [&](Index n) { return Shape{p.T, windows.most, p.B, n}; };
  const auto steps_shape = [&](std::size_t s) { return shape_of_run(p, p.D * state_size(p, s)); };
  StateArrays dsteps_arrays = state_arrays(cell, dsteps_names, given.dsteps);
  dsteps_arrays[0] = given.dy;
  if (has_none(dsteps_arrays) && has_none(given.dstate))
    throw py::value_error("dy, dstate: expected at least one gradient, got none");
  const Real clip = call.clip = Real(given.clip);
  if (!(clip >= 0) || (clip == 0 && given.clip != 0))
    throw py::value_error("clip_dh: expected a positive bound, got " + text(py::float_(given.clip)));
  StateInputs<Real>& dsteps = call.dsteps;
  for (std::size_t s = 0; s < most_states; ++s)
    if (dsteps_arrays[s])
      dsteps[s] = input<Real>(s ? dsteps_names.of(cell, int(s)) : "dy", *std::move(dsteps_arrays[s]),
                              s == 0 && windows.each_dy ? of_each_window(p.P) : steps_shape(s));
  const StateInputs<Real>& dlast = call.dlast = state_inputs<Real>(p, dstate_names, given.dstate);

  if (tape.x) call.own = tokens_of_run(*tape.x, p, saved);
  p.U = Index(call.tokens().token.size());

  const auto outs = tuple_of("out", given.out, 2, "(dx, dstate0)");
  const bool need_dx = call.need_dx = given.need_dx && p.input != InputKind::one_hot;
  if (!need_dx && !entry(outs, 0).is_none()) throw py::value_error("out[0]: expected None, since dx is not computed");
  std::optional<Output<Real>>& dx = call.dx;
  const Shape dx_shape = windows.each_dx   ? of_each_window(p.I)
                         : saved.embedding ? saved.embedding->array().shape()
                                           : shape_of_run(p, p.I);
  if (need_dx) dx = output<Real>("out[0]", entry(outs, 0), dx_shape, false, given.results);
  const StateOutputs<Real>& dstate0 = call.dstate0 =
      state_outputs<Real>(p, out_names, entry(outs, 1), false, given.results);
  call.need_dstate0 = given.need_dstate0;

  const StateObjects flow_objects = state_objects(cell, flow_names, given.flow);
  StateOutputs<Real>&flow = call.flow, &dstart = call.dstart;
  for (std::size_t s = 0; s < most_states; ++s)
    if (!flow_objects[s].is_none())
      flow[s] = output<Real>(flow_names.of(cell, int(s)), flow_objects[s], steps_shape(s));
  const bool adds_to_start = call.adds_to_start = !given.dstart.is_none();
  const bool restarts = call.restarts = p.starts[0] || p.starts[1];
  if (adds_to_start || restarts) dstart = state_outputs<Real>(p, dstart_names, given.dstart, true);

  const GradientOutputs<Real>& gradients = call.gradients = gradient_outputs(given.grads, p, saved, given.results);
  if (outs || gradients.are_given || !given.flow.is_none() || adds_to_start) {
    OverlapCheck check;
    read_all(check, p, saved);
    check.read("y", saved.y);
    check.read("dy", dsteps[0]);
    read_states(check, cell, dsteps_names, dsteps);
    read_states(check, cell, dstate_names, dlast);
    check.written("out[0]", dx);
    write_states(check, cell, out_names, dstate0);
    write_states(check, cell, flow_names, flow);
    write_states(check, cell, dstart_names, dstart);
    for (std::size_t i = 0; i < gradients.names.size(); ++i) check.written(gradients.names[i], gradients.arrays[i]);
    check.run();
  }

  call.threads = checked_threads(given.threads);
  if (p.B > 0) call.links = link(call.tokens());
}

// The gradients of the states are carried in place, from the last states' to the initial states'.
template <class Real>
void begin(const BackwardCall<Real>& call) {
  const Problem& p = call.problem;
  for (std::size_t s = 0; s < most_states; ++s) {
    set(call.dstate0[s], call.dlast[s]);
    if (call.restarts && !call.adds_to_start) set<Real>(call.dstart[s]);
  }
  // The kernels write what belongs to tokens that occur.
  if (call.saved.embedding) set<Real>(call.dx);
  for (std::size_t d = 0; d < std::size_t(p.D) && p.input == InputKind::one_hot && !call.gradients.are_given; ++d)
    set<Real>(call.gradients.arrays[parameter_count(p) * d]);
}

// As the kernel takes them; scratch is still to come.
template <class Real>
BackwardArgs<Real> backward_args(const BackwardCall<Real>& call) {
  const Problem& p = call.problem;
  const TapeObject& tape = call.tape;
  const Saved<Real>& saved = call.saved;
  BackwardArgs<Real> args = {.problem = p,
                             .x = rows_of_input(saved),
                             .dx = call.dx ? call.dx->view() : View<Real>{},
                             .directions = {},
                             .accumulate = call.gradients.are_given,
                             .scratch = nullptr,
                             .tokens = view(call.tokens(), call.links),
                             .held = held_as<Real>(tape.held),
                             .clip = call.clip,
                             .windows = call.windows};
  const StateViews<const Real> initial = views_of(saved.initial);
  const BackwardArrays<Real> arrays = {.parameters = parameters_of<const Real>(p, saved.parameters),
                                       .initial = initial,
                                       .start = saved.start ? views_of(*saved.start) : initial,
                                       .y = {static_cast<const Real*>(saved.y.data()), p.D * p.P},
                                       .dsteps = views_of(call.dsteps),
                                       .dstate = views_of(call.dstate0),
                                       .dstart = views_of(call.dstart),
                                       .flow = views_of(call.flow),
                                       .gradients = parameters_of<Real>(p, call.gradients.arrays),
                                       .renewed = bits_of(tape.zoneout),
                                       .factors = saved.factors ? saved.factors->view() : View<const Real>{},
                                       .kept = tape.candidates.view()};
  for (std::size_t s = 0; s < most_states; ++s) args.zoneout[s] = Real(tape.zoneout.rate[s]);
  args.candidate_scale = Real(tape.candidates.scale());
  args.need_dstate0 = call.need_dstate0;
  set_directions(args, arrays, tape.memory);
  return args;
}

// dx, the gradients of the initial state, and those of the parameters of each direction.
template <class Real>
py::tuple finish(const BackwardCall<Real>& call) {
  const Problem& p = call.problem;
  const auto& dstate0 = call.dstate0;
  const auto& gradients = call.gradients;
  for (std::size_t s = 0; s < most_states; ++s)
    if (call.restarts && !call.adds_to_start && dstate0[s]) {
      const py::array total = dstate0[s]->array().view();
      called(numpy().attr("add"), py::make_tuple(total, call.dstart[s]->array().view(), total));
    } else {
      finish(call.dstart[s]);
    }
  for (const auto& out : call.flow) finish(out);

  py::list by_direction;
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    py::tuple direction(parameter_count(p));
    for (std::size_t i = 0; i < direction.size(); ++i)
      direction[i] = finish(gradients.arrays[direction.size() * d + i]);
    by_direction.append(direction);
  }
  return py::make_tuple(finish(call.dx), finish(*p.cell, dstate0), by_direction);
}

}  // namespace rnnfast
