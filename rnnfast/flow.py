"""How far back gradients reach: the norm of the gradient of each step's state."""

from typing import Any, NamedTuple

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, Integers, quiet
from ._base.packed import PackedSequence, row_numbers
from ._base.state import STATES, Parts, StateLike
from ._stack import whole
from ._stack.backpropagation import backward
from ._stack.call import Call, checked_call, results
from ._stack.recurrent import Recurrent
from ._stack.tape import LayerTape

__all__ = ["GradientFlow", "gradient_flow"]


class GradientFlow(NamedTuple):
    """Norms of gradients, [L,D,T]: for layer l and direction d at time t, over all sequences and units.

    Attributes
    ----------
    h : ndarray [L,D,T]
        Of dE/dh_t.
    c : ndarray [L,D,T] or None
        Of dE/dc_t, for the LSTM and the SLSTM.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(3, 4, rng=0)
    >>> flow = rnnfast.gradient_flow(rnn, np.ones((5, 2, 3), np.float32), np.ones((5, 2, 4), np.float32))
    >>> flow.h.shape, flow.c is None
    ((1, 1, 5), True)
    """

    h: Array
    c: Array | None = None


def gradient_flow(
    layer: Recurrent[Any],
    x: ArrayLike | PackedSequence,
    dy: ArrayLike | PackedSequence,
    *,
    state: StateLike | None = None,
    lengths: Integers | None = None,
    resets: ArrayLike | None = None,
    embedding: ArrayLike | None = None,
) -> GradientFlow:
    """Return the norms of the gradients of all states, for a loss E with the gradient dE/dy = `dy`.

    The gradients are total: a change of h_t affects the output of its step, all later steps and all layers above; a
    change of c_t affects ``h_t = o_t * tanh(c_t)`` and all that follows from it. With `zoneout` the states are those of
    a plain call of the layer, weighted means of the old value and the new one: h_t is computed from the new c before c
    is averaged, so a change of c_t affects h only from step t + 1 on. Divided by the norm at the step on which the loss
    depends, the norms say how much of the error reaches back to step t [1]_ [2]_. A backward direction starts at the
    end, so its gradients flow from time 0 on.

    Parameters
    ----------
    layer : LSTM, GRU, RNN or SLSTM
        It runs without any dropout.
    x : array
        As for a call of the layer, or tokens.
    dy : array like y
    state, lengths, resets, embedding : optional
        As for a call of the layer.

    Returns
    -------
    GradientFlow
        The norms in float64. A gradient that the layer's own dtype cannot hold counts as zero: below 1e-38 in
        float32, 1e-308 in float64.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. The message names the argument, what was expected and what was given.

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
    if not isinstance(layer, Recurrent):
        msg = f"layer: expected an LSTM, GRU, RNN or SLSTM, got {type(layer).__name__}"
        raise TypeError(msg)
    L, D = layer.num_layers, layer.directions
    call = checked_call(layer, x, state, lengths, resets, "all", embedding, None)
    hidden, last, kept, _ = whole.forward(layer, call, dropout=False)
    y, _ = results(layer, call, hidden, last)
    tape = LayerTape(owner=layer, x=call.x, y=y, call=call, hidden=hidden, kept=kept, masks=())
    norms = tuple(np.empty((L, D, call.layout.T)) for _ in last)

    def measure(k: int, dstate: Parts) -> None:
        for of_part, d in zip(norms, dstate, strict=True):
            of_part[k] = _norms(_padded(call, d), D)

    dy = dy if isinstance(dy, PackedSequence) else _core.asarray(dy, "dy")
    backward(layer, tape, dy, None, need_dx=False, flow=measure)
    of_parts = dict(zip(STATES[layer.cell], norms, strict=True))
    return GradientFlow(of_parts["h"], of_parts.get("c"))


def _padded(call: Call, a: Array) -> Array:
    """Return rows as [T,B,*], zero where there is none."""
    sizes = call.layout.batch_sizes
    if sizes is None:
        return a
    T, B = call.layout.T, int(sizes[0])
    padded = np.zeros((T * B, *a.shape[1:]), a.dtype)
    padded[row_numbers(sizes, np.arange(B), T)] = a
    return padded.reshape(T, B, *a.shape[1:])


@quiet
def _norms(a: Array, D: int) -> Array:
    """Return the norms [D,T] over B and H of a [T,B,D·H], without squares that underflow or overflow."""
    T, B, DH = a.shape
    a = a.reshape(T, B, D, DH // D).astype(np.float64)
    largest = np.abs(a).max(axis=(1, 3), initial=0)
    scale = np.where((largest > 0) & np.isfinite(largest), largest, 1)
    squares = np.square(a / scale[:, None, :, None]).sum(axis=(1, 3))
    norms: Array = (scale * np.sqrt(squares)).T
    return norms
