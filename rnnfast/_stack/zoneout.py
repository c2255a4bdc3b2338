"""Zoneout: which units of the states keep their value in a step of a forward.

Krueger, Maharaj, Kramár, Pezeshki, Ballas, Ke, Goyal, Bengio, Courville, Pal, "Zoneout: Regularizing RNNs by Randomly
Preserving Hidden Activations", ICLR 2017 (arXiv:1606.01305).
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from .._base.arrays import Array
from .._base.names import ends_of
from .._base.state import STATES
from .layout import Layout
from .masks import draw_bits, draw_key, unpacked
from .stack import Stack, rates_of

# Of each layer, for each state: its rate; which units of each row are new, bits [*,D·ceil(H/8)]; None where all are.
Zoned: TypeAlias = list[tuple[Any, ...]]


def mean_of(stack: Stack[Any]) -> Zoned:
    """Return the rates of the states, with which they become the mean of what they may be."""
    return [rates_of(stack)] * stack.num_layers


def names_of(stack: Stack[Any]) -> list[str]:
    """Return the names of the masks that a forward has."""
    states = [name for name, rate in zip(STATES[stack.cell], rates_of(stack), strict=True) if rate]
    ends = [end for layer in range(stack.num_layers) for end in ends_of(layer, stack.directions)]
    return [f"zoneout_{name}{end}" for end in ends for name in states]


def zoned(stack: Stack[Any], layout: Layout, given: Mapping[str, Array]) -> Zoned | None:
    """Return the bits of a forward, if any unit may keep its value: by the masks that are given, the others drawn.

    The stack's generator draws the key of the call. Each unit of each state has a place of its own in the stream of
    that key: no bit depends on another, nor on the sizes of the call.
    """
    if not stack.zoneout:
        return None
    key = draw_key(stack)
    places = layout.places

    def bits(layer: int, direction: int, end: str, state: int, name: str, rate: float) -> Array:
        name = f"zoneout_{name}{end}"
        if name in given:
            return np.packbits(given[name], axis=-1, bitorder="little")
        rows = draw_bits(key, (layer, direction, state), rate, places, stack.hidden_size)
        return rows.reshape(*layout.row_shape, rows.shape[-1])

    def of_state(layer: int, state: int, name: str, rate: float) -> Array | None:
        if not rate:
            return None
        ends = enumerate(ends_of(layer, stack.directions))
        return np.concatenate([bits(layer, direction, end, state, name, rate) for direction, end in ends], axis=-1)

    states = [*enumerate(zip(STATES[stack.cell], rates_of(stack), strict=True))]
    return [
        tuple(of_state(layer, state, name, rate) for state, (name, rate) in states) for layer in range(stack.num_layers)
    ]


def part_of(of_layer: tuple[Any, ...] | None, rows: slice, direction: int, directions: int) -> tuple[Any, ...] | None:
    """Return what a layer has for some rows and one direction."""
    if of_layer is None:
        return None
    return tuple(
        np.split(part[rows], directions, axis=-1)[direction] if isinstance(part, np.ndarray) else part
        for part in of_layer
    )


def masks_of(stack: Stack[Any], layout: Layout, of_layers: Zoned) -> dict[str, Any]:
    """Return the bits by name, as bools [*,H] laid out as x is."""
    masks = {}
    for layer, parts in enumerate(of_layers):
        for direction, end in enumerate(ends_of(layer, stack.directions)):
            rows = part_of(parts, slice(None), direction, stack.directions) or ()
            for name, bits in zip(STATES[stack.cell], rows, strict=True):
                if isinstance(bits, np.ndarray):
                    masks[f"zoneout_{name}{end}"] = layout.give(unpacked(bits, stack.hidden_size))
    return masks
