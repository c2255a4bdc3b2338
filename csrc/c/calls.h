// What a call of the layers of capi.h is made of, once it is read: a layer, what a tape and a pack hold, and arrays.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "c/capi.h"
#include "c/checks.h"
#include "c/claim.h"
#include "c/functions.h"
#include "run/formats.h"
#include "run/memory.h"
#include "run/problem.h"
#include "run/schedule.h"
#include "types.h"

namespace rnnfast {

// ---- Layers --------------------------------------------------------------------------------------------------------

// A checked rnnfast_layer. Weights are null where none were given.
struct Layer {
  const CellShape* cell;
  rnnfast_dtype dtype;
  Index I, H, P, D, heads;
  double eps;  // of a forward: packed weights are the same for any
  Parameters<const void> weights[2];
  std::array<double, most_states> zoneout;
  bool rounded;
};

inline bool same_sizes(const Layer& a, const Layer& b) {
  return a.cell == b.cell && a.dtype == b.dtype && a.I == b.I && a.H == b.H && a.P == b.P && a.D == b.D &&
         a.heads == b.heads && a.rounded == b.rounded;
}

inline Problem problem_of(const Layer& layer, Index T, Index B) {
  const Sizes sizes = {.T = T, .B = B, .I = layer.I, .H = layer.H, .D = layer.D, .P = layer.P, .heads = layer.heads};
  Problem p = problem_of(*layer.cell, sizes);
  p.rounded = layer.rounded;
  return p;
}

template <class Args>
void require_size(const Args* args, const char* name) {
  require(args, "%s: expected a pointer, got NULL", name);
  require(args->size == sizeof(Args), "%s->size: expected %zu, got %zu", name, sizeof(Args), args->size);
}

inline Layer read_layer(const rnnfast_layer* layer, bool needs_weights) {
  require_size(layer, "layer");
  require(layer->cell, "cell: expected the name of a cell, got NULL");
  require_dtype(layer->dtype);
  Layer read = {.cell = &cell_named(layer->cell),
                .dtype = layer->dtype,
                .I = layer->input_size,
                .H = layer->hidden_size,
                .P = 0,
                .D = layer->num_directions,
                .heads = 1,
                .eps = 0,
                .weights = {},
                .zoneout = {},
                .rounded = read_precision(layer->precision, layer->dtype)};
  require(read.I >= 1 && read.H >= 1, "I, H: expected at least 1, got %td, %td", read.I, read.H);
  require(read.D == 1 || read.D == 2, "D: expected 1 or 2, got %td", read.D);
  read.P = read_size_of_h(*read.cell, read.H, layer->proj_size);
  const double units = double(read.H) + 64;
  require(64 * units * (double(read.I) + units) < most_elements,
          "I, H: expected sizes that fit the address space, got %td, %td", read.I, read.H);
  read.heads = read_heads(*read.cell, read.H, layer->num_heads);
  read.zoneout = read_zoneout(layer->zoneout, *read.cell, read.P < read.H);
  read.eps = read_eps(*read.cell, read.dtype, layer->layer_norm_eps);
  if (read.rounded) {
    const std::string refusal = refusal_of_rounding(problem_of(read, 1, 1));
    require(refusal.empty(), "precision: expected RNNFAST_FULL %s", refusal.c_str());
  }
  require(layer->weights || !needs_weights, "weights: expected an array, got NULL");
  for (Index d = 0; layer->weights && d < read.D; ++d)
    read.weights[d] = read_weights(layer->weights[d], *read.cell, read.P < read.H);
  return read;
}

// A caller's arrays of the states of a cell.
template <class Void>
using StatePointers = std::array<Void*, most_states>;

template <class Void>
StatePointers<Void> read_states(Void* const* given, const CellShape& cell) {
  StatePointers<Void> states = {};
  if (given) std::copy_n(given, cell.state_count, states.begin());
  return states;
}

}  // namespace rnnfast

struct rnnfast_pack {
  rnnfast::Layer layer;
  rnnfast::Buffer data;
};

namespace rnnfast {

// A part of what a tape keeps, in memory of its own or in the caller's.
struct Kept {
  Buffer own;
  void* lent = nullptr;

  void* data() const { return lent ? lent : own.data(); }
};

}  // namespace rnnfast

struct rnnfast_tape {
  rnnfast::Borrowed lent = {};  // by callers inside the library
  rnnfast::Layer layer = {};
  rnnfast_forward_args forward = {};
  rnnfast::StatePointers<const void> state0 = {};
  rnnfast::StatePointers<const unsigned char> renewed = {};
  rnnfast::Problem problem = {};
  rnnfast::Schedule schedule;
  rnnfast::TapeMemory<rnnfast::Kept> memory;
  rnnfast::Buffer scratch;
  bool filled = false;
  rnnfast::Caller caller = 0;
};

namespace rnnfast {

// ---- Arrays --------------------------------------------------------------------------------------------------------

// Of [D,B,H], of h [D,B,P].
inline Index elements_of_state(const Problem& p, std::size_t state) { return p.D * p.B * state_size(p, state); }

// Bytes of a row of masks.
inline Index row_of_bits(const Problem& p) { return p.D * bytes_of_bits(p.H); }

// Those of a call: none that is written may overlap another.
class Arrays {
 public:
  explicit Arrays(rnnfast_dtype dtype) : item_(dtype == RNNFAST_FLOAT64 ? sizeof(double) : sizeof(float)) {}

  void read(const char* name, const void* data, Index elements) {
    add({.argument = name, .state = no_state}, data, elements, false);
  }
  void written(const char* name, const void* data, Index elements) {
    add({.argument = name, .state = no_state}, data, elements, true);
  }

  // The masks of a forward.
  void read(const rnnfast_tape& tape) {
    const Problem& p = tape.problem;
    const rnnfast_forward_args& args = tape.forward;
    const Index bytes = row_of_bits(p), rows = row_count(p);
    for (std::size_t s = 0; s < most_states; ++s)
      add_bytes({.argument = "zoneout_masks", .state = int(s)}, tape.renewed[s], std::size_t(rows * bytes), false);
    read("recurrent_factors", args.recurrent_factors, p.D * p.B * p.masks * p.H);
    add_bytes({.argument = "candidate_mask", .state = no_state}, args.candidate_mask,
              std::size_t((p.keeps_by_sequence ? p.B : rows) * bytes), false);
  }

  void read(const char* name, const StatePointers<const void>& states, const Problem& p) {
    for (std::size_t s = 0; s < most_states; ++s)
      add({.argument = name, .state = int(s)}, states[s], elements_of_state(p, s), false);
  }
  void written(const char* name, const StatePointers<void>& states, const Problem& p) {
    for (std::size_t s = 0; s < most_states; ++s)
      add({.argument = name, .state = int(s)}, states[s], elements_of_state(p, s), true);
  }

  void read(const Layer& layer) {
    for (Index d = 0; d < layer.D; ++d) {
      const Parameters<const void>& w = layer.weights[d];
      const Index rows = layer.cell->gate_count * layer.H;
      read("w_ih", w.w_ih, rows * layer.I), read("w_hh", w.w_hh, rows * (layer.P / layer.heads));
      read("b_ih", w.b_ih, rows), read("b_hh", w.b_hh, rows);
      for (int i = 0; i < layer.cell->parameter_count; ++i)
        read(layer.cell->parameters[i].name, w.vectors[i], layer.cell->parameters[i].count * layer.H);
      read("w_hr", w.w_hr, layer.P * layer.H);
    }
  }

  void check() const {
    for (int i = 0; i < count_; ++i)
      for (int j = 0; j < count_; ++j) {
        const Entry &out = entries_[i], &other = entries_[j];
        if (out.is_written && i != j && out.low < other.high && other.low < out.high)
          require(false, "%s: expected memory of its own, got an array that overlaps %s", text(out.name).c_str(),
                  text(other.name).c_str());
      }
  }

 private:
  static constexpr int no_state = -1;

  struct Name {
    const char* argument;
    int state;  // of an array of states, or no_state
  };

  struct Entry {
    Name name;
    std::uintptr_t low, high;
    bool is_written;
  };

  static std::string text(const Name& name) {
    std::string words = name.argument;
    if (name.state != no_state) words.append("[").append(std::to_string(name.state)).append("]");
    return words;
  }

  void add(const Name& name, const void* data, Index elements, bool is_written) {
    if (!data) return;
    const auto low = reinterpret_cast<std::uintptr_t>(data);
    if (low % item_ != 0)
      require(false, "%s: expected an array aligned to its elements, got one that is not", text(name).c_str());
    add_bytes(name, data, std::size_t(elements) * item_, is_written);
  }

  void add_bytes(const Name& name, const void* data, std::size_t bytes, bool is_written) {
    if (!data) return;
    const auto low = reinterpret_cast<std::uintptr_t>(data);
    entries_[count_++] = {.name = name, .low = low, .high = low + bytes, .is_written = is_written};
  }

  // Of a backward with two directions: weights and their gradients, x, y, dx and dy, three arrays of states, and masks.
  static constexpr int most_entries = 4 * (5 + most_parameters) + 4 + 3 * most_states + most_states + 2;

  std::size_t item_;
  Entry entries_[most_entries];
  int count_ = 0;
};

}  // namespace rnnfast
