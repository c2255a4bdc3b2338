"""Weight dropout, or DropConnect on the recurrent weights: what of each w_hh a forward leaves out.

Wan, Zeiler, Zhang, LeCun, Fergus, "Regularization of Neural Networks using DropConnect", ICML 2013; Merity, Keskar,
Socher, "Regularizing and Optimizing LSTM Language Models", arXiv:1708.02182, 2017.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._base.arrays import Array, quiet
from .._base.names import WEIGHTS
from .masks import draw, draw_key, places_of
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
        factors = np.multiply(kept.reshape(len(kept), -1), a.dtype.type(self.scale), order="C")
        result: Array = np.multiply(a, factors, out=factors if factors.shape == a.shape else None)
        result += 0  # no zero is a negative one, as there is none in sums
        return result


def shapes_of(stack: Stack[Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the masks that a forward has, by the names of the parameters."""
    if not stack.weight_dropout:
        return {}
    shape = stack.parameters[f"{WEIGHTS[1]}_l0"].shape
    of_rows = isinstance(stack.weight_dropout, tuple)
    return dict.fromkeys(places_of(stack, WEIGHTS[1]), shape[:1] if of_rows else shape)


def dropped(stack: Stack[Any], given: Mapping[str, Array]) -> Dropped | None:
    """Return the w_hh of a forward, if it leaves out any: by the masks that are given, the others drawn.

    The stack's generator draws the key of the call.
    """
    if not stack.weight_dropout:
        return None
    rate = stack.weight_dropout[1] if isinstance(stack.weight_dropout, tuple) else stack.weight_dropout
    key = draw_key(stack)
    places, made = places_of(stack, WEIGHTS[1]), Dropped({}, 1 / (1 - rate), {})
    for name, shape in shapes_of(stack).items():
        kept = given[name] if name in given else draw(key, places[name], shape, rate)
        kept.flags.writeable = False
        made.kept[name] = kept
        made.weights[name] = made.masked(name, stack.parameters[name])
    return made
