"""Sequences of different lengths: packing in torch's layout, padding, and batches of similar lengths.

Packed data consist of the steps one after the other. Each step has only the rows of the sequences that have not ended,
the longest sequence first::

    lengths 2, 3, 1:        t = 0      t = 1    t = 2
    rows                    b1 b0 b2   b1 b0    b1
    batch_sizes             3          2        1
    sorted_indices          1, 0, 2: the sequence at each place of a step
    unsorted_indices        1, 0, 2: the place of each sequence

Examples
--------
>>> import numpy as np
>>> x = np.array([[10, 20, 30], [11, 21, 0], [0, 22, 0]])
>>> packed = pack_padded(x, [2, 3, 1])
>>> packed.data, packed.batch_sizes
(array([20, 10, 30, 21, 11, 22]), array([3, 2, 1]))
>>> again, lengths = pad_packed(packed)
>>> np.array_equal(again, x), lengths
(True, array([2, 3, 1]))
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, Integers
from ._base.packed import (
    PackedSequence,
    checked_lengths,
    checked_packed,
    inverse,
    longest_first,
    row_numbers,
    rows,
)
from ._base.scalars import (
    RNG,
    Flag,
    Integer,
    Number,
    addressable,
    flag,
    generator,
    integer,
    number,
    shown,
    size,
)

__all__ = ["PackedSequence", "length_bucketed_batches", "pack_padded", "pad_packed", "pad_sequences"]


def pack_padded(x: ArrayLike, lengths: Integers, *, batch_first: Flag = False) -> PackedSequence:
    """Pack a padded batch: copy the rows of each sequence without the padding.

    Parameters
    ----------
    x : array [T,B,*], or [B,T,*] if `batch_first`
        Of any dtype: features, tokens, targets.
    lengths : sequence of B integers
        In any order, from 0 to T.
    batch_first : bool, optional
        The layout of x.

    Returns
    -------
    PackedSequence
        Its indices are those of a stable sort by descending length.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. The message names the argument, what was expected and what was given.

    Examples
    --------
    >>> import numpy as np
    >>> pack_padded(np.array([[10, 20], [11, 0]]), [2, 1]).data
    array([10, 20, 11])
    """
    padded = _core.asarray(x, "x")
    batch_first = flag(batch_first, "batch_first")
    first = "B, T" if batch_first else "T, B"
    if padded.ndim < 2:
        msg = f"x: expected shape ({first}, ...), got {padded.shape}"
        raise ValueError(msg)
    T, B = padded.shape[1::-1] if batch_first else padded.shape[:2]
    taken, batch_sizes, order = rows(checked_lengths(lengths, T, B), T, batch_first=batch_first)
    return PackedSequence(padded.reshape(T * B, *padded.shape[2:]).take(taken, 0), batch_sizes, order, inverse(order))


def pad_packed(
    packed: PackedSequence, *, batch_first: Flag = False, total_length: Integer | None = None, fill: Number = 0.0
) -> tuple[Array, Array]:
    """Convert a packed batch to a padded one.

    Parameters
    ----------
    packed : PackedSequence
    batch_first : bool, optional
        The layout of x.
    total_length : int, optional
        T, by default that of the longest sequence.
    fill : number, optional
        The value of padding.

    Returns
    -------
    x : ndarray [T,B,*], or [B,T,*] if `batch_first`
    lengths : ndarray [B]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; see `pack_padded`.

    Examples
    --------
    >>> import numpy as np
    >>> pad_packed(PackedSequence(np.array([1.0, 2.0, 3.0]), np.array([2, 1])), fill=-1)
    (array([[ 1.,  2.],
           [ 3., -1.]]), array([2, 1]))
    """
    data, batch_sizes, order, places = checked_packed(packed, "packed")
    B, longest = len(order), len(batch_sizes)
    T = longest if total_length is None else integer(total_length, "total_length")
    if longest > T:
        msg = f"total_length: expected at least {longest}, the length of the longest sequence, got {shown(T)}"
        raise ValueError(msg)
    addressable(T * B * max(math.prod(data.shape[1:]), 1), "total_length", "elements")
    batch_first = flag(batch_first, "batch_first")
    x = np.full((T * B, *data.shape[1:]), _as(data.dtype, fill), data.dtype)
    x[row_numbers(batch_sizes, order, T, batch_first=batch_first)] = data
    lengths = np.searchsorted(-batch_sizes, -np.arange(B))[places]
    return x.reshape(*((B, T) if batch_first else (T, B)), *data.shape[1:]), lengths


def checked_sequences(sequences: Any, name: str) -> list[Array]:
    """Return sequences as arrays of one dtype, alike but for their lengths."""
    if not isinstance(sequences, Sequence | np.ndarray) or isinstance(sequences, str):
        msg = f"{name}: expected a sequence of arrays, got {type(sequences).__name__}"
        raise TypeError(msg)
    arrays = [_core.asarray(sequence, f"{name}[{i}]") for i, sequence in enumerate(sequences)]
    for i, a in enumerate(arrays):
        if a.ndim < 1:
            msg = f"{name}[{i}]: expected shape (T, ...), got {a.shape}"
            raise ValueError(msg)
        if a.shape[1:] != arrays[0].shape[1:]:
            msg = f"{name}[{i}]: expected shape {('T', *arrays[0].shape[1:])}, as the first, got {a.shape}"
            raise ValueError(msg.replace("'", ""))
        if a.dtype != arrays[0].dtype:
            msg = f"{name}[{i}]: expected dtype {arrays[0].dtype}, as the first, got {a.dtype}"
            raise TypeError(msg)
    return arrays


def pad_sequences(
    sequences: Sequence[ArrayLike] | Array, *, batch_first: Flag = False, fill: Number = 0.0
) -> tuple[Array, Array]:
    """Pad sequences to a batch, like torch's `pad_sequence`.

    Parameters
    ----------
    sequences : sequence of B arrays [T_i,*]
        They must have the same dtype, and the same shape except for their lengths.
    batch_first : bool, optional
        The layout of x.
    fill : number, optional
        The value of padding.

    Returns
    -------
    x : ndarray [T,B,*], or [B,T,*] if `batch_first`
        T being the length of the longest.
    lengths : ndarray [B]

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or there is no sequence.

    Examples
    --------
    >>> import numpy as np
    >>> pad_sequences([np.array([1, 2, 3]), np.array([4])], batch_first=True, fill=-1)
    (array([[ 1,  2,  3],
           [ 4, -1, -1]]), array([3, 1]))
    """
    arrays = checked_sequences(sequences, "sequences")
    if not arrays:
        msg = "sequences: expected at least one, got none"
        raise ValueError(msg)
    lengths = np.array([len(a) for a in arrays], np.int64)
    first, dtype = arrays[0], arrays[0].dtype
    x = np.full((len(arrays), lengths.max(), *first.shape[1:]), _as(dtype, fill), dtype)
    for row, a in zip(x, arrays, strict=True):
        row[: len(a)] = a
    return (x if flag(batch_first, "batch_first") else np.ascontiguousarray(x.swapaxes(0, 1))), lengths


def length_bucketed_batches(
    lengths: Integers,
    batch_size: Integer,
    *,
    shuffle: Flag = True,
    rng: RNG | None = None,
    seed: RNG | None = None,
    bucket: Integer = 64,
) -> list[Array]:
    """Divide sequences into batches of similar lengths, to reduce padding.

    The sequences are shuffled and cut into buckets of `bucket` batches; each bucket is sorted by length and cut into
    its batches; then the batches of all buckets are shuffled.

    Parameters
    ----------
    lengths : sequence of N integers
        The length of each sequence, at least 0.
    batch_size : int
        The number of sequences in a batch. The last batch of one bucket has fewer if N is not a multiple of it.
    shuffle : bool, optional
        If False, all sequences are sorted together and nothing is random. The longest come first, so that a lack of
        memory shows at once.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        A generator goes on with each call: every epoch has batches of its own.
    seed : as `rng`, optional
        Its older name.
    bucket : int, optional
        The number of batches that are sorted together. With more, lengths within a batch are more similar, but batches
        vary less between epochs.

    Returns
    -------
    list of ndarrays of integers
        The indices of the sequences in each batch, the longest first; each of 0..N-1 occurs exactly once.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid; see `pack_padded`.

    Examples
    --------
    >>> lengths = [5, 900, 7, 6, 850, 870]
    >>> length_bucketed_batches(lengths, 3, shuffle=False)
    [array([1, 5, 4]), array([2, 3, 0])]
    """
    steps = checked_lengths(lengths)
    N, batch_size, bucket = len(steps), size(batch_size, "batch_size"), size(bucket, "bucket")
    shuffle, source = flag(shuffle, "shuffle"), generator(rng, seed)
    drawn = source.permutation(N) if shuffle else np.arange(N)
    width = batch_size * bucket if shuffle else max(N, 1)
    batches = [
        mates[first : first + batch_size]
        for start in range(0, N, width)
        for mates in [longest_first(steps, drawn[start : start + width])]
        for first in range(0, len(mates), batch_size)
    ]
    return [batches[k] for k in source.permutation(len(batches))] if shuffle else batches


def _as(dtype: np.dtype[Any], fill: Number) -> Array:
    """Return a number as one of the dtype, [], which loses no more than a float's digits."""
    value, whole = number(fill, "fill"), dtype.kind in "iu"
    with suppress(OverflowError), np.errstate(over="ignore"):  # of integers, and of floats
        if not whole or value.is_integer():
            padding = np.array(int(value) if whole else value, dtype)
            if dtype.kind not in "fc" or np.isfinite(padding) == math.isfinite(value):
                return padding
    msg = f"fill: expected a number of dtype {dtype}, got {fill}"
    raise ValueError(msg)
