"""Weights of fewer bits, in plain NumPy: what is rounded, and where; the cells' pointwise parts are those of `cells`.

Letters are those of `cells`; O rows of a matrix, K columns. Parts of products and states are float32, in which each
operation rounds once, unless something else is said; the rest of a step is float64.

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
    with NaN or infinity is NaN. The parts are the products of the equations of `cells`; where these add them, in the
    order (b_ih + b_hh + part of x) + part of h'.

One scale for each row of weights and of activations, as Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018 (arXiv:1712.05877), have it with zero points of 0.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cells import CELLS, Array, State, hold

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


class Matrix:
    """A matrix [O,K] that the equations of `cells` multiply activations [N,K] by, as ``a @ w.T``."""

    __array_ufunc__ = None  # so that NumPy leaves the product to it

    def __init__(self, w: Rows, bounded: bool) -> None:
        self.w, self.bounded = w, bounded

    @property
    def T(self) -> Self:
        """Itself: its rows are read as they are."""
        return self

    def __len__(self) -> int:
        return len(self.w.q)

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(Rows(self.w.q[rows], self.w.scales[rows]), self.bounded)

    def __rmatmul__(self, a: NDArray[Any]) -> Array:
        return part(a.astype(np.float32), self.w, self.bounded).astype(np.float64)


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
    zero = np.zeros(len(w_ih.q), np.float32)
    b_ih, b_hh = (zero if b is None else np.asarray(b, np.float32) for b in (b_ih, b_hh))
    if own.adds_products:
        b_ih, b_hh = b_ih + b_hh, zero
    a = (b_ih + part(x, w_ih, bounded=False)).astype(np.float64)
    exact: State = tuple(s.astype(np.float64) for s in state)
    matrix: Any = Matrix(w_hh, bounded=own.bounded and not w_hr)
    made, _ = own.forward(a, exact, matrix, b_hh, partial(hold, held or {}), *vectors)
    h, *others = (s.astype(np.float32) for s in made)
    return part(h, w_hr[0], bounded=True) if w_hr else h, *others


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
