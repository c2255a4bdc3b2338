"""Recurrent dropout: what of h' the recurrent product of a forward leaves out, the same in all steps.

Gal, Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural Networks", arXiv:1512.05287, 2016.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from .._base.arrays import Array
from .layout import Layout
from .masks import draw, draw_key, places_of
from .stack import Stack

NAME = "recurrent"  # of the masks, before their layer and direction


class DroppedH(NamedTuple):
    """The masks of h' of one forward."""

    kept: dict[str, Array]  # bools [B,H] or [B,G,H] by name, as the caller has the sequences
    factors: list[Array]  # of each layer, [D,B,H] or [D,B,G,H], as the kernels have them


def shapes_of(stack: Stack[Any], layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the masks that a forward has, by name."""
    if not stack.recurrent_dropout:
        return {}
    batch = () if layout.unbatched else (layout.B,)
    gates = (stack.gates,) if stack.recurrent_dropout_per_gate else ()
    return dict.fromkeys(places_of(stack, NAME), (*batch, *gates, stack.hidden_size))


def dropped_h(stack: Stack[Any], layout: Layout, given: Mapping[str, Array]) -> DroppedH | None:
    """Return the masks of a forward, if it has any: those that are given, the others drawn.

    The stack's generator draws the key of the call. A sequence has the same mask beside any others that come after it.
    """
    if not stack.recurrent_dropout:
        return None
    key, rate = draw_key(stack), stack.recurrent_dropout
    kept = {}
    for name, shape in shapes_of(stack, layout).items():
        place = places_of(stack, NAME)[name]
        kept[name] = given[name] if name in given else draw(key, place, shape, rate)
        kept[name].flags.writeable = False
    rows = slice(None) if layout.running is None else layout.running
    batch = [(mask[None] if layout.unbatched else mask)[rows] for mask in kept.values()]
    scale, D = stack.dtype.type(1 / (1 - rate)), stack.directions
    return DroppedH(kept, [np.stack(batch[k * D : (k + 1) * D]) * scale for k in range(stack.num_layers)])
