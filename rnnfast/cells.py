"""One step of a recurrent layer at a time, with the constructors, parameter names and shapes of torch's cells.

The same kernels as in the layers, at T = 1. Sizes are B sequences, I inputs and H hidden units.
"""

from typing import Any

from . import _core, functional
from ._module import PARAMETERS, Module, Tape, addressable, elman_cell, flag, gru_cell, recurrent_shapes, size
from .functional import GATES, Array, State, checked, each_part, split_state

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _RecurrentCell(Module):
    """One step of one cell."""

    cell: str

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, *, dtype: Any = "float32", seed: Any = None
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.bias = flag(bias, "bias")
        self.gates = GATES[self.cell]
        G, I, H = self.gates, self.input_size, self.hidden_size
        addressable(G * H * (I + H + 2), "input_size, hidden_size")
        super().__init__(recurrent_shapes(G, I, H, self.bias), H, dtype, seed)

    def __call__(self, x: object, state: object = None) -> State:
        """Make one step and keep nothing.

        Parameters
        ----------
        x : array [B,I] or [I]
            The input.
        state : array [B,H] or pair of such, [H] for x [I], optional
            The state before, h or (h, c); zero where it or a part of it is None.

        Returns
        -------
        state : ndarray or pair of ndarrays, as above
            The state after.

        Raises
        ------
        TypeError, ValueError
            If an argument does not fit. The message names it, what was expected and what came.
        """
        x, state = self._checked(x, state)
        _, state = functional.inference(self.cell, self._step(x), [self._tuple()], state)
        ...
