"""The loop of a Keras layer over time, computed by the kernels."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from ..convert import KERAS, ORDER

CELLS = {getattr(keras.layers, f"{name}Cell"): name for name in KERAS}
DTYPES = "float32", "float64"


def backend() -> Any:
    """Return the module that calls the kernels from Keras's backend.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    name = keras.backend.backend()
    if name == "torch":
        from . import _torch

        return _torch
    if name == "jax":
        from . import _jax

        return _jax
    msg = (
        f"rnnfast.keras: expected Keras's torch or jax backend, got {name!r}, from whose graphs the kernels cannot be "
        "called; set KERAS_BACKEND before Keras is imported"
    )
    raise RuntimeError(msg)


def misfit(layer: Any) -> str:
    """Return what of a layer is not computed here: option, what was expected and what came; else nothing."""
    cell = layer.cell
    name = CELLS.get(type(cell))
    if name is None:
        return f"cell: expected {', '.join(kind.__name__ for kind in CELLS)} of Keras, got {type(cell).__name__}"
    for option, values in KERAS[name][1].items():
        if getattr(cell, option) not in [getattr(keras.activations, value) for value in values]:
            got = keras.activations.serialize(getattr(cell, option))
            return f"{option}: expected {' or '.join(map(repr, values))}, got {got!r}"
    if cell.recurrent_dropout:
        return f"recurrent_dropout: expected 0, got {cell.recurrent_dropout}"
    if cell.dropout and getattr(cell, "implementation", 2) != 2:
        return f"implementation: expected 2, as it has dropout={cell.dropout}, got {cell.implementation}"
    if cell.compute_dtype not in DTYPES or cell.variable_dtype != cell.compute_dtype:
        return f"dtype: expected {' or '.join(DTYPES)}, got {cell.dtype_policy.name}"
    return ""


def computed(
    layer: Any, sequences: Any, initial_state: Sequence[Any], mask: Any, training: Any
) -> tuple[Any, Any, list[Any]] | None:
    """Return what `inner_loop` does: the last output [B,H], the outputs [B,T,H] and the states of S [B,H].

    None where Keras's own loop has to run: with masks that the backend does not compute, arguments that do not fit.
    """
    kernels, cell = backend(), layer.cell
    x = ops.cast(sequences, cell.compute_dtype)
    if training and cell.dropout:
        x = x * ops.expand_dims(cell.get_dropout_mask(x[:, 0]), 1)
    states: list[Any] = [*initial_state] if isinstance(initial_state, list | tuple) else [initial_state]
    B, T, I = x.shape
    shape = B, cell.units
    if not all(isinstance(n, kernels.SIZES) and n for n in (B, T)):
        return None
    if cell.kernel.shape[0] != I or any(tuple(state.shape) != shape for state in states):
        return None
    if isinstance(mask, list | tuple):
        mask = mask[0]
    if layer.stateful:  # Keras will change them in place
        states = [ops.copy(state) for state in states]
    named = *_named(cell), x, states, layer.go_backwards
    if mask is None:
        y, states = kernels.whole(*named)
        last = states[0]
    else:
        results = kernels.masked(*named, mask, layer.zero_output_for_mask)
        if results is None:
            return None
        last, y, states = results
    return last, y if layer.return_sequences else ops.expand_dims(last, 1), states


def _named(cell: Any) -> tuple[str, list[Any]]:
    """Return the kernels' name of a cell, and its weights as the kernels have them, w_ih, w_hh, b_ih and b_hh."""
    kind: Any = KERAS[CELLS[type(cell)]][0]
    name = kind.__name__.lower()
    if name == "rnn":
        name += f"_{cell.activation.__name__}"
    elif name == "gru" and not cell.reset_after:
        name += "_reset_before"
    order = ORDER.get(kind)

    def ordered(variable: Any) -> Any:
        a = ops.convert_to_tensor(variable)
        if order is None:
            return a
        gates = ops.split(a, len(order), -1)
        return ops.concatenate([gates[gate] for gate in order], -1)

    weights = [ops.transpose(ordered(kernel)) for kernel in (cell.kernel, cell.recurrent_kernel)]
    if cell.bias is not None:
        b = ordered(cell.bias)
        weights += [b[0], b[1]] if len(b.shape) == 2 else [b, ops.zeros_like(b)]
    return name, weights
