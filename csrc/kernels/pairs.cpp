// The tiles of products whose factors are both pairs of bfloat16. This file is compiled for each instruction set, where
// they emulate the instruction for it, and again for each extension of one that has it: RNNFAST_ISA is the name of
// either.
#include "kernels/products/gemm.h"
#include "types.h"

namespace rnnfast::RNNFAST_ISA {

#define RNNFAST_TEXT(name) #name
#define RNNFAST_NAME(name) RNNFAST_TEXT(name)
extern const PairKernels pair_kernels;
const PairKernels pair_kernels = {.name = multiplies_pairs ? RNNFAST_NAME(RNNFAST_ISA) : "emulate",
                                  .emulates = !multiplies_pairs,
                                  .tiles = tile_kinds<float, Factors::pairs>,
                                  .row_pairs = &pair_kernels,
                                  .release = nullptr};

}  // namespace rnnfast::RNNFAST_ISA
