"""The arguments of a stack's forward and backward: as calls take them, and checked, as the kernels see them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import numpy as np

from .. import _core
from .._base.arrays import Array, ArrayLike, Integers, checked
from .._base.precision import is_rounded
from .._base.scalars import Integer, Number, choice
from .._base.state import Parts
from . import candidate_dropout, recurrent_dropout, weight_dropout
from .layout import Layout, layout_of
from .masks import Check, checked_masks
from .stack import Stack, checked_state, learned_state
from .zoneout import Zoned, mean_of, names_of, zoned

Held: TypeAlias = Mapping[str, Number]
Override: TypeAlias = Held | Sequence[Held | None] | None
Outputs: TypeAlias = Literal["all", "last"]
Flow: TypeAlias = Callable[[int, Parts], None]


class Call(NamedTuple):
    """The checked arguments of a forward; states and rows as the kernels see them, but for `first`."""

    layout: Layout
    x: Array
    rows: Array  # x
    first: Parts  # the initial state
    state: Parts
    resets: Array | None
    outputs: str
    held: list[Held | None]  # of each layer
    embedding: Array | None
    learned: bool  # the sequences started from initial_h, initial_c
    dropped: weight_dropout.Dropped | None = None  # the w_hh, where they are not the stack's
    dropped_h: recurrent_dropout.DroppedH | None = None  # the masks of h', where there are some
    candidates: candidate_dropout.DroppedCandidates | None = None  # their masks, likewise
    zoneout: Zoned | None = None
    rounded: bool = False  # the factors of products are, to bfloat16

    def of_layer(self, stack: Stack[Any], layer: int) -> list[Any]:
        """Return the parameters of a layer in this call as the kernels take them."""
        return stack._for_calls(layer, self.dropped and self.dropped.weights)

    def factors_of(self, layer: int) -> Array | None:
        """Return what h' of a layer is multiplied by in the recurrent products."""
        return None if self.dropped_h is None else self.dropped_h.factors[layer]

    def candidates_of(self, ends: Sequence[str], rows: slice = slice(None), B: int | None = None) -> Any:
        """Return what the kernels are told of the candidates of some directions, for some rows and the first B."""
        return None if self.candidates is None else self.candidates.of(ends, rows, B)

    def zoneout_of(self, layer: int) -> tuple[Any, ...] | None:
        """Return the rates or the bits of the states of a layer as the kernels take them."""
        return None if self.zoneout is None else self.zoneout[layer]

    @property
    def is_tokens(self) -> bool:
        """Whether x selects rows, of an embedding or of the identity."""
        return len(self.rows.shape) == len(self.layout.row_shape)


class Given(NamedTuple):
    """The checked arguments of a backward, as the kernels see them; what is None is zero."""

    dy: Array | None
    dlast: Parts
    dsteps: list[Parts] | None  # of each layer, the parts beside h
    dh: list[Array] | None
    clip_dh: float  # 0: none
    need_dx: bool
    flow: Flow | None

    def with_layer(self, d: Array | None, layer: int) -> Array | None:
        """Return the gradient of a layer's y: d from above, and its own."""
        if self.dh is None:
            return d
        return self.dh[layer] if d is None else d + self.dh[layer]


class CallOptions(TypedDict, total=False):
    """What a call of a layer takes by name, beside `outputs`."""

    lengths: Integers | None
    resets: ArrayLike | None
    embedding: ArrayLike | None
    gate_override: Override


class ForwardOptions(CallOptions, total=False):
    """What `forward` takes by name, beside `outputs`."""

    checkpoint: Integer | str | None
    masks: Mapping[str, ArrayLike] | None


def checked_call(
    stack: Stack[Any],
    x: object,
    state: object,
    lengths: object,
    resets: object,
    outputs: str,
    embedding: object,
    gate_override: Override,
) -> Call:
    """Check the arguments of a forward."""
    rows = None if embedding is None else _core.asarray(embedding, "embedding", stack.dtype)
    choice(outputs, "outputs", ("all", "last"))
    held: Sequence[Any] = [gate_override] * stack.num_layers
    if isinstance(gate_override, list | tuple):
        held = gate_override
        if len(held) != stack.num_layers:
            msg = f"gate_override: expected a dict, or one for each of {stack.num_layers} layers, got {len(held)}"
            raise ValueError(msg)
    if gate_override is not None:
        for of_layer in held:
            _core.check_gate_override(stack.cell, of_layer, stack.dtype)
    x, layout = layout_of(x, lengths, stack.input_size, stack.batch_first, rows is not None, stack.dtype)
    learned = state is None and stack.learn_initial_state
    first = learned_state(stack, layout.B) if learned else checked_state(stack, state, "state", layout)
    if resets is not None:
        resets = layout.checked(resets, "resets", (), np.dtype(bool))
    taken = layout.take_state(first)
    zoneout = mean_of(stack) if stack.zoneout else None
    return Call(
        layout,
        x,
        layout.take(x),
        first,
        taken,
        resets,
        outputs,
        list(held),
        rows,
        learned,
        zoneout=zoneout,
        rounded=is_rounded(stack),
    )


def with_masks(stack: Stack[Any], call: Call, masks: object) -> Call:
    """Return the call with all that the stack leaves out in training, by masks that are given or else drawn."""
    layout, bools = call.layout, np.dtype(bool)
    shapes = weight_dropout.shapes_of(stack) | recurrent_dropout.shapes_of(stack, layout)
    checks: dict[str, Check] = {name: partial(checked, shape=shape, dtype=bools) for name, shape in shapes.items()}
    of_rows = partial(layout.checked, features=(stack.hidden_size,), dtype=bools)
    checks |= dict.fromkeys(names_of(stack), of_rows) | candidate_dropout.checks_of(stack, layout)
    given = checked_masks(masks, checks)
    return call._replace(
        dropped=weight_dropout.dropped(stack, given),
        dropped_h=recurrent_dropout.dropped_h(stack, layout, given),
        zoneout=zoned(stack, layout, given),
        candidates=candidate_dropout.dropped_candidates(stack, layout, given),
    )


def checked_steps(stack: Stack[Any], a: object, name: str, layout: Layout, units: int) -> list[Array] | None:
    """Return what is given of so many units of each step of each layer as the kernels see it."""
    if a is None:
        return None
    shape = (stack.num_layers, *layout.axes, stack.directions * units)
    return [layout.take(of_layer) for of_layer in checked(a, name, shape, stack.dtype)]


def results(stack: Stack[Any], call: Call, hidden: tuple[Array, ...], last: Parts) -> tuple[Any, Any]:
    """Return y and the last state as the caller has x and the state."""
    layout = call.layout
    last = layout.whole_state(last, call.first)
    state = layout.give_state(last)
    if call.outputs == "all":
        return layout.give(hidden[-1]), state
    h, D = last[0], stack.directions
    top = h[-D:].swapaxes(0, 1).reshape(layout.B, D * stack.h_size)
    return top[0] if layout.unbatched else top, state
