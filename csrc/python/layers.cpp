// The calls of the layers: memory is allocated, the GIL is released, the kernel is called. What arguments.h and this
// file have checked is not checked again, and nothing is computed here.
#include "python/layers.h"

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/backward.h"
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
                     GivenParameters parameters, const ForwardObjects& given) {
  ForwardCall<Real> call;
  prepare(call, cell, in, sequences, std::move(parameters), given);
  const TapeObject& tape = *call.tape;
  const Problem& p = tape.problem;
  if (p.run.last > p.run.first && given.memory.is_none()) run_forward(p, tape, call.saved, tape.tokens, call.last);
  return finish(call);
}

template <class Real>
py::tuple backward_of(const TapeObject& tape, const Saved<Real>& saved, const BackwardObjects& given) {
  BackwardCall<Real> call(tape, saved);
  prepare(call, given);
  const Problem& p = call.problem;
  if (p.B > 0) {
    const Buffer scratch(std::size_t(kernels<Real>().backward_scratch(p, call.need_dx, call.windows)) * sizeof(Real));
    BackwardArgs<Real> args = backward_args(call);
    args.scratch = static_cast<Real*>(scratch.data());
    rnnfast::call(
        backward_threads(p, call.need_dx, call.threads),
        [&](const Team& team) { kernels<Real>().backward(args, team); }, call.interruption(), [&] { begin(call); });
  } else {
    begin(call);
    for (const auto& gradient : call.gradients.arrays)
      if (!call.gradients.are_given) set<Real>(gradient);
  }
  return finish(call);
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

// Parameters of a direction, of fewer bits, packed for any number of calls.
std::shared_ptr<PackedParameters> pack(const py::object& name, const py::object& parameters) {
  const CellShape& cell = cell_named(name);
  const auto packed = std::make_shared<PackedParameters>();
  packed->cell = &cell;
  packed->given = read_parameters(cell, py::make_tuple(parameters));
  Problem p = problem_of(cell, {});
  read_sizes(packed->given, p);
  if (p.format == Format::real || !packed->given.packed.empty())
    throw py::type_error("parameters: expected arrays of fewer bits, got others");
  packed->checked = check_parameters<float>(p, packed->given);
  p.skips_zeros = true;
  packed->data = Buffer(std::size_t(kernels<float>().packed_size(p)) * sizeof(float));
  const auto own = parameters_of<const float>(p, packed->checked.arrays, packed->checked.scales)[0];
  auto* const data = static_cast<float*>(packed->data.data());
  const WithoutGil without_gil;
  kernels<float>().pack(p, own, data);
  return packed;
}

template <bool training>
py::tuple forward_of_objects(const py::object& cell, const py::object& x, const py::object& parameters,
                             const py::object& state0, const py::object& out, const py::object& embedding,
                             const py::object& batch_sizes, Index threads, const py::object& resets,
                             const py::object& ends, const py::object& start, const py::object& gate_override,
                             bool reverse, const py::object& steps, const py::object& memory,
                             const py::object& recurrent_factors, const py::object& zoneout,
                             const py::object& candidate_dropout, const py::object& layer_norm_eps, bool rounded) {
  const CellShape& shape = cell_named(cell);
  InputArrays in = {.x = as_array(x, "x"), .embedding = std::nullopt};
  if (!embedding.is_none()) in.embedding = as_array(embedding, "embedding");
  return forward(shape, in, {.batch_sizes = batch_sizes, .resets = resets, .ends = ends, .reverse = reverse},
                 read_parameters(shape, parameters),
                 {.state0 = state_arrays(shape, state0_names, state0),
                  .start = start,
                  .out = out,
                  .factors = recurrent_factors,
                  .zoneout = zoneout,
                  .candidates = candidate_dropout,
                  .memory = memory,
                  .held = gate_override,
                  .steps = steps,
                  .eps = layer_norm_eps,
                  .rounded = rounded,
                  .training = training,
                  .threads = threads});
}

}  // namespace

py::tuple forward(const CellShape& cell, const InputArrays& in, const Sequences& sequences, GivenParameters parameters,
                  const ForwardObjects& given) {
  return has_double(parameters) ? forward_of<double>(cell, in, sequences, std::move(parameters), given)
                                : forward_of<float>(cell, in, sequences, std::move(parameters), given);
}

py::tuple backward(const py::object& tape, const BackwardObjects& given) {
  return with_tape(tape, [&](const TapeObject& kept, const auto& saved) { return backward_of(kept, saved, given); });
}

// Arguments by name cost pybind11 2 µs a call: what calls without other options have comes first, in order.
void bind_layers(py::module_& m) {
  const auto def_forward = [&](const char* name, auto function) {
    m.def(name, function, "cell"_a, "x"_a, "parameters"_a, "state0"_a = py::none(), "out"_a = py::none(),
          "embedding"_a = py::none(), "batch_sizes"_a = py::none(), "threads"_a = 0, py::kw_only(),
          "resets"_a = py::none(), "ends"_a = py::none(), "start"_a = py::none(), "gate_override"_a = py::none(),
          "reverse"_a = false, "steps"_a = py::none(), "memory"_a = py::none(), "recurrent_factors"_a = py::none(),
          "zoneout"_a = py::none(), "candidate_dropout"_a = py::none(), "layer_norm_eps"_a = py::none(),
          "rounded"_a = false);
  };
  py::class_<PackedParameters, std::shared_ptr<PackedParameters>>(
      m, "PackedParameters", py::is_final(),
      "Parameters of a direction, of fewer bits, as calls read them. Opaque and read-only.")
      .def_property_readonly("nbytes", [](const PackedParameters& packed) { return packed.data.bytes(); });
  m.def("pack", &pack, "cell"_a, "parameters"_a);
  def_forward("inference", &forward_of_objects<false>);
  def_forward("forward", &forward_of_objects<true>);
  m.def(
      "advance",
      [](const py::object& object, const py::object& steps, const py::object& resets) {
        return with_tape(object, [&](TapeObject& tape, auto& saved) { return advance_of(tape, saved, steps, resets); });
      },
      "tape"_a, "steps"_a, "resets"_a = py::none());
  m.def("check_pairs", &check_pairs, "name"_a);
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
        return backward(object, {.dy = optional_array("dy", dy),
                                 .dstate = state_arrays(*tape_in(object).problem.cell, dstate_names, dstate),
                                 .dsteps = dsteps,
                                 .grads = grads,
                                 .out = out,
                                 .flow = flow,
                                 .dstart = dstart,
                                 .steps = steps,
                                 .need_dx = need_dx,
                                 .clip = clip_dh,
                                 .windows = windows,
                                 .threads = threads});
      },
      "tape"_a, "dy"_a = py::none(), "dstate"_a = py::none(), "need_dx"_a = true, "grads"_a = py::none(),
      "out"_a = py::none(), "threads"_a = 0, py::kw_only(), "dsteps"_a = py::none(), "clip_dh"_a = 0.0,
      "flow"_a = py::none(), "dstart"_a = py::none(), "steps"_a = py::none(), "windows"_a = py::none());
}

}  // namespace rnnfast
