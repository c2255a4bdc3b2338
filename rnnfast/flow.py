"""How far back gradients reach: the norm of the gradient of each step's state."""

from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from . import _core, functional
from .functional import Array, checked, each_part
from .layers import _Recurrent

__all__ = ["GradientFlow", "gradient_flow"]


class GradientFlow(NamedTuple):
    """Norms of gradients, [L,D,T]: of layer l and direction d at time t, over all sequences and units together.

    Attributes
    ----------
    h : ndarray [L,D,T]
        Of dL/dh_t.
    c : ndarray [L,D,T] or None
        Of dL/dc_t, for the LSTM.
    """

    h: Array
    c: Array | None


def gradient_flow(layer: Any, x: object, dy: object, *, state: object = None, embedding: object = None) -> GradientFlow:
    """Return the norm of the gradient of every state of every step, for a loss L with the gradient dL/dy = `dy`.

    The gradients are total: a change of h_t moves the output of its step, all later steps and all layers above; a
    change of c_t moves ``h_t = o_t * tanh(c_t)`` and all that follows from it. Divided by the norm at the step that
    the loss looks at, they say what of the error reaches back to step t [1]_ [2]_. The states of a backward
    direction come from the end, and so their gradients run from time 0 on.

    Parameters
    ----------
    layer : LSTM, GRU or RNN
        Runs without dropout.
    x : array
        As a call of the layer takes it, or tokens.
    dy : array like y
    state, embedding : optional
        As for a call of the layer.

    Returns
    -------
    GradientFlow
        The norms in float64. A gradient that the layer's own dtype cannot hold counts as zero: below 1e-38 in
        float32, 1e-308 in float64.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit. The message names it, what was expected and what came.

    References
    ----------
    .. [1] Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", diploma thesis, TU München, 1991.
    .. [2] Bengio, Simard, Frasconi, "Learning Long-Term Dependencies with Gradient Descent is Difficult", IEEE
       Transactions on Neural Networks 5(2), 1994.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(1, 1, nonlinearity="relu", bias=False)
    >>> rnn.weight_ih_l0, rnn.weight_hh_l0 = np.ones((1, 1), np.float32), np.full((1, 1), 0.5, np.float32)
    >>> dy = np.array([[0], [0], [0], [1]], np.float32)  # only the last step counts
    >>> rnnfast.gradient_flow(rnn, np.ones((4, 1), np.float32), dy).h
    array([[[0.125, 0.25 , 0.5  , 1.   ]]])
    """
    if not isinstance(layer, _Recurrent):
        msg = f"layer: expected an LSTM, GRU or RNN, got {type(layer).__name__}"
        raise TypeError(msg)
    rows = None if embedding is None else _core.asarray(embedding, "embedding")
    x, unbatched = layer._checked_x(x, rows)
    L, D, H = layer.num_layers, layer.directions, layer.hidden_size
    d = layer._time_major(checked(dy, "dy", (*x.shape[: 1 if unbatched else 2], D * H), layer.dtype), unbatched)
    x = layer._time_major(x, unbatched)
    T, B = x.shape[:2]
    learned = state is None and layer.learn_initial_state
    first = layer._learned_state(B) if learned else layer._checked_state(state, "state", B, unbatched)
    parameters = [layer._tuples(layer.parameters, k) for k in range(L)]
    states = [layer._of_layer(first, k) for k in range(L)]
    inputs = [x]
    for k in range(L - 1):
        y, _ = functional.inference(layer.cell, inputs[k], parameters[k], states[k], embedding=None if k else rows)
        inputs.append(y)
    h, c = np.empty((L, D, T)), np.empty((L, D, T)) if layer.cell == "lstm" else None
    for k in reversed(range(L)):
        d, dh, dc = _steps(layer.cell, inputs[k], parameters[k], states[k], d, None if k else rows)
        h[k] = _norms(dh, D)
        if c is not None:
            c[k] = _norms(dc, D)
    return GradientFlow(h, c)


def _norms(a: Array, D: int) -> Array:
    """Return the norms [D,T] over B and H of a [T,B,D·H], without squares that underflow or overflow."""
    T, B, DH = a.shape
    a = a.reshape(T, B, D, DH // D).astype(np.float64)
    largest = np.abs(a).max(axis=(1, 3), initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    squares = np.square(a / scale[:, None, :, None]).sum(axis=(1, 3))
    norms: Array = (scale * np.sqrt(squares)).T
    return norms


def _steps(
    cell: str, x: Array, parameters: list[Any], state: Any, dy: Array, embedding: Array | None
) -> tuple[Array, Array, Array]:
    """Return dx [T,B,I], zero for tokens, and dh and dc [T,B,D·H] of every step of a layer, run in single steps."""
    T, B, DH = dy.shape
    H = DH // len(parameters)
    dx = np.zeros(x.shape, dy.dtype)
    dh, dc = np.zeros_like(dy), np.zeros_like(dy)
    ones = np.ones((1, B, H), dy.dtype)
    for direction, own in enumerate(parameters):
        times = range(T)[:: -1 if direction else 1]
        units = slice(direction * H, (direction + 1) * H)
        h_c, tapes = each_part(itemgetter(slice(direction, direction + 1)), state), {}
        for t in times:
            _, h_c, tapes[t] = functional.forward(cell, x[t : t + 1], [own], h_c, embedding=embedding)
        dh_t, dc_t = np.zeros((1, B, H), dy.dtype), None
        for t in reversed(times):
            dh_t = dh_t + dy[t, :, units]
            dh[t, :, units] = dh_t[0]
            dx_t, dh_t, dc_t, _ = _core.backward(tapes[t], None, dh_t, dc_t, x.ndim == 3)
            if dx_t is not None:
                dx[t] += dx_t[0]
            if dc_t is not None:  # it is f * dc, and f is what the step makes of a dc of 1
                f: Any = _core.backward(tapes[t], None, None, ones, False)[2]
                np.divide(dc_t, f, out=dc[t : t + 1, :, units], where=f > 0)
    return dx, dh, dc
