"""Where a network stands between two calls."""

from typing import NamedTuple

from .._base.arrays import Array


class State(NamedTuple):
    """The state of a network, from which another call can continue.

    Attributes
    ----------
    h : tuple of ndarrays [B,H], or [H] of one sequence
        The last state of each reservoir.
    y : ndarray [B,O], or [O] of one sequence, or None
        The last outputs, or the targets instead; None if there were none.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> esn = rnnfast.reservoir.ESN(1, 20, rng=0)
    >>> state = esn.fit(np.ones((50, 1), np.float32), np.ones((50, 1), np.float32))
    >>> len(state.h), state.h[0].shape, state.y.shape
    (1, (20,), (1,))
    """

    h: tuple[Array, ...]
    y: Array | None
