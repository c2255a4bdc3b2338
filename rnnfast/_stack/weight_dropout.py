"""Weight dropout, or DropConnect on the recurrent weights: what of each w_hh a forward leaves out.

Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of Neural Networks using DropConnect", ICML 2013; Merity, Keskar,
Socher, "Regularizing and Optimizing LSTM Language Models", arXiv:1708.02182, 2017.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._base.arrays import Array, checked, quiet
from .._base.names import WEIGHTS, ends_of
from .stack import Stack


class Dropped(NamedTuple):
    """The w_hh of one forward, by the names of the parameters."""

    kept: dict[str, Array]  # bools, of elements [G·H,P] or of rows [G·H]
    scale: float  # of what is kept
    weights: dict[str, Array]

    @quiet
    def masked(self, name: str, a: Array) -> Array:
        """Return w_hh or its gradient with zeros for what is left out, the rest scaled."""
        kept = self.kept[name]
        result: Array = a * kept.reshape(len(kept), -1)
        result *= self.scale
        result += 0  # no zero is a negative one, as there is none in sums
        return result


def names_of(stack: Stack[Any]) -> list[str]:
    """Return the names of the masks that a forward has."""
    if not stack.weight_dropout:
        return []
    return [WEIGHTS[1] + end for layer in range(stack.num_layers) for end in ends_of(layer, stack.directions)]


def dropped(stack: Stack[Any], masks: Mapping[str, object]) -> Dropped | None:
    """Return the w_hh of a forward, if it leaves out any: by the masks that are given, the others drawn.

    The stack's generator draws the key of the call. Each layer and direction has a place of its own in the stream of
    that key, so that no mask depends on another.
    """
    places = {
        WEIGHTS[1] + end: (direction, layer)
        for layer in range(stack.num_layers)
        for direction, end in enumerate(ends_of(layer, stack.directions))
    }
    if not stack.weight_dropout:
        return None
    rate = stack.weight_dropout[1] if isinstance(stack.weight_dropout, tuple) else stack.weight_dropout
    shape, key = _shape(stack), stack.rng.integers(2**64, size=2, dtype=np.uint64)
    n = math.prod(shape)
    made = Dropped({}, 1 / (1 - rate), {})
    for name, place in places.items():
        if name in masks:  # a copy of the caller's
            kept = np.array(checked(masks[name], f"masks[{name!r}]", shape, np.dtype(bool)))
        else:
            bits = np.random.Philox(key=key, counter=[0, 0, *place]).random_raw((n + 1) // 2)
            kept = (bits.astype("<u8").view("<u4")[:n] >= np.uint32(rate * 2**32)).reshape(shape)
        kept.flags.writeable = False
        made.kept[name] = kept
        made.weights[name] = made.masked(name, stack.parameters[name])
    return made


def _shape(stack: Stack[Any]) -> tuple[int, ...]:
    """Return the shape of the mask of a w_hh."""
    shape = stack.parameters[f"{WEIGHTS[1]}_l0"].shape
    return shape[:1] if isinstance(stack.weight_dropout, tuple) else shape
