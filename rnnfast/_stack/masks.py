"""Masks of regularisers: how they are drawn, and which may be given instead."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from .. import _core
from .._base.arrays import Array
from .._base.names import ends_of
from .options import MASKED
from .stack import Stack

Check: TypeAlias = Callable[[object, str], Array]  # of a mask and what messages call it


def places_of(stack: Stack[Any], name: str) -> dict[str, tuple[int, int]]:
    """Return the direction and the layer of each mask by its name, which begins with the one given."""
    return {
        name + end: (direction, layer)
        for layer in range(stack.num_layers)
        for direction, end in enumerate(ends_of(layer, stack.directions))
    }


def draw(key: Array, place: tuple[int, int], shape: tuple[int, ...], rate: float) -> Array:
    """Draw what is kept, with the probability 1 - rate each.

    Each place has a stream of its own of those that the key has, so that no mask depends on another. A shape with more
    rows begins with the same ones.
    """
    n = math.prod(shape)
    bits = np.random.Philox(key=key, counter=[0, 0, *place]).random_raw((n + 1) // 2)
    return (bits.astype("<u8", copy=False).view("<u4")[:n] >= np.uint32(rate * 2**32)).reshape(shape)


def draw_bits(key: int, place: tuple[int, int, int], rate: float, rows: tuple[Array, Array], H: int) -> Array:
    """Draw bits [N,ceil(H/8)] of what is kept, with the probability 1 - rate each, in the rows of steps and sequences.

    A place is a layer, a direction, and a state. Each bit has its own place in the stream of the key.
    """
    layer, direction, state = place
    return _core.random_bits(key, (layer << 3) + (direction << 2) + state, rate, *rows, H)


def unpacked(bits: Array, H: int) -> Array:
    """Return bits [*,ceil(H/8)] as bools [*,H]."""
    return np.unpackbits(bits, axis=-1, count=H, bitorder="little").view(bool)


def checked_masks(masks: object, checks: Mapping[str, Check]) -> dict[str, Array]:
    """Return copies of the masks that the caller gives, of those that a call has: by name, how each is checked."""
    if masks is None:
        return {}
    if not isinstance(masks, Mapping):
        msg = f"masks: expected a mapping of names to arrays of bools, got {type(masks).__name__}"
        raise TypeError(msg)
    if masks and not checks:
        names = sorted(masks, key=str)
        *others, last = MASKED
        msg = f"masks: expected none for a layer without {', '.join(others)} or {last}, got {names}"
        raise ValueError(msg)
    if unknown := sorted(masks.keys() - checks.keys(), key=str):
        msg = f"masks: expected names among {[*checks]}, got {unknown}"
        raise ValueError(msg)
    return {name: np.array(checks[name](mask, f"masks[{name!r}]")) for name, mask in masks.items()}
