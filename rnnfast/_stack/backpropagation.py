"""The backward of a stack: check what the caller gives, run the layers backwards, return what the caller wants."""

from typing import Any

import numpy as np

from .._base.arrays import Array, checked, quiet
from .._base.named import checked_grads
from .._base.scalars import bound, flag
from .._base.state import Parts, add_to_initial, beside_h, parts_of
from . import segments, whole
from .call import Flow, Given, checked_steps
from .layout import Layout
from .stack import Stack, checked_state, new_state, state_shapes
from .tape import Checkpoints, LayerTape


@quiet
def backward(
    stack: Stack[Any],
    tape: LayerTape,
    dy: object,
    dstate: object,
    *,
    dc: object = None,
    dh_layers: object = None,
    clip_dh: object = None,
    need_dx: object = True,
    grads: dict[str, Array] | None = None,
    flow: Flow | None = None,
) -> tuple[Any, Any, dict[str, Array]]:
    """Do what `Recurrent.backward` does; `flow` is handed the gradients of all states of each layer."""
    need_dx = flag(need_dx, "need_dx")
    call, layout = tape.call, tape.call.layout
    if dy is None and dstate is None and dc is None and dh_layers is None:
        msg = "dy, dstate: expected at least one gradient, got none"
        raise ValueError(msg)
    beside = beside_h(stack.cell, dc, "dc")
    dlast = checked_state(stack, dstate, "dstate", layout)
    width = stack.directions * stack.h_size
    d = None
    if call.outputs == "last" and dy is not None:
        rows_of_last = () if layout.unbatched else (layout.B,)
        dlast = _with_top(stack, layout, dlast, checked(dy, "dy", (*rows_of_last, width), stack.dtype))
    elif dy is not None:
        d = layout.checked(dy, "dy", (width,), stack.dtype)
    H = stack.hidden_size
    given = Given(
        d,
        layout.take_state(dlast),
        None if beside is None else _by_layer([checked_steps(stack, part, "dc", layout, H) for part in beside]),
        checked_steps(stack, dh_layers, "dh_layers", layout, stack.h_size),
        bound(clip_dh),
        need_dx,
        flow,
    )
    others = {} if call.embedding is None or not need_dx else {"embedding": call.embedding}
    into = None
    if grads is not None:
        steps = tuple(given.dsteps or ()), given.dh or ()
        given_parts = parts_of(stack.cell, dstate, "dstate")
        read = call.x, call.first, call.embedding, dy, given_parts  # the last two are copied on some ways to `given`
        into = checked_grads(grads, stack.parameters, read, tape.hidden, given[:2], steps, **others)
    dfirst = new_state(stack, layout)
    run = segments.backward if isinstance(tape.kept, Checkpoints) else whole.backward
    masks = () if call.dropped is None else call.dropped.kept
    # The kernels' gradients of w_hh are still to be masked, and are not added to those that are there.
    targets = into if into is None else into | {name: np.zeros_like(into[name]) for name in masks}
    dx, made = run(stack, tape, given, targets, dfirst)
    if call.dropped is not None:
        made |= {name: call.dropped.masked(name, made[name]) for name in masks}
    first = layout.whole_state(dfirst, dlast)
    if grads is None or into is None:
        made |= {name: dx for name in others if dx is not None}
        made |= {name: np.zeros_like(p) for name, p in stack.parameters.items() if name not in made}
        grads = into = {name: made[name] for name in (*stack.parameters, *others)}
    else:
        for name in masks:
            into[name] += made[name]
        for name in others:
            into[name] += dx
    if call.learned:
        add_to_initial(stack.cell, into, first)
    dx = None if dx is None or call.is_tokens else layout.give(dx)
    return dx, layout.give_state(first), grads


def _by_layer(beside: list[list[Array] | None]) -> list[Parts]:
    """Return the parts that are there of each layer, from those of all layers."""
    L = next(len(part) for part in beside if part is not None)
    return list(zip(*((None,) * L if part is None else part for part in beside), strict=True))


def _with_top(stack: Stack[Any], layout: Layout, dlast: Parts, dy: Array) -> Parts:
    """Return the gradients of the last state with dy, of the top layer's h, added."""
    parts, D = zip(dlast, state_shapes(stack, layout.B), strict=True), stack.directions
    whole = tuple(np.zeros(shape, stack.dtype) if part is None else np.array(part) for part, shape in parts)
    whole[0][-D:] += dy.reshape(layout.B, D, stack.h_size).swapaxes(0, 1)
    return whole
