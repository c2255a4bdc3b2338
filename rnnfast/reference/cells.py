"""The cells of the oracle: one step of each, forward and backward, written to be read beside the equations.

Sizes are B sequences, I inputs, H hidden units and G gates. One step of a cell takes the input product
``a = W_ih x + b_ih`` [B,G·H] and the previous state, and makes the next state; ``'`` marks the previous step, ``*`` is
elementwise, ``s`` is the logistic sigmoid:

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

Each backward step is its forward step read from bottom to top. A gate that is held at a value has that value
forward, and its pre-activation the gradient 0: the same substitution, by name, in both. A new cell is one pair of
functions and one row in `CELLS`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
State: TypeAlias = tuple[Array, ...]  # a part for each of the cell's states, h first; each [B,H]
Kept: TypeAlias = tuple[Array, ...]  # what a step keeps for its backward: its previous state, its gates, and more
Hold: TypeAlias = Callable[[str, Array], Array]  # returns what it is given for a gate, or what that is held at
Forward: TypeAlias = tuple[State, Kept]
Backward: TypeAlias = tuple[Array, State, State, tuple[Array, Array]]  # da, all of dstate, the previous one, (dw, db)


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


def hold(held: Mapping[str, ArrayLike], gate: str, value: Array) -> Array:
    """Return the value, or in its place that at which the gate is held."""
    return np.full_like(value, held[gate]) if gate in held else value


# One step of each cell, forward and backward: a and da are [B,G·H], states [B,H]; w and b are w_hh and b_hh. "All of
# dstate" has in dc also what reaches c by way of h.


def lstm(a: Array, state: State, w: Array, b: Array | None, hold: Hold) -> Forward:
    """Make h, c from h', c'."""
    h, c = state
    i, f, g, o = np.split(a + linear(h, w, b), 4, axis=1)
    i, f, g, o = hold("i", sigmoid(i)), hold("f", sigmoid(f)), hold("g", np.tanh(g)), hold("o", sigmoid(o))
    c_next = f * c + i * g
    tanh_c = np.tanh(c_next)
    return (o * tanh_c, c_next), (h, c, i, f, g, o, tanh_c)


def lstm_backward(dstate: State, kept: Kept, w: Array, hold: Hold) -> Backward:
    """Make dh', dc' from dh, dc."""
    dh, dc = dstate
    h, c, i, f, g, o, tanh_c = kept
    do = dh * tanh_c
    dc = dc + dh * o * (1 - tanh_c**2)
    di, df, dg = dc * g, dc * c, dc * i
    da_i, da_f = hold("i", di * i * (1 - i)), hold("f", df * f * (1 - f))
    da_g, da_o = hold("g", dg * (1 - g**2)), hold("o", do * o * (1 - o))
    da = np.hstack([da_i, da_f, da_g, da_o])
    dh_u, dw, db = linear_backward(da, h, w)
    return da, (dh, dc), (dh_u, dc * f), (dw, db)


def gru(a: Array, state: State, w: Array, b: Array | None, hold: Hold) -> Forward:
    """Make h from h', resetting the recurrent product."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    u_r, u_z, u_n = np.split(linear(h, w, b), 3, axis=1)
    r, z = hold("r", sigmoid(a_r + u_r)), hold("z", sigmoid(a_z + u_z))
    n = hold("n", np.tanh(a_n + r * u_n))
    return ((1 - z) * n + z * h,), (h, r, z, n, u_n)


def gru_backward(dstate: State, kept: Kept, w: Array, hold: Hold) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n, u_n = kept
    da_n = hold("n", dh * (1 - z) * (1 - n**2))
    da_z = hold("z", dh * (h - n) * z * (1 - z))
    da_r = hold("r", da_n * u_n * r * (1 - r))
    dh_u, dw, db = linear_backward(np.hstack([da_r, da_z, da_n * r]), h, w)
    return np.hstack([da_r, da_z, da_n]), dstate, (dh * z + dh_u,), (dw, db)


def gru_reset_before(a: Array, state: State, w: Array, b: Array | None, hold: Hold) -> Forward:
    """Make h from h', resetting h' before the recurrent product."""
    (h,) = state
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    w_r, w_z, w_n = np.split(w, 3)
    b_r, b_z, b_n = (None, None, None) if b is None else np.split(b, 3)
    r, z = hold("r", sigmoid(a_r + linear(h, w_r, b_r))), hold("z", sigmoid(a_z + linear(h, w_z, b_z)))
    n = hold("n", np.tanh(a_n + linear(r * h, w_n, b_n)))
    return ((1 - z) * n + z * h,), (h, r, z, n)


def gru_reset_before_backward(dstate: State, kept: Kept, w: Array, hold: Hold) -> Backward:
    """Make dh' from dh."""
    (dh,) = dstate
    h, r, z, n = kept
    w_r, w_z, w_n = np.split(w, 3)
    da_n = hold("n", dh * (1 - z) * (1 - n**2))
    drh, dw_n, db_n = linear_backward(da_n, r * h, w_n)
    da_z = hold("z", dh * (h - n) * z * (1 - z))
    dh_z, dw_z, db_z = linear_backward(da_z, h, w_z)
    da_r = hold("r", drh * h * r * (1 - r))
    dh_r, dw_r, db_r = linear_backward(da_r, h, w_r)
    dh = dh * z + drh * r + dh_z + dh_r
    dw, db = np.vstack([dw_r, dw_z, dw_n]), np.hstack([db_r, db_z, db_n])
    return np.hstack([da_r, da_z, da_n]), dstate, (dh,), (dw, db)


def elman(f: Callable[[Array], Array], a: Array, state: State, w: Array, b: Array | None, _: Hold) -> Forward:
    """Make h from h', with the activation f."""
    (h,) = state
    h_next = f(a + linear(h, w, b))
    return (h_next,), (h, h_next)


def elman_backward(df: Callable[[Array, Array], Array], dstate: State, kept: Kept, w: Array, _: Hold) -> Backward:
    """Make dh' from dh, where df(dh, h) is dh through the activation."""
    (dh,) = dstate
    h, h_next = kept
    da = df(dh, h_next)
    dh, dw, db = linear_backward(da, h, w)
    return da, dstate, (dh,), (dw, db)


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
    """One row of the table of cells. The oracle knows nothing of the kernels, so it says itself what a cell has."""

    states: tuple[str, ...]  # h first, which the cell puts out
    gates: str  # a letter each, as they are kept; Elman has none
    forward: Callable[[Array, State, Array, Array | None, Hold], Forward]
    backward: Callable[[State, Kept, Array, Hold], Backward]


CELLS = {
    "lstm": Cell(("h", "c"), "ifgo", lstm, lstm_backward),
    "gru": Cell(("h",), "rzn", gru, gru_backward),
    "gru_reset_before": Cell(("h",), "rzn", gru_reset_before, gru_reset_before_backward),
    "rnn_tanh": Cell(("h",), "", partial(elman, np.tanh), partial(elman_backward, tanh_backward)),
    "rnn_relu": Cell(("h",), "", partial(elman, relu), partial(elman_backward, relu_backward)),
}
