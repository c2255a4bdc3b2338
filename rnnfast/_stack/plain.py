"""A single layer called without options, with an array [T,B,I] as the kernels take it: what it costs is the kernels.

The functions return None where a call is not such a one, or something of it is wrong: the modules beside this one give
the same results, and say what is wrong.
"""

from typing import Any

from .. import _core
from .._base.arrays import Array
from .._base.names import parameter_names
from .._base.precision import default_precision
from .stack import Stack
from .tape import LayerTape

AXES = 3  # of x and of states


def infer(stack: Stack[Any], x: object, state: object, outputs: object) -> tuple[Array, Any] | None:
    """Return y and the last state of a call without other options."""
    layer = _layer_for(stack, outputs)
    if layer is None:
        return None
    return layer.inference(stack.parameters if stack.format is None else stack._for_calls(0), x, state)


def forward(stack: Stack[Any], x: Any, state: object, outputs: object) -> tuple[Array, Any, LayerTape] | None:
    """Return y, the last state and the tape of a forward without other options and without masks."""
    layer = _layer_for(stack, outputs)
    if layer is None:
        return None
    results = layer.forward(stack.parameters, x, state)
    if results is None:
        return None
    y, last, kept = results
    # A view, since the caller can give x another shape.
    return y, last, LayerTape(owner=stack, x=x.view(), y=y, kept=(kept,), masks=(), plain=layer)


def _layer_for(stack: Stack[Any], outputs: object) -> _core.PlainLayer | None:
    """Return what computes a plain call, None where it is not one; made once for the options that the stack has."""
    if not (isinstance(outputs, str) and outputs == "all") or default_precision() != "full":
        return None
    # Where another thread assigns an option meanwhile, what is made here goes into a dict that nobody sees any more.
    made: dict[int, _core.PlainLayer | None] = vars(stack).setdefault("_plain", {})
    if AXES not in made:
        made[AXES] = _core.PlainLayer(*_facts(stack)) if _is_plain(stack) else None
    return made[AXES]


def _is_plain(stack: Stack[Any]) -> bool:
    # A user's class, or a user, may have others in the place of its parameters.
    if getattr(stack.of_layer, "__func__", None) is not Stack.of_layer and stack.format is None:
        return False
    needs_more = stack.batch_first or stack.learn_initial_state or stack.zoneout or stack.layer_norm is not None
    return stack.num_layers == 1 and not needs_more and stack.precision in (None, "full")


def _facts(stack: Stack[Any]) -> tuple[Any, ...]:
    names = stack.names_of(0)
    fixed = tuple(map(stack.fixed.get, parameter_names(stack.cell, stack.proj_size > 0)))
    return stack.cell, AXES, stack.dtype, stack.input_size, stack.state_sizes, names, fixed
