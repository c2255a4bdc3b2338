// The list of cells. Their order is that of everything that lists them.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/cells/elman.h"
#include "kernels/cells/gru.h"
#include "kernels/cells/gru_norm.h"
#include "kernels/cells/lstm.h"
#include "kernels/cells/lstm_norm.h"
#include "kernels/cells/norm.h"
#include "kernels/cells/slstm.h"
#include "kernels/products/blocks.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

template <class Real, class Cell, int phase, int halvings>
constexpr void add_functions(CellFunctions<Real>& f) {
  using S = Width<Real, halvings>;
  if constexpr (phase < pointwise_count<Cell>) {
    if constexpr (is_normalised_cell<Cell>) {
      f.forward[phase][halvings] = forward_stage<Cell, phase, S>;
      f.backward[phase][halvings] = backward_stage<Cell, phase, S>;
    } else {
      f.forward[phase][halvings] = forward_rows<Cell, phase, S>;
      f.backward[phase][halvings] = backward_rows<Cell, phase, S>;
    }
    if constexpr (halvings + 1 < width_count)
      add_functions<Real, Cell, phase, halvings + 1>(f);
    else
      add_functions<Real, Cell, phase + 1, 0>(f);
  }
}

template <class Real, class Cell>
constexpr CellFunctions<Real> functions_of() {
  CellFunctions<Real> functions = {};
  add_functions<Real, Cell, 0, 0>(functions);
  return functions;
}

template <class... Cells>
struct CellList {
  static constexpr int count = sizeof...(Cells);

  static constexpr auto shapes = [] {
    struct {
      CellShape of[count];
    } all = {};
    int index = 0;
    ((all.of[index] = shape_of<Cells>(index), ++index), ...);
    return all;
  }();

  template <class Real>
  static constexpr CellFunctions<Real> functions[] = {functions_of<Real, Cells>()...};
};

using AllCells =
    CellList<Lstm, LstmPeephole, Cifg, CifgPeephole, LstmNorm, LstmNormCarried, Gru, GruResetBefore, GruNorm,
             Elman<Tanh>, Elman<Relu>, LeakyElman<Tanh>, LeakyElman<Relu>, Slstm<SigmoidForget>, Slstm<ExpForget>>;

template <class Real>
RNNFAST_INLINE const CellFunctions<Real>& functions_of(const CellShape& cell) {
  return AllCells::functions<Real>[cell.index];
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
