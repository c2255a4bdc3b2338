"""Layers and cells to test, their arguments, and their results by name."""

from typing import Any

import numpy as np
from problems import Array, Results

import rnnfast

# The cells of the kernels, and the layers that have them; the name of a cell is that of its layer + "Cell"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
T, B, I, H = 5, 3, 7, 6


def make_layer(cell: str, sizes: tuple[int, int] = (I, H), **arguments: Any) -> Any:
    """Return a layer of the cell."""
    kind, own = KINDS[cell]
    return getattr(rnnfast, kind)(*sizes, **{"seed": 0, **own, **arguments})


def make_cell(cell: str, **arguments: Any) -> Any:
    """Return a cell."""
    kind, own = KINDS[cell]
    return getattr(rnnfast, f"{kind}Cell")(I, H, **{"seed": 0, **own, **arguments})


def normal(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    """Draw from the normal distribution."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def make_state(module: Any, batch: tuple[int, ...], seed: int) -> Any:
    """Draw a state, for each part [L·D,*batch,H] of a layer, [*batch,H] of a cell."""
    rows = (module.num_layers * module.directions,) if hasattr(module, "num_layers") else ()
    h, c = (normal((*rows, *batch, module.hidden_size), module.dtype, seed + k) for k in range(2))
    return (h, c) if module.cell == "lstm" else h


def parts(state: Any) -> tuple[Any, ...]:
    """Return (h, c) or (h,)."""
    return state if isinstance(state, tuple) else (state,)


def named_states(state: Any, dstate0: Any = ()) -> Results:
    """Return the parts of a last state and of the gradient of an initial one, by name."""
    return {f"{name}{k}": part for name, s in (("h", state), ("dh", dstate0)) for k, part in enumerate(parts(s))}
