"""Reservoirs of few connections, which run as lists of them."""

from collections.abc import Sequence

import numpy as np

from .. import _core
from .._base.arrays import Array
from ..layers import RNN


class Runners:
    """What computes the states of each reservoir soonest, by its present weights: itself, or their lists.

    Lists that were made before are used as long as the weights are the same ones, element by element.
    """

    def __init__(self) -> None:
        self._made: dict[int, _core.SparseReservoir | None] = {}

    def of(self, reservoirs: Sequence[RNN]) -> "list[RNN | Sparse]":
        """Return one for each reservoir."""
        return [self._of(k, rnn) for k, rnn in enumerate(reservoirs)]

    def _of(self, k: int, rnn: RNN) -> "RNN | Sparse":
        weights = (rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0)
        is_relu, before = rnn.nonlinearity == "relu", self._made.get(k)
        made = self._made[k] = _core.sparse_reservoir(*weights, rnn.fixed.get("leak"), is_relu, before)
        return rnn if made is None else Sparse(made)


class Sparse:
    """Lists of connections, called as the layer is."""

    def __init__(self, reservoir: _core.SparseReservoir) -> None:
        self._reservoir = reservoir

    def __call__(self, x: Array, h: Array, *, lengths: Array | None = None) -> tuple[Array, Array]:
        """Return states [T,B,H], zero beyond the lengths, and the last ones [1,B,H]."""
        y = self._reservoir.states(x, h[0])
        if lengths is None:
            return y, y[-1:].copy()
        last = np.where((lengths > 0)[:, np.newaxis], y[lengths - 1, np.arange(len(lengths))], h[0])
        y[np.arange(len(y))[:, np.newaxis] >= lengths] = 0
        return y, last[np.newaxis]

    def stream(self, _: int) -> "SparseStream":
        """Return what takes single steps of any number of sequences."""
        return SparseStream(self._reservoir)


class SparseStream:
    """The same for sequences whose steps come one by one, as a layer's stream."""

    def __init__(self, reservoir: _core.SparseReservoir) -> None:
        self._reservoir = reservoir
        self.state: Array  # [1,B,H], set before the first step

    def step(self, x: Array) -> Array:
        """Return the states [B,H] after x [B,I]."""
        self.state = self._reservoir.states(x[np.newaxis], self.state[0])
        h: Array = self.state[0]
        return h
