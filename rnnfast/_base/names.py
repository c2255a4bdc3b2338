"""The names of cells and of parameters: torch's, with a block of rows for each gate in our order."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np

from .. import _core
from .arrays import Array
from .scalars import choice

Parameters: TypeAlias = Sequence[Sequence[object]]  # as the kernels take them: by direction, in the order of the names
Grads: TypeAlias = list[tuple[Any, ...]]  # likewise, arrays; None where there is no bias

# Of these cells type checkers know how many states they have.
OneStateCell: TypeAlias = Literal[
    "gru", "gru_reset_before", "gru_norm", "rnn_tanh", "rnn_relu", "rnn_tanh_leaky", "rnn_relu_leaky"
]
TwoStateCell: TypeAlias = Literal["lstm", "lstm_peephole", "cifg", "cifg_peephole", "lstm_norm", "lstm_norm_carried"]
FourStateCell: TypeAlias = Literal["slstm", "slstm_exp"]

WEIGHTS = "weight_ih", "weight_hh"
BIASES = "bias_ih", "bias_hh"
PROJECTION = "weight_hr"
SCALE = "_scale"  # how the name of a matrix of integers goes on in that of its scales
OTHERS = {"b_c": "bias_c"}  # the names of what else cells have, where they are not the kernels'


@cache
def parameter_names(cell: str, projected: bool = False) -> tuple[str, ...]:
    """Return the names of one direction's parameters in the order of the kernels."""
    own = [OTHERS.get(name, name) for name in _core.cells[cell].parameters]
    return (*WEIGHTS, *BIASES, *own, *((PROJECTION,) if projected else ()))


def recurrent_shapes(
    cell: str, I: int, H: int, bias: bool, proj_size: int = 0, heads: int = 1
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one direction's parameters."""
    G, columns = _core.cells[cell].num_gates, (proj_size or H) // heads
    shapes: dict[str, tuple[int, ...]] = dict(zip(WEIGHTS, ((G * H, I), (G * H, columns)), strict=True))
    if bias:
        shapes |= dict.fromkeys(BIASES, (G * H,))
    own = {OTHERS.get(name, name): n for name, n in _core.cells[cell].parameters.items()}
    shapes |= {name: (n * H,) for name, n in own.items() if bias or not name.startswith("bias")}
    return shapes | ({PROJECTION: (proj_size, H)} if proj_size else {})


def ends_of(layer: int, directions: int) -> tuple[str, ...]:
    """Return how the names of one layer's parameters end, for each direction."""
    return (f"_l{layer}", f"_l{layer}_reverse")[:directions]


@cache
def layer_names(cell: str, layer: int, directions: int, projected: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return the names of the parameters of one layer of a stack, for each direction."""
    return tuple(tuple(name + end for name in parameter_names(cell, projected)) for end in ends_of(layer, directions))


def by_direction(arrays: Mapping[str, Array], names: Sequence[Sequence[str]]) -> list[tuple[Array | None, ...]]:
    """Return what has these names of the parameters, or of arrays like them, as the kernels take it."""
    return [tuple(map(arrays.get, of_direction)) for of_direction in names]


def lstm_cell(peephole: bool, coupled_gates: bool, layer_norm: str | None = None) -> str:
    """Return the kernels' name of an LSTM."""
    if layer_norm is not None:
        return {"inside": "lstm_norm", "carried": "lstm_norm_carried"}[layer_norm]
    return ("cifg" if coupled_gates else "lstm") + ("_peephole" if peephole else "")


def gru_cell(reset_after: bool, layer_norm: str | None = None) -> str:
    """Return the kernels' name of a GRU."""
    if layer_norm is not None:
        return "gru_norm"
    return "gru" if reset_after else "gru_reset_before"


def elman_cell(nonlinearity: str, leaky: bool) -> str:
    """Return the kernels' name of an Elman network."""
    return "rnn_" + choice(nonlinearity, "nonlinearity", ("tanh", "relu")) + ("_leaky" if leaky else "")


def slstm_cell(forget_gate: str) -> str:
    """Return the kernels' name of an sLSTM."""
    return {"sigmoid": "slstm", "exp": "slstm_exp"}[choice(forget_gate, "forget_gate", ("sigmoid", "exp"))]


def reordered(a: Array, order: Sequence[int], count: int | None = None) -> Array:
    """Return the blocks of rows, one for each gate, in another order; or some of `count` blocks."""
    return np.concatenate([np.split(a, count or len(order))[gate] for gate in order])
