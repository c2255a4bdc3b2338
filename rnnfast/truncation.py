"""Truncated backpropagation through time: training on long sequences in windows that reach back k2 steps.

Sizes are T time steps, B sequences, I inputs, H hidden units, L layers.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, Literal

import numpy as np

from . import _core
from ._base.arrays import Array, ArrayLike, quiet
from ._base.scalars import Flag, Integer, choice, flag
from ._base.state import StateLike, StateT, initial_names
from ._stack import whole
from ._stack.call import checked_call
from ._stack.recurrent import Recurrent
from ._stack.stack import new_state, state_of_layer
from ._stack.windows import Input, Options, Run, Window, as_stack, check_truncation, chunks_of, given_parts, given_state
from .cells import RecurrentCell

__all__ = ["Window", "tbptt", "tbptt_gradient"]


def tbptt(
    layer: Recurrent[StateT] | RecurrentCell[StateT],
    x: ArrayLike | Iterator[ArrayLike],
    k1: Integer,
    k2: Integer,
    *,
    state: StateLike | None = None,
    losses: Literal["new", "window"] = "new",
    activations: Literal["stored", "replay"] = "stored",
    embedding: ArrayLike | None = None,
    resets: ArrayLike | Iterator[ArrayLike] | None = None,
) -> Iterator[Window[StateT]]:
    """Run over a long sequence in windows, each with a truncated gradient: BPTT(k2; k1) of Williams and Peng [1]_.

    Windows end at k1, 2·k1, ... and at T. The one that ends at `stop` reaches back to tau = max(0, stop - k2); the
    state at tau is a constant. Each step is computed once, when its first window is requested, with the parameters at
    that time. The memory is that of about 1.5 (k1 + k2) steps, or of T if that is less.

    Parameters
    ----------
    layer : layer or cell
        Unidirectional. Dropout between layers is active.
    x : array [T,B,I], [B,T,I] if `batch_first`, [T,I] for one sequence, or iterator of such
        The input, or its tokens, as for a layer. Chunks may differ in T; the first is requested at once. Steps are
        copied when their window is requested.
    k1 : int
        The number of steps from the end of one window to that of the next.
    k2 : int
        The number of steps that a window reaches back; less than, equal to or more than k1.
    state : array [L,B,H] or tuple of such, optional
        The initial state, as for the layer; [B,H] for a cell. It is copied.
    losses : {"new", "window"}
        Whether the y and dy of a window cover its new steps, those since the end of the window before, or all its
        steps.
    activations : {"stored", "replay"}
        Which activations backward uses if the parameters have changed since the steps were computed: the stored ones,
        or those of running the window again with the current parameters, from the stored state at tau. In both cases it
        multiplies by the current weights.
    embedding : array [V,I], optional
        The table whose rows the tokens x select, as it is when the window runs, forward or backward.
    resets : array of bools [T,B], laid out as x is, or iterator of such, optional
        Where an episode begins: the state before the step is the initial state, and no gradient flows back across it.

    Returns
    -------
    iterator of `Window`

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid. The message names the argument, what was expected and what was given. An invalid
        chunk raises when it is reached.

    References
    ----------
    .. [1] Williams, Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
       Trajectories", Neural Computation 2(4), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> gru = rnnfast.GRU(3, 4, rng=0)
    >>> x = np.zeros((10, 2, 3), np.float32)
    >>> for window in rnnfast.tbptt(gru, x, k1=4, k2=6):
    ...     grads = window.backward(np.ones_like(window.y))
    ...     window
    Window(tau=0, start=0, stop=4)
    Window(tau=2, start=4, stop=8)
    Window(tau=4, start=8, stop=10)
    """
    n1, n2 = check_truncation(layer, k1, k2, losses)
    choice(activations, "activations", ("stored", "replay"))
    first = [*islice(chunks_of(x), 1)]
    if not first:
        return iter(())
    given = Input(first[0], chain(first, chunks_of(x) if isinstance(x, Iterator) else ()), isinstance(x, Iterator))
    options = Options(n1, n2, losses == "window", activations == "replay")
    return Run(layer, options, given, state, embedding, resets).windows()


@quiet
def tbptt_gradient(
    layer: Recurrent[StateT] | RecurrentCell[StateT],
    x: ArrayLike,
    dy: ArrayLike,
    k1: Integer,
    k2: Integer,
    *,
    state: StateLike | None = None,
    losses: Literal["new", "window"] = "new",
    need_dx: Flag = True,
) -> tuple[Array | None, StateT, dict[str, Array]]:
    r"""Return the sum of the truncated gradients of all windows of `tbptt`, for weights that do not change.

    With the windows' ends :math:`e \in E = \{k_1, 2 k_1, \dots, T\}` and their first steps
    :math:`\tau_e = \max(0, e - k_2)`, it is the sum over e of the gradients of

    .. math:: \sum_{t \in S_e} \langle dy_t, y_t \rangle, \quad \text{the state before } \tau_e \text{ a constant,}

    where :math:`S_e` are the steps from :math:`\tau_e` to e that come after the previous end ("new"), or all of them
    ("window").

    One backward pass computes all windows. All windows that contain a step have the same Jacobian there, so their
    deltas, r = ceil(k2 / k1) of them (sometimes one more near the end), are the rows of one recurrent product. The
    gradients of the weights and of x follow from their sum. For one layer with I = H this takes (r + 3) / 4 times the
    work of a plain backward, while separate windows take r times as much. In a stack, the gradient that a layer passes
    to the one below also differs between windows: one such array, [T,r,B,H], is in memory at a time. Other memory grows
    by r rows for each sequence, not with T.

    Parameters
    ----------
    layer : layer or cell
        Unidirectional. Dropout between layers is active, as in `forward`.
    x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence
        The input. An array of integers, without the last axis, holds tokens.
    dy : array like y, [T,B,H]
        The gradient of the top layer's y.
    k1, k2 : int
        The number of steps from one window's end to that of the next, and the number of steps that a window reaches
        back.
    state : array [L,B,H] or tuple of such, optional
        The initial state, as for the layer; [B,H] for a cell, without B for one sequence.
    losses : {"new", "window"}
        Whether dy_t counts only in the first window that ends after t, if it reaches back to t, or in every window that
        contains t.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.

    Returns
    -------
    dx : ndarray like x, or None
        None for tokens.
    dstate0 : ndarray or tuple of ndarrays like state
        The gradient of the initial state, from the windows that reach back to it.
    grads : dict of ndarrays
        The gradients of the parameters, by the keys of `state_dict()`. That of a learned initial state is the sum of
        dstate0 over B, and zero if another state was given.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or the layer is bidirectional. The message names it, what was expected and what
        came.
    KeyboardInterrupt
        On Ctrl-C.

    Notes
    -----
    The sum agrees with that of separate windows to rounding; with k1 = k2 = T it is bit for bit the plain gradient.
    Clipping a sum differs from clipping its terms, so `clip_dh` is not supported.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> rnn = rnnfast.RNN(1, 1, nonlinearity="relu", bias=False, dtype="float64")
    >>> rnn.weight_ih_l0 = rnn.weight_hh_l0 = np.ones((1, 1))
    >>> x = dy = np.ones((5, 1))
    >>> dx, _, _ = rnnfast.tbptt_gradient(rnn, x, dy, k1=2, k2=3)  # steps 0 1, (1) 2 3, (2 3) 4
    >>> dx.ravel()
    array([2., 3., 3., 2., 1.])
    """
    n1, n2 = check_truncation(layer, k1, k2, losses)
    need_dx = flag(need_dx, "need_dx")
    stack = as_stack(layer)
    call = checked_call(stack, x, None, None, None, "all", None, None)
    layout = call.layout
    if layout.packed is not None:
        msg = "x: expected an array, since all windows end at the same steps, got a PackedSequence"
        raise TypeError(msg)
    d: Any = layout.checked(dy, "dy", (stack.h_size,), stack.dtype)
    if state is not None:
        first = given_parts(stack, state, layout)
        call = call._replace(first=first, state=first, learned=False)

    _, _, tapes, masks = whole.forward(stack, call)
    dfirst = new_state(stack, layout)
    made: dict[str, Any] = {}
    for k in reversed(range(stack.num_layers)):
        d, _, [new] = _core.backward(
            tapes[k],
            d,
            need_dx=need_dx or k > 0,
            out=(None, state_of_layer(stack, dfirst, k)),
            windows=(min(n1, layout.T), min(n2, layout.T), losses == "window", k > 0),
        )
        if d is not None and k and masks:  # d is [T,B,H], or [T,r,B,H] with what does not exist left as it is
            d *= masks[k - 1].reshape(layout.T, *(1,) * (d.ndim - 3), layout.B, -1)
        made |= zip(stack.names_of(k)[0], new, strict=True)
    if call.learned:
        made |= {name: part.sum(axis=1) for name, part in zip(initial_names(stack.cell), dfirst, strict=True)}
    suffix = "" if stack is layer else "_l0"  # that the stack's names have more than the cell's
    made |= {name: np.zeros_like(p) for name, p in stack.parameters.items() if name not in made}
    grads = {name: made[name + suffix] for name in layer.parameters}
    dx = None if d is None else layout.give(d)
    return dx, given_state(stack, dfirst, layout), grads
