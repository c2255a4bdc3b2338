// The forward of several layers, each on what the one below leaves: as a wavefront where that is faster.
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/forward.h"
#include "python/interpreter.h"
#include "run/problem.h"
#include "run/wave.h"
#include "types.h"

namespace rnnfast {
namespace {

// What each layer has of its own: lists of L, or None.
struct StackObjects {
  py::list parameters, state0, held, factors, zoneout, candidates;
  py::object dropout;  // the factors of y of each layer but the last, [T,B,P]
};

template <class Real>
py::list stack_of(const CellShape& cell, const Array& x, const StackObjects& given, const py::object& resets,
                  bool training, const py::object& eps, Index steps) {
  const std::size_t L = given.parameters.size();
  std::vector<std::unique_ptr<ForwardCall<Real>>> calls;
  std::vector<Input<Real>> factors;
  std::vector<WaveLayer<Real>> layers;
  double all = 0;
  for (std::size_t l = 0; l < L; ++l) {
    InputArrays in = {.x = x, .embedding = std::nullopt};
    if (l > 0) in.x = calls.back()->saved.y;
    if (l > 0 && !given.dropout.is_none()) {
      const Shape shape = in.x.shape();
      factors.push_back(contiguous_input<Real>("dropout", as_array(py::object(given.dropout.cast<py::list>()[l - 1]), "dropout"), shape));
      in.x = Array(new_array<Real>(shape));
    }
    ForwardCall<Real>& call = *calls.emplace_back(std::make_unique<ForwardCall<Real>>());
    prepare(call, cell, in, {.batch_sizes = py::none(), .resets = resets, .ends = py::none(), .reverse = false},
            read_parameters(cell, given.parameters[l]),
            {.state0 = given.state0[l],
             .start = py::none(),
             .out = py::none(),
             .factors = given.factors[l],
             .zoneout = given.zoneout[l],
             .candidates = given.candidates[l],
             .memory = py::none()},
            {.held = given.held[l], .training = training, .steps = py::none(), .eps = eps, .threads = 0});
    all += flops(call.tape->problem);
    WaveLayer<Real> layer = {.args = forward_args(call.tape->problem, *call.tape, call.saved, call.tape->tokens, call.last)};
    if (l > 0 && !given.dropout.is_none())
      layer.y_below = {static_cast<const Real*>(calls[l - 1]->saved.y.data()), 0}, layer.factors = factors.back().view();
    layers.push_back(layer);
  }
  const Index threads = team_size(all, Index(L), 0);
  Wave<Real> wave(std::move(layers), threads, steps);
  call(threads, [&](const Team& team) { wave.run(team); }, Interruption::restart, [&] { wave.begin(); });
  py::list results;
  for (const auto& call : calls) results.append(finish(*call));
  return results;
}

}  // namespace

void bind_stack(py::module_& m) {
  m.def("stack", [](const py::object& cell, const py::object& x, const py::list& parameters, const py::list& state0, const py::list& held, const py::list& factors, const py::list& zoneout, const py::list& candidates, const py::object& dropout, const py::object& resets, bool training, const py::object& eps, Index steps) -> py::list {
    const CellShape& shape = cell_named(cell);
    const StackObjects given = {parameters, state0, held, factors, zoneout, candidates, dropout};
    const Array array = as_array(x, "x");
    const ParameterArrays first = read_parameters(shape, parameters[0]);
    return is_double("w_ih", *first[0]) ? stack_of<double>(shape, array, given, resets, training, eps, steps)
                                        : stack_of<float>(shape, array, given, resets, training, eps, steps);
  });
}

}  // namespace rnnfast
