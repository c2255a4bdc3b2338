"""Recurrent layers as functions of bare arrays: one layer, all its directions, one call.

Sizes are T time steps, B sequences, I inputs, H hidden units, G gates and D directions (1 or 2; the second
runs backwards in time). The parameters of one direction are the tuple

    w_ih [G·H,I], w_hh [G·H,H], b_ih [G·H] or None, b_hh [G·H] or None

and what else the cell has. The gates' blocks of H rows are in the order in which the equations name them. ``'`` marks
the previous step, ``*`` is elementwise, ``s`` is the logistic sigmoid and ``x_k = W_ik x + b_ik`` is the input's part
of gate k:

``"lstm"``, G = 4 [1]_ [2]_
    ::

        i = s(x_i + W_hi h' + b_hi)
        f = s(x_f + W_hf h' + b_hf)
        g = tanh(x_g + W_hg h' + b_hg)
        o = s(x_o + W_ho h' + b_ho)
        c = f * c' + i * g
        h = o * tanh(c)

``"lstm_peephole"``, G = 4, and p [3·H] [6]_
    The gates see c through the vectors p_i, p_f, p_o, in this order in p; g, c and h as above::

        i = s(x_i + W_hi h' + b_hi + p_i * c')
        f = s(x_f + W_hf h' + b_hf + p_f * c')
        o = s(x_o + W_ho h' + b_ho + p_o * c)

``"cifg"``, G = 3 [7]_
    With coupled gates, in the order i, g, o; the equations of ``"lstm"`` but for::

        f = 1 - i

``"cifg_peephole"``, G = 3, and p [2·H]
    Likewise, where i and o see c through p_i, p_o.

``"gru"``, G = 3 [3]_
    The reset gate acts after the recurrent product, as in torch and cuDNN::

        r = s(x_r + W_hr h' + b_hr)
        z = s(x_z + W_hz h' + b_hz)
        n = tanh(x_n + r * (W_hn h' + b_hn))
        h = (1 - z) * n + z * h'

``"gru_reset_before"``, G = 3 [4]_
    The reset gate acts before it; r, z and h as above::

        n = tanh(x_n + W_hn (r * h') + b_hn)

``"lstm_norm"``, ``"lstm_norm_carried"``, G = 4, gain_ih and gain_hh [4·H], gain_c [H], b_c [H] or None [11]_
    With layer normalisation, where N(v) is ``(v - mean(v)) / sqrt(var(v) + eps)`` over all elements of a row v: in the
    equations of ``"lstm"``, ``gain_ih * N(W_ih x) + b_ih`` is in the place of x_i, x_f, x_g, x_o, and
    ``gain_hh * N(W_hh h') + b_hh`` in that of the products with h'; and::

        h = o * tanh(gain_c * N(c) + b_c)
        c = gain_c * N(f * c' + i * g) + b_c            "lstm_norm_carried", with h = o * tanh(c)

``"gru_norm"``, G = 3, gain_ih and gain_hh [3·H] [11]_
    Likewise, with the equations of ``"gru"``.

``"rnn_tanh"``, ``"rnn_relu"``, G = 1 [5]_
    ::

        h = tanh(x_h + W_hh h' + b_hh)
        h = max(0, x_h + W_hh h' + b_hh)

``"rnn_tanh_leaky"``, ``"rnn_relu_leaky"``, G = 1, and l [H] [8]_
    Of leaky units, where f is the h of ``"rnn_tanh"`` or ``"rnn_relu"``::

        h = (1 - l) * h' + l * f

``"slstm"``, ``"slstm_exp"``, G = 4, and bounds [2·H] [10]_
    The sLSTM, in the order i, f, z, o, with a_k = x_k + W_hk h' + b_hk. Its bounds are the least n and the largest f of
    each unit, in this order: -infinity and 1, say. The second is at least 1::

        l = m' + log s(a_f)
        l = m' + a_f                                    "slstm_exp"
        m = a_i where n' = 0, else max(a_i, l)
        i = exp(a_i - m)
        f = min(exp(l - m), largest f)
        c = f * c' + i * tanh(a_z)
        n = max(f * n' + i, least n)
        h = s(a_o) * c / n

    W_hh may be block-diagonal, [G·H,H/heads]: the units form heads of H/heads neighbours, and the row of a unit meets
    the h' of its own head.

A state is ``(h, c)`` for the LSTMs, ``(h, c, n, m)`` for the sLSTMs and ``h`` for the others, [D,B,H] each.

Where one more parameter comes last, w_hr [P,H] with P < H, the LSTMs without normalisation, ``"rnn_tanh"`` and
``"rnn_relu"`` have a projection [9]_: h is ``W_hr u``, where u is the h of the equations above. Then w_hh is [G·H,P],
and wherever an array of h, or of its gradient, is described with H, it has P instead: y [T,B,D·P], h [D,B,P].

In place of x, tokens [T,B] of any integer dtype select the rows of an embedding [V,I]; without one they are
one-hot, and I = V. Nothing is multiplied by zeros, nor is one token's row multiplied twice: ``W_ih x + b_ih`` is
formed once for each token that occurs, and the gradients of the gates are summed by token before they meet w_ih.
Results differ from those of the rows themselves by rounding.

Sequences of different lengths are given without padding: with ``batch_sizes`` [T], x is [N,I] and y [N,D·H], the
N rows of all steps one after the other, where step t has the first ``batch_sizes[t]`` sequences, ordered by
descending length. This is the layout of torch's PackedSequence. A backward direction starts at each sequence's own
end, and the last state is that of the last step that a sequence has. ``resets`` are bools like x without its last
axis: before such a step the state is the initial one, and no gradient crosses. In the backward direction the episode
that ends before a reset starts there.

A gate of ``gate_override`` is held at its value in all steps and units; its pre-activation gets no gradient. With
``recurrent_factors`` m, the h' that a W_hh meets is m * h' (of ``"gru_reset_before"`` n has ``W_hn (r * m * h')``), not
so with a projection or heads. With ``candidate_dropout``, g of an LSTM or n of a GRU meets the state times 1 / (1 - p)
where it is kept, elsewhere as zero [12]_. With ``zoneout``, a state is that which the cell makes where it is new, else
the one before the step; or, with a rate, ``rate s' + (1 - rate) s`` [13]_. (Of an sLSTM c, n and m have one scale, and
should be new together.)

All other arrays of a call have one dtype, float32 or float64, native byte order and any strides; contiguous ones
are used without a copy. Besides NumPy's, any object with the buffer protocol, ``__array_interface__``,
``__array__`` or DLPack on the CPU is an array. Lists and tuples of numbers become arrays of the call's dtype, which is
that of w_ih; they cannot be filled. Of a class derived from ndarray only the memory is used and none of its methods,
and a masked array may not hide elements. Flags such as ``resets`` may also be numbers that are 0 and 1. An array is
read once: a call, and a backward after it, do not see that it is given another shape or dtype later. Every function
checks all its arguments before it writes anything, and raises

- TypeError for what is not an array or has another dtype,
- ValueError for another shape, a token that is not in 0..V-1, a read-only `out` or `grads`, and one that overlaps
  another array of the call,

with a message that names the argument, what was expected and what came.

References
----------
.. [1] Hochreiter, Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997.
.. [2] Gers, Schmidhuber, Cummins, "Learning to Forget: Continual Prediction with LSTM", Neural Computation
   12(10), 2000: the forget gate.
.. [3] Cho et al., arXiv:1406.1078v1, 2014.
.. [4] Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
   Translation", EMNLP 2014 (arXiv:1406.1078v3).
.. [5] Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990; with max(0, .): Le, Jaitly, Hinton,
   "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units", arXiv:1504.00941, 2015.
.. [6] Gers, Schraudolph, Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks", Journal of Machine
   Learning Research 3, 2002.
.. [7] Greff, Srivastava, Koutník, Steunebrink, Schmidhuber, "LSTM: A Search Space Odyssey", arXiv:1503.04069,
   2015.
.. [8] Jaeger, "The Echo State Approach to Analysing and Training Recurrent Neural Networks", GMD Report 148, 2001.
.. [9] Sak, Senior, Beaufays, "Long Short-Term Memory Recurrent Neural Network Architectures for Large Scale Acoustic
   Modeling", Interspeech 2014.
.. [10] Beck et al., "xLSTM: Extended Long Short-Term Memory", arXiv:2405.04517, 2024.
.. [11] Ba, Kiros, Hinton, "Layer Normalization", arXiv:1607.06450, 2016.
.. [12] Semeniuta, Severyn, Barth, "Recurrent Dropout without Memory Loss", arXiv:1603.05118, 2016.
.. [13] Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", arXiv:1606.01305, 2016.

Examples
--------
>>> import numpy as np
>>> from rnnfast import functional as F
>>> rng = np.random.default_rng(0)
>>> T, B, I, H = 5, 2, 3, 4
>>> x = rng.standard_normal((T, B, I))
>>> w_ih, w_hh = rng.standard_normal((4 * H, I)), rng.standard_normal((4 * H, H))
>>> y, (h, c), tape = F.forward("lstm", x, [(w_ih, w_hh, None, None)])
>>> y.shape, h.shape, c.shape
((5, 2, 4), (1, 2, 4), (1, 2, 4))
>>> dx, (dh0, dc0), [(dw_ih, dw_hh, _, _)] = F.backward(tape, np.ones_like(y))
>>> dx.shape, dh0.shape, dw_ih.shape, dw_hh.shape
((5, 2, 3), (1, 2, 4), (16, 3), (16, 4))
"""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, TypedDict, Unpack, overload

import numpy as np

from . import _core
from ._base.arrays import Array as Array
from ._base.arrays import ArrayLike
from ._base.maps import linear as linear
from ._base.maps import linear_backward as linear_backward
from ._base.maps import sigmoid as sigmoid
from ._base.maps import tanh as tanh
from ._base.names import FourStateCell, OneStateCell, TwoStateCell
from ._base.names import Grads as Grads
from ._base.names import Parameters as Parameters
from ._base.scalars import Flag, Number, bound, flag, held
from ._base.state import STATES, FourStates, Parts, beside_h, out_parts, parts_of, state_of
from ._base.state import State as State
from ._base.state import StateLike as StateLike
from ._base.state import StateT as StateT

__all__ = ["backward", "forward", "inference", "linear", "linear_backward", "sigmoid", "tanh"]


class _Options(TypedDict, total=False):
    """What `inference` and `forward` take by name."""

    embedding: ArrayLike | None
    batch_sizes: ArrayLike | None
    resets: ArrayLike | None
    gate_override: Mapping[str, Number] | None
    recurrent_factors: ArrayLike | None
    candidate_dropout: tuple[ArrayLike, Number] | None
    zoneout: Any
    layer_norm_eps: Number | None
    out: tuple[Any, Any] | None


@overload
def inference(
    cell: TwoStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, tuple[Array, Array]]: ...
@overload
def inference(
    cell: FourStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, FourStates]: ...
@overload
def inference(
    cell: OneStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, Array]: ...
@overload
def inference(
    cell: str,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, State]: ...
def inference(
    cell: str,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    *,
    embedding: ArrayLike | None = None,
    batch_sizes: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, Number] | None = None,
    recurrent_factors: ArrayLike | None = None,
    candidate_dropout: tuple[ArrayLike, Number] | None = None,
    zoneout: Any = None,
    layer_norm_eps: Number | None = None,
    out: tuple[Any, Any] | None = None,
) -> tuple[Array, State]:
    """Run one layer over whole sequences and keep nothing.

    Parameters
    ----------
    cell : str
        The name of the equations, one of those in `rnnfast.functional`.
    x : array [T,B,I], or of integers [T,B]
        The input, or its tokens; T is at least 1, B may be 0. With `batch_sizes` [N,I] or [N].
    parameters : sequence of D tuples
        w_ih, w_hh, b_ih, b_hh of each direction, what else the cell has, and with a projection w_hr.
    state : array [D,B,H] or tuple of such, optional
        The initial state, h, (h, c) or (h, c, n, m); zero where it or a part of it is None.
    embedding : array [V,I], optional
        What the tokens x select rows of. By default they are one-hot.
    batch_sizes : array of integers [T], optional
        The number of sequences that have step t: positive, in descending order; B is the first.
    resets : array of bools [T,B], or [N] with `batch_sizes`, optional
        Where a state is the initial one again.
    gate_override : dict, optional
        From letters, of i, f, g, o (i, g, o where they are coupled), r, z, n or z, o of the sLSTM, to the numbers that
        these gates are held at.
    recurrent_factors : array [D,B,H] or [D,B,G,H], optional
        What h' is multiplied by where it meets w_hh, in all steps: for all gates alike, or for each, in w_hh's order.
    candidate_dropout : pair (kept, p), optional
        Which candidates of an LSTM or a GRU without layer normalisation are kept, bools [T,B,D·H] or [N,D·H], or in all
        steps the same [1,B,D·H]; and the probability, at least 0 and less than 1, of which it is that the kept ones are
        scaled by 1 / (1 - p).
    zoneout : array, float or tuple of them, one for each part of a state, optional
        Which units of a state are new in a step, bools [T,B,D·H] or [N,D·H]; or the part of the old state in each, at
        least 0 and less than 1; or None. Not with a projection.
    layer_norm_eps : float, optional
        For cells with layer normalisation, the positive number eps; by default 1e-5.
    out : pair (y, state), optional
        Arrays for the result, with the shapes below; what is None is allocated.

    Returns
    -------
    y : ndarray [T,B,D·H]
        h of every step, the directions side by side.
    state : ndarray [D,B,H] or tuple of such
        The state after the last step, for the backward direction after the step at time 0.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; see `rnnfast.functional`.
    KeyboardInterrupt
        On Ctrl-C, between chunks of time.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.ones((1, 1))
    >>> y, h = inference("rnn_relu", np.ones((3, 1, 1)), [(w, w, None, None)])
    >>> y.ravel()
    array([1., 2., 3.])
    """
    rows = batch_sizes, resets, gate_override, recurrent_factors, candidate_dropout, zoneout, layer_norm_eps
    y, last = _run(_core.inference, cell, x, parameters, state, embedding, out, *rows)
    return y, state_of(last)


@overload
def forward(
    cell: TwoStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, tuple[Array, Array], _core.Tape[tuple[Array, Array]]]: ...
@overload
def forward(
    cell: FourStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, FourStates, _core.Tape[FourStates]]: ...
@overload
def forward(
    cell: OneStateCell,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, Array, _core.Tape[Array]]: ...
@overload
def forward(
    cell: str,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    **options: Unpack[_Options],
) -> tuple[Array, State, _core.Tape[State]]: ...
def forward(
    cell: str,
    x: ArrayLike,
    parameters: Parameters,
    state: StateLike | None = None,
    *,
    embedding: ArrayLike | None = None,
    batch_sizes: ArrayLike | None = None,
    resets: ArrayLike | None = None,
    gate_override: Mapping[str, Number] | None = None,
    recurrent_factors: ArrayLike | None = None,
    candidate_dropout: tuple[ArrayLike, Number] | None = None,
    zoneout: Any = None,
    layer_norm_eps: Number | None = None,
    out: tuple[Any, Any] | None = None,
) -> tuple[Array, State, _core.Tape]:
    """Run one layer over whole sequences and keep what `backward` needs.

    Takes and raises what `inference` does.

    Returns
    -------
    y, state
        As from `inference`, with the same bits.
    tape : Tape
        For `backward`. It refers to x, y, the state, the parameters and the embedding and does not copy them:
        they must not change before the last backward. Tokens are copied.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.ones((1, 1))
    >>> y, h, tape = forward("rnn_relu", np.ones((3, 1, 1)), [(w, w, None, None)])
    >>> dx, dh0, [(dw_ih, dw_hh, _, _)] = backward(tape, dstate=np.ones_like(h))
    >>> dw_hh  # the previous h of the three steps, 0 + 1 + 2
    array([[3.]])

    Tokens, with an embedding of two words:

    >>> embedding = np.array([[1.0], [2.0]])
    >>> y, h, tape = forward("rnn_relu", np.array([[0], [0], [1]]), [(w, w, None, None)], embedding=embedding)
    >>> y.ravel()
    array([1., 2., 4.])
    >>> dembedding, _, _ = backward(tape, dstate=np.ones_like(h))
    >>> dembedding
    array([[2.],
           [1.]])
    """
    rows = batch_sizes, resets, gate_override, recurrent_factors, candidate_dropout, zoneout, layer_norm_eps
    y, last, tape = _run(_core.forward, cell, x, parameters, state, embedding, out, *rows)
    return y, state_of(last), tape


def backward(
    tape: _core.Tape[StateT],
    dy: ArrayLike | None = None,
    dstate: StateLike | None = None,
    *,
    dc: ArrayLike | None = None,
    clip_dh: Number | None = None,
    need_dx: Flag = True,
    grads: Parameters | None = None,
    flow: tuple[Array | None, Array | None] | None = None,
    out: tuple[Any, Any] | None = None,
) -> tuple[Array | None, StateT, Grads]:
    """Backpropagate through time: the gradients of ``sum(dy * y) + sum(dstate * state)``, or with ``sum(dc * c)``.

    Parameters
    ----------
    tape : Tape
        From `forward`. It is only read: any number of backwards may use it.
    dy : array [T,B,D·H], optional
        The gradient of y, zero if None.
    dstate : array [D,B,H] or tuple of such, optional
        The gradient of the last state, dh, (dh, dc) or (dh, dc, dn, dm); zero where it or a part of it is None. At
        least one of dy, dstate and dc is required.
    dc : array [T,B,D·H], optional
        For the LSTM and the sLSTM, the gradient of c of every step.
    clip_dh : float, optional
        A positive number: what a step passes to the one before, dh' and the gradients of its other states, is
        bounded to [-clip_dh, clip_dh], element by element; also what the first step of each episode passes to
        dstate0, whose sum is not bounded. NaN passes.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.
    grads : sequence of D tuples, optional
        dw_ih, dw_hh, db_ih, db_hh of each direction, of what else the cell has the gradients that are wanted, else
        None, and with a projection dw_hr: the gradients are added into these arrays.
    flow : pair of arrays [T,B,D·H], optional
        Filled with the gradients of h and c of every step, all that reaches them: from dy and dc, and through time.
        What is None is not computed; only the LSTM and the sLSTM have a second.
    out : pair (dx, dstate0), optional
        Arrays for the result, with the shapes below; what is None is allocated.

    Returns
    -------
    dx : ndarray [T,B,I] or None
        Of tokens, the gradient of their embedding, [V,I]; None if they have none.
    dstate0 : ndarray [D,B,H] or tuple of such
        The gradient of the initial state, dh0, (dh0, dc0) or (dh0, dc0, dn0, dm0).
    grads : list of D tuples
        dw_ih, dw_hh, db_ih, db_hh of each direction, None where there is no bias, of what else the cell has, and with
        a projection dw_hr.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; see `rnnfast.functional`.
    KeyboardInterrupt
        On Ctrl-C, between chunks of time; arrays given as `grads` or `out` are then part-way.

    Examples
    --------
    >>> import numpy as np
    >>> w = np.ones((1, 1))
    >>> y, h, tape = forward("rnn_relu", np.ones((3, 1, 1)), [(w, w, None, None)])
    >>> dx, dh0, [(dw_ih, dw_hh, _, _)] = backward(tape, np.ones_like(y))
    >>> dx.ravel()
    array([3., 2., 1.])
    """
    if not isinstance(tape, _core.Tape):
        msg = f"tape: expected a tape of functional.forward, got {type(tape).__name__}"
        raise TypeError(msg)
    cell, limit, need_dx = tape.cell, bound(clip_dh), flag(need_dx, "need_dx")
    dlast, results = parts_of(cell, dstate, "dstate"), None if out is None else out_parts(cell, out, "(dx, dstate0)")
    options: dict[str, Any] = {}
    if dc is not None or clip_dh is not None or flow is not None:  # arguments by name cost time
        flows = None if flow is None else _flow_parts(cell, flow)
        options = {"dsteps": beside_h(cell, dc, "dc"), "clip_dh": limit, "flow": flows}
    dx, dstate0, grads = _core.backward(tape, dy, dlast, need_dx, grads, results, **options)
    return dx, state_of(dstate0), grads


def _run(
    run: Callable[..., Any],
    cell: str,
    x: ArrayLike,
    parameters: Parameters,
    state: object,
    embedding: object,
    out: tuple[Any, Any] | None,
    batch_sizes: object,
    resets: object,
    gate_override: object,
    recurrent_factors: object,
    candidate_dropout: object,
    zoneout: object,
    layer_norm_eps: object,
) -> Any:
    initial = parts_of(cell, state, "state")
    results = None if out is None else out_parts(cell, out, "(y, state)")
    sequences = batch_sizes is resets is None
    if sequences and gate_override is recurrent_factors is candidate_dropout is zoneout is layer_norm_eps is None:
        return run(cell, x, parameters, initial, results, embedding)  # arguments by name cost time
    return run(
        cell,
        x,
        parameters,
        initial,
        results,
        embedding,
        batch_sizes=batch_sizes,
        resets=resets,
        gate_override=gate_override,
        recurrent_factors=recurrent_factors,
        candidate_dropout=_candidate_dropout(candidate_dropout),
        zoneout=None if zoneout is None else _zoneout_parts(cell, zoneout),
        layer_norm_eps=layer_norm_eps,
    )


def _candidate_dropout(given: object) -> tuple[Array, object] | None:
    """Return which candidates are kept, as bools, and the rate of the others."""
    if given is None:
        return None
    if not isinstance(given, tuple | list) or len(given) != 2:
        msg = f"candidate_dropout: expected a pair (kept, p), got {type(given).__name__}"
        raise TypeError(msg)
    kept, rate = given
    return _core.asarray(kept, "candidate_dropout: kept", np.dtype(bool)), rate


def _zoneout_parts(cell: str, zoneout: object) -> Parts:
    """Return for each part of a state its rate, or which units are new, as bools."""

    def part_of(part: Any, name: str) -> Any:
        scalar = held(part)
        if scalar is None or isinstance(scalar, Real):
            return scalar
        return _core.asarray(part, f"zoneout: {name}", np.dtype(bool))

    parts = parts_of(cell, zoneout, "zoneout")
    return tuple(map(part_of, parts, STATES.get(cell, ("h",))))


def _flow_parts(cell: str, flow: object) -> Parts:
    """Return the parts of `flow`, a pair of h and c."""
    if not isinstance(flow, tuple | list):
        msg = f"flow: expected a tuple (h, c), got {type(flow).__name__}"
        raise TypeError(msg)
    if len(flow) != 2:
        msg = f"flow: expected a tuple (h, c), got a {type(flow).__name__} of {len(flow)}"
        raise ValueError(msg)
    h, c = flow
    return h, *(beside_h(cell, c, "flow[1]") or (None,) * (len(STATES[cell]) - 1))
