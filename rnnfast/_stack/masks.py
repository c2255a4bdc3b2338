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
    """Return the layer and the direction of each mask by its name, which begins with the one given."""
    return {
        name + end: (layer, direction)
        for layer in range(stack.num_layers)
        for direction, end in enumerate(ends_of(layer, stack.directions))
    }


def draw_key(stack: Stack[Any]) -> int:
    """Draw, from the stack's generator, the key of what one call draws."""
    return int(stack.rng.integers(2**64, dtype=np.uint64))


def draw(key: int, place: tuple[int, int], shape: tuple[int, ...], rate: float) -> Array:
    """Draw bools of what is kept, with the probability 1 - rate each.

    A place is a layer and a direction. A shape with more rows begins with the same ones.
    """
    *rows, n = shape
    number = np.arange(math.prod(rows))
    return unpacked(draw_bits(key, (*place, 0), rate, (np.zeros_like(number), number), n), n).reshape(shape)


def draw_bits(key: int, place: tuple[int, int, int], rate: float, rows: tuple[Array, Array], n: int) -> Array:
    """Draw bits [N,ceil(n/8)] of what is kept, with the probability 1 - rate each, in the rows of steps and sequences.

    A place is a layer, a direction, and a state. Each bit has its own place in the stream of the key, so that none
    depends on another.
    """
    layer, direction, state = place
    return _core.random_bits(key, (layer << 3) + (direction << 2) + state, rate, *rows, n)


def unpacked(bits: Array, n: int) -> Array:
    """Return bits [*,ceil(n/8)] as bools [*,n]."""
    return np.unpackbits(bits, axis=-1, count=n, bitorder="little").view(bool)


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
