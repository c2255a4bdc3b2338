// Several layers as a wavefront, each on what the one below leaves.
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
#include "run/problem.h"
#include "run/threads.h"
#include "run/wave.h"
#include "types.h"

namespace rnnfast {
namespace {

// ---- Forward -------------------------------------------------------------------------------------------------------

// What each layer has of its own: an entry for each, or None.
struct LayerObjects {
  py::object parameters, state0, out, start, held, factors, zoneout, candidates;
  py::object dropout;  // the factors of y of each layer but the last, [T,B,P]
};

// One entry of L, or None.
py::object of_layer(const char* name, const py::object& object, std::size_t L, std::size_t l) {
  return entry(tuple_of(name, object, L, "(one for each layer)"), l);
}

template <class Real>
py::list forward_wave_of(const CellShape& cell, const Array& x, std::vector<GivenParameters> parameters,
                         const LayerObjects& given, const py::object& resets, bool training, const py::object& eps) {
  const std::size_t L = parameters.size();
  const auto dropout = tuple_of("dropout", given.dropout, L - 1, "(one for each layer but the last)");
  std::vector<std::unique_ptr<ForwardCall<Real>>> calls;
  std::vector<Input<Real>> factors;
  std::vector<WaveLayer<Real>> layers;
  double operations = 0;
  for (std::size_t l = 0; l < L; ++l) {
    const auto own = [&](const char* name, const py::object& object) { return of_layer(name, object, L, l); };
    WaveLayer<Real> layer = {.args = {}};
    InputArrays in = {.x = x, .embedding = std::nullopt};
    if (l > 0) in.x = calls.back()->saved.y;
    if (l > 0 && dropout) {
      const Shape shape = in.x.shape();
      const py::array dropped = new_array<Real>(shape);
      layer.y_below = static_cast<const Real*>(in.x.data());
      factors.push_back(contiguous_input<Real>("dropout", as_array((*dropout)[l - 1], "dropout"), shape));
      layer.factors = factors.back().view().data;
      layer.x = static_cast<Real*>(const_cast<void*>(dropped.data()));
      in.x = Array(dropped);
    }
    auto& call = *calls.emplace_back(std::make_unique<ForwardCall<Real>>());
    prepare(call, cell, in, {.batch_sizes = py::none(), .resets = resets, .ends = py::none(), .reverse = false},
            std::move(parameters[l]),
            {.state0 = state_arrays(cell, state0_names, own("state0", given.state0)),
             .start = own("start", given.start),
             .out = own("out", given.out),
             .factors = own("recurrent_factors", given.factors),
             .zoneout = own("zoneout", given.zoneout),
             .candidates = own("candidate_dropout", given.candidates),
             .memory = py::none(),
             .held = own("gate_override", given.held),
             .steps = py::none(),
             .eps = eps,
             .training = training,
             .threads = 0});
    const Problem& p = call.tape->problem;
    if (p.D != 1 || p.input != InputKind::dense)
      throw py::value_error("x, parameters: expected numbers and layers of one direction");
    layer.args = forward_args(p, *call.tape, call.saved, call.tape->tokens, call.last);
    layers.push_back(layer);
    operations += flops(p);
  }
  if (layers[0].args.problem.B > 0) {
    const Index threads = team_size(operations, Index(L));
    ForwardWave<Real> wave(std::move(layers), threads);
    call(
        threads, [&](const Team& team) { wave.run(team); }, Interruption::restart, [&] { wave.begin(); });
  }
  py::list results;
  for (const auto& call : calls) results.append(finish(*call));
  return results;
}

py::list forward_wave(const py::object& cell, const py::object& x, const py::object& parameters,
                      const py::object& state0, bool training, const py::object& out, const py::object& start,
                      const py::object& dropout, const py::object& resets, const py::object& held,
                      const py::object& factors, const py::object& zoneout, const py::object& candidates,
                      const py::object& eps) {
  const CellShape& shape = cell_named(cell);
  const Array array = as_array(x, "x");
  if (!py::isinstance<py::tuple>(parameters) && !py::isinstance<py::list>(parameters))
    throw py::type_error("parameters: expected those of each layer, got " + type_name(parameters));
  std::vector<GivenParameters> arrays;
  for (const py::handle layer : py::tuple(parameters))
    arrays.push_back(read_parameters(shape, py::reinterpret_borrow<py::object>(layer)));
  if (arrays.empty()) throw py::value_error("parameters: expected those of at least one layer, got none");
  const LayerObjects given = {.parameters = parameters,
                              .state0 = state0,
                              .out = out,
                              .start = start,
                              .held = held,
                              .factors = factors,
                              .zoneout = zoneout,
                              .candidates = candidates,
                              .dropout = dropout};
  const bool is_wide = has_double(arrays[0]);
  return is_wide ? forward_wave_of<double>(shape, array, std::move(arrays), given, resets, training, eps)
                 : forward_wave_of<float>(shape, array, std::move(arrays), given, resets, training, eps);
}

// ---- Backward ------------------------------------------------------------------------------------------------------

struct GradientObjects {
  py::object dy, dstate, grads, out;  // of the top layer; for each layer, or None
  py::object dropout;                 // of each layer but the last, as in forward
  bool need_dx;
  double clip;
};

// The tapes of a forward, from the bottom layer to the top one, which are to have the dtype of the first.
template <class Real>
py::list backward_wave_of(const std::vector<py::object>& tapes, const GradientObjects& given) {
  const std::size_t L = tapes.size();
  const auto dropout = tuple_of("dropout", given.dropout, L - 1, "(one for each layer but the last)");
  std::vector<std::unique_ptr<BackwardCall<Real>>> calls;  // from the top, as all that follows
  std::vector<Input<Real>> factors;
  std::vector<BackwardWaveLayer<Real>> layers;
  double operations = 0;
  Interruption interruption = Interruption::restart;
  for (std::size_t l = L; l-- > 0;) {
    const TapeObject& tape = tape_in(tapes[l]);
    const Problem& p = tape.problem;
    if (!std::holds_alternative<Saved<Real>>(tape.saved)) throw py::type_error("tapes: expected one dtype, got two");
    if (p.D != 1 || p.reverse || p.first_row || p.input != InputKind::dense || steps_to_come(p) ||
        p.T < least_steps_of_wave)
      throw py::value_error("tapes: expected ones of " + std::to_string(least_steps_of_wave) +
                            " steps or more that a wave can have");
    auto& call = *calls.emplace_back(std::make_unique<BackwardCall<Real>>(tape, std::get<Saved<Real>>(tape.saved)));
    const bool is_top = l + 1 == L;
    const py::object none = py::none();
    prepare(call, {.dy = is_top ? optional_array("dy", given.dy) : calls[calls.size() - 2]->dx->given,
                   .dstate = state_arrays(*p.cell, dstate_names, of_layer("dstate", given.dstate, L, l)),
                   .dsteps = none,
                   .grads = of_layer("grads", given.grads, L, l),
                   .out = of_layer("out", given.out, L, l),
                   .flow = none,
                   .dstart = none,
                   .steps = none,
                   .need_dx = given.need_dx || l > 0,
                   .clip = given.clip,
                   .windows = none,
                   .threads = 0});
    if (call.interruption() == Interruption::once) interruption = Interruption::once;
    BackwardWaveLayer<Real> layer = {.args = backward_args(call)};
    if (!is_top && dropout) {
      const Shape shape = shape_of_rows(p, p.P);
      factors.push_back(contiguous_input<Real>("dropout", as_array((*dropout)[l], "dropout"), shape));
      layer.factors = factors.back().view().data;
      layer.dy = static_cast<Real*>(const_cast<void*>(static_cast<const void*>(call.dsteps[0]->array().data())));
    }
    layers.push_back(layer);
    operations += 2 * flops(p);
  }
  const auto begin_all = [&] {
    for (const auto& call : calls) begin(*call);
  };
  if (layers[0].args.problem.B > 0) {
    const Index threads = team_size(operations, Index(L));
    BackwardWave<Real> wave(std::move(layers), threads);
    call(
        threads, [&](const Team& team) { wave.run(team); }, interruption,
        [&] {
          begin_all();
          wave.begin();
        });
  } else {
    begin_all();
    for (const auto& call : calls)
      for (const auto& gradient : call->gradients.arrays)
        if (!call->gradients.are_given) set<Real>(gradient);
  }
  py::list results;
  for (std::size_t l = L; l-- > 0;) results.append(finish(*calls[l]));
  return results;
}

py::list backward_wave(const py::object& tapes, const py::object& dy, const py::object& dstate, bool need_dx,
                       const py::object& grads, const py::object& out, const py::object& dropout, double clip) {
  if (!py::isinstance<py::tuple>(tapes) && !py::isinstance<py::list>(tapes))
    throw py::type_error("tapes: expected those of each layer, got " + type_name(tapes));
  std::vector<py::object> of_layers;
  for (const py::handle tape : py::tuple(tapes)) of_layers.push_back(py::reinterpret_borrow<py::object>(tape));
  if (of_layers.empty()) throw py::value_error("tapes: expected those of at least one layer, got none");
  const GradientObjects given = {
      .dy = dy, .dstate = dstate, .grads = grads, .out = out, .dropout = dropout, .need_dx = need_dx, .clip = clip};
  return with_tape(of_layers[0], [&]<class Real>(const TapeObject&, const Saved<Real>&) {
    return backward_wave_of<Real>(of_layers, given);
  });
}

}  // namespace

void bind_stack(py::module_& m) {
  m.attr("least_steps_of_wave") = least_steps_of_wave;
  m.def("forward_wave", &forward_wave, "cell"_a, "x"_a, "parameters"_a, "state0"_a, "training"_a, py::kw_only(),
        "out"_a = py::none(), "start"_a = py::none(), "dropout"_a = py::none(), "resets"_a = py::none(),
        "gate_override"_a = py::none(), "recurrent_factors"_a = py::none(), "zoneout"_a = py::none(),
        "candidate_dropout"_a = py::none(), "layer_norm_eps"_a = py::none());
  m.def("backward_wave", &backward_wave, "tapes"_a, "dy"_a, "dstate"_a, "need_dx"_a, py::kw_only(),
        "grads"_a = py::none(), "out"_a = py::none(), "dropout"_a = py::none(), "clip_dh"_a = 0.0);
  m.def(
      "wave_pays",
      [](const py::object& cell, Index T, Index B, Index I, Index H, Index P, Index heads, Index layers, bool wide,
         bool backward) {
        const Sizes sizes = {.T = T, .B = B, .I = I, .H = H, .D = 1, .P = P, .heads = heads};
        const Problem p = problem_of(cell_named(cell), sizes);
        return (wide ? wave_threads<double>(p, layers, backward) : wave_threads<float>(p, layers, backward)) > 1;
      },
      "cell"_a, "T"_a, "B"_a, "I"_a, "H"_a, "P"_a, "heads"_a, "layers"_a, "wide"_a, "backward"_a);
}

}  // namespace rnnfast
