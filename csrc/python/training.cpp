// The border of what training needs beside the layers: the readout, losses, and the steps of optimizers.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "python/arrays.h"
#include "python/interpreter.h"
#include "run/dispatch.h"
#include "run/memory.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {
namespace {

void run(double flops, Index parts, const Kernel& kernel, Interruption interruption = Interruption::never) {
  call(team_size(flops, std::max(parts, Index(1))), kernel, interruption);
}

// A pass over memory, element by element, as the floating point operations of a product that take about as long.
constexpr double flops_per_element = 30;

// ---- Linear --------------------------------------------------------------------------------------------------------

// The last axis replaced by n.
Shape with_last(const Array& array, Index n) {
  Shape shape = array.shape();
  shape.back() = n;
  return shape;
}

// Of an array [.., n].
Index rows_in(const Array& array) {
  Index rows = 1;
  for (Index axis = 0; axis + 1 < array.ndim(); ++axis) rows *= array.shape(axis);
  return rows;
}

template <class Real>
struct LinearOperands {
  LinearSize size;
  Input<Real> x, weight;
  std::optional<Input<Real>> bias;

  const Real* b() const { return bias ? bias->view().data : nullptr; }
  double flops() const { return 2.0 * double(size.N) * double(size.I) * double(size.O); }

  void read_all(OverlapCheck& check) const {
    check.read("x", std::optional(x));
    check.read("weight", std::optional(weight));
    check.read("bias", bias);
  }
};

template <class Real>
LinearOperands<Real> linear_operands(const py::object& x_object, const Array& weight, const py::object& bias) {
  const Array x = as_array(x_object, "x");
  if (weight.ndim() != 2) wrong_shape("weight", "(O, I)", weight);
  const Index O = weight.shape(0), I = weight.shape(1);
  if (x.ndim() < 1 || x.shape(x.ndim() - 1) != I) wrong_shape("x", "(..., " + std::to_string(I) + ")", x);
  return {.size = {.N = rows_in(x), .I = I, .O = O},
          .x = input<Real>("x", x, x.shape()),
          .weight = contiguous_input<Real>("weight", weight, {O, I}),
          .bias = optional_input<Real>("bias", bias, {O})};
}

template <class Real>
py::object linear_of(const py::object& x, const Array& weight, const py::object& bias, const py::object& out) {
  const auto operands = linear_operands<Real>(x, weight, bias);
  const LinearSize& size = operands.size;
  std::optional<Output<Real>> y = output<Real>("out", out, with_last(operands.x.given, size.O));
  if (!out.is_none()) {
    OverlapCheck check;
    operands.read_all(check);
    check.written("out", y);
    check.run();
  }
  const Buffer scratch(std::size_t(kernels<Real>().linear_scratch(size)) * sizeof(Real));
  const LinearArgs<Real> args = {.size = size,
                                 .x = operands.x.view(),
                                 .w = operands.weight.view().data,
                                 .b = operands.b(),
                                 .y = y->view(),
                                 .scratch = static_cast<Real*>(scratch.data())};
  run(
      operands.flops(), size.N, [&](const Team& team) { kernels<Real>().linear(args, team); }, Interruption::restart);
  return finish(y);
}

template <class Real>
py::tuple linear_backward_of(const py::object& x, const Array& weight, const py::object& bias,
                             const py::object& dy_object, bool need_dx, const py::object& grads) {
  const auto operands = linear_operands<Real>(x, weight, bias);
  const LinearSize& size = operands.size;
  const std::optional dy = input<Real>("dy", as_array(dy_object, "dy"), with_last(operands.x.given, size.O));
  const auto given = tuple_of("grads", grads, 2, "(dweight, dbias)");
  const auto gradient = [&](std::size_t i, const std::string& name, const Shape& shape) {
    const py::object array = entry(given, i);
    if (given && array.is_none()) throw py::type_error("grads: " + name + ": expected an array, got None");
    return std::optional(output<Real>("grads: " + name, array, shape, true));
  };
  std::optional<Output<Real>> dx, dweight, dbias;
  if (need_dx) dx = output<Real>("dx", py::none(), operands.x.given.shape());
  dweight = gradient(0, "dweight", {size.O, size.I});
  if (operands.bias)
    dbias = gradient(1, "dbias", {size.O});
  else if (!entry(given, 1).is_none())
    throw py::type_error("grads: dbias: expected None, since there is no bias");
  if (given) {
    OverlapCheck check;
    operands.read_all(check);
    check.read("dy", dy);
    check.written("grads: dweight", dweight);
    check.written("grads: dbias", dbias);
    check.run();
  }
  const Buffer scratch(std::size_t(kernels<Real>().linear_backward_scratch(size)) * sizeof(Real));
  const LinearBackwardArgs<Real> args = {.size = size,
                                         .x = operands.x.view(),
                                         .dy = dy->view(),
                                         .w = operands.weight.view().data,
                                         .dx = dx ? dx->view() : View<Real>{},
                                         .dw = dweight->view().data,
                                         .db = dbias ? dbias->view().data : nullptr,
                                         .accumulate = given.has_value(),
                                         .scratch = static_cast<Real*>(scratch.data())};
  const Index parts = size.I / 4 + 1;  // 4 columns make a unit block at least
  run((need_dx ? 2 : 1) * operands.flops(), parts,
      [&](const Team& team) { kernels<Real>().linear_backward(args, team); },
      given ? Interruption::never : Interruption::restart);
  const py::object dx_result = finish(dx), dweight_result = finish(dweight), dbias_result = finish(dbias);
  return py::make_tuple(dx_result, py::make_tuple(dweight_result, dbias_result));
}

// ---- The loss ------------------------------------------------------------------------------------------------------

// Classes from 0 to V - 1, one for each row of logits; no_class where they are ignored.
std::vector<Index> read_targets(const py::object& object, const Shape& shape, Index V,
                                const std::optional<Index>& ignore_index) {
  const auto [given, is_open] = base_array(object, "targets");
  const Array array(given, is_open);
  if (!array.holds_integers()) throw py::type_error("targets: expected integers, got " + text(array.dtype()));
  require_shape("targets", array, shape);
  const py::array classes = as_indices(given);
  const bool wraps = array.dtype().kind() == 'u';  // what is negative now was too large
  const auto* const first = static_cast<const Index*>(classes.data());
  std::vector<Index> targets(first, first + classes.size());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    Index& target = targets[i];
    if (target == ignore_index && !(wraps && target < 0))
      target = no_class;
    else if (target < 0 || target >= V)
      throw py::value_error("targets: expected classes from 0 to " + std::to_string(V - 1) + ", got " +
                            text(given.attr("item")(i)));
  }
  return targets;
}

template <class Real>
py::tuple cross_entropy_of(const Array& logits, const py::object& targets_object, bool mean,
                           const std::optional<Index>& ignore_index) {
  const Shape shape = logits.shape();
  if (shape.empty() || shape.back() < 1) wrong_shape("logits", "(..., V)", logits);
  const Index V = shape.back();
  const std::vector<Index> targets = read_targets(targets_object, {shape.begin(), shape.end() - 1}, V, ignore_index);
  const Input<Real> in = input<Real>("logits", logits, shape);
  Output<Real> dlogits = output<Real>("dlogits", py::none(), shape);
  const Index N = Index(targets.size());
  std::vector<double> losses(targets.size());
  double loss = 0;
  const CrossEntropyArgs<Real> args = {.N = N,
                                       .V = V,
                                       .logits = in.view(),
                                       .targets = targets.data(),
                                       .mean = mean,
                                       .losses = losses.data(),
                                       .loss = &loss,
                                       .dlogits = dlogits.view().data};
  run(
      flops_per_element * double(in.given.size()), N,
      [&](const Team& team) { kernels<Real>().cross_entropy(args, team); }, Interruption::restart);
  return py::make_tuple(loss, dlogits.result);
}

// Checks what is spelled: classes that are no blanks, and steps enough for them, with a blank between equal ones.
struct Spelled {
  py::array lengths, labels, ends;

  const Index* of(const py::array& indices) const { return static_cast<const Index*>(indices.data()); }
  Index U(Index b) const { return of(ends)[b] - (b ? of(ends)[b - 1] : 0); }
};

Spelled read_spelled(const py::object& lengths, const py::object& labels, const py::object& ends, const Shape& shape,
                     Index blank) {
  const auto integers = [](const py::object& object, const char* name, Index n) {
    const py::array given = base_array(object, name).array;
    const Array array(given);
    if (!array.is_integer())
      throw py::type_error(std::string(name) + ": expected integers, got " + text(array.dtype()));
    require_shape(name, array, {n < 0 ? array.size() : n});
    return as_indices(given);
  };
  const Index T = shape[0], B = shape[1], V = shape[2];
  if (blank < 0 || blank >= V)
    throw py::value_error("blank: expected a class from 0 to " + std::to_string(V - 1) + ", got " +
                          std::to_string(blank));
  const Spelled spelled = {.lengths = integers(lengths, "lengths", B),
                           .labels = integers(labels, "targets", -1),
                           .ends = integers(ends, "ends", B)};
  const Index* const label = spelled.of(spelled.labels);
  for (Index b = 0, first = 0; b < B; ++b) {
    const Index last = spelled.of(spelled.ends)[b], length = spelled.of(spelled.lengths)[b];
    const std::string name = "targets[" + std::to_string(b) + "]";
    if (last < first || last > spelled.labels.size()) throw py::value_error("ends: expected ends of targets in turn");
    if (length < 0 || length > T)
      throw py::value_error("lengths: expected 0 to " + std::to_string(T) + ", got " + std::to_string(length));
    Index steps = last - first;
    for (Index k = first; k < last; ++k) {
      if (label[k] < 0 || label[k] >= V || label[k] == blank)
        throw py::value_error(name + ": expected classes from 0 to " + std::to_string(V - 1) + " but the blank, " +
                              std::to_string(blank) + ", got " + std::to_string(label[k]));
      steps += k > first && label[k] == label[k - 1];
    }
    if (steps > length)
      throw py::value_error(name + ": expected labels for " + std::to_string(length) + " steps at most, got " +
                            std::to_string(last - first) + " that need " + std::to_string(steps) +
                            ", a blank between equal ones");
    first = last;
  }
  return spelled;
}

template <class Real>
py::tuple ctc_of(const Array& logits, const py::object& lengths, const py::object& labels, const py::object& ends,
                 Index blank, bool mean) {
  const Shape shape = logits.shape();
  if (shape.size() != 3 || shape.back() < 1) wrong_shape("logits", "(T, B, V)", logits);
  const Spelled spelled = read_spelled(lengths, labels, ends, shape, blank);
  const Input<Real> in = input<Real>("logits", logits, shape);
  Output<Real> dlogits = output<Real>("dlogits", py::none(), shape);
  const Index T = shape[0], B = shape[1];
  Index longest = 0, most = 0;
  double states = 0;
  for (Index b = 0; b < B; ++b) {
    const Index steps = spelled.of(spelled.lengths)[b];
    longest = std::max(longest, steps), most = std::max(most, spelled.U(b));
    states += 2.0 * double(steps) * double(spelled.U(b) + 1);
  }
  constexpr double flops_per_state = 200;
  const Index members =
      team_size(flops_per_element * double(in.given.size()) + flops_per_state * states, std::max(B, Index(1)));
  const Index scratch_of_member = kernels<Real>().ctc_scratch(longest, most);
  const Buffer scratch(std::size_t(members * scratch_of_member) * sizeof(double));
  std::vector<double> losses(std::size_t(B), 0.0);
  double loss = 0;
  const CtcArgs<Real> args = {.T = T,
                              .B = B,
                              .V = shape[2],
                              .logits = in.view(),
                              .lengths = spelled.of(spelled.lengths),
                              .labels = spelled.of(spelled.labels),
                              .ends = spelled.of(spelled.ends),
                              .blank = blank,
                              .mean = mean,
                              .losses = losses.data(),
                              .loss = &loss,
                              .dlogits = dlogits.view().data,
                              .scratch = static_cast<double*>(scratch.data()),
                              .scratch_of_member = scratch_of_member};
  call(
      members, [&](const Team& team) { kernels<Real>().ctc(args, team); }, Interruption::restart);
  return py::make_tuple(loss, dlogits.result);
}

// ---- Optimizers ----------------------------------------------------------------------------------------------------

// An array of any shape as its elements in C order.
template <class Real>
Array elements(const std::string& name, const Array& given) {
  const Array array = with_dtype(name, given, py::dtype::of<Real>());
  return is_flat<Real>(array) ? array : contiguous_copy<Real>(array);
}

template <class Real>
double sum_of_squares_of(const Array& x) {
  const Array from = elements<Real>("x", x);
  const Index n = from.size();
  std::vector<double> sums(std::size_t(n / square_block + 1));
  run(flops_per_element * double(n), Index(sums.size()), [&](const Team& team) {
    kernels<Real>().sum_of_squares(static_cast<const Real*>(from.data()), n, sums.data(), team);
  });
  return sums[0];
}

template <class Real>
struct StepArrays {
  Array g;
  std::optional<Output<Real>> p, m, v;
};

template <class Real>
StepArrays<Real> step_arrays(const py::object& p, const Shape& shape, const py::object& g, const py::object& m,
                             const py::object& v) {
  const auto changed = [&](const char* name, const py::object& object) {
    return object.is_none() ? std::nullopt : std::optional(flat_output<Real>(name, object, shape, true));
  };
  StepArrays<Real> arrays = {
      .g = elements<Real>("g", as_array(g, "g")), .p = changed("p", p), .m = changed("m", m), .v = changed("v", v)};
  require_shape("g", arrays.g, shape);
  for (const auto& out : {arrays.p, arrays.m, arrays.v})
    if (out && share_memory(arrays.g, out->given)) arrays.g = contiguous_copy<Real>(arrays.g);
  return arrays;
}

// step(args, team) is a kernel's.
template <class Real, class Step>
void change(StepArrays<Real>& arrays, Step&& step) {
  const auto data = [](std::optional<Output<Real>>& out) { return out ? out->view().data : nullptr; };
  const Index n = arrays.g.size();
  const OptimizerArgs<Real> args = {.n = n,
                                    .p = data(arrays.p),
                                    .g = static_cast<const Real*>(arrays.g.data()),
                                    .m = data(arrays.m),
                                    .v = data(arrays.v)};
  run(flops_per_element * double(n), n, [&](const Team& team) { step(args, team); });
  for (const auto& out : {arrays.p, arrays.m, arrays.v}) finish(out);
}

template <class Real>
void sgd_of(const py::object& p, const Shape& shape, const py::object& g, const py::object& v,
            const SgdOptions& options) {
  auto arrays = step_arrays<Real>(p, shape, g, py::none(), v);
  change(arrays, [&](const auto& args, const Team& team) { kernels<Real>().sgd(args, options, team); });
}

template <class Real>
void adam_of(const py::object& p, const Shape& shape, const py::object& g, const py::object& m, const py::object& v,
             const AdamOptions& options) {
  auto arrays = step_arrays<Real>(p, shape, g, m, v);
  change(arrays, [&](const auto& args, const Team& team) { kernels<Real>().adam(args, options, team); });
}

}  // namespace

void bind_training(py::module_& m) {
  m.def(
      "linear",
      [](const py::object& x, const py::object& weight_object, const py::object& bias, const py::object& out) {
        const Array weight = as_array(weight_object, "weight");
        return is_double("weight", weight) ? linear_of<double>(x, weight, bias, out)
                                           : linear_of<float>(x, weight, bias, out);
      },
      "x"_a, "weight"_a, "bias"_a = py::none(), "out"_a = py::none());
  m.def(
      "linear_backward",
      [](const py::object& x, const py::object& weight_object, const py::object& bias, const py::object& dy,
         bool need_dx, const py::object& grads) {
        const Array weight = as_array(weight_object, "weight");
        return is_double("weight", weight) ? linear_backward_of<double>(x, weight, bias, dy, need_dx, grads)
                                           : linear_backward_of<float>(x, weight, bias, dy, need_dx, grads);
      },
      "x"_a, "weight"_a, "bias"_a, "dy"_a, "need_dx"_a = true, "grads"_a = py::none());
  m.def(
      "softmax_cross_entropy",
      [](const py::object& object, const py::object& targets, bool mean, const std::optional<Index>& ignore_index) {
        const Array logits = as_array(object, "logits");
        return is_double("logits", logits) ? cross_entropy_of<double>(logits, targets, mean, ignore_index)
                                           : cross_entropy_of<float>(logits, targets, mean, ignore_index);
      },
      "logits"_a, "targets"_a, "mean"_a, "ignore_index"_a = py::none());
  m.def(
      "ctc_loss",
      [](const py::object& object, const py::object& lengths, const py::object& labels, const py::object& ends,
         Index blank, bool mean) {
        const Array logits = as_array(object, "logits");
        return is_double("logits", logits) ? ctc_of<double>(logits, lengths, labels, ends, blank, mean)
                                           : ctc_of<float>(logits, lengths, labels, ends, blank, mean);
      },
      "logits"_a, "lengths"_a, "labels"_a, "ends"_a, "blank"_a, "mean"_a);
  m.def(
      "sum_of_squares",
      [](const py::object& object) {
        const Array x = as_array(object, "x");
        return is_double("x", x) ? sum_of_squares_of<double>(x) : sum_of_squares_of<float>(x);
      },
      "x"_a);
  m.def(
      "sgd_step",
      [](const py::object& object, const py::object& g, const py::object& v, double lr, double momentum) {
        const Array p = as_array(object, "p");
        const SgdOptions options = {.lr = lr, .momentum = momentum};
        return is_double("p", p) ? sgd_of<double>(object, p.shape(), g, v, options)
                                 : sgd_of<float>(object, p.shape(), g, v, options);
      },
      "p"_a, "g"_a, "v"_a, "lr"_a, "momentum"_a);
  m.def(
      "adam_step",
      [](const py::object& object, const py::object& g, const py::object& moment1, const py::object& moment2, double lr,
         double b1, double b2, double eps, double decay) {
        const Array p = as_array(object, "p");
        const AdamOptions options = {.lr = lr, .b1 = b1, .b2 = b2, .eps = eps, .decay = decay};
        return is_double("p", p) ? adam_of<double>(object, p.shape(), g, moment1, moment2, options)
                                 : adam_of<float>(object, p.shape(), g, moment1, moment2, options);
      },
      "p"_a, "g"_a, "m"_a, "v"_a, "lr"_a, "b1"_a, "b2"_a, "eps"_a, "decay"_a = 0.0);
}

}  // namespace rnnfast
