"""A stack run layer by layer, each over all of time."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _core
from .._base.arrays import Array, quiet
from .._base.names import by_direction, ends_of
from .._base.state import Parts
from . import wave
from .call import Call, Given
from .stack import Stack, mask, state_of_layer
from .tape import LayerTape


def infer(stack: Stack[Any], call: Call) -> tuple[tuple[Array, ...], Parts]:
    """Return y of the top layer and the last state; no dropout."""
    hidden, last, *_ = _run(_core.inference, stack, call, dropout=False)
    return hidden, last


def forward(
    stack: Stack[Any], call: Call, *, dropout: bool = True
) -> tuple[tuple[Array, ...], Parts, tuple[_core.Tape, ...], tuple[Array, ...]]:
    """Return h of every step of each layer, the last state, the kernels' tapes and the factors of dropout."""
    return _run(_core.forward, stack, call, dropout=dropout and stack.dropout > 0)


def _run(
    run: Callable[..., Any], stack: Stack[Any], call: Call, *, dropout: bool
) -> tuple[tuple[Array, ...], Parts, tuple[Any, ...], tuple[Array, ...]]:
    """Run each layer by `run` of the core."""
    if wave.pays(stack, call, call.layout.T):
        return _run_as_wave(stack, call, training=run is _core.forward, dropout=dropout)
    y = call.rows
    last: list[Parts] = []
    hidden: list[Array] = []
    kept: list[Any] = []
    masks: list[Array] = []
    for k in range(stack.num_layers):
        if k and dropout:
            masks.append(mask(stack, y.shape))
            y = quiet(np.multiply)(y, masks[-1])
        y, after, *tape = run(
            stack.cell,
            y,
            call.of_layer(stack, k),
            state_of_layer(stack, call.state, k),
            None,
            None if k else call.embedding,
            batch_sizes=call.layout.batch_sizes,
            resets=call.resets,
            gate_override=call.held[k],
            recurrent_factors=call.factors_of(k),
            zoneout=call.zoneout_of(k),
            candidate_dropout=call.candidates_of(ends_of(k, stack.directions)),
            layer_norm_eps=stack.eps,
            rounded=call.rounded,
        )
        last.append(after)
        hidden = [*hidden, y] if tape else [y]
        kept += tape
    return tuple(hidden), _whole_state(last), tuple(kept), tuple(masks)


def _run_as_wave(
    stack: Stack[Any], call: Call, *, training: bool, dropout: bool
) -> tuple[tuple[Array, ...], Parts, tuple[Any, ...], tuple[Array, ...]]:
    """Do the same where all layers run at once."""
    layers = range(stack.num_layers)
    shape = *call.layout.row_shape, stack.h_size
    masks = [mask(stack, shape) for _ in layers[1:]] if dropout else None
    states = [state_of_layer(stack, call.state, k) for k in layers]
    results = wave.run_forward(stack, call, call.rows, states, masks, training=training)
    hidden = [y for y, *_ in results]
    kept = tuple(tape for _, _, *tapes in results for tape in tapes)
    last = _whole_state([after for _, after, *_ in results])
    return tuple(hidden if training else hidden[-1:]), last, kept, tuple(masks or ())


def _whole_state(last: list[Parts]) -> Parts:
    """Return the state of all layers."""
    return last[0] if len(last) == 1 else tuple(np.concatenate(parts) for parts in zip(*last, strict=True))


def backward(
    stack: Stack[Any], tape: LayerTape, given: Given, grads: dict[str, Array] | None, dfirst: Parts
) -> tuple[Array | None, dict[str, Array]]:
    """Run the layers backwards; fill dfirst, return dx and the gradients of the parameters."""
    d: Any = given.dy
    made: dict[str, Array] = {}
    others = given.dsteps is not None or given.dh is not None or given.flow is not None
    if not others and wave.pays(stack, tape.call, tape.call.layout.T, backward=True):
        results = wave.run_backward(stack, tape, given, grads, dfirst)
        for k, (_, _, new) in enumerate(results):
            _add_named(stack, k, new, made)
        return results[0][0], made
    for k in reversed(range(stack.num_layers)):
        d = given.with_layer(d, k)
        flow: Parts = () if given.flow is None else _room_for_steps(stack, tape.hidden[k])
        d, _, new = _core.backward(
            tape.kept[k],
            d,
            state_of_layer(stack, given.dlast, k),
            given.need_dx or k > 0,
            None if grads is None else by_direction(grads, stack.names_of(k)),
            (None, state_of_layer(stack, dfirst, k)),
            dsteps=None if given.dsteps is None else given.dsteps[k],
            clip_dh=given.clip_dh,
            flow=flow or None,
        )
        if given.flow is not None:
            given.flow(k, flow)
        if k and tape.masks:
            d *= tape.masks[k - 1]
        _add_named(stack, k, new, made)
    return d, made


def _add_named(stack: Stack[Any], layer: int, new: Any, made: dict[str, Array]) -> None:
    """Put the gradients of a layer's parameters there by name."""
    for names, arrays in zip(stack.names_of(layer), new, strict=True):
        made |= {name: array for name, array in zip(names, arrays, strict=True) if array is not None}


def _room_for_steps(stack: Stack[Any], h: Array) -> Parts:
    """Return room for each part of the states of every step, where h is that of every step."""
    return tuple(np.empty((*h.shape[:-1], stack.directions * n), stack.dtype) for n in stack.state_sizes)
