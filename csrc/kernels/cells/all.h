// The list of cells. Their order is that of everything that lists them.
#pragma once

#include "kernels/cells/cell.h"
#include "kernels/cells/elman.h"
#include "kernels/cells/gru.h"
#include "kernels/cells/lstm.h"
#include "kernels/cells/slstm.h"
#include "kernels/vec.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {
namespace {

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

using AllCells = CellList<Lstm, LstmPeephole, Cifg, CifgPeephole, Gru, GruResetBefore, Elman<Tanh>, Elman<Relu>,
                          LeakyElman<Tanh>, LeakyElman<Relu>, Slstm<SigmoidForget>, Slstm<ExpForget>>;

template <class Real>
RNNFAST_INLINE const CellFunctions<Real>& functions_of(const CellShape& cell) {
  return AllCells::functions<Real>[cell.index];
}

}  // namespace
}  // namespace rnnfast::RNNFAST_ISA
