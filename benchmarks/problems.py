"""What is measured: one layer of a cell on arrays of some sizes, and the works that it is put to."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rnnfast import _core
from rnnfast.lm import LAYERS

Array: TypeAlias = NDArray[Any]
Shape: TypeAlias = tuple[int, int, int, int]  # T, B, I, H

CELLS = {name: layer(1, 1).cell for name, layer in LAYERS.items()}  # of the layers, by the kernels' names

FORWARD, PACKED, TRAINING, TRAINING_NO_DX = "forward", "packed", "training", "training-no-dx"
WORKS = {
    FORWARD: "forward",
    PACKED: "forward, weights packed beforehand",
    TRAINING: "forward + backward",
    TRAINING_NO_DX: "forward + backward without dx",
}

# Sizes that no vector divides, and the same work with the multiples of 16 below and above.
ODD: dict[Shape, tuple[Shape, Shape]] = {
    (50, 32, 100, 100): ((50, 32, 96, 96), (50, 32, 112, 112)),
    (50, 32, 200, 200): ((50, 32, 192, 192), (50, 32, 208, 208)),
    (50, 32, 650, 650): ((50, 32, 640, 640), (50, 32, 656, 656)),
    (50, 32, 39, 128): ((50, 32, 32, 128), (50, 32, 48, 128)),
    (50, 32, 80, 128): ((50, 32, 64, 128), (50, 32, 96, 128)),
}

FEW: list[Shape] = [(100, 1, 128, 128), (50, 32, 256, 256), (100, 64, 1, 128)]
SIZES, BATCHES = [64, 128, 256, 512], [1, 8]  # H = I and B of single steps
QUICK: list[Shape] = [(50, 1, 64, 64), (20, 32, 128, 128), (50, 64, 1, 64)]
GRIDS: dict[str, list[Shape]] = {
    "peers": [
        (100, 1, 64, 64),
        (100, 1, 128, 128),
        (100, 1, 256, 256),
        (100, 1, 512, 512),
        (50, 1, 1024, 1024),
        (100, 8, 128, 128),
        (100, 16, 256, 256),
        (50, 32, 128, 128),
        (50, 32, 256, 256),
        (50, 32, 512, 512),
        (50, 64, 512, 512),
        (50, 64, 1024, 1024),
        (25, 128, 256, 256),
        (784, 64, 1, 128),
        (30, 256, 10, 32),
    ],
    "small": [(784, 64, 1, 128), (30, 256, 10, 32), (200, 64, 3, 20), *((100, 64, H, H) for H in range(1, 17))],
    "odd": list(dict.fromkeys(shape for odd, around in ODD.items() for shape in (around[0], odd, around[1]))),
}


@dataclass(frozen=True)
class Problem:
    """One layer without an initial state. Equal sizes have equal numbers, in any process and either dtype."""

    cell: str
    T: int
    B: int
    I: int
    H: int
    dtype: str = "float32"

    def __reduce__(self) -> tuple[Any, ...]:
        return Problem, (self.cell, *self.shape, self.dtype)  # the arrays are made where they are used

    @property
    def shape(self) -> Shape:
        return self.T, self.B, self.I, self.H

    @property
    def gates(self) -> int:
        return _core.cells[CELLS[self.cell]].num_gates

    @property
    def num_states(self) -> int:
        return len(_core.cells[CELLS[self.cell]].states)

    @property
    def w_hh_bytes(self) -> int:
        return self.gates * self.H * self.H * np.dtype(self.dtype).itemsize

    @cached_property
    def x(self) -> Array:
        """Return the input [T,B,I]."""
        return self._normal(0, self.T, self.B, self.I)

    @cached_property
    def dy(self) -> Array:
        """Return the gradient of the outputs [T,B,H]."""
        return self._normal(1, self.T, self.B, self.H)

    @cached_property
    def parameters(self) -> dict[str, Array]:
        """Return the weights w_ih [G·H,I], w_hh [G·H,H] and the biases b_ih, b_hh [G·H], in our order of the gates."""
        G, I, H = self.gates, self.I, self.H
        rng = np.random.default_rng(2)
        shapes = {"w_ih": (G * H, I), "w_hh": (G * H, H), "b_ih": (G * H,), "b_hh": (G * H,)}
        return {name: self._floats(rng.uniform(-1, 1, shape) / H**0.5) for name, shape in shapes.items()}

    def _normal(self, seed: int, *shape: int) -> Array:
        return self._floats(np.random.default_rng(seed).standard_normal(shape))

    def _floats(self, a: Array) -> Array:
        """Return numbers that float32 holds, so that both dtypes have the same problem."""
        return a.astype(np.float32).astype(self.dtype)

    def flops(self, work: str) -> int:
        """Return how many floating point operations the matrix products of a work have.

        Forward has one product with x and one with h at each step, 2·T·B·G·H·(I+H) operations; forward + backward
        three times that, or less by the product that makes dx, 2·T·B·G·H·I, where nobody needs it.
        """
        rows = 2 * self.T * self.B * self.gates * self.H
        if work in (FORWARD, PACKED):
            return rows * (self.I + self.H)
        return rows * (3 * (self.I + self.H) - (self.I if work == TRAINING_NO_DX else 0))
