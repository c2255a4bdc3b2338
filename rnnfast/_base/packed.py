"""Packed sequences: their rows, how they stand in padded arrays, and the checks of lengths and of what is packed."""

from typing import Any, NamedTuple

import numpy as np

from .. import _core
from .arrays import Array


class PackedSequence(NamedTuple):
    """The rows of all steps of B sequences without padding, N in all, in the layout of torch's `PackedSequence`.

    ``PackedSequence(*packed)`` converts one of torch's.

    Attributes
    ----------
    data : array [N,*]
        The steps one after the other, each with the sequences from the longest to the shortest.
    batch_sizes : array [T] of integers
        The number of sequences that have each step: positive, in descending order, N in all.
    sorted_indices : array [B] of integers, optional
        The index of the sequence at each position of a step. Sequences of length 0 come last and have no rows.
    unsorted_indices : array [B] of integers, optional
        The position of each sequence, the inverse of `sorted_indices`. If one of the two is None, it is computed from
        the other. If both are None, the sequences are in the order of their positions, and none is empty.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> packed = rnnfast.PackedSequence(np.array([1.0, 2.0, 3.0]), np.array([2, 1]))  # lengths 2 and 1
    >>> rnnfast.pad_packed(packed)[0]
    array([[1., 2.],
           [3., 0.]])
    """

    data: Any
    batch_sizes: Any
    sorted_indices: Any = None
    unsorted_indices: Any = None


PackedSequence.__module__ = "rnnfast.ragged"  # where users find it; pickles name it


def rows(lengths: Array, T: int, *, batch_first: bool = False) -> tuple[Array, Array, Array]:
    """Return where the packed rows of checked lengths stand in padded ones.

    Parameters
    ----------
    lengths : ndarray [B]
    T : int
        Steps of the padded sequences.
    batch_first : bool, optional
        Number the rows of [B·T] instead of [T·B].

    Returns
    -------
    rows : ndarray [N]
        The number in [T·B] of each packed row.
    batch_sizes : ndarray [longest]
    order : ndarray [B]
        The `sorted_indices`.
    """
    B = len(lengths)
    order = longest_first(lengths, np.arange(B))
    ended = np.cumsum(np.bincount(lengths, minlength=1))  # at each step, how many sequences have
    batch_sizes = B - ended[:-1]
    return row_numbers(batch_sizes, order, T, batch_first=batch_first), batch_sizes, order


def row_numbers(batch_sizes: Array, order: Array, T: int, *, batch_first: bool = False) -> Array:
    """Return the number in [T·B], or in [B·T] if `batch_first`, of each packed row."""
    starts = np.cumsum(batch_sizes) - batch_sizes
    step = np.repeat(np.arange(len(batch_sizes)), batch_sizes)
    sequence = order[np.arange(len(step)) - np.repeat(starts, batch_sizes)]
    numbers: Array = sequence * T + step if batch_first else step * len(order) + sequence
    return numbers


def inverse(order: Array) -> Array:
    """Return the inverse of a permutation [B]."""
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def checked_lengths(lengths: object, T: int | None = None, B: int | None = None) -> Array:
    """Return lengths as an array of B integers from 0 to T."""
    checked = checked_integers(lengths, "lengths", B)
    if len(checked) and (checked.min() < 0 or (T is not None and checked.max() > T)):
        found = checked.min() if checked.min() < 0 else checked.max()
        msg = f"lengths: expected {'at least 0' if T is None else f'0 to {T}'}, got {found}"
        raise ValueError(msg)
    return checked


def checked_packed(packed: object, name: str) -> PackedSequence:
    """Return a packed sequence as arrays, both indices among them, whose parts fit each other."""
    if not isinstance(packed, PackedSequence):
        msg = f"{name}: expected an rnnfast.PackedSequence, got {type(packed).__name__}"
        raise TypeError(msg)
    data = _core.asarray(packed.data, f"{name}.data")
    batch_sizes = checked_integers(packed.batch_sizes, f"{name}.batch_sizes")
    if len(batch_sizes) and batch_sizes.min() < 1:
        msg = f"{name}.batch_sizes: expected at least 1, got {batch_sizes.min()}"
        raise ValueError(msg)
    if (batch_sizes[1:] > batch_sizes[:-1]).any():
        step = int(np.argmax(batch_sizes[1:] > batch_sizes[:-1]))
        msg = f"{name}.batch_sizes: expected none to be above the one before, got {batch_sizes[step : step + 2]}"
        raise ValueError(msg)
    widest = int(batch_sizes.max(initial=0))
    N = int(batch_sizes.sum(dtype=np.float64))  # exact, or above any length, where integers would wrap around
    if data.ndim == 0 or len(data) != N:
        msg = f"{name}.data: expected shape ({N}, ...), the sum of batch_sizes, got {data.shape}"
        raise ValueError(msg)
    sorted_indices, unsorted_indices = (
        None if indices is None else _permutation(indices, f"{name}.{kind}", widest)
        for kind, indices in (("sorted_indices", packed.sorted_indices), ("unsorted_indices", packed.unsorted_indices))
    )
    if sorted_indices is None:
        sorted_indices = np.arange(widest) if unsorted_indices is None else inverse(unsorted_indices)
    places = inverse(sorted_indices)
    if unsorted_indices is not None and not np.array_equal(unsorted_indices, places):
        msg = f"{name}.unsorted_indices: expected the inverse of sorted_indices, got another permutation"
        raise ValueError(msg)
    return PackedSequence(data, batch_sizes, sorted_indices, places)


def _permutation(indices: object, name: str, at_least: int) -> Array:
    order = checked_integers(indices, name)
    if len(order) < at_least:
        msg = f"{name}: expected at least the {at_least} sequences of the first step, got {len(order)}"
        raise ValueError(msg)
    if not np.array_equal(np.sort(order), np.arange(len(order))):
        msg = f"{name}: expected each of 0 to {len(order) - 1} once, got {order}"
        raise ValueError(msg)
    return order


def integers(values: object, name: str, what: str = "integers") -> Array:
    """Return what is of any integer dtype, or a list, as an array."""
    array = _core.asarray(values, name)
    if array.dtype.kind in "iu":
        return array
    if array.size or not isinstance(values, list | tuple):  # an empty list has no dtype
        msg = f"{name}: expected {what}, got {array.dtype}"
        raise TypeError(msg)
    return array.astype(np.int64)


def checked_integers(values: object, name: str, n: int | None = None) -> Array:
    """Return n integers, or as many as there are, of any integer dtype or in a sequence, as an array."""
    array = integers(values, name)
    if array.ndim != 1 or n not in (None, len(array)):
        msg = f"{name}: expected shape ({'N' if n is None else n},), got {array.shape}"
        raise ValueError(msg)
    if array.dtype == np.uint64 and len(array) and array.max() > np.iinfo(np.int64).max:
        msg = f"{name}: expected integers of 64 bits with a sign, got {array.max()}"
        raise ValueError(msg)
    return array.astype(np.int64, copy=False)


def longest_first(lengths: Array, which: Array) -> Array:
    """Return the numbers of sequences, sorted stably by falling length."""
    return which[np.argsort(-lengths[which], kind="stable")]
