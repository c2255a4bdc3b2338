"""Weights of fewer bits, in plain NumPy: what is rounded, and where; the cells' pointwise parts are those of `cells`.

Letters are those of `cells`; O rows of a matrix, K columns. All that has a dtype here is float32, and each operation
rounds once, unless something else is said.

bfloat16
    A weight is its nearest number with 8 significant bits, ties to even. The products are float32's.

int8
    Of a row r of a matrix w [O,K], with q in -127..127:
        scale_r = max_k |w_rk| / 127
        q_rk = round(w_rk / scale_r)
    of a row of activations a, which is one of x, h', r * h' or of u before a projection:
        m = max_k |a_k|, or max(m, 1) where |h| <= 1 by the cell's own equations, and of r * h' and u
        scale = m / 127
        q_k = round(a_k * (127 / m))
    and of their product:
        sum_r = sum_k q_k q_rk                          in integers, exactly
        part_r = sum_r * (scale * scale_r)
    Rounding is to nearest, ties to even. A row with m below 2^-100 counts as zeros, whose scale is 0; the scale of one
    with NaN or infinity is NaN. The pre-activations are then

        (b_ih + b_hh + part of x) + part of h'

    but for n of the GRU, where ``b_in + part of x`` and ``b_hn + part of h'`` stay apart; of the published GRU
    the part of n is that of r * h'. A projection is its part, without a bias.

One scale for each row of weights and of activations, as Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877), have it with zero points of 0.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cells import CELLS, Array, Cell, State, hold, sigmoid

SMALLEST = np.float32(2.0**-100)  # below it, 127 / m could overflow
Floats = NDArray[np.float32]


class Rows(NamedTuple):
    """Integers of rows [N,K], and what each row of them is multiplied by [N]."""

    q: NDArray[np.int8]
    scales: Floats


def quantized_weights(w: ArrayLike) -> Rows:
    """Return the integers of a matrix [O,K] and a scale for each of its rows."""
    w = np.asarray(w, np.float32)
    m = np.abs(w).max(axis=1)
    scales = np.where(m < SMALLEST, np.float32(0), m / np.float32(127))
    q = np.clip(np.rint(w / np.where(scales == 0, np.float32(1), scales)[:, None]), -127, 127)
    return Rows(np.where(scales[:, None] == 0, 0, q).astype(np.int8), scales)


def dequantized(w: Rows) -> Floats:
    """Return the matrix that integers and scales stand for."""
    return w.q * w.scales[:, None]


@np.errstate(all="ignore")
def quantized_activations(a: ArrayLike, bounded: bool) -> Rows:
    """Return the integers of rows [N,K] and a scale for each."""
    a = np.asarray(a, np.float32)
    m = np.abs(a).max(axis=1)  # NaN where there is one
    real = np.isfinite(m)
    if bounded:
        m = np.maximum(m, np.float32(1))
    zero = m < SMALLEST
    scales = np.where(zero, np.float32(0), m / np.float32(127))
    q = np.rint(a * (np.float32(127) / m)[:, None])
    return Rows(np.where((zero | ~real)[:, None], 0, q).astype(np.int8), np.where(real, scales, np.float32(np.nan)))


def sums(a: Rows, w: Rows) -> NDArray[np.float64]:
    """Return the sums [N,O] of products of integers: floats that hold them exactly."""
    return a.q.astype(np.float64) @ w.q.astype(np.float64).T


def part(a: Floats, w: Rows, bounded: bool) -> Floats:
    """Return the product [N,O] of activations [N,K] and a matrix [O,K]."""
    rows = quantized_activations(a, bounded)
    return sums(rows, w).astype(np.float32) * (rows.scales[:, None] * w.scales)


def step(
    cell: str,
    x: Floats,
    state: Sequence[Floats],
    parameters: Sequence[Any],
    held: Mapping[str, ArrayLike] | None = None,
) -> tuple[Floats, ...]:
    """Make the next state from a step's x [B,I] and the state before it, [B,H] each, of h [B,P].

    Parameters
    ----------
    cell : str
        A key of `CELLS`, which is no sLSTM and normalises nothing.
    x, state : ndarrays of float32
    parameters : tuple
        w_ih and w_hh as `Rows`, b_ih, b_hh [G·H] or None, what else the cell has, maybe w_hr as `Rows`.
    held : mapping, optional
        Gates that are held, by name.
    """
    own = CELLS[cell]
    w_ih, w_hh, b_ih, b_hh, *more = parameters
    vectors, w_hr = more[: len(own.parameters)], more[len(own.parameters) :]
    bounded = "relu" not in cell and not w_hr
    h, holds = state[0], partial(hold, held or {})
    zero = np.zeros(len(w_ih.q), np.float32)
    b_ih, b_hh = (zero if b is None else np.asarray(b, np.float32) for b in (b_ih, b_hh))
    of_x = part(x, w_ih, bounded=False)

    of_h: Any = None
    if cell == "gru":
        a_r, a_z, _ = np.split(b_ih + b_hh + of_x, 3, axis=1)
        *_, a_n = np.split(b_ih + of_x, 3, axis=1)
        u_r, u_z, u_n = np.split(part(h, w_hh, bounded), 3, axis=1)
        a = np.hstack([a_r + u_r, a_z + u_z, a_n])
        of_h = np.hstack([np.zeros_like(a_r), np.zeros_like(a_z), np.split(b_hh, 3)[2] + u_n])
    elif cell == "gru_reset_before":
        a_r, a_z, a_n = np.split(b_ih + b_hh + of_x, 3, axis=1)
        w_r, w_z, w_n = (Rows(*rows) for rows in zip(np.split(w_hh.q, 3), np.split(w_hh.scales, 3), strict=True))
        a_r, a_z = a_r + part(h, w_r, bounded), a_z + part(h, w_z, bounded)
        r = holds("r", sigmoid(a_r.astype(np.float64))).astype(np.float32)
        a = np.hstack([a_r, a_z, a_n + part(r * h, w_n, bounded=True)])
    else:
        a = b_ih + b_hh + of_x + part(h, w_hh, bounded)
    made = _pointwise(own, a, state, of_h, holds, vectors)
    if w_hr:
        made = (part(made[0], w_hr[0], bounded=True), *made[1:])
    return made


def _pointwise(
    own: Cell, a: Floats, state: Sequence[Floats], of_h: Array | None, holds: Any, vectors: Sequence[Any]
) -> tuple[Floats, ...]:
    """Run a cell on pre-activations, with what its recurrent product and b_hh make beside them, if anything."""
    exact: State = tuple(s.astype(np.float64) for s in state)
    nothing = np.zeros((a.shape[1], state[0].shape[1]))
    made, _ = own.forward(a.astype(np.float64), exact, nothing, of_h, holds, *vectors)
    return tuple(s.astype(np.float32) for s in made)


@np.errstate(all="ignore")
def forward(
    cell: str,
    x: ArrayLike,
    parameters: Sequence[Sequence[Any]],
    state0: Sequence[ArrayLike | None] | None = None,
    *,
    embedding: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, ArrayLike] | None = None,
    zoneout: Sequence[float | None] | None = None,
) -> tuple[Floats, tuple[Floats, ...]]:
    """Run one layer with int8 weights over whole sequences.

    Takes what `reference.forward` does, but for the matrices, which are `Rows`.

    Returns
    -------
    y : ndarray [T,B,D·P]
    state : tuple of ndarray [D,B,H]

    Examples
    --------
    >>> import numpy as np
    >>> w = quantized_weights([[1.0, -0.5]])
    >>> w.q, w.scales
    (array([[127, -64]], dtype=int8), array([0.00787402], dtype=float32))
    >>> y, (h,) = forward("rnn_relu", [[[1, 0]], [[0, 0]]], [(w, quantized_weights([[2.0]]), None, None)])
    >>> y.ravel()
    array([1., 2.], dtype=float32)
    """
    tokens = np.asarray(x)
    if tokens.ndim == 2:
        rows = np.eye(parameters[0][0].q.shape[1]) if embedding is None else np.asarray(embedding)
        tokens = rows[tokens]
    xs: Floats = tokens.astype(np.float32)
    T, B = xs.shape[:2]
    real = (np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.asarray(lengths)))[..., None]
    starts = (np.zeros((T, B), bool) if resets is None else np.asarray(resets, bool))[..., None] & real
    ends = np.concatenate([starts[1:], np.zeros((1, B, 1), bool)])
    xs = np.where(real, xs, np.float32(0))
    sizes = _sizes(cell, parameters[0])
    given = state0 or [None] * len(sizes)
    y, last = [], []
    for d, own in enumerate(parameters):
        first = tuple(
            np.zeros((B, n), np.float32) if s is None else np.asarray(s, np.float32)[d]
            for s, n in zip(given, sizes, strict=True)
        )
        state, out = first, np.zeros((T, B, sizes[0]), np.float32)
        for t in range(T)[:: -1 if d else 1]:
            state = tuple(np.where((ends if d else starts)[t], f, s) for f, s in zip(first, state, strict=True))
            made = step(cell, xs[t], state, own, gate_override)
            if zoneout is not None:
                made = tuple(_mean(p, s, old) for p, s, old in zip(zoneout, made, state, strict=True))
            state = tuple(np.where(real[t], new, old) for new, old in zip(made, state, strict=True))
            out[t] = np.where(real[t], state[0], 0)
        y.append(out)
        last.append(state)
    return np.concatenate(y, axis=2), tuple(np.stack(parts) for parts in zip(*last, strict=True))


def _mean(rate: float | None, new: Floats, old: Floats) -> Floats:
    """Return the mean of what zoneout makes of a state."""
    p = rate or 0.0
    return ((1 - p) * new.astype(np.float64) + p * old).astype(np.float32) if p else new


def _sizes(cell: str, parameters: Sequence[Any]) -> list[int]:
    """Return the sizes of the states: P of h, H of the others."""
    own = CELLS[cell]
    H = len(parameters[0].q) // max(len(own.gates), 1)
    w_hr = parameters[4 + len(own.parameters) :]
    return [len(w_hr[0].q) if w_hr else H, *[H] * (len(own.states) - 1)]
