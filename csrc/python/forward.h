// The forward of a layer, from its arguments to its results: with the kernel between them, as layers.cpp has it, or
// with that of a whole stack, as stack.cpp does.
#pragma once

#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/interpreter.h"
#include "python/layers.h"
#include "python/tape.h"
#include "python/tokens.h"
#include "run/dispatch.h"
#include "run/formats.h"
#include "run/memory.h"
#include "run/problem.h"
#include "types.h"

namespace rnnfast {

// Gives the tape memory: its own, or three arrays [n], gates, states and reset_h, as `memory_of` has returned them.
template <class Real>
void allocate(TapeObject& tape, const py::object& given) {
  const TapeSize size = kernels<Real>().tape_size(tape.problem);
  const auto lent = tuple_of("memory", given, 3, "(gates, states, reset_h)");
  const auto memory = [&](std::size_t i, Index elements) {
    elements *= tape.problem.B > 0 ? tape.problem.D : 0;
    if (lent)
      return Memory{.own = {},
                    .lent = contiguous_input<Real>("memory", as_array(entry(lent, i), "memory"), {elements}).array()};
    return elements ? Memory{.own = Buffer(std::size_t(elements) * sizeof(Real)), .lent = {}} : Memory{};
  };
  tape.memory = {.gates = memory(0, size.gates), .states = memory(1, size.states), .reset_h = memory(2, size.reset_h)};
}

// The rows that x is or picks; null where tokens are one-hot.
template <class Real>
View<const Real> rows_of_input(const Saved<Real>& saved) {
  const auto& rows = saved.embedding ? saved.embedding : saved.x;
  return rows ? rows->view() : View<const Real>{};
}

template <class Real>
void read_states(OverlapCheck& check, const CellShape& cell, const StateNames& names, const StateInputs<Real>& states) {
  for (int s = names.first; s < cell.state_count; ++s) check.read(names.of(cell, s), states[std::size_t(s)]);
}

template <class Real>
void write_states(OverlapCheck& check, const CellShape& cell, const StateNames& names,
                  const StateOutputs<Real>& states) {
  for (int s = names.first; s < cell.state_count; ++s) check.written(names.of(cell, s), states[std::size_t(s)]);
}

template <class Real>
void read_all(OverlapCheck& check, const Problem& p, const Saved<Real>& saved) {
  const CellShape& cell = *p.cell;
  check.read("x", saved.x);
  check.read("embedding", saved.embedding);
  check.read("recurrent_factors", saved.factors);
  read_states(check, cell, state0_names, saved.initial);
  if (saved.start) read_states(check, cell, start_names, *saved.start);
  for (std::size_t i = 0; i < saved.parameters.size(); ++i)
    check.read(parameter_name(cell, i % parameter_count(p)), saved.parameters[i]);
}

// For each state its rate, which units are new [T,B,*] as `read_bits` reads it, or None.
template <class Real>
Zoneout read_zoneout(const py::object& object, Problem& p) {
  Zoneout zoneout;
  if (object.is_none()) return zoneout;
  if (is_projected(p)) throw py::value_error("zoneout: expected None, since h is a projection");
  const StateObjects objects = state_objects(*p.cell, zoneout_names, object);
  for (std::size_t s = 0; s < std::size_t(p.cell->state_count); ++s) {
    const py::object& given = objects[s];
    const std::string name = zoneout_names.of(*p.cell, int(s));
    if (given.is_none()) continue;
    if (py::isinstance<py::array>(given))
      zoneout.renewed[s] = read_bits(name, given, p, false);
    else
      zoneout.rate[s] = read_rate<Real>(given, name);
    if (zoneout.renewed[s] || zoneout.rate[s] > 0) p.zoned |= 1u << s;
  }
  return zoneout;
}

inline StateViews<const unsigned char> bits_of(const Zoneout& zoneout) {
  StateViews<const unsigned char> bits = {};
  for (std::size_t s = 0; s < most_states; ++s)
    if (zoneout.renewed[s]) bits[s] = zoneout.renewed[s]->view();
  return bits;
}

// Which candidates are kept, [T,B,*], or [1,B,*] in all steps, and the rate of those that are not; the problem is told.
template <class Real>
CandidateDropout read_candidates(const py::object& object, Problem& p) {
  CandidateDropout candidates;
  const auto given = tuple_of("candidate_dropout", object, 2, "(kept, p)");
  if (!given) return candidates;
  if (!p.cell->has_candidate)
    throw py::value_error("candidate_dropout: expected None, since " + std::string(p.cell->name) +
                          " drops no candidate");
  const py::object kept = (*given)[0];
  const std::string name = "candidate_dropout: kept";
  const Array array = as_array(kept, name);
  p.keeps_by_sequence = array.ndim() == 3 && array.shape(0) == 1 && (p.T > 1 || p.first_row);
  candidates.kept = read_bits(name, array.view(), p, p.keeps_by_sequence);
  candidates.rate = read_rate<Real>((*given)[1], "candidate_dropout: p");
  return candidates;
}

// Of the steps to run, at their places among all rows.
template <class Real>
TokenArrays tokens_of_run(const Array& x, const Problem& p, const Saved<Real>& saved) {
  const py::array run = x.view()[py::slice(p.run.first, p.run.last, 1)];
  TokenArrays tokens = read_tokens(run, saved.embedding ? saved.embedding->array().shape(0) : p.I);
  tokens.number.insert(tokens.number.begin(), std::size_t(p.run.first * p.B), 0);
  return tokens;
}

// A direction's arrays and what the tape keeps, as the kernel takes them; scratch is still to come.
template <class Real>
ForwardArgs<Real> forward_args(const Problem& p, const TapeObject& tape, const Saved<Real>& saved,
                               const TokenArrays& tokens, const StateOutputs<Real>& last) {
  ForwardArgs<Real> args = {.problem = p,
                            .x = rows_of_input(saved),
                            .directions = {},
                            .scratch = nullptr,
                            .tokens = view(tokens, TokenLinks{}),
                            .held = held_as<Real>(tape.held)};
  const StateViews<const Real> initial = views_of(saved.initial);
  const ForwardArrays<Real> arrays = {.parameters = parameters_of<const Real>(p, saved.parameters, saved.scales),
                                      .packed = nullptr,
                                      .initial = initial,
                                      .start = saved.start ? views_of(*saved.start) : initial,
                                      .y = {static_cast<Real*>(saved.y.data()), p.D * p.P},
                                      .last = views_of(last),
                                      .renewed = bits_of(tape.zoneout),
                                      .factors = saved.factors ? saved.factors->view() : View<const Real>{},
                                      .kept = tape.candidates.view()};
  for (std::size_t s = 0; s < most_states; ++s) args.zoneout[s] = Real(tape.zoneout.rate[s]);
  args.candidate_scale = Real(tape.candidates.scale());
  args.eps = Real(tape.eps);
  set_directions(args, arrays, tape.memory);
  for (std::size_t d = 0; d < saved.packed.size(); ++d)
    args.directions[d].packed = static_cast<const Real*>(saved.packed[d]->data.data());
  return args;
}

// Runs the steps that the problem names; a tape without memory of its own keeps nothing.
template <class Real>
void run_forward(const Problem& p, const TapeObject& tape, const Saved<Real>& saved, const TokenArrays& tokens,
                 const StateOutputs<Real>& last) {
  if (p.B == 0) return;
  const bool packed = !saved.packed.empty();
  const Buffer scratch(std::size_t(kernels<Real>().forward_scratch(p, packed)) * sizeof(Real));
  ForwardArgs<Real> args = forward_args(p, tape, saved, tokens, last);
  args.scratch = static_cast<Real*>(scratch.data());
  call(forward_threads<Real>(p, tape.threads), [&](const Team& team) { kernels<Real>().forward(args, team); });
}

template <class Real>
py::tuple finish(const CellShape& cell, const StateOutputs<Real>& states) {
  py::tuple results{std::size_t(cell.state_count)};
  for (std::size_t s = 0; s < results.size(); ++s) results[s] = finish(states[s]);
  return results;
}

// A forward between its arguments and its results.
template <class Real>
struct ForwardCall {
  // A tape that is owned by Python from the start, and empty until then: where memory runs out, pybind11 would free the
  // tape that it is to take over, and so would its owner here.
  TapeObject inference;
  py::object owner;
  TapeObject* tape = &inference;
  Saved<Real> saved;
  std::optional<Output<Real>> y;
  StateOutputs<Real> last;

  ForwardCall() = default;
  ForwardCall(const ForwardCall&) = delete;
  ForwardCall& operator=(const ForwardCall&) = delete;
};

// Whether this machine has products of rounded factors.
inline void check_pairs(const std::string& name) {
  if (!pair_kernels)
    throw std::runtime_error(name +
                             ": 'bfloat16' needs a processor with AVX512_BF16, which this one lacks, or the "
                             "environment variable RNNFAST_BF16=emulate, which computes the same numbers slowly");
}

// Tells the problem that factors of its products are rounded.
template <class Real>
void round_factors(Problem& p) {
  if constexpr (!std::is_same_v<Real, float>)
    throw py::type_error("precision: expected parameters of float32 for 'bfloat16', got float64");
  check_pairs("precision");
  if (p.format != Format::real) throw py::type_error("precision: expected None for weights of fewer bits");
  if (const std::string refusal = refusal_of_rounding(p); !refusal.empty())
    throw py::value_error("precision: expected None " + refusal);
  p.rounded = true;
}

// Checks the arguments, and makes room for the results.
template <class Real>
void prepare(ForwardCall<Real>& call, const CellShape& cell, const InputArrays& in, const Sequences& sequences,
             GivenParameters parameters, const ForwardObjects& given) {
  const bool training = given.training;
  const py::object& steps = given.steps;
  TapeObject*& tape = call.tape;
  if (training) {
    call.owner = py::cast(new TapeObject{}, py::return_value_policy::take_ownership);
    tape = &call.owner.template cast<TapeObject&>();
  }
  tape->threads = checked_threads(given.threads);
  if (!training && !given.memory.is_none())
    throw py::value_error("memory: expected None, since inference makes no tape");
  if (!steps.is_none() && !given.memory.is_none())
    throw py::value_error("memory: expected None, since steps are still to come");
  tape->problem = read_problem(cell, in, sequences, parameters, tape->schedule);
  tape->held = read_held<Real>(cell, given.held);
  Problem& p = tape->problem;
  if (training && p.format != Format::real)
    throw py::type_error("w_ih: expected float32 or float64 to train, got fewer bits");
  if (given.rounded) round_factors<Real>(p);
  p.run = read_steps(steps, p);
  if (!steps.is_none() && (p.first_row || p.D == 2 || p.reverse))
    throw py::value_error("steps: expected None, since they need B rows each and one direction, forwards in time");
  const auto need_all_steps = [&](const char* name, const py::object& option) {
    if (!steps.is_none() && !option.is_none())
      throw py::value_error(std::string(name) + ": expected None, since steps are still to come");
  };
  need_all_steps("recurrent_factors", given.factors), need_all_steps("zoneout", given.zoneout);
  need_all_steps("candidate_dropout", given.candidates);
  tape->zoneout = read_zoneout<Real>(given.zoneout, p);
  tape->candidates = read_candidates<Real>(given.candidates, p);
  tape->eps = read_eps<Real>(cell, given.eps);
  Saved<Real>& saved = call.saved;
  saved.initial = state_inputs<Real>(p, state0_names, given.state0);
  if (!given.start.is_none())
    saved.start = state_inputs<Real>(p, start_names, state_arrays(cell, start_names, given.start));
  saved.packed = parameters.packed;
  CheckedParameters<Real> checked = check_parameters<Real>(p, std::move(parameters));
  saved.parameters = std::move(checked.arrays), saved.scales = std::move(checked.scales);
  if (!given.factors.is_none()) saved.factors = read_factors<Real>(given.factors, p);
  if (in.embedding) saved.embedding = input<Real>("embedding", *in.embedding, {in.embedding->shape(0), p.I});
  const bool later = steps_to_come(p);
  if (p.input == InputKind::dense)
    saved.x = input<Real>("x", in.x, shape_of_rows(p, p.I));
  else if (later)
    tape->x = in.x;
  else
    tape->tokens = read_tokens(in.x.view(), in.embedding ? in.embedding->shape(0) : p.I);
  p.U = Index(tape->tokens.token.size());

  const auto outs = tuple_of("out", given.out, 2, "(y, state)");
  std::optional<Output<Real>>& y = call.y;
  y = output<Real>("out[0]", entry(outs, 0), shape_of_rows(p, p.D * p.P), later, given.y_results);
  StateOutputs<Real>& last = call.last;
  last = state_outputs<Real>(p, out_names, entry(outs, 1), false, given.state_results);
  if (outs) {
    OverlapCheck check;
    read_all(check, p, saved);
    if (p.input != InputKind::dense) check.read("x", in.x);
    check.written("out[0]", y);
    write_states(check, cell, out_names, last);
    check.run();
  }
  saved.y = y->array();
  if (training) allocate<Real>(*tape, given.memory);
}

// y, the last state, and the tape of a training forward.
template <class Real>
py::tuple finish(ForwardCall<Real>& call) {
  py::tuple state = finish(*call.tape->problem.cell, call.last);
  if (!call.owner) return py::make_tuple(finish(call.y), std::move(state));
  call.tape->saved = std::move(call.saved);
  return py::make_tuple(finish(call.y), std::move(state), call.owner);
}

}  // namespace rnnfast
