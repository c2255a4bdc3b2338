// The border of sparse reservoirs.
#include "run/reservoir.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "python/arrays.h"
#include "python/interpreter.h"
#include "run/dispatch.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/threads.h"
#include "types.h"

namespace rnnfast {
namespace {

struct ReservoirObject {
  std::variant<SparseReservoir<float>, SparseReservoir<double>> packed;
};

// None if there are too many connections. `before` itself if it is made of the same.
template <class Real>
py::object packed_of(const Array& w_ih, const py::object& w_hh, const py::object& b_ih, const py::object& b_hh,
                     const py::object& leak, bool is_relu, const py::object& before) {
  if (w_ih.ndim() != 2) wrong_shape("w_ih", "(H, I)", w_ih);
  const Index H = w_ih.shape(0), I = w_ih.shape(1);
  const auto contiguous = [](const std::string& name, const py::object& object, const Shape& shape) {
    return contiguous_input<Real>(name, as_array(object, name), shape);
  };
  const Input<Real> in = contiguous_input<Real>("w_ih", w_ih, {H, I}), hh = contiguous("w_hh", w_hh, {H, H});
  const Input<Real> b_in = contiguous("b_ih", b_ih, {H}), b = contiguous("b_hh", b_hh, {H});
  std::optional<Input<Real>> leaks;
  if (!leak.is_none()) leaks = contiguous("leak", leak, {H});
  auto parts = SparseParts<Real>::of({.H = H,
                                      .I = I,
                                      .w_ih = in.view().data,
                                      .w_hh = hh.view().data,
                                      .b_ih = b_in.view().data,
                                      .b_hh = b.view().data,
                                      .leak = leaks ? leaks->view().data : nullptr},
                                     is_relu);
  if (!parts) return py::none();
  if (!before.is_none()) {
    const auto* const packed = std::get_if<SparseReservoir<Real>>(&before.cast<const ReservoirObject&>().packed);
    if (packed && packed->parts() == *parts) return before;
  }
  return py::cast(ReservoirObject{SparseReservoir<Real>(std::move(*parts))});
}

template <class Real>
py::object states_of(const SparseReservoir<Real>& packed, const py::object& x_object, const py::object& h_object) {
  const Reservoir<Real> r = packed.view();
  const Array x = as_array(x_object, "x");
  if (x.ndim() != 3 || x.shape(2) != r.I) wrong_shape("x", "(T, B, " + std::to_string(r.I) + ")", x);
  const Index T = x.shape(0), B = x.shape(1);
  if (double(T) * double(B) * double(r.H + r.I) > most_elements)
    throw py::value_error("x: expected a size that fits the address space, got " + shape_text(x.shape()));
  const Input<Real> in = input<Real>("x", x, {T, B, r.I}), h = input<Real>("h", as_array(h_object, "h"), {B, r.H});
  const std::optional y = output<Real>("y", py::none(), {T, B, r.H});
  const double flops = 2.0 * double(r.all.first[r.blocks]) * kernels<Real>().block_units * double(T) * double(B);
  const Index vectors = (B + kernels<Real>().lanes - 1) / kernels<Real>().lanes;
  const Index threads = team_size(flops, std::max(vectors, Index(1)));
  const Buffer scratch(std::size_t(kernels<Real>().reservoir_scratch(r, threads)) * sizeof(Real));
  const ReservoirArgs<Real> args = {.reservoir = r,
                                    .T = T,
                                    .B = B,
                                    .x = in.view(),
                                    .h = h.view(),
                                    .y = y->view(),
                                    .scratch = static_cast<Real*>(scratch.data()),
                                    .gathers = gathers_pay<Real>()};
  call(threads, [&](const Team& team) { kernels<Real>().reservoir(args, team); });
  return finish(y);
}

}  // namespace

void bind_reservoir(py::module_& m) {
  py::class_<ReservoirObject>(m, "SparseReservoir", py::is_final(),
                              "A reservoir as lists of its connections. Opaque and read-only.")
      .def(
          "states",
          [](const ReservoirObject& self, const py::object& x, const py::object& h) {
            return std::visit([&](const auto& packed) { return states_of(packed, x, h); }, self.packed);
          },
          "x"_a, "h"_a);
  m.def(
      "sparse_reservoir",
      [](const py::object& w_ih, const py::object& w_hh, const py::object& b_ih, const py::object& b_hh,
         const py::object& leak, bool is_relu, const py::object& before) {
        const Array array = as_array(w_ih, "w_ih");
        return is_double("w_ih", array) ? packed_of<double>(array, w_hh, b_ih, b_hh, leak, is_relu, before)
                                        : packed_of<float>(array, w_hh, b_ih, b_hh, leak, is_relu, before);
      },
      "w_ih"_a, "w_hh"_a, "b_ih"_a, "b_hh"_a, "leak"_a, "is_relu"_a, "before"_a = py::none());
}

}  // namespace rnnfast
