"""A single layer called without options, with an array [T,B,I] as the kernels take it: what it costs is the kernels.

`fits` and `fits_tape` say whether a call is such a one. All others, the wrong ones among them, are for the modules
beside this one, which give the same results.
"""

from typing import Any, TypeGuard

import numpy as np

from .. import _core
from .._base.arrays import Array
from .._base.precision import is_rounded
from .._base.state import parts_if_plain, parts_of, state_of
from .call import Call
from .layout import Layout
from .stack import Stack
from .tape import LayerTape


def fits(x: object, stack: Stack[Any], state: object, outputs: object) -> TypeGuard[Array]:
    """Return whether a call without other options is plain."""
    return (
        type(x) is np.ndarray
        and isinstance(outputs, str)
        and outputs == "all"
        and x.ndim == 3
        and x.dtype is stack.dtype
        and x.shape[2] == stack.input_size
        and x.shape[0] > 0
        and stack.num_layers == 1
        and not stack.batch_first
        and not stack.learn_initial_state
        and not stack.zoneout
        and stack.layer_norm is None
        and not is_rounded(stack)
        and _is_state(stack, state, x.shape[1])
    )


def fits_tape(stack: Stack[Any], tape: LayerTape, dy: object, dstate: object) -> bool:
    """Return whether a backward without options is plain."""
    if not tape.call.plain or (dy is None and dstate is None):
        return False
    y = tape.hidden[0]
    if dy is not None and not (type(dy) is np.ndarray and dy.dtype is y.dtype and dy.shape == y.shape):
        return False
    return _is_state(stack, dstate, y.shape[1])


def infer(stack: Stack[Any], x: Array, state: object) -> tuple[Array, Any]:
    """Return y and the last state."""
    parameters, first = stack._for_calls(0), parts_of(stack.cell, state, "state")
    y, last = _core.inference(stack.cell, x, parameters, first)
    return y, state_of(last)


def forward(stack: Stack[Any], x: Array, state: object) -> tuple[Array, Any, LayerTape]:
    """Return y, the last state and the tape."""
    parameters, first = stack.of_layer(0), parts_of(stack.cell, state, "state")
    y, last, kept = _core.forward(stack.cell, x, parameters, first)
    T, B, _ = x.shape
    x = x.view()  # the caller can give x and y another shape
    call = Call(Layout((T, B), T, B, False, False), x, x, first, first, None, "all", [None], None, False, plain=True)
    return y, state_of(last), LayerTape(stack, x, y, call, (y.view(),), (kept,), ())


def backward(
    stack: Stack[Any], tape: LayerTape, dy: object, dstate: object, need_dx: bool
) -> tuple[Array | None, Any, dict[str, Array]]:
    """Return dx and the gradients of the initial state and of the parameters."""
    dx, dfirst, new = _core.backward(tape.kept[0], dy, parts_of(stack.cell, dstate, "dstate"), need_dx)
    own = stack.parameters
    grads = {
        name: array
        for names, arrays in zip(stack.names_of(0), new, strict=True)
        for name, array in zip(names, arrays, strict=True)
        if array is not None and name in own
    }
    return dx, state_of(dfirst), grads


def _is_state(stack: Stack[Any], state: object, B: int) -> bool:
    """Return whether a state is as the kernels take it, its parts in a tuple."""
    if state is None:
        return True
    parts = parts_if_plain(stack.cell, state)
    if parts is None:
        return False
    for part, n in zip(parts, stack.state_sizes, strict=True):
        shape = stack.directions, B, n
        if part is not None and not (type(part) is np.ndarray and part.dtype is stack.dtype and part.shape == shape):
            return False
    return True
