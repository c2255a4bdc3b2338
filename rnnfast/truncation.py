"""Truncated backpropagation through time: training on long sequences by windows that reach back k2 steps.

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
    """Run over a long sequence by windows, each with a truncated gradient: BPTT(k2; k1) of Williams and Peng [1]_.

    Windows end at k1, 2·k1, ... and at T. The one that ends at `stop` reaches back to tau = max(0, stop - k2); the
    state at tau is a constant. Each step is computed once, when its first window is asked for, with the parameters of
    that time. Memory is that of about 1.5 (k1 + k2) steps, or of T if that is less.

    Parameters
    ----------
    layer : layer or cell
        Of one direction. Dropout between layers is active.
    x : array [T,B,I], [B,T,I] if `batch_first`, [T,I] for one sequence, or iterator of such
        The input, or its tokens, as a layer takes them. Chunks may differ in T; the first is asked for at once. Steps
        are copied when their window is asked for.
    k1 : int
        Steps from the end of one window to that of the next.
    k2 : int
        Steps that a window reaches back; less than, equal to or more than k1.
    state : array [L,B,H] or tuple of such, optional
        The initial state, as the layer takes it; [B,H] of a cell. It is copied.
    losses : {"new", "window"}
        Whether the y and dy of a window are of its new steps, those since the end of the one before, or of all its
        steps.
    activations : {"stored", "replay"}
        What backward goes over where the parameters have changed since the steps were computed: their activations as
        they were, or those of the window run once more, with the parameters of now from the state at tau as it was.
        Either way it multiplies by the weights of now.
    embedding : array [V,I], optional
        What the tokens x select rows of: those that it has when the window runs, forward or backward.
    resets : array of bools [T,B], laid out as x is, or iterator of such, optional
        Where an episode begins: before the step the state is the initial one, and no gradient crosses.

    Returns
    -------
    iterator of `Window`

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit. The message names it, what was expected and what came. Of a chunk that does not,
        when it is reached.

    References
    ----------
    .. [1] Williams, Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network
       Trajectories", Neural Computation 2(4), 1990.

    Examples
    --------
    >>> import numpy as np
    >>> import rnnfast
    >>> gru = rnnfast.GRU(3, 4, seed=0)
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
    r"""Return the sum over all windows of `tbptt` of the truncated gradients, for weights that stay as they are.

    With the windows' ends :math:`e \in E = \{k_1, 2 k_1, \dots, T\}` and their first steps
    :math:`\tau_e = \max(0, e - k_2)`, it is the sum over e of the gradients of

    .. math:: \sum_{t \in S_e} \langle dy_t, y_t \rangle, \quad \text{the state before } \tau_e \text{ a constant,}

    where :math:`S_e` are the steps from :math:`\tau_e` to e that lie behind the end before e ("new"), or all of them
    ("window").

    All windows are one backward pass. Those that go through a step have the same Jacobians there, so the deltas of all
    r = ceil(k2 / k1) of them (at times one more near the end) are the rows of one recurrent product; the gradients of
    the weights and of x follow from their sum. For one layer with I = H that is (r + 3) / 4 of the work of a plain
    backward, where separate windows take r times it. In a stack, what a layer hands to the one below differs from
    window to window too: such an array, [T,r,B,H], is in memory between two layers at a time. Beside it, memory grows
    by r rows for each sequence, not with T.

    Parameters
    ----------
    layer : layer or cell
        Of one direction. Dropout between layers is active, as in `forward`.
    x : array [T,B,I], [B,T,I] if `batch_first`, or [T,I] for one sequence
        The input. An array of integers, without the last axis, holds tokens.
    dy : array like y, [T,B,H]
        The gradient of the top layer's y.
    k1, k2 : int
        Steps from one window's end to that of the next, and steps that a window reaches back.
    state : array [L,B,H] or tuple of such, optional
        The initial state, as the layer takes it; [B,H] of a cell, without B for one sequence.
    losses : {"new", "window"}
        Whether dy_t counts in the first window that ends behind t, if it reaches back to t, or in each that goes
        through t.
    need_dx : bool, optional
        If False, dx is not computed and None is returned for it.

    Returns
    -------
    dx : ndarray like x, or None
        None for tokens.
    dstate0 : ndarray or tuple of ndarrays like state
        The gradient of the initial state, of the windows that reach back to it.
    grads : dict of ndarrays
        The gradients of the parameters, by the keys of `state_dict()`. That of a learned initial state is the sum of
        dstate0 over B, and zero if another state was given.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the layer is bidirectional. The message names it, what was expected and what
        came.
    KeyboardInterrupt
        On Ctrl-C, between chunks of time.

    Notes
    -----
    The sum is that of separate windows to rounding; with k1 = k2 = T it is the plain gradient bit for bit. A bound like
    `clip_dh` does not pass through a sum, so there is none here.

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
