"""The oracle: recurrent layers in plain NumPy and float64, written to be read beside the equations.

The kernels are tested against this module and share no code with it. Sizes are T time steps, B sequences,
I inputs, H hidden units, G gates (LSTM 4, GRU 3, Elman 1) and D directions (1 or 2; the second runs backwards
in time). One step of a cell takes the input product ``a = W_ih x + b_ih`` [B,G·H] and the previous state, and
makes the next state; ``'`` marks the previous step, ``*`` is elementwise, ``s`` is the logistic sigmoid:

lstm
    [i f g o] = a + W_hh h' + b_hh
    c = s(f) * c' + s(i) * tanh(g)
    h = s(o) * tanh(c)
    Hochreiter & Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; with the forget gate of
    Gers, Schmidhuber & Cummins, "Learning to Forget", Neural Computation 12(10), 2000.

gru
    r = s(a_r + W_hr h' + b_hr)
    z = s(a_z + W_hz h' + b_hz)
    n = tanh(a_n + r * (W_hn h' + b_hn))
    h = (1 - z) * n + z * h'
    The reset gate acts after the recurrent product, which makes the three products one: Cho et al.,
    arXiv:1406.1078v1, 2014; the form of cuDNN and torch.

gru_reset_before
    n = tanh(a_n + W_hn (r * h') + b_hn), the rest as above
    The published form: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", EMNLP 2014 (arXiv:1406.1078v3).

rnn_tanh, rnn_relu
    h = tanh(a + W_hh h' + b_hh), or max(0, .) in place of tanh
    Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.

Each backward step is its forward step read from bottom to top. A new cell is one pair of functions and one
row in `CELLS`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
State: TypeAlias = tuple[Array, ...]  # (h, c) for lstm, (h,) for the others; each [B,H]
Kept: TypeAlias = tuple[Array, ...]  # what a step keeps for its backward, as the cell likes
Forward: TypeAlias = tuple[State, Kept]
Backward: TypeAlias = tuple[Array, State, tuple[Array, Array]]  # da, the previous dstate, (dw, db)
Parameters: TypeAlias = tuple[Array, Array, Array | None, Array | None]  # w_ih, w_hh, b_ih, b_hh


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), elementwise."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives 0, as it should
        return 1 / (1 + np.exp(-x))


def linear(v: Array, w: Array, b: Array | None) -> Array:
    """Return v w^T + b, [B,N], for v [B,K], w [N,K] and b [N] or None."""
    return v @ w.T if b is None else v @ w.T + b


def linear_backward(du: Array, v: Array, w: Array) -> tuple[Array, Array, Array]:
    """Return dv [B,K], dw [N,K], db [N] for the gradient du [B,N] of ``linear(v, w, b)``."""
    return du @ w, du.T @ v, du.sum(axis=0)


# One step of each cell, forward and backward: a and da are [B,G·H], states [B,H]; w and b are w_hh and b_hh


def lstm(a: Array, state: State, w: Array, b: Array | None) -> Forward:
    """Make h, c from h', c'."""
    h, c = state
    i, f, g, o = np.split(a + linear(h, w, b), 4, axis=1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    c_next = f * c + i * g
    tanh_c = np.tanh(c_next)
    return (o * tanh_c, c_next), (h, c, i, f, g, o, tanh_c)


def lstm_backward(dstate: State, kept: Kept, w: Array) -> Backward:
    """Make dh', dc' from dh, dc."""
    dh, dc = dstate
    h, c, i, f, g, o, tanh_c = kept
    do = dh * tanh_c
    dc = dc + dh * o * (1 - tanh_c**2)
    di, df, dg = dc * g, dc * c, dc * i
    da = np.hstack([di * i * (1 - i), df * f * (1 - f), dg * (1 - g**2), do * o * (1 - o)])
    dh, dw, db = linear_backward(da, h, w)
    return da, (dh, dc * f), (dw, db)


def gru(a: Array, state: State, w: Array, b: Array | None) -> Forward:
    """Make h from h', resetting the recurrent product."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    u_r, u_z, u_n = np.split(linear(h, w, b), 3, axis=1)
    r, z = sigmoid(a_r + u_r), sigmoid(a_z + u_z)
    n = np.tanh(a_n + r * u_n)
    return ((1 - z) * n + z * h,), (h, r, z, n, u_n)


def gru_backward(dstate: State, kept: Kept, w: Array) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n, u_n = kept
    da_n = dh * (1 - z) * (1 - n**2)
    da_z = dh * (h - n) * z * (1 - z)
    da_r = da_n * u_n * r * (1 - r)
    dh_u, dw, db = linear_backward(np.hstack([da_r, da_z, da_n * r]), h, w)
    return np.hstack([da_r, da_z, da_n]), (dh * z + dh_u,), (dw, db)


def gru_reset_before(a: Array, state: State, w: Array, b: Array | None) -> Forward:
    """Make h from h', resetting h' before the recurrent product."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    w_r, w_z, w_n = np.split(w, 3)
    b_r, b_z, b_n = (None, None, None) if b is None else np.split(b, 3)
    r, z = sigmoid(a_r + linear(h, w_r, b_r)), sigmoid(a_z + linear(h, w_z, b_z))
    n = np.tanh(a_n + linear(r * h, w_n, b_n))
    return ((1 - z) * n + z * h,), (h, r, z, n)


def gru_reset_before_backward(dstate: State, kept: Kept, w: Array) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n = kept
    w_r, w_z, w_n = np.split(w, 3)
    da_n = dh * (1 - z) * (1 - n**2)
    drh, dw_n, db_n = linear_backward(da_n, r * h, w_n)
    da_z = dh * (h - n) * z * (1 - z)
    dh_z, dw_z, db_z = linear_backward(da_z, h, w_z)
    da_r = drh * h * r * (1 - r)
    dh_r, dw_r, db_r = linear_backward(da_r, h, w_r)
    dh = dh * z + drh * r + dh_z + dh_r
    dw, db = np.vstack([dw_r, dw_z, dw_n]), np.hstack([db_r, db_z, db_n])
    return np.hstack([da_r, da_z, da_n]), (dh,), (dw, db)


def elman(f: Callable[[Array], Array], a: Array, state: State, w: Array, b: Array | None) -> Forward:
    """Make h from h', with the activation f."""
    (h,) = state
    h_next = f(a + linear(h, w, b))
    return (h_next,), (h, h_next)


def elman_backward(df: Callable[[Array, Array], Array], dstate: State, kept: Kept, w: Array) -> Backward:
    """Make dh' from dh, where df(dh, h) is dh through the activation."""
    (dh,) = dstate
    h, h_next = kept
    da = df(dh, h_next)
    dh, dw, db = linear_backward(da, h, w)
    return da, (dh,), (dw, db)


def tanh_backward(dh: Array, h: Array) -> Array:
    """Return the gradient of a where h = tanh(a)."""
    return dh * (1 - h**2)


def relu(a: Array) -> Array:
    """Return max(0, a), elementwise."""
    return np.maximum(a, 0)


def relu_backward(dh: Array, h: Array) -> Array:
    """Return the gradient of a where h = max(0, a): at a = 0 it is 0, as in torch."""
    return np.where(h <= 0, 0, dh)


class Cell(NamedTuple):
    """One row of the table of cells."""

    gates: int
    states: int
    forward: Callable[[Array, State, Array, Array | None], Forward]
    backward: Callable[[State, Kept, Array], Backward]


CELLS = {
    "lstm": Cell(4, 2, lstm, lstm_backward),
    "gru": Cell(3, 1, gru, gru_backward),
    "gru_reset_before": Cell(3, 1, gru_reset_before, gru_reset_before_backward),
    "rnn_tanh": Cell(1, 1, partial(elman, np.tanh), partial(elman_backward, tanh_backward)),
    "rnn_relu": Cell(1, 1, partial(elman, relu), partial(elman_backward, relu_backward)),
}


# The sequence, for any cell


class Tape(NamedTuple):
    """What `forward` keeps for `backward`; ``kept[d][t]`` is what direction d kept at time t."""

    cell: Cell
    x: Array
    parameters: list[Parameters]
    kept: list[list[Kept]]
    one_hot: Array | None  # [T,B,V], of tokens
    embedding: Array | None


def forward(
    cell: str,
    x: ArrayLike,
    parameters: Sequence[Sequence[Any]],
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    *,
    embedding: ArrayLike | None = None,
) -> tuple[Array, Array, Array | None, Tape]:
    """Run one layer over whole sequences.

    Parameters
    ----------
    cell : str
        A key of `CELLS`.
    x : array_like [T,B,I], or of integers [T,B]
        The input, or its tokens.
    parameters : sequence of D tuples
        w_ih [G·H,I], w_hh [G·H,H], b_ih [G·H] or None, b_hh [G·H] or None of each direction.
    h0, c0 : array_like [D,B,H], optional
        The initial states, zero where not given; only the LSTM has c0.
    embedding : array_like [V,I], optional
        What the tokens select rows of. By default, those of the identity: they are one-hot.

    Returns
    -------
    y : ndarray [T,B,D·H]
        h of every step, the directions side by side.
    h, c : ndarray [D,B,H]
        The last states; c is None for cells other than the LSTM.
    tape : Tape
        For `backward`.

    Raises
    ------
    ValueError
        If c0 is given to a cell that has none.

    Examples
    --------
    >>> import numpy as np
    >>> x, w_ih, w_hh = np.ones((3, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    >>> y, h, c, tape = forward("rnn_relu", x, [(w_ih, w_hh, None, None)])
    >>> y.ravel()
    array([1., 2., 3.])
    >>> dx, dh0, dc0, grads = backward(tape, dh=np.ones((1, 1, 1)))
    >>> grads[0][1]  # dw_hh: h' of the three steps, 0 + 1 + 2
    array([[3.]])
    """
    step = CELLS[cell]
    weights = [_float64(p) for p in parameters]
    rows = None if embedding is None else np.asarray(embedding, np.float64)
    one_hot = None
    if np.ndim(x) == 2:
        one_hot = np.eye(weights[0][0].shape[1] if rows is None else len(rows))[np.asarray(x)]
        x = one_hot if rows is None else one_hot @ rows
    x = np.asarray(x, np.float64)
    T, B, D, H = *x.shape[:2], len(weights), weights[0][1].shape[1]
    y = np.empty((T, B, D * H))
    first = _states(step, ("h0", h0), ("c0", c0), shape=(D, B, H))
    last, kept = [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
        state: State = tuple(s[d] for s in first)
        kept_d: list[Kept] = [()] * T
        for t in _times(T, d):
            state, kept_d[t] = step.forward(linear(x[t], w_ih, b_ih), state, w_hh, b_hh)
            y[t, :, d * H : (d + 1) * H] = state[0]
        last.append(state)
        kept.append(kept_d)
    h, *c = (np.stack(s) for s in zip(*last, strict=True))
    return y, h, c[0] if c else None, Tape(step, x, weights, kept, one_hot, rows)


def backward(
    tape: Tape,
    dy: ArrayLike | None = None,
    dh: ArrayLike | None = None,
    dc: ArrayLike | None = None,
) -> tuple[Any, Array, Array | None, list[Parameters]]:
    """Run the layer that made the tape backwards: the gradients of ``sum(dy*y) + sum(dh*h) + sum(dc*c)``.

    Parameters
    ----------
    tape : Tape
        From `forward`.
    dy : array_like [T,B,D·H], optional
        The gradient of y, zero where not given.
    dh, dc : array_like [D,B,H], optional
        The gradients of the last states, zero where not given.

    Returns
    -------
    dx : ndarray [T,B,I] or None
        Of tokens, the gradient of their embedding [V,I]; None if they have none.
    dh0, dc0 : ndarray [D,B,H]
        The gradients of the initial states; dc0 is None for cells other than the LSTM.
    grads : list of D tuples
        dw_ih, dw_hh, db_ih, db_hh of each direction, None where there is no bias.

    Raises
    ------
    ValueError
        If dc is given to a cell that has none.
    """
    step, x, weights, kept, one_hot, embedding = tape
    T, B, D, H = *x.shape[:2], len(weights), weights[0][1].shape[1]
    dy = np.zeros((T, B, D * H)) if dy is None else np.asarray(dy, np.float64)
    dx = np.zeros_like(x)
    dlast = _states(step, ("dh", dh), ("dc", dc), shape=(D, B, H))
    dfirst, grads = [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
        dstate: State = tuple(ds[d] for ds in dlast)
        dw_ih, dw_hh = np.zeros_like(w_ih), np.zeros_like(w_hh)
        db_ih, db_hh = np.zeros(len(w_ih)), np.zeros(len(w_hh))
        for t in reversed(_times(T, d)):
            dstate = (dstate[0] + dy[t, :, d * H : (d + 1) * H], *dstate[1:])
            da, dstate, (dw, db) = step.backward(dstate, kept[d][t], w_hh)
            dw_hh += dw
            db_hh += db
            dx_t, dw, db = linear_backward(da, x[t], w_ih)
            dx[t] += dx_t
            dw_ih += dw
            db_ih += db
        dfirst.append(dstate)
        grads.append((dw_ih, dw_hh, None if b_ih is None else db_ih, None if b_hh is None else db_hh))
    dh0, *dc0 = (np.stack(ds) for ds in zip(*dfirst, strict=True))
    if one_hot is None:
        return dx, dh0, dc0[0] if dc0 else None, grads
    dembedding = None if embedding is None else np.einsum("tbv,tbi->vi", one_hot, dx)
    return dembedding, dh0, dc0[0] if dc0 else None, grads


def _times(T: int, d: int) -> range:
    """Return the time steps in the order in which direction d takes them."""
    return range(T) if d == 0 else range(T - 1, -1, -1)


def _float64(parameters: Sequence[Any]) -> Parameters:
    w_ih, w_hh, *biases = parameters
    b_ih, b_hh = (None if b is None else np.asarray(b, np.float64) for b in biases)
    return np.asarray(w_ih, np.float64), np.asarray(w_hh, np.float64), b_ih, b_hh


def _states(cell: Cell, *given: tuple[str, ArrayLike | None], shape: tuple[int, int, int]) -> State:
    """Return the given states of the cell, [D,B,H] each, zeros where there is none."""
    for name, s in given[cell.states :]:
        if s is not None:
            msg = f"{name}: expected None, the cell has no such state, got an array"
            raise ValueError(msg)
    return tuple(np.zeros(shape) if s is None else np.asarray(s, np.float64) for _, s in given[: cell.states])
