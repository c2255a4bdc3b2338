"""What a stack's forward keeps for its backward."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from .. import _core
from .._base.arrays import Array
from .._base.module import Tape
from .._base.scalars import integer, shown
from .._base.state import STATES, Parts
from .call import Call
from .layout import Layout
from .stack import Stack
from .zoneout import masks_of


class Strand(NamedTuple):
    """Layers that a segment passes through, in one direction."""

    layers: range
    direction: int


class Segment(NamedTuple):
    """Some steps."""

    steps: slice
    rows: slice  # of the kernels' arrays
    B: int  # sequences that have its first step
    ends: Array | None  # of those that have its last step, whether an episode ends there; None where nothing says so


class Checkpoints(NamedTuple):
    """What a forward keeps that will be run again."""

    segments: list[Segment]
    states: dict[Strand, list[list[Parts]]]  # before each segment, of each layer, each part [1,B,H]
    inputs: list[Array]  # x of each group
    bits: list[list[Array]]  # of the dropout after each layer but the last, for each segment
    tapes: dict[Strand, list[_core.Tape]]  # of the segment that each strand ran last, and backward needs first


@dataclass(frozen=True, eq=False, repr=False, init=False)
class LayerTape(Tape):
    """What a layer's forward keeps for its backward. It is only read: any number of backwards may use it.

    Its methods return the states and gates of every step, unless `forward` was called with `checkpoint`.

    Attributes
    ----------
    owner : LSTM, GRU, RNN or SLSTM
        The layer whose forward returned it.
    x, y : ndarray or PackedSequence
        The input and the output of that forward.
    masks : tuple of ndarray
        The factors of dropout after each layer but the last, which are 0 or 1 / (1 - dropout).

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> y, state, tape = rnnfast.LSTM(3, 4, rng=0).forward(np.ones((5, 2, 3), np.float32))
    >>> isinstance(tape, rnnfast.LayerTape)
    True
    >>> tape.c(0).shape, sorted(tape.gates(0))
    ((5, 2, 4), ['f', 'g', 'i', 'o'])
    """

    owner: Stack[Any]
    kept: Any  # the kernels' tape of each layer, or checkpoints
    masks: tuple[Array, ...]
    plain: _core.PlainLayer | None = None  # what the call was one of; its tape makes the next two when they are asked

    def __init__(self, **fields: Any) -> None:  # the one that a frozen dataclass would have takes a microsecond
        vars(self).update(fields)

    @cached_property
    def call(self) -> Call:
        """The arguments of the forward."""
        x, first = self.x, self.kept[0].state0
        T, B, _ = x.shape
        return Call(Layout((T, B), T, B, False, False), x, x, first, first, None, "all", [None], None, False)

    @cached_property
    def hidden(self) -> tuple[Array, ...]:
        """The h of every step of each layer, as the kernels have it."""
        return (self.kept[0].y,)

    @property
    def weight_masks(self) -> dict[str, Array]:
        """Which elements or rows of each w_hh were kept, by parameter name; empty if all were."""
        return {} if self.call.dropped is None else dict(self.call.dropped.kept)

    @property
    def recurrent_masks(self) -> dict[str, Array]:
        """Which elements of h' were kept in the recurrent products, by the names of `masks`; empty if all were."""
        return {} if self.call.dropped_h is None else dict(self.call.dropped_h.kept)

    @property
    def candidate_masks(self) -> dict[str, Any]:
        """Which candidates were kept, bools [T,B,H] in the layout of x, or [B,H], by the names of `masks`."""
        return {} if self.call.candidates is None else self.call.candidates.masks(self.owner.hidden_size)

    @property
    def zoneout_masks(self) -> dict[str, Any]:
        """Which units of the states have their new value, bools [T,B,H] in the layout of x, by the names of `masks`."""
        return {} if self.call.zoneout is None else masks_of(self.owner, self.call.layout, self.call.zoneout)

    def h(self, layer: int) -> Any:
        """Return h of every step of a layer, in the layout of x. It is read-only.

        Parameters
        ----------
        layer : int
            From 0; negative ones count from the last layer.

        Returns
        -------
        ndarray [T,B,D·H] or PackedSequence
            A view, or a copy where sequences are padded.

        Raises
        ------
        TypeError, ValueError
            If there is no such layer, or the tape keeps checkpoints only.
        """
        rows: Array = self._of(self.hidden, layer).view()
        rows.flags.writeable = False
        return self.call.layout.give(rows)

    def c(self, layer: int) -> Any:
        """Return c of every step of a layer of an LSTM or an SLSTM. Takes and raises what `h` does."""
        return self._state("c", layer, "an LSTM or an SLSTM")

    def n(self, layer: int) -> Any:
        """Return n of every step of a layer of an SLSTM. Takes and raises what `h` does."""
        return self._state("n", layer, "an SLSTM")

    def m(self, layer: int) -> Any:
        """Return m of every step of a layer of an SLSTM. Takes and raises what `h` does."""
        return self._state("m", layer, "an SLSTM")

    def gates(self, layer: int) -> dict[str, Any]:
        """Return the activated gates of every step of a layer by their letters, in the layout of `h`.

        Takes and raises what `h` does. Each call copies the gates, since the kernels store them in blocks of units.
        """
        kept = self._of(self.kept, layer)
        return {name: self._given(kept.gate(name)) for name in kept.gates}

    def _state(self, name: str, layer: int, owner: str) -> Any:
        """Return a state beside h of every step of a layer, which some owner has."""
        parts = STATES[self.owner.cell]
        if name not in parts:
            msg = f"layer: expected one of {owner}, got one of {self.owner!r}"
            raise ValueError(msg)
        return self._given(self._of(self.kept, layer).states[parts.index(name) - 1])

    def _of(self, of_layers: Any, layer: int) -> Any:
        L = self.owner.num_layers
        if isinstance(self.kept, Checkpoints):
            msg = "tape: expected one with every step, got one with checkpoints"
            raise ValueError(msg)
        k = integer(layer, "layer")
        if not -L <= k < L:
            msg = f"layer: expected {-L} to {L - 1}, got {shown(k)}"
            raise ValueError(msg)
        return of_layers[k]

    def _given(self, rows: Array) -> Any:
        layout = self.call.layout
        return layout.give(rows.reshape(*layout.row_shape, rows.shape[-1]))
