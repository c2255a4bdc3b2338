"""The stack of layers as its runs see it: sizes, options, parameters, states and dropout between layers.

Sizes are T time steps, B sequences, I inputs, H hidden units, P elements of h (H unless it is a projection), L layers
and D directions. A state has parts [L·D,B,H]; that of h is [L·D,B,P].
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, Generic, Literal

import numpy as np

from .. import _core
from .._base.arrays import Array, checked, float_dtype
from .._base.module import Check, Kept, RecurrentModule, Shape, with_fixed
from .._base.names import by_direction, ends_of, layer_names, recurrent_shapes
from .._base.precision import Precision
from .._base.scalars import RNG, Flag, Integer, Number, addressable, count, flag, shown, size
from .._base.state import STATES, Parts, StateT, initial_names, parts_of
from .attributes import StackAttributes
from .layout import Layout
from .options import OPTIONS, WeightDropout, Zoneout


class Stack(RecurrentModule, StackAttributes, Generic[StateT]):
    """L layers of one cell, in D directions. What runs them are functions of this package."""

    layer_norm: str | None = None
    proj_size: int = 0
    batch_first: bool
    dropout: float
    weight_dropout: float | tuple[Literal["rows"], float]
    recurrent_dropout: float
    recurrent_dropout_per_gate: bool
    candidate_dropout: float
    candidate_dropout_per_sequence: bool
    zoneout: float | tuple[float, float]
    layer_norm_eps: float
    precision: Precision | None = None
    changeable: ClassVar[Mapping[str, Check]] = {**RecurrentModule.changeable, **OPTIONS}

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
        rng: RNG | None = None,
        seed: RNG | None = None,
        learn_initial_state: Flag = False,
        proj_size: Integer = 0,
        weight_dropout: WeightDropout = 0.0,
        recurrent_dropout: Number = 0.0,
        recurrent_dropout_per_gate: Flag = False,
        candidate_dropout: Number = 0.0,
        candidate_dropout_per_sequence: Flag = False,
        zoneout: Zoneout = 0.0,
        layer_norm_eps: Number = 1e-5,
        precision: Precision | None = None,
    ) -> None:
        self.input_size = size(input_size, "input_size")
        self.hidden_size = size(hidden_size, "hidden_size")
        self.proj_size = count(proj_size, "proj_size")
        if self.proj_size >= self.hidden_size:
            msg = (
                f"proj_size: expected 0, for none, to {shown(self.hidden_size - 1)}, less than hidden_size, "
                f"got {shown(self.proj_size)}"
            )
            raise ValueError(msg)
        self.h_size = self.proj_size or self.hidden_size
        self.state_sizes = (self.h_size, *[self.hidden_size] * (len(STATES[self.cell]) - 1))
        self.num_layers = size(num_layers, "num_layers")
        self.bias = flag(bias, "bias")
        self.bidirectional = flag(bidirectional, "bidirectional")
        self.learn_initial_state = flag(learn_initial_state, "learn_initial_state")
        self.dtype = float_dtype(dtype)
        given = {
            "batch_first": batch_first,
            "dropout": dropout,
            "weight_dropout": weight_dropout,
            "recurrent_dropout": recurrent_dropout,
            "recurrent_dropout_per_gate": recurrent_dropout_per_gate,
            "candidate_dropout": candidate_dropout,
            "candidate_dropout_per_sequence": candidate_dropout_per_sequence,
            "zoneout": zoneout,
            "layer_norm_eps": layer_norm_eps,
            "precision": precision,
        }
        for name, value in given.items():
            setattr(self, name, value)
        if self.dropout > 0 and self.num_layers == 1 and not isinstance(rng, Kept):
            msg = f"dropout: expected 0 for a single layer, as it acts between layers, got {self.dropout}"
            warnings.warn(msg, stacklevel=3)
        self.gates = _core.cells[self.cell].num_gates
        self.directions = 1 + self.bidirectional
        G, H, L, D = self.gates, self.hidden_size, self.num_layers, self.directions
        widest = max(self.input_size, D * H)
        addressable(L * D * G * H * (widest + H + 2), "input_size, hidden_size, num_layers")
        super().__init__(self._shapes(), H, dtype, rng, seed)

    def _shapes(self) -> Iterator[Shape]:
        H, P, L, D = self.hidden_size, self.h_size, self.num_layers, self.directions
        for k in range(L):
            I = D * P if k else self.input_size
            shapes = recurrent_shapes(self.cell, I, H, self.bias, self.proj_size, self.num_heads)
            own = [(name, shape) for name, shape in shapes.items() if name not in self.fixed]
            yield from ((name + end, shape) for end in ends_of(k, D) for name, shape in own)
        if self.learn_initial_state:
            yield from zip(initial_names(self.cell), ((L * D, n) for n in self.state_sizes), strict=True)

    def names_of(self, layer: int) -> tuple[tuple[str, ...], ...]:
        """Return the names of one layer's parameters, a tuple for each direction, in the order of `of_layer`.

        Parameters
        ----------
        layer : int
            From 0 to L - 1.
        """
        if not 0 <= layer < self.num_layers:
            msg = f"layer: expected 0 to {self.num_layers - 1}, got {layer}"
            raise ValueError(msg)
        return layer_names(self.cell, layer, self.directions, self.proj_size > 0)

    @property
    def eps(self) -> float | None:
        """What `rnnfast.functional` takes as `layer_norm_eps`: None where nothing is normalised."""
        return None if self.layer_norm is None else self.layer_norm_eps

    def of_layer(self, layer: int, others: Mapping[str, Array] | None = None) -> list[tuple[Array | None, ...]]:
        """Return one layer's parameters as `rnnfast.functional` takes them, a tuple for each direction.

        Parameters
        ----------
        layer : int
            From 0 to L - 1.
        others : mapping of arrays, optional
            What stands in the place of parameters, by their names.

        Returns
        -------
        list of tuples of ndarrays
            The arrays themselves. None where the layer has none.

        Examples
        --------
        >>> import numpy as np
        >>> import rnnfast
        >>> gru, x = rnnfast.GRU(3, 4), np.ones((5, 2, 3), np.float32)
        >>> y, h = rnnfast.functional.inference(gru.cell, x, gru.of_layer(0))
        >>> np.array_equal(y, gru(x)[0])
        True
        """
        parameters = {**self.parameters, **others} if others else self.parameters
        directions = by_direction(parameters, self.names_of(layer))
        return [with_fixed(self, arrays) for arrays in directions] if self.fixed else directions

    def _for_calls(self, layer: int, others: Mapping[str, Array] | None = None) -> list[Any]:
        """Return the same for calls, which may have them packed."""
        return self.of_layer(layer, others)


def rates_of(stack: Stack[Any]) -> tuple[float, ...]:
    """Return the probability with which a unit of each state keeps its value in a step."""
    rates = stack.zoneout
    return rates if isinstance(rates, tuple) else (rates,) * len(stack.state_sizes)


# States


def state_shapes(stack: Stack[Any], B: int) -> list[tuple[int, int, int]]:
    """Return the shapes of the parts of a state."""
    return [(stack.num_layers * stack.directions, B, n) for n in stack.state_sizes]


def state_of_layer(stack: Stack[Any], state: Parts, layer: int) -> Parts:
    """Return the state [D,B,H] of one layer."""
    if stack.num_layers == 1:
        return state
    first, last = layer * stack.directions, (layer + 1) * stack.directions
    return tuple([None if part is None else part[first:last] for part in state])


def checked_state(stack: Stack[Any], state: object, name: str, layout: Layout) -> Parts:
    """Return a state that the caller gives."""
    parts = parts_of(stack.cell, state, name)
    if state is None:
        return parts
    shapes = state_shapes(stack, layout.B)
    if layout.unbatched:
        return checked_parts(stack, parts, name, [(K, n) for K, _, n in shapes], shapes)
    given = zip(parts, shapes, strict=True)
    return tuple([None if part is None else checked(part, name, shape, stack.dtype) for part, shape in given])


def checked_parts(
    stack: Stack[Any], parts: Parts, name: str, given: Iterable[tuple[int, ...]], shapes: Iterable[tuple[int, ...]]
) -> Parts:
    """Return parts that the caller gives with some shapes in others."""
    return tuple(
        None if part is None else checked(part, name, own, stack.dtype).reshape(shape)
        for part, own, shape in zip(parts, given, shapes, strict=True)
    )


def learned_state(stack: Stack[Any], B: int) -> Parts:
    """Return the initial state that the stack learns."""
    named = zip(initial_names(stack.cell), state_shapes(stack, B), strict=True)
    return tuple(np.broadcast_to(stack.parameters[name][:, None], shape) for name, shape in named)


def new_state(stack: Stack[Any], layout: Layout) -> Parts:
    """Return room for a state of the sequences that have a step."""
    B = layout.B if layout.running is None else len(layout.running)
    return tuple(np.empty(shape, stack.dtype) for shape in state_shapes(stack, B))


# Dropout


def is_masked(stack: Stack[Any]) -> bool:
    """Return whether a forward has masks."""
    return bool(stack.weight_dropout or stack.recurrent_dropout or stack.candidate_dropout or stack.zoneout)


def drawing(stack: Stack[Any]) -> AbstractContextManager[None]:
    """Put the generator back where a run fails: tokens are checked when their steps are run, after draws."""
    return _drawing(stack) if stack.dropout or is_masked(stack) else nullcontext()


@contextmanager
def _drawing(stack: Stack[Any]) -> Iterator[None]:
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
