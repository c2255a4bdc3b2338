"""bfloat16, the upper half of float32, and products whose factors are rounded to it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_is_rounded: ContextVar[bool] = ContextVar("is_rounded", default=False)


def to_bfloat16(w: ArrayLike) -> NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even: the upper half of those of float32."""
    w = np.asarray(w, np.float32)
    bits = w.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(w), (bits >> 16) | 0x40, rounded).astype(np.uint16)  # no NaN becomes infinity


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Return the numbers with these bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@contextmanager
def rounding(is_rounded: bool) -> Iterator[None]:
    """Round the factors of products, or do not."""
    before = _is_rounded.set(is_rounded)
    try:
        yield
    finally:
        _is_rounded.reset(before)


def factor(a: NDArray[Any]) -> NDArray[Any]:
    """Return what a product has of a factor, in the dtype of the factor."""
    return from_bfloat16(to_bfloat16(a)).astype(a.dtype) if _is_rounded.get() else a
