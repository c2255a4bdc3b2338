"""The names of cells and of parameters: torch's, with a block of rows for each gate in our order."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, TypeAlias

import numpy as np

from .arrays import Array
from .scalars import choice

Parameters: TypeAlias = Sequence[Sequence[object]]  # as the kernels take them: by direction, in the order of the names
Grads: TypeAlias = list[tuple[Array, Array, Array | None, Array | None]]

# Of these cells type checkers know how many states they have.
OneStateCell: TypeAlias = Literal["gru", "gru_reset_before", "rnn_tanh", "rnn_relu"]
TwoStateCell: TypeAlias = Literal["lstm"]

PARAMETERS = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def recurrent_shapes(G: int, I: int, H: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one direction's parameters."""
    shapes = (G * H, I), (G * H, H), (G * H,), (G * H,)
    return dict(zip(PARAMETERS[: 4 if bias else 2], shapes, strict=False))


@cache
def layer_names(layer: int, directions: int) -> tuple[tuple[str, ...], ...]:
    """Return the names of the parameters of one layer of a stack, for each direction."""
    ends = (f"_l{layer}", f"_l{layer}_reverse")[:directions]
    return tuple(tuple(name + end for name in PARAMETERS) for end in ends)


def of_layer(arrays: Mapping[str, Array], layer: int, directions: int) -> list[tuple[Array | None, ...]]:
    """Return what a layer has of the parameters, or of arrays like them, as the kernels take it."""
    return [tuple(map(arrays.get, names)) for names in layer_names(layer, directions)]


def gru_cell(reset_after: bool) -> str:
    """Return the kernels' name of a GRU."""
    return "gru" if reset_after else "gru_reset_before"


def elman_cell(nonlinearity: str) -> str:
    """Return the kernels' name of an Elman network."""
    return "rnn_" + choice(nonlinearity, "nonlinearity", ("tanh", "relu"))


def reordered(a: Array, order: Sequence[int]) -> Array:
    """Return the blocks of rows, one for each gate, in another order."""
    return np.concatenate([np.split(a, len(order))[gate] for gate in order])
