"""Recurrent layers as functions of plain arrays: one call runs one layer in all its directions.

Sizes are T time steps, B sequences, I inputs, H hidden units, G gates and D directions (1 or 2; the second
runs backwards in time). The parameters of one direction are the tuple

    w_ih [G·H,I], w_hh [G·H,H], b_ih [G·H] or None, b_hh [G·H] or None

followed by any other parameters of the cell. The blocks of H rows for each gate are in the order of the equations.
``'`` marks the previous step, ``*`` is the elementwise product, ``s`` is the logistic sigmoid, and ``x_k = W_ik x +
b_ik`` is the input's part of gate k:

``"lstm"``, G = 4 [1]_ [2]_
    ::

        i = s(x_i + W_hi h' + b_hi)
        f = s(x_f + W_hf h' + b_hf)
        g = tanh(x_g + W_hg h' + b_hg)
        o = s(x_o + W_ho h' + b_ho)
        c = f * c' + i * g
        h = o * tanh(c)

``"lstm_peephole"``, G = 4, and p [3·H] [6]_
    The gates also read c through the vectors p_i, p_f, p_o, in this order in p; g, c and h are as above::

        i = s(x_i + W_hi h' + b_hi + p_i * c')
        f = s(x_f + W_hf h' + b_hf + p_f * c')
        o = s(x_o + W_ho h' + b_ho + p_o * c)

``"cifg"``, G = 3 [7]_
    With coupled gates, in the order i, g, o; the equations are those of ``"lstm"`` except for::

        f = 1 - i

``"cifg_peephole"``, G = 3, and p [2·H]
    The same, where i and o also read c through p_i, p_o.

``"gru"``, G = 3 [3]_
    The reset gate acts after the recurrent product, as in torch and cuDNN::

        r = s(x_r + W_hr h' + b_hr)
        z = s(x_z + W_hz h' + b_hz)
        n = tanh(x_n + r * (W_hn h' + b_hn))
        h = (1 - z) * n + z * h'

``"gru_reset_before"``, G = 3 [4]_
    The reset gate acts before the product; r, z and h are as above::

        n = tanh(x_n + W_hn (r * h') + b_hn)

``"lstm_norm"``, ``"lstm_norm_carried"``, G = 4, gain_ih and gain_hh [4·H], gain_c [H], b_c [H] or None [11]_
    With layer normalisation, N(v) is ``(v - mean(v)) / sqrt(var(v) + eps)`` over all elements of a row v. In the
    equations of ``"lstm"``, ``gain_ih * N(W_ih x) + b_ih`` replaces x_i, x_f, x_g, x_o, and ``gain_hh * N(W_hh h') +
    b_hh`` replaces the products with h'; and::

        h = o * tanh(gain_c * N(c) + b_c)
        c = gain_c * N(f * c' + i * g) + b_c            "lstm_norm_carried", with h = o * tanh(c)

``"gru_norm"``, G = 3, gain_ih and gain_hh [3·H] [11]_
    The same for the equations of ``"gru"``.

``"rnn_tanh"``, ``"rnn_relu"``, G = 1 [5]_
    ::

        h = tanh(x_h + W_hh h' + b_hh)
        h = max(0, x_h + W_hh h' + b_hh)

``"rnn_tanh_leaky"``, ``"rnn_relu_leaky"``, G = 1, and l [H] [8]_
    With leaky units, where f is the h of ``"rnn_tanh"`` or ``"rnn_relu"``::

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

    W_hh may be block-diagonal, [G·H,H/heads]: the units form heads of H/heads neighbouring units, and the row of a unit
    is multiplied by the h' of its own head.

A state is ``(h, c)`` for the LSTMs, ``(h, c, n, m)`` for the sLSTMs and ``h`` for the others, [D,B,H] each.

The LSTMs without normalisation, ``"rnn_tanh"`` and ``"rnn_relu"`` accept one more parameter at the end, a projection
w_hr [P,H] with P < H [9]_: h is ``W_hr u``, where u is the h of the equations above. Then w_hh is [G·H,P], and arrays
of h and its gradient have P instead of H everywhere: y [T,B,D·P], h [D,B,P].

In place of x, tokens [T,B] of any integer dtype select the rows of an embedding [V,I]; without an embedding they are
one-hot, and I = V. Nothing is multiplied by zeros, and each token's row is multiplied only once: ``W_ih x + b_ih`` is
computed once for each token that occurs, and the gradients of the gates are summed by token before they are multiplied
by w_ih. Results agree with those for the rows themselves to rounding.

Sequences of different lengths are passed without padding: with ``batch_sizes`` [T], x is [N,I] and y is [N,D·H], where
the N rows are those of all steps one after the other. Step t consists of the first ``batch_sizes[t]`` sequences,
ordered by descending length. This is the layout of torch's PackedSequence. A backward direction starts at the end of
each sequence, and the last state is that of each sequence's last step. ``resets`` are bools in the shape of x without
its last axis: before a step where one is true, the state is set back to the initial state, and no gradient flows back
across it. The backward direction of an episode starts before the next reset.

``gate_override`` fixes gates at a value in all steps and units; the gradient of their pre-activations is zero. With
``recurrent_factors`` m, W_hh is multiplied by m * h' instead of h' (for ``"gru_reset_before"``, n has ``W_hn (r * m *
h')``); this cannot be combined with a projection or heads. With ``candidate_dropout``, the g of an LSTM or the n of a
GRU is multiplied by 1 / (1 - p) where it is kept, and by zero elsewhere [12]_. With ``zoneout`` masks, a state is the
one that the cell computes where the mask is true, and otherwise the one before the step; with a rate, it is ``rate s' +
(1 - rate) s`` [13]_. (In an sLSTM c, n and m share a scale and should be kept or replaced together.)

All other arrays of a call have the same dtype, float32 or float64, native byte order and any strides; contiguous arrays
are used without a copy. An array can be any object with the buffer protocol, ``__array_interface__``, ``__array__`` or
DLPack on the CPU. Lists and tuples of numbers are converted to arrays of the call's dtype, which is that of w_ih; they
cannot be used for output. For subclasses of ndarray, only the memory is used, and none of their methods are called;
masked arrays must not have masked elements. Flags such as ``resets`` may also be numbers that are 0 and 1. The shape
and dtype of an array are read once; changing them later affects neither the call nor its backward. Every function
checks all its arguments before it writes anything, and raises

- TypeError for what is not an array or has another dtype,
- ValueError for another shape, a token that is not in 0..V-1, and an `out` or `grads` that is read-only or overlaps
  another array of the call,

with a message that names the argument, what was expected and what was given.

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
    """Run one layer over whole sequences without keeping a tape.

    Parameters
    ----------
    cell : str
        The name of the equations, one of those in `rnnfast.functional`.
    x : array [T,B,I], or of integers [T,B]
        The input, or its tokens; T is at least 1, B may be 0. With `batch_sizes` [N,I] or [N].
    parameters : sequence of D tuples
        w_ih, w_hh, b_ih, b_hh of each direction, any other parameters of the cell, and with a projection w_hr.
    state : array [D,B,H] or tuple of such, optional
        The initial state, h, (h, c) or (h, c, n, m). None, or a part that is None, means zero.
    embedding : array [V,I], optional
        The table whose rows the tokens x select. By default tokens are one-hot.
    batch_sizes : array of integers [T], optional
        The number of sequences that have step t: positive, in descending order. The first is B.
    resets : array of bools [T,B], or [N] with `batch_sizes`, optional
        Where the state is set back to the initial state before the step.
    gate_override : dict, optional
        From the letters of gates to the numbers at which these are fixed. The letters are i, f, g, o (i, g, o if they
        are coupled), r, z, n, or z, o for the sLSTM.
    recurrent_factors : array [D,B,H] or [D,B,G,H], optional
        Factors of h' in the product with w_hh, in all steps: one for all gates, or one for each, in the order of w_hh.
    candidate_dropout : pair (kept, p), optional
        For an LSTM or a GRU without layer normalisation: which candidates are kept, bools [T,B,D·H] or [N,D·H], or
        [1,B,D·H] for all steps; and the probability p, at least 0 and less than 1. Candidates that are kept are
        multiplied by 1 / (1 - p).
    zoneout : array, float or tuple of them, one for each part of a state, optional
        Which units of a state are replaced in a step, bools [T,B,D·H] or [N,D·H]; or the rate, the fraction of the old
        state that remains, at least 0 and less than 1; or None. Not with a projection.
    layer_norm_eps : float, optional
        For cells with layer normalisation, the positive number eps, 1e-5 by default.
    out : pair (y, state), optional
        Arrays for the result, with the shapes below; what is None is allocated.

    Returns
    -------
    y : ndarray [T,B,D·H]
        h of every step, the directions side by side.
    state : ndarray [D,B,H] or tuple of such
        The state after the last step; for the backward direction, that after the step at time 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid (see `rnnfast.functional`).
    KeyboardInterrupt
        On Ctrl-C.

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

    It takes and raises what `inference` does.

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
        The gradient of the last state, dh, (dh, dc) or (dh, dc, dn, dm). None, or a part that is None, means zero. At
        least one of dy, dstate and dc is required.
    dc : array [T,B,D·H], optional
        For the LSTM and the sLSTM, the gradient of c of every step.
    clip_dh : float, optional
        A positive number. The gradients that a step passes to the step before, dh' and those of the other states, are
        clipped to [-clip_dh, clip_dh], element by element. So are those that the first step of each episode passes to
        dstate0, but not their sum. NaN passes through.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.
    grads : sequence of D tuples, optional
        dw_ih, dw_hh, db_ih, db_hh of each direction, the gradients of other parameters of the cell (None for those that
        are not needed), and with a projection dw_hr. The gradients are added to these arrays.
    flow : pair of arrays [T,B,D·H], optional
        Filled with the total gradients of h and c of every step: from dy and dc, and through time. An entry that is
        None is not computed; only the LSTM and the sLSTM have a second one.
    out : pair (dx, dstate0), optional
        Arrays for the result, with the shapes below; what is None is allocated.

    Returns
    -------
    dx : ndarray [T,B,I] or None
        For tokens, the gradient of the embedding, [V,I], or None without an embedding.
    dstate0 : ndarray [D,B,H] or tuple of such
        The gradient of the initial state, dh0, (dh0, dc0) or (dh0, dc0, dn0, dm0).
    grads : list of D tuples
        dw_ih, dw_hh, db_ih, db_hh of each direction (None if there is no bias), the gradients of other parameters of
        the cell, and with a projection dw_hr.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid (see `rnnfast.functional`).
    KeyboardInterrupt
        On Ctrl-C. Arrays passed as `grads` or `out` then hold incomplete results.

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
