// Several layers as a wavefront, each on what the one below leaves.
#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/forward.h"
#include "python/interpreter.h"
#include "run/problem.h"
#include "run/threads.h"
#include "run/wave.h"
#include "types.h"

namespace rnnfast {
namespace {

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
py::list wave_of(const CellShape& cell, const Array& x, std::vector<ParameterArrays> parameters,
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
            {.state0 = own("state0", given.state0),
             .start = own("start", given.start),
             .out = own("out", given.out),
             .factors = own("recurrent_factors", given.factors),
             .zoneout = own("zoneout", given.zoneout),
             .candidates = own("candidate_dropout", given.candidates),
             .memory = py::none()},
            {.held = own("gate_override", given.held),
             .training = training,
             .steps = py::none(),
             .eps = eps,
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
    Wave<Real> wave(std::move(layers), threads);
    call(
        threads, [&](const Team& team) { wave.run(team); }, Interruption::restart, [&] { wave.begin(); });
  }
  py::list results;
  for (const auto& call : calls) results.append(finish(*call));
  return results;
}

py::list wave(const py::object& cell, const py::object& x, const py::object& parameters, const py::object& state0,
              bool training, const py::object& out, const py::object& start, const py::object& dropout,
              const py::object& resets, const py::object& held, const py::object& factors, const py::object& zoneout,
              const py::object& candidates, const py::object& eps) {
  const CellShape& shape = cell_named(cell);
  const Array array = as_array(x, "x");
  if (!py::isinstance<py::tuple>(parameters) && !py::isinstance<py::list>(parameters))
    throw py::type_error("parameters: expected those of each layer, got " + type_name(parameters));
  std::vector<ParameterArrays> arrays;
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
  const bool is_wide = is_double("w_ih", *arrays[0][0]);
  return is_wide ? wave_of<double>(shape, array, std::move(arrays), given, resets, training, eps)
                 : wave_of<float>(shape, array, std::move(arrays), given, resets, training, eps);
}

}  // namespace

void bind_stack(py::module_& m) {
  m.def("wave", &wave, "cell"_a, "x"_a, "parameters"_a, "state0"_a, "training"_a, py::kw_only(), "out"_a = py::none(),
        "start"_a = py::none(), "dropout"_a = py::none(), "resets"_a = py::none(), "gate_override"_a = py::none(),
        "recurrent_factors"_a = py::none(), "zoneout"_a = py::none(), "candidate_dropout"_a = py::none(),
        "layer_norm_eps"_a = py::none());
  m.def(
      "wave_pays",
      [](const py::object& cell, Index T, Index B, Index I, Index H, Index P, Index heads, Index layers, bool wide) {
        const Sizes sizes = {.T = T, .B = B, .I = I, .H = H, .D = 1, .P = P, .heads = heads};
        const Problem p = problem_of(cell_named(cell), sizes);
        return (wide ? wave_threads<double>(p, layers) : wave_threads<float>(p, layers)) > 1;
      },
      "cell"_a, "T"_a, "B"_a, "I"_a, "H"_a, "P"_a, "heads"_a, "layers"_a, "wide"_a);
}

}  // namespace rnnfast
