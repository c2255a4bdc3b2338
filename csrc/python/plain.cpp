// Calls of a layer without options, and of a cell, on arrays as the kernels take them: what can be known beforehand is
// looked at once, and what a call takes of Python is one call of a method.
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "python/layers.h"
#include "python/tape.h"
#include "types.h"

namespace rnnfast {
namespace {

// x and the states have as many axes as `axes` says: 3, or those of a step, 2, or 1 without a batch. None of its
// methods' results means that a call is not of this kind: it is for others to compute, or to say what is wrong with it.
class PlainLayer {
 public:
  PlainLayer(const py::object& cell, int axes, py::dtype dtype, Index I, const py::tuple& state_sizes, py::tuple names,
             py::tuple fixed)
      : cell_(&cell_named(cell)),
        axes_(axes),
        results_(std::size_t(3 - axes)),
        dtype_(std::move(dtype)),
        I_(I),
        D_(Index(names.size())),
        names_(std::move(names)),
        fixed_(std::move(fixed)) {
    for (const py::handle size : state_sizes) state_sizes_.push_back(size.cast<Index>());
  }

  // (y, state) or, in training, (y, state, tape).
  template <bool training>
  py::object forward(const py::object& parameters, const py::object& x, const py::object& state) const {
    const std::optional<Array> in = as_given(x);
    if (!in || in->shape(0) < 1 || in->shape(2) != I_) return py::none();
    if (!PyDict_CheckExact(parameters.ptr()) && !PyList_CheckExact(parameters.ptr())) return py::none();
    const std::optional<StateArrays> state0 = parts(state, in->shape(1));
    if (!state0) return py::none();
    py::tuple results = rnnfast::forward(
        *cell_, {.x = *in, .embedding = std::nullopt},
        {.batch_sizes = py::none(), .resets = py::none(), .ends = py::none(), .reverse = false},
        read_parameters(*cell_, of_directions(parameters)),
        {.state0 = *state0, .training = training, .threads = 0, .y_results = results_, .state_results = results_});
    return with_state(std::move(results));
  }

  // dx, the gradient of the initial state and those of parameters, by their names.
  py::object backward(const py::object& parameters, const py::object& object, const py::object& dy,
                      const py::object& dstate, bool need_dx) const {
    if (!PyDict_CheckExact(parameters.ptr())) return py::none();
    const Problem& p = tape_in(object).problem;
    std::optional<Array> dsteps;
    if (!dy.is_none()) {
      dsteps = as_given(dy);
      if (!dsteps || dsteps->shape() != Shape{p.T, p.B, p.D * p.P}) return py::none();
    }
    const std::optional<StateArrays> dlast = parts(dstate, p.B);
    if (!dlast || (!dsteps && has_none(*dlast))) return py::none();
    py::tuple results = rnnfast::backward(
        object, {.dy = dsteps, .dstate = *dlast, .need_dx = need_dx, .threads = 0, .results = results_});
    py::dict grads;
    const py::list made = results[2];
    for (std::size_t d = 0; d < made.size(); ++d) {
      const py::tuple names = names_[d], arrays = made[d];
      for (std::size_t i = 0; i < arrays.size(); ++i)
        if (!arrays[i].is_none() && found(parameters, names[i])) grads[names[i]] = arrays[i];
    }
    results[2] = std::move(grads);
    return with_state(std::move(results));
  }

 private:
  // An array of NumPy's own class with the layer's dtype itself, as one of three axes, or none.
  std::optional<Array> as_given(const py::handle& object) const {
    if (Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_) return std::nullopt;
    const auto* const array = py::detail::array_proxy(object.ptr());
    if (array->nd != axes_ || array->descr != dtype_.ptr()) return std::nullopt;
    const Array given(py::reinterpret_borrow<py::array>(object));
    return axes_ == 3 ? given : given.with_axes(3);
  }

  // The parts of a state, or none where it is not a plain one.
  std::optional<StateArrays> parts(const py::object& state, Index B) const {
    StateArrays arrays;
    if (state.is_none()) return arrays;
    const std::size_t S = state_sizes_.size();
    if (S > 1 && (!PyTuple_CheckExact(state.ptr()) || std::size_t(PyTuple_GET_SIZE(state.ptr())) != S))
      return std::nullopt;
    for (std::size_t s = 0; s < S; ++s) {
      const py::handle part = S > 1 ? PyTuple_GET_ITEM(state.ptr(), Py_ssize_t(s)) : state.ptr();
      if (part.is_none()) continue;
      arrays[s] = as_given(part);
      if (!arrays[s] || arrays[s]->shape() != Shape{D_, B, state_sizes_[s]}) return std::nullopt;
    }
    return arrays;
  }

  static PyObject* found(const py::handle& parameters, const py::handle& name) {
    PyObject* const parameter = PyDict_GetItemWithError(parameters.ptr(), name.ptr());
    if (!parameter && PyErr_Occurred()) throw py::error_already_set();
    return parameter;
  }

  // Parameters of each direction from those of all names; a list of them is as it is to be.
  py::object of_directions(const py::object& given) const {
    if (!PyDict_CheckExact(given.ptr())) return given;
    py::tuple directions(names_.size());
    for (std::size_t d = 0; d < directions.size(); ++d) {
      const py::tuple names = names_[d];
      py::tuple direction(names.size());
      for (std::size_t i = 0; i < direction.size(); ++i) {
        const py::handle fixed = PyTuple_GET_ITEM(fixed_.ptr(), Py_ssize_t(i));
        PyObject* const parameter = fixed.is_none() ? found(given, names[i]) : fixed.ptr();
        direction[i] = parameter ? py::handle(parameter) : py::none();
      }
      directions[d] = std::move(direction);
    }
    return directions;
  }

  // Results with the state, which is the second, as users get it.
  py::object with_state(py::tuple results) const {
    if (state_sizes_.size() == 1) results[1] = py::object(py::tuple(results[1])[0]);
    return results;
  }

  const CellShape* cell_;
  int axes_;
  ArrayResults results_;
  py::dtype dtype_;
  Index I_, D_;
  std::vector<Index> state_sizes_;
  py::tuple names_, fixed_;
};

}  // namespace

void bind_plain(py::module_& m) {
  py::class_<PlainLayer>(m, "PlainLayer", py::is_final(),
                         "The calls of a layer without options, or of a cell, on arrays as the kernels take them.")
      .def(py::init<const py::object&, int, py::dtype, Index, const py::tuple&, py::tuple, py::tuple>(), "cell"_a,
           "axes"_a, "dtype"_a, "I"_a, "state_sizes"_a, "names"_a, "fixed"_a)
      .def("inference", &PlainLayer::forward<false>, "parameters"_a, "x"_a, "state"_a)
      .def("forward", &PlainLayer::forward<true>, "parameters"_a, "x"_a, "state"_a)
      .def("backward", &PlainLayer::backward, "parameters"_a, "tape"_a, "dy"_a, "dstate"_a, "need_dx"_a);
}

}  // namespace rnnfast
