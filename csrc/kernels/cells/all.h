// The list of cells. Their order is that of everything that lists them.
#pragma once

#include "elman.h"
#include "gru.h"
#include "lstm.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class... Cells>
struct CellList {
  static constexpr int count = sizeof...(Cells);
};

using AllCells = CellList<Lstm, Gru, GruResetBefore, Elman<Tanh>, Elman<Relu>>;

template <class... Cells>
constexpr auto shapes_of(CellList<Cells...>) {
  struct {
    CellShape of[sizeof...(Cells)];
  } shapes = {};
  int index = 0;
  ((shapes.of[index] = shape_of<Cells>(index), ++index), ...);
  return shapes;
}

constexpr auto cell_shapes = shapes_of(AllCells());

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
