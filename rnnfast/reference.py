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

Each backward step is its forward step read from bottom to top. A gate that is held at a value has that value
forward, and its pre-activation the gradient 0: the same substitution, by name, in both. A new cell is one pair of
functions and one row in `CELLS`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[np.float64]
State: TypeAlias = tuple[Array, ...]  # (h, c) for lstm, (h,) for the others; each [B,H]
Kept: TypeAlias = tuple[Array, ...]  # what a step keeps for its backward: its previous state, its gates, and more
Hold: TypeAlias = Callable[[str, Array], Array]  # returns what it is given for a gate, or what that is held at
Forward: TypeAlias = tuple[State, Kept]
Backward: TypeAlias = tuple[Array, State, State, tuple[Array, Array]]  # da, all of dstate, the previous one, (dw, db)
Parameters: TypeAlias = tuple[Array, Array, Array | None, Array | None]  # w_ih, w_hh, b_ih, b_hh
Layers: TypeAlias = Sequence[Sequence[Sequence[Any]]]  # of a stack: of each layer, of each direction, the parameters


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
    """One row of the table of cells."""

    gates: int
    states: int
    names: str  # of the gates, a letter each, as they are kept; Elman has none
    forward: Callable[[Array, State, Array, Array | None, Hold], Forward]
    backward: Callable[[State, Kept, Array, Hold], Backward]


CELLS = {
    "lstm": Cell(4, 2, "ifgo", lstm, lstm_backward),
    "gru": Cell(3, 1, "rzn", gru, gru_backward),
    "gru_reset_before": Cell(3, 1, "rzn", gru_reset_before, gru_reset_before_backward),
    "rnn_tanh": Cell(1, 1, "", partial(elman, np.tanh), partial(elman_backward, tanh_backward)),
    "rnn_relu": Cell(1, 1, "", partial(elman, relu), partial(elman_backward, relu_backward)),
}


# The sequence, for any cell


class Tape(NamedTuple):
    """What `forward` keeps for `backward`; ``kept[d][t]`` is what direction d kept at time t."""

    cell: Cell
    x: Array
    parameters: list[Parameters]
    kept: list[list[Kept]]
    steps: State  # h and c of every step, [T,B,D·H] each, 0 in the padding
    real: NDArray[np.bool_]  # [T,B,1], False in the padding
    anew: list[NDArray[np.bool_]]  # [T,B,1], by direction: the step starts from the initial state
    held: Mapping[str, ArrayLike]
    one_hot: Array | None  # [T,B,V], of tokens
    embedding: Array | None


@np.errstate(all="ignore")  # infinity and NaN pass
def forward(
    cell: str,
    x: ArrayLike,
    parameters: Sequence[Sequence[Any]],
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    *,
    embedding: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, ArrayLike] | None = None,
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
    lengths : array_like of integers [B], optional
        How many steps of each sequence are real, 0 to T. What follows is padding, whatever it holds: y is 0 there, the
        state waits, and the second direction starts at each sequence's own end.
    resets : array_like of bools [T,B], optional
        Where an episode starts: before the step the state is the initial one again. The second direction comes from
        the other side: for it the steps before these start anew.
    gate_override : mapping, optional
        The value that a gate is held at, by the gate's name: i, f, g, o of the LSTM, r, z, n of the GRU.

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
        If c0 is given to a cell that has none, or a gate is held that it lacks.

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
    held = gate_override or {}
    if not held.keys() <= set(step.names):
        msg = f"gate_override: expected gates among {list(step.names)}, got {list(held)}"
        raise ValueError(msg)
    x = np.asarray(x)
    T, B = x.shape[:2]
    real = np.arange(T)[:, None] < (np.full(B, T) if lengths is None else np.asarray(lengths))
    starts = np.zeros((T, B), np.bool_) if resets is None else np.asarray(resets, np.bool_) & real
    ends = np.zeros_like(starts)
    ends[:-1] = starts[1:]
    x = np.where(real.reshape(T, B, *[1] * (x.ndim - 2)), x, 0)

    weights = [_float64(p) for p in parameters]
    rows = None if embedding is None else np.asarray(embedding, np.float64)
    one_hot = None
    if x.ndim == 2:
        one_hot = np.eye(weights[0][0].shape[1] if rows is None else len(rows))[x]
        x = one_hot if rows is None else one_hot @ rows
    x = np.asarray(x, np.float64)
    D, H = len(weights), weights[0][1].shape[1]
    tape = Tape(
        cell=step,
        x=x,
        parameters=weights,
        kept=[[()] * T for _ in weights],
        steps=tuple(np.zeros((T, B, D * H)) for _ in range(step.states)),
        real=real[..., None],
        anew=[starts[..., None], ends[..., None]],
        held=held,
        one_hot=one_hot,
        embedding=rows,
    )
    first, last = _states(step, ("h0", h0), ("c0", c0), shape=(D, B, H)), []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
        initial: State = tuple(s[d] for s in first)
        state = initial
        for t in _times(T, d):
            state = _where(tape.anew[d][t], initial, state)
            made, tape.kept[d][t] = step.forward(linear(x[t], w_ih, b_ih), state, w_hh, b_hh, partial(hold, held))
            for s, part in zip(tape.steps, made, strict=True):
                s[t, :, d * H : (d + 1) * H] = np.where(tape.real[t], part, 0)
            state = _where(tape.real[t], made, state)
        last.append(state)
    h, c = _stacked(last)
    return tape.steps[0].copy(), h, c, tape


class Gradients(NamedTuple):
    """What `gradients` returns; the first four are what `backward` returns."""

    dx: Any
    dh0: Array
    dc0: Array | None
    grads: list[Parameters]
    dh_steps: Array
    dc_steps: Array | None


def backward(
    tape: Tape,
    dy: ArrayLike | None = None,
    dh: ArrayLike | None = None,
    dc: ArrayLike | None = None,
    *,
    dc_steps: ArrayLike | None = None,
    clip_dh: float | None = None,
) -> tuple[Any, Array, Array | None, list[Parameters]]:
    """Run the layer that made the tape backwards: `gradients` without those of every step."""
    return gradients(tape, dy, dh, dc, dc_steps=dc_steps, clip_dh=clip_dh)[:4]


@np.errstate(all="ignore")
def gradients(
    tape: Tape,
    dy: ArrayLike | None = None,
    dh: ArrayLike | None = None,
    dc: ArrayLike | None = None,
    *,
    dc_steps: ArrayLike | None = None,
    clip_dh: float | None = None,
) -> Gradients:
    """Return the gradients of ``sum(dy*y) + sum(dh*h) + sum(dc*c) + sum(dc_steps*c_steps)``.

    Parameters
    ----------
    tape : Tape
        From `forward`.
    dy : array_like [T,B,D·H], optional
        The gradient of y, zero where not given; what it holds in the padding does not count.
    dh, dc : array_like [D,B,H], optional
        The gradients of the last states, zero where not given.
    dc_steps : array_like [T,B,D·H], optional
        As dy, for c of every step.
    clip_dh : float, optional
        The bound of every element, up or down, that a step passes back to the state before it.

    Returns
    -------
    dx : ndarray [T,B,I] or None
        Of tokens, the gradient of their embedding [V,I]; None if they have none.
    dh0, dc0 : ndarray [D,B,H]
        The gradients of the initial states, summed over the episodes; dc0 is None for cells other than the LSTM.
    grads : list of D tuples
        dw_ih, dw_hh, db_ih, db_hh of each direction, None where there is no bias.
    dh_steps, dc_steps : ndarray [T,B,D·H]
        All of the gradients with respect to h and c of every step: what is given, what comes through time, and for c
        what comes through h. Zero in the padding; dc_steps is None for cells other than the LSTM.

    Raises
    ------
    ValueError
        If dc or dc_steps is given to a cell that has none.
    """
    step, x, weights = tape.cell, tape.x, tape.parameters
    T, B, D, H = *x.shape[:2], len(weights), weights[0][1].shape[1]
    zero = dict.fromkeys(tape.held, 0.0)
    given = _states(step, ("dy", dy), ("dc_steps", dc_steps), shape=(T, B, D * H))
    dsteps = tuple(ds.copy() for ds in given)  # to each step is added what comes through time
    dx: Any = np.zeros_like(x)
    dlast = _states(step, ("dh", dh), ("dc", dc), shape=(D, B, H))
    dfirst, grads = [], []
    for d, (w_ih, w_hh, b_ih, b_hh) in enumerate(weights):
        dstate: State = tuple(ds[d] for ds in dlast)
        none: State = tuple(np.zeros((B, H)) for _ in dstate)
        dinitial = none
        dw_ih, dw_hh = np.zeros_like(w_ih), np.zeros_like(w_hh)
        db_ih, db_hh = np.zeros(len(w_ih)), np.zeros(len(w_hh))
        for t in reversed(_times(T, d)):
            real, anew = tape.real[t], tape.anew[d][t]
            here = [ds[t, :, d * H : (d + 1) * H] for ds in dsteps]
            waits = _where(real, none, dstate)
            dstate = _where(real, _add(dstate, here), none)
            da, dstate, dbefore, (dw, db) = step.backward(dstate, tape.kept[d][t], w_hh, partial(hold, zero))
            for ds, total in zip(here, dstate, strict=True):
                ds[:] = total
            if clip_dh is not None:
                dbefore = tuple(np.clip(ds, -clip_dh, clip_dh) for ds in dbefore)
            dinitial = _add(dinitial, _where(anew, dbefore, none))
            dstate = _add(_where(anew, none, dbefore), waits)
            dw_hh += dw
            db_hh += db
            dx_t, dw, db = linear_backward(da, x[t], w_ih)
            dx[t] += dx_t
            dw_ih += dw
            db_ih += db
        dfirst.append(_add(dinitial, dstate))
        grads.append((dw_ih, dw_hh, None if b_ih is None else db_ih, None if b_hh is None else db_hh))
    if tape.one_hot is not None:
        dx = None if tape.embedding is None else np.einsum("tbv,tbi->vi", tape.one_hot, dx)
    return Gradients(dx, *_stacked(dfirst), grads, dsteps[0], dsteps[1] if step.states == 2 else None)


def gates(tape: Tape) -> list[dict[str, Array]]:
    """Return the gates of every step by name, [T,B,H] each, 0 in the padding, for each direction."""
    kept = [[step[tape.cell.states :] for step in steps] for steps in tape.kept]
    return [
        {name: np.where(tape.real, np.array([step[k] for step in steps]), 0) for k, name in enumerate(tape.cell.names)}
        for steps in kept
    ]


# Truncated backpropagation through time


class Window(NamedTuple):
    """A window of TBPTT: the steps from tau to stop; those from start to stop have losses."""

    tau: int
    start: int
    stop: int


def windows(T: int, k1: int, k2: int, losses: Literal["new", "window"] = "new") -> list[Window]:
    """Return the windows of T steps: they end at k1, 2·k1, ... and at T, and reach back k2 steps.

    The losses are the new ones, of the steps since the previous window's end, or those of the whole window. Where k2 is
    less than k1 there are new steps before tau; their losses contribute nothing.

    Examples
    --------
    >>> [tuple(window) for window in windows(5, 2, 3)]
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    ends = pairwise([0, *range(k1, T, k1), T])
    taus = [(max(0, stop - k2), start, stop) for start, stop in ends]
    return [Window(tau, tau if losses == "window" else start, stop) for tau, start, stop in taus]


class Truncated(NamedTuple):
    """What one window of `tbptt` gives, for a stack of L layers."""

    y: Array  # [n,B,H], of the n steps since the previous window's end, as they were computed
    dx: Any  # [T,B,I], 0 outside the window; of tokens, of their embedding or None
    dh0: Array  # [L,B,H]
    dc0: Array | None
    grads: list[list[Parameters]]  # as the layers


class StackStep(NamedTuple):
    """One step of a stack as it was computed."""

    before: list[State]  # of each layer, [1,B,H]
    tapes: list[Tape]  # of each layer
    y: Array  # [1,B,H]


def tbptt(
    cell: str,
    x: ArrayLike,
    layers: Layers,
    dys: Sequence[ArrayLike],
    k1: int,
    k2: int,
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    *,
    losses: Literal["new", "window"] = "new",
    activations: Literal["stored", "replay"] = "stored",
    update: Callable[[int, Truncated], Layers] | None = None,
    embedding: ArrayLike | None = None,
    lengths: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike] | None] | None = None,
    clip_dh: float | None = None,
) -> list[Truncated]:
    """Run a stack of layers over the windows, one after the other: forward over its new steps, and backward to tau.

    The states of all layers at tau are constants, and what happens before tau is not seen. At tau = 0 they are the
    initial states, whose gradients are returned; so do the resets within any window add to these.

    Williams & Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories",
    Neural Computation 2(4), 1990: there BPTT(h; h') has h = k2 and h' = k1.

    Parameters
    ----------
    cell : str
        A key of `CELLS`.
    x : array_like [T,B,I], or of integers [T,B]
        The input of the first layer, or its tokens.
    layers : sequence of L parameters
        Those of each layer as `forward` takes them, with D = 1.
    dys : sequence of array_like [stop - start,B,H]
        For each of the `windows`, the gradient of the top layer's y.
    k1, k2 : int
        Steps from one window's end to the next, and steps of a window.
    h0, c0 : array_like [L,B,H], optional
        The initial states, zero where not given; only the LSTM has c0.
    losses : {"new", "window"}
        Whether a window has the losses of its new steps, or of all its steps.
    activations : {"stored", "replay"}
        Which activations the backward recursion, with the weights as they are now, goes over: those of the steps as
        they were computed, with the weights of their time; or those of the window run forward once more with the
        weights as they are now, from the state at tau as it was computed.
    update : callable, optional
        Called with each window's index and result, returns the layers from then on.
    embedding, lengths, resets, clip_dh
        As those of `forward` and `backward`.
    gate_override : mapping, or sequence of L mappings or None, optional
        For all layers, or for each.

    Returns
    -------
    list of Truncated
        One of each window.
    """
    x = np.asarray(x)
    T, B, L, H = *x.shape[:2], len(layers), np.shape(layers[0][0][1])[1]
    held = [gate_override] * L if gate_override is None or isinstance(gate_override, Mapping) else gate_override
    ends = np.full(B, T) if lengths is None else np.asarray(lengths)
    anew = (np.zeros((T, B), np.bool_) if resets is None else np.asarray(resets, np.bool_))[..., None]
    first = _states(CELLS[cell], ("h0", h0), ("c0", c0), shape=(L, B, H))
    initial: list[State] = [tuple(s[k : k + 1] for s in first) for k in range(L)]
    none: State = tuple(np.zeros((1, B, H)) for _ in first)

    def run(layers: Layers, state: list[State], times: range) -> tuple[list[StackStep], list[State]]:
        """Run the stack from a state over some time steps; return these and the last state."""
        steps = []
        for t in times:
            y, tapes = x[t : t + 1], []
            after: list[State] = []
            for k in range(L):
                y, h, c, tape = forward(
                    cell,
                    y,
                    layers[k],
                    *_where(anew[t], initial[k], state[k]),
                    embedding=None if k else embedding,
                    lengths=np.clip(ends - t, 0, 1),
                    gate_override=held[k],
                )
                tapes.append(tape)
                after.append((h,) if c is None else (h, c))
            steps.append(StackStep(state, tapes, y))
            state = after
        return steps, state

    def run_backward(layers: Layers, steps: list[StackStep], window: Window, dy: Array) -> tuple[Any, ...]:
        """Run the steps of the window backwards; return dx, dh0, dc0 and the layers' gradients."""
        weights = [[_float64(p) for p in layer] for layer in layers]
        dx = np.zeros(x.shape if embedding is None else np.shape(embedding))
        grads: list[Any] = [[tuple(None if w is None else np.zeros_like(w) for w in ws)] for [ws] in weights]
        dstate, dinitial = [none] * L, [none] * L
        for t in reversed(range(window.tau, window.stop)):
            d: Any = dy[t - window.start, None] if t >= window.start else None
            for k in reversed(range(L)):
                tape = steps[t - window.tau].tapes[k]._replace(parameters=weights[k])
                d, *dbefore, new = backward(tape, d, *dstate[k], clip_dh=clip_dh)
                before: State = tuple(ds for ds in dbefore if ds is not None)
                dinitial[k] = _add(dinitial[k], _where(anew[t], before, none))
                dstate[k] = _where(anew[t], none, before)
                grads[k] = _add(grads[k], new)
            if embedding is not None:
                dx += d
            elif d is not None:
                dx[t] = d[0]
        if window.tau == 0:
            dinitial = _add(dinitial, dstate)
        dfirst = [tuple(ds[0] for ds in state) for state in dinitial]
        return dx if x.ndim == 3 or embedding is not None else None, *_stacked(dfirst), grads

    steps: list[StackStep] = []
    state, results = initial, []
    for n, (window, dy) in enumerate(zip(windows(T, k1, k2, losses), dys, strict=True)):
        new, state = run(layers, state, range(len(steps), window.stop))
        steps += new
        y = np.concatenate([np.zeros((0, B, H)), *(step.y for step in new)])
        seen = steps[window.tau :]
        if activations == "replay" and seen:
            seen, _ = run(layers, seen[0].before, range(window.tau, window.stop))
        results.append(Truncated(y, *run_backward(layers, seen, window, np.asarray(dy, np.float64))))
        if update is not None:
            layers = update(n, results[-1])
    return results


@np.errstate(all="ignore")
def tbptt_gradient(
    cell: str,
    x: ArrayLike,
    layers: Layers,
    dy: ArrayLike,
    k1: int,
    k2: int,
    h0: ArrayLike | None = None,
    c0: ArrayLike | None = None,
    *,
    losses: Literal["new", "window"] = "new",
    **options: Any,
) -> tuple[Any, Array, Array | None, list[list[Parameters]]]:
    """Return dx, dh0, dc0 and the layers' gradients summed over the windows of `tbptt`, for dy [T,B,H]."""
    dys = [np.asarray(dy)[w.start : w.stop] for w in windows(len(np.asarray(dy)), k1, k2, losses)]
    results = tbptt(cell, x, layers, dys, k1, k2, h0, c0, losses=losses, **options)
    dx, dh0, dc0, grads = reduce(_add, [tuple(result[1:]) for result in results])
    return dx, dh0, dc0, grads


def _times(T: int, d: int) -> range:
    """Return the time steps in the order in which direction d takes them."""
    return range(T) if d == 0 else range(T - 1, -1, -1)


def _float64(parameters: Sequence[Any]) -> Parameters:
    w_ih, w_hh, *biases = parameters
    b_ih, b_hh = (None if b is None else np.asarray(b, np.float64) for b in biases)
    return np.asarray(w_ih, np.float64), np.asarray(w_hh, np.float64), b_ih, b_hh


def _states(cell: Cell, *given: tuple[str, ArrayLike | None], shape: tuple[int, ...]) -> State:
    """Return what is given for the states of the cell, an array of the shape each, zeros where there is none."""
    for name, s in given[cell.states :]:
        if s is not None:
            msg = f"{name}: expected None, the cell has no such state, got an array"
            raise ValueError(msg)
    return tuple(np.zeros(shape) if s is None else np.asarray(s, np.float64) for _, s in given[: cell.states])


def _where(mask: NDArray[np.bool_], a: State, b: State) -> State:
    """Return the state a where the mask is True, b elsewhere."""
    return tuple(np.where(mask, p, q) for p, q in zip(a, b, strict=True))


def _add(a: Any, b: Any) -> Any:
    """Return a + b, of arrays or of tuples and lists of them; None where there are None."""
    if a is None or isinstance(a, np.ndarray):
        return a if a is None else a + b
    return type(a)(_add(p, q) for p, q in zip(a, b, strict=True))


def _stacked(states: list[State]) -> tuple[Array, Array | None]:
    """Return h and c of all directions or layers, [D,B,H] or [L,B,H]; c is None where there is none."""
    h, *c = (np.stack(s) for s in zip(*states, strict=True))
    return h, c[0] if c else None
