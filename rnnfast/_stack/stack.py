"""The stack of layers as its runs see it: sizes, options, parameters, states and dropout between layers.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers and D directions. A state has parts [L·D,B,H].
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Literal, TypeAlias

import numpy as np

from .. import _core
from .._base.arrays import Array, checked
from .._base.module import Kept, RecurrentModule, Shape
from .._base.names import ends_of, of_layer, recurrent_shapes
from .._base.scalars import Flag, Integer, Number, addressable, flag, number, size
from .._base.state import Parts, StateT, each, initial_names, parts_of
from .attributes import StackAttributes
from .layout import Layout

WeightDropout: TypeAlias = Number | tuple[Literal["rows"], Number]


class Stack(RecurrentModule, StackAttributes, Generic[StateT]):
    """L layers of one cell, in D directions. What runs them are functions of this package."""

    def __init__(
        self,
        input_size: Integer,
        hidden_size: Integer,
        num_layers: Integer = 1,
        bias: Flag = True,
        batch_first: Flag = False,
        dropout: Number = 0.0,
        bidirectional: Flag = False,
        *,
        dtype: Any = "float32",
        seed: Any = None,
        learn_initial_state: Flag = False,
        weight_dropout: WeightDropout = 0.0,
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.num_layers = size(num_layers, "num_layers")
        self.bias = flag(bias, "bias")
        self.batch_first = flag(batch_first, "batch_first")
        self.dropout = number(dropout, "dropout")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.learn_initial_state = flag(learn_initial_state, "learn_initial_state")
        self.weight_dropout = _weight_dropout(weight_dropout)
        if not 0 <= self.dropout <= 1:
            msg = f"dropout: expected a probability, got {self.dropout}"
            raise ValueError(msg)
        if self.dropout > 0 and self.num_layers == 1 and not isinstance(seed, Kept):
            msg = f"dropout: expected 0 for a single layer, as it acts between layers, got {self.dropout}"
            warnings.warn(msg, stacklevel=2)
        self.gates = _core.cells[self.cell].num_gates
        self.directions = 1 + self.bidirectional
        G, H, L, D = self.gates, self.hidden_size, self.num_layers, self.directions
        widest = max(self.input_size, D * H)
        addressable(L * D * G * H * (widest + H + 2), "input_size, hidden_size, num_layers")
        super().__init__(self._shapes(), H, dtype, seed)

    def _shapes(self) -> Iterator[Shape]:
        H, L, D = self.hidden_size, self.num_layers, self.directions
        for k in range(L):
            shapes = recurrent_shapes(self.cell, D * H if k else self.input_size, H, self.bias)
            own = [(name, shape) for name, shape in shapes.items() if name not in self.fixed]
            yield from ((name + end, shape) for end in ends_of(k, D) for name, shape in own)
        if self.learn_initial_state:
            yield from ((name, (L * D, H)) for name in initial_names(self.cell))

    def of_layer(self, layer: int, others: Mapping[str, Array] | None = None) -> list[tuple[Array | None, ...]]:
        """Return the parameters of a layer as the kernels take them, others in the place of those of their names."""
        parameters = {**self.parameters, **others} if others else self.parameters
        directions = of_layer(parameters, self.cell, layer, self.directions)
        return [self.with_fixed(arrays) for arrays in directions] if self.fixed else directions


def _weight_dropout(value: Any) -> float | tuple[Literal["rows"], float]:
    """Return a probability, or that of rows."""
    of_rows = isinstance(value, tuple | list)  # a list, from a file
    if of_rows and not (len(value) == 2 and isinstance(value[0], str) and value[0] == "rows"):
        msg = f"weight_dropout: expected a probability or ('rows', probability), got {value!r}"
        raise ValueError(msg)
    rate = number(value[1] if of_rows else value, "weight_dropout")
    if not 0 <= rate < 1:
        msg = f"weight_dropout: expected a probability of less than 1, got {rate}"
        raise ValueError(msg)
    return ("rows", rate) if of_rows and rate else rate


# States


def state_shape(stack: Stack[Any], B: int) -> tuple[int, int, int]:
    """Return the shape of each part of a state."""
    return stack.num_layers * stack.directions, B, stack.hidden_size


def state_of_layer(stack: Stack[Any], state: Parts, layer: int) -> Parts:
    """Return the state [D,B,H] of one layer."""
    if stack.num_layers == 1:
        return state
    D = stack.directions
    return each(lambda part: part[layer * D : (layer + 1) * D], state)


def checked_state(stack: Stack[Any], state: object, name: str, layout: Layout) -> Parts:
    """Return a state that the caller gives."""
    units, _, H = shape = state_shape(stack, layout.B)
    given = (units, H) if layout.unbatched else shape
    parts = parts_of(stack.cell, state, name)
    return each(lambda part: checked(part, name, given, stack.dtype).reshape(shape), parts)


def learned_state(stack: Stack[Any], B: int) -> Parts:
    """Return the initial state that the stack learns."""
    parameters, shape = stack.parameters, state_shape(stack, B)
    return tuple(np.broadcast_to(parameters[name][:, None], shape) for name in initial_names(stack.cell))


def new_state(stack: Stack[Any], layout: Layout) -> Parts:
    """Return room for a state of the sequences that have a step."""
    shape = state_shape(stack, layout.B if layout.running is None else len(layout.running))
    return tuple(np.empty(shape, stack.dtype) for _ in initial_names(stack.cell))


# Dropout


@contextmanager
def drawing(stack: Stack[Any]) -> Iterator[None]:
    """Put the generator back where a run fails: tokens are checked when their steps are run, after draws."""
    if not (stack.dropout or stack.weight_dropout):
        yield
        return
    generator = stack.rng.bit_generator
    before = generator.state
    try:
        yield
    except BaseException:
        generator.state = before
        raise


def mask(stack: Stack[Any], shape: tuple[int, ...]) -> Array:
    """Draw the factors of inverted dropout: 0 with probability p, else 1 / (1 - p)."""
    return factors(stack, stack.rng.random(shape, np.float32) >= stack.dropout)


def factors(stack: Stack[Any], kept: Array) -> Array:
    """Return the factors for what is kept and what is not."""
    return kept.astype(stack.dtype) * (1 / (1 - stack.dropout) if stack.dropout < 1 else 0)
