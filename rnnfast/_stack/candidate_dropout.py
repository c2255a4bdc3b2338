"""Candidate dropout: which candidates of a forward, g of an LSTM or n of a GRU, do not reach the state.

Semeniuta, Severyn, Barth, "Recurrent Dropout without Memory Loss", COLING 2016 (arXiv:1603.05118).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .._base.arrays import Array, checked
from .layout import Layout
from .masks import Check, draw_bits, draw_key, places_of, unpacked
from .stack import Stack

NAME = "candidate"  # of the masks, before their layer and direction


class DroppedCandidates(NamedTuple):
    """The masks of the candidates of one forward, as bits [*,ceil(H/8)] by their names.

    They are those of the kernels' rows, or of the sequences as the caller has them, where these have one mask each.
    """

    bits: dict[str, Array]
    rate: float
    by_sequence: bool
    layout: Layout

    def of(self, ends: Sequence[str], rows: slice = slice(None), B: int | None = None) -> tuple[Array, float]:
        """Return what the kernels are told of the directions that `ends` names, for some rows and the first B."""
        parts = [self.bits[NAME + end] for end in ends]
        if self.by_sequence:
            running = slice(None) if self.layout.running is None else self.layout.running
            parts = [part[running][None, :B] for part in parts]
        else:
            parts = [part[rows] for part in parts]
        return np.concatenate(parts, axis=-1), self.rate

    def masks(self, H: int) -> dict[str, Any]:
        """Return the masks by name, as bools [*,H] laid out as x is, or [B,H] of sequences."""
        kept = {name: unpacked(bits, H) for name, bits in self.bits.items()}
        if not self.by_sequence:
            return {name: self.layout.give(mask) for name, mask in kept.items()}
        return {name: mask[0] if self.layout.unbatched else mask for name, mask in kept.items()}


def checks_of(stack: Stack[Any], layout: Layout) -> dict[str, Check]:
    """Return how each of the masks that a forward has is checked, by name."""
    if not stack.candidate_dropout:
        return {}
    H, bools = stack.hidden_size, np.dtype(bool)
    check: Check = partial(layout.checked, features=(H,), dtype=bools)
    if stack.candidate_dropout_per_sequence:
        check = partial(checked, shape=(H,) if layout.unbatched else (layout.B, H), dtype=bools)
    return dict.fromkeys(places_of(stack, NAME), check)


def dropped_candidates(stack: Stack[Any], layout: Layout, given: Mapping[str, Array]) -> DroppedCandidates | None:
    """Return the masks of a forward, if it has any: those that are given, the others drawn.

    The stack's generator draws the key of the call, and each unit of each step has a place of its own in the stream of
    that key: no bit depends on another, nor on the sizes of the call. A mask of a sequence is that of its first step.
    """
    rate = stack.candidate_dropout
    if not rate:
        return None
    key, by_sequence = draw_key(stack), stack.candidate_dropout_per_sequence
    sequences = np.arange(layout.B)
    t, b = (np.zeros_like(sequences), sequences) if by_sequence else layout.places
    shape = (layout.B,) if by_sequence else layout.row_shape
    bits = {}
    for name, place in places_of(stack, NAME).items():
        if name in given:
            rows = np.packbits(given[name], axis=-1, bitorder="little")
        else:
            rows = draw_bits(key, (*place, 0), rate, (t, b), stack.hidden_size)
        bits[name] = rows.reshape(*shape, rows.shape[-1])
    return DroppedCandidates(bits, rate, by_sequence, layout)
