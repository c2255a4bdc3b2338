// The calls of the layers with arguments of which the kernels' own arrays have been read.
#pragma once

#include <optional>

#include "python/arguments.h"
#include "python/arrays.h"
#include "types.h"

namespace rnnfast {

// What a forward is given beside its input and its parameters. None: not there.
struct ForwardObjects {
  StateArrays state0 = {};
  py::object start = py::none(), out = py::none();
  py::object factors = py::none(), zoneout = py::none(), candidates = py::none();
  py::object memory = py::none();  // of the tape, filled: the steps have been run, and `out` holds their y; None: they
                                   // are to be run
  py::object held = py::none();
  py::object steps = py::none();
  py::object eps = py::none();
  bool rounded = false;  // the factors of products are, to bfloat16
  bool training;
  Index threads;
  const Results &y_results = numpy_results, &state_results = numpy_results;  // where `out` is None
};

// y, the last states and, in training, the tape.
py::tuple forward(const CellShape& cell, const InputArrays& in, const Sequences& sequences, GivenParameters parameters,
                  const ForwardObjects& given);

// What a backward is given beside the tape.
struct BackwardObjects {
  std::optional<Array> dy = {};
  StateArrays dstate = {};
  py::object dsteps = py::none(), grads = py::none(), out = py::none();
  py::object flow = py::none();    // the gradients of all states of every step, filled; None: not wanted
  py::object dstart = py::none();  // those of `start` of forward are added into these; None: into dstate0
  py::object steps = py::none();
  bool need_dx = true, need_dstate0 = true;
  double clip = 0;
  py::object windows = py::none();
  Index threads;
  const Results& results = numpy_results;  // where `out` and `grads` are None
};

// dx, the gradients of the initial states and those of each direction's parameters.
py::tuple backward(const py::object& tape, const BackwardObjects& given);

}  // namespace rnnfast
