"""Minibatches of sequences of different lengths."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .._base.arrays import Array, ArrayLike
from .._base.scalars import RNG, Flag, Integer, Number, generator
from ..ragged import checked_sequences, length_bucketed_batches, pad_sequences

__all__ = ["Minibatch", "minibatches"]


class Minibatch(NamedTuple):
    """A padded batch of sequences, the longest first.

    Attributes
    ----------
    x : ndarray [T,B,*], or [B,T,*] if `batch_first`
        The padded sequences.
    lengths : ndarray [B]
        The lengths, for the layers' ``lengths=``.
    indices : ndarray [B]
        The index of each sequence, to look up its target.

    Examples
    --------
    >>> import numpy as np
    >>> batch = next(minibatches([np.ones((n, 2)) for n in (3, 1)], 2, shuffle=False))
    >>> batch.x.shape, batch.lengths, batch.indices
    ((3, 2, 2), array([3, 1]), array([0, 1]))
    """

    x: Array
    lengths: Array
    indices: Array


def minibatches(
    sequences: Sequence[ArrayLike] | Array,
    batch_size: Integer,
    *,
    shuffle: Flag = True,
    rng: RNG | None = None,
    bucket: Integer = 64,
    batch_first: Flag = False,
    fill: Number = 0.0,
) -> Iterator[Minibatch]:
    """Iterate once over sequences in padded batches of similar lengths: see `rnnfast.ragged.length_bucketed_batches`.

    Parameters
    ----------
    sequences : sequence of arrays [T_i,*], or array [N,T,*]
        Features, tokens or targets. They must have the same dtype, and the same shape except for their lengths.
    batch_size : int
        The number of sequences in a batch, at least 1; the last batch of a bucket may have fewer.
    shuffle : bool, optional
        If False, nothing is random, and the longest sequences come first.
    rng : int, Generator or what `numpy.random.default_rng` takes, optional
        A generator goes on with each call: every epoch has batches of its own.
    bucket : int, optional
        The number of batches that are sorted by length together.
    batch_first : bool, optional
        The layout of x.
    fill : number, optional
        The value of padding.

    Returns
    -------
    iterator of Minibatch

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Examples
    --------
    >>> import numpy as np
    >>> sequences = [np.full((n, 2), n) for n in (3, 1, 4, 2)]
    >>> for batch in minibatches(sequences, 2, shuffle=False):
    ...     print(batch.x.shape, batch.lengths, batch.indices)
    (4, 2, 2) [4 3] [2 0]
    (2, 2, 2) [2 1] [3 1]
    """
    given = checked_sequences(sequences, "sequences")
    source = generator(rng)
    lengths = np.array([len(sequence) for sequence in given], np.int64)
    batches = length_bucketed_batches(lengths, batch_size, shuffle=shuffle, rng=source, bucket=bucket)
    if given:
        pad_sequences(given[:1], batch_first=batch_first, fill=fill)  # whose errors are to come now
    return (
        Minibatch(*pad_sequences([given[i] for i in indices], batch_first=batch_first, fill=fill), indices)
        for indices in batches
    )
