"""Layers of one direction as a wavefront: each a chunk of time or more behind the one below, on another thread.

The bits are those of one layer after the other.
"""

from collections.abc import Sequence
from typing import Any

from .. import _core
from .._base.arrays import Array
from .._base.names import by_direction, ends_of
from .._base.state import Parts
from .call import Call, Given
from .stack import Stack, state_of_layer
from .tape import LayerTape
from .zoneout import part_of

ALL = slice(None)


def pays(stack: Stack[Any], call: Call, T: int, *, backward: bool = False) -> bool:
    """Return whether T steps of all layers can be had so, and are faster."""
    is_short = _core.least_steps_of_wave > T
    if is_short or stack.num_layers == 1 or stack.directions == 2 or call.rounded or _core.get_num_threads() == 1:
        return False
    layout = call.layout
    if layout.batch_sizes is not None or call.is_tokens:
        return False
    sizes = T, layout.row_shape[1], stack.input_size, stack.hidden_size, stack.proj_size, stack.num_heads
    return _core.wave_pays(stack.cell, *sizes, stack.num_layers, stack.dtype.itemsize == 8, backward)


def run_forward(
    stack: Stack[Any],
    call: Call,
    x: Array,
    states: Sequence[Parts],
    factors: Sequence[Array] | None,
    rows: slice = ALL,
    out: Sequence[tuple[Any, ...]] | None = None,
    *,
    training: bool,
) -> list[tuple[Any, ...]]:
    """Run some rows through all layers from the states before them; return what the core does for each layer.

    y of a layer is multiplied by the factors of dropout after it.
    """
    layers = range(stack.num_layers)
    dropped = call.dropped_h is not None
    zoned = call.zoneout is not None
    return _core.forward_wave(
        stack.cell,
        x,
        [call.of_layer(stack, k) for k in layers],
        states,
        training,
        out=out,
        start=None if rows == ALL else [state_of_layer(stack, call.state, k) for k in layers],
        dropout=factors,
        resets=None if call.resets is None else call.resets[rows],
        gate_override=call.held,
        recurrent_factors=[call.factors_of(k) for k in layers] if dropped else None,
        zoneout=[part_of(call.zoneout_of(k), rows, 0, 1) for k in layers] if zoned else None,
        candidate_dropout=[call.candidates_of(ends_of(k, 1), rows) for k in layers] if call.candidates else None,
        layer_norm_eps=stack.eps,
    )


def run_backward(
    stack: Stack[Any], tape: LayerTape, given: Given, grads: dict[str, Array] | None, dfirst: Parts
) -> list[tuple[Any, ...]]:
    """Run the layers backwards, where nothing but dy and dlast is given; return what the core does for each layer."""
    layers = range(stack.num_layers)
    return _core.backward_wave(
        tape.kept,
        given.dy,
        [state_of_layer(stack, given.dlast, k) for k in layers],
        given.need_dx,
        grads=None if grads is None else [by_direction(grads, stack.names_of(k)) for k in layers],
        out=[(None, state_of_layer(stack, dfirst, k)) for k in layers],
        dropout=tape.masks or None,
        clip_dh=given.clip_dh,
    )
