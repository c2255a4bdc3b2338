// The tape as an object of Python: what it holds, and how it is moved on.
#include "python/tape.h"

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "python/arguments.h"
#include "python/arrays.h"
#include "run/dispatch.h"
#include "run/problem.h"
#include "run/schedule.h"
#include "types.h"

namespace rnnfast {
namespace {

// The tape's memory as arrays [n], empty where its cell keeps nothing; each keeps the tape alive.
template <class Real>
py::tuple memory_of(const py::object& owner, const TapeObject& tape) {
  const auto array = [&](const Memory& memory) {
    const void* data = memory.data() ? memory.data() : &tape;  // NumPy gives no owner to an array at null
    return py::array_t<Real>(Index(memory.bytes() / sizeof(Real)), static_cast<const Real*>(data), owner);
  };
  return py::make_tuple(array(tape.memory.gates), array(tape.memory.states), array(tape.memory.reset_h));
}

// The first step of each chunk, and T.
std::vector<Index> first_steps(const Problem& p) {
  std::vector<Index> first_step(std::size_t(p.T) + 1);
  first_step.resize(std::size_t(kernels<float>().cut(p, first_step.data())) + 1);
  return first_step;
}

// Forgets the first steps, whole chunks of a tape of whole chunks, and moves the others to the front. x is the
// caller's to move.
template <class Real>
void shift_of(TapeObject& tape, Saved<Real>& saved, Index steps) {
  require_steps_to_come(tape);
  const Problem& p = tape.problem;
  const Index length = first_steps(p)[1];
  if (p.T % length)
    throw py::value_error("tape: expected one of a multiple of " + std::to_string(length) + " steps, got one of " +
                          std::to_string(p.T));
  if (steps < 0 || steps > p.T || steps % length)
    throw py::value_error("steps: expected a multiple of " + std::to_string(length) + " up to " + std::to_string(p.T) +
                          ", got " + std::to_string(steps));
  const auto move = [&](void* data, Index bytes) {
    if (!data) return;
    const Index gone = bytes / p.T * steps;
    std::memmove(data, static_cast<char*>(data) + gone, std::size_t(bytes - gone));
  };
  constexpr Index item = sizeof(Real);
  const TapeSize size = kernels<Real>().tape_size(p);
  const Tape<Real> kept = tape_of<Real>(tape.memory, p, 0);
  move(kept.gates, size.gates * item), move(kept.reset_h, size.reset_h * item);
  for (const View<Real>& state : kept.states) move(state.data, p.T * p.B * p.H * item);
  move(saved.y.data(), saved.y.nbytes());
  move(tape.schedule.starts[0].data(), Index(tape.schedule.starts[0].size()));
}

py::array_t<Index> chunks(const py::object& batch_sizes, Index T, Index B, Index H) {
  Problem p = problem_of(cells()[0], {.T = T, .B = B, .I = 1, .H = H, .D = 1});  // the same for any cell
  std::vector<Index> first_row;
  if (!batch_sizes.is_none()) first_row = read_batch_sizes(batch_sizes), p.first_row = first_row.data();
  if (T < 1 || B < 0 || H < 1 || double(T) * double(B) > most_elements ||
      (p.first_row && Index(first_row.size()) != T + 1))
    throw py::value_error("T, B, H: expected sizes of a call, got " + shape_text({T, B, H}));
  const std::vector<Index> first_step = first_steps(p);
  return py::array_t<Index>(Index(first_step.size()), first_step.data());
}

// Elements of a tape's memory for one row of one direction.
py::tuple tape_row(const py::object& cell, Index H, const py::object& dtype, Index P) {
  if (H < 1 || double(H) > most_elements) throw py::value_error("H: expected a size, got " + std::to_string(H));
  if (P < 0 || P > H) throw py::value_error("P: expected 0 to " + std::to_string(H) + ", got " + std::to_string(P));
  const Problem p = problem_of(cell_named(cell), {.T = 1, .B = 1, .I = 1, .H = H, .D = 1, .P = P});
  const py::dtype type = py::dtype::from_args(dtype);
  const bool is_float = type.equal(py::dtype::of<float>());
  if (!is_float && !type.equal(py::dtype::of<double>()))
    throw py::type_error("dtype: expected float32 or float64, got " + text(type));
  const TapeSize size = is_float ? kernels<float>().tape_size(p) : kernels<double>().tape_size(p);
  return py::make_tuple(size.gates, size.states, size.reset_h);
}

// The states beside h of every step, [N,D·H]: the tape's own memory.
template <class Real>
py::tuple states_of(const py::object& owner, const TapeObject& tape) {
  const Problem& p = tape.problem;
  const Tape<const Real> kept = tape_of<const Real>(tape.memory, p, 0);
  py::tuple states{std::size_t(p.cell->state_count - 1)};
  for (std::size_t s = 0; s < states.size(); ++s) {
    py::array_t<Real> steps({row_count(p), p.D * p.H}, kept.states[s + 1].data, owner);
    steps.attr("setflags")("write"_a = false);
    states[s] = steps;
  }
  return states;
}

// The initial state as it was given.
template <class Real>
py::tuple initial_of(const TapeObject& tape, const Saved<Real>& saved) {
  py::tuple state{std::size_t(tape.problem.cell->state_count)};
  for (std::size_t s = 0; s < state.size(); ++s)
    state[s] = saved.initial[s] ? py::object(saved.initial[s]->given.view()) : py::none();
  return state;
}

// A gate of every step, [N,D·H].
template <class Real>
py::array gate_of(const TapeObject& tape, const std::string& name) {
  const Problem& p = tape.problem;
  const std::string gates = p.cell->gates;
  const std::size_t gate = name.size() == 1 ? gates.find(name) : gates.npos;
  if (gate == gates.npos) throw py::value_error("gate: expected one of '" + gates + "', got '" + name + "'");
  const py::array out = new_array<Real>({row_count(p), p.D * p.H});
  for (Index d = 0; d < p.D && p.B > 0; ++d)
    kernels<Real>().gate(p, tape_of<const Real>(tape.memory, p, d).gates, int(gate),
                         {static_cast<Real*>(const_cast<void*>(out.data())) + d * p.H, p.D * p.H});
  return out;
}

}  // namespace

void bind_tape(py::module_& m) {
  py::class_<TapeObject> tape_type(m, "Tape", py::is_final(),
                                   "What a training forward keeps for its backward. Opaque and read-only.");
  auto& type = *reinterpret_cast<PyTypeObject*>(tape_type.ptr());
  type.tp_new = nullptr;                                      // forward alone makes tapes
  type.tp_alloc = [](PyTypeObject* self, Py_ssize_t items) {  // pybind11 goes on with a null pointer
    PyObject* const object = PyType_GenericAlloc(self, items);
    if (!object) throw py::error_already_set();
    return object;
  };
  // Annotations can say Tape[State].
  const py::object alias = py::module_::import("types").attr("GenericAlias");
  tape_type.attr("__class_getitem__") = py::reinterpret_steal<py::object>(PyClassMethod_New(alias.ptr()));
  tape_type
      .def("__repr__",
           [](const TapeObject& tape) {
             const Problem& p = tape.problem;
             const py::str sizes = py::str("T={}, B={}, I={}, H={}, D={}").format(p.T, p.B, p.I, p.H, p.D);
             return py::str("<Tape of {}, {}{}>")
                 .format(p.cell->name, sizes, is_projected(p) ? ", P=" + std::to_string(p.P) : "");
           })
      .def_property_readonly("cell", [](const TapeObject& tape) { return tape.problem.cell->name; })
      .def_property_readonly("gates", [](const TapeObject& tape) { return tape.problem.cell->gates; })
      .def_property_readonly("nbytes",
                             [](const TapeObject& tape) {
                               return tape.memory.gates.bytes() + tape.memory.states.bytes() +
                                      tape.memory.reset_h.bytes();
                             })
      .def_property_readonly("states",
                             [](const py::object& object) {
                               return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
                                 return states_of<Real>(object, tape);
                               });
                             })
      .def_property_readonly("y",
                             [](const py::object& object) {
                               return with_tape(object,
                                                [](const TapeObject&, const auto& saved) { return saved.y.view(); });
                             })
      .def_property_readonly(
          "state0",
          [](const py::object& object) {
            return with_tape(object, [](const TapeObject& tape, const auto& saved) { return initial_of(tape, saved); });
          })
      .def_property_readonly("memory",
                             [](const py::object& object) {
                               return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
                                 return memory_of<Real>(object, tape);
                               });
                             })
      .def(
          "gate",
          [](const py::object& object, const std::string& name) {
            return with_tape(object, [&]<class Real>(const TapeObject& tape, const Saved<Real>&) {
              return gate_of<Real>(tape, name);
            });
          },
          "name"_a);

  m.def(
      "shift",
      [](const py::object& object, Index steps) {
        with_tape(object, [&](TapeObject& tape, auto& saved) { shift_of(tape, saved, steps); });
      },
      "tape"_a, "steps"_a);
  m.def("tape_row", &tape_row, "cell"_a, "H"_a, "dtype"_a, "P"_a = 0);
  m.def("chunks", &chunks, "batch_sizes"_a, "T"_a, "B"_a, "H"_a);
}

}  // namespace rnnfast
