// The calls of the layers: memory is allocated, the GIL is released, the kernel is called. What arguments.h and this
// file have checked is not checked again, and nothing is computed here.
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
#include "python/tape.h"
#include "python/tokens.h"
#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "types.h"

namespace rnnfast {
namespace {

template <class Real>
py::tuple forward_of(const CellShape& cell, const InputArrays& in, const Sequences& sequences,
                     ParameterArrays parameters, const ForwardObjects& given, const ForwardOptions& options) {
  ForwardCall<Real> call;
  prepare(call, cell, in, sequences, std::move(parameters), given, options);
  const TapeObject& tape = *call.tape;
  const Problem& p = tape.problem;
  if (p.run.last > p.run.first && given.memory.is_none()) run_forward(p, tape, call.saved, tape.tokens, call.last);
  return finish(call);
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// What a backward is given beside the tape.
struct BackwardObjects {
  py::object dy, dstate, dsteps, grads, out;
  py::object flow;    // the gradients of all states of every step, filled; None: not wanted
  py::object dstart;  // the gradients of `start` of forward are added into these; None: into dstate0
  py::object steps;
  bool need_dx;
  double clip;
  py::object windows;
  Index threads;
};

// (k1, k2, whether each has the losses of all its steps, whether each has a dx of its own), or None.
Windows read_windows(const BackwardObjects& given, const Problem& p, bool dropped) {
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
  for (const py::object* other : {&given.dstate, &given.dsteps, &given.flow, &given.dstart, &given.steps})
    plain = plain && other->is_none();
  if (p.masks) throw py::value_error("windows: expected None, since h' has recurrent_factors");
  if (dropped) throw py::value_error("windows: expected None, since candidates are dropped");
  if (!plain) throw py::value_error("windows: expected steps of B rows in one direction, and dy alone");
  Windows windows = {
      .k1 = steps(0), .k2 = steps(1), .most = 0, .all_losses = flag(2), .each_dy = false, .each_dx = false};
  const Index k1 = windows.k1, count = (p.T + k1 - 1) / k1;
  windows.most = count - (p.T - windows.k2) / k1;  // at the step k2 before T
  // Of one at a time, all of them are one array as it is without windows.
  windows.each_dx = flag(3) && windows.most > 1 && p.input == InputKind::dense;
  windows.each_dy = windows.most > 1 && py::isinstance<py::array>(given.dy) && py::array(given.dy).ndim() == 4;
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
  std::vector<std::string> names;
  bool are_given;
};

template <class Real>
GradientOutputs<Real> gradient_outputs(const py::object& grads, const Problem& p, const Saved<Real>& saved) {
  const CellShape& cell = *p.cell;
  const std::size_t count = parameter_count(p);
  const std::string content = parameter_content(cell, is_projected(p));
  const auto given = tuple_of("grads", grads, std::size_t(p.D), "(one tuple for each direction)");
  GradientOutputs<Real> gradients = {.arrays = {}, .names = {}, .are_given = given.has_value()};
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    const auto direction = given ? tuple_of("grads", (*given)[d], count, content) : std::nullopt;
    if (given && !direction) throw py::type_error("grads: expected a tuple " + content + ", got None");
    for (std::size_t i = 0; i < count; ++i) {
      const py::object array = entry(direction, i);
      const std::string& name =
          gradients.names.emplace_back("grads[" + std::to_string(d) + "]: " + parameter_name(cell, i));
      const bool is_own = i >= weight_count && i < parameter_count(cell, false);  // the cell's
      const bool is_unwanted = given && is_own && array.is_none();
      const bool exists = saved.parameters[count * d + i].has_value() && !is_unwanted;
      if (given && !is_unwanted && exists == array.is_none())
        throw py::type_error(name + ": expected " + (exists ? "an array, got None" : "None, got an array"));
      if (exists)
        gradients.arrays.emplace_back(output<Real>(name, array, parameter_shape(p, i), true));
      else
        gradients.arrays.emplace_back();
    }
  }
  return gradients;
}

template <class Real>
py::tuple backward_of(const TapeObject& tape, const Saved<Real>& saved, const BackwardObjects& given) {
  const CellShape& cell = *tape.problem.cell;
  Problem p = tape.problem;
  p.run = read_steps(given.steps, p);
  if (p.run.first == p.run.last) throw py::value_error("steps: expected at least one step, got none");
  const Windows windows = read_windows(given, p, tape.candidates.kept.has_value());
  const auto of_each_window = [&](Index n) { return Shape{p.T, windows.most, p.B, n}; };
  const auto steps_shape = [&](std::size_t s) { return shape_of_run(p, p.D * state_size(p, s)); };
  StateObjects dsteps_objects = state_objects(cell, dsteps_names, given.dsteps);
  dsteps_objects[0] = given.dy;
  const StateObjects dstate_objects = state_objects(cell, dstate_names, given.dstate);
  if (all_none(dsteps_objects) && all_none(dstate_objects))
    throw py::value_error("dy, dstate: expected at least one gradient, got none");
  const Real clip = Real(given.clip);
  if (!(clip >= 0) || (clip == 0 && given.clip != 0))
    throw py::value_error("clip_dh: expected a positive bound, got " + text(py::float_(given.clip)));
  StateInputs<Real> dsteps;
  dsteps[0] = optional_input<Real>("dy", given.dy, windows.each_dy ? of_each_window(p.P) : steps_shape(0));
  for (std::size_t s = 1; s < std::size_t(cell.state_count); ++s)
    dsteps[s] = optional_input<Real>(dsteps_names.of(cell, int(s)), dsteps_objects[s], steps_shape(s));
  const auto dlast = state_inputs<Real>(p, dstate_names, dstate_objects);

  TokenArrays own;
  if (tape.x) own = tokens_of_run(*tape.x, p, saved);
  const TokenArrays& tokens = tape.x ? own : tape.tokens;
  p.U = Index(tokens.token.size());

  const auto outs = tuple_of("out", given.out, 2, "(dx, dstate0)");
  const bool need_dx = given.need_dx && p.input != InputKind::one_hot;
  if (!need_dx && !entry(outs, 0).is_none()) throw py::value_error("out[0]: expected None, since dx is not computed");
  std::optional<Output<Real>> dx;
  const Shape dx_shape = windows.each_dx   ? of_each_window(p.I)
                         : saved.embedding ? saved.embedding->array().shape()
                                           : shape_of_run(p, p.I);
  if (need_dx) dx = output<Real>("out[0]", entry(outs, 0), dx_shape);
  const auto dstate0 = state_outputs<Real>(p, out_names, entry(outs, 1));

  const StateObjects flow_objects = state_objects(cell, flow_names, given.flow);
  StateOutputs<Real> flow, dstart;
  for (std::size_t s = 0; s < most_states; ++s)
    if (!flow_objects[s].is_none())
      flow[s] = output<Real>(flow_names.of(cell, int(s)), flow_objects[s], steps_shape(s));
  const bool adds_to_start = !given.dstart.is_none(), restarts = p.starts[0] || p.starts[1];
  if (adds_to_start || restarts) dstart = state_outputs<Real>(p, dstart_names, given.dstart, true);

  const GradientOutputs<Real> gradients = gradient_outputs(given.grads, p, saved);
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
    for (std::size_t i = 0; i < gradients.arrays.size(); ++i) check.written(gradients.names[i], gradients.arrays[i]);
    check.run();
  }

  // The gradients of the states are carried in place, from the last states' to the initial states'.
  const auto begin = [&] {
    for (std::size_t s = 0; s < most_states; ++s) {
      set(dstate0[s], dlast[s]);
      if (restarts && !adds_to_start) set<Real>(dstart[s]);
    }
    // The kernels write what belongs to tokens that occur.
    if (saved.embedding) set<Real>(dx);
    for (std::size_t d = 0; d < std::size_t(p.D) && p.input == InputKind::one_hot && !gradients.are_given; ++d)
      set<Real>(gradients.arrays[parameter_count(p) * d]);
  };

  const Index most = checked_threads(given.threads);
  if (p.B > 0) {
    const Buffer scratch(std::size_t(kernels<Real>().backward_scratch(p, need_dx, windows)) * sizeof(Real));
    const TokenLinks links = link(tokens);
    BackwardArgs<Real> args = {.problem = p,
                               .x = rows_of_input(saved),
                               .dx = dx ? dx->view() : View<Real>{},
                               .directions = {},
                               .accumulate = gradients.are_given,
                               .scratch = static_cast<Real*>(scratch.data()),
                               .tokens = view(tokens, links),
                               .held = held_as<Real>(tape.held),
                               .clip = clip,
                               .windows = windows};
    const StateViews<const Real> initial = views_of(saved.initial);
    const BackwardArrays<Real> arrays = {.parameters = parameters_of<const Real>(p, saved.parameters),
                                         .initial = initial,
                                         .start = saved.start ? views_of(*saved.start) : initial,
                                         .y = {static_cast<const Real*>(saved.y.data()), p.D * p.P},
                                         .dsteps = views_of(dsteps),
                                         .dstate = views_of(dstate0),
                                         .dstart = views_of(dstart),
                                         .flow = views_of(flow),
                                         .gradients = parameters_of<Real>(p, gradients.arrays),
                                         .renewed = bits_of(tape.zoneout),
                                         .factors = saved.factors ? saved.factors->view() : View<const Real>{},
                                         .kept = tape.candidates.view()};
    for (std::size_t s = 0; s < most_states; ++s) args.zoneout[s] = Real(tape.zoneout.rate[s]);
    args.candidate_scale = Real(tape.candidates.scale());
    set_directions(args, arrays, tape.memory);
    call(
        backward_threads(p, need_dx, most), [&](const Team& team) { kernels<Real>().backward(args, team); },
        gradients.are_given || adds_to_start ? Interruption::once : Interruption::restart, begin);
  } else {
    begin();
    for (const auto& gradient : gradients.arrays)
      if (!gradients.are_given) set<Real>(gradient);
  }
  for (std::size_t s = 0; s < most_states; ++s)
    if (restarts && !adds_to_start && dstate0[s]) {
      const py::array total = dstate0[s]->array().view();
      called(numpy().attr("add"), py::make_tuple(total, dstart[s]->array().view(), total));
    } else {
      finish(dstart[s]);
    }
  for (const auto& out : flow) finish(out);

  py::list by_direction;
  for (std::size_t d = 0; d < std::size_t(p.D); ++d) {
    py::tuple direction(parameter_count(p));
    for (std::size_t i = 0; i < direction.size(); ++i)
      direction[i] = finish(gradients.arrays[direction.size() * d + i]);
    by_direction.append(direction);
  }
  return py::make_tuple(finish(dx), finish(cell, dstate0), by_direction);
}

// ---- Steps as they come --------------------------------------------------------------------------------------------

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
  const CellShape& cell = *p.cell;
  const auto last = state_outputs<Real>(p, out_names, py::none());
  if (p.run.last > p.run.first) run_forward(p, tape, saved, tokens, last);
  return finish(cell, last);
}

template <bool training>
py::tuple forward(const py::object& cell, const py::object& x, const py::object& parameters, const py::object& state0,
                  const py::object& out, const py::object& embedding, const py::object& batch_sizes, Index threads,
                  const py::object& resets, const py::object& ends, const py::object& start,
                  const py::object& gate_override, bool reverse, const py::object& steps, const py::object& memory,
                  const py::object& recurrent_factors, const py::object& zoneout, const py::object& candidate_dropout,
                  const py::object& layer_norm_eps) {
  const CellShape& shape = cell_named(cell);
  InputArrays in = {.x = as_array(x, "x"), .embedding = std::nullopt};
  if (!embedding.is_none()) in.embedding = as_array(embedding, "embedding");
  ParameterArrays arrays = read_parameters(shape, parameters);
  const auto run = [&]<class Real> {
    return forward_of<Real>(
        shape, in, {.batch_sizes = batch_sizes, .resets = resets, .ends = ends, .reverse = reverse}, std::move(arrays),
        {.state0 = state0,
         .start = start,
         .out = out,
         .factors = recurrent_factors,
         .zoneout = zoneout,
         .candidates = candidate_dropout,
         .memory = memory},
        {.held = gate_override, .training = training, .steps = steps, .eps = layer_norm_eps, .threads = threads});
  };
  return is_double("w_ih", *arrays[0]) ? run.template operator()<double>() : run.template operator()<float>();
}

}  // namespace

// Arguments by name cost pybind11 2 µs a call: what calls without other options have comes first, in order.
void bind_layers(py::module_& m) {
  const auto def_forward = [&](const char* name, auto function) {
    m.def(name, function, "cell"_a, "x"_a, "parameters"_a, "state0"_a = py::none(), "out"_a = py::none(),
          "embedding"_a = py::none(), "batch_sizes"_a = py::none(), "threads"_a = 0, py::kw_only(),
          "resets"_a = py::none(), "ends"_a = py::none(), "start"_a = py::none(), "gate_override"_a = py::none(),
          "reverse"_a = false, "steps"_a = py::none(), "memory"_a = py::none(), "recurrent_factors"_a = py::none(),
          "zoneout"_a = py::none(), "candidate_dropout"_a = py::none(), "layer_norm_eps"_a = py::none());
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
      "check_gate_override",
      [](const py::object& cell, const py::object& held, const py::dtype& dtype) {
        const CellShape& shape = cell_named(cell);
        dtype.equal(py::dtype::of<double>()) ? read_held<double>(shape, held) : read_held<float>(shape, held);
      },
      "cell"_a, "gate_override"_a, "dtype"_a);
  m.def(
      "backward",
      [](const py::object& object, const py::object& dy, const py::object& dstate, bool need_dx,
         const py::object& grads, const py::object& out, Index threads, const py::object& dsteps, double clip_dh,
         const py::object& flow, const py::object& dstart, const py::object& steps, const py::object& windows) {
        const BackwardObjects given = {.dy = dy,
                                       .dstate = dstate,
                                       .dsteps = dsteps,
                                       .grads = grads,
                                       .out = out,
                                       .flow = flow,
                                       .dstart = dstart,
                                       .steps = steps,
                                       .need_dx = need_dx,
                                       .clip = clip_dh,
                                       .windows = windows,
                                       .threads = threads};
        return with_tape(object,
                         [&](const TapeObject& tape, const auto& saved) { return backward_of(tape, saved, given); });
      },
      "tape"_a, "dy"_a = py::none(), "dstate"_a = py::none(), "need_dx"_a = true, "grads"_a = py::none(),
      "out"_a = py::none(), "threads"_a = 0, py::kw_only(), "dsteps"_a = py::none(), "clip_dh"_a = 0.0,
      "flow"_a = py::none(), "dstart"_a = py::none(), "steps"_a = py::none(), "windows"_a = py::none());
}

}  // namespace rnnfast
